"""NVIDIA's software, the hardware, the agent or the kubelet go wrong, and what a program left behind is believed for a while only.
Every run of an actuator needs an idle node: retries, cures and edits after the point of no return."""

import asyncio
from functools import partial

import pytest
from hack.sim.workloads import SimWorkload
from tests import kubeletwords
from tests.embedded.scene import (
    FULL,
    HOUR,
    L40S,
    MIXED,
    SINGLE,
    SLICED,
    WITH_REBOOT,
    Scene,
    gpu_pod,
    node,
    nodes,
    open_scene,
)
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import GPUNODES, JSON, NODES, PODS


def restarts(scene: Scene) -> int:
    return sum(write.call.verb == "delete" for write in scene.writes(plural="pods"))


AGENTS = "gpusharing-agent"


def agent_pod(scene: Scene, name: str) -> JSON:
    pods = scene.e.cluster.objects(PODS, namespace=AGENTS, field_selector=f"spec.nodeName={name}")
    return pods[0]


# --- mig-manager -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wedge", ["wedge-pending", "wedge-paused"])
@virtually
async def test_a_wedge_of_mig_manager_is_cured_by_one_restart_of_its_pod(wedge: str) -> None:
    async with open_scene(*nodes(1)) as scene:
        await asyncio.sleep(10)
        scene.e.software.inject("gpu-1", wedge)
        await scene.serve(MIXED, seconds=HOUR)
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert restarts(scene) == 1
        assert scene.events()["ActuatorRestarted"] == 1
        assert scene.node_writes() == {"gpu-1": 5}


@virtually
async def test_a_node_that_two_restarts_did_not_cure_stalls_the_policy_and_gives_one_event() -> None:
    async with open_scene(*nodes(2)) as scene:
        await asyncio.sleep(10)
        scene.e.software.inject("gpu-1", "wedge-paused")
        scene.e.software.inject("gpu-2", "wedge-paused")
        name = await scene.begin_any(MIXED, rollout={"maxFailures": 2}, stage="actuating")
        for _ in range(2):
            seen = restarts(scene)
            await scene.e.until(lambda seen=seen: restarts(scene) > seen, "a restart", 600)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            scene.e.software.inject(name, "wedge-paused")
        transition = await scene.phase(name, "Failed")
        assert transition["reason"] == "ActuatorFailed"
        assert restarts(scene) == 2
        await asyncio.sleep(1800)
        assert restarts(scene) == 2
        assert scene.cordoned(name)
        other = "gpu-2" if name == "gpu-1" else "gpu-1"
        assert scene.transition(other)["reason"] == "BudgetFull"
        row = await scene.until_condition("Stalled", "True", "NodesFailed")
        assert name in row["message"]
        assert scene.e.policy("pool-b")["status"]["failures"][0]["node"] == name
        assert scene.events()["NodeFailed"] == 1


async def failed(scene: Scene) -> None:
    await asyncio.sleep(10)
    scene.e.software.inject("gpu-1", "failed")
    transition = await scene.reach(MIXED, phase="Failed")
    assert transition["reason"] == "ActuatorFailed"
    assert names.ANNOTATION_RETRY in transition["message"]
    await asyncio.sleep(600)
    assert scene.cordoned("gpu-1")
    assert restarts(scene) == 0
    row = scene.condition("Ready")
    assert row["status"] == "False"


@virtually
async def test_a_failed_node_stays_cordoned_until_the_retry_annotation_asks_for_another_try() -> None:
    async with open_scene(*nodes(1)) as scene:
        await failed(scene)
        scene.annotate("gpu-1", retry="again")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert restarts(scene) == 1
        await asyncio.sleep(600)
        assert restarts(scene) == 1


@virtually
async def test_a_failed_node_that_turns_out_right_after_all_is_given_back() -> None:
    """A result counts more than a clock: somebody repaired it and mig-manager says success."""
    async with open_scene(*nodes(1)) as scene:
        await failed(scene)
        scene.e.software.inject("gpu-1", "kill-mig-manager")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")


@virtually
async def test_a_node_that_mig_manager_reboots_is_waited_for_and_never_touched_while_it_does() -> None:
    async with open_scene(node("gpu-1", product="NVIDIA A100-SXM4-80GB")) as scene:
        await asyncio.sleep(10)
        scene.e.software.inject("gpu-1", "reboot")
        scene.apply(MIXED)
        await scene.e.until(lambda: scene.labels("gpu-1").get(names.LABEL_MIG_STATE) == "rebooting", "reboot", 600)
        mark = scene.mark()
        await scene.e.until(lambda: scene.labels("gpu-1").get(names.LABEL_MIG_STATE) != "rebooting", "back", 600)
        assert scene.node_writes(mark)["gpu-1"] == 0
        await scene.ready()
        assert restarts(scene) == 0


