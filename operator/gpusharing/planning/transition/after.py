"""What is next for a fenced node after the point of no return (PNR)? Wait, prove, release.

    Reconfiguring ── state success, operands back ──► Verifying ── all sources agree ──► Uncordoning (one PATCH)
        │  stuck: another run, at most twice
        └── failed, time-out ──► Failed: stays cordoned, keeps its slot; a retry or another target repairs it, or
                                 onFailure Rollback restores what was proven last (`turn_back`)

After the PNR safety comes first: the node stays fenced until a good layout is proven, even if somebody lifts the
cordon. A result counts more than the deadline: a Failed node that is proven after all is returned to service.
"""

from dataclasses import replace

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.drain.plan import examine
from gpusharing.planning.drain.pods import scope_of
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.snapshot.actions import Actuate, EnsureGPUNode, Release, RestartOperand, UpdateFence
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.actuation import (
    aside_fence,
    find_begun,
    find_wait,
    find_way_back,
    keeps_cordon,
    may_uncordon,
    present_way_back,
    restart_pod,
    restore_labels,
    run,
    start_anew,
    turn_back,
)
from gpusharing.planning.transition.attempts import (
    add_retry,
    change_deadline,
    find_named,
    goes_back,
    has_ended,
    is_late,
    owe,
    owed_for,
    proven,
    was_asked_again,
)
from gpusharing.planning.transition.fencing import restore_rule, unfence_command, unmarked
from gpusharing.planning.transition.idle import check_kept, lacks_holders, names_holders, next_poll
from gpusharing.planning.transition.requests import (
    answer_due,
    fresh_reading,
    prepares_next_step,
    tell_silence,
    verify_request,
)
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding, explain_blockers, main_reason
from gpusharing.planning.vocabulary.reasons import Mark, Reason
from gpusharing.planning.wanted.actuators import Unfinished
from gpusharing.planning.wanted.assess import Assessed, Untargeted
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import Comparison, find_mismatch, name_gpus


def after_pnr(case: NodeCase) -> Verdict:
    if (back := find_way_back(case)) is not None:
        verdict = present_way_back(_in_time(back, _next_step(back)), case)
    elif (begun := find_begun(case)) is not None:
        verdict = _in_time(begun, _next_step(begun))
        disruption, gpus = case.extent  # what the plan says, and a person approves
        verdict = replace(verdict, disruption=disruption, gpus=gpus)
        later = "what the policy asks for since then begins after this"
        verdict = replace(verdict, message=f"{verdict.message}; {later}") if verdict.phase.in_flight else verdict
    else:
        verdict = _in_time(case, _next_step(case))
    # The proof compares what each pod holds that stays.
    compared = (Reason.OBSERVATION_PENDING, Reason.KEPT_GPUS_CHANGED, Reason.ROLLING_BACK)
    compares = case.fence.kept and (verdict.phase is not Phase.FAILED or verdict.reason in compared)
    return replace(verdict, wants_pods=True) if compares or find_named(case) is not None else verdict


def _in_time(case: NodeCase, verdict: Verdict) -> Verdict:
    deadline = change_deadline(case)
    verdict = replace(verdict, deadline=deadline)
    steps = Actuate | Release | RestartOperand | UpdateFence
    if verdict.phase is Phase.FAILED or any(isinstance(action, steps) for action in verdict.actions):
        return verdict
    if not is_late(case):
        return replace(verdict, wake=min(verdict.wake or deadline, deadline))
    awaited = verdict.reason is Reason.OBSERVATION_PENDING and case.agent_ready and case.fence.failed is None
    # An answer that lacks the holders comes again and again.
    awaited = awaited and not lacks_holders(case)
    if awaited and case.now < (due := answer_due(case)):
        return replace(verdict, wake=min(verdict.wake or due, due))
    reason = verdict.reason
    if reason is Reason.ACTUATION_IN_PROGRESS:
        reason = Reason.ACTUATOR_STUCK
    known = Mark.TURNS_BACK in verdict.reason.marks
    late = _fail(case, Finding(reason, f"{verdict.message}; timed out", commands=verdict.commands), known=known)
    if late.phase is not Phase.FAILED:
        return late
    wake = verdict.wake if verdict.wake is not None and verdict.wake > case.now else None
    return replace(verdict, phase=late.phase, reason=reason, message=late.message, wake=wake, commands=late.commands)


