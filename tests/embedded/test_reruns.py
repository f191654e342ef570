"""Every run of an actuator needs an idle node: retries, cures and edits after the point of no return."""

import asyncio
from functools import partial

from tests.embedded.scene import HOUR, L40S, MIXED, SINGLE, SLICED, WITH_REBOOT, Scene, gpu_pod, node, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_troubles import failed, restarts
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import JSON, PODS

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
