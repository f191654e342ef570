"""`doctor` on FakeCluster (kubectl_gpusharing/setup/doctor.py); its labels of Nodes one by one (stack/nodesymptoms.py)."""

from dataclasses import replace
from typing import Any

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.build import make_cluster_policy, make_gpu, make_gpunode, make_node, make_operand, make_policy
from tests.cli.asking import ask, operated, reported
from tests.embedded.scene import FULL
from tests.fakes.virtualtime import virtually
from tests.seen import Seen, make_map
from tests.wording import lacks

from gpusharing.api.names import STOP
from gpusharing.kube.client import ACCESS_REVIEWS, CLUSTER_POLICIES, CONFIG_MAPS, GPUNODES, NODES, POLICIES
from gpusharing.kube.errors import Forbidden, KubeError, Unauthorized, Unavailable
from gpusharing.planning.snapshot.nvidia import Program
from gpusharing.planning.stack.installation import report_topics
from gpusharing.planning.stack.installationviews import Place, Topic, error
from gpusharing.planning.stack.nodesymptoms import find_node_symptoms
from gpusharing.planning.vocabulary.commands import Command
from kubectl_gpusharing.setup.doctor import describe
from kubectl_gpusharing.shell.documents import DoctorReportData
from kubectl_gpusharing.shell.drawing import PrintOptions, plain
from kubectl_gpusharing.shell.troubles import DONE, FAILED, Trouble

HELD = make_map(dict.fromkeys(("any", "ts-4"), "version: v1"), ours=False)
POINTED = make_cluster_policy("time-slicing-config")
VIEW = Seen(cluster_policies=(POINTED,), config_maps={"time-slicing-config": HELD})
PLUGIN, STATE = "nvidia.com/device-plugin.config", "nvidia.com/mig.config.state"
PAUSED = {"nvidia.com/gpu.deploy.device-plugin": "paused-for-mig-change"}
OLD = {"nvidia.com/mig.capable": "true", "nvidia.com/cuda.driver-version.full": "580.95.05"}


def reasons(labels: dict[str, str], view: Seen = VIEW, **more: Any) -> list[str]:
    node = replace(make_node("gpu-1", **more), labels=labels)
    return [one.reason for one in find_node_symptoms(replace(view, nodes=(node,)).snapshot, {})]


SHOWN: dict[str, tuple[dict[str, str], Seen, list[str]]] = {
    "a label that names no key": ({PLUGIN: "ts-8"}, VIEW, ["PluginConfigUnknown"]),
    "a failed mig-manager": ({STATE: "failed"}, VIEW, ["MigConfigFailed"]),
    "operands that are paused for nothing": ({STATE: "success", **PAUSED}, VIEW, ["OperandsPaused"]),
    "a driver with the flaw": (OLD, VIEW, ["UnsafeDriver"]),
    "a label that names a key": ({PLUGIN: "ts-4"}, VIEW, []),
    "a ConfigMap that cannot be read": ({PLUGIN: "ts-8"}, replace(VIEW, config_maps={}), []),
    "operands that are paused for a change": ({STATE: "pending", **PAUSED}, VIEW, []),
    "a driver of a card without MIG": ({**OLD, "nvidia.com/mig.capable": "false"}, VIEW, []),
    "a driver whose risk was accepted": (OLD, replace(VIEW, place=Place(refuse_unsafe_drivers=False)), []),
}


@pytest.mark.parametrize(("labels", "view", "told"), SHOWN.values(), ids=SHOWN)
def test_a_node_shows(labels: dict[str, str], view: Seen, told: list[str]) -> None:
    assert reasons(labels, view) == told


def test_mig_manager_is_not_restarted_on_paused_operands_before_the_label_is_what_the_gpus_have() -> None:
    labels = {STATE: "failed", **PAUSED, "nvidia.com/mig.config": "all-disabled"}
    node = replace(make_node("gpu-1"), labels=labels)
    gpunodes = {"gpu-1": make_gpunode("gpu-1", gpus=[make_gpu(layout=(("1g.10gb", 7),))])}
    view = replace(VIEW, nodes=(node,), gpunodes=gpunodes)
    (one,) = (one for one in find_node_symptoms(view.snapshot, {}) if one.reason == "OperandsPaused")
    assert str(one.command).startswith(
        "kubectl label node gpu-1 --overwrite nvidia.com/mig.config=all-1g.10gb && kubectl -n gpu-operator delete pod"
    )


