"""`helm uninstall` as a user runs it, under an operator and agents on real kubelets."""

from collections.abc import Iterator

import pytest
from hack.cluster.api import Object
from hack.launch import NAMESPACE
from hack.realnode.site import Site
from tests.build import make_fence
from tests.chart.cluster import is_there
from tests.e2e.pool import FASTER, MIG, NODES, POLICY, Walk, holds

from gpusharing.api.names import ANNOTATION_FENCE, LABEL_MIG_CONFIG, LABEL_PLUGIN_CONFIG
from gpusharing.kube.fence import record_text

pytestmark = pytest.mark.e2e
NODE = "/api/v1/nodes/gpu-1"
OPERATOR = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator"
MAPS = "/api/v1/namespaces/gpu-operator/configmaps"
CLUSTER_POLICY = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
STAY = (
    f"{CRDS}/gpusharingpolicies.gpusharing.dev",
    f"{CRDS}/gpunodes.gpusharing.dev",
    POLICY,
    *(f"/apis/gpusharing.dev/v1alpha1/gpunodes/{name}" for name in NODES),
    f"{MAPS}/gpusharing-device-plugin",
    f"{MAPS}/gpusharing-mig-parted",
)


def uninstall(site: Site, *options: str) -> tuple[int, str]:
    return site.try_helm("uninstall", "gpusharing", "--wait", "--timeout", "300s", *options)


def served(walk: Walk) -> Object:
    """What makes the GPUs serve as they do: their partitions, the labels that name our entries, both pointers."""
    nodes = {}
    for name, node in walk.site.nodes.items():
        assert node.gpus is not None, "the nodes of the walk have GPUs"
        gpus = [{key: gpu[key] for key in ("uuid", "mig", "instances")} for gpu in node.gpus.simulator.show()["gpus"]]
        labels = walk.site.api.get(f"/api/v1/nodes/{name}")["metadata"]["labels"]
        nodes[name] = (gpus, labels[LABEL_MIG_CONFIG], labels[LABEL_PLUGIN_CONFIG])
    return {"nodes": nodes, "pointers": walk.site.api.get(CLUSTER_POLICY)["spec"]}


@pytest.fixture
def fenced(site: Site, notes: str) -> Iterator[None]:
    """A node after its point of no return, of a policy that is gone: the operator leaves it to a person."""

    def annotate(text: str | None) -> None:
        site.api.merge_patch(NODE, {"metadata": {"annotations": {ANNOTATION_FENCE: text}}})

    annotate(record_text(make_fence(stage="actuating")))
    yield
    annotate(None)


def test_uninstalling_is_refused_while_a_node_is_in_the_middle_of_a_change_unless_it_is_forced(
    walk: Walk, fenced: None
) -> None:
    site = walk.site
    status, said = uninstall(site)
    assert status != 0, said
    assert "NOT UNINSTALLED: node gpu-1 is in the middle of a change" in said, said
    assert is_there(site.api, OPERATOR)
    try:
        status, said = uninstall(site, "--no-hooks")
        assert status == 0, said
        assert not is_there(site.api, OPERATOR)
        assert ANNOTATION_FENCE in site.api.get(NODE)["metadata"]["annotations"], "who comes next finds it"
    finally:
        site.helm_install("--set", FASTER)
    assert is_there(site.api, OPERATOR)


def test_without_one_what_serves_stays_and_it_can_be_installed_again(walk: Walk) -> None:
    walk.bring(MIG)
    holds(walk, MIG)
    site, before, since = walk.site, served(walk), walk.mark()
    try:
        status, said = uninstall(site)
        assert status == 0, said
        assert not is_there(site.api, OPERATOR)
        assert [path for path in STAY if not is_there(site.api, path)] == []
        assert served(walk) == before
    finally:
        site.helm_install("--set", FASTER)
    assert is_there(site.api, OPERATOR)
    walk.wait(walk.is_ready, "the policy to be Ready as before")
    assert (walk.evicted(since), served(walk)) == ([], before)
