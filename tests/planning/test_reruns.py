"""Cures, retries and restarts after the point of no return: each on a node proven idle anew, each within its time.
Through `planning/transition/after.py`: `planning/transition/actuation.py`, `planning/transition/idle.py`, `planning/transition/attempts.py`."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import ask_anew, at, make_cluster_policy, make_gpu, make_gpunode, make_operand, make_pod, make_stack
from tests.planning.cases import (
    EVENT,
    FULL,
    MIXED,
    MPS,
    SINGLE,
    SLICED,
    assessed_of,
    copy_of,
    edited,
    make_case,
    pair_of,
    quiet_report,
    world_of,
)
from tests.planning.changes import (
    FAILED,
    FENCE,
    MIG_CONFIG,
    MIG_STATE,
    PAUSED,
    PLUGIN,
    VERIFY,
    answering,
    asked_at,
    changing,
    emptied,
    fence_to,
    only,
    proven_idle,
)

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    EnsureGPUNode,
    Evict,
    Release,
    RestartOperand,
    UpdateFence,
)
from gpusharing.planning.snapshot.nvidia import PlainStackView
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import GPUNodeView, PolicyView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators import LABELS
from gpusharing.planning.wanted.assess import Assessed

PENDING: dict[str, str | None] = {MIG_STATE: "pending"}
OWED = replace(FENCE, owed=f"{FENCE.target_mig_config} {FENCE.target_plugin_config} 2x3g.40gb")
"""Another run to the same layout is recorded and has not begun."""

# --- cures ---------------------------------------------------------------------------------------------------------

WEDGES: dict[str, tuple[dict[str, str | None], float]] = {
    "pending for ever": (PENDING, 1200),
    "never begun": ({MIG_STATE: None}, 1200),
    "operands paused after success": (PAUSED, 15),
    "operands paused after a failure": ({MIG_STATE: "failed", **PAUSED}, 60),
}
OVERWRITTEN: dict[str, tuple[dict[str, str | None], float]] = {
    "all-disabled over our label": ({MIG_CONFIG: "all-disabled", MIG_STATE: "success"}, 60),
    "our label deleted": ({MIG_CONFIG: None}, 60),
    "another configuration that failed": ({MIG_CONFIG: "theirs", MIG_STATE: "failed"}, 60),
}
CURED = WEDGES | OVERWRITTEN


@pytest.mark.parametrize(("labels", "now"), CURED.values(), ids=CURED.keys())
def test_a_wedge_is_cured_twice_and_then_the_node_is_failed(labels: dict[str, str | None], now: float) -> None:
    for attempt in (1, 2):
        proven = replace(FENCE, attempt=attempt, proven=at(-1))
        action = only(after_pnr(changing(labels=labels, now=now, fence=proven)))
        assert isinstance(action, UpdateFence)
        owed = action.fence
        assert (owed.attempt, owed.owed, owed.proven) == (attempt + 1, OWED.owed, None)
    last = after_pnr(changing(labels=labels, now=now, fence=replace(FENCE, attempt=3)))
    assert (last.phase, last.actions) == (Phase.FAILED, ())
    assert "gpusharing.dev/retry" in last.message


@pytest.mark.parametrize(("labels", "now"), WEDGES.values(), ids=WEDGES.keys())
def test_a_cure_restarts_mig_manager_once_the_node_is_proven_idle_anew(
    labels: dict[str, str | None], now: float
) -> None:
    fence = replace(OWED, attempt=2, proven=at(0))
    landed = after_pnr(changing(labels=labels, fence=fence, now=now, work=emptied(now, make_pod("late"))))
    assert isinstance(only(landed), Evict)
    action = only(after_pnr(changing(labels=labels, fence=fence, **proven_idle(now))))
    assert isinstance(action, Actuate)
    assert not action.labels
    assert (action.fence.restart_uid, action.fence.attempt) == (make_operand().uid, 2)
    assert action.fence.proven is None
    begun = action.fence
    assert (begun.stage_since, begun.deadline, begun.owed) == (at(now), at(now + 2400), "")


@pytest.mark.parametrize(("labels", "now"), OVERWRITTEN.values(), ids=OVERWRITTEN.keys())
def test_a_label_that_somebody_wrote_over_is_set_again_once_the_node_is_proven_idle_anew(
    labels: dict[str, str | None], now: float
) -> None:
    """NVIDIA's GPU Operator writes all-disabled where it finds no label (docs/design/nvidia.md#d1)."""
    told = after_pnr(changing(labels=labels, now=now))
    assert told.message.startswith("nvidia.com/mig.config is ")
    assert told.message.endswith("someone changed it; setting it again")
    action = only(after_pnr(changing(labels=labels, fence=replace(OWED, attempt=2), **proven_idle(now))))
    assert action.labels[MIG_CONFIG] == FENCE.target_mig_config
    assert action.fence.restart_uid == "", "a mig-manager that rests takes up the value by itself"


