"""NVIDIA's own device-plugin chart, rendered by helm from its Go module: what kube/daemonsets.py reads there. And the real mig-manager beside it, with the rights of deploy/mig-manager (stack/requirements.py)."""

import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest
import yaml
from hack.cluster import toolchain
from hack.cluster.api import Api, Object
from hack.cluster.audit import read_requests, wait_logged
from hack.cluster.controlplane import ControlPlane
from hack.cluster.process import wait_until
from hack.launch import ROOT
from hack.nvidia.installations import PLAIN_NAMESPACE, copy_plugin_chart
from tests.build import NO_MIG_MANAGER
from tests.nvidia.mignode import SAYS_FAILED, SECONDS, MigNode
from tests.plainchart import NAMESPACE, RELEASE, VERSION, discovery, plugin, running

from gpusharing.api.names import LABEL_DEPLOY_CLIENT, PAUSED_FOR_MIG
from gpusharing.kube.client import JSON
from gpusharing.kube.daemonsets import DaemonSetView, daemon_set_view, gpu_server, plain_stack
from gpusharing.planning.snapshot.nvidia import PlainStackView
from gpusharing.planning.stack.plugins import tell_twins

pytestmark = pytest.mark.nvidia

Render = Callable[..., list[JSON]]
OURS = "config.name=gpusharing-device-plugin"