def test_operands_that_a_mig_manager_without_a_pod_paused_are_told_whatever_it_says() -> None:
    node = replace(make_node("gpu-1"), labels={STATE: "pending", **PAUSED})
    snapshot = replace(VIEW, nodes=(node,)).snapshot

    def told(**ready: bool) -> list[str]:
        pods = {name: make_operand(name, ready=is_ready) for name, is_ready in ready.items()}
        seen = replace(snapshot, operands={Program.MIG_MANAGER: pods})
        return [one.message for one in find_node_symptoms(seen, {})]

    names = "gpu-1", "gpu-2"
    assert told(**dict.fromkeys(names, True)) == []
    assert told() == [], "the pods may not be read"
    for found in ({"gpu-2": True}, {"gpu-1": False, "gpu-2": True}):
        (message,) = told(**found)
        assert not lacks(message, "gpu-1", "paused", "mig-manager", "no Ready pod")


def test_a_change_of_ours_is_no_fault_of_the_node() -> None:
    assert reasons({PLUGIN: "ts-8", STATE: "failed", **PAUSED}, fence_error="damaged") == []


def test_what_is_wrong_with_many_nodes_is_told_once() -> None:
    labels = {"nvidia.com/gpu.present": "true", PLUGIN: "ts-8"}
    nodes = tuple(replace(make_node(f"gpu-{number}"), labels=labels) for number in range(9))
    (one,) = find_node_symptoms(replace(VIEW, nodes=nodes).snapshot, {})
    assert not lacks(one.message, "gpu-0, gpu-1, gpu-2 and 6 more", "time-slicing-config")
    assert str(one.command) == f"kubectl get nodes -L {PLUGIN}", "there is no policy yet"
    (one,) = find_node_symptoms(replace(VIEW, nodes=nodes, policies=(make_policy(),)).snapshot, {})
    assert str(one.command).startswith("kubectl label node gpu-0 gpu-1 ")
    assert str(one.command).endswith(" --overwrite nvidia.com/device-plugin.config=NAME")


def test_a_command_is_never_broken_into_lines() -> None:
    long = error(Topic.NODES, "Odd", "it is odd " * 20, Command.of("kubectl describe node", *["gpu-1"] * 40))
    report: DoctorReportData = {
        "context": "", "installed": True, "symptoms": [], "unknown": {}, "simulated": [], "notes": [],
    }  # fmt: skip
    rows = report_topics([long], {}, ())
    lines = plain(describe(report, [*rows], PrintOptions(60))).splitlines()
    assert f"         -> {long.command}".rstrip() in lines
    assert all(len(one) <= 60 for one in lines if "->" not in one)


@virtually
async def test_before_the_installation_it_says_what_that_would_meet() -> None:
    cluster = FakeCluster()
    cluster.uninstalled |= {ACCESS_REVIEWS, POLICIES, GPUNODES}
    spec = {"devicePlugin": {"config": {"name": "ts", "default": "any"}}, "mig": {"strategy": "single"}}
    cluster.add(CLUSTER_POLICIES, {"metadata": {"name": "cluster-policy"}, "spec": spec})
    held = {"any": "version: v1", "old": "flags: {}"}
    cluster.add(CONFIG_MAPS, {"metadata": {"name": "ts", "namespace": "gpu-operator"}, "data": held})
    cluster.add(NODES, {"metadata": {"name": "gpu-1", "labels": {PLUGIN: "gone"}}})
    cluster.add(NODES, {"metadata": {"name": "gpu-2", "labels": {PLUGIN: "old"}}})
    told = await ask(cluster, "doctor", "-o", "json")
    assert told.status == FAILED
    assert not told.data["installed"]
    found = {one["reason"] for one in told.data["symptoms"]}
    assert found == {"PluginConfigNotOurs", "LayoutsNeedConfigMap", "MigStrategySet", "PluginConfigUnknown"}
    (pointer,) = (one for one in told.data["symptoms"] if one["reason"] == "PluginConfigNotOurs")
    assert not lacks(pointer["message"], "any, gone, old", Place().plugin_config_map)
    assert pointer["command"].endswith(" --set gpuOperator.adminPluginConfigMap=ts")
    assert pointer["command"].startswith("helm install ")


@virtually
async def test_an_entry_that_nobody_holds_is_not_to_be_merged_from_anywhere() -> None:
    async with operated(1) as scene:
        cluster = scene.e.cluster
        spec = {"devicePlugin": {"config": {"name": "ts"}}}
        cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": spec})
        cluster.add(
            CONFIG_MAPS, {"metadata": {"name": "ts", "namespace": "gpu-operator"}, "data": {"any": "version: v1"}}
        )
        cluster.patch(NODES, "gpu-1", {"metadata": {"labels": {PLUGIN: "gone"}}})
        told = await ask(cluster, "doctor", "-o", "json")
        (pointer,) = (one for one in told.data["symptoms"] if one["reason"] == "PluginConfigNotOurs")
        ours = Place().plugin_config_map
        assert not lacks(pointer["message"], "gone", ours, "ts", "remove the label")
        assert pointer["command"] == f"kubectl get nodes -L {PLUGIN}"