def test_the_reading_before_the_point_of_no_return_proves_nothing_for_a_cure() -> None:
    before = quiet_report(MIXED, asked_at(-1).replace("event", "earlier"))
    empty = replace(emptied(16), quiet_since=at(-0.5))
    verdict = after_pnr(changing(labels=PAUSED, fence=OWED, now=16, work=empty, gpunode=before))
    assert (verdict.phase, isinstance(only(verdict), EnsureGPUNode)) == (Phase.VERIFYING_IDLE, True)


def test_no_run_begins_on_a_node_that_is_being_deleted() -> None:
    ready: dict[str, Any] = {"labels": PAUSED, "fence": OWED, **proven_idle(60)}
    assert isinstance(only(after_pnr(changing(**ready))), Actuate)
    going = after_pnr(changing(**{**ready, "node": {"deleting": True}}))
    assert (going.reason, going.actions) == (Reason.NODE_NOT_READY, ())


# --- restarts ------------------------------------------------------------------------------------------------------

RESTARTING = replace(FENCE, restart_uid=make_operand().uid, attempt=2)
BUSY = make_gpu(layout=(("3g.40gb", 2),), processes=("python",))
UNPROVEN: dict[str, dict[str, Any]] = {
    "a pod landed": {"work": emptied(60, make_pod())},
    "nobody listed the pods": {"work": None},
    "the agent has NVML open": {"gpunode": answering()},
    "the agent has not answered": {"gpunode": replace(answering(), quiet=True, request_id=asked_at(57))},
    "the agent is away": {"agent_ready": False},
    "the kubelet is away": {"node": {"ready": False}},
    "a process computes": {"gpunode": quiet_report(MIXED, asked_at(57), gpus=(BUSY,))},
    "only one LIST was empty": {"work": replace(emptied(60), empty_lists=(at(60),))},
}  # fmt: skip


@pytest.mark.parametrize("fields", UNPROVEN.values(), ids=UNPROVEN.keys())
def test_a_recorded_restart_waits_until_the_node_is_proven_idle(fields: dict[str, Any]) -> None:
    idle = proven_idle(60) | fields
    verdict = after_pnr(changing(fence=RESTARTING, **idle))
    assert verdict.phase in (Phase.DRAINING, Phase.VERIFYING_IDLE)
    assert not any(isinstance(action, RestartOperand) for action in verdict.actions)
    late = after_pnr(changing(fence=replace(RESTARTING, deadline=at(60), failed=at(60)), **idle))
    assert (late.phase, late.reason, late.actions) == (Phase.FAILED, verdict.reason, verdict.actions)


def test_the_restart_follows_from_the_record_and_is_not_repeated_for_the_next_pod() -> None:
    action = only(after_pnr(changing(fence=RESTARTING, **proven_idle(60))))
    assert isinstance(action, RestartOperand)
    assert action.uid == RESTARTING.restart_uid
    again = after_pnr(changing(fence=RESTARTING, operand=make_operand(serial=1), **proven_idle(60)))
    assert not any(isinstance(action, RestartOperand) for action in again.actions)


def test_the_mps_daemon_is_restarted_on_a_node_proven_idle_only() -> None:
    daemon = copy_of(MPS).machines["gpu-07"].mps_daemon
    assert daemon is not None
    more = edited(MPS, mps=MPS.spec.mps.model_copy(update={"replicas": 8}) if MPS.spec and MPS.spec.mps else None)
    fence = fence_to(more, to_layout="", daemon_uid=daemon.uid)
    known: dict[str, Any] = {"was": MPS, "fence": fence, "mps_daemon": daemon}
    idle = {**proven_idle(60, MPS), "stack": make_stack(MPS, more)}
    landed = after_pnr(changing(more, **known, **{**idle, "work": emptied(60, make_pod())}))
    assert isinstance(only(landed), Evict)
    assert isinstance(only(after_pnr(changing(more, **known, **idle))), RestartOperand)


