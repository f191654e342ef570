"""A gang's rule is that of its strictest member, wherever that one runs; texts name the gang and where it is.
How long a drain waits for its members is told by drain/standing.py."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from tests.build import (
    JOB,
    NOW,
    at,
    make_fence,
    make_node,
    make_pdb,
    make_pod,
    make_policy,
    make_scope,
    make_snapshot,
    make_work,
)
from tests.planning.cases import FULL, MIXED, pass_time, pool_of
from tests.planning.drains import FENCE
from tests.planning.drains import fenced as drained
from tests.planning.gangs import make_gang, make_gang_view
from tests.planning.test_guard import Poisoned
from tests.planning.test_nodecases import PAUSED, STACK, terms
from tests.planning.test_pool import candidate, chosen, fenced
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policy import Drain
from gpusharing.api.times import NEVER as FOREVER
from gpusharing.api.validation import Problem
from gpusharing.planning.drain.plan import DrainPlan, ending_gangs, find_gang_blockers, name_gangs, plan_drain
from gpusharing.planning.drain.standing import describe_gang, explain_gangs, find_standings
from gpusharing.planning.pools.candidates import find_cost, find_mates
from gpusharing.planning.rollout import follow
from gpusharing.planning.snapshot.podviews import GangMember, GangView, NodeWork, PdbView, PodView
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.cases import with_rules
from gpusharing.planning.vocabulary.findings import Blocker, Finding, explain_blockers
from gpusharing.planning.vocabulary.reasons import Reason

GANG = make_gang()
SCOPE = make_scope(node="c")
HERE = make_pod("rank-0", gang=GANG)
NEVER = make_pdb("lead", match_labels={"role": "lead"}, allowed=0, expected=1, desired=1, current=1)


def sharing(*elsewhere: PodView, pdbs: tuple[PdbView, ...] = ()) -> NodeWork:
    view = make_gang_view({"c": [HERE], "d": list(elsewhere)})
    return make_work(HERE, pdbs=pdbs, gangs=(view,))


def blockers(work: NodeWork, options: Drain | None = None) -> tuple[Blocker, ...]:
    return find_gang_blockers(work, options or Drain(), NOW, SCOPE)


BARE, MATE = make_pod("rank-1", owner=None, gang=GANG), make_pod("rank-1", gang=GANG)
LEADER = replace(MATE, labels={"role": "lead"})
STRICTEST = {
    "nobody would start it again": (BARE, (), Reason.UNMANAGED),
    "nobody would start it again, though it holds no GPU": (replace(BARE, resources={}), (), Reason.UNMANAGED),
    "its budget never allows it": (LEADER, (NEVER,), Reason.PDB_NEVER_ALLOWS),
}


@pytest.mark.parametrize(("member", "pdbs", "reason"), STRICTEST.values(), ids=STRICTEST.keys())
def test_a_member_on_another_node_that_must_stay_keeps_this_node_from_starting(
    member: PodView, pdbs: tuple[PdbView, ...], reason: Reason
) -> None:
    (found,) = blockers(sharing(member, pdbs=pdbs))
    assert (found.reason, found.pods) == (reason, ("team-a/rank-1",))
    assert not lacks(found.message, "JobSet team-a/train", "2 pods (1 on c, 1 on d)")


def test_a_member_elsewhere_matters_to_a_rank_without_a_gpu_only_if_that_must_leave_too() -> None:
    launcher = make_pod("rank-0", resources={}, gang=GANG)
    work = make_work(launcher, gangs=(make_gang_view({"c": [launcher], "d": [BARE]}),))
    assert (ending_gangs(work, SCOPE), blockers(work)) == ((), ())
    (found,) = find_gang_blockers(work, Drain(), NOW, replace(SCOPE, all_pods=True))
    assert (found.reason, found.pods) == (Reason.UNMANAGED, ("team-a/rank-1",))
    case = candidate("c", work)
    assert (case.gangs, find_mates(case), find_cost(case, 0)) == ((), frozenset(), 0)
    reboots = drained(work=work, fence=replace(FENCE, disruption=DisruptionClass.REBOOT))
    assert (reboots.gangs, find_cost(reboots, 0)) == (work.gangs, 2)
    assert find_mates(reboots) == {"c", "d"}


FREE = {
    "it may go as well": MATE,
    "it is finished": replace(BARE, phase="Succeeded"),
    "it is leaving": replace(BARE, deleted_at=at(5)),
}


@pytest.mark.parametrize("member", FREE.values(), ids=FREE.keys())
def test_a_member_on_another_node_that_may_go_stops_nobody(member: PodView) -> None:
    assert blockers(sharing(member)) == ()


def test_the_options_of_the_change_hold_for_members_elsewhere_too() -> None:
    assert blockers(sharing(BARE), Drain.model_validate({"unmanagedPods": "Evict"})) == ()


def test_a_gang_whose_members_cannot_be_listed_is_not_interrupted() -> None:
    (found,) = blockers(make_work(HERE, gangs=(GangView(GANG, error="no right"),)))
    assert (found.reason, found.pods) == (Reason.LIST_FAILED, ())
    assert not lacks(found.message, "JobSet team-a/train", "no right")


def test_a_blocked_member_elsewhere_keeps_the_node_uncordoned_and_is_named_with_its_gang() -> None:
    selection = chosen(candidate("c", sharing(BARE)), policy=MIXED)
    assert fenced(selection) == []
    verdict = selection.verdicts["c"]
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.UNMANAGED)
    assert not lacks(verdict.message, "Pod team-a/rank-1", "JobSet team-a/train", "2 pods (1 on c, 1 on d)")
    assert fenced(chosen(candidate("c", sharing(MATE)))) == ["c"]


def test_a_blocker_of_the_node_itself_names_the_gang_when_all_of_its_pods_are_of_one() -> None:
    work = make_work(HERE, make_pod("alone"), gangs=(make_gang_view({"c": [HERE], "d": [MATE]}),))
    mine, mixed = (Blocker(Reason.PDB, ("team-a/rank-0",)), Blocker(Reason.PDB, ("team-a/alone", "team-a/rank-0")))
    assert "Gang: JobSet team-a/train" in explain_blockers(name_gangs([mine], work))[0]
    assert name_gangs([mixed], work) == (mixed,)


def test_at_most_three_nodes_of_a_gang_are_named() -> None:
    pods = {f"n{number}": [make_pod(f"rank-{number}", gang=GANG)] for number in range(5)}
    text = describe_gang(make_gang_view(pods))
    assert not lacks(text, "JobSet team-a/train", "5 pods (1 on n0, 1 on n1, 1 on n2, 2 more nodes)")


def test_a_drain_says_which_gangs_end_with_its_pods() -> None:
    view = make_gang_view({"gpu-07": [HERE], "gpu-08": [MATE]})
    verdict = before_pnr(drained(work=make_work(HERE, gangs=(view,))))
    assert not lacks(verdict.message, "1 GPU pod", "JobSet team-a/train", "2 pods (1 on gpu-07, 1 on gpu-08)")


def test_before_a_reboot_all_pods_have_to_go_and_not_only_those_with_a_gpu() -> None:
    fence = replace(FENCE, disruption=DisruptionClass.REBOOT)
    verdict = before_pnr(drained(work=make_work(HERE, make_pod("cpu", resources={})), fence=fence))
    assert verdict.message.startswith("2 pods left to go")


def test_of_many_gangs_two_are_named() -> None:
    views = tuple(make_gang_view({"c": [HERE]}, make_gang(f"set-{number}")) for number in range(4))
    text = explain_gangs(views)
    assert not lacks(
        text, "JobSet team-a/set-0", "1 pod (1 on c)", "JobSet team-a/set-1", "1 pod (1 on c)", "2 more gangs"
    )


# --- a member that may end by itself first ---------------------------------------------------------------------

HOURS_8 = 8 * 3600
LEADER_MAY_END: dict[str, Any] = {
    "rules": [
        {"behavior": "WaitCompleted", "timeout": "8h", "podSelector": {"matchLabels": {"role": "lead"}}},
        {"behavior": "Evict"},
    ]
}


def drained_at(seconds: float, work: NodeWork, **options: Any) -> DrainPlan:
    drain = Drain.model_validate({**LEADER_MAY_END, **options})
    scope = make_scope(cordoned_at=at(0), node="c")
    return plan_drain(find_standings(work, drain, at(seconds), scope=scope), at(seconds))


@pytest.mark.parametrize("member", [LEADER, replace(LEADER, resources={})], ids=["on another node", "without a GPU"])
def test_while_a_member_elsewhere_may_end_by_itself_no_other_member_is_evicted(member: PodView) -> None:
    plan = drained_at(600, sharing(member))
    assert (plan.evict, [pod.name for pod in plan.jobs], plan.jobs_until) == ((), ["rank-0"], at(HOURS_8))
    (found,) = plan.blockers
    assert (found.reason, found.pods, found.until) == (Reason.JOBS_RUNNING, ("team-a/rank-0",), at(HOURS_8))
    assert not lacks(found.message, "JobSet team-a/train", "team-a/rank-1 on d")


def test_when_the_time_of_that_member_is_over_the_policy_says_what_happens_to_all_of_the_gang() -> None:
    work = sharing(LEADER)
    given_up = drained_at(HOURS_8, work, jobs={"onTimeout": "Abort"})
    assert (given_up.evict, [pod.name for pod in given_up.overdue]) == ((), ["rank-0"])
    evicted = drained_at(HOURS_8, work, jobs={"onTimeout": "Evict"})
    assert ([pod.name for pod in evicted.evict], evicted.jobs) == (["rank-0"], ())


def test_a_gang_gets_the_longest_time_that_any_of_its_members_is_given() -> None:
    short = make_pod("rank-2", owner=JOB, restarts=False, gang=GANG)
    mine = make_work(short, gangs=(make_gang_view({"c": [short], "d": [LEADER]}),))
    rules = LEADER_MAY_END["rules"][:1]
    plan = drained_at(7200, mine, rules=rules, jobs={"timeout": "1h"})
    assert (plan.evict, plan.jobs_until) == ((), at(HOURS_8))
    forever = drained_at(7200, sharing(LEADER, short), rules=rules, jobs={"timeout": "Never"})
    assert forever.jobs_until == FOREVER
    assert not lacks(forever.blockers[0].message, "team-a/rank-2 on d")


def test_a_member_on_the_same_node_is_waited_for_though_its_own_turn_comes_later() -> None:
    early = {"behavior": "Evict", "order": -1}
    work = make_work(HERE, LEADER, gangs=(make_gang_view({"c": [HERE, LEADER]}),))
    plan = drained_at(600, work, rules=[LEADER_MAY_END["rules"][0], early])
    assert (plan.evict, [pod.name for pod in plan.jobs]) == ((), ["rank-0"])


ENDED: dict[str, tuple[str, PodView]] = {
    "it is leaving": ("d", replace(LEADER, deleted_at=at(5))),
    "it has finished": ("d", replace(LEADER, phase="Succeeded")),
    "it runs nowhere yet": ("", replace(LEADER, phase="Pending")),
    "it was here, and is gone by the LIST of this node": ("c", LEADER),
    "no time is given to it": ("d", MATE),
}


@pytest.mark.parametrize(("node", "member"), ENDED.values(), ids=ENDED.keys())
def test_a_member_that_has_nothing_to_end_keeps_nobody_waiting(node: str, member: PodView) -> None:
    members = {"c": [HERE], node: [HERE, member] if node == "c" else [member]}
    plan = drained_at(600, make_work(HERE, gangs=(make_gang_view(members),)))
    assert ([pod.name for pod in plan.evict], plan.jobs) == (["rank-0"], ())


def test_pods_that_belong_to_no_such_gang_do_not_wait_longer_than_their_turn() -> None:
    alone = make_pod("alone")
    work = make_work(HERE, alone, gangs=(make_gang_view({"c": [HERE], "d": [LEADER]}),))
    assert [pod.name for pod in drained_at(600, work).jobs] == ["rank-0"]
    later = drained_at(HOURS_8, work, jobs={"onTimeout": "Evict"})
    assert sorted(pod.name for pod in later.evict) == ["alone", "rank-0"]


def test_a_gang_of_which_nobody_knows_the_members_is_not_ended_by_a_drain_that_goes_on() -> None:
    work = make_work(HERE, make_pod("alone"), gangs=(GangView(GANG, error="trouble"),))
    plan = drained_at(600, work)
    assert [pod.name for pod in plan.evict] == ["alone"]
    (found,) = plan.blockers
    assert (found.reason, found.pods) == (Reason.LIST_FAILED, ("team-a/rank-0",))
    assert not lacks(found.message, "JobSet team-a/train", "trouble")


# --- the rules of the policy that a member's own node follows (planning/transition/cases.py) --------------------------

OTHER = make_policy("other", drain={"unmanagedPods": "Evict"})
UNREAD = replace(OTHER, spec=None, problems=(Problem("spec.drain.rules[0].behavior", "unknown"),))
FAULT = TypeError("unsupported operand")
UNKNOWN = "The drain rules for the pod's node are unknown and may forbid evicting the pod: "
RANK = "a rank of a JobSet"


def shared(
    other: PolicyView, *, unread: Iterable[str] = (), unowned: Iterable[str] = (), **given: Any
) -> tuple[ClusterSnapshot, ClusterSnapshot]:
    """A gang on two nodes, of which another policy has the second, and a member on a node that nobody knows: as it is read, and with rules. Nobody can judge the policies `unread`, nor find the owners of the nodes `unowned`."""
    first, second = make_node("gpu-07"), make_node("gpu-08", **given)
    ranks = {name: [make_pod(f"rank-of-{name}", gang=make_gang())] for name in ("gpu-07", "gpu-08", "cpu-1")}
    work = make_work(*ranks["gpu-07"], gangs=(make_gang_view(ranks),))
    snapshot = make_snapshot([first, second], [PAUSED, other], stack=STACK, work={"gpu-07": work})
    owned = {"gpu-07": "pool-b", "gpu-08": other.name}
    owners = {name: owner for name, owner in owned.items() if name not in unowned}
    failed: dict[str, Exception] = dict.fromkeys(unowned, FAULT)
    offered = {one.name: terms(one) for one in (PAUSED, other)}
    followed = follow(snapshot, owners, offered, failed=failed, unread=dict.fromkeys(unread, FAULT))
    return snapshot, with_rules(snapshot, followed, owners, failed)


def members(snapshot: ClusterSnapshot) -> dict[str, GangMember]:
    return {one.node: one for one in snapshot.work["gpu-07"].gangs[0].members}


def test_a_member_of_a_gang_has_the_rules_of_the_policy_that_its_own_node_follows() -> None:
    before, after = shared(OTHER)
    assert before != after
    found = members(after)
    assert OTHER.spec is not None
    assert (found["gpu-08"].policy, found["gpu-08"].rules) == ("other", OTHER.spec.drain)
    assert {found[name].rules for name in ("gpu-07", "cpu-1")} == {None}


def test_nothing_is_added_where_both_policies_say_the_same_or_the_other_node_is_changed_by_the_same_one() -> None:
    for before, after in (shared(make_policy("other")), shared(OTHER, fence=make_fence(policy="pool-b"))):
        assert after is before


UNRULED: dict[str, tuple[PolicyView, dict[str, list[str]], Reason, tuple[str, ...]]] = {
    "a policy that cannot be read": (
        UNREAD, {}, Reason.INVALID_SPEC, (UNKNOWN, "policy other", "spec.drain.rules[0].behavior")),
    "a policy that nobody can judge": (
        OTHER, {"unread": ["other"]}, Reason.POLICY_NOT_JUDGED, (UNKNOWN, "policy other", "TypeError")),
    "a node whose owner nobody can find": (OTHER, {"unowned": ["gpu-08"]}, Reason.NODE_NOT_JUDGED, ()),
}  # fmt: skip


@pytest.mark.parametrize(("other", "unknown", "reason", "told"), UNRULED.values(), ids=UNRULED)
def test_anything_may_be_forbidden_by(
    other: PolicyView, unknown: dict[str, list[str]], reason: Reason, told: tuple[str, ...]
) -> None:
    found = members(shared(other, **unknown)[1])
    why = found["gpu-08"].rules
    assert isinstance(why, Finding)
    assert why.reason is reason
    assert not lacks(why.message, *told)
    assert unknown or found["gpu-08"].policy == "other"
    assert {found[name].rules for name in ("gpu-07", "cpu-1")} == {None}


def test_a_node_that_nobody_can_judge_still_has_the_rules_of_its_policy() -> None:
    before, after = shared(OTHER, labels=Poisoned())
    assert before != after
    found = members(after)["gpu-08"]
    assert OTHER.spec is not None
    assert (found.policy, found.rules) == ("other", OTHER.spec.drain)


def spoil(world: World) -> None:
    world.policies = tuple(
        replace(one, generation=one.generation + 1, spec=None, problems=UNREAD.problems)
        if one.name == "pool-c"
        else one
        for one in world.policies
    )


@pytest.mark.parametrize("begun", [False, True], ids=["before the drain", "in the drain"])
def test_a_gang_over_two_pools_is_not_ended_while_nobody_can_read_the_policy_of_a_member(*, begun: bool) -> None:
    world = pool_of(1, FULL)
    label: dict[str, Any] = {"gpusharing.dev/pool": "c"}
    world.add_node("m0", **label)
    world.set_policy(make_policy("pool-c", mode="Full", nodeSelector={"matchLabels": label}))
    world.settle()
    assert all(world.add_pod(name, RANK) for name in world.nodes)
    world.refusing = True
    edit = make_policy(drain={"strandedPods": "Allow"})
    if begun:
        world.set_policy(edit)
        pass_time(world, 60, until=lambda world: bool(world.refused))
        assert world.refused
    spoil(world)
    if not begun:
        pass_time(world, 3)
        world.set_policy(edit)
    world.refusing = False
    pass_time(world, 60)
    verdict = world.plan().verdicts["n0"]
    assert (world.evicted, len(world.pods["m0"]), len(world.pods["n0"])) == (set(), 1, 1)
    assert verdict.phase is (Phase.DRAINING if begun else Phase.BLOCKED)
    assert verdict.reason is Reason.INVALID_SPEC
    assert f"{UNKNOWN}policy pool-c cannot be read" in verdict.message


# --- a gang is interrupted once per change, and not once per node (docs/design/drain.md#waves) ------------------------


@dataclass
class Train:
    """A JobSet with a rank on each of some nodes. When one rank is evicted all end; then all start anew where they were before, as soon as there is room for all of them, as a scheduler has it that knows of gangs."""

    world: World
    homes: tuple[str, ...]
    begun: int = 0

    def turn(self) -> None:
        ranks = {name: self.ranks(name) for name in self.homes}
        nodes = [self.world.nodes[name] for name in self.homes]
        if any(ranks.values()) or any(node.unschedulable or not node.ready for node in nodes):
            return
        if all(self.world.add_pod(name, RANK) for name in self.homes):
            self.begun += 1
            return
        for name in self.homes:  # none of them starts without the others
            for uid in self.ranks(name):
                del self.world.pods[name][uid]

    def ranks(self, name: str) -> list[str]:
        return [uid for uid in self.world.pods[name] if self.world.kinds[uid] == RANK]


def changed(size: int, ranks: int, kills: Random | None, **rollout: Any) -> Train:
    """A pool of whole GPUs is brought to time-slicing. The gang runs on its last nodes, and one pod on each other one, so that all take as long: half a gang would be given back while nothing has begun on the other half.

    `kills`: the operator is killed now and then, after any number of its calls.
    """
    world = pool_of(size, FULL)
    train = Train(world, tuple(f"n{number}" for number in range(size - ranks, size)))
    train.turn()
    assert train.begun == 1
    assert all(world.add_pod(name) for name in world.nodes if name not in train.homes)
    world.set_policy(make_policy(mode="TimeSlicing", drain={"strandedPods": "Allow"}, rollout=rollout))
    for _ in range(1500):
        world.act_everywhere()
        train.turn()
        limit = kills.randrange(4) if kills is not None and kills.random() < 0.2 else None
        plan = world.step(limit=limit)
        world.now += timedelta(seconds=1)
        if limit is None and all(one.phase is Phase.SYNCED for one in plan.verdicts.values()):
            break
    assert {one.phase for one in world.plan().verdicts.values()} == {Phase.SYNCED}
    train.turn()
    assert all(train.ranks(name) for name in train.homes), "it runs again"
    return train


def interruptions(train: Train) -> int:
    return train.begun - 1


PARTS: dict[str, tuple[int, int, dict[str, Any], int]] = {
    "all nodes at once": (3, 3, {"maxUnavailable": 3}, 1),
    "as many as the gang has, and one other would go beside half of it": (5, 2, {"maxUnavailable": 2}, 1),
    "more than the gang has, and others would go beside a part of it": (6, 3, {"maxUnavailable": 4}, 1),
    "half of a pool that the gang fills": (4, 4, {"maxUnavailable": "50%"}, 2),
    "one node at a time": (3, 3, {"maxUnavailable": 1}, 3),
    "a canary that is smaller than the gang": (4, 4, {"maxUnavailable": 4, "canary": {"nodes": 1, "soak": "30s"}}, 2),
}  # fmt: skip
"""By budget: nodes of the pool and of the gang, spec.rollout, and how often the gang may be interrupted."""


@pytest.mark.parametrize("kills", [None, 1, 2, 3, 4, 5], ids=lambda given: f"kills-{given}")
@pytest.mark.parametrize(("size", "ranks", "rollout", "most"), PARTS.values(), ids=PARTS.keys())
def test_a_gang_is_interrupted_once_where_there_is_room_for_all_of_its_nodes_and_else_once_for_each_part(
    size: int, ranks: int, rollout: dict[str, Any], most: int, kills: int | None
) -> None:
    train = changed(size, ranks, Random(kills) if kills is not None else None, **rollout)
    assert 1 <= interruptions(train) <= most
