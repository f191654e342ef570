"""onFailure Rollback: a change that fails after the point of no return goes back to what was proven there last."""

import asyncio

import pytest
from hack.sim.workloads import Workload
from tests.embedded.oracle import difference
from tests.embedded.scene import (
    FULL,
    HOUR,
    MIXED,
    MPS,
    OTHER_MIXED,
    SINGLE,
    SLICED,
    Scene,
    at_once,
    nodes,
    scene,
)
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import CONFIG_MAPS, JSON, NODES, POLICIES

BACK: JSON = {"onFailure": "Rollback"}


async def fails(stage: Scene, before: JSON = OTHER_MIXED, after: JSON = MIXED, **rollout: object) -> None:
    """One layout is proven on gpu-1, and mig-manager fails at the next."""
    stage.apply(before)
    await stage.ready()
    stage.e.software.inject("gpu-1", "refuse")
    stage.apply(after, rollout={**BACK, **rollout})


@pytest.mark.parametrize(
    "before",
    [FULL, SLICED, SINGLE, OTHER_MIXED, MPS],
    ids=["whole GPUs", "time-slicing", "MIG single", "MIG mixed", "MPS"],
)
@virtually
async def test_a_node_on_which_a_change_failed_serves_again_what_was_proven_there_last(before: JSON) -> None:
    async with scene(*nodes(1)) as stage:
        await fails(stage, before)
        back = await stage.reason("gpu-1", "RolledBack")
        assert "mig-manager failed to apply" in back["message"]
        assert names.ANNOTATION_RETRY in back["message"]
        assert back["phase"] == "Blocked"
        assert_as_wanted(stage, before, "gpu-1")
        assert not stage.cordoned("gpu-1")
        assert stage.condition("Ready")["status"] == "False"
        await stage.until_condition("Stalled", "True", "RolledBack")
        assert stage.e.policy("pool-b")["status"]["failures"][0]["reason"] == "RolledBack"
        assert stage.e.policy("pool-b")["status"]["summary"]["status"] == "RolledBack"
        mark = stage.mark()
        await asyncio.sleep(HOUR)
        assert not stage.node_writes(mark), "it is not tried again by itself"
        events = stage.events()
        assert (events["RollingBack"], events["RolledBack"], events["NodeFailed"]) == (1, 1, 0)


@virtually
async def test_the_node_stays_cordoned_until_the_old_layout_is_proven() -> None:
    async with scene(*nodes(1)) as stage:
        await fails(stage)
        await stage.e.until(lambda: goes_back(stage), "the way back", HOUR)
        while stage.fence("gpu-1") is not None:
            assert stage.cordoned("gpu-1")
            assert stage.condition("Ready")["status"] == "False"
            await asyncio.sleep(1)
        assert stage.transition("gpu-1")["wanted"] == "2x3g.40gb"
        assert_as_wanted(stage, OTHER_MIXED, "gpu-1")


def goes_back(stage: Scene) -> bool:
    fence = stage.fence("gpu-1")
    return fence is not None and fence.rolls_back


def runs_back(stage: Scene) -> bool:
    fence = stage.fence("gpu-1")
    return fence is not None and fence.rolls_back and not fence.owed


@virtually
async def test_where_nothing_was_proven_the_node_is_held_and_says_so() -> None:
    async with scene(*nodes(1)) as stage:
        await asyncio.sleep(10)
        stage.e.software.inject("gpu-1", "refuse")
        stage.apply(MIXED, rollout=BACK)
        held = await stage.phase("gpu-1", "Failed")
        assert "nothing was proven on the node before" in held["message"]
        await asyncio.sleep(HOUR)
        assert stage.cordoned("gpu-1")
        assert not goes_back(stage)


@virtually
async def test_where_the_way_back_fails_too_the_node_is_held() -> None:
    async with scene(*nodes(1)) as stage:
        await fails(stage)
        await stage.e.until(lambda: goes_back(stage), "the way back", HOUR)
        stage.e.software.inject("gpu-1", "refuse")
        held = await stage.phase("gpu-1", "Failed")
        assert "the way back to 7x1g.10gb failed too" in held["message"]
        mark = stage.mark()
        await asyncio.sleep(HOUR)
        assert stage.cordoned("gpu-1")
        assert not stage.node_writes(mark), "there is no second way back"
        stage.annotate("gpu-1", retry="again")
        await stage.ready()
        assert_as_wanted(stage, MIXED, "gpu-1")


@virtually
async def test_a_retry_tries_the_new_layout_again_and_goes_back_once_more_when_it_fails() -> None:
    async with scene(*nodes(1)) as stage:
        await fails(stage)
        await stage.reason("gpu-1", "RolledBack")
        stage.annotate("gpu-1", retry="1")
        await stage.fenced("gpu-1", "actuating")
        await stage.released("gpu-1")
        assert_as_wanted(stage, OTHER_MIXED, "gpu-1")
        stage.e.software.inject("gpu-1", "accept")
        stage.annotate("gpu-1", retry="2")
        await stage.ready()
        assert_as_wanted(stage, MIXED, "gpu-1")


@virtually
async def test_another_generation_repairs_a_node_that_went_back() -> None:
    async with scene(*nodes(1)) as stage:
        await fails(stage)
        await stage.reason("gpu-1", "RolledBack")
        stage.apply(SINGLE, rollout=BACK)
        await stage.ready()
        assert_as_wanted(stage, SINGLE, "gpu-1")


