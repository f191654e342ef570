"""A policy's conditions on every path, and the one word and sentence that stand for the pool.
Through `report/status.py`: `report/status.py`, `report/status.py`."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.build import NOW, at, make_node
from tests.planning.told import (
    BAD_SPEC,
    DRAINING,
    FAILED,
    PASSED_OVER,
    PENDING,
    POOL,
    REFUSED,
    STUCK,
    SYNCED,
    StatusInput,
    answers,
    message,
    verdict,
)
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.planning.report.status import bearing, find_grounds, policy_status
from gpusharing.planning.snapshot.actions import LabelNode
from gpusharing.planning.snapshot.memory import COMMON, CallFailure, policy_subject
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Blocker
from gpusharing.planning.vocabulary.reasons import Reason

# --- conditions --------------------------------------------------------------------------------------------

AWAY = {"gpu-07": make_node("gpu-07", ready=False)}
DELETED = replace(POOL, deleting=True)
VALID, CALM = "True Valid", "False Progressing"
UNDER_WAY = "True RolloutInProgress"


def of(*verdicts: Verdict, **fields: Any) -> StatusInput:
    return StatusInput(verdicts, **fields)


LASTING = CallFailure("SetFinalizer failed: not allowed", NOW, tries=3)
ROLLING: dict[str, tuple[StatusInput, str, str]] = {
    "one waits for its turn": (of(SYNCED, PENDING), "True BudgetFull", CALM),
    "one waits for a slot that only a person gives back": (
        of(SYNCED, replace(PENDING, stands=True)), "False Blocked", "True Blocked"),
    "a finalizer keeps an evicted pod": (
        of(SYNCED, replace(DRAINING, blockers=(Blocker(Reason.TERMINATING_STUCK, ("team-a/llm-0",)),))),
        UNDER_WAY, "True Blocked"),
    "its pods are looked at": (of(verdict(Phase.PREFLIGHT)), "True Progressing", CALM),
    "one drains": (of(SYNCED, DRAINING), UNDER_WAY, CALM),
    "one is verified": (of(verdict(Phase.VERIFYING, Reason.LABEL_MISMATCH)), UNDER_WAY, CALM),
    "one failed": (of(SYNCED, FAILED), "False NodesFailed", "True NodesFailed"),
    "one failed while another drains": (of(DRAINING, FAILED), UNDER_WAY, "True NodesFailed"),
    "a budget blocks, which passes by itself": (
        of(SYNCED, verdict(Phase.BLOCKED, Reason.PDB, "gpu-08")), "True PDB", CALM),
    "every node that is left waits for a person": (of(SYNCED, STUCK), "False Blocked", "True Blocked"),
    "a node waits for a person and another for its turn": (of(STUCK, PENDING), "True BudgetFull", "True Blocked"),
    "a node waits for a person and another drains": (of(STUCK, DRAINING), UNDER_WAY, "True Blocked"),
    "the server refuses the step of a node": (
        of(replace(DRAINING, reason=Reason.CALL_FAILED, stands=True)), "False Blocked", "True Blocked"),
    "drift came back": (
        of(verdict(Phase.BLOCKED, Reason.DRIFT_RETURNED), PENDING), "True BudgetFull", "True DriftReturned"),
    "a drain is held past its time, and another node waits for its turn": (
        of(verdict(Phase.DRAINING, Reason.DRAIN_HELD), PENDING), UNDER_WAY, "True DrainHeld"),
    "one failed, and another waits for a person": (of(FAILED, STUCK), "False NodesFailed", "True NodesFailed"),
    "proven, and a write of ours is to come": (
        of(replace(SYNCED, actions=(LabelNode(make_node(), {}),))), UNDER_WAY, CALM),
    "proven, and another policy still changes a node of this one": (of(SYNCED, coming=("gpu-13",)), UNDER_WAY, CALM),
}  # fmt: skip
"""Reconciling and Stalled of policies that are valid and not ready, because their rollout is in progress."""
PATHS: dict[str, tuple[StatusInput, tuple[str, str, str, str]]] = {
    **{path: (given, (VALID, "False RolloutInProgress", one, other)) for path, (given, one, other) in ROLLING.items()},
    "all proven": (of(SYNCED), (VALID, "True Synced", "False Synced", CALM)),
    "the server refuses the finalizer": (
        of(SYNCED, call_failures={policy_subject("pool-b"): replace(LASTING, refused=True)}),
        (VALID, "True Synced", "False Synced", "True CallFailed")),
    "the server fails to write the finalizer": (
        of(SYNCED, call_failures={policy_subject("pool-b"): LASTING}),
        (VALID, "True Synced", "False Synced", "False CallFailed")),
    "the server has failed to write the finalizer for a minute": (
        of(SYNCED, call_failures={policy_subject("pool-b"): replace(LASTING, tries=6)}),
        (VALID, "True Synced", "False Synced", "True CallFailed")),
    "no card can take it": (
        of(REFUSED), ("False NotMigCapable", "False NotMigCapable", "False Blocked", "True Blocked")),
    "some cards cannot take it": (of(SYNCED, REFUSED), (VALID, "False NotMigCapable", "False Blocked", "True Blocked")),
    "only other cards than spec.products": (
        of(PASSED_OVER), ("False ProductSkipped", "False NoNodes", "False NoNodes", CALM)),
    "some other cards than spec.products": (of(SYNCED, PASSED_OVER), (VALID, "True Synced", "False Synced", CALM)),
    "no node": (StatusInput(), (VALID, "False NoNodes", "False NoNodes", CALM)),
    "not accepted": (
        of(verdict(Phase.BLOCKED, Reason.INVALID_SPEC), objection=BAD_SPEC),
        ("False InvalidSpec", "False NotAccepted", "False InvalidSpec", "True InvalidSpec")),
    "not accepted, and a node of before drains": (
        of(DRAINING, objection=BAD_SPEC), ("False InvalidSpec", "False NotAccepted", UNDER_WAY, "True InvalidSpec")),
    "deleted while a node is in flight": (StatusInput([DRAINING], DELETED), (VALID, "False Deleting", UNDER_WAY, CALM)),
    "deleted, and not accepted": (
        StatusInput((), DELETED, objection=BAD_SPEC),
        ("False InvalidSpec", "False Deleting", "False InvalidSpec", "True InvalidSpec")),
    "deleted and nothing to do": (StatusInput((), DELETED), (VALID, "False Deleting", "False Deleting", CALM)),
    "proven on a node that is not Ready": (
        of(SYNCED, nodes=AWAY), (VALID, "False NodeNotReady", "False NodeNotReady", CALM)),
    "proven on a node that is not Ready, and another policy still changes one": (
        of(SYNCED, nodes=AWAY, coming=("gpu-13",)), (VALID, "False NodeNotReady", UNDER_WAY, CALM)),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_every_condition_is_told_on_every_path(path: str) -> None:
    given, expected = PATHS[path]
    status = given.status()
    assert tuple(answers(status).items()) == tuple(
        zip(("Accepted", "Ready", "Reconciling", "Stalled"), expected, strict=True)
    )
    assert {row["observedGeneration"] for row in status["conditions"]} == {7} == {status["observedGeneration"]}
    assert all(row["message"] for row in status["conditions"])
    assert given.status(status, at(3600)) == status, "an equal world gives an equal status later"


@pytest.mark.parametrize("subject", [policy_subject("pool-b"), *COMMON])
@pytest.mark.parametrize("refused", [True, False], ids=["refused", "failing for a minute"])
def test_a_call_that_keeps_failing_stalls_the_policies_that_need_it_with_the_words_of_the_server(
    subject: str, refused: bool
) -> None:
    failure = replace(LASTING, message="403: not for you", tries=2 if refused else 6, refused=refused)
    stalled = StatusInput([SYNCED], call_failures={subject: failure}).status()["conditions"][-1]
    assert (stalled["status"], stalled["reason"]) == ("True", "CallFailed")
    assert "403: not for you" in stalled["message"]


def test_the_time_of_a_condition_changes_only_when_its_status_flips() -> None:
    first = StatusInput([SYNCED, PENDING]).status()
    second = StatusInput([SYNCED, DRAINING], replace(POOL, generation=8)).status(first, at(60))
    assert [row["lastTransitionTime"] for row in second["conditions"]] == ["2026-11-20T10:00:00Z"] * 4
    third = StatusInput([SYNCED]).status(second, at(120))
    times = {row["type"]: row["lastTransitionTime"] for row in third["conditions"]}
    assert times == {
        "Accepted": "2026-11-20T10:00:00Z",
        "Ready": "2026-11-20T10:02:00Z",
        "Reconciling": "2026-11-20T10:02:00Z",
        "Stalled": "2026-11-20T10:00:00Z",
    }


def test_the_most_urgent_refusal_gives_reason_and_message() -> None:
    later = verdict(Phase.SKIPPED, Reason.LAYOUT_DOES_NOT_FIT, "gpu-01", "7x1g.20gb does not fit")
    status = StatusInput([later, REFUSED]).status()
    assert answers(status)["Accepted"] == "False NotMigCapable"
    assert message(status, "Accepted") == "gpu-11: Tesla T4 has no MIG"


def test_refusals_of_some_nodes_are_a_note() -> None:
    assert not lacks(
        message(StatusInput([SYNCED, REFUSED]).status(), "Accepted"), "1 of 2 nodes", "gpu-11", "Tesla T4 has no MIG"
    )


def test_a_policy_that_lost_all_its_nodes_names_them() -> None:
    owned = [replace(SYNCED, node=f"gpu-0{number}", policy="pool-a") for number in (2, 1)]
    status = StatusInput(owned).status()
    assert answers(status)["Ready"] == "False NoNodes"
    assert not lacks(message(status, "Ready"), "spec.nodeSelector", "gpu-01 and 1 more")
    stranger = replace(SYNCED, policy="pool-a")
    elsewhere = {"gpu-07": replace(make_node(), labels={"gpusharing.dev/pool": "c"})}
    assert "matches no node with GPUs" in message(StatusInput([stranger], nodes=elsewhere).status(), "Ready")


def test_a_node_is_named_once_in_a_sentence() -> None:
    status = StatusInput([SYNCED, replace(STUCK, message="gpu-10 has a pod that blocks")]).status()
    assert not lacks(message(status, "Ready"), "1 of 2 nodes", "gpu-10 has a pod that blocks")
    assert not lacks(message(status, "Stalled"), "1 node", "gpu-10 has a pod that blocks")


reasons = st.sampled_from(list(Reason))
phases = st.sampled_from(list(Phase))
pools = st.lists(st.tuples(phases, reasons, st.booleans(), st.booleans()), max_size=6)


@given(rows=pools, shuffled=st.randoms(use_true_random=False))
def test_ready_means_that_every_node_is_proven_whatever_the_order(rows: Any, shuffled: Any) -> None:
    verdicts = [verdict(phase, reason, f"gpu-{index}") for index, (phase, reason, _, _) in enumerate(rows)]
    nodes = {
        f"gpu-{index}": make_node(f"gpu-{index}", ready=ready, unschedulable=cordoned)
        for index, (_, _, ready, cordoned) in enumerate(rows)
    }
    status = StatusInput(verdicts, nodes=nodes).status()
    counted = [row for row in rows if row[1] is not Reason.PRODUCT_SKIPPED]
    proven = [row for row in counted if row[0] is Phase.SYNCED and row[2]]
    ready = answers(status)["Ready"].startswith("True")
    assert ready == bool(counted and len(proven) == len(counted))
    usable = [row for row in proven if not row[3]]
    assert status["summary"]["nodes"] == f"{len(usable)}/{len(counted)}"
    assert not (ready and answers(status)["Stalled"].startswith("True"))
    shuffled.shuffle(verdicts)
    assert StatusInput(verdicts, nodes=nodes).status() == status


@pytest.mark.parametrize(
    ("path", "word", "text"),
    [
        ("all proven", "Synced", "2x3g.40gb proven"),
        ("one waits for its turn", "BudgetFull", "gpu-08: something is so"),
        ("one drains", "Draining", "gpu-08: something is so"),
        ("one failed while another drains", "Failed", "gpu-09: something is so"),
        ("a budget blocks, which passes by itself", "Blocked", "gpu-08: something is so"),
        ("drift came back", "DriftReturned", "gpu-07: something is so"),
        ("no card can take it", "NotMigCapable", "gpu-11: Tesla T4 has no MIG"),
        ("no node", "NoNodes", "spec.nodeSelector matches no node with GPUs; label the nodes of the pool"),
        ("only other cards than spec.products", "NoNodes", "gpu-12: Tesla T4 is not in spec.products"),
        ("not accepted", "InvalidSpec", "spec.mode: unknown"),
        ("deleted, and not accepted", "Deleting", "changes in flight are first finished or rolled back"),
        ("deleted and nothing to do", "Deleting", "changes in flight are first finished or rolled back"),
        ("proven on a node that is not Ready", "NodeNotReady", "gpu-07 is proven but not Ready"),
        (
            "proven, and another policy still changes a node of this one",
            "Pending",
            "waiting for gpu-13: a change that another policy began there must end first",
        ),
        (
            "proven on a node that is not Ready, and another policy still changes one",
            "NodeNotReady",
            "gpu-07 is proven but not Ready",
        ),
    ],
)
def test_one_word_and_one_sentence_stand_for_the_pool(path: str, word: str, text: str) -> None:
    summary = PATHS[path][0].status()["summary"]
    assert (summary["status"], summary["message"]) == (word, text)


# --- what bears on a condition -----------------------------------------------------------------------------

BEARING = (
    Reason.PROGRESSING,
    Reason.SYNCED,
    Reason.PDB,
    Reason.UNMANAGED,
    Reason.PRODUCT_SKIPPED,
    Reason.NOT_MIG_CAPABLE,
    Reason.CONFIG_UNKNOWN,
    Reason.COMPUTE_MODE,
    Reason.DRIFT_RETURNED,
    Reason.DRAIN_HELD,
    Reason.ACTUATOR_FAILED,
)
"""One of each kind that the conditions tell apart, and some that they do not."""


def test_a_policy_that_waits_for_its_approval_says_that_a_person_has_to_give_it() -> None:
    waits = StatusInput([SYNCED, verdict(Phase.PENDING, Reason.APPROVAL_NEEDED, "gpu-08")])
    (stalled,) = (row for row in waits.status()["conditions"] if row["type"] == "Stalled")
    assert stalled["status"] == "False"
    assert not lacks(stalled["message"], "kubectl gpusharing approve pool-b")


@pytest.mark.parametrize("beside", [[], [SYNCED], [PENDING], [STUCK]], ids=["alone", "proven", "waiting", "stuck"])
def test_nodes_that_bear_the_same_on_the_conditions_leave_them_the_same_status(beside: list[Verdict]) -> None:
    found: dict[tuple[bool, ...], set[tuple[str, ...]]] = {}
    for phase, reason, ready, busy in product(Phase, BEARING, (True, False), (True, False)):
        if not (ready or busy) and phase is not Phase.SYNCED:
            continue
        node = make_node("gpu-20", ready=ready)
        one = verdict(phase, reason, "gpu-20").then(*([LabelNode(node, {})] if busy else ()))
        status = StatusInput([one, *beside], nodes={"gpu-20": node}).status()
        statuses = tuple(row["status"] for row in status["conditions"])
        found.setdefault(bearing(one, node), set()).add(statuses)
    assert [statuses for statuses in found.values() if len(statuses) > 1] == []


Row = tuple[Phase, Reason, bool, bool]
"""How a node stands: phase, reason, whether it is Ready, and whether something is left to write."""
ROWS: list[Row] = list(product(Phase, BEARING, (True, False), (True, False)))
PROVEN: Row = (Phase.SYNCED, Reason.SYNCED, True, False)


def of_rows(rows: Sequence[Row], policy: PolicyView, coming: tuple[str, ...]) -> StatusInput:
    nodes = {f"gpu-{20 + index}": make_node(f"gpu-{20 + index}", ready=row[2]) for index, row in enumerate(rows)}
    told = [
        verdict(phase, reason, name).then(*([LabelNode(nodes[name], {})] if busy else ()))
        for name, (phase, reason, _, busy) in zip(nodes, rows, strict=True)
    ]
    return StatusInput(told, policy, nodes=nodes, coming=coming)


def bears(row: Row) -> tuple[bool, ...]:
    alone = of_rows([row], POOL, ())
    (told,) = alone.verdicts
    return bearing(told, alone.nodes[told.node])


TWINS: dict[tuple[bool, ...], list[Row]] = {}
"""The rows that bear the same on the conditions, by what they bear."""
for one_row in ROWS:
    TWINS.setdefault(bears(one_row), []).append(one_row)


def pass_of(one: StatusInput) -> tuple[tuple[object, ...], list[str]]:
    """The grounds of the conditions in this pass, and their statuses."""
    plan, snapshot = one.found()
    told = policy_status(one.policy, plan, snapshot, {}, NOW)
    return find_grounds(one.policy, plan, snapshot), [row["status"] for row in told["conditions"]]


@given(st.data())
@settings(max_examples=60)
def test_two_passes_on_equal_grounds_give_the_conditions_the_same_status(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.just(PROVEN) | st.sampled_from(ROWS), max_size=3))
    twins = [data.draw(st.sampled_from(TWINS[bears(row)])) for row in rows]
    twins += data.draw(st.lists(st.sampled_from(twins), max_size=2)) if twins else []
    coming: tuple[str, ...] = data.draw(st.sampled_from([(), ("gpu-13",)]))
    grounds, statuses = pass_of(of_rows(rows, POOL, coming))
    assert pass_of(of_rows(data.draw(st.permutations(twins)), POOL, coming)) == (grounds, statuses)
    going = [pass_of(of_rows(twins, policy, coming)) for policy in (DELETED, replace(POOL, resetting=True))]
    for (these, said), (those, told) in combinations([(grounds, statuses), *going], 2):
        assert said == told or these != those