@pytest.mark.parametrize(
    "plain", [None, PlainStackView("nvdp-plugin", "nvdp")], ids=["the GPU Operator", "NVIDIA's chart"]
)
def test_the_mps_daemon_of_nvidias_chart_is_never_restarted(plain: PlainStackView | None) -> None:
    """Its pod has the labels of the device plugin's, which the operator may not delete."""
    daemon = copy_of(MPS).machines["gpu-07"].mps_daemon
    assert daemon is not None
    stack = make_stack(MPS, SLICED, cluster_policy=replace(make_cluster_policy(), plain=plain))
    exclusive = make_gpunode(gpus=(make_gpu(compute_mode="ExclusiveProcess"),))
    case = make_case(
        MPS, was=MPS, mps_daemon=daemon, stack=stack, labels={PLUGIN: pair_of(SLICED)[1]}, gpunode=exclusive
    )
    assert isinstance(case.assessment, Assessed)
    written, _ = LABELS.write(case, fence_to(MPS), case.assessment.target, None, False)
    assert written.daemon_uid == ("" if plain else daemon.uid)


# --- a label that leads to no entry --------------------------------------------------------------------------------


def test_after_a_label_that_leads_to_no_entry_gfd_need_not_have_started_anew() -> None:
    """Up to 0.18.1 the plugin and GFD never left the entry that is wanted, and so do not restart."""
    stack = make_stack(SLICED, MPS)
    for label, demanded in (("gone", False), (pair_of(MPS)[1], True)):
        case = make_case(SLICED, was=SLICED, labels={PLUGIN: label}, stack=stack)
        target, shown = assessed_of(case).target, case.node.labels[names.LABEL_GFD_TIMESTAMP]
        written, labels = LABELS.write(case, fence_to(SLICED), target, None, False)
        assert (written.gfd_timestamp, labels) == (shown if demanded else "", {PLUGIN: target.plugin_key})
        begun = fence_to(SLICED, gfd_timestamp="1")
        again, _ = LABELS.write(case, begun, target, None, True)
        lost = LABELS.find_lost(case, begun)
        assert lost is not None
        assert [again.gfd_timestamp, lost[0].gfd_timestamp] == [shown if demanded else "1"] * 2


FALLEN_BACK: dict[str, dict[str, Any]] = {
    "the plugin": {"node": {"resources": {"nvidia.com/gpu": 1}}},
    "GFD": {"labels": {PLUGIN: "gone", names.LABEL_MPS_CAPABLE: "false"}},
    "the MPS daemon": {"gpunode": answering(was=MPS, gpus=(make_gpu(),))},
}


@pytest.mark.parametrize("known", [{}, *FALLEN_BACK.values()], ids=["nobody", *FALLEN_BACK])
def test_the_mps_daemon_restarts_after_a_label_that_leads_to_no_entry_if_something_fell_back(
    known: dict[str, Any],
) -> None:
    daemon = copy_of(MPS).machines["gpu-07"].mps_daemon
    case = make_case(MPS, was=MPS, mps_daemon=daemon, **{"labels": {PLUGIN: "gone"}, **known})
    assessed = assessed_of(case)
    assert assessed.disruption is (DisruptionClass.GPU_PODS if known else DisruptionClass.PLUGIN_RESTART)
    written, _ = LABELS.write(case, fence_to(MPS), assessed.target, None, False)
    exclusive = any(gpu.compute_mode != "Default" for gpu in assessed.observed.gpus)
    assert written.daemon_uid == (daemon.uid if daemon and known and exclusive else "")


@pytest.mark.parametrize("operand", [replace(make_operand(), deleting=True)])
def test_a_pod_that_is_on_its_way_out_is_not_deleted_again_and_may_not_take_for_ever(operand: Any) -> None:
    case = changing(fence=RESTARTING, operand=operand, **proven_idle(60))
    assert (after_pnr(case).phase, after_pnr(case).actions) == (Phase.RECONFIGURING, ())
    stuck = after_pnr(replace(case, now=at(10**6)))
    assert (stuck.phase, stuck.reason, stuck.wake) == (Phase.FAILED, Reason.ACTUATOR_STUCK, at(10**6 + 5))


