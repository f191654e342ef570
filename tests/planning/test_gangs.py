"""A gang's rule is that of its strictest member, wherever that one runs; texts name the gang and where it is.
How long a drain waits for its members is told by drain/standing.py."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import JOB, NOW, at, make_pdb, make_pod, make_scope, make_work
from tests.planning.cases import MIXED
from tests.planning.drains import FENCE
from tests.planning.drains import fenced as drained
from tests.planning.ganging import make_gang, make_gang_view
from tests.planning.test_pool import candidate, chosen, fenced
from tests.wording import lacks

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policy import Drain
from gpusharing.api.times import NEVER as FOREVER
from gpusharing.planning.drain.plan import DrainPlan, ending_gangs, find_gang_blockers, name_gangs, plan_drain
from gpusharing.planning.drain.standing import describe_gang, explain_gangs, find_standings
from gpusharing.planning.pools.candidates import find_cost, find_mates
from gpusharing.planning.snapshot.podviews import GangView, NodeWork, PdbView, PodView
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.vocabulary.findings import Blocker, explain_blockers
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


STRICTEST = {
    "nobody would start it again": (make_pod("rank-1", owner=None, gang=GANG), (), Reason.UNMANAGED),
    "nobody would start it again, though it holds no GPU": (
        make_pod("rank-1", owner=None, resources={}, gang=GANG),
        (),
        Reason.UNMANAGED,
    ),
    "its budget never allows it": (
        make_pod("rank-1", labels={"role": "lead"}, gang=GANG),
        (NEVER,),
        Reason.PDB_NEVER_ALLOWS,
    ),
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
    bare = make_pod("rank-1", owner=None, gang=GANG)
    work = make_work(launcher, gangs=(make_gang_view({"c": [launcher], "d": [bare]}),))
    assert (ending_gangs(work, SCOPE), blockers(work)) == ((), ())
    (found,) = find_gang_blockers(work, Drain(), NOW, replace(SCOPE, all_pods=True))
    assert (found.reason, found.pods) == (Reason.UNMANAGED, ("team-a/rank-1",))
    case = candidate("c", work)
    assert (case.gangs, find_mates(case), find_cost(case, 0)) == ((), frozenset(), 0)
    reboots = drained(work=work, fence=replace(FENCE, disruption=DisruptionClass.REBOOT))
    assert (reboots.gangs, find_cost(reboots, 0)) == (work.gangs, 2)
    assert find_mates(reboots) == {"c", "d"}


FREE = {
    "it may go as well": make_pod("rank-1", gang=GANG),
    "it is finished": make_pod("rank-1", owner=None, phase="Succeeded", gang=GANG),
    "it is leaving": make_pod("rank-1", owner=None, deleted_at=at(5), gang=GANG),
}


@pytest.mark.parametrize("member", FREE.values(), ids=FREE.keys())
def test_a_member_on_another_node_that_may_go_stops_nobody(member: PodView) -> None:
    assert blockers(sharing(member)) == ()


def test_the_options_of_the_change_hold_for_members_elsewhere_too() -> None:
    bare = make_pod("rank-1", owner=None, gang=GANG)
    assert blockers(sharing(bare), Drain.model_validate({"unmanagedPods": "Evict"})) == ()


def test_a_gang_whose_members_cannot_be_listed_is_not_interrupted() -> None:
    (found,) = blockers(make_work(HERE, gangs=(GangView(GANG, error="no right"),)))
    assert (found.reason, found.pods) == (Reason.LIST_FAILED, ())
    assert not lacks(found.message, "JobSet team-a/train", "no right")


def test_a_blocked_member_elsewhere_keeps_the_node_uncordoned_and_is_named_with_its_gang() -> None:
    bare = make_pod("rank-1", owner=None, gang=GANG)
    selection = chosen(candidate("c", sharing(bare)), policy=MIXED)
    assert fenced(selection) == []
    verdict = selection.verdicts["c"]
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.UNMANAGED)
    assert not lacks(verdict.message, "Pod team-a/rank-1", "JobSet team-a/train", "2 pods (1 on c, 1 on d)")
    assert fenced(chosen(candidate("c", sharing(make_pod("rank-1", gang=GANG))))) == ["c"]


def test_a_blocker_of_the_node_itself_names_the_gang_when_all_of_its_pods_are_of_one() -> None:
    view = make_gang_view({"c": [HERE], "d": [make_pod("rank-1", gang=GANG)]})
    work = make_work(HERE, make_pod("alone"), gangs=(view,))
    mine, mixed = (Blocker(Reason.PDB, ("team-a/rank-0",)), Blocker(Reason.PDB, ("team-a/alone", "team-a/rank-0")))
    assert "Gang: JobSet team-a/train" in explain_blockers(name_gangs([mine], work))[0]
    assert name_gangs([mixed], work) == (mixed,)


def test_at_most_three_nodes_of_a_gang_are_named() -> None:
    pods = {f"n{number}": [make_pod(f"rank-{number}", gang=GANG)] for number in range(5)}
    text = describe_gang(make_gang_view(pods))
    assert not lacks(text, "JobSet team-a/train", "5 pods (1 on n0, 1 on n1, 1 on n2, 2 more nodes)")


def test_a_drain_says_which_gangs_end_with_its_pods() -> None:
    view = make_gang_view({"gpu-07": [HERE], "gpu-08": [make_pod("rank-1", gang=GANG)]})
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

LEAD = {"role": "lead"}
HOURS_8 = 8 * 3600
LEADER_MAY_END: dict[str, Any] = {
    "rules": [
        {"behavior": "WaitCompleted", "timeout": "8h", "podSelector": {"matchLabels": LEAD}},
        {"behavior": "Evict"},
    ]
}


def drained_at(seconds: float, work: NodeWork, **options: Any) -> DrainPlan:
    drain = Drain.model_validate({**LEADER_MAY_END, **options})
    scope = make_scope(cordoned_at=at(0), node="c")
    return plan_drain(find_standings(work, drain, at(seconds), scope=scope), at(seconds))


MAY_END: dict[str, PodView] = {
    "on another node": make_pod("rank-1", labels=LEAD, gang=GANG),
    "without a GPU": make_pod("rank-1", labels=LEAD, resources={}, gang=GANG),
}


@pytest.mark.parametrize("member", MAY_END.values(), ids=MAY_END.keys())
def test_while_a_member_elsewhere_may_end_by_itself_no_other_member_is_evicted(member: PodView) -> None:
    plan = drained_at(600, sharing(member))
    assert (plan.evict, [pod.name for pod in plan.jobs], plan.jobs_until) == ((), ["rank-0"], at(HOURS_8))
    (found,) = plan.blockers
    assert (found.reason, found.pods, found.until) == (Reason.JOBS_RUNNING, ("team-a/rank-0",), at(HOURS_8))
    assert not lacks(found.message, "JobSet team-a/train", "team-a/rank-1 on d")


def test_when_the_time_of_that_member_is_over_the_policy_says_what_happens_to_all_of_the_gang() -> None:
    work = sharing(make_pod("rank-1", labels=LEAD, gang=GANG))
    given_up = drained_at(HOURS_8, work, jobs={"onTimeout": "Abort"})
    assert (given_up.evict, [pod.name for pod in given_up.overdue]) == ((), ["rank-0"])
    evicted = drained_at(HOURS_8, work, jobs={"onTimeout": "Evict"})
    assert ([pod.name for pod in evicted.evict], evicted.jobs) == (["rank-0"], ())


def test_a_gang_gets_the_longest_time_that_any_of_its_members_is_given() -> None:
    leader = make_pod("rank-1", labels=LEAD, gang=GANG)
    short = make_pod("rank-2", owner=JOB, restarts=False, gang=GANG)
    mine = make_work(short, gangs=(make_gang_view({"c": [short], "d": [leader]}),))
    rules = LEADER_MAY_END["rules"][:1]
    plan = drained_at(7200, mine, rules=rules, jobs={"timeout": "1h"})
    assert (plan.evict, plan.jobs_until) == ((), at(HOURS_8))
    forever = drained_at(7200, sharing(leader, short), rules=rules, jobs={"timeout": "Never"})
    assert forever.jobs_until == FOREVER
    assert not lacks(forever.blockers[0].message, "team-a/rank-2 on d")


def test_a_member_on_the_same_node_is_waited_for_though_its_own_turn_comes_later() -> None:
    leader = make_pod("rank-1", labels=LEAD, gang=GANG)
    early = {"behavior": "Evict", "order": -1}
    work = make_work(HERE, leader, gangs=(make_gang_view({"c": [HERE, leader]}),))
    plan = drained_at(600, work, rules=[LEADER_MAY_END["rules"][0], early])
    assert (plan.evict, [pod.name for pod in plan.jobs]) == ((), ["rank-0"])


ENDED: dict[str, tuple[str, PodView]] = {
    "it is leaving": ("d", make_pod("rank-1", labels=LEAD, deleted_at=at(5), gang=GANG)),
    "it has finished": ("d", make_pod("rank-1", labels=LEAD, phase="Succeeded", gang=GANG)),
    "it runs nowhere yet": ("", make_pod("rank-1", labels=LEAD, phase="Pending", gang=GANG)),
    "it was here, and is gone by the LIST of this node": ("c", make_pod("rank-1", labels=LEAD, gang=GANG)),
    "no time is given to it": ("d", make_pod("rank-1", gang=GANG)),
}


@pytest.mark.parametrize(("node", "member"), ENDED.values(), ids=ENDED.keys())
def test_a_member_that_has_nothing_to_end_keeps_nobody_waiting(node: str, member: PodView) -> None:
    members = {"c": [HERE], node: [HERE, member] if node == "c" else [member]}
    plan = drained_at(600, make_work(HERE, gangs=(make_gang_view(members),)))
    assert ([pod.name for pod in plan.evict], plan.jobs) == (["rank-0"], ())


def test_pods_that_belong_to_no_such_gang_do_not_wait_longer_than_their_turn() -> None:
    leader = make_pod("rank-1", labels=LEAD, gang=GANG)
    alone = make_pod("alone")
    work = make_work(HERE, alone, gangs=(make_gang_view({"c": [HERE], "d": [leader]}),))
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
