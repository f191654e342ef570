"""What do earlier attempts, and somebody's work on a quiet node, say about the next attempt?

An open NVML handle makes a MIG mode change fail and keeps the driver from being unloaded (docs/design/nvidia.md#a8,
a.9, d.4), so NVML stays closed on a node that we do not change while somebody else works on its driver or its GPUs.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.times import parse_duration
from gpusharing.planning.snapshot.actions import UpdateFence
from gpusharing.planning.snapshot.records import Deferred, Fence, SpecVersion, Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.stack.requirements import DRIVER_PODS
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators import Trace
from gpusharing.planning.wanted.assess import Assessed
from gpusharing.planning.wanted.target import Target

PROOF = 120.0
"""How many seconds the readings and LISTs that prove a node idle may take."""


def actuation_limit(spec: GPUSharingPolicySpec) -> timedelta:
    timeouts = spec.rollout.timeouts
    return parse_duration(timeouts.actuation) + parse_duration(timeouts.verification)


def owed_for(target: Target) -> str:
    """Return what identifies runs towards this target in a fence."""
    return f"{target.mig_config} {target.plugin_key} {target.text}".strip()


def owe(case: NodeCase, assessed: Assessed, attempt: int, *, failed: bool) -> UpdateFence:
    """Record in the fence that a run towards the target is due once the node is proven idle again.

    `failed`: the change no longer counts as failed, but the fence keeps the version of the spec that failed.
    """
    return UpdateFence(
        case.node,
        replace(
            case.fence,
            owed=owed_for(assessed.target),
            attempt=attempt,
            deadline=case.now + parse_duration(assessed.spec.drain.timeout) + proof_time(case),
            retry=case.node.retry,
            proven=None,
            restart_uid="",
            daemon_uid="",
            failed=None if failed else still_failed(case),
            failed_version=case.fence.version if failed else case.fence.failed_version,
            began=None if failed else case.fence.began,
            rolls_back=goes_back(case),
        ),
    )


def note_failure(case: NodeCase, verdict: Verdict) -> Verdict:
    """Add the record of a failure to a Failed verdict. Without it, a clock that is set back would undo the failure."""
    ours = case.fence.node_uid == case.node.uid and case.assessment is not None
    # A begun change of some GPUs is proven before anything else begins, so an error of the policy is no failure of it.
    ours = ours and not (case.objection is not None and case.fence.disruption is DisruptionClass.CHANGED_GPUS)
    if verdict.phase is not Phase.FAILED or case.fence.failed is not None or not ours:
        return verdict
    return verdict.then(*verdict.actions, UpdateFence(case.node, replace(case.fence, failed=case.now)))


def still_failed(case: NodeCase) -> datetime | None:
    """Return when the failure of the change was noticed, or now if that is in the future."""
    return None if case.fence.failed is None else min(case.fence.failed, case.now)


def change_deadline(case: NodeCase) -> datetime:
    """Return when the change counts as failed; a proven node that waits for its wave gets time from its proof on."""
    proof, deadline, spec = case.fence.proven, case.fence.deadline, case.spec
    if proof is None or spec is None:
        return deadline
    return max(deadline, proof + parse_duration(spec.rollout.timeouts.verification))


def is_late(case: NodeCase) -> bool:
    """Whether the deadline of a change past the PNR is over, or was when the failure was recorded."""
    failed, deadline = case.fence.failed, change_deadline(case)
    return case.now >= deadline or (failed is not None and failed >= deadline)


def has_ended(case: NodeCase) -> bool:
    """Whether the run of a node past the PNR has ended without a proof, or has become the way back."""
    fence, assessed = case.node.fence, case.assessed
    if fence is None or fence.stage != "actuating" or case.policy is None:
        return False
    # Another try was due after a failure, and an edit since asks for something else.
    owes_another = bool(fence.owed) and assessed is not None and fence.owed != owed_for(assessed.target)
    dropped = owes_another and fence.failed_version is not None
    return dropped or fence.failed is not None or fence.rolls_back or is_late(case)


def proof_time(case: NodeCase) -> timedelta:
    return timedelta(seconds=case.settings.config_propagation + PROOF)


def was_asked_again(case: NodeCase) -> bool:
    return is_new_value(case.node.retry, case.fence.retry)


def is_new_value(retry: str, answered: str) -> bool:
    """Whether this value of the retry annotation asks for another try; `answered` was acted on last."""
    return retry not in ("", answered)


def find_named(case: NodeCase) -> DisruptionClass | None:
    """Return what a new retry says must be gone beyond the fence's record, or None if it says no such thing."""
    named = names.RETRIES_THAT_EMPTY.get(case.node.retry.partition(".")[0])
    return named if named is not None and was_asked_again(case) and not case.fence.covers(named, ()) else None


