"""The verdict for one node: a fenced node continues its change; any other is adopted, skipped, kept waiting by a
gate, or a candidate.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#slot, docs/design/glossary.md#drift,
docs/design/glossary.md#point-of-no-return.
"""

from dataclasses import replace

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import LabelNode, Release, UpdateFence
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.attempts import adopted, note_failure, was_rolled_back
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.gates import SERVABLE, find_gate
from gpusharing.planning.transition.marks import routing_before, unmarked
from gpusharing.planning.transition.quiet import find_quiet
from gpusharing.planning.transition.requests import with_gpunode
from gpusharing.planning.transition.startgate import find_closed, find_unseen
from gpusharing.planning.transition.taintfence import cordon_instead
from gpusharing.planning.transition.verdict import FencedCase, NodeCase, Verdict
from gpusharing.planning.transition.yielding import yielded
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed, Assessment, Untargeted, has_gpu


def judge(case: NodeCase) -> Verdict | None:
    """Return the verdict for one node, or None if the node does not concern us. Such a node has no fence, no policy, no
    GPU, and no label that names a former owner. A node whose fence cannot be read is Blocked (FenceUnreadable), and
    nothing is done about it. Any other verdict gets the write to the GPUNode if one is needed (`with_gpunode`)."""
    if case.node.fence_error:
        message = f"{case.node.fence_error}; nothing is done on this node"
        return case.verdict(Phase.BLOCKED, Reason.FENCE_UNREADABLE, message)
    if (fence := case.node.fence) is not None:
        return with_gpunode(_fenced(FencedCase.of(case, fence)), case)
    if case.assessment is None:
        return _unowned(case)
    return with_gpunode(_unfenced(case, case.assessment), case)


def differs_from_target(case: NodeCase) -> bool:
    """Whether the node was seen to differ from its target, which counts as drift if it lasts. A node that was rolled
    back is compared with the layout that the rollback restored.

    False if the policy gives the node no target, and while the GPUs are not read: a reading is awaited, the agent
    reports an error, or NVML must stay closed, as when mig-manager repairs the node after a reboot. What the first
    reading then shows may still be under repair, so it gets the whole grace period.
    """
    assessment = case.assessment
    if not isinstance(assessment, Assessed):
        return False
    difference = assessment.drift if was_rolled_back(case.node, assessment.policy) else assessment.mismatch
    return (
        difference is not None
        and difference.reason not in (Reason.OBSERVATION_PENDING, Reason.AGENT_ERROR)
        and find_quiet(case) is None
    )


def _fenced(case: FencedCase) -> Verdict:
    """Return the verdict for a node with our fence. If we yielded the node to somebody else, the verdict waits for them
    or releases the node. If the policy that began the change is being deleted and a person asked for a forced release,
    the verdict (Aborting, CordonKept) releases the node with its marks and its routing label restored, without a
    back-off, and leaves it cordoned; a node behind a DeviceTaintRule is cordoned first. Otherwise it is the next step
    of the change. A failure after the point of no return is recorded in the fence or, if another policy owns the node
    now, handed over to that policy."""
    # The change of a yielded node has ended, so there is nothing to release by force. Only its fence says that the
    # cordon is ours and may be lifted once nobody else works there.
    if case.fence.stage == "yielded":
        return yielded(case)
    policy, heir = case.policy, case.owner
    begun_by = policy if policy is not None and policy.name == case.fence.policy else None
    if begun_by is not None and begun_by.deleting and begun_by.force_release:
        if case.fence.tainted:
            return cordon_instead(case, Phase.ABORTING, "the change is released by force")
        message = (
            f"released by {names.ANNOTATION_FORCE_RELEASE}; the cordon stays. Check the node, then run (with the right"
            f" to patch Nodes): kubectl uncordon {case.node.name}"
        )
        labels, annotations = unmarked(case.fence, case.node)
        labels |= routing_before(case.fence, case.node)
        verdict = case.verdict(Phase.ABORTING, Reason.CORDON_KEPT, message)
        return verdict.then(Release(case.node, uncordon=False, labels=labels, annotations=annotations))
    if case.fence.stage == "fenced":
        return before_pnr(case)
    verdict = after_pnr(case)
    lost = case.owner_name != case.fence.policy and case.fence.node_uid == case.node.uid
    if verdict.phase is Phase.FAILED and heir is not None and lost:
        return _hand_over(case, verdict, heir)
    return note_failure(case, verdict)