def _next_step(case: NodeCase) -> Verdict:
    fence, node, policy = case.fence, case.node, case.fence.policy
    if fence.node_uid != node.uid or case.assessment is None:
        why = "the fence belongs to an earlier Node with this name; check the node"
        if fence.node_uid == node.uid:
            why = (
                f"policy {policy} was deleted and no other policy owns the node; the node stays fenced until one does. To"
                " give it up instead, check its GPUs"
            )
        unfence = unfence_command(fence, node)
        message = f"{why}, then run (with the right to {unfence.right}): {unfence}"
        return case.show(Phase.FAILED, Finding(Reason.ORPHAN_FENCE, message, commands=(unfence,)))
    if fence.cordons and not node.unschedulable:
        message = "someone uncordoned the node before a good layout was proven; the operator cordons it again"
        # What was seen before this cordon proves nothing, and pods that arrived before it need not tolerate it.
        cordon = UpdateFence(node, replace(fence, since=case.now), cordon=True)
        return case.verdict(Phase.RECONFIGURING, Reason.CORDON_RESTORED, message, cordon)
    if (unfenced := restore_rule(case, Phase.RECONFIGURING)) is not None:
        return unfenced
    if isinstance(case.assessment, Assessed):
        return _with_target(case, case.assessment)
    return _without_target(case, case.assessment)


def _without_target(case: NodeCase, assessment: Untargeted) -> Verdict:
    trouble = case.actuator.find_trouble(case, case.fence)
    if trouble is not None and not trouble.final:
        return _wait_for_actuator(case, trouble)
    objection = assessment.objection
    if not assessment.unobserved:
        if Mark.MOMENTARY in objection.reason.marks:
            message = f"{objection.message}; the node stays fenced, and its proof continues once this has ended"
            return case.show(Phase.VERIFYING, replace(objection, message=message))
        message = f"{objection.message}; the node stays fenced until the policy gives it a layout"
        return case.show(Phase.FAILED, replace(objection, message=message))
    if (request := verify_request(case)) is not None:
        return _ask_agent(case, request)
    if objection.reason is not Reason.OBSERVATION_PENDING:  # no GPU at all, or a nameless one
        return case.show(Phase.VERIFYING, objection)
    return _await_answer(case, "waiting for the agent to read the GPUs")


def _with_target(case: NodeCase, assessed: Assessed) -> Verdict:
    """Continue the change. A run that the fence records as due comes before any new decision."""
    fence, actuator = case.fence, case.actuator
    if (named := find_named(case)) is not None and has_ended(case):
        return _widen(case, assessed, named, (), "trying again on request")
    if (kept := check_kept(case)) is not None and kept.reason is Reason.KEPT_GPUS_CHANGED:
        stays = replace(kept, message=f"{kept.message}. The node stays {fence.closed}")
        return case.show(Phase.FAILED, _offer_wider(case, stays))
    if (old := actuator.find_old(case, fence)) is not None:
        return restart_pod(case, *old)
    aim = assessed.stop if fence.step < fence.steps else assessed.target
    owed = fence.owed == owed_for(assessed.target)
    # The layout is compared too, because an administrator may since have given a configuration another meaning.
    written = (fence.target_mig_config, fence.target_plugin_config, fence.to_layout)
    on_course = written == (aim.mig_config, aim.plugin_key, aim.text)
    if on_course and owed:
        return run(case, assessed, again=True)
    if on_course and not is_late(case) and (lost := actuator.find_lost(case, fence)) is not None:
        return restore_labels(case, lost)
    trouble = actuator.find_trouble(case, fence)
    if trouble is not None and not trouble.final:
        return _wait_for_actuator(case, trouble)
    if on_course and aim is assessed.stop and prepares_next_step(case):
        return run(case, assessed, step_proven=True)
    if on_course and trouble is None:
        return _verify(case, aim, assessed)
    if on_course and trouble is not None:
        if not trouble.cure or fence.attempt > case.settings.max_cures:
            return _fail(case, trouble, known=True)
        message = f"{trouble.message}; {trouble.cure}"
        return _owe(case, assessed, message, fence.attempt + 1)
    wider = not owed and has_ended(case) and case.edited and bool(case.excess)
    if case.held is not None and not owed and has_ended(case) and (wider or not was_asked_again(case)):
        found = trouble if trouble is not None else Finding(case.held.reason, "the change failed")
        closed = f"The node stays {fence.closed}" if fence.disruption.cordons else "The node stays as it is"
        message = f"{found.message}. {closed} and does not get {assessed.target.text} yet: {case.held.message}"
        found = replace(found, message=message, commands=(*found.commands, *case.held.commands))
        lead = ". To have it changed regardless, run"
        if not wider:
            found = add_retry(found, case.node.name, fence.retry, lead)
        elif fence.disruption.cordons:
            found = _offer_wider(case, found, lead)
        return case.show(Phase.FAILED, found, wake=case.held.until)
    if wider and fence.disruption.cordons:
        reboots = assessed.disruption is DisruptionClass.REBOOT  # for which ClusterPolicy was edited, not the policy
        if kept is not None:  # a LIST or a report is due
            return case.show(Phase.FAILED, kept, wake=next_poll(case))
        if (unknown := case.overreach) is not None and (assessed.doubt or reboots):
            return case.show(Phase.FAILED, _offer_wider(case, unknown), wake=next_poll(case))
        message = f"the policy has changed since the failure: {case.excess}"
        return _widen(case, assessed, assessed.disruption, assessed.gpus, message)
    if owed or not is_late(case):
        return run(case, assessed)
    message = f"the spec changed after the deadline; the node is now being changed to {assessed.target.text}"
    return _owe(case, assessed, message, attempt=1, failed=True)


