"""A member that must stay keeps its whole gang to the end of a drain, not only before it: from being evicted, and from being deleted by force. What is told of it (drain/standing.py) names the gang and the member."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.build import (
    JOB,
    NOW,
    at,
    make_cluster_policy,
    make_memory,
    make_pdb,
    make_pod,
    make_policy,
    make_scope,
    make_work,
)
from tests.planning.cases import FULL, pass_time, pool_of
from tests.planning.gangs import make_gang, make_gang_view
from tests.planning.test_gangs import GANG, HERE, blockers, sharing
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policy import Drain
from gpusharing.planning.drain.plan import DrainPlan, plan_drain
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.snapshot.actions import FenceNode, ForceDelete
from gpusharing.planning.snapshot.podviews import GangView, NodeWork, PodView
from gpusharing.planning.vocabulary.reasons import Reason

MARK = {names.ANNOTATION_DO_NOT_DISRUPT: "true"}
MARKED = make_pod("rank-1", marks=MARK, gang=GANG)
ALONE = make_pod("alone")
LEADS: dict[str, Any] = {"rules": [{"behavior": "Block", "podSelector": {"matchLabels": {"role": "lead"}}}]}


def drained(work: NodeWork, seconds: float = 600, **options: Any) -> DrainPlan:
    scope = make_scope(cordoned_at=at(0), node="c")
    found = find_standings(work, Drain.model_validate(options), at(seconds), scope=scope)
    return plan_drain(found, at(seconds))


def evicted(plan: DrainPlan) -> list[str]:
    return [pod.name for pod in plan.evict]


def beside(member: PodView, node: str = "d") -> NodeWork:
    """Rank 0 and a pod of no gang on c, and this member on some node."""
    here = (HERE, ALONE, member) if node == "c" else (HERE, ALONE)
    members = {"c": [HERE, member]} if node == "c" else {"c": [HERE], node: [member]}
    return make_work(*here, gangs=(make_gang_view(members),))


KEEPS: Mapping[str, tuple[PodView, str, dict[str, Any], Reason]] = {
    "somebody asks not to disturb it": (MARKED, "d", {}, Reason.DO_NOT_DISRUPT),
    "and it holds no GPU": (replace(MARKED, resources={}), "d", {}, Reason.DO_NOT_DISRUPT),
    "a rule keeps it": (make_pod("rank-1", labels={"role": "lead"}, gang=GANG), "d", LEADS, Reason.RULE_BLOCKS),
    "nobody would start it again": (make_pod("rank-1", owner=None, gang=GANG), "d", {}, Reason.UNMANAGED),
    "it is on the same node": (MARKED, "c", {}, Reason.DO_NOT_DISRUPT),
    "it is on the same node and holds no GPU": (replace(MARKED, resources={}), "c", {}, Reason.DO_NOT_DISRUPT),
}  # fmt: skip


@pytest.mark.parametrize(("member", "node", "options", "reason"), KEEPS.values(), ids=KEEPS.keys())
def test_nobody_of_a_gang_is_evicted_while_a_member_must_stay(
    member: PodView, node: str, options: dict[str, Any], reason: Reason
) -> None:
    plan = drained(beside(member, node), **options)
    assert evicted(plan) == ["alone"]
    (found,) = plan.blockers
    assert (found.reason, found.pods) == (reason, ("team-a/rank-1",))
    mark = 'gpusharing.dev/do-not-disrupt is "true"' if member.marks else ""
    if node == "d":
        assert not lacks(found.message, "JobSet team-a/train", "2 pods (1 on c, 1 on d)", "Runs on d", mark)


GOES: Mapping[str, tuple[PodView, str]] = {
    "it is leaving": (replace(MARKED, deleted_at=at(605)), "d"),
    "it has finished": (replace(MARKED, phase="Succeeded"), "d"),
    "it runs nowhere yet": (replace(MARKED, phase="Pending"), ""),
    "it belongs to another gang": (replace(MARKED, gang=make_gang("other")), "c"),
    "its time is over": (replace(MARKED, marks=((names.ANNOTATION_DO_NOT_DISRUPT, "5m"),)), "d"),
}


@pytest.mark.parametrize(("member", "node"), GOES.values(), ids=GOES.keys())
def test_a_gang_is_evicted_although_a_member_was_marked_when(member: PodView, node: str) -> None:
    assert evicted(drained(beside(member, node))) == ["alone", "rank-0"]


def test_a_mark_that_ends_by_itself_is_looked_at_again_when_it_does() -> None:
    member = replace(MARKED, marks=((names.ANNOTATION_DO_NOT_DISRUPT, "11m"),))
    plan = drained(beside(member))
    assert (evicted(plan), plan.next_wake) == (["alone"], at(660))
    assert evicted(drained(beside(member), 660)) == ["alone", "rank-0"]


def test_a_gang_of_which_no_pod_is_left_to_go_is_not_told_about() -> None:
    leaving = replace(HERE, deleted_at=at(630))
    work = make_work(leaving, ALONE, gangs=(make_gang_view({"c": [leaving], "d": [MARKED]}),))
    plan = drained(work)
    assert (evicted(plan), plan.blockers) == (["alone"], ())


def test_a_member_whose_mark_has_ended_is_given_the_time_of_a_job_again() -> None:
    marks = ((names.ANNOTATION_DO_NOT_DISRUPT, "5m"),)
    job = make_pod("rank-1", owner=JOB, restarts=False, gang=GANG)
    plan = drained(beside(replace(job, marks=marks)), jobs={"timeout": "1h"})
    assert ([pod.name for pod in plan.jobs], plan.jobs_until) == (["rank-0"], at(3600))


def test_before_the_cordon_a_member_of_the_same_node_counts_though_it_holds_no_gpu() -> None:
    launcher = replace(MARKED, resources={})
    work = make_work(HERE, launcher, gangs=(make_gang_view({"c": [HERE, launcher]}),))
    (found,) = blockers(work)
    assert (found.reason, found.pods) == (Reason.DO_NOT_DISRUPT, ("team-a/rank-1",))
    with_gpu = make_work(HERE, MARKED, gangs=(make_gang_view({"c": [HERE, MARKED]}),))
    assert blockers(with_gpu) == (), "the node's own pods are looked at by themselves"


# --- force ------------------------------------------------------------------------------------------------------

END = at(20)
"""Of the drain: the grace period of a pod that is deleted now would be over after it."""


def forced(work: NodeWork, *refused: PodView) -> DrainPlan:
    """One pass near the end of a drain that deletes what is left. `refused`: by a budget."""
    memory = replace(make_memory(Reason.PDB, next_try=at(30)), asked_at=at(-10))
    work = replace(work, pdbs=(make_pdb(allowed=0),), evictions={pod.uid: memory for pod in refused})
    scope = replace(make_scope(cordoned_at=at(-600), node="c"), forces=True)
    drain = Drain.model_validate({"onTimeout": "ForceDelete"})
    return plan_drain(find_standings(work, drain, NOW, scope=scope), NOW, END)


def test_nobody_is_deleted_by_force_nor_asked_out_of_turn_while_a_member_of_a_gang_must_stay() -> None:
    free = sharing(make_pod("rank-1", gang=GANG))
    assert [pod.name for pod in forced(free, HERE).delete] == ["rank-0"]
    assert evicted(forced(free)) == ["rank-0"]
    kept = sharing(MARKED)
    assert (forced(kept, HERE).delete, forced(kept, HERE).evict, forced(kept).evict) == ((), (), ())
    assert forced(beside(MARKED), HERE, ALONE).delete == (), "the node would not be empty"


def test_nobody_is_deleted_by_force_while_nobody_knows_the_members_of_its_gang() -> None:
    work = make_work(HERE, gangs=(GangView(GANG, error="trouble"),))
    assert (forced(work, HERE).delete, forced(work).evict) == ((), ())


# --- whole ways -------------------------------------------------------------------------------------------------

RANK = "a rank of a JobSet"
REFUSED_FIRST: dict[str, Any] = {"strandedPods": "Allow", "jobs": {"timeout": "1s", "onTimeout": "Evict"}}
JOBS: dict[str, Any] = {"strandedPods": "Allow", "jobs": {"timeout": "60s", "onTimeout": "Evict"}}
FORCES: dict[str, Any] = {**REFUSED_FIRST, "onTimeout": "ForceDelete", "timeout": "90s"}


def a_gang_on_two_nodes(drain: dict[str, Any], *, ends: bool, refusing: bool) -> World:
    world = pool_of(2, FULL)
    for name, pods in world.pods.items():
        assert world.add_pod(name, RANK)
        world.pods[name] = {uid: replace(pod, restarts=not ends) for uid, pod in pods.items()}
    world.refusing, world.settings = refusing, replace(world.settings, force_delete=True)
    world.set_policy(make_policy(drain=drain, rollout={"maxUnavailable": 2}))
    return world


def waits_for_jobs(world: World) -> bool:
    return all(one.phase is Phase.WAITING_FOR_JOBS for one in world.plan().verdicts.values())


def was_refused(world: World) -> bool:
    return len(world.refused) == 2


WAYS: Mapping[str, tuple[dict[str, Any], Callable[[World], bool]]] = {
    "while jobs have their time": (JOBS, waits_for_jobs),
    "while a budget refuses": (REFUSED_FIRST, was_refused),
    "before what is left is deleted": (FORCES, was_refused),
}


@pytest.mark.parametrize(("drain", "until"), WAYS.values(), ids=WAYS.keys())
def test_a_member_that_somebody_protects_during_the_drain_outlives_it_with_all_of_its_gang(
    drain: dict[str, Any], until: Callable[[World], bool]
) -> None:
    world = a_gang_on_two_nodes(drain, ends=drain is JOBS, refusing=drain is not JOBS)
    pass_time(world, 100, until=until)
    assert until(world)
    first, other = sorted(world.nodes)
    ((uid, pod),) = world.pods[first].items()
    world.pods[first][uid] = replace(pod, marks=tuple(MARK.items()))
    pass_time(world, 75)
    if drain is not FORCES:
        verdict = world.plan().verdicts[other]
        assert (verdict.phase, verdict.reason) == (Phase.DRAINING, Reason.DO_NOT_DISRUPT)
        assert f"DoNotDisrupt: Pod {pod.ref}. " in verdict.message
        assert not lacks(verdict.message, "JobSet team-a/train", "2 pods")
        assert f"Runs on {first}. Annotation" in verdict.message
    world.refusing = False
    pass_time(world, 100)
    assert not world.evicted
    assert not [action for action in world.done if isinstance(action, ForceDelete)]
    world.pods[first][uid] = pod
    world.settle()
    assert {one.phase for one in world.plan().verdicts.values()} == {Phase.SYNCED}


def test_before_a_reboot_a_rank_without_a_gpu_stays_while_a_rank_elsewhere_asks_not_to_be_disturbed() -> None:
    world = pool_of(2, FULL)
    world.stack = replace(world.stack, cluster_policy=make_cluster_policy(with_reboot=True))
    assert world.add_pod("n0", "a rank without a GPU")
    assert world.add_pod("n1", RANK)
    ((uid, pod),) = world.pods["n1"].items()
    world.pods["n1"][uid] = replace(pod, marks=tuple(MARK.items()))
    world.set_policy(make_policy(drain={"strandedPods": "Allow"}, rollout={"maxUnavailable": 2}))
    pass_time(world, 60)
    told = {name: (one.phase, one.disruption, one.reason) for name, one in world.plan().verdicts.items()}
    kept = (Phase.BLOCKED, DisruptionClass.REBOOT, Reason.DO_NOT_DISRUPT)
    assert told == {"n0": kept, "n1": kept}
    world.pods["n1"][uid] = pod
    world.settle()
    assert {one.phase for one in world.plan().verdicts.values()} == {Phase.SYNCED}
    waves = {one.fence.wave for one in world.done if isinstance(one, FenceNode)}
    assert len(waves) == 1, "both change as one"
    assert waves != {""}


# --- two policies -----------------------------------------------------------------------------------------------

NEVER_EVICTS = Drain.model_validate({"jobs": {"timeout": "2h", "onTimeout": "Abort"}})
EVICTS: dict[str, Any] = {"jobs": {"timeout": "1h", "onTimeout": "Evict"}}


def ruled(member: PodView, drain: Drain) -> NodeWork:
    """Rank 0 on c, and this member on d, whose policy is another one."""
    work = sharing(member)
    (view,) = work.gangs
    members = tuple(replace(one, policy="pool-c", rules=drain) if one.node == "d" else one for one in view.members)
    return replace(work, gangs=(replace(view, members=members),))


def test_the_policy_of_the_members_own_node_may_keep_it_before_and_during_a_drain() -> None:
    lead = make_pod("rank-1", labels={"role": "lead"}, gang=GANG)
    work = ruled(lead, Drain.model_validate(LEADS))
    (before,), (during,) = blockers(work), drained(work).blockers
    assert (before.reason, before.pods) == (during.reason, during.pods)
    assert (before.reason, before.pods) == (Reason.RULE_BLOCKS, ("team-a/rank-1",))
    assert not lacks(before.message, "(1 on c, 1 on d)", "pool-c", "spec.drain.rules[0]", "Block")
    assert not lacks(during.message, "Runs on d", "pool-c", "spec.drain.rules[0]", "Block")
    assert evicted(drained(work)) == []
    assert (blockers(ruled(HERE, Drain())), evicted(drained(ruled(HERE, Drain())))) == ((), ["rank-0"])


def test_what_both_policies_keep_is_told_once_and_a_policy_that_is_laxer_allows_nothing() -> None:
    (found,) = blockers(ruled(MARKED, Drain()))
    assert "applies here" not in found.message
    (found,) = drained(ruled(MARKED, Drain.model_validate({"protectedPods": "Ignore"}))).blockers
    assert (found.reason, "applies here" in found.message) == (Reason.DO_NOT_DISRUPT, False)


def test_a_gang_gets_the_longest_time_of_both_policies_and_is_evicted_late_only_where_both_want_that() -> None:
    job = make_pod("rank-1", owner=JOB, restarts=False, gang=GANG)
    work = ruled(job, NEVER_EVICTS)
    assert drained(work, **EVICTS).jobs_until == at(7200)
    assert [pod.name for pod in drained(work, 7200, **EVICTS).overdue] == ["rank-0"]
    longer = ruled(job, Drain.model_validate({"jobs": {"timeout": "2h", "onTimeout": "Evict"}}))
    assert evicted(drained(longer, 7200, **EVICTS)) == ["rank-0"]


def test_a_gang_over_two_pools_is_not_ended_by_one_as_long_as_the_other_ones_policy_keeps_a_member() -> None:
    world = pool_of(1, FULL)
    label: dict[str, Any] = {"gpusharing.dev/pool": "c"}
    world.add_node("m0", **label)
    free: dict[str, Any] = {"nodeSelector": {"matchLabels": label}}
    keeps = {"rules": [{"podSelector": {"matchLabels": {"app": "llm"}}, "behavior": "Block"}]}
    world.set_policy(make_policy("pool-c", mode="Full", drain=keeps, **free))
    world.settle()
    assert all(world.add_pod(name, RANK) for name in world.nodes)
    world.set_policy(make_policy(drain={"strandedPods": "Allow"}))
    pass_time(world, 60)
    verdict = world.plan().verdicts["n0"]
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.RULE_BLOCKS)
    assert not lacks(verdict.message, "pool-c", "spec.drain.rules[0]", "Block")
    (preview,) = world.plan().memory.previews.values()
    assert [blocker.reason for blocker in preview.blockers] == [Reason.RULE_BLOCKS]
    world.set_policy(make_policy("pool-c", mode="Full", **free))
    world.settle()
    assert {one.phase for one in world.plan().verdicts.values()} == {Phase.SYNCED}
