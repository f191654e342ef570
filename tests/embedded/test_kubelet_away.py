"""A kubelet that does not answer for a while: mig-manager restarts it on some clouds, and nodes come and go."""

import asyncio

import pytest
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import HOUR, MIXED, SLICED, Scene, gpu_pod, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_troubles import restarts
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import NODES, PODS


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
        scene.apply(MIXED, rollout={"maxUnavailable": 1, "timeouts": {"actuation": "5m", "verification": "5m"}})
        name = await scene.any_fenced("actuating")
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
        fence = scene.fence("gpu-1")
        assert fence is not None
        assert fence.stage == "fenced"
        scene.e.cluster.patch(PODS, "stays", {"metadata": {"finalizers": None}}, "default")
        scene.e.cluster.delete(PODS, "stays", "default")
        await asyncio.sleep(120)
        fence = scene.fence("gpu-1")
        assert fence is not None
        assert fence.stage == "fenced", "nobody is sure of what a silent kubelet still runs"
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