@virtually
async def test_an_old_success_of_mig_manager_proves_nothing() -> None:
    """docs/design/drain.md#x2: the label reads success from before; mig-manager does not even run."""
    async with open_scene(*nodes(1), serving=FULL) as scene:
        assert scene.labels("gpu-1")[names.LABEL_MIG_STATE] == "success"
        await scene.begin(MIXED, stage="actuating")
        assert names.LABEL_MIG_STATE not in scene.labels("gpu-1"), "it went with the PNR"
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_MIG_STATE: "success"}}})
        await asyncio.sleep(5)
        assert scene.fence("gpu-1") is not None
        assert scene.condition("Ready")["status"] == "False"
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")


async def wedged(scene: Scene) -> None:
    """Start a change to MIG that stops after its point of no return, with NVIDIA's operands paused."""
    await scene.serve(FULL)
    scene.e.software.inject("gpu-1", "wedge-pending")
    scene.apply(MIXED)
    await scene.e.until(lambda: names.PAUSED_FOR_MIG in scene.labels("gpu-1").values(), "the wedge", HOUR)


@virtually
async def test_a_success_that_the_hardware_belies_in_the_middle_of_a_change_is_not_believed() -> None:
    async with open_scene(*nodes(1)) as scene:
        await wedged(scene)
        deploy = {key: "true" for key, value in scene.labels("gpu-1").items() if value == names.PAUSED_FOR_MIG}
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_MIG_STATE: "success", **deploy}}})
        assert (await scene.reason("gpu-1", "LayoutMismatch", seconds=300))["phase"] == "Verifying"
        await asyncio.sleep(60)
        assert scene.transition("gpu-1")["reason"] == "LayoutMismatch"
        assert scene.cordoned("gpu-1")
        await scene.fenced("gpu-1", "actuating", seconds=0)
        scene.e.software.inject("gpu-1", "unwedge")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")


@virtually
async def test_all_disabled_over_our_label_in_the_middle_of_a_change_is_put_right_without_a_restart() -> None:
    """NVIDIA's GPU Operator writes it where it finds no label (docs/design/nvidia.md#d1)."""
    async with open_scene(*nodes(1)) as scene:
        since = scene.mark()
        await wedged(scene)
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_MIG_CONFIG: "all-disabled"}}})
        await scene.ready(seconds=HOUR)
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert scene.node_writes(since) == {"gpu-1": 6}, "adoption, fence, PNR, attempt, its own PNR, release"
        assert restarts(scene) == 0
        assert scene.events()["ActuatorRestarted"] == 1


# --- agent and hardware ----------------------------------------------------------------------------


SWITCHED_OFF = {
    "the device plugin": ("nvidia.com/gpu.deploy.device-plugin", "false", "true", "OperandsDisabled"),
    "all operands": ("nvidia.com/gpu.deploy.operands", "false", None, "OperandsDisabled"),
    "containers": ("nvidia.com/gpu.workload.config", "vm-passthrough", None, "WorkloadConfig"),
}


@pytest.mark.parametrize(("label", "value", "right", "reason"), SWITCHED_OFF.values(), ids=SWITCHED_OFF.keys())
@virtually
async def test_a_node_that_nvidias_operands_do_not_serve_is_left_alone_until_they_do(
    label: str, value: str, right: str | None, reason: str
) -> None:
    async with open_scene(*nodes(2), serving=FULL) as scene:
        scene.person("gpu-1", {"metadata": {"labels": {label: value}}})
        mark = scene.mark()
        transition = await scene.reach(SLICED, reason=reason)
        assert label in transition["message"]
        await scene.phase("gpu-2", "Synced")
        assert scene.node_writes(mark)["gpu-1"] == 0
        scene.person("gpu-1", {"metadata": {"labels": {label: right}}})
        await scene.ready()


