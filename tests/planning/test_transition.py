"""`status.transition`, a node as people see it: since when, what came before, who holds the cordon, who blocks, until when."""

from dataclasses import replace
from datetime import timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.build import NOW, at, make_fence, make_node, make_pod, make_policy, make_work
from tests.planning.cases import FULL, MIXED, make_case, pool_of, run_until
from tests.planning.drains import fenced, silent
from tests.planning.told import DRAINING, FAILED, SYNCED, verdict

from gpusharing.api.gpunode import Transition
from gpusharing.api.names import DisruptionClass, Phase, WaitingFor
from gpusharing.api.times import NEVER
from gpusharing.planning.report.transition import MAX_HISTORY, transition
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.records import Deferred
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.cases import not_judged
from gpusharing.planning.transition.judge import judge
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import MAX_LINES, Blocker
from gpusharing.planning.vocabulary.lengths import MAX_TEXT
from gpusharing.planning.vocabulary.reasons import Passes, Reason

NODE = make_node()
FENCED = make_node(unschedulable=True, fence=make_fence())
BLOCKED = replace(
    DRAINING,
    blockers=(
        Blocker(Reason.PDB, ("team-b/ranker-1", "team-b/ranker-0"), "team-b/ranker", "0 of 2 may go"),
        Blocker(Reason.UNMANAGED, ("team-a/notebook",)),
    ),
)


def shown(
    after: Verdict, previous: dict[str, Any] | None = None, seconds: float = 0, node: NodeView = NODE
) -> dict[str, Any]:
    found = transition(after, node, previous or {}, at(seconds))
    TypeAdapter(Transition).validate_python(found)
    return found


def test_a_transition_tells_everything_about_the_change_in_flight() -> None:
    after = replace(
        BLOCKED, deadline=at(900), attempt=2, step="1/2", observed="7x1g.10gb", disruption=DisruptionClass.GPU_PODS
    )
    assert shown(after, node=FENCED) == {
        "policy": "pool-b",
        "wanted": "2x3g.40gb",
        "phase": "Draining",
        "reason": "PodsLeaving",
        "message": "something is so",
        "since": "2026-11-20T10:00:00Z",
        "waitingFor": "Clock",
        "deadline": "2026-11-20T10:15:00Z",
        "attempt": 2,
        "step": "1/2",
        "observed": "7x1g.10gb",
        "disruption": "GPUPods",
        "culprit": "team-a/notebook +2",
        "cordonedBy": "Operator",
        "blockers": [
            f"Unmanaged: Pod team-a/notebook. Remedy: {Reason.UNMANAGED.remedy}",
            f"PDB team-b/ranker: Pods team-b/ranker-0, team-b/ranker-1. 0 of 2 may go. Remedy: {Reason.PDB.remedy}",
        ],
        "history": ["2026-11-20T10:00:00Z Draining PodsLeaving"],
    }


def test_an_equal_verdict_gives_an_equal_transition_at_any_later_time() -> None:
    first = shown(BLOCKED)
    assert shown(replace(BLOCKED, blockers=BLOCKED.blockers[::-1]), first, 3600) == first


def test_since_is_kept_while_the_phase_stays_and_the_history_tells_phases_only() -> None:
    first = shown(DRAINING)
    second = shown(replace(DRAINING, reason=Reason.PDB, message="other"), first, 60)
    assert (second["since"], second["reason"]) == (first["since"], "PDB")
    assert second["history"] == first["history"]
    third = shown(FAILED, second, 120)
    assert third["since"] == "2026-11-20T10:02:00Z"
    assert [row.split()[1] for row in third["history"]] == ["Draining", "Failed"]


def test_the_history_keeps_the_newest_entries() -> None:
    found: dict[str, Any] = {}
    for minute in range(60):
        found = shown(SYNCED if minute % 2 else DRAINING, found, minute * 60)
    assert len(found["history"]) == MAX_HISTORY
    assert found["history"][0].startswith(f"2026-11-20T10:{60 - MAX_HISTORY}:00Z ")
    assert found["history"][-1] == "2026-11-20T10:59:00Z Synced Synced"


BEFORE = make_fence(prior_unschedulable=True)
RESTART = make_fence(disruption=DisruptionClass.PLUGIN_RESTART)
CORDONS: dict[str, tuple[NodeView, str | None]] = {
    "not cordoned": (make_node(), None),
    "our fence cordoned it": (FENCED, "Operator"),
    "a person did": (make_node(unschedulable=True), "Person"),
    "another controller did": (make_node(unschedulable=True, foreign="kured"), "Others"),
    "a person did before our fence": (make_node(unschedulable=True, fence=BEFORE), "Person"),
    "another controller did before our fence": (make_node(unschedulable=True, fence=BEFORE, foreign="kured"), "Others"),
    "our fence is of a class that does not cordon": (make_node(unschedulable=True, fence=RESTART), "Person"),
    "somebody lifted our cordon": (make_node(fence=make_fence()), None),
}