def add_retry(found: Finding, node: str, answered: str, lead: str, empties: str = "") -> Finding:
    """Return the finding with a sentence that leads to the command for another try, which `empties` more of the node."""
    word = "once-more" if answered == "again" else "again"
    if empties:
        word = f"{empties}.again" if answered == empties else empties
    retry = Command.of(f"kubectl annotate gpunode {node} --overwrite {names.ANNOTATION_RETRY}={word}")
    return replace(found, message=f"{found.message}{lead}: {retry}", commands=(*found.commands, retry))


def goes_back(case: NodeCase) -> bool:
    """Whether the fence records a rollback that no retry and no new version of the policy has ended."""
    fence, policy = case.node.fence, case.policy
    if fence is None or not fence.rolls_back or policy is None or was_asked_again(case):
        return False
    if fence.version.uid != policy.uid:
        return False
    # Someone who stops a policy while nodes fail does not want more of its layout.
    return case.held is not None or fence.version == policy.version


def was_rolled_back(node: NodeView, policy: PolicyView) -> bool:
    proof = node.verified
    return proof is not None and proof.rolled_back and proof.version == policy.version


def failed_before(node: NodeView, policy: PolicyView) -> bool:
    """Whether the node's records say that a change of this revision failed. Another try does not reset them."""
    records = (node.verified, node.deferred)
    return any(record is not None and record.failed_version == policy.version for record in records)


def is_tried_again(node: NodeView, policy: PolicyView) -> bool:
    """Whether a change of this revision failed on the node, which is back in service without it."""
    deferred = node.deferred
    released = deferred is not None and deferred.failed_version == policy.version
    return released or was_rolled_back(node, policy)


# --- before the point of no return -------------------------------------------------------------------------


def next_deferral(case: NodeCase, reason: Reason) -> Deferred:
    """Return the back-off after this abort, doubled with each one in the same revision up to 64 `abort_backoff`."""
    earlier, version = case.node.deferred, case.fence.version
    count = earlier.count + 1 if earlier is not None and earlier.version == version else 1
    wait = timedelta(seconds=case.settings.abort_backoff * 2 ** min(count - 1, 6))
    return Deferred(count, case.now + wait, str(reason), version, case.node.retry, _failed_version(case.fence))


def remembered(case: NodeCase, reason: Reason) -> Deferred | None:
    """Return the record, without a back-off, that the change failed; None if it had not, or the last proof says so."""
    proof, failed = case.node.verified, _failed_version(case.fence)
    if failed is None or (proof is not None and proof.failed_version == failed):
        return None
    return replace(next_deferral(case, reason), count=0, until=case.now)


def _failed_version(fence: Fence) -> SpecVersion | None:
    return fence.failed_version if fence.failed is None else fence.version


def standing_deferral(case: NodeCase, policy: PolicyView) -> Deferred | None:
    """Return the back-off that holds the node back. Another policy or revision, or a retry, ends it early."""
    deferred = case.node.deferred
    if deferred is None or case.now >= deferred.until:
        return None
    if deferred.version != policy.version:
        return None
    return None if is_new_value(case.node.retry, deferred.retry) else deferred


# --- drift -------------------------------------------------------------------------------------------------


def was_corrected(case: NodeCase, policy: PolicyView) -> bool:
    proof = case.node.verified
    return proof is not None and proof.corrected_revision == policy.version.revision


def corrects_drift(fence: Fence, policy: PolicyView) -> bool:
    return fence.drift and fence.version == policy.version


def adopted(case: NodeCase, assessed: Assessed) -> Verified:
    """Return the proof for a node that matches its target without a change by us, with what the earlier one records."""
    target, policy = assessed.target, assessed.policy
    earlier = case.node.verified or Verified("", "", "", layout="", gpus=0)
    same = earlier.version.uid == policy.uid
    ours = same and not earlier.rolled_back  # else its present layout is not the result of our change: it is no canary
    return Verified(
        case.owner_name,
        target.mig_config,
        target.plugin_key,
        corrected_revision=earlier.corrected_revision,
        retry=case.node.retry,
        layout=target.text,
        gpus=len(target.layouts),
        version=earlier.version if ours else SpecVersion(policy.uid, ""),  # else no change of this revision led there
        changed_at=earlier.changed_at,
        took=earlier.took,
        planned=earlier.planned if ours else DisruptionClass.NONE,
        failed_version=earlier.failed_version if same else None,
        apart=ours and earlier.apart,
        mates=earlier.mates if ours else (),
    )


