"""drain.onTimeout ForceDelete with the whole operator: who is deleted when, and what a failure of it holds up."""

import asyncio
from datetime import timedelta

import pytest
from tests.embedded.scene import HOUR, SLICED, gpu_pod, nodes, open_scene, pdb
from tests.embedded.test_drain import LLM, busy
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.kube.client import JSON, PODS
from gpusharing.kube.errors import Forbidden, Unavailable

FORCED: JSON = {"onTimeout": "ForceDelete", "timeout": "5m", "strandedPods": "Allow"}
NEVER = pdb("keep", "llm", minAvailable=2)
"""It allows nothing: both pods must stay."""


@virtually
async def test_what_a_budget_keeps_is_evicted_for_as_long_as_there_is_time_and_then_deleted() -> None:
    async with open_scene(*nodes(1), workloads=[LLM], budgets=[NEVER], force_delete=True) as scene:
        await busy(scene)
        end = (await scene.begin(SLICED, drain=FORCED)).deadline
        transition = await scene.reason("gpu-1", "PDBNeverAllows")
        assert transition["phase"] == "Draining"
        await scene.e.until(lambda: len(scene.deleted()) == 2, "the deletions", HOUR)
        assert timedelta(seconds=30) <= end - virtual_now() <= timedelta(seconds=41)
        transition = await scene.reason("gpu-1", "ForceDelete")
        assert "default/llm-" in transition["culprit"]
        await scene.ready()
        assert scene.evicted() == []
        assert scene.events()["PodsForceDeleted"] >= 1
        assert (scene.events()["PodForceDeleted"], scene.events()["PodEvicted"]) == (2, 0)
        assert scene.events()["ChangeGivenUp"] == 0


@virtually
async def test_without_the_right_the_node_is_not_cordoned_and_the_policy_says_so_with_the_command() -> None:
    async with open_scene(*nodes(1), workloads=[LLM], budgets=[NEVER]) as scene:
        await busy(scene)
        await scene.reach(SLICED, drain=FORCED, reason="PDBNeverAllows")
        assert not scene.cordoned("gpu-1")
        row = await scene.until_condition("Accepted", "True", "ForceDeleteOff")
        assert "--set forceDelete=true" in row["message"]
        await asyncio.sleep(HOUR)
        assert scene.deleted() == []
        assert not scene.cordoned("gpu-1")


@pytest.mark.parametrize(
    "error", [Forbidden("not allowed to delete pods"), Unavailable("timed out")], ids=["refused", "no answer"]
)
@virtually
async def test_a_deletion_that_fails_for_ever_is_named_and_its_node_alone_is_given_back(error: Exception) -> None:
    async with open_scene(*nodes(2), workloads=[LLM], budgets=[NEVER], force_delete=True) as scene:
        node = await busy(scene)
        scene.e.cluster.faults.fail("delete", PODS, error, times=1000, identity="operator")
        scene.apply(SLICED, drain=FORCED, rollout={"maxUnavailable": 2})
        reason = "Forbidden" if isinstance(error, Forbidden) else "ForceDeleteFailed"

        def told() -> bool:
            lines = scene.transition(node).get("blockers", ())
            return any(line.startswith(reason) and str(error) in line for line in lines)

        await scene.e.until(told, reason, HOUR)
        await scene.released(node)
        assert not scene.cordoned(node)
        assert scene.deleted() == []
        other = next(name for name in ("gpu-1", "gpu-2") if name != node)
        assert (await scene.phase(other, "Synced"))["reason"] == "Synced"
        await scene.e.until(lambda: scene.events()["ChangeGivenUp"] == 1, "the event", 60)


@virtually
async def test_a_pod_that_never_ends_is_named_and_holds_its_node_to_the_end_and_no_longer() -> None:
    async with open_scene(*nodes(1), force_delete=True, budgets=[pdb("keep", "db", minAvailable=1)]) as scene:
        held = {"labels": {"app": "db"}, "finalizers": ["example.com/keep"]}
        scene.e.cluster.add(PODS, gpu_pod("db-0", "gpu-1", metadata=held))
        end = (await scene.begin(SLICED, drain={**FORCED, "unmanagedPods": "Evict"})).deadline
        await scene.released("gpu-1")
        assert timedelta(seconds=0) < virtual_now() - end <= timedelta(seconds=70)
        assert not scene.cordoned("gpu-1")
        assert scene.deleted() == ["db-0"]
        given_up = await scene.reason("gpu-1", "Deferred")
        assert "DrainTimeout" in given_up["message"]


@pytest.mark.parametrize("down", [5, 600], ids=["for a moment", "past the end"])
@virtually
async def test_an_operator_that_died_after_the_deletion_deletes_nobody_twice_and_no_successor(down: int) -> None:
    async with open_scene(*nodes(1), workloads=[LLM], budgets=[NEVER], force_delete=True) as scene:
        await busy(scene)
        await scene.begin(SLICED, drain=FORCED)
        await scene.e.until(lambda: len(scene.deleted()) == 2, "the deletions", HOUR)
        await scene.e.kill_operator()
        await asyncio.sleep(down)
        scene.e.start_operator()
        await scene.ready(seconds=HOUR)
        assert len(scene.deleted()) == len(set(scene.deleted()))
        if down < 60:
            assert len(scene.deleted()) == 2


@virtually
async def test_nobody_is_deleted_by_an_operator_that_comes_back_too_late_for_the_grace_period() -> None:
    async with open_scene(*nodes(1), force_delete=True, budgets=[pdb("keep", "db", minAvailable=1)]) as scene:
        slow = gpu_pod("db-0", "gpu-1", metadata={"labels": {"app": "db"}}, spec={"terminationGracePeriodSeconds": 200})
        scene.e.cluster.add(PODS, slow)
        end = (await scene.begin(SLICED, drain={**FORCED, "unmanagedPods": "Evict"})).deadline
        await scene.e.kill_operator()
        await asyncio.sleep((end - virtual_now()).total_seconds() - 100)
        scene.e.start_operator()
        await scene.released("gpu-1")
        assert virtual_now() >= end
        assert scene.deleted() == []
        assert not scene.cordoned("gpu-1")
        assert "deletionTimestamp" not in scene.e.cluster.get(PODS, "db-0", "default")["metadata"]


@virtually
async def test_nobody_is_deleted_while_a_pod_stays_whatever_is_deleted() -> None:
    async with open_scene(*nodes(1), workloads=[LLM], budgets=[NEVER], force_delete=True) as scene:
        await busy(scene)
        await scene.begin(SLICED, drain=FORCED)
        marked = {"metadata": {"annotations": {"gpusharing.dev/do-not-disrupt": "true"}}}
        scene.e.cluster.patch(PODS, scene.pods("llm")[0]["metadata"]["name"], marked, "default")
        await scene.released("gpu-1")
        assert scene.deleted() == []
        assert not scene.cordoned("gpu-1")
