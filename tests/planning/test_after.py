"""A fenced node after the point of no return: actuators, wedges, proof, retarget, Failed and its repair."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import NOW, ask_anew, at, make_gpu, make_pod, make_policy, make_stack, make_work
from tests.planning.cases import FULL, MIXED, SINGLE, SLICED, judged, make_case, quiet_report, world_of
from tests.planning.changes import (
    FAILED,
    FENCE,
    MIG_CONFIG,
    MIG_STATE,
    PAUSED,
    VERIFY,
    answering,
    changing,
    fence_to,
    only,
)
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.snapshot.actions import Actuate, EnsureGPUNode, Evict, LabelNode, Release, UpdateFence
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.attempts import (
    failed_before,
    is_tried_again,
    next_deferral,
    standing_deferral,
    was_corrected,
)
from gpusharing.planning.transition.requests import last_event
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.reasons import Reason

# --- actuators and wedges ------------------------------------------------------------------------------------------

STATES: dict[str, tuple[dict[str, str | None], float, Phase, Reason]] = {
    "mig-manager has not begun": ({MIG_STATE: None}, 60, Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS),
    "mig-manager is at work": ({MIG_STATE: "pending"}, 1199, Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS),
    "the node reboots, for as long as it may": (
        {MIG_STATE: "rebooting"}, 2399, Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS),
    "the node never comes back from its reboot": ({MIG_STATE: "rebooting"}, 2400, Phase.FAILED, Reason.ACTUATOR_STUCK),
    "operands are paused a moment after success": (PAUSED, 14, Phase.RECONFIGURING, Reason.OPERANDS_PAUSED),
    "mig-manager failed cleanly": ({MIG_STATE: "failed"}, 60, Phase.FAILED, Reason.ACTUATOR_FAILED),
}  # fmt: skip


@pytest.mark.parametrize(("labels", "now", "phase", "reason"), STATES.values(), ids=STATES.keys())
def test_what_mig_manager_says(labels: dict[str, str | None], now: float, phase: Phase, reason: Reason) -> None:
    verdict = after_pnr(changing(labels=labels, now=now))
    assert (verdict.phase, verdict.reason, verdict.actions) == (phase, reason, ()), verdict.message
    assert verdict.wake is None or verdict.wake > at(now)


TOGETHER: dict[str, tuple[NodeCase, Reason, str]] = {
    "the policy is gone, and somebody lifted the cordon": (
        changing(None, node={"unschedulable": False}), Reason.ORPHAN_FENCE, ""),
    "somebody lifted the cordon while mig-manager is at work": (
        changing(labels={MIG_STATE: "pending"}, node={"unschedulable": False}), Reason.CORDON_RESTORED, ""),
    "the policy is refused while mig-manager is at work": (
        changing(labels={MIG_STATE: "pending"}, stack=make_stack(MIXED, gpu_cluster=True)),
        Reason.ACTUATION_IN_PROGRESS, ""),
    "mig-manager failed and left an operand paused": (
        changing(labels={**FAILED, **PAUSED}, now=1300), Reason.ACTUATION_IN_PROGRESS, "mig-manager failed to apply"),
    "mig-manager is at work for too long, and has paused an operand": (
        changing(labels={**PAUSED, MIG_STATE: "pending"}, now=1300), Reason.ACTUATION_IN_PROGRESS,
        "for more than 1200 s now; restarting mig-manager"),
}  # fmt: skip


@pytest.mark.parametrize(("case", "reason", "says"), TOGETHER.values(), ids=TOGETHER.keys())
def test_of_two_things_that_are_so_after_the_point_of_no_return_one_is_told(
    case: NodeCase, reason: Reason, says: str
) -> None:
    verdict = after_pnr(case)
    assert (verdict.reason, says in verdict.message) == (reason, True), verdict.message


STOPPING = "device-plugin pod did not shutdown"
WAITED_IN_VAIN = f"Error: failed to wait for pods to be deleted: {STOPPING}: context deadline exceeded"


@pytest.mark.parametrize(
    ("failure", "attempt", "phase"),
    [
        pytest.param(WAITED_IN_VAIN, 1, Phase.RECONFIGURING, id="pods did not stop in time"),
        pytest.param(WAITED_IN_VAIN, 3, Phase.FAILED, id="pods did not stop in time, three times"),
        pytest.param("MigGeometry: all orderings failed", 1, Phase.FAILED, id="the layout cannot be made"),
        pytest.param("", 1, Phase.FAILED, id="nobody could read the log"),
    ],
)
def test_a_mig_manager_that_failed_is_restarted_only_where_it_waited_in_vain(
    failure: str, attempt: int, phase: Phase
) -> None:
    case = changing(labels={MIG_STATE: "failed"}, now=400, fence=replace(FENCE, attempt=attempt))
    verdict = after_pnr(replace(case, mig_failure=failure))
    assert (verdict.phase, failure in verdict.message) == (phase, True)
    assert ("restarting mig-manager" in verdict.message) == (phase is Phase.RECONFIGURING)


def test_a_node_that_mig_manager_gave_up_shows_what_it_left_and_a_stuck_one_keeps_nvml_closed() -> None:
    quiet = quiet_report(MIXED)
    failed = after_pnr(changing(labels={MIG_STATE: "failed"}, now=60, gpunode=quiet))
    request = only(failed)
    assert (failed.phase, isinstance(request, EnsureGPUNode)) == (Phase.FAILED, True)
    assert isinstance(request, EnsureGPUNode)
    assert not request.quiet
    stuck = replace(FENCE, attempt=3)
    assert after_pnr(changing(labels={MIG_STATE: "pending"}, now=1200, gpunode=quiet, fence=stuck)).actions == ()


# --- the proof -----------------------------------------------------------------------------------------------------


def test_an_old_reading_proves_nothing_a_new_one_is_asked_for() -> None:
    case = changing(gpunode=answering("op-1:quiet:1"))
    action = only(after_pnr(case))
    now = int(case.now.timestamp() * 1000)
    request = f"op-1:verify:{last_event(case)}:{now}"
    assert action == EnsureGPUNode("gpu-07", "uid-gpu-07", request, quiet=False)
    unanswered = replace(answering("op-1:quiet:1"), request_id=VERIFY)
    verdict = after_pnr(changing(gpunode=unanswered))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.VERIFYING, Reason.OBSERVATION_PENDING, ())


def test_a_stale_success_over_the_old_layout_proves_nothing() -> None:
    verdict = after_pnr(changing(gpunode=answering(gpus=(make_gpu(),))))
    assert (verdict.phase, verdict.reason) == (Phase.VERIFYING, Reason.LAYOUT_MISMATCH)
    assert verdict.wake == FENCE.deadline


def test_gfd_must_have_started_anew_when_the_plugin_configuration_changed() -> None:
    before = world_of(MIXED).nodes["gpu-07"].labels[names.LABEL_GFD_TIMESTAMP]
    verdict = after_pnr(changing(fence=replace(FENCE, gfd_timestamp=before)))
    assert (verdict.phase, verdict.reason) == (Phase.VERIFYING, Reason.LABEL_MISMATCH)
    assert after_pnr(changing(fence=replace(FENCE, gfd_timestamp="1"))).phase is Phase.UNCORDONING


def test_all_sources_agree_and_the_node_is_given_back_in_one_patch() -> None:
    verdict = after_pnr(changing())
    action = only(verdict)
    assert isinstance(action, Release)
    assert (verdict.phase, action.uncordon, action.deferred) == (Phase.UNCORDONING, True, None)
    assert action.labels == {
        names.LABEL_UPGRADE_SKIP: None, names.LABEL_MODE: "mig", names.LABEL_POLICY: "pool-b"}  # fmt: skip
    pair = FENCE.target_mig_config, FENCE.target_plugin_config
    known = Verified("pool-b", *pair, layout="2x3g.40gb", gpus=1, version=MIXED.version)
    assert action.verified == replace(known, changed_at=at(60))


def test_the_proof_records_how_long_the_change_took_what_was_planned_and_whether_it_had_failed() -> None:
    fence = replace(FENCE, began=at(-180), planned=DisruptionClass.RESET, failed_version=MIXED.version)
    proof = only(after_pnr(changing(fence=fence))).verified
    assert (proof.took, proof.planned, proof.failed_version) == (240, DisruptionClass.RESET, MIXED.version)


def test_drift_put_right_is_recorded_with_its_revision_and_a_later_change_keeps_the_record() -> None:
    revision = MIXED.version.revision
    assert only(after_pnr(changing(fence=replace(FENCE, drift=True)))).verified.corrected_revision == revision
    earlier = Verified("pool-b", "x", "y", "r1", layout="1x full", gpus=1)
    assert only(after_pnr(changing(node={"verified": earlier}))).verified.corrected_revision == "r1"


def test_a_node_whose_cordon_a_person_wants_kept_is_given_back_with_it() -> None:
    verdict = after_pnr(changing(node={"hold_cordon": True}))
    assert (verdict.reason, only(verdict).uncordon, only(verdict).fence) == (Reason.CORDON_KEPT, False, None)


def test_the_cordon_of_a_proven_node_on_which_somebody_else_works_is_remembered_as_ours() -> None:
    """Otherwise nobody would lift it when the other one is done."""
    verdict = after_pnr(changing(node={"foreign": "kured"}))
    action = only(verdict)
    assert (verdict.phase, verdict.reason) == (Phase.UNCORDONING, Reason.CORDON_KEPT)
    assert not lacks(verdict.message, "2x3g.40gb proven", "kured", "gpu-07", "uncordons")
    assert action.verified is not None, "the proof does not wait for anybody"
    assert action.labels[names.LABEL_UPGRADE_SKIP] is None, "our marks would keep the other one away"
    assert (action.uncordon, action.fence.stage, action.fence.added) == (False, "yielded", ())
    assert (names.LABEL_MODE in action.labels, action.fence.from_mode) == (False, "mig"), "not open to pods yet"


def test_nothing_is_remembered_of_a_proven_node_that_was_cordoned_before_us() -> None:
    fence = replace(FENCE, prior_unschedulable=True)
    action = only(after_pnr(changing(node={"foreign": "kured"}, fence=fence)))
    assert (action.uncordon, action.fence) == (False, None)


def test_who_only_waits_for_its_turn_keeps_no_cordon() -> None:
    queued = {"foreign": "driver upgrade", "foreign_waits": True, "foreign_queued": True}
    verdict = after_pnr(changing(node=queued))
    assert (verdict.reason, only(verdict).uncordon) == (Reason.SYNCED, True)


def test_a_node_that_is_not_ready_is_not_given_back() -> None:
    verdict = after_pnr(changing(node={"ready": False}))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.VERIFYING, Reason.NODE_NOT_READY, ())


def test_a_proof_counts_more_than_the_clock() -> None:
    assert after_pnr(changing(now=9999)).phase is Phase.UNCORDONING


def test_a_lifted_cordon_is_put_back_until_the_proof() -> None:
    verdict = after_pnr(changing(node={"unschedulable": False}))
    assert (verdict.phase, verdict.reason) == (Phase.RECONFIGURING, Reason.CORDON_RESTORED)
    assert only(verdict) == UpdateFence(
        changing(node={"unschedulable": False}).node, replace(FENCE, since=at(60), version=MIXED.version), cordon=True
    )


# --- failed, retry, retarget, ownership -------------------------------------------------------------------------------


def test_a_failed_node_tells_why_as_far_as_the_log_could_be_read() -> None:
    case = changing(labels=FAILED)
    assert not lacks(after_pnr(case).message, "log of its pod", "stays cordoned")
    told = after_pnr(replace(case, mig_failure="Error creating GPU instance: ERROR_IN_USE")).message
    assert not lacks(told, "Error creating GPU instance: ERROR_IN_USE", "stays cordoned")


def test_an_obstacle_that_may_be_gone_in_a_moment_fails_no_node_before_its_deadline() -> None:
    """Whatever deploys the GPU Operator may take the ClusterPolicy away and bring it back."""
    stack = make_stack(MIXED, cluster_policy=None)
    verdict = after_pnr(changing(stack=stack))
    assert (verdict.phase, verdict.reason) == (Phase.VERIFYING, Reason.CLUSTER_POLICY_MISSING)
    assert verdict.wake == FENCE.deadline
    late = after_pnr(changing(stack=stack, now=2400))
    assert (late.phase, late.reason) == (Phase.FAILED, Reason.CLUSTER_POLICY_MISSING)


def test_a_proof_that_never_comes_fails_the_node() -> None:
    verdict = after_pnr(changing(now=2400, node={"resources": {}}))
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, Reason.ALLOCATABLE_MISMATCH)


RETARGET: dict[str, Any] = {"labels": {}, "stack": make_stack(MIXED, SINGLE)}


def test_a_retarget_waits_until_mig_manager_is_done_with_the_old_target() -> None:
    verdict = after_pnr(changing(SINGLE, **{**RETARGET, "labels": {MIG_STATE: "pending"}}))
    assert (verdict.phase, verdict.actions) == (Phase.RECONFIGURING, ())


def test_a_retarget_looks_for_pods_again_and_evicts_what_slipped_in() -> None:
    assert after_pnr(changing(SINGLE, **RETARGET)).wants_pods
    verdict = after_pnr(changing(SINGLE, work=make_work(make_pod()), **RETARGET))
    assert isinstance(only(verdict), Evict)


def test_a_retarget_passes_its_own_pnr_on_a_node_proven_idle_again() -> None:
    idle = make_work(listed_at=at(60), empty_since=at(50))
    asked = only(after_pnr(changing(SINGLE, work=idle, **RETARGET)))
    assert isinstance(asked, EnsureGPUNode)
    assert asked.quiet
    quiet = quiet_report(MIXED, asked.request_id, gpus=(make_gpu(layout=(("3g.40gb", 2),)),))
    action = only(after_pnr(changing(SINGLE, work=idle, gpunode=quiet, **RETARGET)))
    assert isinstance(action, Actuate)
    assert action.labels[MIG_CONFIG] == "all-1g.10gb"
    assert action.labels[MIG_STATE] is None
    assert (action.fence.stage_since, action.fence.attempt) == (at(60), 1)


def test_a_failed_node_is_repaired_by_another_target() -> None:
    verdict = after_pnr(changing(FULL, labels=FAILED, stack=make_stack(MIXED, FULL)))
    assert verdict.wants_pods
    assert verdict.phase is Phase.DRAINING


def test_a_plugin_restart_that_would_now_need_an_idle_node_is_given_back_and_starts_anew() -> None:
    fence = fence_to(
        SLICED,
        disruption=DisruptionClass.PLUGIN_RESTART,
        target_mig_config="all-disabled",
        version=SLICED.version,
        to_layout="4x shared",
    )
    labels = {MIG_CONFIG: "all-disabled", MIG_STATE: "success"}
    case = changing(
        was=SLICED, fence=fence, labels=labels, node={"unschedulable": False},
        gpunode=answering("x", SLICED), stack=make_stack(MIXED, SLICED),
    )  # fmt: skip
    verdict = after_pnr(case)
    assert verdict.phase is Phase.ABORTING
    assert isinstance(only(verdict), Release)
    assert (only(verdict).uncordon, only(verdict).deferred) == (False, None)


def test_a_failed_plugin_restart_that_starts_anew_with_a_drain_has_still_failed() -> None:
    fence = fence_to(
        SLICED,
        disruption=DisruptionClass.PLUGIN_RESTART,
        failed_version=MIXED.version,
        version=MIXED.version,
        failed=NOW,
    )
    case = changing(
        was=SLICED, fence=fence, labels={MIG_CONFIG: "all-disabled", MIG_STATE: "success"},
        node={"unschedulable": False, "retry": "gpu-pods"}, gpunode=answering("x", SLICED),
        stack=make_stack(MIXED, SLICED),
    )  # fmt: skip
    given = only(after_pnr(case)).deferred
    assert (given.count, given.until, given.failed_version) == (0, case.now, MIXED.version), "nobody waits"
    free = replace(case.node, fence=None, deferred=given)
    assert (failed_before(free, MIXED), is_tried_again(free, MIXED)) == (True, True)
    assert standing_deferral(replace(case, node=free), MIXED) is None
    assert not is_tried_again(free, ask_anew(MIXED)), "another revision counts anew"
    later = replace(case, node=replace(case.node, fence=replace(fence, stage="fenced")))
    assert next_deferral(later, Reason.DRAIN_TIMEOUT).failed_version == MIXED.version


def test_a_node_whose_policy_is_gone_stays_fenced_until_one_owns_it() -> None:
    verdict = after_pnr(changing(None, fence=replace(FENCE, added=())))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.FAILED, Reason.ORPHAN_FENCE, ())
    assert verdict.message.endswith(
        ": kubectl annotate node gpu-07 gpusharing.dev/fence- && kubectl uncordon gpu-07"
    ), "nothing was added"


@pytest.mark.parametrize(
    ("fence", "node"),
    [
        pytest.param({"prior_unschedulable": True}, {}, id="cordoned before"),
        pytest.param({"disruption": DisruptionClass.PLUGIN_RESTART}, {}, id="a plugin restart"),
        pytest.param({"tainted": True}, {}, id="a DeviceTaintRule"),
        pytest.param({}, {"unschedulable": False}, id="uncordoned"),
        pytest.param({}, {"hold_cordon": True}, id="held"),
        pytest.param({}, {"foreign": "kured"}, id="kured is at work"),
    ],
)
def test_the_command_that_gives_up_a_node_lifts_no_cordon_but_ours(fence: dict[str, Any], node: dict[str, Any]) -> None:
    assert "uncordon" in after_pnr(changing(None, fence=FENCE)).message
    verdict = after_pnr(changing(None, fence=replace(FENCE, **fence), node=node))
    assert verdict.reason is Reason.ORPHAN_FENCE
    assert "kubectl uncordon" not in verdict.message


def test_the_policy_that_owns_the_node_now_brings_the_change_of_a_vanished_one_to_its_end() -> None:
    fence = replace(FENCE, policy="gone")
    action = only(after_pnr(changing(fence=fence)))
    assert isinstance(action, Release)
    assert action.labels[names.LABEL_POLICY] == "pool-b"
    assert action.verified is not None
    assert action.verified.policy == "pool-b"


def test_the_fence_of_an_earlier_node_of_this_name_is_left_alone() -> None:
    added = (names.LABEL_UPGRADE_SKIP, *names.NEIGHBOR_ANNOTATIONS)
    verdict = after_pnr(changing(fence=replace(FENCE, node_uid="old", added=added)))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.FAILED, Reason.ORPHAN_FENCE, ())
    assert verdict.message.endswith(
        ": kubectl label node gpu-07 nvidia.com/gpu-driver-upgrade.skip- && kubectl annotate node gpu-07"
        " gpusharing.dev/fence- karpenter.sh/do-not-disrupt- cluster-autoscaler.kubernetes.io/scale-down-disabled-"
        " && kubectl uncordon gpu-07"
    )


def test_a_policy_under_deletion_brings_its_change_to_the_end() -> None:
    assert after_pnr(changing(replace(MIXED, deleting=True), owner="")).phase is Phase.UNCORDONING


def test_a_policy_without_a_layout_for_the_node_leaves_it_fenced() -> None:
    bad = make_policy(mig={"layouts": [{"profiles": {"1g.20gb": 7}}]})
    verdict = after_pnr(changing(bad, stack=make_stack(MIXED, bad)))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.FAILED, Reason.LAYOUT_DOES_NOT_FIT, ())


def test_an_agent_that_finds_no_gpu_is_asked_to_read_again() -> None:
    verdict = after_pnr(changing(gpunode=answering("old", gpus=())))
    assert verdict.phase is Phase.VERIFYING
    assert isinstance(only(verdict), EnsureGPUNode)


# --- what is remembered of the tries on one node -------------------------------------------------------------------

ANEW = replace(MIXED, uid="uid-anew")
"""The policy was deleted and made again with the same words."""


@pytest.mark.parametrize("policy", [ask_anew(MIXED), ANEW], ids=["edited", "made anew"])
def test_a_policy_that_changed_during_a_correction_has_its_own_first_drift(policy: Any) -> None:
    fence = replace(FENCE, drift=True, version=MIXED.version)
    released = only(after_pnr(changing(policy, fence=fence)))
    assert released.verified.corrected_revision == ""
    after = make_case(policy, node={"verified": released.verified})
    assert not was_corrected(after, policy)


def test_a_proof_that_records_no_correction_says_that_there_was_none() -> None:
    record = Verified("pool-b", "all-disabled", "x", layout="1x full", gpus=1)
    assert not was_corrected(make_case(MIXED, node={"verified": record}), MIXED)


@pytest.mark.parametrize("lost", [names.LABEL_POLICY, names.LABEL_MODE])
def test_adoption_remembers_that_drift_was_put_right(lost: str) -> None:
    """A tool that strips our labels would else get a drain per drift, for ever."""
    case = make_case(FULL, was=FULL, labels={lost: None}, now=at(0))
    assert case.node.verified is not None
    known = replace(case.node.verified, corrected_revision="r1")
    verdict = judged(replace(case, node=replace(case.node, verified=known)))
    action = only(verdict)
    assert isinstance(action, LabelNode)
    assert action.verified is not None
    assert (action.verified.corrected_revision, NOW) == ("r1", case.now)
