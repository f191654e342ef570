"""A fenced node after the point of no return (PNR): wait for the actuators, cure their wedges, prove, give back.

    Reconfiguring ── state success, operands back ──► Verifying ── five sources agree ──► Uncordoning (one PATCH)
        │  pending for ever, operands paused: restart mig-manager, at most twice
        └── failed, time-out ──► Failed: stays cordoned, keeps its slot; a retry or another target repairs it

After the PNR safety wins: the node stays fenced until a good layout is proven, whatever anybody lifts. A result
counts more than a clock: a Failed node that is proven after all is given back.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.actions import EnsureGPUNode, Release, RestartOperand, UpdateFence
from gpusharing.planning.before import (
    actuation_limit,
    answers_quiet,
    empty_and_pass,
    may_uncordon,
    pass_pnr,
    prepares_next_step,
)
from gpusharing.planning.gates import CORDONING
from gpusharing.planning.marks import unmarked
from gpusharing.planning.reasons import Reason
from gpusharing.planning.target import Target
from gpusharing.planning.verdict import NodeCase, Verdict
from gpusharing.planning.verify import Case, Evidence, Mismatch, find_mismatch, paused_operands
from gpusharing.planning.views import Operand, Verified


def after_pnr(case: NodeCase) -> Verdict:
    """The next step of a node whose fence stage is `actuating`."""
    fence, node = case.fence, case.node
    if fence.node_uid != node.uid:
        message = (
            "the fence belongs to an earlier node of this name; check the node, then remove the annotation"
        )
        return case.verdict(Phase.FAILED, Reason.ORPHAN_FENCE, message)
    if case.assessment is None:
        message = f"policy {fence.policy} is gone and no policy owns the node; it stays fenced until one does"
        return case.verdict(Phase.FAILED, Reason.ORPHAN_FENCE, message)
    if fence.disruption in CORDONING and not node.unschedulable:
        message = "somebody lifted the cordon before a good layout was proven; it is put back"
        verdict = case.verdict(Phase.RECONFIGURING, Reason.UNCORDONED_EXTERNALLY, message)
        return verdict.then(UpdateFence(node, fence, cordon=True))
    if case.operand is not None and case.operand.uid == fence.restart_uid:
        return _delete_operand(case, case.operand)
    daemon = case.mps_daemon
    if daemon is not None and daemon.uid == fence.daemon_uid:
        return _delete_daemon(case, daemon)
    trouble = _trouble(case)
    if trouble is not None and not trouble.final:
        return _waiting(case, trouble.mismatch)
    target = case.assessment.target
    if target is None:
        return _unprovable(case)
    stop = case.assessment.stop
    aim = stop if stop is not None and fence.step < fence.steps else target
    if not _aims_at(case, aim) or (aim is stop and prepares_next_step(case)):
        return _retarget(case, target)
    return _conclude(case, aim, trouble)


def _delete_operand(case: NodeCase, operand: Operand) -> Verdict:
    """A fresh run of mig-manager begins when its pod is gone. NVML is closed before, where the agent still answers."""
    verdict = case.verdict(
        Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, "restarting mig-manager on the node"
    )
    if operand.deleting:  # a second DELETE would change nothing, and its success would look like progress
        return replace(verdict, wake=case.now + timedelta(seconds=case.settings.poll))
    gpunode, patience = case.gpunode, timedelta(seconds=case.settings.poll)
    if gpunode is not None and not gpunode.quiet:
        request = f"{case.fence.op}:restart:{case.fence.stage_since.timestamp():.3f}"
        return verdict.then(_ask(case, request, quiet=True))
    if case.agent_ready and not answers_quiet(case) and case.now < case.fence.stage_since + patience:
        return replace(verdict, wake=case.fence.stage_since + patience)
    return verdict.then(RestartOperand(case.node.name, operand.namespace, operand.name, operand.uid))


def _delete_daemon(case: NodeCase, daemon: Operand) -> Verdict:
    """A daemon with the new number of clients starts when the pod of the old one is gone."""
    verdict = case.verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, "restarting the MPS daemon")
    if daemon.deleting:
        return replace(verdict, wake=case.now + timedelta(seconds=case.settings.poll))
    return verdict.then(RestartOperand(case.node.name, daemon.namespace, daemon.name, daemon.uid))


def _ask(case: NodeCase, request: str, *, quiet: bool) -> EnsureGPUNode:
    return EnsureGPUNode(case.node.name, case.node.uid, request, quiet)


def _aims_at(case: NodeCase, target: Target) -> bool:
    """Whether the labels of the PNR lead there; an admin may have given a name another meaning since."""
    fence = case.fence
    aims = (fence.target_mig_config, fence.target_plugin_config, fence.to_layout)
    return aims == (target.mig_config, target.plugin_key, target.text)


# --- the actuators -----------------------------------------------------------------------------------------


class _Trouble:
    """What mig-manager says, when it is not plain success. `final`: waiting longer changes nothing."""

    def __init__(self, mismatch: Mismatch, *, final: bool, curable: bool = False) -> None:
        self.mismatch = mismatch
        self.final = final
        self.curable = curable


def _trouble(case: NodeCase) -> _Trouble | None:
    """Judge mig-manager by its labels and the time since the PNR or the last restart."""
    fence, node, settings = case.fence, case.node, case.settings
    if not fence.target_mig_config:
        return None
    state = node.labels.get(names.LABEL_MIG_STATE, "")
    waited = (case.now - fence.stage_since).total_seconds()
    paused = paused_operands(node)
    if state in ("success", "failed") and case.now < _believed_from(case):
        message = f"mig-manager starts anew; its state {state} is from before"
        return _Trouble(Mismatch(Reason.ACTUATION_IN_PROGRESS, message), final=False)
    if state == "failed":
        why = f": {case.mig_failure}" if case.mig_failure else "; its pod's log says why"
        message = f"mig-manager failed to apply {fence.target_mig_config}{why}"
        return _Trouble(Mismatch(Reason.ACTUATOR_FAILED, message), final=True, curable=bool(paused))
    if state == "success":
        if not paused:
            return None
        message = f"mig-manager says success, but operands are still paused: {', '.join(paused)}"
        wedged = waited >= settings.wedge_paused
        return _Trouble(Mismatch(Reason.OPERANDS_PAUSED, message), final=wedged, curable=True)
    doing = {"rebooting": "reboots the node", "pending": "is at work"}.get(state, "has not begun")
    stuck = waited >= settings.wedge_pending and state != "rebooting"
    reason = Reason.ACTUATOR_STUCK if stuck else Reason.ACTUATION_IN_PROGRESS
    # The limit and not the time itself: a message that tells seconds would be written anew on every pass.
    lasting = f" for more than {settings.wedge_pending:.0f} s" if stuck else ""
    return _Trouble(Mismatch(reason, f"mig-manager {doing}{lasting}"), final=stuck, curable=True)


def _believed_from(case: NodeCase) -> datetime:
    """From when a state says something about this attempt: the pod that is to replace the old one had time to begin.

    The old pod may use its whole grace period, and only then the next one starts.
    """
    fence, operand = case.fence, case.operand
    if not fence.restart_uid:
        return fence.stage_since
    if operand is None or operand.uid == fence.restart_uid or not operand.ready:
        return fence.deadline
    begun = max(fence.stage_since, operand.ready_since or fence.stage_since)
    return begun + timedelta(seconds=case.settings.restart_grace)


def _waiting(case: NodeCase, mismatch: Mismatch) -> Verdict:
    wakes = [
        case.fence.stage_since + timedelta(seconds=wait)
        for wait in (case.settings.wedge_paused, case.settings.wedge_pending)
    ]
    wakes.append(_believed_from(case))
    wake = min((moment for moment in wakes if moment > case.now), default=None)
    if case.now >= case.fence.deadline:
        return replace(
            _failed(case, Mismatch(Reason.ACTUATOR_STUCK, f"{mismatch.message}; time is up")), wake=wake
        )
    return case.verdict(
        Phase.RECONFIGURING, mismatch.reason, mismatch.message, wake=wake or case.fence.deadline
    )


def _conclude(case: NodeCase, target: Target, trouble: _Trouble | None) -> Verdict:
    """Nothing is under way any more: prove, cure, retry, or Failed."""
    if trouble is None:
        return _verify(case, target)
    if trouble.curable and case.fence.attempt <= case.settings.max_cures:
        return _restart(case, f"{trouble.mismatch.message}; restarting mig-manager", case.fence.attempt + 1)
    return _failed(case, trouble.mismatch)


def _restart(case: NodeCase, message: str, attempt: int) -> Verdict:
    """Record the attempt first; the restart follows from the record, so a crash in between repeats nothing."""
    if case.operand is None:
        late = case.now >= case.fence.deadline
        verdict = case.verdict(
            Phase.FAILED if late else Phase.RECONFIGURING,
            Reason.ACTUATOR_MISSING,
            "no mig-manager pod on the node to restart",
        )
        return verdict if late else replace(verdict, wake=case.fence.deadline)
    fence = replace(
        case.fence,
        attempt=attempt,
        stage_since=case.now,
        deadline=case.now + actuation_limit(case),
        restart_uid=case.operand.uid,
        retry=case.node.retry,
    )
    verdict = case.verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, message)
    return verdict.then(UpdateFence(case.node, fence))


def _failed(case: NodeCase, mismatch: Mismatch) -> Verdict:
    """Failed, unless a person asked for another try or the spec was edited since."""
    assert case.assessment is not None, "has a policy"
    asked = case.node.retry != case.fence.retry
    edited = case.assessment.policy.generation != case.fence.generation
    if (asked or edited) and case.fence.target_mig_config and case.assessment.target is not None:
        generation = case.assessment.policy.generation
        verdict = _restart(case, "trying again", 1)
        return replace(
            verdict, actions=tuple(_with_generation(action, generation) for action in verdict.actions)
        )
    message = f"{mismatch.message}. The node stays cordoned; when the cause is gone: kubectl annotate node"
    message += f" {case.node.name} --overwrite {names.ANNOTATION_RETRY}=again"
    verdict = case.verdict(Phase.FAILED, mismatch.reason, message)
    request = _verify_request(case) if mismatch.reason is Reason.ACTUATOR_FAILED else None
    return verdict.then(request) if request is not None else verdict  # mig-manager rests: show what it left


def _with_generation(action: object, generation: int) -> UpdateFence:
    assert isinstance(action, UpdateFence), "_restart yields nothing else"
    return replace(action, fence=replace(action.fence, generation=generation))


# --- another target ----------------------------------------------------------------------------------------


def _retarget(case: NodeCase, target: Target) -> Verdict:
    """The spec changed after the PNR: from here to the new target, by the same way to an idle node as before."""
    assert case.assessment is not None, "has a policy"
    if case.fence.disruption in CORDONING:
        return empty_and_pass(case, target)
    if case.assessment.disruption in CORDONING:
        message = "the change now needs an idle node; it starts anew with a drain"
        labels, annotations = unmarked(case.fence)
        verdict = case.verdict(Phase.ABORTING, Reason.PODS_LEAVING, message)
        return verdict.then(Release(case.node, uncordon=False, labels=labels, annotations=annotations))
    return pass_pnr(case, target, Phase.RECONFIGURING)


def _unprovable(case: NodeCase) -> Verdict:
    """The policy, as it is now, gives no target for this node; what is there cannot be proven against anything."""
    assert case.assessment is not None, "has a policy"
    objection = case.assessment.objection
    if objection is not None:
        message = f"{objection.message}; the node stays fenced until the policy gives it a layout"
        return case.verdict(Phase.FAILED, objection.reason, message)
    if (request := _verify_request(case)) is not None:
        return case.verdict(Phase.VERIFYING, Reason.OBSERVATION_PENDING, "asking the agent").then(request)
    lost = case.assessment.mismatch
    if lost is not None and lost.reason is Reason.GPU_UNHEALTHY:  # a GPU whose model nobody knows
        if case.now >= case.fence.deadline:
            return _failed(case, lost)
        return case.verdict(Phase.VERIFYING, lost.reason, lost.message, wake=case.fence.deadline)
    return case.verdict(Phase.VERIFYING, Reason.OBSERVATION_PENDING, "waiting for the agent to read the GPUs")


# --- the proof ---------------------------------------------------------------------------------------------


def _verify_id(case: NodeCase) -> str:
    return f"{case.fence.op}:verify:{case.fence.stage_since.timestamp():.3f}"


def _verify_request(case: NodeCase) -> EnsureGPUNode | None:
    gpunode = case.gpunode
    if gpunode is not None and gpunode.request_id == _verify_id(case) and not gpunode.quiet:
        return None
    return _ask(case, _verify_id(case), quiet=False)


def _verify(case: NodeCase, target: Target) -> Verdict:
    if (request := _verify_request(case)) is not None:
        verdict = case.verdict(
            Phase.VERIFYING, Reason.OBSERVATION_PENDING, "asking the agent to read the GPUs anew"
        )
        return verdict.then(request)
    evidence = Evidence(_verify_id(case), case.fence.gfd_timestamp)
    observed = case.gpunode.observed if case.gpunode else None
    mismatch = find_mismatch(Case(case.node, observed, target, case.stack, evidence))
    if mismatch is None and not case.node.ready:
        mismatch = Mismatch(Reason.NODE_NOT_READY, "all sources agree, but the node is not Ready")
    if mismatch is None:
        return _release(case, target) if case.fence.step == case.fence.steps else _next_step(case)
    if case.now >= case.fence.deadline:
        return _failed(case, mismatch)
    return case.verdict(Phase.VERIFYING, mismatch.reason, mismatch.message, wake=case.fence.deadline)


def _next_step(case: NodeCase) -> Verdict:
    """The stop is proven; from here to the target, by the same way to an idle node as before."""
    assert case.assessment is not None, "has a policy"
    target = case.assessment.target
    assert target is not None, "a step aims at something"
    return _retarget(case, target)


def _release(case: NodeCase, target: Target) -> Verdict:
    """One PATCH: fence, marks and cordon go, the routing label comes back."""
    fence, node = case.fence, case.node
    assert case.assessment is not None, "has a policy"
    labels, annotations = unmarked(fence)
    labels |= {names.LABEL_MODE: target.routing, names.LABEL_POLICY: case.assessment.policy.name}
    uncordon = may_uncordon(case)
    kept = node.unschedulable and not uncordon
    reason = Reason.CORDON_KEPT if kept else Reason.SYNCED
    message = f"{target.text} proven" + ("; the cordon is not only ours and stays" if kept else "")
    verdict = case.verdict(Phase.UNCORDONING, reason, message)
    proven = _proven(case, target)
    return verdict.then(Release(node, uncordon, labels, verified=proven, annotations=annotations))


def _proven(case: NodeCase, target: Target) -> Verified:
    fence, earlier = case.fence, case.node.verified
    assert case.assessment is not None, "has a policy"
    policy = case.assessment.policy.name
    kept = earlier.corrected_generation if earlier and earlier.policy == policy else 0
    return Verified(
        policy=policy,
        mig_config=fence.target_mig_config,
        plugin_config=fence.target_plugin_config,
        corrected_generation=case.assessment.policy.generation if fence.drift else kept,
        retry=case.node.retry,
        layout=target.text,
        gpus=len(target.layouts),
    )
