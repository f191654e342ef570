"""The real mig-manager beside NVIDIA's chart, with the rights of deploy/mig-manager (stack/requirements.py)."""

import pytest
from hack.cluster.api import Api, Object
from hack.cluster.audit import read_requests, wait_logged
from hack.cluster.controlplane import ControlPlane
from hack.cluster.process import wait_until
from hack.launch import ROOT
from tests.nvidia.mignode import SAYS_FAILED, SECONDS, MigNode

from gpusharing.api.names import LABEL_DEPLOY_CLIENT, PAUSED_FOR_MIG

pytestmark = pytest.mark.nvidia

NAMESPACE = "nvidia-device-plugin"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
PAUSES = SAYS_FAILED
"""Whether this version pauses nvidia.com/gpu.deploy.client: v0.15 and newer do."""


def plugin(name: str) -> Object:
    """A DaemonSet as NVIDIA's chart has it with the selector of deploy/mig-manager/device-plugin-values.yaml."""
    labels = {"plugin-of": name}
    spec = {
        "nodeSelector": {LABEL_DEPLOY_CLIENT: "true", "of": name},
        "containers": [{"name": "main", "image": "simulated"}],
        "tolerations": [{"operator": "Exists"}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": f"plugin-{name}", "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def pods(api: Api, name: str) -> list[Object]:
    return api.list(PODS, labelSelector=f"plugin-of={name}", fieldSelector=f"spec.nodeName={name}")


@pytest.fixture
def node(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> MigNode:
    """A node with the how-to's labels, the plugin's pod, and a mig-manager that acts as its service account."""
    plane.api.ensure("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    plane.kubectl("apply", "-k", str(ROOT / "deploy" / "mig-manager"))
    node = MigNode(plane, tmp_path_factory.mktemp("p"), "h100-80gb")
    node.manager.kubeconfig = plane.service_account_kubeconfig(NAMESPACE, "nvidia-mig-manager")
    node.manager.clients_namespace = NAMESPACE
    labels = {LABEL_DEPLOY_CLIENT: "true", "of": node.name}
    plane.api.merge_patch(f"/api/v1/nodes/{node.name}", {"metadata": {"labels": labels}})
    room = {"pods": "10"}
    plane.api.merge_patch(f"/api/v1/nodes/{node.name}/status", {"status": {"capacity": room, "allocatable": room}})
    plane.api.create(f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets", plugin(node.name))
    wait_until(lambda: len(pods(node.api, node.name)) == 1, SECONDS, "the plugin's pod on the node")
    return node


def refused(plane: ControlPlane) -> list[tuple[str, str, str]]:
    """(verb, resource, name) of what mig-manager's service account asked for and may not."""
    wait_logged(plane.audit_log, plane.api)
    asked = list(read_requests(plane.audit_log, f"system:serviceaccount:{NAMESPACE}:nvidia-mig-manager"))
    assert {("get", "nodes"), ("patch", "nodes")} <= {(one.verb, one.resource) for one in asked}
    return [(one.verb, one.resource, one.name) for one in asked if one.status == 403]


def test_it_divides_the_gpus_once_the_plugins_pod_is_gone(plane: ControlPlane, node: MigNode) -> None:
    api, name = node.api, node.name
    (pod,) = pods(api, name)
    node.label(config="halves")
    node.manager.start()
    try:
        if not PAUSES:
            assert node.states_until("success", "failed") == ["pending", "success"]
            assert [row["metadata"]["uid"] for row in pods(api, name)] == [pod["metadata"]["uid"]]
            assert refused(plane) == []
            return  # which is why the operator refuses it
        node.wait_for_log("Waiting for 1 daemon set pod(s)", LABEL_DEPLOY_CLIENT)
        assert node.labels()[LABEL_DEPLOY_CLIENT] == PAUSED_FOR_MIG
        assert node.profiles() == [[], []]
        wait_until(lambda: "deletionTimestamp" in pods(api, name)[0]["metadata"], SECONDS, "the plugin to be stopped")
        # The node has no kubelet, which would delete the pod once its processes have ended.
        api.delete(f"{PODS}/{pod['metadata']['name']}", {"gracePeriodSeconds": 0})
        assert node.states_until("success", "failed") == ["pending", "success"]
        assert node.profiles() == [["3g.40gb", "3g.40gb"]] * 2
        assert node.labels()[LABEL_DEPLOY_CLIENT] == "true"
        wait_until(lambda: len(pods(api, name)) == 1, SECONDS, "the plugin's next pod")
        assert pods(api, name)[0]["metadata"]["uid"] != pod["metadata"]["uid"]
        assert refused(plane) == []
    finally:
        node.manager.stop()
        api.delete(f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/plugin-{name}")
        for left in pods(api, name):
            api.delete(f"{PODS}/{left['metadata']['name']}", {"gracePeriodSeconds": 0})