@virtually
async def test_an_agent_whose_image_no_registry_has_is_told_by_its_cause() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        pod = agent_pod(scene, "gpu-1")
        name, image = pod["metadata"]["name"], pod["spec"]["containers"][0]["image"]
        words = kubeletwords.back_off(image, kubeletwords.not_in_registry(image))
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": words}}
        container = {"name": "agent", "image": image, "ready": False, "state": waiting}
        unready = {"conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [container]}
        scene.e.cluster.patch(PODS, name, {"status": unready}, AGENTS, "status")
        mark = scene.mark()
        transition = await scene.reach(SLICED, reason="AgentNotStarted")
        assert transition["phase"] == "Blocked"
        told = (f"image {image} cannot be pulled", f"{image}: not found", "Correct image.repository")
        assert all(words in transition["message"] for words in told), transition["message"]
        row = await scene.until_condition("Stalled", "True", "Blocked")
        assert all(words in row["message"] for words in told), row["message"]
        assert not scene.node_writes(mark)


@pytest.mark.parametrize(
    ("namespace", "spec", "reason"),
    [(AGENTS, SLICED, "AgentNotReady"), ("gpu-operator", MIXED, "ActuatorMissing")],
    ids=["the agent", "mig-manager"],
)
@virtually
async def test_nothing_starts_while_a_pod_that_it_needs_is_not_ready(namespace: str, spec: JSON, reason: str) -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        await asyncio.sleep(10)
        name = scene.e.cluster.objects(PODS, namespace=namespace)[0]["metadata"]["name"]

        def report(ready: bool) -> None:
            status = {"conditions": [{"type": "Ready", "status": str(ready)}]}
            scene.e.cluster.patch(PODS, name, {"status": status}, namespace, "status")

        report(False)
        mark = scene.mark()
        await scene.reach(spec, reason=reason)
        await asyncio.sleep(300)
        assert not scene.node_writes(mark)
        report(True)
        await scene.ready()


@virtually
async def test_an_agent_that_goes_during_a_drain_keeps_the_node_from_the_point_of_no_return() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED)
        scene.e.cluster.delete(PODS, agent_pod(scene, "gpu-1")["metadata"]["name"], AGENTS)
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "hidden"}}})
        await scene.reason("gpu-1", "AgentNotReady")
        await asyncio.sleep(300)
        assert scene.transition("gpu-1")["phase"] == "VerifyingIdle"
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "true"}}})
        await scene.ready()


@virtually
async def test_a_hung_nvml_call_is_reported_by_name_and_keeps_the_node_as_it_is() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        scene.e.software.inject("gpu-1", "hang-nvml")
        mark = scene.mark()
        transition = await scene.reach(MIXED, reason="AgentError")
        assert "NVMLHung" in transition["message"]
        assert not scene.node_writes(mark)
        scene.e.software.inject("gpu-1", "unhang-nvml")
        await scene.ready()


@virtually
async def test_an_agent_that_cannot_say_that_nvml_is_closed_keeps_the_node_from_the_point_of_no_return() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED)
        scene.e.software.inject("gpu-1", "hang-nvml")
        await scene.phase("gpu-1", "VerifyingIdle")
        await asyncio.sleep(300)
        await scene.fenced("gpu-1", seconds=0)
        scene.e.software.inject("gpu-1", "unhang-nvml")
        await scene.ready()


@virtually
async def test_an_observation_from_before_the_change_is_not_accepted() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED, stage="actuating")
        name = agent_pod(scene, "gpu-1")["metadata"]["name"]
        scene.e.cluster.delete(PODS, name, AGENTS)
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "hidden"}}})
        await asyncio.sleep(300)
        observed = scene.e.gpunode("gpu-1")["status"]["observed"]
        gpus = [gpu | {"mig": "2x3g.40gb@0123456789abcdef"} for gpu in observed["gpus"]]
        stale = {"status": {"observed": observed | {"gpus": gpus, "quiet": False}}}
        scene.e.cluster.patch(GPUNODES, "gpu-1", stale, subresource="status")
        await asyncio.sleep(300)
        assert scene.fence("gpu-1") is not None
        assert scene.transition("gpu-1")["reason"] == "ObservationPending"
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "true"}}})
        await scene.ready()


@virtually
async def test_a_reboot_that_mig_manager_heals_by_itself_is_no_change_of_ours() -> None:
    async with open_scene(*nodes(1), serving=MIXED) as scene:
        mark, before = scene.mark(), scene.e.node("gpu-1")["status"].get("nodeInfo")
        scene.e.software.inject("gpu-1", "reboot-now")
        await scene.e.until(lambda: scene.condition("Ready")["status"] == "False", "not Ready", 60)
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert not scene.node_writes(mark)
        assert scene.e.node("gpu-1")["status"].get("nodeInfo") != before, "another boot"