def proven(case: NodeCase, target: Target, policy: PolicyView) -> Verified:
    """Return the proof of a change or a rollback, with the revision that the change followed."""
    fence, earlier = case.fence, case.node.verified
    corrected = earlier.corrected_revision if earlier is not None else ""
    # The time that passed means nothing if the change failed before its deadline and somebody repaired the node.
    repaired = fence.failed is not None and fence.failed < fence.deadline
    took = (case.now - fence.began).total_seconds() if fence.began is not None and not repaired else None
    record = Verified(
        policy=policy.name,
        mig_config=fence.target_mig_config,
        plugin_config=fence.target_plugin_config,
        corrected_revision=policy.version.revision if corrects_drift(fence, policy) else corrected,
        retry=case.node.retry,
        layout=target.text,
        gpus=len(target.layouts),
        version=SpecVersion(policy.uid, fence.version.revision),
        changed_at=case.now,
        took=max(1, round(took)) if took is not None else 0,
        planned=fence.planned,
        failed_version=fence.failed_version,
        apart=fence.newcomer or fence.turned,
        mates=fence.mates,
    )
    if earlier is None or not goes_back(case):
        return record
    return replace(
        record,
        corrected_revision=corrected,
        changed_at=earlier.changed_at,
        took=earlier.took,
        rolled_back=True,
        failure=fence.failure,
        mates=(),
    )


ASKED_FOR = "node-maintenance-required"
"""A state of a driver upgrade that may last for weeks; the NodeMaintenance object shows when that work begins."""
UNLOADING = frozenset(
    {"pod-deletion-required", "drain-required", ASKED_FOR, "post-maintenance-required", "pod-restart-required"}
)
"""States of a driver upgrade from the last moment with the old driver to the start of the new (d.4)."""


DRIVER_PAUSE = "paused-for-driver-upgrade"
"""What NVIDIA's driver pod adds to the labels of the operands that it stops before it unloads the driver."""
DRIVER_LIMIT = 3600.0
"""For how many seconds one state of a driver upgrade is believed. A driver that is compiled first may take half of it."""


def find_driver_trace(case: NodeCase) -> Trace | None:
    """Return what says that NVIDIA's driver is being upgraded on the node. The operator does not see the driver's pod."""
    node, label = case.node, names.LABEL_UPGRADE_STATE
    shown = node.labels.get(label, "")
    if shown in names.UPGRADE_LASTING or (shown == ASKED_FOR and node.foreign_queued):
        return None
    if shown in ("", "upgrade-done", "wait-for-jobs-required"):  # jobs may take days
        pauses = [(key, text) for key, text in node.held_off.items() if DRIVER_PAUSE in text]
        if not pauses:
            return None
        label, shown = pauses[0]
    claim = f"label {label}={shown} says that NVIDIA's driver is being replaced on {node.name}"
    pods = Command.of(f"kubectl get pods -A -l {DRIVER_PODS} --field-selector spec.nodeName={node.name}")
    message = (
        f"{claim}, for more than {DRIVER_LIMIT:.0f} s. Nothing on the Node shows whether the driver's pod is at work;"
        f" to see it, run: {pods}"
    )
    return Trace(claim, DRIVER_LIMIT, Finding(Reason.FOREIGN_MAINTENANCE, message, stands=True, commands=(pods,)))


def find_quiet(case: NodeCase) -> Finding | None:
    """Return why the agent of a node that we do not change must keep NVML closed, or None if it may read.

    mig-manager may act on an administrator's label or after a reboot, or NVIDIA's driver may be upgraded.
    """
    node = case.node
    if node.fence is not None and node.fence.stage != "yielded":
        return None
    trace, paused = find_driver_trace(case), any(DRIVER_PAUSE in value for value in node.held_off.values())
    if trace is not None and (paused or node.labels.get(names.LABEL_UPGRADE_STATE) in UNLOADING):
        # An open NVML would keep a driver from being unloaded after all, so only the message changes with time.
        found = case.find_doubt(trace) or Finding(Reason.FOREIGN_MAINTENANCE, trace.claim)
        return replace(found, message=f"the agent keeps NVML closed, because {found.message}")
    return find_work(case)


def find_work(case: NodeCase) -> Finding | None:
    """Return that an actuator is at work although we have started no run.

    Once that is not believed any more, only a reading shows whether it has done its work (docs/design/nvidia.md#a7).
    """
    claim = case.actuator.find_claim(case)
    if claim is None or case.find_doubt(claim) is not None:
        return None
    busy = f"{case.actuator.find_work(case.node)}; the agent keeps NVML closed meanwhile"
    return Finding(Reason.ACTUATOR_BUSY, busy, case.believes_until(claim))