def _owe(case: NodeCase, assessed: Assessed, message: str, attempt: int, *, failed: bool = False) -> Verdict:
    due = owe(case, assessed, attempt, failed=failed)
    return case.verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, message, due)


def _wait_for_actuator(case: NodeCase, trouble: Unfinished) -> Verdict:
    return case.show(Phase.RECONFIGURING, trouble, wake=case.actuator.next_look(case, case.fence))


def _widen(case: NodeCase, assessed: Assessed, disruption: DisruptionClass, gpus: tuple[int, ...], why: str) -> Verdict:
    """Record, on behalf of a person, that more has to be gone for the next run, unless a pod there may not leave."""
    fence, node = case.fence, case.node
    if not fence.disruption.cordons:
        return start_anew(case)
    disruption, gpus = case.joined(disruption, gpus)
    emptied = {f"GPU {index}" for index in gpus}
    kept = tuple(one for one in fence.kept if one[0] not in emptied) if gpus else ()
    due = owe(case, assessed, attempt=1, failed=True)
    wider = replace(due.fence, disruption=disruption, gpus=gpus, kept=kept)
    if not wider.covers(assessed.disruption, assessed.gpus):
        more = Finding(Reason.WIDER_DRAIN_NEEDED, f"{case.excess}, which needs more than the retry names")
        return case.show(Phase.FAILED, _offer_wider(case, more))
    scope = scope_of(replace(node, fence=wider), case.settings, case.stack, gpunode=case.gpunode)
    if case.work is None:
        listing = case.verdict(Phase.FAILED, Reason.SETTLING, "listing the pods on the node", wake=next_poll(case))
        return replace(listing, wants_pods=True)
    scope = replace(scope, all_pods=False)  # pods without a GPU are read only once the fence says that all must leave
    _, blockers = examine(case.work, assessed.spec.drain, case.now, scope=scope, afterwards=Afterwards(tuple))
    if blockers:
        message = f"{why}, but {explain_blockers(blockers)[0]}"
        reason = main_reason(blockers) or Reason.BLOCKED
        waits = case.verdict(Phase.FAILED, reason, message, wake=next_poll(case), wants_pods=True)
        return replace(waits, blockers=blockers)
    message = f"{why}; {name_gpus(gpus) if gpus else 'the whole node'} will be emptied for that"
    return case.verdict(
        Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, message, replace(due, fence=wider), wants_pods=True
    )


def _offer_wider(case: NodeCase, found: Finding, lead: str = "") -> Finding:
    """Return the finding with the command for a try that empties more of the node than the fence records."""
    empties, what = "gpu-pods", "the pods of all of its GPUs"
    needs, all_gpus = case.assessed, DisruptionClass.GPU_PODS
    reboots = needs is not None and needs.disruption is DisruptionClass.REBOOT
    if reboots or case.fence.covers(all_gpus, ()):
        empties, what = "all-pods", "all of its pods"
    lead = lead or f". To drain {what} and try again, run"
    return add_retry(found, case.node.name, case.fence.retry, lead, empties)


def _needs_wider(case: NodeCase, failure: Finding) -> bool:
    """Whether another try with the same record may fail for the same reason: it is unknown which pod uses which GPU."""
    if failure.reason is Reason.WIDER_DRAIN_NEEDED:
        return True
    if case.fence.disruption is not DisruptionClass.CHANGED_GPUS:
        return False
    if failure.reason in (Reason.GPU_STILL_BUSY, Reason.HOLDER_UNKNOWN):
        return True
    if failure.reason is not Reason.OBSERVATION_PENDING or case.observed is None:
        return False
    # Any report of this change counts, because the agent may not have answered the last request yet.
    reported = case.observed.request_id.startswith(f"{case.fence.op}:")
    return reported and (not names_holders(case) or bool(case.unreported))


