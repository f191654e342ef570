"""How often a change was tried and what came of it: deferrals, retries, corrected drift, and the record of a proof.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#drift, docs/design/glossary.md#point-of-no-return.
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
"""Seconds for the readings and LISTs that prove a node idle."""


def actuation_limit(spec: GPUSharingPolicySpec) -> timedelta:
    """Return the time from the PNR until the node counts as Failed: actuation and verification together."""
    timeouts = spec.rollout.timeouts
    return parse_duration(timeouts.actuation) + parse_duration(timeouts.verification)


def owed_for(target: Target) -> str:
    """Return the text by which a fence names a run that leads to this target."""
    return f"{target.mig_config} {target.plugin_key} {target.text}".strip()


def owed_by(proof: Verified) -> str:
    """Return the text by which a fence would name a run that leads to what was proven."""
    return f"{proof.mig_config} {proof.plugin_config} {proof.layout}".strip()


def owe(case: FencedCase, assessed: Assessed, attempt: int, *, failed: bool = False) -> UpdateFence:
    """Return the action that records that another run of the actuators is owed. The run begins when the node is proven
    idle anew, by the deadline that this sets. `failed`: the change has failed so far. A change that is rolled back
    continues to be.

    The record comes before the run, so that a crash in between repeats nothing, and a pod can block only for a limited
    time.
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


def note_failure(case: FencedCase, verdict: Verdict) -> Verdict:
    """Return the verdict of a node past the PNR, with the record in its fence if it is Failed for the first time. The
    record is needed because a clock that is set back would otherwise undo the failure, and a halted rollout would
    continue."""
    ours = case.fence.node_uid == case.node.uid and case.assessment is not None
    if verdict.phase is not Phase.FAILED or case.fence.failed is not None or not ours:
        return verdict
    return verdict.then(*verdict.actions, UpdateFence(case.node, replace(case.fence, failed=case.now)))


def still_failed(case: FencedCase) -> datetime | None:
    """Return when the change was seen to have failed, but not later than now, or None if it has not failed. Only a
    proof, a person or another generation clears that; a run that begins by itself does not."""
    return None if case.fence.failed is None else min(case.fence.failed, case.now)


def is_late(case: FencedCase) -> bool:
    """Whether the deadline after the PNR is over, or was over when the failure was recorded."""
    failed, deadline = case.fence.failed, case.fence.deadline
    return case.now >= deadline or (failed is not None and failed >= deadline)


def proof_time(case: NodeCase) -> timedelta:
    """Return how long a node whose pods are gone may take to be proven idle: for configuration, readings and LISTs."""
    return timedelta(seconds=case.settings.config_propagation + PROOF)


def was_asked_again(case: FencedCase) -> bool:
    """Whether a person set a new value of the retry annotation since the present attempt began."""
    return is_new_value(case.node.retry, case.fence.retry)


def is_new_value(retry: str, answered: str) -> bool:
    """Whether this value of the retry annotation asks for another try: it is neither empty nor `answered` already."""
    return retry not in ("", answered)


def retry_command(node: str, answered: str) -> str:
    """Return the command that asks for another try on this node, with a value that differs from `answered`, the last
    one."""
    value = "once-more" if answered == "again" else "again"
    return f"kubectl annotate node {node} --overwrite {names.ANNOTATION_RETRY}={value}"


def goes_back(case: FencedCase) -> bool:
    """Whether the node is being rolled back to what was proven on it last. Another generation, a recreated policy or a
    person's retry ends that, because they want what the policy asks for. A deletion or a pause of the policy does
    not."""
    fence, assessment = case.fence, case.assessment
    if not fence.rolls_back or assessment is None or was_asked_again(case):
        return False
    policy, version = assessment.policy, fence.version
    if version.uid != policy.uid:
        return False
    if policy.spec is not None and policy.spec.rollout.paused:
        return True  # someone who pauses while nodes fail does not want more of the layout that failed
    # The API server gives an object that is being deleted another generation, though nobody edited it.
    return version.generation in (policy.generation, policy.generation - policy.deleting)


def was_rolled_back(node: NodeView, policy: PolicyView) -> bool:
    """Whether the change of this very generation failed on the node and the node was rolled back."""
    proof = node.verified
    return proof is not None and proof.rolled_back and proof.version == policy.version


def failed_in(node: NodeView, policy: PolicyView) -> SpecVersion | None:
    """Return the last known version of this policy's spec in which a change failed on the node, or None if none
    failed. Another try does not reset it."""
    records = (record.failed_version for record in (node.verified, node.deferred) if record is not None)
    ours = (version for version in records if version is not None and version.uid == policy.uid)
    return max(ours, key=lambda version: version.generation, default=None)


def is_tried_again(node: NodeView, policy: PolicyView) -> bool:
    """Whether a person asked for another try after a failure of this generation, and the node has not begun it yet: it
    was rolled back, or had to be released first. What keeps other nodes from starting because of the failure does
    not apply to such a node."""
    deferred = node.deferred
    if deferred is not None and deferred.failed_version == policy.version:
        return True
    return was_rolled_back(node, policy)


# --- before the point of no return -------------------------------------------------------------------------


