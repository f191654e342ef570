"""What is next for a fenced node before the point of no return (PNR)? Drain, prove idle, or give up.

    Cordoned ── settle ──► Draining ── no holder by LIST ──► VerifyingIdle ── twice, agent quiet, GPUs idle ──► PNR
        └───────────────────────┴──────────── any objection, time-out, lifted cordon ──────────────► Aborting

Until the PNR nothing is lost except evicted pods, so people and other programs take precedence over us, and an abort
restores the node as it was.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.times import NEVER, parse_duration
from gpusharing.planning.drain.standing import STUCK_AFTER
from gpusharing.planning.snapshot.actions import UpdateFence
from gpusharing.planning.transition.actuation import give_way, keeps_cordon, may_uncordon, run
from gpusharing.planning.transition.attempts import next_deferral, owed_for, proof_time, remembered
from gpusharing.planning.transition.fencing import cordon_instead, restore, restore_rule, tell_foreign
from gpusharing.planning.transition.gates import first_closed, target_gates, tell_pause
from gpusharing.planning.transition.idle import (
    JOBS_PACE,
    ask_who_holds,
    awaits_holders,
    holds,
    next_poll,
    outlasts,
    read_again,
)
from gpusharing.planning.transition.requests import tell_busy
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import MAX_PODS, Finding, explain_blockers
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Mark, Reason


def before_pnr(case: NodeCase) -> Verdict:
    verdict = _next_step(case)
    return replace(verdict, deadline=None) if outlasts(case) else verdict


def _next_step(case: NodeCase) -> Verdict:
    for reason, why, defer in _endings(case):
        if why:
            return _abort(case, Finding.of(why, reason), defer=defer)
    early = restore_rule(case, Phase.CORDONED) or _end_jobs(case)
    if early is not None:
        return early
    assessed = case.assessed
    if (waits := _find_wait(case)) is not None:
        held = _held_up(case, waits)
        if waits.reason not in (Reason.WIDER_DRAIN_NEEDED, Reason.GPU_UNREADABLE):
            return held
        wake = min(held.wake or next_poll(case), next_poll(case))
        return replace(held, wake=wake).then(*held.actions, *read_again(case))
    assert assessed is not None, "a change without a target waits"
    if not case.fence.disruption.cordons:
        return run(case, assessed)
    settled = (case.node.closed_since or case.fence.since) + timedelta(seconds=case.settings.settle)
    if case.now < settled:
        message = f"{case.fence.closed}; pods that were scheduled just before may still appear"
        return case.verdict(Phase.CORDONED, Reason.SETTLING, message, wake=settled)
    if (asked := ask_who_holds(case)) is not None:
        return asked
    return _begin_jobs(case) or run(case, assessed)


def _find_wait(case: NodeCase) -> Finding | None:
    """Return why nothing more is done until the deadline, which ends the change."""
    if (objection := case.objection) is not None:
        return objection
    if case.assessed is None:
        return Finding(Reason.OBSERVATION_PENDING, "waiting for the agent to read the GPUs")
    if _is_held(case.assessed.spec):
        goes_on = "" if outlasts(case) else ", but drain.timeout keeps running"
        message = f"{tell_pause(case.assessed.policy)}, so the change is suspended: no more pods are evicted{goes_on}"
        return Finding(Reason.PAUSED, message)
    return case.unhealthy or case.overreach


def _is_held(spec: GPUSharingPolicySpec) -> bool:
    return spec.rollout.paused and spec.rollout.when_paused == "Hold"


def _held_up(case: NodeCase, why: Finding) -> Verdict:
    if case.fence.jobs:  # the pods are listed, because the wait ends with the last job
        wake = next_poll(case, JOBS_PACE)
        return replace(case.show(Phase.CORDONED, why, wake=wake), wants_pods=True)
    if outlasts(case):
        cordons = case.fence.disruption.cordons
        waits = f"the node stays {case.fence.closed}" if cordons else "the change waits"
        abort = Command.of(
            f"kubectl annotate gpunode {case.node.name} --overwrite {names.ANNOTATION_ABORT}={case.fence.op}"
        )
        text = (
            f"{why.message}; drain.timeout has expired and drain.onTimeout is Hold, so {waits} until this is resolved. To"
            f" abort the change, run: {abort}"
        )
        return case.show(Phase.CORDONED, replace(why, message=text, commands=(*why.commands, abort)))
    ends = case.fence.deadline if case.now < case.fence.deadline else _limit(case)
    return case.show(Phase.CORDONED, why, wake=ends)


def _begin_jobs(case: NodeCase) -> Verdict | None:
    """Extend the deadline to when the last job must have ended. Only an unlimited wait may get an earlier one."""
    plan, fence = case.drain, case.fence
    if plan is None or plan.jobs_until is None:
        return None
    until = plan.jobs_until
    ends_now = fence.deadline == NEVER and until != NEVER
    if fence.jobs and until <= fence.deadline and not ends_now:
        return None
    message = f"the node is {fence.closed} and is waiting for its jobs to finish"
    begun = UpdateFence(case.node, replace(fence, jobs=True, deadline=until))
    verdict = case.verdict(Phase.WAITING_FOR_JOBS, Reason.JOBS_RUNNING, message, begun, wants_pods=True)
    return replace(verdict, pods=plan.holders, blockers=plan.blockers)


def _end_jobs(case: NodeCase) -> Verdict | None:
    plan, fence, spec = case.drain, case.fence, case.spec
    if not fence.jobs or spec is None or plan is None or plan.holders < 0 or plan.jobs_until is not None:
        return None
    deadline = case.now + parse_duration(spec.drain.timeout)
    if awaits_holders(case):  # it is unknown which jobs still run, and a later report prolongs the wait again
        if fence.deadline <= deadline:
            return None
        message = "waiting for the agent to report which pods hold which GPUs"
        shorter = UpdateFence(case.node, replace(fence, deadline=deadline))
        return case.verdict(Phase.DRAINING, Reason.OBSERVATION_PENDING, message, shorter, wants_pods=True)
    ended = UpdateFence(case.node, replace(fence, jobs=False, deadline=deadline))
    message = "the drain is no longer waiting for jobs"
    verdict = case.verdict(Phase.DRAINING, Reason.PODS_LEAVING, message, ended, wants_pods=True)
    return replace(verdict, pods=plan.holders, blockers=plan.blockers)


# --- giving up ---------------------------------------------------------------------------------------------


def _endings(case: NodeCase) -> Iterator[tuple[Reason, str | Finding | None, bool]]:
    """Yield what ends the change, and whether the next attempt waits for a back-off.

    Ownership comes before the target, and people and other programs before the deadline: an abort names its real cause.
    """
    node, fence, assessed, spec = case.node, case.fence, case.assessed, case.spec
    if fence.node_uid != node.uid:
        message = "the Node was deleted and created again during the change, so the change is given up"
        yield Reason.CORDON_KEPT, message, False
    if node.deleting:
        kept = ", and the cordon stays until the Node is gone" if fence.cordons else ""
        yield Reason.NODE_NOT_READY, f"{node.name} is being deleted; the change is abandoned{kept}", False
    if case.policy is None or case.policy.deleting:
        message = f"policy {fence.policy} was deleted or is being deleted; the node is being restored"
        yield Reason.DELETING, message, False
    if node.abort == fence.op:
        message = f"aborted by {names.ANNOTATION_ABORT}; evicted pods are not brought back"
        yield Reason.ABORT_REQUESTED, message, True
    if case.owner_name != fence.policy:
        message = f"policy {fence.policy} no longer owns the node; the node is being restored"
        yield Reason.SUPERSEDED, message, True  # a label may come and go with the fence; another owner need not wait
    if (objection := case.objection) is not None and Mark.MOMENTARY not in objection.reason.marks:
        yield Reason.NOT_ACCEPTED, objection, True
    if assessed is not None and assessed.mismatch is None:
        message = "the node already matches its target, so nothing is left to change"
        yield Reason.SYNCED, message, False
    policy = case.policy
    if policy is not None and spec is not None and spec.rollout.paused and spec.rollout.when_paused == "Abort":
        how = "" if policy.pause else " and whenPaused is Abort"
        message = f"{tell_pause(policy)}{how}, so the node is being restored"
        yield Reason.PAUSED, message, False
    if _needs_approval(case):
        message = "the policy has changed and its new plan needs approval; the node is being restored"
        yield Reason.APPROVAL_NEEDED, message, False
    if assessed is not None:
        yield Reason.MPS_NOT_SWITCHABLE, first_closed(target_gates(case, assessed)), True  # or its own reason
        if why := case.asked_excess:
            yield Reason.PODS_LEAVING, f"the policy has changed, and the change starts over: {why}", False
    if fence.cordons and not node.unschedulable:
        message = "someone uncordoned the node during the drain; the change is abandoned"
        yield Reason.UNCORDONED_EXTERNALLY, message, True
    if node.foreign_works:  # our marks keep work that is only queued from beginning
        message = f"{tell_foreign(node)}; the cordon stays in place for it"
        yield Reason.FOREIGN_MAINTENANCE, message, True
    if (unhealthy := case.unhealthy) is not None and Mark.MOMENTARY not in unhealthy.reason.marks:
        yield Reason.GPU_UNHEALTHY, unhealthy.message, True
    if case.drain is not None and case.drain.overdue:
        refs = some([pod.ref for pod in case.drain.overdue], MAX_PODS)
        message = f"{refs} did not finish in time; the node is being restored and they keep running"
        yield Reason.JOBS_TIMEOUT, message, True
    if _is_overdue(case):
        yield Reason.DRAIN_TIMEOUT, _time_out(case), True


def _needs_approval(case: NodeCase) -> bool:
    """Whether the change lacks an approval. While the target is unknown, an approved change goes on."""
    policy, spec, approved = case.policy, case.spec, case.fence.approved
    if policy is None or spec is None or spec.rollout.approval != "Manual":
        return False
    if not approved or case.fence.version.uid != policy.uid:
        return True
    return case.assessed is not None and owed_for(case.assessed.target) != approved


def _is_overdue(case: NodeCase) -> bool:
    """Whether the change has run out of time.

    A LIST counts more than the clock: an operator that was not running may find the pods gone
    (docs/design/drain.md#x10).
    """
    fence, plan, work, assessed = case.fence, case.drain, case.work, case.assessed
    if holds(case) or case.now < max(fence.deadline, _limit(case)):
        return False
    if assessed is None:
        return True
    # The operator may lack the right to list pods, so a failed LIST counts only for a while.
    unlisted = work is None or (work.error and case.now < fence.deadline + proof_time(case))
    if unlisted and fence.disruption.cordons and _find_wait(case) is None:
        return False
    jobs_ended = plan is None or (plan.holders >= 0 and not plan.jobs and not awaits_holders(case))
    return not (fence.jobs and jobs_ended)


def _limit(case: NodeCase) -> datetime:
    """Return when the change ends by the clock. The proof, and pods deleted by force, get more time than the drain."""
    plan, deadline = case.drain, case.fence.deadline
    if not case.fence.disruption.cordons:
        return deadline + proof_time(case)
    if plan is not None and plan.only_leaving:
        return deadline + STUCK_AFTER
    return deadline + proof_time(case) if plan is not None and plan.idle else deadline


def _time_out(case: NodeCase) -> str | Finding:
    if (waits := case.overreach or case.unhealthy) is not None:
        text = "the change ran out of time (drain.timeout) before anything was changed, and the node was restored"
        return replace(waits, message=f"{text}: {waits.message}")
    if not case.fence.disruption.cordons:
        return "the change did not begin before its deadline (drain.timeout), so it was given up"
    if case.drain is not None and case.drain.idle:
        text = "the pods are gone, but the node was not proven idle in time, so it was restored"
        busy = tell_busy(case)
        return Finding(Reason.GPU_STILL_BUSY, f"{text}: {busy}") if busy else text
    text = "the drain timed out and the node was restored; evicted pods are not brought back"
    lines = explain_blockers(case.drain.blockers) if case.drain is not None else ()
    return f"{text}: {lines[0]}" if lines else text


def _abort(case: NodeCase, why: Finding, *, defer: bool) -> Verdict:
    if case.fence.tainted and case.node.foreign_works:
        return cordon_instead(case, Phase.ABORTING, tell_foreign(case.node))
    if keeps_cordon(case):
        return give_way(case, why)
    deferred = next_deferral(case, why.reason) if defer else remembered(case, why.reason)
    return case.show(Phase.ABORTING, why, restore(case, uncordon=may_uncordon(case), deferred=deferred))