@pytest.fixture(scope="module")
def render(nvidia_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """`helm template` with these values; NFD's chart, which lies in no Go module, is left out."""
    folder = copy_plugin_chart(tmp_path_factory.mktemp("chart"))

    def rendered(*values: str) -> list[JSON]:
        sets = [word for value in values for word in ("--set", value)]
        helm = str(toolchain.program("helm"))
        done = subprocess.run(
            [helm, "template", RELEASE, str(folder), "-n", "gpu-operator", *sets],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "DaemonSet"]

    return rendered


def views(sets: list[JSON]) -> dict[str, DaemonSetView]:
    return {one["metadata"]["name"]: daemon_set_view(one) for one in sets}


def test_nvidias_chart_pointed_at_our_configmap_is_the_stack_that_we_know(render: Render) -> None:
    found = plain_stack(views(render(OURS, "gfd.enabled=true")).values())
    assert found is not None
    assert found.plugin_config_name == "gpusharing-device-plugin"
    assert (found.mig_strategy, found.switches, found.plugin_default) == ("", NO_MIG_MANAGER, "")
    assert found.plain == PlainStackView("nvdp-nvidia-device-plugin", "nvdp", version=VERSION)


def test_as_installed_by_default_it_reads_no_configmap_and_discovers_nothing(render: Render) -> None:
    found = plain_stack(views(render()).values())
    assert found is not None
    assert found.plugin_config_name == ""
    assert found.switches == {**NO_MIG_MANAGER, "gfd.enabled": False}


def test_what_it_fixes_for_all_nodes_is_seen(render: Render) -> None:
    found = plain_stack(views(render(OURS, "migStrategy=single", "config.default=base")).values())
    assert found is not None
    assert (found.mig_strategy, found.plugin_default) == ("single", "base")


def test_our_stand_in_of_the_chart_says_the_same(render: Render) -> None:
    real = views(render(OURS, "gfd.enabled=true"))
    assert real["nvdp-nvidia-device-plugin"].server is not None
    for raw in (plugin(), discovery()):
        stand_in, found = daemon_set_view(raw), real[raw["metadata"]["name"]]
        server = None if found.server is None else replace(found.server, affinity="")
        assert replace(found, server=server) == stand_in


@pytest.mark.parametrize(
    ("ours", "theirs", "twins"),
    [((), (), True), ((), ("nodeSelector.pool=b",), True), (("nodeSelector.pool=a",), ("nodeSelector.pool=b",), False)],
    ids=["on all nodes", "one of them on some of the nodes", "each on nodes of its own"],
)
def test_two_releases_share_nodes_unless_each_has_its_own(
    render: Render, ours: tuple[str, ...], theirs: tuple[str, ...], twins: bool
) -> None:
    found = [
        gpu_server(running(raw, name))
        for name, values in (("ours", ours), ("theirs", theirs))
        for raw in render(OURS, *values)
        if raw["metadata"]["name"] == "nvdp-nvidia-device-plugin"
    ]
    servers = [server for server in found if server is not None]
    assert [bool(server.affinity) for server in servers] == [True, True]
    assert bool(tell_twins(servers, NAMESPACE)) is twins


def test_the_mps_daemon_comes_by_the_label_alone_and_has_no_label_of_its_own(render: Render) -> None:
    """So the operator cannot tell its pods from the plugin's, deletes none, and goes through whole GPUs instead."""
    sets = {one["metadata"]["name"]: one["spec"]["template"] for one in render(OURS, "gfd.enabled=true")}
    daemon = sets["nvdp-nvidia-device-plugin-mps-control-daemon"]
    assert daemon["spec"]["nodeSelector"] == {"nvidia.com/mps.capable": "true"}
    by_name = {one["name"]: one for one in daemon["spec"]["containers"]}
    assert list(by_name) == ["mps-control-daemon-sidecar", "mps-control-daemon-ctr"], "config-manager is started first"
    signalled = [one for one in by_name["mps-control-daemon-sidecar"]["env"] if one["name"] == "PROCESS_TO_SIGNAL"]
    assert [one["value"] for one in signalled] == ["/usr/bin/mps-control-daemon"]
    assert by_name["mps-control-daemon-ctr"]["command"] == ["mps-control-daemon"], "which is another name"
    assert daemon["spec"]["hostPID"] is True
    assert daemon["metadata"]["labels"] == sets["nvdp-nvidia-device-plugin"]["metadata"]["labels"]


# --- mig-manager -------------------------------------------------------------------------------------------------

PODS = f"/api/v1/namespaces/{PLAIN_NAMESPACE}/pods"
SETS = f"/apis/apps/v1/namespaces/{PLAIN_NAMESPACE}/daemonsets"


def chart_plugin(name: str) -> Object:
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
        "metadata": {"name": f"plugin-{name}", "namespace": PLAIN_NAMESPACE},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def pods(api: Api, name: str) -> list[Object]:
    return api.list(PODS, labelSelector=f"plugin-of={name}", fieldSelector=f"spec.nodeName={name}")


@pytest.fixture
def node(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> MigNode:
    """A node with the how-to's labels, the plugin's pod, and a mig-manager that acts as its service account."""
    plane.api.ensure("/api/v1/namespaces", {"metadata": {"name": PLAIN_NAMESPACE}})
    plane.kubectl("apply", "-k", str(ROOT / "deploy" / "mig-manager"))
    node = MigNode(plane, tmp_path_factory.mktemp("p"), "h100-80gb")
    node.manager.kubeconfig = plane.service_account_kubeconfig(PLAIN_NAMESPACE, "nvidia-mig-manager")
    node.manager.clients_namespace = PLAIN_NAMESPACE
    labels = {LABEL_DEPLOY_CLIENT: "true", "of": node.name}
    plane.api.merge_patch(f"/api/v1/nodes/{node.name}", {"metadata": {"labels": labels}})
    room = {"pods": "10"}
    plane.api.merge_patch(f"/api/v1/nodes/{node.name}/status", {"status": {"capacity": room, "allocatable": room}})
    plane.api.create(SETS, chart_plugin(node.name))
    wait_until(lambda: len(pods(node.api, node.name)) == 1, SECONDS, "the plugin's pod on the node")
    return node


def refused(plane: ControlPlane) -> list[tuple[str, str, str]]:
    """(verb, resource, name) of what mig-manager's service account asked for and may not."""
    wait_logged(plane.audit_log, plane.api)
    asked = list(read_requests(plane.audit_log, f"system:serviceaccount:{PLAIN_NAMESPACE}:nvidia-mig-manager"))
    assert {("get", "nodes"), ("patch", "nodes")} <= {(one.verb, one.resource) for one in asked}
    return [(one.verb, one.resource, one.name) for one in asked if one.status == 403]


def test_it_divides_the_gpus_once_the_plugins_pod_is_gone(plane: ControlPlane, node: MigNode) -> None:
    api, name = node.api, node.name
    (pod,) = pods(api, name)
    node.label(config="halves")
    node.manager.start()
    try:
        if not SAYS_FAILED:  # before v0.15 it does not pause nvidia.com/gpu.deploy.client,
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
        api.delete(f"{SETS}/plugin-{name}")
        for left in pods(api, name):
            api.delete(f"{PODS}/{left['metadata']['name']}", {"gracePeriodSeconds": 0})