@pytest.mark.parametrize("state", ["success", "failed"])
def test_after_a_restart_the_old_state_is_not_believed(state: str) -> None:
    fresh = make_operand(serial=1)
    verdict = after_pnr(changing(fence=RESTARTING, labels={MIG_STATE: state}, operand=fresh, now=29))
    assert (verdict.phase, verdict.reason) == (Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS)
    later = after_pnr(changing(fence=RESTARTING, labels={MIG_STATE: state}, operand=fresh, now=30))
    assert later.phase is not Phase.RECONFIGURING


def test_without_a_pod_to_restart_it_waits_until_the_deadline_and_is_failed_then() -> None:
    stuck = changing(labels=PENDING, fence=OWED, operand=None, **proven_idle(1200))
    waiting = after_pnr(stuck)
    assert (waiting.phase, waiting.reason) == (Phase.VERIFYING_IDLE, Reason.ACTUATOR_MISSING)
    late = after_pnr(replace(stuck, now=at(2400)))
    assert (late.phase, late.reason) == (Phase.FAILED, Reason.ACTUATOR_MISSING)


# --- retries -------------------------------------------------------------------------------------------------------

AGAIN = {"retry": "again"}


def test_a_new_value_of_the_retry_annotation_is_answered_once_and_with_a_new_deadline() -> None:
    action = only(after_pnr(changing(labels=FAILED, node=AGAIN)))
    assert isinstance(action, UpdateFence)
    assert (action.fence.attempt, action.fence.retry, action.fence.owed) == (1, "again", OWED.owed)
    assert action.fence.deadline == at(60) + timedelta(minutes=15, seconds=120 + 120)
    cases = (changing(labels=FAILED, node=n, fence=replace(FENCE, retry="again")) for n in (AGAIN, {}))
    assert {after_pnr(case).phase for case in cases} == {Phase.FAILED}, "it is there still, or gone"


def test_a_retry_works_for_a_node_that_is_stuck_past_its_deadline_too() -> None:
    case = changing(labels={MIG_STATE: "rebooting"}, now=2400, node=AGAIN)
    assert isinstance(only(after_pnr(case)), UpdateFence)


def test_a_retry_writes_our_labels_again_when_somebody_overwrote_them() -> None:
    theirs: dict[str, str | None] = {MIG_CONFIG: "all-disabled", PLUGIN: "theirs", MIG_STATE: "success"}
    lost = after_pnr(changing(labels=theirs, now=2400, fence=replace(FENCE, attempt=3)))
    assert lost.phase is Phase.FAILED
    fence = replace(OWED, retry="again")
    action = only(after_pnr(changing(labels=theirs, fence=fence, node=AGAIN, **proven_idle(2500))))
    assert isinstance(action, Actuate)
    assert action.labels == {MIG_CONFIG: FENCE.target_mig_config, MIG_STATE: None, PLUGIN: FENCE.target_plugin_config}
    assert action.fence.restart_uid == "", "a mig-manager that rests takes up the value by itself"


def test_a_retry_restarts_a_mig_manager_that_is_stuck_with_somebody_elses_value() -> None:
    theirs: dict[str, str | None] = {MIG_CONFIG: "all-disabled", MIG_STATE: "pending"}
    action = only(after_pnr(changing(labels=theirs, fence=OWED, **proven_idle(2500))))
    assert action.labels == {MIG_CONFIG: FENCE.target_mig_config, MIG_STATE: None}
    assert action.fence.restart_uid == make_operand().uid


def test_a_retry_on_a_card_without_mig_writes_our_label_again() -> None:
    cards = ("Tesla T4",)
    _, plugin = pair_of(SLICED, make_gpu(product=cards[0]))
    report = world_of(SLICED, cards).gpunodes["gpu-07"]
    assert report.observed is not None
    fence = fence_to(SLICED, target_mig_config="", target_plugin_config=plugin, to_layout="4x shared", deadline=at(60))
    known: dict[str, Any] = {"was": SLICED, "products": cards, "labels": {PLUGIN: "theirs"}}
    known |= {"node": {"unschedulable": True, **AGAIN}, "now": at(60)}
    failed = make_case(SLICED, fence=replace(fence, retry="again"), gpunode=verified(report), **known)
    assert after_pnr(failed).phase is Phase.FAILED
    begun = make_case(SLICED, fence=fence, gpunode=verified(report), **known)
    recorded = only(after_pnr(begun))
    assert isinstance(recorded, UpdateFence)
    observed = replace(report.observed, request_id=asked_at(57), quiet=True)
    quiet = replace(report, request_id=asked_at(57), quiet=True, observed=observed)
    idle = make_case(SLICED, fence=recorded.fence, gpunode=quiet, work=emptied(60), **known)
    action = only(after_pnr(idle))
    assert isinstance(action, Actuate)
    assert action.labels == {PLUGIN: plugin}