def _hand_over(case: FencedCase, verdict: Verdict, heir: PolicyView) -> Verdict:
    """Return the verdict of a Failed node whose only action writes `heir`, the node's present owner, into the fence as
    the policy of the change. The message says so.

    The node stays Failed and keeps its slot, and the fence keeps the version of the spec that failed.
    """
    message = f"{verdict.message}. Policy {heir.name} now owns the node and takes over its change"
    fence = replace(case.fence, policy=heir.name)
    return replace(verdict, message=message).then(UpdateFence(case.node, fence))


def _unowned(case: NodeCase) -> Verdict | None:
    """Return the Skipped verdict (Unowned) for a node that no policy selects. If the node has a label with the name of
    its former owner, the verdict removes that label. On a node with a GPU, it also has the write to the GPUNode that is
    needed (`with_gpunode`). None for a node without a GPU and without that label."""
    marked = names.LABEL_POLICY in case.node.labels
    if not has_gpu(case.node) and not marked:
        return None
    verdict = case.verdict(Phase.SKIPPED, Reason.UNOWNED, "no policy selects this node")
    if marked:
        verdict = verdict.then(LabelNode(case.node, {names.LABEL_POLICY: None}))
    return with_gpunode(verdict, case) if has_gpu(case.node) else verdict


def _unfenced(case: NodeCase, assessment: Assessment) -> Verdict:
    """Return the verdict for a node with a policy but no fence. A node without a target is Skipped if the policy is
    accepted, else Blocked. Outside the policy (Mark.OUTSIDE), it also loses our policy label if the policy resets its
    nodes. `_not_observed` judges unread nodes, and `_as_wanted` matching ones. If the node seems to have no GPU, the
    message says why one may be undetected (`find_unseen`). Others are Pending candidates (Progressing) unless
    `find_closed` or a gate objects."""
    if isinstance(assessment, Untargeted):
        if assessment.unobserved:
            return _not_observed(case, assessment.objection)
        phase, objection = Phase.SKIPPED if assessment.accepted else Phase.BLOCKED, assessment.objection
        if assessment.policy.resetting and Mark.OUTSIDE in objection.reason.marks:  # left as they are
            verdict = case.verdict(phase, objection.reason, objection.message)
            return verdict.then(LabelNode(case.node, {names.LABEL_POLICY: None}))
        unseen = find_unseen(case) if objection.reason is Reason.NO_GPU else ""
        return case.verdict(phase, objection.reason, objection.message + unseen)
    if assessment.mismatch is None:
        return _as_wanted(case, assessment)
    if (closed := find_closed(case)) is not None:
        return _blocked(case, closed)
    if (gate := find_gate(case, assessment)) is not None:
        return _gated(case, gate)
    message = f"will be changed from {assessment.observed_text or 'unknown'} to {assessment.target.text}"
    return case.verdict(Phase.PENDING, Reason.PROGRESSING, message, candidate=True)


def _not_observed(case: NodeCase, pending: Finding) -> Verdict:
    """Return the verdict for a node without a usable reading, with the most specific known cause: a closed gate of
    SERVABLE, a component that does not tolerate the start-up taint, an agent that is missing or not Ready (`no_agent`),
    or else `pending`. The second and third make the node Blocked; for the other two, the reason decides between Pending
    and Blocked."""
    if (gate := find_gate(case, None, SERVABLE)) is not None:  # this explains why nobody reads the GPUs
        return _gated(case, gate)
    if (closed := find_closed(case)) is not None:
        return _blocked(case, closed)
    if not case.agent_ready:
        return _blocked(case, case.no_agent("; check the DaemonSet gpusharing-agent"))
    return case.verdict(pending.reason.waiting_phase, pending.reason, pending.message)