@virtually
async def test_a_running_installation_has_nothing_wrong_that_the_stand_in_can_show() -> None:
    async with operated(1, serving=FULL) as scene:
        told = await ask(scene.e.cluster, "doctor", "-o", "json")
    found = {one["reason"] for one in told.data["symptoms"] if one["topic"] in ("ClusterPolicy", "labels of Nodes")}
    assert found == set()
    assert told.status in (DONE, FAILED)


@virtually
async def test_a_stop_is_a_symptom_with_the_command_that_ends_it() -> None:
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.add(CONFIG_MAPS, {"metadata": {"name": STOP, "namespace": "gpusharing"}})
        told = await ask(scene.e.cluster, "doctor", "-o", "json")
    (stopped,) = (one for one in told.data["symptoms"] if one["reason"] == "Stopped")
    assert stopped["command"] == "kubectl -n gpusharing delete configmap gpusharing-stop"


async def symptoms(cluster: FakeCluster) -> dict[str, dict[str, Any]]:
    cluster.uninstalled |= {ACCESS_REVIEWS}
    told = await ask(cluster, "doctor", "-o", "json")
    assert told.status == FAILED
    return {one["reason"]: one for one in told.data["symptoms"]}


@virtually
async def test_a_configmap_in_another_namespace_is_an_error_and_is_not_to_be_merged() -> None:
    """NVIDIA/gpu-operator#412: it was created in kube-system."""
    found = await symptoms(reported("configmap-elsewhere"))
    missing = found["PluginConfigMapMissing"]
    assert missing["severity"] == "ERROR"
    assert not lacks(missing["message"], "nvidia-time-slicing-config", "gpu-operator", "kube-system", "device plugins")
    assert "adminPluginConfigMap" not in found["PluginConfigNotOurs"]["command"]


@virtually
async def test_an_absent_configmap_is_told_also_where_other_namespaces_may_not_be_listed() -> None:
    cluster = reported("configmap-elsewhere")
    cluster.faults.fail("list", CONFIG_MAPS, Forbidden("no"), times=EVER)
    missing = (await symptoms(cluster))["PluginConfigMapMissing"]
    assert "in namespace gpu-operator; device plugins cannot start" in missing["message"]


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        pytest.param(Unauthorized("Unauthorized"), "log in again", id="refused"),
        pytest.param(Unavailable("connection reset"), "Check the context", id="away"),
    ],
)
@virtually
async def test_credentials_that_expire_in_the_middle_and_a_server_that_goes_away_are_told(
    failure: KubeError, remedy: str
) -> None:
    cluster = reported("configmap-elsewhere")
    cluster.faults.fail("list", CONFIG_MAPS, failure, times=EVER)
    with pytest.raises(Trouble, match=remedy):
        await ask(cluster, "doctor")


@virtually
async def test_the_configmap_of_mig_manager_is_looked_for_in_no_other_namespace() -> None:
    cluster = reported("replicas-16384")
    pointer = {"spec": {"migManager": {"config": {"name": "nowhere"}}}}
    cluster.patch(CLUSTER_POLICIES, "cluster-policy", pointer)
    cluster.faults.fail("list", CONFIG_MAPS, Unavailable("connection reset"), times=EVER)
    assert (await ask(cluster, "doctor")).status == FAILED


@virtually
async def test_what_the_device_plugin_refuses_or_ignores_in_an_entry_is_told_by_field() -> None:
    """NVIDIA/k8s-device-plugin#1433, whose renameByDefault stands where the plugin does not look for it."""
    cluster = reported("replicas-16384")
    found = await symptoms(cluster)
    ignored = found["PluginConfigIgnored"]
    assert ignored["severity"] == "WARNING"
    for field in ("renameByDefault", "failRequestsGreaterThanOne"):
        assert not lacks(
            ignored["message"], "time-slicing-config", "entry any", f"flags.{field}", "sharing.timeSlicing"
        )
    one = {"any": "sharing: {timeSlicing: {resources: [{name: gpu, replicas: 1}]}}"}
    cluster.patch(CONFIG_MAPS, "time-slicing-config", {"data": one}, "gpu-operator")
    refused = (await symptoms(cluster))["PluginConfigRefused"]
    assert (refused["severity"], refused["command"]) == (
        "ERROR",
        "kubectl -n gpu-operator edit configmap time-slicing-config",
    )
    assert not lacks(refused["message"], "entry any", "sharing.timeSlicing.resources[0].replicas", "rejects 1")


@virtually
async def test_an_entry_that_nobody_uses_and_the_device_plugin_refuses_is_a_warning() -> None:
    cluster = reported("replicas-16384")
    cluster.patch(CONFIG_MAPS, "time-slicing-config", {"data": {"spare": "version: v2"}}, "gpu-operator")
    refused = (await symptoms(cluster))["PluginConfigRefused"]
    assert refused["severity"] == "WARNING"
    assert not lacks(refused["message"], "time-slicing-config", "entry spare", "version", 'rejects "v2"', "v1")
