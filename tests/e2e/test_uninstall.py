"""`helm uninstall` as a user runs it: the pre-delete hook's Job with our image on a real kubelet."""

from collections.abc import Iterator

import pytest
from hack.cluster.api import ApiError
from hack.realnode.site import Site
from hack.stage import NAMESPACE
from tests.build import make_fence

from gpusharing.api.names import ANNOTATION_FENCE
from gpusharing.kube.fence import record_text

pytestmark = pytest.mark.e2e
NODE = "/api/v1/nodes/gpu-1"
OPERATOR = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator"
MAPS = "/api/v1/namespaces/gpu-operator/configmaps"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gpusharingpolicies.gpusharing.dev"


def uninstall(site: Site) -> tuple[int, str]:
    """Exit status, and what helm and the hook's pod said."""
    return site.try_helm("uninstall", "gpusharing", "--wait", "--timeout", "300s")


def is_there(site: Site, path: str) -> bool:
    try:
        site.api.get(path)
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return True


@pytest.fixture
def fenced(site: Site, notes: str) -> Iterator[None]:
    """A node after its point of no return, of a policy that is gone: the operator leaves it to a person."""

    def annotate(text: str | None) -> None:
        site.api.merge_patch(NODE, {"metadata": {"annotations": {ANNOTATION_FENCE: text}}})

    annotate(record_text(make_fence(stage="actuating")))
    yield
    annotate(None)


def test_uninstalling_is_refused_while_a_node_is_in_the_middle_of_a_change(site: Site, fenced: None) -> None:
    status, said = uninstall(site)
    assert status != 0, said
    assert "gpu-1: policy pool-b" in said, said
    assert is_there(site, OPERATOR)


def test_without_one_it_says_what_stays_and_it_can_be_installed_again(site: Site, notes: str) -> None:
    try:
        status, said = uninstall(site)
        assert status == 0, said
        assert "delete configmap gpusharing-device-plugin gpusharing-mig-parted" in said, said
        assert not is_there(site, OPERATOR)
        assert is_there(site, CRD)
        assert is_there(site, f"{MAPS}/gpusharing-device-plugin")
    finally:
        site.helm_install()
    assert is_there(site, OPERATOR)
