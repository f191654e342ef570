"""What is the verdict for one node?

A fenced node continues its change; any other is adopted, skipped, kept waiting by a gate, or a candidate.
"""

from collections.abc import Iterator
from dataclasses import replace

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.snapshot.actions import LabelNode, UpdateFence
from gpusharing.planning.stack.mps import tell_lapses
from gpusharing.planning.stack.offers import find_misfits
from gpusharing.planning.transition.actuation import yielded
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.attempts import (
    PROOF,
    adopted,
    find_driver_trace,
    find_quiet,
    note_failure,
    was_rolled_back,
)
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.fencing import add_unseen, cordon_instead, find_closed, restore
from gpusharing.planning.transition.gates import alone, find_gate, first_closed, service_gates
from gpusharing.planning.transition.requests import tell_silence, with_gpunode
from gpusharing.planning.transition.verdict import NodeCase, Verdict, find_health
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Mark, Reason
from gpusharing.planning.wanted.actuators import Trace
from gpusharing.planning.wanted.assess import Assessed, Assessment, Untargeted, has_gpu
from gpusharing.planning.wanted.verify import name_gpus


def judge(case: NodeCase) -> Verdict | None:
    """Return the verdict for one node, or None if it has neither a fence, a policy, a GPU nor a label of ours."""
    verdict = _judge(case)
    ends = [end for trace in find_traces(case) if (end := case.believes_until(trace)) > case.now]
    if verdict is None or not ends:
        return verdict
    return replace(verdict, wake=min(filter(None, (verdict.wake, *ends))))


def _judge(case: NodeCase) -> Verdict | None:
    if case.node.fence_error:
        message = f"{case.node.fence_error}; nothing is done on this node"
        return case.verdict(Phase.BLOCKED, Reason.FENCE_UNREADABLE, message)
    if case.node.fence is not None:
        return with_gpunode(_judge_fenced(case), case)
    if case.assessment is not None:
        verdict = _judge_unfenced(case, case.assessment)
        if verdict.reason is Reason.OBSERVATION_PENDING and (doubt := case.find_doubt(_find_silence(case))) is not None:
            verdict = replace(case.show(verdict.phase, doubt), actions=verdict.actions)
        return with_gpunode(verdict, case)
    marked = names.LABEL_POLICY in case.node.labels
    if not has_gpu(case.node) and not marked:
        return None
    actions = [LabelNode(case.node, {names.LABEL_POLICY: None})] if marked else []
    reason, message = Reason.UNOWNED, "no policy selects this node"
    misfit, _ = next(find_misfits(case.node, alone(case)), (None, None))
    if misfit is not None:
        reason, message = misfit.reason, f"{message}, and {misfit.message}"
    verdict = case.verdict(Phase.SKIPPED, reason, message, *actions)
    return with_gpunode(verdict, case) if has_gpu(case.node) else verdict


def differs_from_target(case: NodeCase) -> bool:
    """Whether the node was seen to differ from its target, or from what a rollback restored; drift if that lasts."""
    assessed = case.assessed
    if assessed is None:
        return False
    difference = assessed.drift if was_rolled_back(case.node, assessed.policy) else assessed.mismatch
    return (
        difference is not None
        and difference.reason not in (Reason.OBSERVATION_PENDING, Reason.AGENT_ERROR)
        and find_quiet(case) is None
    )


def find_traces(case: NodeCase) -> Iterator[Trace]:
    """Yield all that is believed of the node only for a while (docs/design/transition.md#traces)."""
    found = case.actuator.find_claim(case), find_driver_trace(case), _find_down(case), _find_silence(case)
    yield from filter(None, found)


def _find_down(case: NodeCase) -> Trace | None:
    assessed, node = case.assessed, case.node
    if assessed is None or node.fence is not None or not node.ready:
        return None
    return case.actuator.find_down(case, assessed.target)


def _find_silence(case: NodeCase) -> Trace | None:
    """Return the last report of an agent that is not there, or the readiness of one that does not answer."""
    node, gpunode, observed = case.node, case.gpunode, case.observed
    if node.fence is not None or not node.ready or gpunode is None:
        return None
    if not case.agent_ready:
        if node.verified is None:  # else a new pool would be judged in every pass while its agents start
            return None
        gone = case.no_agent("")
        text = f"its GPUs are shown as they were last read, because {gone.message}"
        return Trace(f"no agent reads {node.name}", case.settings.sign_grace, replace(gone, message=text))
    answered = case.answer is not None and case.answer.quiet == gpunode.quiet
    if answered or (observed is not None and observed.error):
        return None
    claim = tell_silence(case)
    text = f"{claim}; read the log of its pod, and delete the pod if that does not help"
    return Trace(claim, PROOF, Finding(Reason.OBSERVATION_PENDING, text, stands=True))


def _judge_fenced(case: NodeCase) -> Verdict:
    # The change of a yielded node has ended, so there is nothing to release by force. Only its fence says that the
    # cordon is ours and may be lifted once nobody else works there.
    node, fence, policy, heir = case.node, case.fence, case.policy, case.owner
    if fence.stage == "yielded":
        return yielded(case)
    if policy is not None and policy.name == fence.policy and policy.deleting and policy.force_release:
        if fence.tainted:
            return cordon_instead(case, Phase.ABORTING, "the change is released by force")
        uncordon = Command.of("kubectl uncordon", node.name)
        message = (
            f"released by {names.ANNOTATION_FORCE_RELEASE}; the cordon stays. Check the node, then run (with the right"
            f" to {uncordon.right}): {uncordon}"
        )
        kept = Finding(Reason.CORDON_KEPT, message, commands=(uncordon,))
        return case.show(Phase.ABORTING, kept, restore(case))
    if fence.stage == "fenced":
        return before_pnr(case)
    verdict = after_pnr(case)
    lost = case.owner_name != fence.policy and fence.node_uid == node.uid
    if verdict.phase is Phase.FAILED and heir is not None and lost:
        message = f"{verdict.message}. Policy {heir.name} now owns the node and takes over its change"
        return replace(verdict, message=message).then(UpdateFence(node, replace(fence, policy=heir.name)))
    return note_failure(case, verdict)


