"""A fenced node after the point of no return (PNR): wait for the actuators, cure their wedges, prove, give back.

    Reconfiguring ── state success, operands back ──► Verifying ── five sources agree ──► Uncordoning (one PATCH)
        │  pending for ever, operands paused: restart mig-manager, at most twice
        └── failed, time-out ──► Failed: stays cordoned, keeps its slot; a retry or another target repairs it

After the PNR safety wins: the node stays fenced until a good layout is proven, whatever anybody lifts. A result
counts more than a clock: a Failed node that is proven after all is given back.
"""

from dataclasses import replace

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.actions import Actuate, Release, RestartOperand, UpdateFence
from gpusharing.planning.proof.assess import Assessed, Refused, Unobserved
from gpusharing.planning.proof.verify import Case, Evidence, find_mismatch
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.way.actuation import restart_pod, run
from gpusharing.planning.way.attempts import owe, owed_for, proven, was_asked_again
from gpusharing.planning.way.gates import CORDONING
from gpusharing.planning.way.marks import unmarked
from gpusharing.planning.way.migmanager import Trouble, find_trouble, next_look
from gpusharing.planning.way.requests import prepares_next_step, verify_id, verify_request
from gpusharing.planning.way.verdict import FencedCase, Verdict
from gpusharing.planning.way.yielding import may_uncordon
from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.reasons import Reason


def after_pnr(case: FencedCase) -> Verdict:
    """The next step of a node whose fence stage is `actuating`."""
    return _in_time(case, _way(case))


def _in_time(case: FencedCase, verdict: Verdict) -> Verdict:
    """Every way after the PNR leaves through here: what goes on past the deadline is Failed, and still goes on.

    A step that the planner takes now counts more than the clock; so does a person who asks for another try.
    """
    if verdict.phase is Phase.FAILED or any(isinstance(action, _STEPS) for action in verdict.actions):
        return verdict
    if case.now < case.fence.deadline:
        return replace(verdict, wake=min(verdict.wake or case.fence.deadline, case.fence.deadline))
    reason = verdict.reason
    if reason is Reason.ACTUATION_IN_PROGRESS:
        reason = Reason.ACTUATOR_STUCK
    late = _failed(case, Finding(reason, f"{verdict.message}; time is up"))
    if late.phase is not Phase.FAILED:
        return late
    wake = verdict.wake if verdict.wake is not None and verdict.wake > case.now else None
    return replace(verdict, phase=late.phase, reason=reason, message=late.message, wake=wake)


_STEPS = (Actuate, Release, RestartOperand, UpdateFence)


def _way(case: FencedCase) -> Verdict:
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
        verdict = case.verdict(Phase.RECONFIGURING, Reason.CORDON_RESTORED, message)
        # What was seen before this cordon proves nothing, and pods that came before it do not tolerate it.
        return verdict.then(UpdateFence(node, replace(fence, since=case.now), cordon=True))
    assessed = case.assessment
    if not isinstance(assessed, Assessed):
        return _unprovable(case, assessed, find_trouble(case))
    if case.operand is not None and case.operand.uid == fence.restart_uid:
        return restart_pod(case, case.operand, "mig-manager")
    if case.mps_daemon is not None and case.mps_daemon.uid == fence.daemon_uid:
        return restart_pod(case, case.mps_daemon, "the MPS daemon")
    return _onward(case, assessed)


def _onward(case: FencedCase, assessed: Assessed) -> Verdict:
    """Nothing that was recorded is left to be deleted."""
    fence, trouble, target, stop = case.fence, find_trouble(case), assessed.target, assessed.stop
    aim = stop if fence.step < fence.steps else target
    again = _aims_at(case, aim)
    owed = fence.owed == owed_for(target)
    if again and owed:
        return run(case, assessed, again=True, since=fence.stage_since)
    if trouble is not None and not trouble.final:  # whatever is wanted now, it is at work
        return _at_work(case, trouble)
    if again and aim is stop and prepares_next_step(case):
        return run(case, assessed, since=fence.stage_since, step_proven=True)
    if again:
        return _conclude(case, aim, assessed, trouble)
    if owed or case.now < fence.deadline:  # the spec changed: by the same way to an idle node as before
        return run(case, assessed, since=fence.stage_since)
    message = f"the spec changed after the time was up; from here to {target.text}"
    verdict = case.verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, message)
    return verdict.then(owe(case, assessed, attempt=1))


