"""Somebody else keeps a label by which a node is changed (wanted/assess.py), at each door to a change."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import at, make_policy
from tests.planning.cases import MIXED, MPS, SLICED, T4, assessed_of, judged, make_case, pair_of, proof_of
from tests.planning.changes import FENCE, changing, only, proven_idle
from tests.planning.drains import fenced, released
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.report.transition import who_ends, who_keeps
from gpusharing.planning.snapshot.actions import Actuate
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.gates import find_gate
from gpusharing.planning.transition.judge import judge
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import find_owners

MIG, PLUGIN = names.LABEL_MIG_CONFIG, names.LABEL_PLUGIN_CONFIG
NFD = "Node Feature Discovery sets it; remove it from the NodeFeatureRule"
KYVERNO = "kyverno-background-controller"


def gate_of(case: NodeCase) -> Finding | None:
    return find_gate(case, assessed_of(case))


def owned(policy: PolicyView, *labels: str, **fields: Any) -> NodeCase:
    """gpu-07, on which a NodeFeatureRule sets these labels, judged against the policy."""
    node = {"label_owners": dict.fromkeys(labels, NFD), **fields.pop("node", {})}
    return make_case(policy, node=node, **fields)


# --- a controller that lists the label on the Node -----------------------------------------------------------------


def test_no_change_begins_that_would_write_a_label_of_another_controller() -> None:
    case = owned(MIXED, MIG)
    verdict = judged(case)
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.BLOCKED, Reason.LABEL_OWNED_ELSEWHERE, ())
    assert not lacks(verdict.message, MIG, pair_of(MIXED)[0], NFD)
    assert (who_keeps(verdict, case.node), who_ends(verdict)) == ("node/gpu-07", "Person")


CLOSED = {
    "the label of the device plugin": owned(SLICED, PLUGIN),
    "a label that only the stop on the way changes": owned(MPS, PLUGIN, was=MIXED),
    "drift that would be corrected": owned(MIXED, MIG, was=MIXED, labels={MIG: "all-disabled"}, drifting_since=at(-60)),
}


@pytest.mark.parametrize("case", CLOSED.values(), ids=CLOSED)
def test_held_too_is(case: NodeCase) -> None:
    gate = gate_of(case)
    assert gate is not None
    assert gate.reason is Reason.LABEL_OWNED_ELSEWHERE


OPEN = {
    "the change does not touch that label": owned(
        SLICED, MIG, labels={MIG: "all-disabled", names.LABEL_MIG_STATE: "success"}
    ),
    "nothing reads that label on a card without MIG": owned(SLICED, MIG, products=(T4,), operand=None),
}


@pytest.mark.parametrize("case", OPEN.values(), ids=OPEN)
def test_a_change_begins_because(case: NodeCase) -> None:
    assert gate_of(case) is None


def test_a_node_that_has_what_the_policy_wants_is_as_wanted_whoever_set_the_label() -> None:
    verdict = judge(owned(MIXED, MIG, PLUGIN, was=MIXED))
    assert verdict is not None
    assert (verdict.phase, verdict.reason) == (Phase.SYNCED, Reason.SYNCED)


def test_a_drain_is_given_up_when_a_controller_takes_the_label() -> None:
    verdict = before_pnr(fenced(MIXED, node={"label_owners": {MIG: NFD}}))
    assert (verdict.phase, verdict.reason) == (Phase.ABORTING, Reason.LABEL_OWNED_ELSEWHERE)
    assert released(verdict).uncordon


OVERWRITTEN: dict[str, Any] = {"labels": {MIG: "all-disabled", names.LABEL_MIG_STATE: "success"}}
OWED = replace(FENCE, owed=f"{FENCE.target_mig_config} {FENCE.target_plugin_config} 2x3g.40gb", attempt=2)
"""Another run to the same layout is recorded and has not begun."""


def test_past_the_point_of_no_return_the_label_is_not_set_again_against_a_controller() -> None:
    """The GPUs would be repartitioned back and forth. It goes on by itself when the label is free again."""
    given: dict[str, Any] = {**OVERWRITTEN, "fence": OWED, **proven_idle(60)}
    held = after_pnr(changing(node={"label_owners": {MIG: NFD}}, **given))
    assert (held.reason, held.actions) == (Reason.LABEL_OWNED_ELSEWHERE, ())
    late = after_pnr(changing(node={"label_owners": {MIG: NFD}}, **{**given, "now": 9999}))
    assert (late.phase, late.reason) == (Phase.FAILED, Reason.LABEL_OWNED_ELSEWHERE)
    assert isinstance(only(after_pnr(changing(**given))), Actuate)


# --- a field manager that replaced our value --------------------------------------------------------------------

SEVENTHS = make_policy(generation=2, mig={"strategy": "mixed", "layouts": [{"profiles": {"1g.10gb": 7}}]})


def rewritten(policy: PolicyView, manager: str = KYVERNO, *, corrected: str = "", **fields: Any) -> NodeCase:
    """gpu-07, proven as 2x3g.40gb, whose mig.config this manager has set to all-disabled since."""
    proof = proof_of(MIXED, corrected)
    node = {"verified": proof, "label_rewriters": {MIG: manager}, **fields.pop("node", {})}
    return make_case(policy, was=MIXED, node=node, drifting_since=at(-60), **OVERWRITTEN, **fields)


def test_after_an_edit_no_change_begins_that_would_write_what_somebody_has_replaced() -> None:
    gate = gate_of(rewritten(SEVENTHS))
    assert gate is not None
    assert gate.reason is Reason.LABEL_OWNED_ELSEWHERE
    told = "has overwritten the operator's value; stop it from doing so, then set gpusharing.dev/retry"
    assert not lacks(gate.message, KYVERNO, told, "GPUNode", "new value")


def test_a_person_who_asks_for_another_try_answers_for_that() -> None:
    assert gate_of(rewritten(SEVENTHS, node={"retry": "again"})) is None


@pytest.mark.parametrize("manager", ["kubectl", "kubectl-label", "kubectl-edit", "kubelet", "gpu-operator"])
def test_tools_of_people_and_the_gpu_operator_keep_no_label(manager: str) -> None:
    case = rewritten(SEVENTHS, manager)
    assert gate_of(case) is None
    assert find_owners(case.node) == {}


def test_a_controller_that_lists_the_label_is_named_before_its_field_manager() -> None:
    case = rewritten(SEVENTHS, "nfd-master", node={"label_owners": {MIG: NFD}})
    assert find_owners(case.node) == {MIG: NFD}


def test_drift_is_corrected_once_whoever_wrote_the_label_and_then_names_the_manager() -> None:
    assert gate_of(rewritten(MIXED)) is None
    gate = gate_of(rewritten(MIXED, corrected=MIXED.version.revision))
    assert gate is not None
    assert gate.reason is Reason.DRIFT_RETURNED
    assert not lacks(gate.message, KYVERNO, f"write {MIG}")


def test_in_the_middle_of_a_change_the_label_is_set_again_and_its_manager_named() -> None:
    node = {"label_rewriters": {MIG: KYVERNO}}
    told = after_pnr(changing(node=node, now=60, **OVERWRITTEN))
    assert told.message.endswith(f"{KYVERNO} changed it; setting it again")
    begun = only(after_pnr(changing(node=node, **OVERWRITTEN, fence=OWED, **proven_idle(60))))
    assert isinstance(begun, Actuate)