def kubelet(scene: Scene, name: str, *, there: bool) -> None:
    rows = [{"type": "Ready", "status": "True" if there else "Unknown"}]
    scene.e.cluster.patch(NODES, name, {"status": {"conditions": rows}}, subresource="status")


@virtually
async def test_a_kubelet_that_mig_manager_restarts_is_waited_for_and_no_wedge_is_seen_in_it() -> None:
    """On EKS the node is NotReady for minutes after every change of the MIG mode."""
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED, stage="actuating")
        kubelet(scene, "gpu-1", there=False)
        transition = await scene.reason("gpu-1", "NodeNotReady")
        assert transition["phase"] == "Verifying"
        await asyncio.sleep(300)
        assert scene.fence("gpu-1") is not None
        assert scene.cordoned("gpu-1")
        kubelet(scene, "gpu-1", there=True)
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert restarts(scene) == 0


@virtually
async def test_a_node_that_stays_away_past_its_time_is_failed_and_given_back_by_itself_when_it_comes() -> None:
    async with open_scene(*nodes(2)) as scene:
        name = await scene.begin_any(
            MIXED,
            rollout={"maxUnavailable": 1, "timeouts": {"actuation": "5m", "verification": "5m"}},
            stage="actuating",
        )
        kubelet(scene, name, there=False)
        transition = await scene.phase(name, "Failed")
        assert (transition["reason"], transition["culprit"], transition["waitingFor"]) == (
            "NodeNotReady",
            "kubelet",
            "Person",
        )
        (other,) = {"gpu-1", "gpu-2"} - {name}
        assert scene.fence(other) is None, "its slot is kept"
        kubelet(scene, name, there=True)
        await scene.ready(seconds=HOUR)


@virtually
async def test_a_node_that_goes_away_during_its_drain_loses_nobody_and_goes_on_when_it_is_back_in_time() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, gpu_pod("stays", "gpu-1", metadata={"finalizers": ["example.com/keep"]}))
        await scene.begin(SLICED, drain={"unmanagedPods": "Evict", "timeout": "20m"})
        await scene.e.until(lambda: scene.evicted() == ["stays"], "the eviction", 60)
        kubelet(scene, "gpu-1", there=False)
        await scene.reason("gpu-1", "NodeUnreachable")
        await asyncio.sleep(300)
        assert scene.transition("gpu-1")["reason"] == "NodeUnreachable", "nobody knows that it is stuck"
        await scene.fenced("gpu-1", seconds=0)
        scene.e.cluster.patch(PODS, "stays", {"metadata": {"finalizers": None}}, "default")
        scene.e.cluster.delete(PODS, "stays", "default")
        await asyncio.sleep(120)
        await scene.fenced("gpu-1", seconds=0)  # nobody is sure of what a silent kubelet still runs
        kubelet(scene, "gpu-1", there=True)
        await scene.ready(seconds=HOUR)
        assert scene.evicted() == ["stays"]


@virtually
async def test_a_node_that_is_away_past_its_drain_is_restored_and_tried_again_when_it_is_back() -> None:
    async with open_scene(*nodes(1), workloads=[SimWorkload("free", 1)]) as scene:
        await scene.running("free", 1)
        await scene.begin(SLICED, drain={"timeout": "2m", "strandedPods": "Allow"})
        kubelet(scene, "gpu-1", there=False)
        await scene.released("gpu-1")
        assert not scene.cordoned("gpu-1")
        transition = await scene.reason("gpu-1", "NodeNotReady")
        assert transition["phase"] == "Blocked"
        kubelet(scene, "gpu-1", there=True)
        await scene.ready(seconds=HOUR)


@pytest.mark.parametrize("limit", [1, 2])
@virtually
async def test_a_node_that_is_away_before_its_change_takes_its_slot_and_stops_nobody_with_room(limit: int) -> None:
    async with open_scene(*nodes(3)) as scene:
        kubelet(scene, "gpu-2", there=False)
        scene.apply(SLICED, rollout={"maxUnavailable": limit})
        await scene.reason("gpu-2", "NodeNotReady")
        if limit == 1:
            await asyncio.sleep(120)
            assert not scene.node_writes()
            kubelet(scene, "gpu-2", there=True)
        else:
            for name in ("gpu-1", "gpu-3"):
                await scene.phase(name, "Synced")
            kubelet(scene, "gpu-2", there=True)
        await scene.ready(seconds=HOUR)