def _fail(case: NodeCase, mismatch: Finding, *, known: bool) -> Verdict:
    """Return Failed, a retry on request, or a rollback. `known`: the mismatch shows the present state of the node."""
    # One that names more is answered in the next pass, when the failure is recorded.
    if was_asked_again(case) and case.assessed is not None and find_named(case) is None:
        return _owe(case, case.assessed, "trying again on request", attempt=1, failed=True)
    back = turn_back(case, mismatch, known=known)
    if isinstance(back, Verdict):
        return back
    kept = f"The node stays {case.fence.closed}. Once" if case.fence.disruption.cordons else "Once"
    why = Finding.of(back, mismatch.reason)
    message, commands = f"{mismatch.message}{why.message and '; '}{why.message}", (*mismatch.commands, *why.commands)
    found = replace(mismatch, message=message, commands=commands)
    found = add_retry(found, case.node.name, case.fence.retry, f". {kept} the cause is fixed, run")
    if _needs_wider(case, mismatch):
        found = _offer_wider(case, found)
    # The programs of a failed actuator are idle, so read what they left behind.
    request = verify_request(case) if mismatch.reason is Reason.ACTUATOR_FAILED else None
    return case.show(Phase.FAILED, found, *([request] if request else []))


# --- the proof ---------------------------------------------------------------------------------------------


def _ask_agent(case: NodeCase, request: EnsureGPUNode) -> Verdict:
    message = "asking the agent to read the GPUs again"
    return case.verdict(Phase.VERIFYING, Reason.OBSERVATION_PENDING, message, request)


def _await_answer(case: NodeCase, message: str) -> Verdict:
    silence, due = tell_silence(case), answer_due(case)
    message = f"{message}; {silence}" if case.now >= due else message
    wake = due if case.now < due else None
    return case.verdict(Phase.VERIFYING, Reason.OBSERVATION_PENDING, message, wake=wake)


def _verify(case: NodeCase, aim: Target, assessed: Assessed) -> Verdict:
    if (request := verify_request(case)) is not None:
        return _ask_agent(case, request)
    observed = fresh_reading(case, "verify")
    if observed is None:
        return _await_answer(case, "waiting for the agent to read the GPUs again")
    compared = Comparison(case.node, observed, aim, case.stack, case.fence.gfd_timestamp)
    mismatch = find_mismatch(compared, case.actuator.checks)
    if mismatch is None and not case.node.ready:
        mismatch = Finding(Reason.NODE_NOT_READY, "all checks have passed, but the node is not Ready")
    if mismatch is None and (kept := check_kept(case)) is not None:
        return case.show(Phase.VERIFYING, kept, wake=next_poll(case))
    if mismatch is None and (down := case.actuator.find_down(case, aim)) is not None:
        mismatch = down.doubt
    if mismatch is not None:
        return case.show(Phase.VERIFYING, mismatch)
    if case.fence.step < case.fence.steps:
        return run(case, assessed, step_proven=True)
    return _release(case, aim, assessed.policy)


def _release(case: NodeCase, target: Target, policy: PolicyView) -> Verdict:
    """Release a proven node with one PATCH, in which its fence may stay for somebody else's work (`aside_fence`)."""
    fence, node = case.fence, case.node
    labels, annotations = unmarked(fence, node)
    labels[names.LABEL_POLICY] = policy.name
    aside = aside_fence(case, proven=case.now, from_mode=target.routing) if keeps_cordon(case) else None
    if aside is None:
        labels[names.LABEL_MODE] = target.routing
    uncordon = may_uncordon(case)
    found = Finding(Reason.SYNCED, f"{target.text} proven")
    if node.unschedulable and not uncordon:
        others = "the node stays cordoned, because the operator is not the only one that cordoned it"
        waits = Finding(Reason.CORDON_KEPT, others) if aside is None else find_wait(case)
        found = replace(waits, reason=Reason.CORDON_KEPT, message=f"{found.message}; {waits.message}")
    if goes_back(case):
        message = f"{found.message}; the node was rolled back to it after a failure: {fence.failure}"
        found = replace(found, reason=Reason.ROLLED_BACK, message=message)
    release = Release(node, uncordon, labels, proven(case, target, policy), annotations, fence=aside)
    return case.show(Phase.UNCORDONING, found, release)
