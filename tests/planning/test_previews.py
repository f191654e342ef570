"""planning/pools/afterwards.py: what the nodes to go would disturb is named before they start, by few looks."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import NOW, ask_anew, at, make_fence, make_node, make_pod, make_policy, make_snapshot, make_work
from tests.planning.budgets import Budget
from tests.planning.cases import FULL, edited, make_case, make_member, pool_of
from tests.planning.drainpass import roomy
from tests.planning.ganging import make_gang, make_gang_view
from tests.planning.podkinds import NAMESPACE
from tests.planning.test_guard import PoisonedPods
from tests.planning.told import verdict
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.pools.afterwards import AGAIN, MAX_NODES, find_previews
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.snapshot.memory import LOOKS, PassMemory, Preview
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.records import SpecVersion
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.vocabulary.findings import Blocker
from gpusharing.planning.vocabulary.reasons import Reason

POLL = PlanSettings().poll
POLICY = make_policy(generation=3)
NOTHING: frozenset[str] = frozenset()


def held(count: int, reason: Reason = Reason.APPROVAL_NEEDED, **fields: Any) -> dict[str, Pool]:
    pool = Pool(POLICY, candidates=[make_case()])
    for index in range(count):
        name = f"n{index:02}"
        told = verdict(Phase.PENDING, reason, name, disruption=DisruptionClass.RESET, **fields)
        pool.count(make_member(make_node(name), told))
    return {"pool-b": pool}


def look(pools: dict[str, Pool], previews: dict[str, Preview], work: dict[str, NodeWork], seconds: float = 0) -> Any:
    verdicts = {one.node.name: one.verdict for one in pools["pool-b"].members}
    snapshot = replace(make_snapshot([], [POLICY]), memory=PassMemory(previews=previews), work=work)
    return find_previews(pools, verdicts, snapshot, roomy(), at(seconds))


def test_no_more_nodes_are_looked_at_than_a_plan_names_and_few_at_a_time() -> None:
    pools, seconds = held(MAX_NODES + 5), 0.0
    known: dict[str, Preview] = {}
    rounds = []
    while wanted := look(pools, known, {}, seconds)[1]:
        rounds.append(len(wanted))
        work = {name: NodeWork((), (), at(seconds)) for name in wanted}
        known = dict(look(pools, known, work, seconds)[0])
        assert not look(pools, known, {}, seconds)[1], "no further one within this poll"
        seconds += POLL
    assert rounds == [LOOKS] * (MAX_NODES // LOOKS)
    assert sorted(known) == [f"n{index:02}" for index in range(MAX_NODES)]
    assert look(pools, known, {}, seconds)[2] is None


def test_a_node_is_looked_at_again_after_a_while_the_oldest_look_first() -> None:
    pools = held(LOOKS + 1)
    known = {f"n{index:02}": Preview(POLICY.version, at(-index)) for index in range(LOOKS + 1)}
    again = AGAIN.total_seconds()
    assert look(pools, known, {}, again - LOOKS - 1)[1] == NOTHING
    found = look(pools, known, {}, again)
    assert found[1] == {f"n{index:02}" for index in range(1, LOOKS + 1)}


@pytest.mark.parametrize(
    "other", [replace(POLICY, uid="other").version, ask_anew(POLICY).version], ids=["policy", "edit"]
)
def test_what_was_seen_for_another_plan_does_not_count(other: SpecVersion) -> None:
    before = Preview(other, NOW)
    found = look(held(1), {"n00": before}, {})
    assert found[:2] == ({}, {"n00"})


WAITS = (Phase.PENDING, Phase.PREFLIGHT, Phase.BLOCKED)


@pytest.mark.parametrize("phase", Phase, ids=str)
def test_only_what_waits_and_would_be_drained_is_looked_at(phase: Phase) -> None:
    pool = Pool(POLICY)
    told = verdict(phase, Reason.BUDGET_FULL, "n00", disruption=DisruptionClass.RESET)
    pool.count(make_member(make_node("n00"), told))
    assert look({"pool-b": pool}, {}, {})[1] == ({"n00"} if phase in WAITS else NOTHING)


NOT_TO_GO: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "nobody would have to leave": ({"disruption": DisruptionClass.PLUGIN_RESTART}, {}, {}),
    "its change has begun": ({}, {"fence": make_fence()}, {}),
    "its policy is being deleted": ({}, {}, {"deleting": True}),
}


@pytest.mark.parametrize(("verdicts", "node", "policy"), NOT_TO_GO.values(), ids=NOT_TO_GO)
def test_a_node_is_not_looked_at_if(verdicts: dict[str, Any], node: dict[str, Any], policy: dict[str, Any]) -> None:
    pool = Pool(replace(POLICY, **policy))
    waits = {"disruption": DisruptionClass.RESET, **verdicts}
    told = verdict(Phase.BLOCKED, Reason.BUDGET_FULL, "n00", **waits)
    pool.count(make_member(make_node("n00", **node), told))
    assert look({"pool-b": pool}, {}, {})[1] == NOTHING


def test_a_node_that_its_pods_block_is_looked_at_for_that_reason_alone() -> None:
    """Its looks have a pace of their own (test_looks.py); what they find is shown."""
    blocked = {"blockers": (Blocker(Reason.UNMANAGED, ("team-a/db-0",)),)}
    for before in ({}, {"n00": Preview(POLICY.version, at(-AGAIN.total_seconds()))}):
        assert look(held(1, Reason.UNMANAGED, **blocked), before, {})[1] == NOTHING
    work = {"n00": make_work(make_pod("db-0", owner=None))}
    (told,) = look(held(1, Reason.UNMANAGED, **blocked), {}, work)[0]["n00"].blockers
    assert told.pods == ("team-a/db-0",)


def test_the_preview_of_a_node_that_is_not_ready_says_so() -> None:
    node, pool = make_node("n00", ready=False), Pool(POLICY)
    told = verdict(Phase.BLOCKED, Reason.NODE_NOT_READY, "n00", disruption=DisruptionClass.RESET)
    pool.count(make_member(node, told))
    snapshot = replace(make_snapshot([node], [POLICY]), work={"n00": make_work(make_pod("train-0"))})
    blockers = find_previews({"pool-b": pool}, {"n00": told}, snapshot, roomy(), at(0))[0]["n00"].blockers
    assert Reason.NODE_UNREACHABLE in {blocker.reason for blocker in blockers}


def test_a_node_that_starts_in_this_pass_is_not_looked_at() -> None:
    pools = held(1)
    begins = verdict(Phase.CORDONED, Reason.SETTLING, "n00", disruption=DisruptionClass.RESET)
    snapshot = make_snapshot([], [POLICY])
    assert find_previews(pools, {"n00": begins}, snapshot, roomy(), NOW)[1] == NOTHING


def test_a_list_that_fails_for_ever_is_told_and_asked_again_no_sooner_than_others() -> None:
    work = {"n00": NodeWork((), (), NOW, error="403 Forbidden")}
    found = look(held(1), {}, work)
    (blocker,) = found[0]["n00"].blockers
    assert blocker.reason is Reason.LIST_FAILED
    assert "403 Forbidden" in blocker.message
    assert found[1:] == (NOTHING, None)
    assert look(held(1), dict(found[0]), {}, AGAIN.total_seconds() - 1)[1] == NOTHING


def test_pods_that_nobody_can_judge_are_told_and_keep_no_other_from_being_shown() -> None:
    work = {"n00": replace(make_work(), pods=PoisonedPods([make_pod()])), "n01": make_work(make_pod())}
    found = look(held(2), {}, work)
    (blocker,) = found[0]["n00"].blockers
    assert (blocker.reason, blocker.message[:13]) == (Reason.NODE_NOT_JUDGED, "OverflowError")
    assert found[0]["n01"].pods == ("team-a/llm-0",)
    assert found[1] == NOTHING


# --- as a whole ------------------------------------------------------------------------------------------------


def waiting(**rollout: Any) -> World:
    """Two nodes with pods of one budget, whose policy wants another mode and may not start."""
    world = pool_of(2, FULL)
    for name in ("n0", "n1"):
        world.add_pod(name)
    world.budgets = (Budget("llm", "llm", min_available=2),)
    world.set_policy(make_policy(mode="TimeSlicing", rollout=rollout))
    return world


def plan_of(world: World) -> dict[str, Any]:
    plan = world.plan()
    told = policy_status(world.policies[0], plan, world.snapshot(), {}, world.now)["plan"]
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize(
    ("rollout", "reason"),
    [
        ({"approval": "Manual"}, Reason.APPROVAL_NEEDED),
        ({"paused": True}, Reason.PAUSED),
        ({"maxUnavailable": 0}, Reason.FROZEN),
        ({"windows": [{"schedule": "0 2 * * 0", "duration": "4h"}]}, Reason.WINDOW_CLOSED),
    ],
    ids=["approval", "paused", "frozen", "window"],
)
def test_the_plan_names_pods_budgets_and_blockers_before_anybody_may_start(
    rollout: dict[str, Any], reason: Reason
) -> None:
    world = waiting(**rollout)
    for _ in range(20):  # the configuration reaches the node first
        world.step()
        world.now += timedelta(seconds=1)
    assert {v.reason for v in world.plan().verdicts.values()} == {reason}
    told = plan_of(world)
    assert told["podNames"] == sorted(pod.ref for pod in world.everywhere())
    assert told["budgets"] == [f"{NAMESPACE}/llm"]
    (line,) = told["blockers"]
    assert line.startswith(f"PDB {NAMESPACE}/llm: Pods ")
    assert told["gangs"] == []


def test_pods_that_went_are_seen_after_a_while_and_an_edit_asks_anew() -> None:
    world = waiting(approval="Manual")
    world.settle()
    world.pods["n0"].clear()
    assert len(plan_of(world)["podNames"]) == 2
    world.now += AGAIN
    world.step()
    world.step()
    assert len(plan_of(world)["podNames"]) == 1
    world.set_policy(edited(world.policies[0], priority=5))
    assert world.plan().memory.previews == {}
    world.settle()
    assert len(plan_of(world)["podNames"]) == 1


def test_gangs_are_named_with_their_members() -> None:
    world = waiting(approval="Manual")
    pods = [replace(pod, gang=make_gang()) for pod in world.everywhere()]
    gang = make_gang_view({"n0": pods[:1], "n1": pods[1:]})
    work = {"n00": NodeWork(tuple(pods[:1]), (), NOW, gangs=(gang,))}
    (told,) = look(held(1), {}, work)[0]["n00"].gangs
    assert not lacks(told, "JobSet team-a/train", "2 pods (1 on n0, 1 on n1)")


def test_a_member_elsewhere_that_must_stay_is_named_with_its_gang() -> None:
    gang = make_gang()
    mine, bare = make_pod("rank-0", gang=gang), make_pod("rank-1", owner=None, gang=gang)
    view = make_gang_view({"n00": [mine], "n07": [bare]}, gang)
    found = look(held(1), {}, {"n00": make_work(mine, gangs=(view,))})[0]["n00"].blockers
    (blocker,) = (one for one in found if one.reason is Reason.UNMANAGED)
    assert blocker.pods == ("team-a/rank-1",)
    assert not lacks(blocker.message, "JobSet team-a/train", "2 pods (1 on n00, 1 on n07)")


def test_the_plan_names_the_pods_of_the_nodes_to_go_while_others_change() -> None:
    world = pool_of(3, FULL)
    for name in ("n0", "n1", "n2"):
        world.add_pod(name)
    world.budgets = (Budget("llm", "llm", min_available=0),)
    world.set_policy(make_policy(mode="TimeSlicing", rollout={"maxUnavailable": 1}))
    began = {pod.ref: name for name in world.nodes for pod in world.pods[name].values()}
    while len([name for name, node in world.nodes.items() if node.fence is not None]) < 1:
        world.step()
        world.now += timedelta(seconds=1)
    for _ in range(3):
        world.step()
        world.now += timedelta(seconds=1)
    (first,) = (name for name, node in world.nodes.items() if node.fence is not None)
    told = plan_of(world)
    assert told["podNames"] == sorted(ref for ref, name in began.items() if name != first)
    assert told["budgets"] == [f"{NAMESPACE}/llm"]


def test_what_is_remembered_goes_when_the_policy_asks_for_something_else() -> None:
    world = waiting(paused=True)
    world.settle()
    assert len(world.plan().memory.previews) == 2
    world.set_policy(ask_anew(world.policies[0]))
    assert world.plan().memory.previews == {}
