"""drain.onTimeout ForceDelete: who is deleted near the end of a drain, who never is, and what the end waits for."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from tests.build import NOW, SETTINGS, at, make_memory, make_pdb, make_pod, make_policy, make_work
from tests.planning.cases import make_case
from tests.planning.drainpass import GPU, SCOPE
from tests.planning.drains import FENCE, fenced, silent
from tests.planning.told import SYNCED, StatusInput
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.api.policy import Drain
from gpusharing.planning.drain.plan import DrainPlan, find_force_note, plan_drain, preflight
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.report.events import node_events
from gpusharing.planning.snapshot.actions import Evict, ForceDelete
from gpusharing.planning.snapshot.podviews import EvictionMemory, Owner, PdbView, PodView
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason

FORCED = {"onTimeout": "ForceDelete"}
FULL_BUDGET = make_pdb(allowed=0)
GRANTED = replace(SCOPE, forces=True, cordoned_at=at(-600), protected=frozenset({"kube-system"}))
END = at(20)
"""Of the drain: the grace period of 30 s would be over after it."""


def refused(reason: Reason = Reason.PDB, **fields: Any) -> EvictionMemory:
    """The server was asked ten seconds ago; the LIST is of now."""
    return replace(make_memory(reason, next_try=at(30)), asked_at=at(-10), **fields)


def planned(
    *pods: PodView,
    memories: dict[str, EvictionMemory] | None = None,
    options: dict[str, Any] | None = None,
    pdbs: tuple[PdbView, ...] = (FULL_BUDGET,),
    end: datetime | None = END,
) -> DrainPlan:
    """One pass near the end of a drain; every pod was refused unless `memories` says otherwise."""
    known = {pod.uid: refused() for pod in pods} if memories is None else memories
    work = make_work(*pods, pdbs=pdbs, evictions=known, listed_at=NOW)
    drain = Drain.model_validate({**FORCED, **(options or {})})
    return plan_drain(find_standings(work, drain, NOW, scope=GRANTED), NOW, end)


def deleted(plan: DrainPlan) -> list[str]:
    return [pod.name for pod in plan.delete]


A, LATE = make_pod("a"), make_pod("late", labels={"app": "llm", "late": "yes"})
LAST = {"rules": [{"behavior": "Evict", "podSelector": {"matchLabels": {"late": "yes"}}, "order": 5}]}


def test_a_refused_pod_is_deleted_a_grace_period_before_the_end_and_not_before() -> None:
    assert deleted(planned(A, end=at(40))) == ["a"]
    assert deleted(planned(A, end=at(41))) == []
    assert planned(A, end=at(41)).next_wake == at(1), "the moment comes by the clock alone"
    assert deleted(planned(replace(A, grace=60), end=at(70))) == ["a"], "the grace period is the pod's own"
    assert deleted(planned(replace(A, grace=60), end=at(71))) == []
    short = {"timeout": "40s"}
    assert deleted(planned(replace(A, grace=29), end=at(39), options=short)) == ["a"], "a quarter of a short drain"


def test_a_pod_that_the_server_was_not_asked_about_is_asked_first_even_out_of_turn() -> None:
    plan = planned(A, LATE, memories={A.uid: refused()}, options=LAST)
    assert (deleted(plan), [pod.name for pod in plan.evict]) == (["a"], ["late"])
    plan = planned(A, LATE, options=LAST)
    assert (deleted(plan), plan.evict) == (["a", "late"], ()), "past its time it is not held behind the others (T4)"


def test_a_pod_under_two_budgets_is_deleted_though_nobody_asked_for_its_eviction() -> None:
    both = (make_pdb("a"), make_pdb("b"))
    assert deleted(planned(A, memories={}, pdbs=both)) == ["a"]
    lost = refused(Reason.FORBIDDEN)
    assert deleted(planned(A, memories={A.uid: lost}, pdbs=both)) == []


KEPT: dict[str, tuple[EvictionMemory | None, bool]] = {
    "a budget refused": (refused(Reason.PDB), True),
    "its controller is behind": (refused(Reason.PDB_NOT_OBSERVED), True),
    "the server could not say": (refused(Reason.EVICTION_ERROR), True),
    "the eviction was accepted": (refused(Reason.EVICTED), False),
    "it was deleted already": (refused(Reason.FORCE_DELETE), False),
    "a right is missing, or admission refuses": (refused(Reason.FORBIDDEN), False),
    "the request was malformed": (refused(Reason.INTERNAL_ERROR), False),
    "its namespace goes": (refused(Reason.NAMESPACE_TERMINATING), False),
    "the server was busy": (refused(Reason.THROTTLED), False),
    "the LIST is older than the answer": (replace(refused(), asked_at=at(1)), False),
    "the last deletion failed a moment ago": (refused(Reason.FORCE_DELETE_FAILED), False),
    "the last deletion failed long ago": (replace(refused(Reason.FORCE_DELETE_FAILED), next_try=NOW), True),
}


@pytest.mark.parametrize(("memory", "goes"), KEPT.values(), ids=KEPT.keys())
def test_only_what_a_budget_refused_is_deleted(memory: EvictionMemory, goes: bool) -> None:
    assert deleted(planned(A, memories={A.uid: memory})) == (["a"] if goes else [])


OPEN_BUDGET = make_pdb(allowed=1)
LONG_AGO = replace(refused(), asked_at=at(-21))
"""A second before the time of a pod with 30 s came; the next try is still to wait."""


@pytest.mark.parametrize("pdbs", [(OPEN_BUDGET,), ()], ids=["has room", "is gone"])
@pytest.mark.parametrize("reason", [Reason.PDB, Reason.EVICTION_ERROR])
def test_a_refusal_of_before_its_time_is_asked_once_more_when_the_budget(
    reason: Reason, pdbs: tuple[PdbView, ...]
) -> None:
    plan = planned(A, memories={A.uid: replace(LONG_AGO, reason=reason)}, pdbs=pdbs)
    assert ([pod.name for pod in plan.evict], plan.delete) == (["a"], ())
    plan = planned(A, memories={A.uid: refused(reason)}, pdbs=pdbs)
    assert (plan.evict, deleted(plan)) == ((), ["a"]), "the server said no again, whatever we read"
    plan = planned(A, memories={A.uid: replace(LONG_AGO, reason=reason)})
    assert (plan.evict, deleted(plan)) == ((), ["a"]), "a budget without room would refuse again"


@pytest.mark.parametrize("reason", [Reason.THROTTLED, Reason.PODS_LEAVING])
def test_an_answer_that_said_nothing_of_the_pod_is_no_reason_not_to_ask_again_out_of_turn(reason: Reason) -> None:
    memories = {A.uid: refused(), LATE.uid: replace(refused(reason), next_try=NOW)}
    plan = planned(A, LATE, memories=memories, options=LAST)
    assert (deleted(plan), [pod.name for pod in plan.evict]) == (["a"], ["late"])


MISSED: dict[str, tuple[PodView, datetime, bool]] = {
    "its grace period ends with the minute more": (A, at(-20), True),
    "it would end after that": (A, at(-21), False),
    "a long one, some seconds late": (replace(A, grace=600), at(560), True),
    "a long one, half over": (replace(A, grace=600), at(300), False),
}


@pytest.mark.parametrize(("pod", "end", "goes"), MISSED.values(), ids=MISSED.keys())
def test_a_pod_whose_moment_was_missed_is_not_deleted_when_the_drain_is_given_up_before_it_ends(
    pod: PodView, end: datetime, goes: bool
) -> None:
    assert deleted(planned(pod, end=end)) == (["a"] if goes else [])
    assert bool(planned(pod, memories={}, end=end, pdbs=()).evict), "a pod may always be evicted"
    failed = replace(refused(Reason.FORCE_DELETE_FAILED), next_try=NOW)
    assert deleted(planned(pod, memories={pod.uid: failed}, end=end)) == (["a"] if goes else [])


def test_nobody_else_is_deleted_beside_a_pod_whose_moment_was_missed() -> None:
    late = make_pod("b", grace=600)
    assert deleted(planned(A, late, end=at(40))) == []
    assert deleted(planned(A, replace(late, grace=80), end=at(40))) == ["a", "b"]


IN_VAIN: dict[str, tuple[PodView, dict[str, Any], EvictionMemory | None]] = {
    "a DaemonSet's pod blocks": (make_pod("z", owner=Owner("apps/v1", "DaemonSet", "z")), {}, None),
    "a static pod blocks": (make_pod("z", mirror=True), {}, None),
    "a pod without a controller blocks": (make_pod("z", owner=None), {}, None),
    "a protected namespace blocks": (make_pod("z", namespace="kube-system"), {}, None),
    "a mark blocks": (make_pod("z", marks={"karpenter.sh/do-not-disrupt": "true"}), {}, None),
    "a rule blocks": (
        make_pod("z", labels={"keep": "yes"}),
        {"rules": [{"behavior": "Block", "podSelector": {"matchLabels": {"keep": "yes"}}}]},
        None,
    ),
    "a rule of a later order still waits": (
        make_pod("z", labels={"wait": "yes"}),
        {"rules": [{"behavior": "WaitCompleted", "podSelector": {"matchLabels": {"wait": "yes"}}, "order": 9}]},
        None,
    ),
    "another pod's grace period fits into no drain": (make_pod("z", grace=900), {}, None),
    "another pod may not be evicted": (make_pod("z"), {}, refused(Reason.FORBIDDEN)),
    "another pod is stuck": (make_pod("z", deleted_at=at(-61)), {}, None),
    "another pod leaves long after the end": (make_pod("z", deleted_at=at(600)), {}, None),
}  # fmt: skip


@pytest.mark.parametrize(("other", "options", "memory"), IN_VAIN.values(), ids=IN_VAIN.keys())
def test_nobody_is_deleted_for_a_node_that_would_not_be_empty(
    other: PodView, options: dict[str, Any], memory: EvictionMemory | None
) -> None:
    memories = {A.uid: refused(), **({other.uid: memory} if memory is not None else {})}
    assert deleted(planned(A, other, memories=memories, options=options)) == []


def test_nobody_is_deleted_or_evicted_at_the_end_on_a_node_whose_kubelet_is_silent() -> None:
    """No pod is known to end there, so the node would not be empty in time (docs/design/drain.md#t6)."""
    for memories in ({A.uid: refused()}, {}):
        work = make_work(A, pdbs=(FULL_BUDGET,), evictions=memories, listed_at=NOW)
        found = find_standings(work, Drain.model_validate(FORCED), NOW, scope=replace(GRANTED, silent=True))
        plan = plan_drain(found, NOW, END)
        assert (plan.delete, plan.evict) == ((), ())


def test_deletions_and_evictions_share_one_pace() -> None:
    pods = [make_pod(f"p-{number:02}") for number in range(14)]
    plan = planned(*pods, memories={pod.uid: refused() for pod in pods[:8]})
    assert (len(plan.delete), len(plan.evict)) == (8, 2), "no time is left to try them one after another"
    early = planned(*pods, memories={}, end=at(600))
    assert (len(early.delete), len(early.evict)) == (0, 1), "the budget allows none, so one pod is tried"
    assert len(planned(*pods).delete) == 10


def test_only_the_pod_for_which_the_server_asks_to_slow_down_is_not_deleted() -> None:
    busy = make_pod("busy")
    memories = {A.uid: refused(), busy.uid: refused(Reason.THROTTLED)}
    assert deleted(planned(A, busy, memories=memories)) == ["a"]


def test_a_deletion_that_failed_is_told_as_that_while_it_is_tried_again() -> None:
    failed = replace(refused(Reason.FORCE_DELETE_FAILED, message="webhook down"), next_try=NOW)
    plan = planned(A, memories={A.uid: failed})
    assert deleted(plan) == ["a"]
    told = {one.reason: one.message for one in plan.blockers}
    assert "webhook down" in told[Reason.FORCE_DELETE_FAILED]
    assert Reason.FORCE_DELETE not in told, "the Event would say so with each try"


# --- before the cordon ------------------------------------------------------------------------------------------


def foreseen(pod: PodView, pdb: PdbView, *, forces: bool = True, timeout: str = "15m") -> list[str]:
    drain = Drain.model_validate({**FORCED, "timeout": timeout})
    scope = replace(SCOPE, forces=forces)
    found = find_standings(make_work(pod, pdbs=(pdb,)), drain, NOW, scope=scope, cordoned=False)
    return [str(one.reason) for one in preflight(found, drain, GPU, NOW)]


def test_a_budget_keeps_no_node_from_starting_whose_pods_may_be_deleted_in_the_end() -> None:
    never = make_pdb(allowed=0, expected=1, desired=1)
    assert foreseen(A, never) == []
    assert foreseen(A, FULL_BUDGET) == []


def test_without_the_right_or_with_a_grace_period_that_is_too_long_it_does() -> None:
    assert foreseen(A, FULL_BUDGET, forces=False) == ["PDB"]
    assert foreseen(replace(A, grace=890), FULL_BUDGET) == ["PDB", "GraceTooLong"]
    assert foreseen(replace(A, grace=889), FULL_BUDGET) == []
    assert foreseen(A, FULL_BUDGET, timeout="40s") == ["PDB", "GraceTooLong"]
    assert foreseen(A, FULL_BUDGET, timeout="41s") == []
    short = Drain.model_validate({**FORCED, "timeout": "38s"})
    found = find_standings(
        make_work(A, pdbs=(FULL_BUDGET,)), short, NOW, scope=replace(SCOPE, forces=True), cordoned=False
    )
    said = {one.reason: one.message for one in preflight(found, short, GPU, NOW)}[Reason.GRACE_TOO_LONG]
    assert not lacks(said, "period of 30 s", "9.5 s", "drain.timeout (38 s)")


# --- on the way ------------------------------------------------------------------------------------------------


def judged(*pods: PodView, fence: Fence | None = None, granted: bool = True, **fields: Any) -> Verdict:
    """What is decided about gpu-07, 20 s before the end of its drain."""
    work = make_work(*pods, pdbs=(FULL_BUDGET,), evictions={A.uid: refused()}, listed_at=NOW)
    fence = fence or replace(FENCE, deadline=END)
    case = fenced(make_policy(drain=FORCED), fence=fence, work=fields.pop("work", work), **fields)
    case = replace(case, settings=replace(SETTINGS, force_delete=granted))
    assert case.work is not None, "the pods were listed"
    return before_pnr(replace(case, work=replace(case.work, scope=case.scope)))


def test_the_deletion_names_the_uid_and_leaves_the_grace_period_to_the_pod() -> None:
    verdict = judged(A)
    assert verdict.actions == (ForceDelete("gpu-07", "team-a", "a", A.uid),)
    assert (verdict.phase, verdict.pods) == (Phase.DRAINING, 1)
    assert Reason.FORCE_DELETE in {one.reason for one in verdict.blockers}


def test_a_pod_whose_own_grace_period_is_zero_gets_a_second() -> None:
    """The API server would remove the object at once, whether the containers have ended or not."""
    verdict = judged(replace(A, grace=0), fence=replace(FENCE, deadline=at(10)))
    assert verdict.actions == (ForceDelete("gpu-07", "team-a", "a", A.uid, grace=1),)


NEVER: dict[str, dict[str, Any]] = {
    "the operator may not": {"granted": False},
    "jobs have their time": {"fence": replace(FENCE, deadline=END, jobs=True)},
    "the kubelet does not answer": {"node": {"ready": False}},
    "somebody lifted the cordon": {"node": {"unschedulable": False}},
    "somebody else works on the node": {"node": {"foreign": "kured"}},
    "the end is still far": {"fence": replace(FENCE, deadline=at(600))},
    "the drain is no longer than the grace period": {"fence": replace(FENCE, since=at(-20), deadline=END)},
}


@pytest.mark.parametrize("fields", NEVER.values(), ids=NEVER.keys())
def test_nothing_is_deleted(fields: dict[str, Any]) -> None:
    assert not any(isinstance(action, ForceDelete) for action in judged(A, **fields).actions)


def test_after_the_point_of_no_return_nothing_is_deleted_by_force() -> None:
    case = fenced(make_policy(drain=FORCED), fence=replace(FENCE, stage="actuating", deadline=END))
    work = make_work(A, pdbs=(FULL_BUDGET,), evictions={A.uid: refused()}, listed_at=NOW)
    late = replace(case, work=work, settings=replace(SETTINGS, force_delete=True))
    assert late.drain is not None
    assert late.drain.delete == ()


def test_the_end_waits_a_minute_for_pods_that_are_leaving_and_for_nobody_else() -> None:
    over = replace(FENCE, deadline=at(-30))
    leaving = make_pod("a", deleted_at=at(-30))
    assert judged(leaving, fence=over).phase is Phase.DRAINING
    assert judged(leaving, fence=replace(FENCE, deadline=at(-60))).reason is Reason.DRAIN_TIMEOUT
    assert judged(leaving, make_pod("b"), fence=over).reason is Reason.DRAIN_TIMEOUT
    assert judged(leaving, fence=over, granted=False).reason is Reason.DRAIN_TIMEOUT


def test_a_pod_that_never_ends_is_named_and_the_node_given_back_in_the_end() -> None:
    stuck = make_pod("a", deleted_at=at(-61), finalizers=("example.com/keep",))
    verdict = judged(stuck, fence=replace(FENCE, deadline=at(-61)))
    assert (verdict.phase, verdict.reason) == (Phase.ABORTING, Reason.DRAIN_TIMEOUT)
    assert "example.com/keep" in verdict.message


def test_an_operator_that_was_killed_after_the_deletion_asks_nothing_of_the_pod_that_took_the_name() -> None:
    successor = make_pod("a", uid="another", labels={})
    verdict = judged(make_pod("a", deleted_at=at(10)), successor, work=make_work(successor, listed_at=NOW))
    assert verdict.actions == (Evict("gpu-07", "team-a", "a", "another"),)


def test_who_is_deleted_is_told_once_by_an_event_of_its_own() -> None:
    before, after = judged(A, fence=replace(FENCE, deadline=at(600))), judged(A)
    told = {event.reason: event.note for event in node_events(before, after)}
    assert set(told) == {"PodsForceDeleted"}
    assert "team-a/a" in told["PodsForceDeleted"]
    assert node_events(after, judged(A)) == ()


def test_idle_after_a_deletion_the_node_goes_on_to_its_proof() -> None:
    verdict = judged(work=make_work(listed_at=NOW, empty_since=at(-3)), gpunode=silent())
    assert verdict.phase is Phase.RECONFIGURING


def test_a_policy_that_asks_for_what_the_operator_may_not_do_says_so_with_the_command() -> None:
    note = find_force_note(Drain.model_validate(FORCED), granted=False, namespace="ours")
    assert note is not None
    assert (note.reason, "-n ours" in note.message) == (Reason.FORCE_DELETE_OFF, True)
    assert find_force_note(Drain.model_validate(FORCED), granted=True, namespace="ours") is None
    assert find_force_note(Drain(), granted=False, namespace="ours") is None
    accepted = StatusInput([SYNCED], make_policy(drain=FORCED)).status()["conditions"][0]
    assert (accepted["type"], accepted["status"], accepted["reason"]) == ("Accepted", "True", "ForceDeleteOff")
    assert "--set forceDelete=true" in accepted["message"]


def test_the_case_of_a_candidate_carries_the_right() -> None:
    assert not make_case().scope.forces
    assert replace(make_case(), settings=replace(SETTINGS, force_delete=True)).scope.forces
