"""onFailure Rollback: a change that fails after the point of no return goes back to what was proven there last."""

import asyncio
from typing import Any

import pytest
from hack.sim.workloads import SimWorkload
from tests.embedded.oracle import difference
from tests.embedded.scene import FULL, HOUR, MIXED, MPS, OTHER_MIXED, SINGLE, Scene, at_once, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_rollout import begun, note
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import CONFIG_MAPS, JSON, NODES, POLICIES

BACK: JSON = {"onFailure": "Rollback"}


async def fails(scene: Scene, before: JSON = OTHER_MIXED, after: JSON = MIXED, **rollout: object) -> None:
    """One layout is proven on gpu-1, and mig-manager fails at the next."""
    await scene.serve(before)
    scene.e.software.inject("gpu-1", "refuse")
    scene.apply(after, rollout={**BACK, **rollout})


@pytest.mark.parametrize(
    "before",
    [FULL, OTHER_MIXED, MPS],
    ids=["whole GPUs", "MIG mixed", "MPS"],
)
@virtually
async def test_a_node_on_which_a_change_failed_serves_again_what_was_proven_there_last(before: JSON) -> None:
    async with open_scene(*nodes(1)) as scene:
        await fails(scene, before)
        back = await scene.reason("gpu-1", "RolledBack")
        assert "mig-manager failed to apply" in back["message"]
        assert names.ANNOTATION_RETRY in back["message"]
        assert back["phase"] == "Blocked"
        assert_as_wanted(scene, before, "gpu-1")
        assert not scene.cordoned("gpu-1")
        assert scene.condition("Ready")["status"] == "False"
        await scene.until_condition("Stalled", "True", "RolledBack")
        assert scene.e.policy("pool-b")["status"]["failures"][0]["reason"] == "RolledBack"
        assert scene.e.policy("pool-b")["status"]["summary"]["status"] == "RolledBack"
        mark = scene.mark()
        await asyncio.sleep(1200)
        assert not scene.node_writes(mark), "it is not tried again by itself"
        events = scene.events()
        assert (events["RollingBack"], events["RolledBack"], events["NodeFailed"]) == (1, 1, 0)


@virtually
async def test_the_node_stays_cordoned_until_the_old_layout_is_proven() -> None:
    async with open_scene(*nodes(1)) as scene:
        await fails(scene)
        await scene.e.until(lambda: goes_back(scene), "the way back", HOUR)
        while scene.fence("gpu-1") is not None:
            assert scene.cordoned("gpu-1")
            assert scene.condition("Ready")["status"] == "False"
            await asyncio.sleep(1)
        assert scene.transition("gpu-1")["wanted"] == "2x3g.40gb"
        assert_as_wanted(scene, OTHER_MIXED, "gpu-1")


def goes_back(scene: Scene) -> bool:
    fence = scene.fence("gpu-1")
    return fence is not None and fence.rolls_back


def runs_back(scene: Scene) -> bool:
    fence = scene.fence("gpu-1")
    return fence is not None and fence.rolls_back and not fence.owed


@virtually
async def test_where_nothing_was_proven_the_node_is_held_and_says_so() -> None:
    async with open_scene(*nodes(1)) as scene:
        await asyncio.sleep(10)
        scene.e.software.inject("gpu-1", "refuse")
        held = await scene.reach(MIXED, rollout=BACK, phase="Failed")
        assert "the node has no earlier proven layout" in held["message"]
        await asyncio.sleep(1200)
        assert scene.cordoned("gpu-1")
        assert not goes_back(scene)


@virtually
async def test_after_a_way_back_that_fails_nothing_is_written_before_a_retry() -> None:
    async with open_scene(*nodes(1)) as scene:
        await fails(scene)
        await scene.e.until(lambda: goes_back(scene), "the way back", HOUR)
        scene.e.software.inject("gpu-1", "refuse")
        held = await scene.phase("gpu-1", "Failed")
        assert "the rollback to 7x1g.10gb failed too" in held["message"]
        mark = scene.mark()
        await asyncio.sleep(1200)
        assert scene.cordoned("gpu-1")
        assert not scene.node_writes(mark), "there is no second way back"
        scene.annotate("gpu-1", retry="again")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")


@virtually
async def test_a_retry_tries_the_new_layout_again_and_goes_back_once_more_when_it_fails() -> None:
    async with open_scene(*nodes(1)) as scene:
        await fails(scene)
        await scene.reason("gpu-1", "RolledBack")
        scene.annotate("gpu-1", retry="1")
        await scene.fenced("gpu-1", "actuating")
        await scene.released("gpu-1")
        assert_as_wanted(scene, OTHER_MIXED, "gpu-1")
        scene.e.software.inject("gpu-1", "accept")
        scene.annotate("gpu-1", retry="2")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")


@pytest.mark.parametrize("back", [True, False], ids=["it is back", "it is on its way"])
@virtually
async def test_another_intent_repairs_a_node_that_went_back(back: bool) -> None:
    async with open_scene(*nodes(1)) as scene:
        await fails(scene)
        await scene.e.until(
            lambda: scene.transition("gpu-1").get("reason") == "RolledBack" if back else goes_back(scene),
            "the way back",
            HOUR,
        )
        await scene.serve(SINGLE, rollout=BACK)
        assert_as_wanted(scene, SINGLE, "gpu-1")


