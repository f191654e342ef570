"""drain.onTimeout ForceDelete with the whole operator: who is deleted when, and what a failure of it holds up."""

import asyncio
from datetime import datetime, timedelta

import pytest
from hack.sim.workloads import Workload
from tests.embedded.scene import FULL, HOUR, SLICED, Scene, gpu_pod, nodes, pdb, scene
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.kube.client import JSON, PODS
from gpusharing.kube.errors import Forbidden, Unavailable

FORCED: JSON = {"onTimeout": "ForceDelete", "timeout": "5m", "strandedPods": "Allow"}
NEVER = pdb("keep", "llm", minAvailable=2)
"""It allows nothing: both pods must stay."""
LLM = Workload("llm", 2)


async def busy(stage: Scene) -> str:
    """Two pods under a budget that never allows; returns their node."""
    await stage.running("llm", 2)
    stage.apply(FULL)
    await stage.ready()
    return str(stage.pods("llm")[0]["spec"]["nodeName"])


def end_of(stage: Scene, node: str) -> datetime:
    fence = stage.fence(node)
    assert fence is not None
    return fence.deadline


@virtually
async def test_what_a_budget_keeps_is_evicted_for_as_long_as_there_is_time_and_then_deleted() -> None:
    async with scene(*nodes(1), workloads=[LLM], budgets=[NEVER], force_delete=True) as stage:
        node = await busy(stage)
        stage.apply(SLICED, drain=FORCED)
        await stage.fenced(node)
        transition = await stage.reason(node, "PDBNeverAllows")
        assert transition["phase"] == "Draining"
        end = end_of(stage, node)
        await stage.e.until(lambda: len(stage.deleted()) == 2, "the deletions", HOUR)
        assert timedelta(seconds=30) <= end - virtual_now() <= timedelta(seconds=41)
        transition = await stage.reason(node, "ForceDelete")
        assert "default/llm-" in transition["culprit"]
        await stage.ready()
        assert stage.evicted() == []
        assert stage.events()["PodsForceDeleted"] >= 1
        assert stage.events()["ChangeGivenUp"] == 0


@virtually
async def test_without_the_right_the_node_is_not_cordoned_and_the_policy_says_so_with_the_command() -> None:
    async with scene(*nodes(1), workloads=[LLM], budgets=[NEVER]) as stage:
        node = await busy(stage)
        stage.apply(SLICED, drain=FORCED)
        await stage.reason(node, "PDBNeverAllows")
        assert not stage.cordoned(node)
        row = await stage.until_condition("Accepted", "True", "ForceDeleteOff")
        assert "--set forceDelete=true" in row["message"]
        await asyncio.sleep(HOUR)
        assert stage.deleted() == []
        assert not stage.cordoned(node)


@pytest.mark.parametrize(
    "error", [Forbidden("no right to delete pods"), Unavailable("timed out")], ids=["refused", "no answer"]
)
@virtually
async def test_a_deletion_that_fails_for_ever_is_named_and_its_node_alone_is_given_back(
    error: Exception,
) -> None:
    async with scene(*nodes(2), workloads=[LLM], budgets=[NEVER], force_delete=True) as stage:
        node = await busy(stage)
        stage.e.cluster.faults.fail("delete", PODS, error, times=1000, identity="operator")
        stage.apply(SLICED, drain=FORCED, rollout={"maxUnavailable": 2})
        reason = "Forbidden" if isinstance(error, Forbidden) else "ForceDeleteFailed"

        def told() -> bool:
            lines = stage.transition(node).get("blockers", ())
            return any(line.startswith(reason) and str(error) in line for line in lines)

        await stage.e.until(told, reason, HOUR)
        await stage.released(node)
        assert not stage.cordoned(node)
        assert stage.deleted() == []
        other = next(name for name in ("gpu-1", "gpu-2") if name != node)
        assert (await stage.phase(other, "Synced"))["reason"] == "Synced"
        await stage.e.until(lambda: stage.events()["ChangeGivenUp"] == 1, "the event", 60)


@virtually
async def test_a_pod_that_never_ends_is_named_and_holds_its_node_to_the_end_and_no_longer() -> None:
    async with scene(*nodes(1), force_delete=True, budgets=[pdb("keep", "db", minAvailable=1)]) as stage:
        held = {"labels": {"app": "db"}, "finalizers": ["example.com/keep"]}
        stage.e.cluster.add(PODS, gpu_pod("db-0", "gpu-1", metadata=held))
        stage.apply(SLICED, drain={**FORCED, "unmanagedPods": "Evict"})
        await stage.fenced("gpu-1")
        end = end_of(stage, "gpu-1")
        await stage.released("gpu-1")
        assert timedelta(seconds=0) < virtual_now() - end <= timedelta(seconds=70)
        assert not stage.cordoned("gpu-1")
        assert stage.deleted() == ["db-0"]
        given_up = await stage.reason("gpu-1", "Deferred")
        assert "DrainTimeout" in given_up["message"]


@pytest.mark.parametrize("down", [5, 600], ids=["for a moment", "past the end"])
@virtually
async def test_an_operator_that_died_after_the_deletion_deletes_nobody_twice_and_no_successor(
    down: int,
) -> None:
    async with scene(*nodes(1), workloads=[LLM], budgets=[NEVER], force_delete=True) as stage:
        node = await busy(stage)
        stage.apply(SLICED, drain=FORCED)
        await stage.fenced(node)
        await stage.e.until(lambda: len(stage.deleted()) == 2, "the deletions", HOUR)
        await stage.e.kill_operator()
        await asyncio.sleep(down)
        stage.e.start_operator()
        await stage.ready(seconds=HOUR)
        assert len(stage.deleted()) == len(set(stage.deleted()))
        if down < 60:
            assert len(stage.deleted()) == 2


@virtually
async def test_nobody_is_deleted_by_an_operator_that_comes_back_too_late_for_the_grace_period() -> None:
    async with scene(*nodes(1), force_delete=True, budgets=[pdb("keep", "db", minAvailable=1)]) as stage:
        slow = gpu_pod(
            "db-0", "gpu-1", metadata={"labels": {"app": "db"}}, spec={"terminationGracePeriodSeconds": 200}
        )
        stage.e.cluster.add(PODS, slow)
        stage.apply(SLICED, drain={**FORCED, "unmanagedPods": "Evict"})
        await stage.fenced("gpu-1")
        end = end_of(stage, "gpu-1")
        await stage.e.kill_operator()
        await asyncio.sleep((end - virtual_now()).total_seconds() - 100)
        stage.e.start_operator()
        await stage.released("gpu-1")
        assert virtual_now() >= end
        assert stage.deleted() == []
        assert not stage.cordoned("gpu-1")
        assert "deletionTimestamp" not in stage.e.cluster.get(PODS, "db-0", "default")["metadata"]


@virtually
async def test_nobody_is_deleted_while_a_pod_stays_whatever_is_deleted() -> None:
    async with scene(*nodes(1), workloads=[LLM], budgets=[NEVER], force_delete=True) as stage:
        node = await busy(stage)
        stage.apply(SLICED, drain=FORCED)
        await stage.fenced(node)
        marked = {"metadata": {"annotations": {"gpusharing.dev/do-not-disrupt": "true"}}}
        stage.e.cluster.patch(PODS, stage.pods("llm")[0]["metadata"]["name"], marked, "default")
        await stage.released(node)
        assert stage.deleted() == []
        assert not stage.cordoned(node)
