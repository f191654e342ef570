"""A GPU turns unhealthy: before a change, in the middle of one, and while nothing is to be done."""

import asyncio

from tests.embedded.scene import FULL, MIXED, SLICED, Scene, nodes, scene
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import GPUNODES, JSON


def healthy(stage: Scene, name: str = "gpu-1") -> JSON:
    """The condition Healthy of a node."""
    (row,) = stage.e.cluster.get(GPUNODES, name)["status"]["conditions"]
    found: JSON = row
    return found


async def until_healthy(stage: Scene, status: str) -> None:
    """Wait for the condition."""
    await stage.e.until(lambda: healthy(stage)["status"] == status, f"Healthy={status}", 120)


@virtually
async def test_no_change_starts_on_a_node_with_an_unhealthy_gpu_and_it_goes_on_when_it_is_healthy() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(FULL)
        await stage.ready()
        assert healthy(stage)["reason"] == "NoTrouble"
        stage.e.software.inject("gpu-1", "sick-gpu")
        await until_healthy(stage, "False")
        mark = stage.mark()
        stage.apply(SLICED)
        transition = await stage.phase("gpu-1", "Blocked")
        assert transition["reason"] == "GPUUnhealthy"
        assert "the driver asks for Reset; drain the node, then reset the GPU" in transition["message"]
        await asyncio.sleep(1800)
        assert not stage.node_writes(mark)
        assert stage.condition("Stalled")["status"] == "True"
        stage.e.software.inject("gpu-1", "heal-gpu")
        await stage.ready()
        assert_as_wanted(stage, SLICED, "gpu-1")
        assert healthy(stage)["status"] == "True"
        assert (stage.events()["GPUUnhealthy"], stage.events()["GPUHealthy"]) == (1, 1)


@virtually
async def test_a_synced_node_shows_its_unhealthy_gpu_in_one_write_and_one_event() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(FULL)
        await stage.ready()
        mark = stage.mark()
        stage.e.software.inject("gpu-1", "sick-gpu")
        transition = await stage.reason("gpu-1", "GPUUnhealthy")
        assert transition["phase"] == "Synced"
        assert healthy(stage)["reason"] == "RecoveryNeeded"
        await asyncio.sleep(3600)
        shown = [w for w in stage.writes(plural="gpunodes", since=mark) if "transition" in str(w.call.body)]
        assert len(shown) == 1
        assert stage.events()["GPUUnhealthy"] == 1
        assert stage.condition("Ready")["status"] == "True", "its pods are left alone"


@virtually
async def test_a_change_before_the_point_of_no_return_is_given_up_and_the_node_restored() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(FULL)
        await stage.ready()
        stage.e.software.inject("gpu-1", "stray-process")
        stage.apply(MIXED)
        await stage.reason("gpu-1", "GPUStillBusy")
        stage.e.software.inject("gpu-1", "sick-gpu")
        await stage.phase("gpu-1", "Blocked")
        assert stage.fence("gpu-1") is None
        assert not stage.cordoned("gpu-1")
        stage.e.software.inject("gpu-1", "heal-gpu")
        stage.e.software.inject("gpu-1", "no-stray-process")
        await stage.ready()
        assert_as_wanted(stage, MIXED, "gpu-1")


@virtually
async def test_a_change_past_the_point_of_no_return_goes_on_to_its_proof() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(FULL)
        await stage.ready()
        stage.apply(MIXED)
        await stage.fenced("gpu-1", "actuating")
        stage.e.software.inject("gpu-1", "sick-gpu")
        await stage.ready()
        assert_as_wanted(stage, MIXED, "gpu-1")
        assert stage.transition("gpu-1")["reason"] in ("Synced", "GPUUnhealthy")


@virtually
async def test_a_lost_gpu_blocks_a_node_that_last_was_as_wanted_and_it_heals() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED)
        await stage.ready()
        mark = stage.mark()
        stage.e.software.inject("gpu-1", "lose-gpu")
        transition = await stage.reason("gpu-1", "GPUUnhealthy")
        assert transition["phase"] == "Blocked"
        assert "drain and reboot the node" in transition["message"]
        assert healthy(stage)["reason"] == "GPULost"
        await asyncio.sleep(1800)
        assert not stage.node_writes(mark)
        stage.e.software.inject("gpu-1", "find-gpu")
        await stage.ready()
        assert not stage.node_writes(mark)
        assert_as_wanted(stage, MIXED, "gpu-1")
