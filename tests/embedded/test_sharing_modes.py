"""MPS, MIG with time-slicing, the fleet of the examples, and workloads that are routed by mode."""

import asyncio
from pathlib import Path

import pytest
import yaml
from hack.sim.node import ANNOTATION_PRODUCTS
from hack.sim.workloads import SimWorkload
from tests.embedded.mpsset import DAEMON, containers
from tests.embedded.oracle import difference
from tests.embedded.scene import (
    A100,
    FULL,
    H100,
    L40S,
    MIG_SLICED,
    MIXED,
    MPS,
    SINGLE,
    SLICED,
    Scene,
    at_once,
    node,
    nodes,
    open_scene,
)
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import CONFIG_MAPS, DAEMON_SETS, JSON, PODS, POLICIES

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))
EIGHT: JSON = {"mode": "MPS", "mps": {"replicas": 8}}


def deleted(scene: Scene, prefix: str) -> list[str]:
    """With those of which the server refused the deletion."""
    writes = scene.writes(plural="pods")
    return [w.call.name for w in writes if w.call.verb == "delete" and w.call.name.startswith(prefix)]


async def mend_by_hand(scene: Scene, name: str = "gpu-1") -> None:
    gpus = scene.e.software.nodes[name].gpus
    for index in range(gpus.count):
        gpus.set_compute_mode(index, "Default")


@virtually
async def test_every_example_pool_of_the_fleet_gets_its_mode_side_by_side() -> None:
    manifests = [yaml.safe_load(path.read_text()) for path in EXAMPLES]
    pools = [manifest["metadata"]["name"] for manifest in manifests]
    machines = [node(f"gpu-{name}", H100, pool=name.removeprefix("pool-")) for name in pools]
    async with open_scene(*machines) as scene:
        for manifest in manifests:
            scene.e.apply(manifest)
        await scene.ready(*pools)
        shown = {name: scene.e.policy(name)["status"]["summary"] for name in pools}
        assert {name: summary["mode"] for name, summary in shown.items()} == {
            "pool-a": "MIG",
            "pool-b": "MIG",
            "pool-c": "Full",
            "pool-d": "TimeSlicing",
            "pool-e": "MPS",
            "pool-f": "MIG+TS",
        }
        for manifest in manifests:
            name = f"gpu-{manifest['metadata']['name']}"
            assert difference(manifest["spec"], scene.e.node(name), scene.e.software.nodes[name]) == ""


@virtually
async def test_workloads_that_select_a_mode_never_run_on_a_node_of_another_or_in_between() -> None:
    inference = SimWorkload("inference", 2, "nvidia.com/mig-3g.40gb", node_selector={"gpusharing.dev/mode": "mig"})
    async with open_scene(node("gpu-1"), node("gpu-2", pool="c"), workloads=[inference]) as scene:
        scene.apply(FULL)
        scene.apply(FULL, name="pool-c", pool="c")
        await scene.ready("pool-b", "pool-c")
        assert not [pod for pod in scene.pods("inference") if "nodeName" in pod["spec"]]
        scene.apply(MIXED)
        await scene.running("inference", 2)
        assert {pod["spec"]["nodeName"] for pod in scene.pods("inference")} == {"gpu-1"}
        await scene.serve(MIG_SLICED, name="pool-c", pool="c")
        assert scene.labels("gpu-2")[names.LABEL_MODE] == "mig-time-slicing"
        assert {pod["spec"]["nodeName"] for pod in scene.pods("inference")} == {"gpu-1"}
        await scene.serve(MIXED, name="pool-c", pool="c")
        await scene.serve(FULL, drain={"strandedPods": "Allow"})
        await scene.running("inference", 2)
        alive = [pod for pod in scene.pods("inference") if "deletionTimestamp" not in pod["metadata"]]
        assert {pod["spec"]["nodeName"] for pod in alive} == {"gpu-2"}


@virtually
async def test_another_number_of_clients_drains_the_node_and_replaces_the_daemons_pod_once() -> None:
    clients = SimWorkload("client", 3)
    async with open_scene(*nodes(1), workloads=[clients], serving=MPS) as scene:
        await scene.running("client", 3)
        evicted = len(scene.evicted())
        await scene.serve(EIGHT)
        assert scene.e.software.nodes["gpu-1"].mps.clients == 8
        assert len(scene.evicted()) == evicted + 3
        assert len(deleted(scene, DAEMON)) == 1
        await scene.running("client", 3)


