"""`status.transition`, a node as people see it: since when, what came before, who holds the cordon, who blocks."""

from dataclasses import replace
from datetime import timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.build import NOW, at, make_fence, make_node
from tests.planning.told import DRAINING, FAILED, SYNCED, verdict

from gpusharing.api.gpunode import Transition
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.report.transition import MAX_HISTORY, transition
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import MAX_LINES, Blocker
from gpusharing.planning.vocabulary.lengths import MAX_TEXT
from gpusharing.planning.vocabulary.reasons import Reason

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
            f"PDB team-b/ranker: Pods team-b/ranker-0, team-b/ranker-1. 0 of 2 may go. Remedy: {Reason.PDB.remedy}",
            f"Unmanaged: Pod team-a/notebook. Remedy: {Reason.UNMANAGED.remedy}",
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


@pytest.mark.parametrize(
    ("node", "who"),
    [
        (make_node(), None),
        (FENCED, "Operator"),
        (make_node(unschedulable=True), "Person"),
        (make_node(unschedulable=True, foreign="kured"), "Others"),
        (make_node(unschedulable=True, fence=make_fence(prior_unschedulable=True)), "Person"),
        (make_node(unschedulable=True, fence=make_fence(prior_unschedulable=True), foreign="kured"), "Others"),
        (make_node(unschedulable=True, fence=make_fence(disruption=DisruptionClass.PLUGIN_RESTART)), "Person"),
        (make_node(fence=make_fence()), None),
    ],
    ids=[
        "not cordoned",
        "our fence cordoned it",
        "a person did",
        "another controller did",
        "a person did before our fence",
        "another controller did before our fence",
        "our fence is of a class that does not cordon",
        "somebody lifted our cordon",
    ],
)
def test_the_cordon_is_said_to_be_whose_it_is(node: NodeView, who: str | None) -> None:
    assert shown(DRAINING, node=node)["cordonedBy"] == who


def test_a_node_without_blockers_has_no_culprit() -> None:
    found = shown(SYNCED)
    assert (found["culprit"], found["blockers"], found["step"]) == ("", [], "")
    assert (found["waitingFor"], found["deadline"]) == (None, None)


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
