"""Somebody else works on a node or keeps a label of it: we stand aside, lift our cordon afterwards, and write nothing against them.
`planning/transition/actuation.py`, `planning/transition/attempts.py`, `planning/wanted/assess.py`."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import NOW, at, make_fence, make_operand, make_pod, make_policy, make_snapshot, make_work
from tests.planning.cases import (
    MIXED,
    MPS,
    SLICED,
    T4,
    assessed_of,
    copy_of,
    judged,
    make_case,
    pair_of,
    pool_of,
    proof_of,
)
from tests.planning.changes import FENCE as RUN
from tests.planning.changes import changing, only, proven_idle
from tests.planning.drains import FENCE, fenced, released
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.kube.fence import parse_record, patch_for, record_text
from gpusharing.planning.report.transition import who_ends, who_keeps
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import Actuate, EnsureGPUNode, FenceNode, SetFinalizer, UpdateFence
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.actuation import yielded
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.attempts import UNLOADING, find_quiet
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.gates import find_gate
from gpusharing.planning.transition.judge import judge
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import find_owners

ADDED = (names.LABEL_UPGRADE_SKIP, *names.NEIGHBOR_ANNOTATIONS)
OURS = replace(FENCE, added=ADDED)
ASIDE = replace(OURS, stage="yielded", added=(), stage_since=at(-60))


def test_a_foreign_marker_takes_our_marks_away_and_leaves_fence_and_cordon() -> None:
    """NVIDIA's driver upgrade skips a node that carries them."""
    verdict = before_pnr(fenced(fence=OURS, node={"foreign": "driver upgrade"}, work=make_work(make_pod())))
    assert (verdict.phase, verdict.reason) == (Phase.ABORTING, Reason.FOREIGN_MAINTENANCE)
    (action,) = verdict.actions
    assert isinstance(action, UpdateFence)
    assert (action.fence.stage, action.fence.added, action.cordon) == ("yielded", (), False)
    body = patch_for(action, "7")
    assert body["metadata"]["labels"] == {names.LABEL_UPGRADE_SKIP: None}
    annotations = dict(body["metadata"]["annotations"])
    assert parse_record(Fence, annotations.pop(names.ANNOTATION_FENCE))[0] == action.fence
    assert annotations == dict.fromkeys(names.NEIGHBOR_ANNOTATIONS)
    assert "spec" not in body


@pytest.mark.parametrize("fields", [{"owner": "other"}, {"policy": None}, {"fence": replace(OURS, deadline=at(-900))}])
def test_whatever_ends_a_change_leaves_the_cordon_to_somebody_else_for_a_while_only(fields: dict[str, Any]) -> None:
    (action,) = before_pnr(fenced(**{"fence": OURS, "node": {"foreign": "kured"}, **fields})).actions
    assert isinstance(action, UpdateFence)
    assert action.fence.stage == "yielded"


QUEUED = {"foreign": "driver upgrade", "foreign_waits": True, "foreign_queued": True}


def test_who_only_waits_for_its_turn_ends_no_change() -> None:
    """Our marks keep it away until the change is done: a driver upgrade marks every node at once."""
    verdict = before_pnr(fenced(fence=OURS, node=QUEUED, work=make_work(make_pod())))
    assert verdict.phase is Phase.DRAINING


def test_a_change_that_ends_lifts_its_cordon_under_a_mark_that_only_waits() -> None:
    late = replace(OURS, deadline=at(-900))
    assert released(before_pnr(fenced(fence=late, node=QUEUED))).uncordon


def aside(**fields: Any) -> NodeCase:
    """gpu-07, left to somebody else a minute ago."""
    return fenced(**{"fence": ASIDE, "work": None, **fields})


def test_while_the_marker_is_there_nothing_is_done_whatever_the_time() -> None:
    verdict = yielded(aside(node={"foreign": "kured"}, now=at(10**6)))
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE)
    assert (verdict.actions, verdict.wants_pods, verdict.deadline) == ((), False, None)


@pytest.mark.parametrize(
    ("waits", "said"),
    [(False, "kured is working on gpu-07"), (True, "kured has not finished with gpu-07")],
    ids=["at work", "stopped in the middle, or nobody can tell"],
)
def test_it_says_how_far_the_other_one_is(waits: bool, said: str) -> None:
    message = yielded(aside(node={"foreign": "kured", "foreign_waits": waits})).message
    assert not lacks(message, said, "uncordons")