def _aims_at(case: FencedCase, target: Target) -> bool:
    """Whether the labels of the PNR lead there; an admin may have given a name another meaning since."""
    fence = case.fence
    aims = (fence.target_mig_config, fence.target_plugin_config, fence.to_layout)
    return aims == (target.mig_config, target.plugin_key, target.text)


def _at_work(case: FencedCase, trouble: Trouble) -> Verdict:
    mismatch = trouble.mismatch
    return case.verdict(Phase.RECONFIGURING, mismatch.reason, mismatch.message, wake=next_look(case))


def _conclude(case: FencedCase, aim: Target, assessed: Assessed, trouble: Trouble | None) -> Verdict:
    """Nothing is under way any more: prove, cure, or Failed."""
    if trouble is None:
        return _verify(case, aim, assessed)
    if trouble.curable and case.fence.attempt <= case.settings.max_cures:
        message = f"{trouble.mismatch.message}; restarting mig-manager"
        verdict = case.verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, message)
        return verdict.then(owe(case, assessed, case.fence.attempt + 1))
    return _failed(case, trouble.mismatch)


def _failed(case: FencedCase, mismatch: Finding) -> Verdict:
    """Failed, unless a person asked for another try: then the labels are written again, and mig-manager starts anew."""
    if was_asked_again(case) and isinstance(case.assessment, Assessed):
        verdict = case.verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, "trying again")
        return verdict.then(owe(case, case.assessment, attempt=1))
    kept = "The node stays cordoned; when" if case.fence.disruption in CORDONING else "When"
    message = f"{mismatch.message}. {kept} the cause is gone: kubectl annotate node"
    message += f" {case.node.name} --overwrite {names.ANNOTATION_RETRY}=again"
    verdict = case.verdict(Phase.FAILED, mismatch.reason, message)
    request = verify_request(case) if mismatch.reason is Reason.ACTUATOR_FAILED else None
    return verdict.then(request) if request is not None else verdict  # mig-manager rests: show what it left


def _unprovable(case: FencedCase, found: Refused | Unobserved, trouble: Trouble | None) -> Verdict:
    """The policy, as it is now, gives no target for this node; what is there cannot be proven against anything."""
    if trouble is not None and not trouble.final:
        return _at_work(case, trouble)
    if isinstance(found, Refused):
        message = f"{found.objection.message}; the node stays fenced until the policy gives it a layout"
        return case.verdict(Phase.FAILED, found.objection.reason, message)
    if (request := verify_request(case)) is not None:
        return case.verdict(Phase.VERIFYING, Reason.OBSERVATION_PENDING, "asking the agent").then(request)
    if found.pending.reason is not Reason.OBSERVATION_PENDING:  # no GPU at all, or one without a name
        return case.verdict(Phase.VERIFYING, found.pending.reason, found.pending.message)
    return case.verdict(Phase.VERIFYING, Reason.OBSERVATION_PENDING, "waiting for the agent to read the GPUs")


# --- the proof ---------------------------------------------------------------------------------------------


def _verify(case: FencedCase, aim: Target, assessed: Assessed) -> Verdict:
    if (request := verify_request(case)) is not None:
        verdict = case.verdict(
            Phase.VERIFYING, Reason.OBSERVATION_PENDING, "asking the agent to read the GPUs again"
        )
        return verdict.then(request)
    evidence = Evidence(verify_id(case), case.fence.gfd_timestamp)
    mismatch = find_mismatch(Case(case.node, assessed.observed, aim, case.stack, evidence))
    if mismatch is None and not case.node.ready:
        mismatch = Finding(Reason.NODE_NOT_READY, "all sources agree, but the node is not Ready")
    if mismatch is not None:
        return case.verdict(Phase.VERIFYING, mismatch.reason, mismatch.message)
    if case.fence.step < case.fence.steps:
        return run(case, assessed, since=case.fence.stage_since, step_proven=True)
    return _release(case, aim, assessed.policy)


def _release(case: FencedCase, target: Target, policy: PolicyView) -> Verdict:
    """One PATCH: fence, marks and cordon go, the routing label comes back."""
    fence, node = case.fence, case.node
    labels, annotations = unmarked(fence)
    labels |= {names.LABEL_MODE: target.routing, names.LABEL_POLICY: policy.name}
    uncordon = may_uncordon(case)
    kept = node.unschedulable and not uncordon
    reason = Reason.CORDON_KEPT if kept else Reason.SYNCED
    message = f"{target.text} proven" + ("; the cordon is not only ours and stays" if kept else "")
    verdict = case.verdict(Phase.UNCORDONING, reason, message)
    return verdict.then(
        Release(node, uncordon, labels, verified=proven(case, target, policy), annotations=annotations)
    )
