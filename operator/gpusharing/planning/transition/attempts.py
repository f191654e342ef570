"""How often a change was tried and what came of it: deferrals, retries, corrected drift, and the record of a proof.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#drift, docs/design/glossary.md#point-of-no-return,
docs/design/glossary.md#wave.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import parse_duration
from gpusharing.planning.snapshot.actions import UpdateFence
from gpusharing.planning.snapshot.records import Deferred, Fence, SpecVersion, Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.verdict import FencedCase, NodeCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed
from gpusharing.planning.wanted.target import Target

PROOF = 120.0
"""How many seconds the readings and LISTs that prove a node idle may take."""


def actuation_limit(spec: GPUSharingPolicySpec) -> timedelta:
    """Return the time from the PNR until the node counts as Failed: the sum of the time-outs for actuation and
    verification."""
    timeouts = spec.rollout.timeouts
    return parse_duration(timeouts.actuation) + parse_duration(timeouts.verification)


def owed_for(target: Target) -> str:
    """Return the string that identifies runs towards this target in a fence: the names of its MIG and plugin
    configurations and its layout, separated by spaces."""
    return f"{target.mig_config} {target.plugin_key} {target.text}".strip()


def owed_by(proof: Verified) -> str:
    """Return the string that `owed_for` returns for the target of this proof."""
    return f"{proof.mig_config} {proof.plugin_config} {proof.layout}".strip()


def owe(case: FencedCase, assessed: Assessed, attempt: int, *, failed: bool = False) -> UpdateFence:
    """Return the action that records in the fence that a run towards the target of `assessed` is due, as attempt number
    `attempt`, once the node is proven idle again. The deadline becomes now plus `drain.timeout` plus `proof_time`. The
    retry annotation counts as answered, and the pods that the last run had to delete, and that the node was found
    proven (`proven`), are forgotten. A rollback stays recorded only if `goes_back` holds. The stage and the step of the
    fence stay. With `failed`, the change no longer counts as failed and its next run records a new start, but the fence
    keeps the version of the spec that failed."""
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


def note_failure(case: FencedCase, verdict: Verdict) -> Verdict:
    """Return the verdict of a node past the PNR. If the verdict is Failed and the fence does not record the failure
    yet, an action that records it is added after the verdict's other actions. The verdict is unchanged if the fence
    belongs to an earlier Node of this name, or if no policy drives the node. Without the record, a clock that is set
    back would undo the failure."""
    ours = case.fence.node_uid == case.node.uid and case.assessment is not None
    if verdict.phase is not Phase.FAILED or case.fence.failed is not None or not ours:
        return verdict
    return verdict.then(*verdict.actions, UpdateFence(case.node, replace(case.fence, failed=case.now)))


def still_failed(case: FencedCase) -> datetime | None:
    """Return when the failure of the change was noticed, or now if the recorded time is in the future. None if the
    change has not failed. Only a proof, a person or another revision clears a failure; a run that begins by itself
    does not."""
    return None if case.fence.failed is None else min(case.fence.failed, case.now)


def change_deadline(case: FencedCase) -> datetime:
    """Return when the change counts as failed: at the deadline of the fence or, if the node was proven since its last
    run, at the end of `timeouts.verification` from then on, if that is later. A node that waits for its wave may so
    have its device plugin restarted. The deadline of the fence counts if no readable policy drives the node."""
    proof, deadline = case.fence.proven, case.fence.deadline
    spec = case.assessment.policy.spec if case.assessment is not None else None
    if proof is None or spec is None:
        return deadline
    return max(deadline, proof + parse_duration(spec.rollout.timeouts.verification))


def is_late(case: FencedCase) -> bool:
    """Whether the deadline of the change (`change_deadline`) has passed, or had passed when the failure was recorded.
    The answer makes sense only for a change past the PNR."""
    failed, deadline = case.fence.failed, change_deadline(case)
    return case.now >= deadline or (failed is not None and failed >= deadline)


def proof_time(case: NodeCase) -> timedelta:
    """Return how long it may take to prove a node idle after its pods are gone: `settings.config_propagation` seconds
    for the configuration to reach the node, plus PROOF seconds for the readings and the LISTs."""
    return timedelta(seconds=case.settings.config_propagation + PROOF)


def was_asked_again(case: FencedCase) -> bool:
    """Whether the Node's retry annotation has another value than the one that the fence records as answered, because a
    person asked for another try. False if the annotation is absent or empty."""
    return is_new_value(case.node.retry, case.fence.retry)


def is_new_value(retry: str, answered: str) -> bool:
    """Whether this value of the retry annotation asks for another try. `answered` is the value that was acted on last;
    an empty value asks for nothing."""
    return retry not in ("", answered)


def retry_command(node: str, answered: str) -> str:
    """Return the command that asks for another try on this node. The command sets a value that differs from
    `answered`, the value that was acted on last."""
    value = "once-more" if answered == "again" else "again"
    return f"kubectl annotate gpunode {node} --overwrite {names.ANNOTATION_RETRY}={value}"


def goes_back(case: FencedCase) -> bool:
    """Whether the fence records that the node is being rolled back to the layout last proven on it, and that rollback
    is still wanted. False while no policy drives the node. A person's retry or a policy that was created again ends the
    rollback, because then the policy's target is wanted. A new revision of the policy ends it too, unless the policy is
    paused now."""
    fence, assessment = case.fence, case.assessment
    if not fence.rolls_back or assessment is None or was_asked_again(case):
        return False
    policy, version = assessment.policy, fence.version
    if version.uid != policy.uid:
        return False
    if policy.spec is not None and policy.spec.rollout.paused:
        return True  # someone who pauses while nodes fail does not want more of the layout that failed
    return version == policy.version


def was_rolled_back(node: NodeView, policy: PolicyView) -> bool:
    """Whether the change of the policy's present revision failed on the node and the node was rolled back. The record
    of the last proof decides; False if there is none."""
    proof = node.verified
    return proof is not None and proof.rolled_back and proof.version == policy.version


def failed_before(node: NodeView, policy: PolicyView) -> bool:
    """Whether a change of the policy's present revision failed on the node, according to the records of its last proof
    and its last abandoned attempt. The fence is not read, and another try does not reset the records."""
    records = (node.verified, node.deferred)
    return any(record is not None and record.failed_version == policy.version for record in records)


def is_tried_again(node: NodeView, policy: PolicyView) -> bool:
    """Whether, according to the records on the Node, a change of the policy's present revision failed there and the
    node was then rolled back, or released before the change succeeded."""
    deferred = node.deferred
    if deferred is not None and deferred.failed_version == policy.version:
        return True
    return was_rolled_back(node, policy)


# --- before the point of no return -------------------------------------------------------------------------


def next_deferral(case: FencedCase, reason: Reason) -> Deferred:
    """Return the record of the back-off after this abort. The back-off lasts `abort_backoff` seconds (5 min by
    default), doubled with each abort within one revision of a policy, up to 64 times the first wait. The record also
    has the number of these aborts, `reason`, the version of the spec that the change followed, the present value of the
    retry annotation and, if the change had failed, the version of the spec that failed."""
    earlier, version = case.node.deferred, case.fence.version
    count = earlier.count + 1 if earlier is not None and earlier.version == version else 1
    wait = timedelta(seconds=case.settings.abort_backoff * 2 ** min(count - 1, 6))
    return Deferred(
        count, case.now + wait, str(reason), version, case.node.retry, _failed_version(case.fence)
    )


def remembered(case: FencedCase, reason: Reason) -> Deferred | None:
    """Return the record that is left on a released node to remember that its change had failed. The record has no
    back-off. None if the change had not failed, or if the last proof records the failure already."""
    proof, failed = case.node.verified, _failed_version(case.fence)
    if failed is None or (proof is not None and proof.failed_version == failed):
        return None
    return replace(next_deferral(case, reason), count=0, until=case.now)


def _failed_version(fence: Fence) -> SpecVersion | None:
    """Return the version of the spec under which the change in flight failed, or None if it has not failed.

    If the change continues after a failure and has not failed again, the version recorded at the earlier failure is
    returned.
    """
    return fence.failed_version if fence.failed is None else fence.version


def standing_deferral(case: NodeCase, policy: PolicyView) -> Deferred | None:
    """Return the back-off that holds the node back now, or None if there is none or its time is over. It ends early if
    the node has another policy, if the policy has another revision, or if the retry annotation has a new value."""
    deferred = case.node.deferred
    if deferred is None or case.now >= deferred.until:
        return None
    if deferred.version != policy.version:
        return None
    return None if is_new_value(case.node.retry, deferred.retry) else deferred


# --- drift -------------------------------------------------------------------------------------------------


def was_corrected(case: NodeCase, policy: PolicyView) -> bool:
    """Whether drift has already been corrected in the present revision of this policy."""
    return _corrected_in(case.node.verified) == policy.version.revision


def _corrected_in(verified: Verified | None) -> str:
    return "" if verified is None else verified.corrected_revision


def corrects_drift(fence: Fence, policy: PolicyView) -> bool:
    """Whether the change in flight corrects drift, and the policy still has the revision under which the change
    began."""
    return fence.drift and fence.version == policy.version


def adopted(case: NodeCase, assessed: Assessed) -> Verified:
    """Return the proof for a node that matches its target without a change by us. The new proof takes from an earlier
    one the time and duration of the last change and the revision in which drift was corrected. If the earlier proof is
    for the same policy, its record of the change is kept too; after a rollback, only the failed version is kept. Unless
    the earlier version is kept so, the proof's revision is empty, because no change of this policy led there."""
    target, policy, earlier = assessed.target, assessed.policy, case.node.verified
    record = Verified(
        case.owner_name,
        target.mig_config,
        target.plugin_key,
        corrected_revision=_corrected_in(earlier),
        retry=case.node.retry,
        layout=target.text,
        gpus=len(target.layouts),
        version=SpecVersion(policy.uid, ""),
    )
    if earlier is None:
        return record
    record = replace(record, changed_at=earlier.changed_at, took=earlier.took)
    if earlier.version.uid != policy.uid:
        return record
    if earlier.rolled_back:  # its present layout is not the result of our change, so it is not a canary
        return replace(record, failed_version=earlier.failed_version)
    return replace(
        record,
        version=earlier.version,
        planned=earlier.planned,
        failed_version=earlier.failed_version,
        apart=earlier.apart,
        mates=earlier.mates,
    )


def _took(fence: Fence, now: datetime) -> int:
    """Return how many seconds the change took, at least 1. Return 0 if the change has no recorded start, or if the
    change counted as failed before its deadline: then somebody repaired the node, and the elapsed time means nothing.
    """
    repaired = fence.failed is not None and fence.failed < fence.deadline
    return 0 if repaired or fence.began is None else max(1, round((now - fence.began).total_seconds()))


def proven(case: FencedCase, target: Target, policy: PolicyView) -> Verified:
    """Return the proof of a change, or of the rollback of a failed one. `target` is the layout that was proven; the
    names of the configurations are those in the fence. The proof's revision is the one that the change followed, even
    if it is another policy's. The proof of a rollback records the failure, and keeps from the earlier proof when the
    latest change that reached its target was proven, and how long that took."""
    fence = case.fence
    corrected = _corrected_in(case.node.verified)
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
        took=_took(fence, case.now),
        planned=fence.planned,
        failed_version=fence.failed_version,
        apart=fence.newcomer or fence.turned,
        mates=fence.mates,
    )
    earlier = case.node.verified
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