def verified(report: GPUNodeView) -> GPUNodeView:
    assert report.observed is not None
    return replace(report, request_id=VERIFY, observed=replace(report.observed, request_id=VERIFY))


def test_an_edit_that_leads_to_the_same_layout_is_no_retry() -> None:
    for policy in (replace(MIXED, generation=2), replace(edited(MIXED), generation=2)):
        verdict = after_pnr(changing(policy, labels=FAILED))
        assert (verdict.phase, [type(action) for action in verdict.actions]) == (Phase.FAILED, [])


def test_a_retry_of_a_plugin_restart_never_touches_mig_manager() -> None:
    fence: Fence = replace(OWED, disruption=DisruptionClass.PLUGIN_RESTART)
    node = {"unschedulable": False}
    action = only(after_pnr(changing(fence=fence, node=node, labels={PLUGIN: "theirs"}, now=60)))
    assert isinstance(action, Actuate)
    assert (action.fence.restart_uid, set(action.labels)) == ("", {PLUGIN})
    waits = after_pnr(changing(fence=fence, node=node, labels=FAILED, now=60))
    assert (waits.reason, waits.actions) == (Reason.WIDER_DRAIN_NEEDED, ())
    named = changing(fence=replace(fence, failed=at(0)), node={**node, "retry": "gpu-pods"}, labels=FAILED, now=60)
    assert isinstance(only(after_pnr(named)), Release), "it is fenced again, with a drain"


def test_a_retry_restarts_mig_manager_although_it_says_success() -> None:
    action = only(after_pnr(changing(fence=OWED, node={"resources": {}}, **proven_idle(2500))))
    assert (action.labels, action.fence.restart_uid) == ({}, make_operand().uid)


def test_a_run_for_an_edited_policy_corrects_no_drift_any_more() -> None:
    fence = replace(OWED, drift=True, version=MIXED.version)
    for policy, drift in ((MIXED, True), (ask_anew(MIXED), False)):
        action = only(after_pnr(changing(policy, fence=fence, **proven_idle(2500))))
        assert action.fence.drift is drift


def test_a_retry_without_anything_to_lead_to_leaves_the_node_failed() -> None:
    verdict = after_pnr(changing(gpunode=answering(gpus=()), node=AGAIN, now=2400))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.FAILED, Reason.AGENT_ERROR, ())


def test_a_retry_owes_a_new_run_and_not_the_restart_that_never_came() -> None:
    stuck = changing(fence=RESTARTING, node=AGAIN, now=2400, work=emptied(2400, make_pod()))
    assert (only(after_pnr(stuck)).fence.owed, only(after_pnr(stuck)).fence.restart_uid) == (OWED.owed, "")


def test_nvml_stays_closed_while_mig_manager_works_for_a_policy_that_gives_no_layout_any_more() -> None:
    quiet = quiet_report(MIXED, gpus=())
    verdict = after_pnr(changing(labels=PENDING, gpunode=quiet))
    assert (verdict.phase, verdict.actions) == (Phase.RECONFIGURING, ())


def test_a_plugin_restart_waits_for_its_configuration_and_restarts_nothing() -> None:
    fence = replace(FENCE, disruption=DisruptionClass.PLUGIN_RESTART)
    known: dict[str, Any] = {"node": {"unschedulable": False}}
    owed = replace(fence, owed=OWED.owed)
    waiting = after_pnr(changing(fence=owed, stack=make_stack(FULL), labels={PLUGIN: "theirs"}, **known))
    assert not any(isinstance(action, Actuate) for action in waiting.actions)
    alive = replace(fence, restart_uid=make_operand().uid)
    assert after_pnr(changing(fence=alive, **known)).actions == ()


def test_a_failed_plugin_restart_does_not_claim_a_cordon() -> None:
    fence = replace(FENCE, disruption=DisruptionClass.PLUGIN_RESTART)
    schedulable = {"unschedulable": False, "resources": {}}
    verdict = after_pnr(changing(fence=fence, node=schedulable, now=2400))
    assert verdict.phase is Phase.FAILED
    assert "cordoned" not in verdict.message
    assert "The node stays cordoned" in after_pnr(changing(node={"resources": {}}, now=2400)).message