@virtually
async def test_an_edit_turns_a_node_round_that_is_on_its_way_back() -> None:
    async with scene(*nodes(1)) as stage:
        await fails(stage)
        await stage.e.until(lambda: goes_back(stage), "the way back", HOUR)
        stage.apply(SINGLE, rollout=BACK)
        await stage.ready()
        assert_as_wanted(stage, SINGLE, "gpu-1")


@pytest.mark.parametrize("deed", ["deleted", "paused"])
@virtually
async def test_a_policy_that_is_deleted_or_paused_meanwhile_does_not_send_the_node_forward_again(
    deed: str,
) -> None:
    """Both give it another generation, though nobody asks for the layout that failed."""
    async with scene(*nodes(1)) as stage:
        await fails(stage)
        await stage.e.until(lambda: runs_back(stage), "the run that leads back", HOUR)
        if deed == "deleted":
            stage.e.cluster.delete(POLICIES, "pool-b")
        else:
            stage.apply(MIXED, rollout={**BACK, "paused": True})
        await stage.e.until(lambda: stage.fence("gpu-1") is None or not goes_back(stage), "the proof", HOUR)
        assert stage.fence("gpu-1") is None
        assert not stage.cordoned("gpu-1")
        assert difference(OTHER_MIXED, stage.e.node("gpu-1"), stage.e.software.nodes["gpu-1"]) == ""


@virtually
async def test_a_rolled_back_node_halts_the_others_and_alone_follows_its_retry() -> None:
    async with scene(*nodes(3)) as stage:
        stage.apply(OTHER_MIXED, rollout=at_once(3))
        await stage.ready()
        for name in ("gpu-1", "gpu-2", "gpu-3"):
            stage.e.software.inject(name, "refuse")
        stage.apply(MIXED, rollout=BACK)
        first = await stage.any_fenced()
        others = sorted({"gpu-1", "gpu-2", "gpu-3"} - {first})
        await stage.reason(first, "RolledBack")
        for name in others:
            assert (await stage.reason(name, "Halted"))["phase"] == "Blocked"
        mark = stage.mark()
        stage.e.software.inject(first, "accept")
        stage.annotate(first, retry="again")
        await stage.phase(first, "Synced")
        await asyncio.sleep(600)
        assert set(stage.node_writes(mark)) == {first}
        assert [stage.transition(name)["reason"] for name in others] == ["Halted", "Halted"]


@virtually
async def test_a_failure_of_a_failed_node_with_more_allowed_lets_the_others_go_on_while_it_went_back() -> (
    None
):
    async with scene(*nodes(2)) as stage:
        stage.apply(OTHER_MIXED, rollout=at_once(2))
        await stage.ready()
        stage.e.software.inject("gpu-1", "refuse")
        stage.apply(MIXED, rollout={**BACK, "maxFailures": 2})
        await stage.reason("gpu-1", "RolledBack")
        await stage.phase("gpu-2", "Synced")
        assert_as_wanted(stage, OTHER_MIXED, "gpu-1")
        assert_as_wanted(stage, MIXED, "gpu-2")


@virtually
async def test_pods_of_the_old_layout_come_back_to_a_node_that_went_back() -> None:
    async with scene(*nodes(1), workloads=(Workload("free", 1),)) as stage:
        stage.apply(FULL)
        await stage.ready()
        await stage.running("free", 1)
        stage.e.software.inject("gpu-1", "refuse")
        stage.apply(MIXED, rollout=BACK, drain={"strandedPods": "Allow"})
        await stage.reason("gpu-1", "RolledBack")
        await stage.running("free", 1)


@virtually
async def test_the_entries_of_the_old_layout_stay_while_a_node_may_go_back_to_them() -> None:
    """The policy that asked for it asks for something else by now; only the proof on the Node names it."""
    async with scene(*nodes(1)) as stage:
        await fails(stage)
        await stage.e.until(lambda: goes_back(stage), "the way back", HOUR)
        for name in ("gpusharing-device-plugin", "gpusharing-mig-parted"):
            stage.e.cluster.delete(CONFIG_MAPS, name, "gpu-operator")
        await stage.reason("gpu-1", "RolledBack")
        assert_as_wanted(stage, OTHER_MIXED, "gpu-1")


@virtually
async def test_a_node_that_is_away_is_not_turned_back_and_one_that_comes_back_proven_is_given_back() -> None:
    """Nobody knows what it has become: a result counts more than the clock."""
    async with scene(*nodes(1)) as stage:
        stage.apply(OTHER_MIXED)
        await stage.ready()
        stage.apply(MIXED, rollout=BACK)
        await stage.fenced("gpu-1", "actuating")
        ready(stage, "False")
        held = await stage.phase("gpu-1", "Failed", seconds=2 * HOUR)
        assert "once the state of the node is known" in held["message"]
        assert not goes_back(stage)
        ready(stage, "True")
        await stage.ready()
        assert_as_wanted(stage, MIXED, "gpu-1")


def ready(stage: Scene, status: str) -> None:
    """The kubelet comes or goes."""
    stage.e.cluster.patch(
        NODES,
        "gpu-1",
        {"status": {"conditions": [{"type": "Ready", "status": status}]}},
        subresource="status",
    )


@virtually
async def test_by_default_a_failed_node_is_held() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(OTHER_MIXED)
        await stage.ready()
        stage.e.software.inject("gpu-1", "refuse")
        stage.apply(MIXED)
        held = await stage.phase("gpu-1", "Failed")
        assert "onFailure" not in held["message"]
        await asyncio.sleep(HOUR)
        assert stage.cordoned("gpu-1")
        assert stage.labels("gpu-1")[names.LABEL_MIG_STATE] == "failed"