def next_deferral(case: FencedCase, reason: Reason) -> Deferred:
    """Return the record of the wait after this abort: `abort_backoff` seconds (5 min by default), doubled with each
    abort within one generation of one policy, at most 64 times as long."""
    earlier, version = case.node.deferred, case.fence.version
    if not version.uid and case.assessment is not None:
        version = replace(version, uid=case.assessment.policy.uid)
    again = earlier is not None and earlier.version in (version, replace(version, uid=""))
    count = earlier.count + 1 if earlier is not None and again else 1
    wait = timedelta(seconds=case.settings.abort_backoff * 2 ** min(count - 1, 6))
    return Deferred(
        count, case.now + wait, str(reason), version, case.node.retry, _failed_version(case.fence)
    )


def remembered(case: FencedCase, reason: Reason) -> Deferred | None:
    """Return what stays on a node that is released without a wait: the record that the change had failed. None if it
    had not, or if the last proof records that."""
    proof, failed = case.node.verified, _failed_version(case.fence)
    if failed is None or (proof is not None and proof.failed_version == failed):
        return None
    return replace(next_deferral(case, reason), count=0, until=case.now)


def _failed_version(fence: Fence) -> SpecVersion | None:
    """Return the version of the spec under which the change in flight failed, or None if it has not.

    A failure that was recorded earlier counts if the change goes on without a new one.
    """
    return fence.failed_version if fence.failed is None else fence.version


def standing_deferral(case: NodeCase, policy: PolicyView) -> Deferred | None:
    """Return the wait that holds the node back now, or None. Another generation or policy, or a new value of the retry
    annotation, ends it."""
    deferred = case.node.deferred
    if deferred is None or case.now >= deferred.until:
        return None
    if deferred.version not in (policy.version, replace(policy.version, uid="")):
        return None
    return None if is_new_value(case.node.retry, deferred.retry) else deferred


# --- drift -------------------------------------------------------------------------------------------------


def may_correct_at_once(case: NodeCase) -> bool:
    """Whether a person asked for another try since the proof, so that drift is corrected without a wait."""
    verified = case.node.verified
    return verified is not None and is_new_value(case.node.retry, verified.retry)


def was_corrected(case: NodeCase, policy: PolicyView) -> bool:
    """Whether drift was already corrected in this generation of this very policy."""
    verified = case.node.verified
    return verified is not None and _corrected_in(verified, policy) == policy.generation


def _corrected_in(verified: Verified | None, policy: PolicyView) -> int:
    """Return the generation of this policy in which drift was last corrected, or 0 if it never was."""
    if verified is None or verified.policy != policy.name or verified.version.uid not in ("", policy.uid):
        return 0
    return verified.corrected_generation


def corrects_drift(fence: Fence, policy: PolicyView) -> bool:
    """Whether the change in flight corrects drift, and nobody has edited or recreated the policy since it began."""
    return fence.drift and fence.version in (policy.version, replace(policy.version, uid=""))


def adopted(case: NodeCase, assessed: Assessed) -> Verified:
    """Return the proof for a node that is as wanted without a change of ours. What an earlier proof says about
    corrected drift, and for the same policy about its change, is kept."""
    target, policy, earlier = assessed.target, assessed.policy, case.node.verified
    record = Verified(
        case.owner_name,
        target.mig_config,
        target.plugin_key,
        corrected_generation=_corrected_in(case.node.verified, policy),
        retry=case.node.retry,
        layout=target.text,
        gpus=len(target.layouts),
        version=SpecVersion(policy.uid, 0),
    )
    if earlier is None:
        return record
    record = replace(record, changed_at=earlier.changed_at, took=earlier.took)
    if earlier.version.uid != policy.uid:
        return record
    if earlier.rolled_back:  # no change of ours made it as it is now: it is not a canary
        return replace(record, failed_version=earlier.failed_version)
    return replace(
        record,
        version=earlier.version,
        revision=earlier.revision,
        planned=earlier.planned,
        failed_version=earlier.failed_version,
        apart=earlier.apart,
        mates=earlier.mates,
    )


def _took(fence: Fence, now: datetime) -> int:
    """Return the seconds that the change took, or 0 if that is unknown because somebody repaired what mig-manager had
    given up."""
    repaired = fence.failed is not None and fence.failed < fence.deadline
    return 0 if repaired or fence.began is None else max(1, round((now - fence.began).total_seconds()))


def proven(case: FencedCase, target: Target, policy: PolicyView) -> Verified:
    """Return the proof of a change, or of the rollback of a failed one."""
    fence = case.fence
    corrected = _corrected_in(case.node.verified, policy)
    followed = fence.version.generation if fence.version.uid in ("", policy.uid) else 0
    record = Verified(
        policy=policy.name,
        mig_config=fence.target_mig_config,
        plugin_config=fence.target_plugin_config,
        corrected_generation=policy.generation if corrects_drift(fence, policy) else corrected,
        retry=case.node.retry,
        layout=target.text,
        gpus=len(target.layouts),
        version=SpecVersion(policy.uid, followed),
        changed_at=case.now,
        took=_took(fence, case.now),
        revision=fence.revision,
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
        corrected_generation=corrected,
        changed_at=earlier.changed_at,
        took=earlier.took,
        rolled_back=True,
        failure=fence.failure,
        mates=(),
    )
