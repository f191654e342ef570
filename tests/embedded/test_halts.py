"""What ends a halt after failures, and which edits do not, with the whole operator."""

import asyncio
from typing import Any

import pytest
from tests.embedded.scene import MIXED, OTHER_MIXED, SINGLE, Scene, at_once, nodes, open_scene
from tests.embedded.test_rollback import BACK
from tests.embedded.test_rollout import begun, note
from tests.fakes.virtualtime import virtually

ALL = ("gpu-1", "gpu-2", "gpu-3")
HOUR = 3600.0
NIGHT = {"schedule": "0 22 * * *", "duration": "23h59m"}


async def halts(scene: Scene) -> dict[str, str]:
    """The first node of a rollout goes back after its failure, and the others are halted. Their messages."""
    await scene.serve(OTHER_MIXED, rollout=at_once(3))
    for name in ALL:
        scene.e.software.inject(name, "refuse")
    scene.apply(MIXED, rollout=BACK)
    first = await scene.any_fenced()
    await scene.reason(first, "RolledBack")
    others = [name for name in ALL if name != first]
    return {name: (await scene.reason(name, "Halted"))["message"] for name in others}


EDITS: dict[str, dict[str, Any]] = {
    "the price": {"cost": {"gpuHourlyPrice": "3.20"}},
    "the windows": {"rollout": {**BACK, "windows": [NIGHT]}},
}


@pytest.mark.parametrize("fields", EDITS.values(), ids=EDITS)
@virtually
async def test_no_further_node_fails_after_an_edit_of(fields: dict[str, Any]) -> None:
    async with open_scene(*nodes(3)) as scene:
        await halts(scene)
        before = len(begun(scene))
        scene.apply(MIXED, **{"rollout": BACK, **fields})
        await asyncio.sleep(HOUR)
        assert len(begun(scene)) == before, "a halt ended by an edit that asks for nothing new"


@virtually
async def test_no_further_node_fails_after_a_pause_and_its_end() -> None:
    async with open_scene(*nodes(3)) as scene:
        await halts(scene)
        before = len(begun(scene))
        for paused in (True, False):
            scene.apply(MIXED, rollout={**BACK, "paused": paused})
            await asyncio.sleep(HOUR)
        assert len(begun(scene)) == before, "a halt ended by a pause"


@virtually
async def test_a_halt_ends_at_once_with_another_layout() -> None:
    async with open_scene(*nodes(3)) as scene:
        await halts(scene)
        before = len(begun(scene))
        scene.apply(SINGLE, rollout=BACK)
        await scene.e.until(lambda: len(begun(scene)) > before, "another node starts", HOUR)


@virtually
async def test_a_resumed_rollout_stays_resumed_after_the_price_changes() -> None:
    async with open_scene(*nodes(3)) as scene:
        told = await halts(scene)
        before = len(begun(scene))
        scene.apply(MIXED, rollout={**BACK, "paused": True})
        (value,) = {message.rpartition("gpusharing.dev/resume=")[2] for message in told.values()}
        assert value == scene.e.policy("pool-b")["status"]["halt"]
        note(scene, resume=value)
        scene.apply(MIXED, rollout=BACK, cost={"gpuHourlyPrice": "3.20"})
        await scene.e.until(lambda: len(begun(scene)) > before, "another node starts", HOUR)