STATE = names.LABEL_MIG_STATE


def crash_mig_manager(scene: Scene, *, up: bool = False) -> str:
    """The container of mig-manager's pod is in a CrashLoopBackOff, or runs again; returns the pod's name."""
    (pod,) = scene.e.cluster.objects(PODS, label_selector="app=nvidia-mig-manager")
    state = {"running": {}} if up else {"waiting": {"reason": "CrashLoopBackOff"}}
    status = {
        "conditions": [{"type": "Ready", "status": str(up)}],
        "containerStatuses": [{"name": "main", "ready": up, "restartCount": 7, "state": state}],
    }
    scene.e.cluster.patch(PODS, pod["metadata"]["name"], {"status": status}, "gpu-operator", subresource="status")
    return str(pod["metadata"]["name"])


@virtually
async def test_a_run_whose_mig_manager_died_is_told_with_its_pod_and_goes_on_when_that_runs_again() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.apply(MIXED)
        await scene.e.until(lambda: scene.labels("gpu-1").get(STATE) == "pending", "a run", HOUR)
        name = crash_mig_manager(scene)
        await asyncio.sleep(60)
        assert scene.transition("gpu-1")["message"] == "mig-manager is applying the configuration"
        await asyncio.sleep(60)
        transition = scene.transition("gpu-1")
        assert (transition["phase"], transition["reason"]) == ("Reconfiguring", "ActuationInProgress")
        assert transition["message"].endswith(f"says label {STATE}=pending; its pod {name} is not Ready")
        crash_mig_manager(scene, up=True)
        await scene.ready()
        assert scene.deleted() == []


@virtually
async def test_a_run_at_rest_whose_mig_manager_died_needs_a_person_after_two_minutes_and_drains_nothing() -> None:
    async with open_scene(*nodes(1), serving=MIXED) as scene:
        mark = scene.mark()
        name = crash_mig_manager(scene)
        scene.person("gpu-1", {"metadata": {"labels": {STATE: "pending"}}})
        await asyncio.sleep(60)
        assert scene.transition("gpu-1")["reason"] == "ActuatorBusy"
        await asyncio.sleep(60)
        transition = scene.transition("gpu-1")
        assert (transition["phase"], transition["reason"], transition["waitingFor"]) == (
            "Blocked",
            "ActuatorMissing",
            "Person",
        )
        claim = f"label {STATE}=pending says that mig-manager is at work on gpu-1"
        assert transition["message"].startswith(f"{claim}, but its pod {name} is not Ready")
        assert claim in (await scene.until_condition("Stalled", "True", "Blocked"))["message"]
        await asyncio.sleep(HOUR)
        assert scene.transition("gpu-1")["message"].startswith(claim)
        assert (scene.cordoned("gpu-1"), scene.node_writes(mark)) == (False, {})
        crash_mig_manager(scene, up=True)
        await scene.ready()


@virtually
async def test_a_driver_pod_that_died_with_operands_paused_needs_a_person_after_an_hour() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        await asyncio.sleep(60)
        label = f"{names.LABEL_DEPLOY_PREFIX}dcgm"
        scene.person("gpu-1", {"metadata": {"labels": {label: "paused-for-driver-upgrade"}}})
        await scene.reason("gpu-1", "ForeignMaintenance")
        await asyncio.sleep(HOUR - 60)
        assert scene.transition("gpu-1")["waitingFor"] == "Others"
        await asyncio.sleep(120)
        transition = scene.transition("gpu-1")
        assert (transition["reason"], transition["waitingFor"]) == ("ForeignMaintenance", "Person")
        assert f"label {label}=paused-for-driver-upgrade says that NVIDIA's driver is being" in transition["message"]
        assert "kubectl get pods -A -l app.kubernetes.io/component=nvidia-driver" in transition["message"]
        scene.person("gpu-1", {"metadata": {"labels": {label: "true"}}})
        await scene.ready()


EVICT: JSON = {"unmanagedPods": "Evict", "strandedPods": "Allow"}
SHORT: JSON = {"timeouts": {"actuation": "2m", "verification": "1m"}}


async def pod_lands(scene: Scene) -> None:
    """Somebody lifts the cordon, a pod is bound at once, the operator puts the cordon back."""
    scene.cordon("gpu-1", on=False)
    scene.e.cluster.add(PODS, gpu_pod("late", "gpu-1"))
    await scene.e.until(lambda: scene.cordoned("gpu-1"), "cordoned again", 60)