def test_a_node_whose_marker_only_waits_again_is_given_back() -> None:
    verdict = yielded(aside(node=QUEUED))
    assert (verdict.phase, released(verdict).uncordon) == (Phase.UNCORDONING, True)


def test_when_the_marker_goes_our_own_cordon_is_lifted_and_the_next_try_waits() -> None:
    verdict = yielded(aside())
    assert (verdict.phase, verdict.reason) == (Phase.UNCORDONING, Reason.FOREIGN_MAINTENANCE)
    action = released(verdict)
    assert (action.uncordon, action.labels, action.annotations) == (True, {names.LABEL_MODE: "full"}, {})
    assert action.deferred is not None
    assert action.deferred.until > NOW


def test_the_cordon_of_a_proven_node_is_lifted_when_the_other_one_is_done_and_nothing_else_changes() -> None:
    proven = replace(ASIDE, proven=at(-60), from_mode="mig")
    waiting = yielded(aside(fence=proven, node={"foreign": "kured"}))
    assert (waiting.phase, waiting.reason) == (Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE)
    verdict = yielded(aside(fence=proven))
    assert not lacks(verdict.message, "gpu-07", "returned to service")
    action = released(verdict)
    assert (action.uncordon, action.labels) == (True, {names.LABEL_MODE: "mig"})
    assert action.deferred is None, "there is no next try"


KEPT: dict[str, dict[str, Any]] = {
    "a person wants it": {"node": {"hold_cordon": True}},
    "it was there before us": {"fence": replace(ASIDE, prior_unschedulable=True)},
    "it is the cordon of a new node": {"fence": replace(ASIDE, node_uid="old")},
    "the node is being deleted": {"node": {"deleting": True}},
    "somebody lifted it": {"node": {"unschedulable": False}},
    "somebody lifted it, and the other one still works": {"node": {"unschedulable": False, "foreign": "kured"}},
}


def test_a_new_node_of_the_name_does_not_get_the_routing_label_of_the_one_before_it() -> None:
    """Nothing is proven on it: pods that need the mode would land on whatever it is."""
    assert released(yielded(aside(fence=replace(ASIDE, node_uid="old")))).labels == {}


@pytest.mark.parametrize("fields", KEPT.values(), ids=KEPT.keys())
def test_no_other_cordon_is_lifted(fields: dict[str, Any]) -> None:
    assert not released(yielded(aside(**fields))).uncordon


@pytest.mark.parametrize(
    ("foreign", "said"),
    [
        ("", "nobody else is working on gpu-07 anymore; it is being restored"),
        ("kured", "someone uncordoned gpu-07; kured decides what happens next"),
    ],
    ids=["nobody", "somebody"],
)
def test_a_node_that_is_given_back_says_whether_somebody_still_works_on_it(foreign: str, said: str) -> None:
    assert yielded(aside(node={"unschedulable": False, "foreign": foreign})).message == said


@pytest.mark.parametrize(
    ("foreign", "labels", "quiet"),
    [
        pytest.param("kured", {}, False, id="it reads on while somebody else works"),
        pytest.param(
            "driver upgrade", {names.LABEL_UPGRADE_STATE: "pod-restart-required"}, True,
            id="it keeps NVML closed while the driver is replaced",
        ),
    ],
)  # fmt: skip
def test_the_agent_is_asked_for_the_opposite_of_what_it_does(foreign: str, labels: dict[str, str], quiet: bool) -> None:
    case = aside(node={"foreign": foreign}, labels=labels)
    assert case.gpunode is not None
    (request,) = judged(replace(case, gpunode=replace(case.gpunode, quiet=not quiet))).actions
    assert isinstance(request, EnsureGPUNode)
    assert (request.quiet, request.quiet_gpus) == (quiet, ())