def test_only_a_retry_that_says_so_lets_all_pods_leave_for_a_reboot_after_the_point_of_no_return() -> None:
    reboots = make_stack(MIXED, FULL, cluster_policy=make_cluster_policy(with_reboot=True))
    work = emptied(60, make_pod("cpu", resources={}))
    begun = replace(FENCE, version=MIXED.version)
    edited = after_pnr(changing(FULL, fence=begun, stack=reboots, work=work))
    assert (edited.reason, only(edited).verified is not None) == (Reason.SYNCED, True), "what began is proven first"
    assert edited.disruption is DisruptionClass.REBOOT
    failed = after_pnr(changing(FULL, fence=replace(begun, failed=at(0)), stack=reboots, work=work, now=2400))
    assert (failed.phase, failed.reason, failed.actions) == (Phase.FAILED, Reason.WIDER_DRAIN_NEEDED, ())
    assert "gpusharing.dev/retry=all-pods" in failed.message
    known: dict[str, Any] = {"fence": replace(begun, failed=at(0)), "stack": reboots, "work": work, "now": 2400}
    for word in ("again", "gpu-pods"):
        assert after_pnr(changing(FULL, node={"retry": word}, **known)).actions == ()
    action = only(after_pnr(changing(FULL, node={"retry": "all-pods.2"}, **known)))
    assert action.fence.disruption is DisruptionClass.REBOOT


# --- the deadline --------------------------------------------------------------------------------------------------

RETARGET: dict[str, Any] = {"stack": make_stack(MIXED, SINGLE)}


def test_past_the_deadline_another_target_gets_a_time_of_its_own() -> None:
    action = only(after_pnr(changing(SINGLE, now=2400, **RETARGET)))
    assert isinstance(action, UpdateFence)
    assert action.fence.deadline > at(2400)
    owed = action.fence
    assert after_pnr(changing(SINGLE, fence=owed, now=2400, **RETARGET)).phase is Phase.DRAINING
    blocked = changing(SINGLE, fence=owed, now=10**6, work=emptied(10**6, make_pod(owner=None)), **RETARGET)
    late = after_pnr(blocked)
    assert (late.phase, late.reason, late.wants_pods) == (Phase.FAILED, Reason.UNMANAGED, True)


ENDLESS: dict[str, dict[str, Any]] = {
    "the agent reports no GPU": {"gpunode": answering(gpus=())},
    "the agent does not answer": {"gpunode": replace(answering("older"), request_id=VERIFY)},
    "another target, and the agent is away": {
        "policy": SINGLE, "fence": replace(FENCE, owed="all-1g.10gb"), "agent_ready": False, **RETARGET},
    "nothing is offered": {"node": {"resources": {}}},
    "mig-manager reboots the node": {"labels": {MIG_STATE: "rebooting"}},
}  # fmt: skip


@pytest.mark.parametrize("fields", ENDLESS.values(), ids=ENDLESS.keys())
def test_whatever_lasts_for_ever_is_failed_at_the_deadline(fields: dict[str, Any]) -> None:
    before = after_pnr(changing(now=2399, **fields))
    assert before.phase is not Phase.FAILED
    assert before.wake is not None
    assert before.wake <= at(2400)
    much_later = changing(now=10**6, **fields)
    verdict = after_pnr(much_later)
    for action in verdict.actions:
        if isinstance(action, UpdateFence):  # what is asked once was asked
            fence = replace(action.fence, deadline=at(10**6))
            verdict = after_pnr(replace(much_later, node=replace(much_later.node, fence=fence)))
    assert verdict.phase is Phase.FAILED, verdict
    assert names.ANNOTATION_RETRY in verdict.message


# --- a proof is younger than the event that it is about (docs/adr/0004) ------------------------------------------------

STUCK = 1300.0
"""Seconds after which mig-manager counts as stuck, so that the node may turn to another target."""


def asked_by(verdict: Verdict) -> str:
    (request,) = (action for action in verdict.actions if isinstance(action, EnsureGPUNode))
    return request.request_id


def answer(request: str, seen: PolicyView) -> GPUNodeView:
    """The agent has closed NVML for this request, and what it saw before is the layout of this policy."""
    return quiet_report(seen, request)