@virtually
async def test_a_daemon_that_is_killed_leaves_a_way_out_of_mps_that_tells_the_command_and_waits_for_it() -> None:
    async with open_scene(*nodes(1), serving=MPS) as scene:
        scene.e.software.inject("gpu-1", "kill-mps-daemon")
        transition = await scene.reach(SINGLE, reason="ComputeMode")
        assert "GPUs 0, 1 are in" in transition["message"]
        assert transition["message"].count("nvidia-smi -c 0") == 1
        assert transition["culprit"] == "GPUs"
        assert scene.cordoned("gpu-1")
        fence = await scene.fenced("gpu-1", "actuating", seconds=0)
        assert (fence.step, fence.steps) == (1, 2)
        await mend_by_hand(scene)
        await scene.ready()
        assert difference(SINGLE, scene.e.node("gpu-1"), scene.e.software.nodes["gpu-1"]) == ""


def crash(scene: Scene, name: str, *, up: bool) -> None:
    """The MPS daemon's container in this pod has ended once more, or runs for a moment."""
    row = {"name": "mps-control-daemon-ctr", "ready": up, "restartCount": 7}
    status = {"conditions": [{"type": "Ready", "status": str(up)}], "containerStatuses": [row]}
    scene.e.cluster.patch(PODS, name, {"status": status}, "gpu-operator", subresource="status")


@virtually
async def test_a_daemon_that_crashes_for_good_leaves_no_ready_policy_and_no_drained_node() -> None:
    async with open_scene(*nodes(1), workloads=[SimWorkload("client", 1)], serving=MPS) as scene:
        await scene.running("client", 1)
        scene.e.software.inject("gpu-1", "kill-mps-daemon")
        (pod,) = (one for one in scene.e.cluster.objects(PODS) if one["metadata"]["name"].startswith(DAEMON))
        name, evicted, mark, phases = pod["metadata"]["name"], scene.evicted(), scene.mark(), []
        for seconds in (20, 40, 80, 160, 300, 300):
            crash(scene, name, up=False)
            await asyncio.sleep(seconds)
            crash(scene, name, up=True)
            await asyncio.sleep(5)
            phases.append(scene.transition("gpu-1")["phase"])
        assert [gpu.compute_mode for gpu in scene.e.software.nodes["gpu-1"].gpus.look()] == ["ExclusiveProcess"] * 2
        assert phases == ["Synced", "Synced", *["Blocked"] * 4]
        crash(scene, name, up=False)
        await asyncio.sleep(5)
        transition = scene.transition("gpu-1")
        assert (transition["reason"], transition["culprit"]) == ("MPSNotRunning", "mps-control-daemon")
        assert f"kubectl -n gpu-operator delete pod {name}" in transition["message"]
        await scene.until_condition("Ready", "False", "RolloutInProgress")
        assert transition["message"] in (await scene.until_condition("Stalled", "True", "Blocked"))["message"]
        assert (scene.cordoned("gpu-1"), scene.evicted(), scene.node_writes(mark)) == (False, evicted, {})
        scene.e.cluster.delete(PODS, name, "gpu-operator")
        await scene.ready()


@pytest.mark.parametrize("spec", [SLICED, SINGLE], ids=["time-slicing", "MIG"])
@virtually
async def test_while_the_mps_daemon_does_not_run_no_node_is_drained_to_leave_mps(spec: JSON) -> None:
    clients = SimWorkload("client", 1)
    async with open_scene(*nodes(1), workloads=[clients], serving=MPS) as scene:
        await scene.running("client", 1)
        scene.e.software.inject("gpu-1", "kill-mps-daemon")
        (pod,) = (one for one in scene.e.cluster.objects(PODS) if one["metadata"]["name"].startswith(DAEMON))
        name = pod["metadata"]["name"]
        crash(scene, name, up=False)
        mark, evicted = scene.mark(), scene.evicted()
        transition = await scene.reach(spec, reason="MPSDaemonNotReady")
        await asyncio.sleep(1800)
        assert (transition["phase"], transition["culprit"]) == ("Blocked", "mps-control-daemon")
        assert "GPUs 0, 1 would stay in compute mode ExclusiveProcess" in transition["message"]
        assert f"kubectl -n gpu-operator delete pod {name}." in transition["message"]
        assert (scene.cordoned("gpu-1"), scene.evicted()) == (False, evicted)
        assert scene.node_writes(mark) == {}
        scene.e.cluster.delete(PODS, name, "gpu-operator")
        await scene.ready()
        assert difference(spec, scene.e.node("gpu-1"), scene.e.software.nodes["gpu-1"]) == ""


