"""A GPU turns unhealthy: before a change, in the middle of one, and while nothing is to be done."""

import asyncio

from tests.embedded.scene import FULL, MIXED, SLICED, Scene, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import GPUNODES, JSON


def healthy(scene: Scene, name: str = "gpu-1") -> JSON:
    (row,) = scene.e.cluster.get(GPUNODES, name)["status"]["conditions"]
    found: JSON = row
    return found


def observed_gpus(scene: Scene) -> list[JSON]:
    found: list[JSON] = scene.e.cluster.get(GPUNODES, "gpu-1")["status"]["observed"]["gpus"]
    return found


async def until_healthy(scene: Scene, status: str) -> None:
    await scene.e.until(lambda: healthy(scene)["status"] == status, f"Healthy={status}", 120)


@virtually
async def test_no_change_starts_on_a_node_with_an_unhealthy_gpu_and_it_goes_on_when_it_is_healthy() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        assert healthy(scene)["reason"] == "NoTrouble"
        scene.e.software.inject("gpu-1", "sick-gpu")
        await until_healthy(scene, "False")
        mark = scene.mark()
        scene.apply(SLICED)
        transition = await scene.phase("gpu-1", "Blocked")
        assert transition["reason"] == "GPUUnhealthy"
        assert "the driver recommends Reset; drain the node, then reset the GPU" in transition["message"]
        await asyncio.sleep(1800)
        assert not scene.node_writes(mark)
        assert scene.condition("Stalled")["status"] == "True"
        scene.e.software.inject("gpu-1", "heal-gpu")
        await scene.ready()
        assert_as_wanted(scene, SLICED, "gpu-1")
        assert healthy(scene)["status"] == "True"
        assert (scene.events()["GPUUnhealthy"], scene.events()["GPUHealthy"]) == (1, 1)


@virtually
async def test_a_synced_node_shows_its_unhealthy_gpu_in_one_write_and_one_event() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        mark = scene.mark()
        scene.e.software.inject("gpu-1", "sick-gpu")
        transition = await scene.reason("gpu-1", "GPUUnhealthy")
        assert transition["phase"] == "Synced"
        assert healthy(scene)["reason"] == "RecoveryNeeded"
        await asyncio.sleep(3600)
        shown = [w for w in scene.writes(plural="gpunodes", since=mark) if "transition" in str(w.call.body)]
        assert len(shown) == 1
        assert scene.events()["GPUUnhealthy"] == 1
        assert scene.condition("Ready")["status"] == "True", "its pods are left alone"


@virtually
async def test_a_change_before_the_point_of_no_return_is_given_up_and_the_node_restored() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        scene.e.software.inject("gpu-1", "stray-process")
        await scene.reach(MIXED, reason="GPUStillBusy")
        scene.e.software.inject("gpu-1", "sick-gpu")
        await scene.phase("gpu-1", "Blocked")
        assert scene.fence("gpu-1") is None
        assert not scene.cordoned("gpu-1")
        scene.e.software.inject("gpu-1", "heal-gpu")
        scene.e.software.inject("gpu-1", "no-stray-process")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")


@virtually
async def test_a_change_past_the_point_of_no_return_goes_on_to_its_proof() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        await scene.begin(MIXED, stage="actuating")
        scene.e.software.inject("gpu-1", "sick-gpu")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert scene.transition("gpu-1")["reason"] in ("Synced", "GPUUnhealthy")


@virtually
async def test_a_lost_gpu_blocks_a_node_that_last_was_as_wanted_and_it_heals() -> None:
    async with open_scene(*nodes(1), serving=MIXED) as scene:
        mark, before = scene.mark(), observed_gpus(scene)
        scene.e.software.inject("gpu-1", "lose-gpu")
        transition = await scene.reason("gpu-1", "GPUUnhealthy")
        assert transition["phase"] == "Blocked"
        assert "drain and reboot the node" in transition["message"]
        assert healthy(scene)["reason"] == "GPULost"
        assert observed_gpus(scene) == [{**before[0], "access": "Lost"}, *before[1:]], "what was known is kept"
        await asyncio.sleep(1800)
        assert not scene.node_writes(mark)
        scene.e.software.inject("gpu-1", "find-gpu")
        await scene.ready()
        assert not scene.node_writes(mark)
        assert_as_wanted(scene, MIXED, "gpu-1")