def _blocked(case: NodeCase, finding: Finding) -> Verdict:
    """Return a Blocked verdict with this Finding."""
    return case.verdict(Phase.BLOCKED, finding.reason, finding.message)


def _gated(case: NodeCase, gate: Finding) -> Verdict:
    """Return the verdict for a node that a gate keeps from starting: Skipped if the skip label closes the gate, else
    Pending or Blocked. If the gate opens by itself at some time, that time is the verdict's deadline, and the verdict
    wakes then."""
    phase = Phase.SKIPPED if gate.reason is Reason.SKIP_LABEL else gate.reason.waiting_phase
    wake = gate.until if gate.until is not None and gate.until > case.now else None
    return replace(case.verdict(phase, gate.reason, gate.message, wake=wake), deadline=gate.until)


def _as_wanted(case: NodeCase, assessed: Assessed) -> Verdict:
    """Return the verdict for a node that matches its target. It is Synced, even with an unhealthy GPU (GPUUnhealthy is
    then the reason, else Synced), if the match is proven, our labels are right and the start-up taint is gone; a policy
    that resets its nodes also requires a Ready agent and Node. Otherwise it is adopted (Pending, Adoptable), by one
    write of those of our labels that are wrong and a new proof. It is Blocked while the agent or Node is not Ready, or
    a GPU is unhealthy behind the taint."""
    node, verified, target = case.node, case.node.verified, assessed.target
    proven = verified is not None and (verified.policy, verified.mig_config, verified.plugin_config) == (
        case.owner_name,
        target.mig_config,
        target.plugin_key,
    )
    marks = {names.LABEL_MODE: target.routing, names.LABEL_POLICY: case.owner_name}
    missing: dict[str, str | None] = {
        key: value for key, value in marks.items() if node.labels.get(key) != value
    }
    if proven and not missing and node.gate is None:
        if assessed.policy.resetting and (unseen := _unseen(case, "have whole GPUs")) is not None:
            return unseen
        if (unhealthy := case.unhealthy) is not None:
            return case.verdict(
                Phase.SYNCED, Reason.GPU_UNHEALTHY, f"{target.text} proven; {unhealthy.message}"
            )
        return case.verdict(Phase.SYNCED, Reason.SYNCED, f"{target.text} proven{_tell_lapses(case)}")
    if (unseen := _unseen(case, "match its target")) is not None:
        return unseen
    already = f"the node already has {target.text}"
    if node.gate is not None and (unhealthy := case.unhealthy) is not None:
        return case.verdict(Phase.BLOCKED, Reason.GPU_UNHEALTHY, f"{already}, but {unhealthy.message}")
    verdict = case.verdict(Phase.PENDING, Reason.ADOPTABLE, f"{already}; it is adopted without a change")
    return verdict.then(LabelNode(node, missing, verified=adopted(case, assessed)))


def _tell_lapses(case: NodeCase) -> str:
    """Return a clause, preceded by a semicolon, that says what has ended MPS clients on the node since the daemon's
    pod started. Empty if nothing has."""
    lapses = case.lapses
    text = lapses.describe(lapses.count) if lapses is not None else ""
    return f"; {text}" if text else ""


def _unseen(case: NodeCase, fact: str) -> Verdict | None:
    """Return the Blocked verdict for a node whose agent or Node is not Ready, so that nothing can be proven; the agent
    is checked first. The reason is that of `no_agent` or NodeNotReady. None if both are Ready. `fact` is the verb
    phrase for the message, such as `match its target`."""
    if not case.agent_ready:
        return _blocked(case, case.no_agent(f", so the node cannot be proven to {fact}"))
    if not case.node.ready:
        return case.verdict(Phase.BLOCKED, Reason.NODE_NOT_READY, f"{case.node.name} is not Ready")
    return None