@virtually
async def test_a_retry_lets_a_pod_that_landed_meanwhile_leave_before_mig_manager_runs() -> None:
    async with open_scene(*nodes(1)) as scene:
        await failed(scene)
        scene.apply(MIXED, drain=EVICT)
        await pod_lands(scene)
        await scene.e.until(lambda: scene.events()["CordonRestored"] == 1, "an Event", 60)
        scene.annotate("gpu-1", retry="again")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert (scene.evicted(), restarts(scene)) == (["late"], 1)


@virtually
async def test_a_cure_waits_for_a_pod_that_landed_meanwhile() -> None:
    async with open_scene(*nodes(1)) as scene:
        await asyncio.sleep(10)
        scene.e.software.inject("gpu-1", "wedge-pending")
        await scene.begin(MIXED, drain=EVICT, stage="actuating")
        await pod_lands(scene)
        await scene.ready(seconds=HOUR)
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert (scene.evicted(), restarts(scene)) == (["late"], 1)


@virtually
async def test_all_disabled_over_our_label_in_the_middle_is_put_right_twice_and_then_left_to_a_person() -> None:
    """As NVIDIA's GPU Operator writes it (docs/design/nvidia.md#d1)."""
    theirs = {"metadata": {"labels": {names.LABEL_MIG_CONFIG: "all-disabled"}}}
    async with open_scene(*nodes(1)) as scene:
        await asyncio.sleep(10)
        scene.apply(MIXED)
        for attempt in (1, 2, 3):
            await scene.e.until(partial(at_work, scene, attempt), f"attempt {attempt}", 600)
            scene.person("gpu-1", theirs)
        transition = await scene.phase("gpu-1", "Failed")
        assert "nvidia.com/mig.config is all-disabled" in transition["message"]
        assert transition["attempt"] == 3
        assert scene.deleted() == [], "mig-manager is well and is not restarted"
        scene.annotate("gpu-1", retry="again")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")


def at_work(scene: Scene, attempt: int) -> bool:
    fence = scene.fence("gpu-1")
    return fence is not None and (fence.stage, fence.attempt, fence.owed) == ("actuating", attempt, "")


@virtually
async def test_a_plugins_key_that_somebody_overwrote_on_a_card_without_mig_is_written_again() -> None:
    async with open_scene(node("gpu-1", product=L40S)) as scene:
        await asyncio.sleep(10)
        await scene.begin(SLICED, rollout=SHORT, stage="actuating")
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_PLUGIN_CONFIG: "theirs"}}})
        await scene.ready()
        assert_as_wanted(scene, SLICED, "gpu-1")
        assert scene.events()["NodeFailed"] == 0


@virtually
async def test_an_edit_that_changes_no_layout_leaves_a_failed_node_alone() -> None:
    async with open_scene(*nodes(1)) as scene:
        await failed(scene)
        mark = scene.mark()
        scene.apply(MIXED, rollout={"paused": True})
        await asyncio.sleep(600)
        assert (scene.transition("gpu-1")["phase"], restarts(scene)) == ("Failed", 0)
        assert scene.node_writes(mark)["gpu-1"] == 0


@virtually
async def test_another_layout_that_a_pod_keeps_from_being_reached_is_failed_in_its_time() -> None:
    async with open_scene(*nodes(1)) as scene:
        await failed(scene)
        scene.e.cluster.add(PODS, gpu_pod("stays", "gpu-1"))
        await scene.reach(SINGLE, phase="Draining")
        transition = await scene.phase("gpu-1", "Failed")
        assert transition["reason"] == "Unmanaged"
        await scene.until_condition("Stalled", "True", "NodesFailed")
        scene.e.cluster.delete(PODS, "stays", namespace="default")
        await scene.ready()
        assert_as_wanted(scene, SINGLE, "gpu-1")


@virtually
async def test_a_drain_for_time_slicing_that_became_one_for_mig_lets_all_pods_leave_where_nodes_reboot() -> None:
    cpu = gpu_pod("cpu", "gpu-1", spec={"containers": [{"name": "main"}]})
    async with open_scene(*nodes(1), cluster_policy=WITH_REBOOT) as scene:
        scene.e.cluster.add(PODS, cpu)
        await asyncio.sleep(10)
        await scene.begin(SLICED)
        await scene.serve(MIXED, drain=EVICT, seconds=HOUR)
        assert scene.evicted() == ["cpu"]
