"""Every wait that is shown has a name, a culprit, a beginning and an end (docs/design/drain.md#rule-14)."""

from dataclasses import replace
from datetime import timedelta, timezone
from typing import Any

import pytest
from tests.build import NOW, at, make_fence, make_node, make_pod, make_policy, make_work
from tests.planning.cases import FULL, MIXED, make_case, pool_of, run_until
from tests.planning.drains import fenced, silent
from tests.planning.told import verdict

from gpusharing.api.names import Phase, WaitingFor
from gpusharing.api.times import NEVER
from gpusharing.planning.report.transition import transition
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.records import Deferred
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.cases import not_judged
from gpusharing.planning.transition.judge import judge
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Blocker
from gpusharing.planning.vocabulary.reasons import Passes, Reason

NODE = make_node("gpu-08")
WAITS = [reason for reason in Reason if reason.passes is not Passes.DONE]


def shown(one: Verdict, **node: Any) -> dict[str, Any]:
    return transition(one, replace(NODE, **node), {}, NOW)


def end_of(told: dict[str, Any]) -> tuple[str | None, str | None]:
    return told["waitingFor"], told["deadline"]


@pytest.mark.parametrize("reason", WAITS)
def test_whatever_is_waited_for_has_a_name_a_culprit_a_beginning_and_an_end(reason: Reason) -> None:
    """The end has a time where the clock brings it, and otherwise says who does."""
    told = shown(verdict(Phase.PENDING, reason, "gpu-08"))
    assert (told["reason"], told["since"]) == (reason.value, "2026-11-20T10:00:00Z")
    assert told["culprit"], "somebody or something keeps the node"
    by_person = reason.passes is Passes.BY_A_PERSON and reason is not Reason.FOREIGN_MAINTENANCE
    assert end_of(told) == (WaitingFor.PERSON if by_person else WaitingFor.OTHERS, None)
    assert end_of(shown(verdict(Phase.PENDING, reason, "gpu-08", deadline=at(60)))) in (
        (WaitingFor.CLOCK, "2026-11-20T10:01:00Z"),
        (WaitingFor.PERSON, None),
    )


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in WAITS])
def test_what_is_at_its_end_keeps_nobody_waiting(reason: Reason) -> None:
    if reason is Reason.PROGRESSING:
        return  # of a node: its pods are being looked at
    told = shown(verdict(Phase.SYNCED, reason, "gpu-08", deadline=at(60)))
    assert (told["culprit"], *end_of(told)) == ("", None, None)


CULPRITS: dict[str, tuple[Verdict, dict[str, Any], str]] = {
    "a pod that blocks": (
        verdict(Phase.BLOCKED, Reason.UNMANAGED, blockers=(Blocker(Reason.UNMANAGED, ("a/1", "a/2")),)), {},
        "a/1 +1"),
    "a pod that leaves": (verdict(Phase.DRAINING, Reason.PODS_LEAVING, leaving="a/1 +1"), {}, "a/1 +1"),
    "a drain that was given up": (verdict(Phase.ABORTING, Reason.DRAIN_TIMEOUT), {}, "pods"),
    "the policy": (verdict(Phase.PENDING, Reason.WINDOW_CLOSED), {}, "gsp/pool-b"),
    "the node that keeps a slot": (
        verdict(Phase.PENDING, Reason.BUDGET_FULL, keeper="node/gpu-01"), {}, "node/gpu-01"),
    "the node": (verdict(Phase.BLOCKED, Reason.ALREADY_CORDONED), {}, "node/gpu-08"),
    "somebody else": (
        verdict(Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE), {"foreign": "kured"}, "kured"),
    "mig-manager": (verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS), {}, "mig-manager"),
    "the API server": (
        verdict(Phase.PENDING, Reason.CALL_FAILED, blockers=(Blocker(Reason.CALL_FAILED, message="no"),)), {},
        "kube-apiserver"),
}  # fmt: skip


@pytest.mark.parametrize(("one", "node", "who"), CULPRITS.values(), ids=CULPRITS.keys())
def test_the_culprit_is(one: Verdict, node: dict[str, Any], who: str) -> None:
    assert shown(one, **node)["culprit"] == who


ENDS: dict[str, tuple[Verdict, WaitingFor, str | None]] = {
    "the clock, at a time in UTC": (
        verdict(Phase.DRAINING, Reason.PDB, deadline=at(900).astimezone(timezone(timedelta(hours=1)))),
        WaitingFor.CLOCK, "2026-11-20T10:15:00Z"),
    "a person, of a failed node whose time is long over": (
        verdict(Phase.FAILED, Reason.LAYOUT_MISMATCH, deadline=at(-900)), WaitingFor.PERSON, None),
    "a person, of a drain that is held past its time": (
        verdict(Phase.DRAINING, Reason.DRAIN_HELD, deadline=at(-900)), WaitingFor.PERSON, None),
    "others, of a job that may run for ever": (
        verdict(Phase.WAITING_FOR_JOBS, Reason.JOBS_RUNNING, deadline=NEVER), WaitingFor.OTHERS, None),
}  # fmt: skip


@pytest.mark.parametrize(("one", "who", "end"), ENDS.values(), ids=ENDS.keys())
def test_the_end_of_a_wait_is(one: Verdict, who: WaitingFor, end: str | None) -> None:
    assert end_of(shown(one)) == (who, end)


def test_a_drain_in_which_nothing_blocks_names_the_pods_that_leave() -> None:
    pods = make_work(make_pod("b"), make_pod("a"), listed_at=NOW)
    told = before_pnr(fenced(work=pods, gpunode=silent()))
    assert (told.reason, told.leaving) == (Reason.PODS_LEAVING, "team-a/a +1")


def test_waits_before_the_cordon_that_the_clock_ends_say_when() -> None:
    deferred = Deferred(1, at(300), "DrainTimeout", MIXED.version)
    told = judge(make_case(MIXED, was=FULL, node={"deferred": deferred}))
    assert told is not None
    assert (told.reason, told.deadline) == (Reason.DEFERRED, at(300))
    night = {"windows": [{"schedule": "0 22 * * *", "duration": "6h"}]}
    world = pool_of(1)
    world.set_policy(make_policy(rollout=night))
    world.step()
    world.now += timedelta(minutes=5)
    told = world.plan().verdicts["n0"]
    assert told.reason is Reason.WINDOW_CLOSED
    assert told.deadline is not None
    assert told.deadline.hour == 22


def test_a_change_that_begins_has_its_deadline_at_once() -> None:
    world = pool_of(1)
    world.set_policy(make_policy(mode="TimeSlicing"))
    told = run_until(world, Phase.CORDONED, node="n0")
    (begun,) = (action for action in told.actions if isinstance(action, FenceNode))
    assert told.deadline == begun.fence.deadline


def test_a_node_that_cannot_be_judged_has_no_end_that_the_clock_brings() -> None:
    fenced_node = make_node("gpu-08", fence=make_fence("actuating", deadline=at(60)), unschedulable=True)
    told = transition(not_judged(fenced_node, "pool-b", ValueError("x")), fenced_node, {}, NOW)
    assert end_of(told) in ((WaitingFor.PERSON, None), (WaitingFor.OTHERS, None))