def test_an_agent_that_reads_some_gpus_is_asked_to_close_nvml_when_somebody_replaces_the_driver() -> None:
    labels = {names.LABEL_UPGRADE_STATE: "pod-restart-required"}
    case = aside(node={"foreign": "driver upgrade"}, labels=labels)
    assert case.gpunode is not None
    some = replace(case.gpunode, quiet=True, quiet_gpus=(1,))
    (request,) = judged(replace(case, gpunode=some)).actions
    assert isinstance(request, EnsureGPUNode)
    assert (request.quiet, request.quiet_gpus) == (True, ())
    assert request.request_id.endswith(":close")
    closed = replace(some, request_id=request.request_id, quiet_gpus=())
    assert not judged(replace(case, gpunode=closed)).actions


def test_a_fence_of_an_older_operator_is_readable() -> None:
    record = json.loads(record_text(FENCE))
    del record["owed"]
    assert parse_record(Fence, json.dumps(record)) == (FENCE, "")
    assert parse_record(Fence, record_text(ASIDE)) == (ASIDE, "")


def test_a_yielded_node_takes_a_slot_of_its_pool_and_none_of_the_whole_operator() -> None:
    world = pool_of(3)
    world.set_policy(make_policy(rollout={"maxUnavailable": 2}))
    world.settings = replace(world.settings, max_in_flight=1, config_propagation=0)
    node = world.nodes["n0"]
    known = replace(ASIDE, node_uid=node.uid, policy="pool-b")
    world.nodes["n0"] = replace(node, fence=known, unschedulable=True, foreign="kured")
    began: set[str] = set()
    for _ in range(20):
        plan = world.step()
        began |= {v.node for v in plan.verdicts.values() for a in v.actions if isinstance(a, FenceNode)}
    assert len(began) == 1, "one more by maxUnavailable, although the operator may have one in flight only"


def test_a_deleted_policy_does_not_wait_for_what_somebody_else_does() -> None:
    gone = replace(MIXED, deleting=True, finalizer=True)
    case = aside(node={"foreign": "kured"})
    assert case.gpunode is not None
    snapshot = make_snapshot([case.node], [gone], gpunodes=[case.gpunode], mig_managers={"gpu-07": make_operand()})
    assert SetFinalizer("pool-b", False, gone.uid) in plan_rollout(snapshot, NOW).shared


def test_a_policy_released_by_force_does_not_leave_our_cordon_behind_where_somebody_else_works() -> None:
    gone = replace(MIXED, deleting=True, finalizer=True, force_release=True)
    waiting = judged(aside(node={"foreign": "kured"}, policy=gone))
    assert (waiting.phase, waiting.reason, waiting.actions) == (Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE, ())
    assert released(judged(aside(policy=gone))).uncordon


# --- when the agent keeps NVML closed (planning/transition/attempts.py) ------------------------------------------------

STATE, UPGRADE = names.LABEL_MIG_STATE, names.LABEL_UPGRADE_STATE
PAUSED = {f"{names.LABEL_DEPLOY_PREFIX}device-plugin": "true_paused-for-driver-upgrade"}
ALL_STATES = (
    "upgrade-required", "cordon-required", "wait-for-jobs-required", "pod-deletion-required", "drain-required",
    "node-maintenance-required", "post-maintenance-required", "pod-restart-required", "validation-required",
    "uncordon-required", "upgrade-done", "upgrade-failed",
)  # fmt: skip
"""In their order (k8s-operator-libs pkg/upgrade/consts.go at 11e747a; docs/design/nvidia.md#d4)."""


QUIET: dict[str, tuple[Mapping[str, str], Reason]] = {
    "mig-manager works on an admin's own label": ({STATE: "pending"}, Reason.ACTUATOR_BUSY),
    "a reboot switches MIG on": ({STATE: "rebooting"}, Reason.ACTUATOR_BUSY),
    "the operands are paused for a driver upgrade": (PAUSED, Reason.FOREIGN_MAINTENANCE),
    **{f"a driver upgrade is at {state}": ({UPGRADE: state}, Reason.FOREIGN_MAINTENANCE) for state in ALL_STATES[3:8]},
}
OPEN: dict[str, Mapping[str, str]] = {
    "nothing happens": {},
    "mig-manager is done": {STATE: "success"},
    "mig-manager failed": {STATE: "failed"},
    "mig-manager paused the operands, and nobody unloads a driver": {
        f"{names.LABEL_DEPLOY_PREFIX}dcgm": "paused-for-mig-change"
    },
    "an upgrade that failed left the operands paused": {UPGRADE: "upgrade-failed", **PAUSED},
    "an upgrade is asked for, and an older one left the operands paused": {
        UPGRADE: "upgrade-required",
        **PAUSED,
    },
    **{f"a driver upgrade is at {state}": {UPGRADE: state} for state in (*ALL_STATES[:3], *ALL_STATES[8:])},
}


