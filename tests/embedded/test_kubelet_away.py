"""A kubelet that does not answer for a while: mig-manager restarts it on some clouds, and nodes come and go."""

import asyncio

import pytest
from hack.sim.workloads import Workload
from tests.embedded.scene import HOUR, MIXED, SLICED, Scene, gpu_pod, nodes, scene
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_troubles import restarts
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import NODES, PODS


def kubelet(stage: Scene, name: str, *, there: bool) -> None:
    """The node is Ready, or not any more."""
    rows = [{"type": "Ready", "status": "True" if there else "Unknown"}]
    stage.e.cluster.patch(NODES, name, {"status": {"conditions": rows}}, subresource="status")


@virtually
async def test_a_kubelet_that_mig_manager_restarts_is_waited_for_and_no_wedge_is_seen_in_it() -> None:
    """On EKS the node is NotReady for minutes after every change of the MIG mode."""
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED)
        await stage.fenced("gpu-1", "actuating")
        kubelet(stage, "gpu-1", there=False)
        transition = await stage.reason("gpu-1", "NodeNotReady")
        assert transition["phase"] == "Verifying"
        await asyncio.sleep(300)
        assert stage.fence("gpu-1") is not None
        assert stage.cordoned("gpu-1")
        kubelet(stage, "gpu-1", there=True)
        await stage.ready()
        assert_as_wanted(stage, MIXED, "gpu-1")
        assert restarts(stage) == 0


@virtually
async def test_a_node_that_stays_away_past_its_time_is_failed_and_given_back_by_itself_when_it_comes() -> (
    None
):
    async with scene(*nodes(2)) as stage:
        stage.apply(
            MIXED, rollout={"maxUnavailable": 1, "timeouts": {"actuation": "5m", "verification": "5m"}}
        )
        name = await stage.any_fenced("actuating")
        kubelet(stage, name, there=False)
        transition = await stage.phase(name, "Failed")
        assert (transition["reason"], transition["culprit"], transition["deadline"]) == (
            "NodeNotReady",
            "kubelet",
            "person",
        )
        (other,) = {"gpu-1", "gpu-2"} - {name}
        assert stage.fence(other) is None, "its slot is kept"
        kubelet(stage, name, there=True)
        await stage.ready(seconds=HOUR)


@virtually
async def test_a_node_that_goes_away_during_its_drain_loses_nobody_and_goes_on_when_it_is_back_in_time() -> (
    None
):
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.add(PODS, gpu_pod("stays", "gpu-1", metadata={"finalizers": ["example.com/keep"]}))
        stage.apply(SLICED, drain={"unmanagedPods": "Evict", "timeout": "20m"})
        await stage.fenced("gpu-1")
        await stage.e.until(lambda: stage.evicted() == ["stays"], "the eviction", 60)
        kubelet(stage, "gpu-1", there=False)
        await asyncio.sleep(300)
        fence = stage.fence("gpu-1")
        assert fence is not None
        assert fence.stage == "fenced"
        stage.e.cluster.patch(PODS, "stays", {"metadata": {"finalizers": None}}, "default")
        stage.e.cluster.delete(PODS, "stays", "default")
        await asyncio.sleep(120)
        fence = stage.fence("gpu-1")
        assert fence is not None
        assert fence.stage == "fenced", "nobody is sure of what a silent kubelet still runs"
        kubelet(stage, "gpu-1", there=True)
        await stage.ready(seconds=HOUR)
        assert stage.evicted() == ["stays"]


@virtually
async def test_a_node_that_is_away_past_its_drain_is_restored_and_tried_again_when_it_is_back() -> None:
    async with scene(*nodes(1), workloads=[Workload("free", 1)]) as stage:
        await stage.running("free", 1)
        stage.apply(SLICED, drain={"timeout": "2m", "strandedPods": "Allow"})
        await stage.fenced("gpu-1")
        kubelet(stage, "gpu-1", there=False)
        await stage.released("gpu-1")
        assert not stage.cordoned("gpu-1")
        transition = await stage.reason("gpu-1", "NodeNotReady")
        assert transition["phase"] == "Blocked"
        kubelet(stage, "gpu-1", there=True)
        await stage.ready(seconds=HOUR)


@pytest.mark.parametrize("limit", [1, 2])
@virtually
async def test_a_node_that_is_away_before_its_change_takes_its_slot_and_stops_nobody_with_room(
    limit: int,
) -> None:
    async with scene(*nodes(3)) as stage:
        kubelet(stage, "gpu-2", there=False)
        stage.apply(SLICED, rollout={"maxUnavailable": limit})
        await stage.reason("gpu-2", "NodeNotReady")
        if limit == 1:
            await asyncio.sleep(120)
            assert not stage.node_writes()
            kubelet(stage, "gpu-2", there=True)
        else:
            for name in ("gpu-1", "gpu-3"):
                await stage.phase(name, "Synced")
            kubelet(stage, "gpu-2", there=True)
        await stage.ready(seconds=HOUR)