@pytest.mark.parametrize(("node", "who"), CORDONS.values(), ids=CORDONS)
def test_the_cordon_is_said_to_be_whose_it_is(node: NodeView, who: str | None) -> None:
    assert shown(DRAINING, node=node)["cordonedBy"] == who


words = st.text(min_size=1, max_size=3000)
blockers = st.lists(
    st.builds(
        Blocker,
        st.sampled_from([reason for reason in Reason if reason.group == "Drain"]),
        st.lists(words, max_size=5).map(tuple),
        st.lists(st.text(min_size=250, max_size=500), max_size=20).map(", ".join),
        words,
    ),
    max_size=8,
)


@given(blockers=blockers, text=words)
def test_the_longest_texts_fit_into_the_crd(blockers: list[Blocker], text: str) -> None:
    after = replace(BLOCKED, blockers=tuple(blockers), message=text, wanted=text, observed=text)
    found = shown(after)
    assert len(found["blockers"]) <= MAX_LINES
    assert max(len(part) for part in (found["message"], found["culprit"], *found["blockers"], "")) <= MAX_TEXT


def test_a_text_that_is_cut_says_so() -> None:
    found = shown(verdict(Phase.FAILED, message="x" * 5000))
    assert len(found["message"]) == MAX_TEXT
    assert found["message"].endswith("x...")


def test_times_are_in_utc_whatever_the_clock_says() -> None:
    berlin = NOW.astimezone(timezone(timedelta(hours=1)))
    after = replace(DRAINING, deadline=berlin)
    assert transition(after, NODE, {}, berlin) == shown(replace(DRAINING, deadline=NOW))


# --- every wait that is shown has a name, a culprit, a beginning and an end (docs/design/drain.md#rule-14) -------------

WAITS = [reason for reason in Reason if reason.passes is not Passes.DONE]


def end_of(told: dict[str, Any]) -> tuple[str | None, str | None]:
    return told["waitingFor"], told["deadline"]


@pytest.mark.parametrize("reason", WAITS)
def test_whatever_is_waited_for_has_a_name_a_culprit_a_beginning_and_an_end(reason: Reason) -> None:
    """The end has a time where the clock brings it, and otherwise says who does."""
    told = shown(verdict(Phase.PENDING, reason))
    assert (told["reason"], told["since"]) == (reason.value, "2026-11-20T10:00:00Z")
    assert told["culprit"], "somebody or something keeps the node"
    by_person = reason.passes is Passes.BY_A_PERSON and reason is not Reason.FOREIGN_MAINTENANCE
    assert end_of(told) == (WaitingFor.PERSON if by_person else WaitingFor.OTHERS, None)
    assert end_of(shown(verdict(Phase.PENDING, reason, deadline=at(60)))) in (
        (WaitingFor.CLOCK, "2026-11-20T10:01:00Z"),
        (WaitingFor.PERSON, None),
    )


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in WAITS])
def test_what_is_at_its_end_keeps_nobody_waiting(reason: Reason) -> None:
    if reason is Reason.PROGRESSING:
        return  # of a node: its pods are being looked at
    told = shown(verdict(Phase.SYNCED, reason, deadline=at(60)))
    assert (told["culprit"], told["blockers"], told["step"], *end_of(told)) == ("", [], "", None, None)


CULPRITS: dict[str, tuple[Verdict, dict[str, Any], str]] = {
    "a pod that blocks": (
        verdict(Phase.BLOCKED, Reason.UNMANAGED, blockers=(Blocker(Reason.UNMANAGED, ("a/1", "a/2")),)), {},
        "a/1 +1"),
    "a pod that leaves": (verdict(Phase.DRAINING, Reason.PODS_LEAVING, leaving="a/1 +1"), {}, "a/1 +1"),
    "a drain that was given up": (verdict(Phase.ABORTING, Reason.DRAIN_TIMEOUT), {}, "pods"),
    "the policy": (verdict(Phase.PENDING, Reason.WINDOW_CLOSED), {}, "gsp/pool-b"),
    "the node that keeps a slot": (
        verdict(Phase.PENDING, Reason.BUDGET_FULL, keeper="node/gpu-01"), {}, "node/gpu-01"),
    "the node": (verdict(Phase.BLOCKED, Reason.ALREADY_CORDONED), {}, "node/gpu-07"),
    "somebody else": (
        verdict(Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE), {"foreign": "kured"}, "kured"),
    "mig-manager": (verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS), {}, "mig-manager"),
    "the API server": (
        verdict(Phase.PENDING, Reason.CALL_FAILED, blockers=(Blocker(Reason.CALL_FAILED, message="no"),)), {},
        "kube-apiserver"),
}  # fmt: skip


@pytest.mark.parametrize(("one", "node", "who"), CULPRITS.values(), ids=CULPRITS.keys())
def test_the_culprit_is(one: Verdict, node: dict[str, Any], who: str) -> None:
    assert shown(one, node=replace(NODE, **node))["culprit"] == who


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