def test_the_states_of_a_driver_upgrade_are_those_of_nvidia() -> None:
    assert set(ALL_STATES[3:8]) == UNLOADING
    assert {ALL_STATES[0], ALL_STATES[-1]} == names.UPGRADE_LASTING


@pytest.mark.parametrize(("labels", "reason"), QUIET.values(), ids=QUIET.keys())
def test_nvml_stays_closed_and_nothing_begins_meanwhile(labels: Mapping[str, str], reason: Reason) -> None:
    quiet = find_quiet(make_case(MIXED, was=MIXED, labels=labels))
    assert quiet is not None
    assert quiet.reason is reason
    assert "keeps NVML closed" in quiet.message
    verdict = judged(make_case(MIXED, labels=labels))
    assert (verdict.phase, verdict.reason, verdict.candidate) == (Phase.BLOCKED, reason, False)


def test_nvml_may_be_opened_until_the_maintenance_that_an_upgrade_asked_for_begins() -> None:
    queued = {"foreign": "NVIDIA NodeMaintenance a/b", "foreign_waits": True, "foreign_queued": True}
    asked = {UPGRADE: "node-maintenance-required"}
    assert find_quiet(make_case(MIXED, was=MIXED, labels=asked, node=queued)) is None
    later = {UPGRADE: "pod-restart-required"}
    assert find_quiet(make_case(MIXED, was=MIXED, labels=later, node=queued)) is not None


@pytest.mark.parametrize("labels", OPEN.values(), ids=OPEN.keys())
def test_nvml_may_be_opened(labels: Mapping[str, str]) -> None:
    assert find_quiet(make_case(MIXED, was=MIXED, labels=labels)) is None


def test_a_mig_manager_that_does_not_end_is_looked_at_in_the_end() -> None:
    def waiting(seconds: float) -> NodeCase:
        return make_case(MIXED, was=MIXED, labels={STATE: "pending"}, seen_since=NOW, now=at(seconds))

    quiet = find_quiet(waiting(1199))
    assert quiet is not None
    assert quiet.until == at(1200)
    assert find_quiet(waiting(1200)) is None


def test_in_a_change_of_ours_the_change_says_when_to_be_quiet() -> None:
    assert find_quiet(make_case(MIXED, labels={STATE: "pending"}, fence=make_fence())) is None


def asked(case: NodeCase) -> tuple[str, bool] | None:
    for action in judged(case).actions:
        if isinstance(action, EnsureGPUNode):
            return action.request_id, action.quiet
    return None


def test_the_agent_is_asked_to_close_and_to_open_again_and_not_twice() -> None:
    closing = make_case(MIXED, was=MIXED, labels={STATE: "pending"})
    assert closing.gpunode is not None
    request = asked(closing)
    assert request == (f"{closing.gpunode.request_id}:close", True)
    closed = replace(closing.gpunode, request_id=request[0], quiet=True)
    assert asked(make_case(MIXED, was=MIXED, labels={STATE: "pending"}, gpunode=closed)) is None
    again = asked(make_case(MIXED, was=MIXED, gpunode=closed))
    assert again == (f"{closing.gpunode.request_id}:resume", False)


def test_the_name_of_a_request_does_not_grow_with_every_turn() -> None:
    gpunode = make_case(MIXED, was=MIXED).gpunode
    assert gpunode is not None
    for labels in ({STATE: "pending"}, {STATE: "success"}) * 50:
        request = asked(make_case(MIXED, was=MIXED, labels=labels, gpunode=gpunode))
        assert request is not None
        gpunode = replace(gpunode, request_id=request[0], quiet=request[1])
    assert len(gpunode.request_id) < 64