@virtually
async def test_the_operator_writes_nothing_to_a_node_whose_gpus_a_person_made_exclusive() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        mark = scene.mark()
        scene.e.software.nodes["gpu-1"].gpus.set_compute_mode(1, "ExclusiveProcess")
        transition = await scene.phase("gpu-1", "Blocked")
        assert transition["reason"] == "ComputeMode"
        assert "run on the node: nvidia-smi -i 1 -c 0" in transition["message"]
        assert not scene.cordoned("gpu-1")
        await mend_by_hand(scene)
        await scene.phase("gpu-1", "Synced")
        assert scene.node_writes(mark) == {}


def carry_out_the_remedy(scene: Scene) -> None:
    """A person gives config-manager the daemon's name, and a newer device plugin comes with ClusterPolicy."""
    remedy = {
        "image": "simulated/k8s-device-plugin:v0.20.0",
        "env": [{"name": "PROCESS_TO_SIGNAL", "value": "mps-control-daemon"}],
    }
    body = {"spec": {"template": {"spec": {"containers": [{**one, **remedy} for one in containers(scene)]}}}}
    scene.e.cluster.patch(DAEMON_SETS, DAEMON, body, "gpu-operator")


DEAF = {
    "the name is wrong": (
        {"mps_signals": "/usr/bin/mps-control-daemon"},
        "looks for a process named /usr/bin/mps-control-daemon",
    ),
    "the plugin is too old": ({"plugin": "0.19.3"}, "crashes when it reads the host's kernel threads"),
}


@pytest.mark.parametrize("what", DEAF)
@virtually
async def test_where_the_mps_daemon_would_not_hear_of_its_configuration_no_drain_begins_until_it_is_mended(
    what: str,
) -> None:
    """docs/design/nvidia.md#b5: that it does not hear would show after the drain only."""
    sim, why = DEAF[what]
    async with open_scene(*nodes(1, product=L40S), sim=sim, serving=SLICED) as scene:
        since = scene.mark()
        blocked = await scene.reach(MPS, reason="MPSNotSwitchable")
        assert blocked["phase"] == "Blocked"
        assert why in blocked["message"]
        assert f"daemonset/{DAEMON} -c config-manager PROCESS_TO_SIGNAL=" in blocked["message"]
        assert scene.node_writes(since)["gpu-1"] == 0
        carry_out_the_remedy(scene)
        await scene.ready()
        assert difference(MPS, scene.e.node("gpu-1"), scene.e.software.nodes["gpu-1"]) == ""


@virtually
async def test_cards_without_mig_go_through_every_mode_they_have_and_never_get_mig_labels() -> None:
    async with open_scene(node("gpu-1", L40S)) as scene:
        seen: set[str] = set()
        scene.e.cluster.store.on_commit.append(lambda resource, change: seen.update(scene.labels("gpu-1")))
        for spec in (MPS, {"mode": "TimeSlicing", "timeSlicing": {"replicas": 2}}, EIGHT, FULL):
            await scene.serve(spec)
            assert difference(spec, scene.e.node("gpu-1"), scene.e.software.nodes["gpu-1"]) == ""
        assert names.LABEL_MODE in seen
        assert not [label for label in seen if label.startswith("nvidia.com/mig.config")]