def _judge_unfenced(case: NodeCase, assessment: Assessment) -> Verdict:
    if isinstance(assessment, Untargeted) and not assessment.unobserved:
        phase, objection = Phase.SKIPPED if assessment.accepted else Phase.BLOCKED, assessment.objection
        if assessment.policy.resetting and Mark.OUTSIDE in objection.reason.marks:  # left as they are
            unlabel = LabelNode(case.node, {names.LABEL_POLICY: None})
            return case.show(phase, objection, unlabel)
        return case.show(phase, add_unseen(case, objection) if objection.reason is Reason.NO_GPU else objection)
    if isinstance(assessment, Untargeted):
        if (gate := first_closed(service_gates(case))) is not None:  # this explains why nobody reads the GPUs
            return _keep_waiting(case, gate)
        if (closed := find_closed(case)) is not None:
            return case.show(Phase.BLOCKED, closed)
        if not case.agent_ready:
            return case.show(Phase.BLOCKED, case.no_agent("; check the DaemonSet gpusharing-agent"))
        pending = assessment.objection
        return case.show(pending.reason.waiting_phase, pending)
    if assessment.mismatch is None:
        return _judge_matching(case, assessment)
    if (closed := find_closed(case)) is not None:
        return case.show(Phase.BLOCKED, closed)
    if (gate := find_gate(case, assessment)) is not None:
        return _keep_waiting(case, gate)
    message = f"will be changed from {assessment.observed_text or 'unknown'} to {assessment.target.text}{_tell_extent(case, assessment)}"
    return case.verdict(Phase.PENDING, Reason.PROGRESSING, message, candidate=True)


def _tell_extent(case: NodeCase, assessed: Assessed) -> str:
    if assessed.spec.drain.scope != "Changed" or not case.disruption.cordons:
        return ""
    if case.gpus:
        return f"; only {name_gpus(case.gpus)} will be emptied"
    why = assessed.whole or case.unplaced
    return f"; all of its GPUs will be emptied, because {why}" if why else ""


def _keep_waiting(case: NodeCase, gate: Finding) -> Verdict:
    phase = Phase.SKIPPED if gate.reason is Reason.SKIP_LABEL else gate.reason.waiting_phase
    wake = gate.until if gate.until is not None and gate.until > case.now else None
    return replace(case.show(phase, gate, wake=wake), deadline=gate.until)


def _judge_matching(case: NodeCase, assessed: Assessed) -> Verdict:
    node, verified, target = case.node, case.node.verified, assessed.target
    wanted = (case.owner_name, target.mig_config, target.plugin_key)
    proven = verified is not None and wanted == (verified.policy, verified.mig_config, verified.plugin_config)
    marks = {names.LABEL_MODE: target.routing, names.LABEL_POLICY: case.owner_name}
    missing: dict[str, str | None] = {key: value for key, value in marks.items() if node.labels.get(key) != value}
    if (down := _find_down(case)) is not None:
        lasts = case.find_doubt(down) is not None
        if lasts or not proven:  # before that, it may just restart
            return case.show(Phase.BLOCKED, replace(down.doubt, stands=lasts), wake=down.doubt.until)
    if proven and not missing and node.gate is None:
        if assessed.policy.resetting and (unseen := _find_blind(case, "have whole GPUs")) is not None:
            return case.show(Phase.BLOCKED, unseen)
        text = f"{target.text} proven"
        silent = None if case.agent_ready else _find_silence(case)
        if silent is not None and (case.agent_trouble is not None or case.find_doubt(silent) is not None):
            text = f"{text}, and {silent.doubt.message}"  # before that, it may just restart
        if (unhealthy := case.unhealthy) is not None:
            return case.verdict(Phase.SYNCED, Reason.GPU_UNHEALTHY, f"{text}; {unhealthy.message}")
        if (pod := case.mps_pod) is not None and (ended := tell_lapses(pod, pod.lone_restarts)):
            text = f"{text}; {ended}"
        return case.verdict(Phase.SYNCED, Reason.SYNCED, text)
    if (unseen := _find_blind(case, "match its target")) is not None:
        return case.show(Phase.BLOCKED, unseen)
    already = f"the node already has {target.text}"
    # No pod gets a device that only the device plugin calls unhealthy, so the others may be used.
    if node.gate is not None and (health := find_health(case.gpunode)) is not None and not is_healthy(health):
        return case.verdict(Phase.BLOCKED, Reason.GPU_UNHEALTHY, f"{already}, but {health.message}")
    adopt = LabelNode(node, missing, verified=adopted(case, assessed))
    return case.verdict(Phase.PENDING, Reason.ADOPTABLE, f"{already}; it is adopted without a change", adopt)


def _find_blind(case: NodeCase, fact: str) -> Finding | None:
    if not case.agent_ready:
        return case.no_agent(f", so the node cannot be proven to {fact}")
    return None if case.node.ready else Finding(Reason.NODE_NOT_READY, f"{case.node.name} is not Ready")