@pytest.mark.parametrize("deed", ["deleted", "paused"])
@virtually
async def test_a_policy_that_is_deleted_or_paused_meanwhile_does_not_send_the_node_forward_again(deed: str) -> None:
    async with open_scene(*nodes(1)) as scene:
        await fails(scene)
        await scene.e.until(lambda: runs_back(scene), "the run that leads back", HOUR)
        if deed == "deleted":
            scene.e.cluster.delete(POLICIES, "pool-b")
        else:
            scene.apply(MIXED, rollout={**BACK, "paused": True})
        await scene.e.until(lambda: scene.fence("gpu-1") is None or not goes_back(scene), "the proof", HOUR)
        assert scene.fence("gpu-1") is None
        assert not scene.cordoned("gpu-1")
        assert difference(OTHER_MIXED, scene.e.node("gpu-1"), scene.e.software.nodes["gpu-1"]) == ""


@virtually
async def test_a_rolled_back_node_halts_the_others_and_alone_follows_its_retry() -> None:
    async with open_scene(*nodes(3)) as scene:
        others = list(await halts(scene))
        (first,) = {*ALL} - {*others}
        assert {scene.transition(name)["phase"] for name in others} == {"Blocked"}
        mark = scene.mark()
        scene.e.software.inject(first, "accept")
        scene.annotate(first, retry="again")
        await scene.phase(first, "Synced")
        await asyncio.sleep(600)
        assert set(scene.node_writes(mark)) == {first}
        assert [scene.transition(name)["reason"] for name in others] == ["Halted", "Halted"]


@virtually
async def test_a_failure_of_a_failed_node_with_more_allowed_lets_the_others_go_on_while_it_went_back() -> None:
    async with open_scene(*nodes(2)) as scene:
        await scene.serve(OTHER_MIXED, rollout=at_once(2))
        scene.e.software.inject("gpu-1", "refuse")
        await scene.reach(MIXED, rollout={**BACK, "maxFailures": 2}, reason="RolledBack")
        await scene.phase("gpu-2", "Synced")
        assert_as_wanted(scene, OTHER_MIXED, "gpu-1")
        assert_as_wanted(scene, MIXED, "gpu-2")


@virtually
async def test_pods_of_the_old_layout_come_back_to_a_node_that_went_back() -> None:
    async with open_scene(*nodes(1), workloads=(SimWorkload("free", 1),), serving=FULL) as scene:
        await scene.running("free", 1)
        scene.e.software.inject("gpu-1", "refuse")
        await scene.reach(MIXED, rollout=BACK, drain={"strandedPods": "Allow"}, reason="RolledBack")
        await scene.running("free", 1)


@virtually
async def test_the_entries_of_the_old_layout_stay_while_a_node_may_go_back_to_them() -> None:
    """The policy that asked for it asks for something else by now; only the proof on the Node names it."""
    async with open_scene(*nodes(1)) as scene:
        await fails(scene)
        await scene.e.until(lambda: goes_back(scene), "the way back", HOUR)
        for name in ("gpusharing-device-plugin", "gpusharing-mig-parted"):
            scene.e.cluster.delete(CONFIG_MAPS, name, "gpu-operator")
        await scene.reason("gpu-1", "RolledBack")
        assert_as_wanted(scene, OTHER_MIXED, "gpu-1")


@virtually
async def test_a_node_that_is_away_is_not_turned_back_and_one_that_comes_back_proven_is_given_back() -> None:
    async with open_scene(*nodes(1), serving=OTHER_MIXED) as scene:
        await scene.begin(MIXED, rollout=BACK, stage="actuating")
        ready(scene, "False")
        held = await scene.phase("gpu-1", "Failed", seconds=2 * HOUR)
        assert "once the state of the node is known" in held["message"]
        assert not goes_back(scene)
        ready(scene, "True")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")


def ready(scene: Scene, status: str) -> None:
    scene.e.cluster.patch(
        NODES, "gpu-1", {"status": {"conditions": [{"type": "Ready", "status": status}]}}, subresource="status"
    )


ALL = ("gpu-1", "gpu-2", "gpu-3")
NIGHT = {"schedule": "0 22 * * *", "duration": "23h59m"}


async def halts(scene: Scene) -> dict[str, str]:
    """The first node of a rollout goes back after its failure, and the others are halted. Their messages."""
    await scene.serve(OTHER_MIXED, rollout=at_once(3))
    for name in ALL:
        scene.e.software.inject(name, "refuse")
    first = await scene.begin_any(MIXED, rollout=BACK)
    await scene.reason(first, "RolledBack")
    others = [name for name in ALL if name != first]
    return {name: (await scene.reason(name, "Halted"))["message"] for name in others}


EDITS: dict[str, list[dict[str, Any]]] = {
    "the price": [{"cost": {"gpuHourlyPrice": "3.20"}}],
    "the windows": [{"rollout": {**BACK, "windows": [NIGHT]}}],
    "a pause and its end": [{"rollout": {**BACK, "paused": paused}} for paused in (True, False)],
}


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
@virtually
async def test_no_further_node_fails_after_an_edit_of(edits: list[dict[str, Any]]) -> None:
    async with open_scene(*nodes(3)) as scene:
        await halts(scene)
        before = len(begun(scene))
        for fields in edits:
            scene.apply(MIXED, **{"rollout": BACK, **fields})
            await asyncio.sleep(HOUR)
        assert len(begun(scene)) == before, "a halt ended by an edit that asks for nothing new"


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