@virtually
async def test_shares_of_a_named_configuration_are_listed_for_each_card_model() -> None:
    spec: JSON = {"mode": "MIG", "mig": {"config": "all-balanced"}, "timeSlicing": {"replicas": 2}}
    async with open_scene(node("gpu-1", H100), node("gpu-2", "NVIDIA A30")) as scene:
        await scene.serve(spec, rollout=at_once(2))
        keys = [scene.labels(name)[names.LABEL_PLUGIN_CONFIG] for name in ("gpu-1", "gpu-2")]
        assert keys[0] != keys[1]
        data = scene.e.cluster.get(CONFIG_MAPS, "gpusharing-device-plugin", "gpu-operator")["data"]
        assert "mig-3g.40gb" in data[keys[0]]
        assert "mig-2g.12gb" in data[keys[1]]
        assert difference(spec, scene.e.node("gpu-1"), scene.e.software.nodes["gpu-1"]) == ""


@virtually
async def test_an_ampere_card_whose_mig_mode_needs_a_reset_goes_from_mps_to_mig_and_back() -> None:
    async with open_scene(node("gpu-1", A100)) as scene:
        for spec in (MPS, MIXED, MPS):
            mark = scene.mark()
            await scene.serve(spec)
            assert difference(spec, scene.e.node("gpu-1"), scene.e.software.nodes["gpu-1"]) == ""
        assert scene.node_writes(mark) == {"gpu-1": 4}


@virtually
async def test_a_node_that_has_mps_already_is_adopted_without_a_disturbance() -> None:
    async with open_scene(*nodes(1), serving=MPS) as scene:
        scene.e.cluster.delete(POLICIES, "pool-b")
        await scene.e.until(lambda: names.LABEL_POLICY not in scene.labels("gpu-1"), "unowned", 60)
        mark = scene.mark()
        await scene.serve(MPS, name="pool-c")
        assert all("spec" not in (write.call.body or {}) for write in scene.writes(mark, "nodes"))
        assert not deleted(scene, DAEMON)


@pytest.mark.parametrize("fault", ["wedge-pending", "wedge-paused"])
@virtually
async def test_a_wedge_of_mig_manager_in_the_second_step_is_cured(fault: str) -> None:
    async with open_scene(*nodes(1), serving=MPS) as scene:
        scene.e.software.inject("gpu-1", fault)
        await scene.serve(MIXED, seconds=3 * 3600)
        assert len(deleted(scene, "nvidia-mig-manager")) == 1
        assert difference(MIXED, scene.e.node("gpu-1"), scene.e.software.nodes["gpu-1"]) == ""


def two_models() -> JSON:
    machine = node("gpu-1", H100, gpus=3)
    products = ("NVIDIA-H100-80GB-HBM3", "NVIDIA-A30", "NVIDIA-H100-80GB-HBM3")
    machine["metadata"].setdefault("annotations", {})[ANNOTATION_PRODUCTS] = ",".join(products)
    return machine


@virtually
async def test_a_node_with_two_card_models_is_proven_in_every_mode_of_whole_gpus() -> None:
    async with open_scene(two_models()) as scene:
        shown = set()
        for spec in (FULL, SLICED, FULL, MPS, FULL):
            await scene.serve(spec)
            assert difference(spec, scene.e.node("gpu-1"), scene.e.software.nodes["gpu-1"]) == ""
            labels = scene.labels("gpu-1")
            shown.add((labels[names.LABEL_GPU_PRODUCT].removesuffix("-SHARED"), labels[names.LABEL_GPU_COUNT]))
        assert shown == {("NVIDIA-H100-80GB-HBM3", "2"), ("NVIDIA-A30", "1")}, "one of them was never compared"


@virtually
async def test_labels_that_go_from_one_card_model_to_the_other_are_no_drift() -> None:
    async with open_scene(two_models(), serving=SLICED) as scene:
        mark = scene.mark()
        for product, count in (("NVIDIA-A30-SHARED", "1"), ("NVIDIA-H100-80GB-HBM3-SHARED", "2")):
            labels = {names.LABEL_GPU_PRODUCT: product, names.LABEL_GPU_COUNT: count}
            scene.person("gpu-1", {"metadata": {"labels": labels}})
            await asyncio.sleep(600)
            assert scene.transition("gpu-1")["phase"] == "Synced"
        assert scene.node_writes(mark) == {}
