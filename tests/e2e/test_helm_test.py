"""`helm test` as a user runs it: the hook's pod with our image on a real kubelet, under its own account."""

import pytest
from hack.launch import NAMESPACE
from hack.realnode.site import Site

pytestmark = pytest.mark.e2e
ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
CLUSTER_POLICY = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"


def helm_test(site: Site) -> tuple[int, str]:
    return site.try_helm("test", "gpusharing", "--logs", "--timeout", "300s")


def test_helm_test_says_on_one_screen_that_the_installation_can_work_and_leaves_no_account(
    site: Site, notes: str
) -> None:
    status, said = helm_test(site)
    assert status == 0, said
    assert "This installation can work: errors 0" in said
    assert [one for one in site.api.list(ROLES) if one["metadata"]["name"] == "gpusharing-checks"] == []
    accounts = site.api.list(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts")
    assert "gpusharing-checks" not in {one["metadata"]["name"] for one in accounts}


def test_it_says_what_is_wrong_and_the_command_and_helm_fails(site: Site, notes: str) -> None:
    name = {"spec": {"devicePlugin": {"config": {"name": None}}}}
    site.api.merge_patch(CLUSTER_POLICY, name)
    try:
        status, said = helm_test(site)
    finally:
        back = {"spec": {"devicePlugin": {"config": {"name": "gpusharing-device-plugin"}}}}
        site.api.merge_patch(CLUSTER_POLICY, back)
    assert status != 0
    assert "devicePlugin.config.name is not set" in said
    assert "-> kubectl patch clusterpolicy cluster-policy" in said