def labels_of(actions: tuple[Action, ...]) -> dict[str, str | None]:
    (actuate,) = actions
    assert isinstance(actuate, Actuate)
    return dict(actuate.labels)


def turned_to_mps(seconds: float, state: str | None, gpunode: GPUNodeView) -> Verdict:
    """The verdict about a node whose policy asks for MPS by now, so long after it went to MIG."""
    fence = fence_to(MIXED, deadline=at(4000), disruption=DisruptionClass.RESET)
    labels: dict[str, str | None] = {MIG_STATE: state}
    work = emptied(seconds)
    return after_pnr(changing(MPS, fence=fence, labels=labels, now=seconds, work=work, gpunode=gpunode))


def test_a_reading_from_before_mig_managers_success_leads_to_no_mps_on_mig() -> None:
    """mig-manager counts as stuck, the agent reads whole GPUs, and then mig-manager ends its run after all."""
    older = asked_by(turned_to_mps(STUCK, "pending", answer("op-1:older", FULL)))
    ended = turned_to_mps(STUCK + 4, "success", answer(older, FULL))
    renewed = asked_by(ended)
    assert renewed != older
    labels = labels_of(turned_to_mps(STUCK + 8, "success", answer(renewed, MIXED)).actions)
    assert labels[MIG_CONFIG] == "all-disabled"
    assert labels[names.LABEL_PLUGIN_CONFIG] == pair_of(FULL)[1], "whole GPUs come first"


def test_a_step_that_somebody_undid_meanwhile_is_not_proven_any_more() -> None:
    """The GPU Operator wrote another mig.config, and mig-manager applied it, while the next step was being prepared."""
    stop = fence_to(FULL, to_layout="1x full", steps=2, deadline=at(4000), disruption=DisruptionClass.RESET)
    at_the_stop: dict[str, str | None] = {MIG_CONFIG: "all-disabled", MIG_STATE: "success"}
    at_the_stop[names.LABEL_PLUGIN_CONFIG] = stop.target_plugin_config

    def seen(seconds: float, gpunode: GPUNodeView, **fields: str) -> Verdict:
        labels = {**at_the_stop, **fields}
        case = changing(MPS, was=FULL, fence=stop, labels=labels, gpunode=gpunode, now=seconds, work=emptied(seconds))
        return after_pnr(case)

    verify = asked_by(seen(60, answer("op-1:older", FULL)))
    open_again = replace(answer(verify, FULL), quiet=False)
    assert open_again.observed is not None
    open_again = replace(open_again, observed=replace(open_again.observed, quiet=False))
    older = asked_by(seen(64, open_again))
    assert "after-1" in older
    assert isinstance(seen(68, answer(older, FULL)).actions[0], Actuate), "nothing happened in between"
    undone = seen(68, answer(older, FULL), **{MIG_CONFIG: "all-1g.10gb"})
    assert not any(isinstance(action, Actuate) for action in undone.actions)


@pytest.mark.parametrize("state", ["pending", None], ids=["at work", "not begun"])
def test_while_mig_manager_may_still_divide_the_gpus_the_way_to_mps_has_two_steps(state: str | None) -> None:
    older = asked_by(turned_to_mps(STUCK, state, answer("op-1:older", FULL)))
    labels = labels_of(turned_to_mps(STUCK + 4, state, answer(older, FULL)).actions)
    assert labels[MIG_CONFIG] == "all-disabled"
    assert labels[names.LABEL_PLUGIN_CONFIG] == pair_of(FULL)[1]


def test_a_clock_that_is_set_back_by_an_hour_costs_one_request() -> None:
    ahead = fence_to(MIXED, since=at(3600), deadline=at(6000), disruption=DisruptionClass.RESET)

    def seen(seconds: float, request: str) -> Verdict:
        open_again = replace(answer("op-1:older", MIXED), request_id=request)
        fields: dict[str, Any] = {"work": emptied(seconds), "gpunode": open_again, "now": seconds}
        return after_pnr(changing(MPS, fence=ahead, **fields))

    renewed = asked_by(seen(60, f"op-1:quiet:{EVENT}:{int(at(3660).timestamp() * 1000)}"))
    for seconds in (60.2, 65, 3600, 3700):
        later = seen(seconds, renewed)
        assert (later.phase, later.actions) == (Phase.VERIFYING_IDLE, ()), seconds