@pytest.mark.parametrize(
    "case",
    [make_case(MIXED, was=MIXED, labels=PAUSED), make_case(MIXED, fence=make_fence("actuating"))],
    ids=["it comes while the driver is replaced", "it loses its request in the middle of a change"],
)
def test_an_agent_without_a_request_is_told_to_be_quiet_when(case: NodeCase) -> None:
    assert asked(replace(case, gpunode=None)) == ("new:uid-gpu-07", True)


def test_a_node_that_no_policy_selects_is_kept_quiet_as_well() -> None:
    request = asked(make_case(None, labels={STATE: "pending"}))
    assert request is not None
    assert request[1]


# --- in a world whose clock runs ---------------------------------------------------------------------------


def label(world: World, **labels: str) -> None:
    node = world.nodes["gpu-07"]
    kept = {**node.labels, **labels}
    world.nodes["gpu-07"] = replace(node, labels=kept)


def walk(world: World, seconds: int) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    for _ in range(seconds):
        plan = world.step()
        verdict = plan.verdicts["gpu-07"]
        assert not any(isinstance(action, FenceNode) for action in verdict.actions)
        told = (str(verdict.phase), str(verdict.reason))
        if not seen or seen[-1] != told:
            seen.append(told)
        world.now += timedelta(seconds=1)
        world.agent("gpu-07")
    return seen


def test_a_node_that_was_only_looked_away_from_is_no_drift() -> None:
    world = copy_of(MIXED)
    label(world, **{STATE: "pending"})
    assert walk(world, 600) == [("Blocked", "ActuatorBusy")]
    label(world, **{STATE: "success"})
    assert walk(world, 120)[-1] == ("Synced", "Synced")


def test_what_is_seen_after_the_quiet_has_its_own_grace() -> None:
    world = copy_of(SLICED)
    label(world, **{STATE: "pending"})
    walk(world, 600)
    node = world.nodes["gpu-07"]
    world.nodes["gpu-07"] = replace(node, resources={})
    label(world, **{STATE: "success"})
    assert ("Pending", "Drifted") in walk(world, 50)


# --- somebody else keeps a label by which a node is changed (wanted/assess.py) -----------------------------------------

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


GATES: dict[str, tuple[NodeCase, Reason | None]] = {
    "the label of the device plugin": (owned(SLICED, PLUGIN), Reason.LABEL_OWNED_ELSEWHERE),
    "a label that only the stop on the way changes": (owned(MPS, PLUGIN, was=MIXED), Reason.LABEL_OWNED_ELSEWHERE),
    "drift that would be corrected": (
        owned(MIXED, MIG, was=MIXED, labels={MIG: "all-disabled"}, drifting_since=at(-60)),
        Reason.LABEL_OWNED_ELSEWHERE),
    "a label that the change does not touch": (
        owned(SLICED, MIG, labels={MIG: "all-disabled", names.LABEL_MIG_STATE: "success"}), None),
    "a label that nothing reads on a card without MIG": (owned(SLICED, MIG, products=(T4,), operand=None), None),
}  # fmt: skip


@pytest.mark.parametrize(("case", "reason"), GATES.values(), ids=GATES)
def test_a_change_begins_or_is_held_by(case: NodeCase, reason: Reason | None) -> None:
    gate = gate_of(case)
    assert (gate.reason if gate is not None else None) is reason


def test_a_node_that_has_what_the_policy_wants_is_as_wanted_whoever_set_the_label() -> None:
    verdict = judge(owned(MIXED, MIG, PLUGIN, was=MIXED))
    assert verdict is not None
    assert (verdict.phase, verdict.reason) == (Phase.SYNCED, Reason.SYNCED)


def test_a_drain_is_given_up_when_a_controller_takes_the_label() -> None:
    verdict = before_pnr(fenced(MIXED, node={"label_owners": {MIG: NFD}}))
    assert (verdict.phase, verdict.reason) == (Phase.ABORTING, Reason.LABEL_OWNED_ELSEWHERE)
    assert released(verdict).uncordon


OVERWRITTEN: dict[str, Any] = {"labels": {MIG: "all-disabled", names.LABEL_MIG_STATE: "success"}}
OWED = replace(RUN, owed=f"{RUN.target_mig_config} {RUN.target_plugin_config} 2x3g.40gb", attempt=2)
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
