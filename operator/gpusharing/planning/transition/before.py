"""A fenced node before the point of no return (PNR): drain, prove idle, or give up and restore.

    Cordoned ── settle ──► Draining ── no holder by LIST ──► VerifyingIdle ── twice, agent quiet, GPUs idle ──► PNR
        └───────────────────────┴──────────── any objection, time-out, lifted cordon ──────────────► Aborting

Until the PNR nothing is lost except evicted pods. So people and other programs take precedence over us, and an abort
restores the node as it was.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return, docs/design/glossary.md#class.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.times import NEVER
from gpusharing.api.validation import parse_duration
from gpusharing.planning.drain.plan import DrainPlan
from gpusharing.planning.drain.standing import STUCK_AFTER
from gpusharing.planning.snapshot.actions import Release, UpdateFence
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.transition.actuation import run
from gpusharing.planning.transition.attempts import next_deferral, owed_for, proof_time, remembered
from gpusharing.planning.transition.gates import AIM, find_gate, tell_pause
from gpusharing.planning.transition.idle import JOBS_PACE, escalate, holds, next_poll, outlasts
from gpusharing.planning.transition.marks import routing_before, unmarked
from gpusharing.planning.transition.requests import last_busy
from gpusharing.planning.transition.taintfence import cordon_instead, restore_rule
from gpusharing.planning.transition.verdict import FencedCase, Verdict
from gpusharing.planning.transition.yielding import give_way, keeps_cordon, may_uncordon
from gpusharing.planning.vocabulary.blockers import MAX_PODS, explain_blockers
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.assess import Assessed, Untargeted


def before_pnr(case: FencedCase) -> Verdict:
    """Return the verdict with the next step of a node whose fence stage is `fenced`. The verdict has no deadline once
    the deadline has passed and the policy says that the drain continues (`outlasts`)."""
    verdict = _next_step(case)
    return replace(verdict, deadline=None) if outlasts(case) else verdict


def _next_step(case: FencedCase) -> Verdict:
    """Return the verdict of the first step that applies: give the change up, wait for a missing DeviceTaintRule or
    cordon the node in its place (`restore_rule`), end the wait for jobs, or wait while the node has no target (with the
    objection's reason, or ObservationPending) or the policy holds the change (Paused); `_held_up` says when the node is
    judged again. If none applies, a change that needs no idle node continues with `run`. Any other change first records
    a worse class of disruption, waits until the node has been closed for `settings.settle` seconds (Cordoned with the
    reason Settling, waking then), begins the wait for jobs, and then continues with `run`."""
    if (ending := find_ending(case)) is not None:
        return ending
    if (open_to_pods := restore_rule(case, Phase.CORDONED)) is not None:
        return open_to_pods
    if (ended := _end_jobs(case)) is not None:
        return ended
    assessment = case.assessment
    if isinstance(assessment, Untargeted) and not assessment.unobserved:
        return _held_up(case, assessment.objection.reason, assessment.objection.message)
    if not isinstance(assessment, Assessed):
        return _held_up(case, Reason.OBSERVATION_PENDING, "waiting for the agent to read the GPUs")
    if _holds(assessment.spec):
        goes_on = "" if outlasts(case) else ", but drain.timeout keeps running"
        message = f"{tell_pause(case)}, so the change is suspended: no more pods are evicted{goes_on}"
        return _held_up(case, Reason.PAUSED, message)
    if not case.fence.disruption.cordons:
        return run(case, assessment)
    if (escalated := escalate(case)) is not None:
        return escalated
    settled = (case.node.closed_since or case.fence.since) + timedelta(seconds=case.settings.settle)
    if case.now < settled:
        message = f"{case.fence.closed}; pods that were scheduled just before may still appear"
        return case.verdict(Phase.CORDONED, Reason.SETTLING, message, wake=settled)
    return _begin_jobs(case) or run(case, assessment)


def _held_up(case: FencedCase, reason: Reason, message: str) -> Verdict:
    """Return the Cordoned verdict of a change that cannot continue for now. The deadline is not extended, and `wake` is
    when the clock may next end the change.

    If the drain waits for jobs, `wake` is the next LIST, JOBS_PACE poll intervals after the last one, and the pods are
    listed, because the wait ends with the last job. Otherwise, if the policy says Hold and the deadline is over, there
    is no `wake`: the change waits until the obstacle is gone or a person aborts it with the command in the message.
    """
    if not case.fence.jobs:
        if outlasts(case):
            cordons = case.fence.disruption.cordons
            waits = f"the node stays {case.fence.closed}" if cordons else "the change waits"
            text = (
                f"{message}; drain.timeout has expired and drain.onTimeout is Hold, so {waits}"
                " until this is resolved. To abort the change, run: kubectl annotate gpunode"
                f" {case.node.name} --overwrite {names.ANNOTATION_ABORT}={case.fence.op}"
            )
            return case.verdict(Phase.CORDONED, reason, text)
        ends = case.fence.deadline if case.now < case.fence.deadline else _limit(case)
        return case.verdict(Phase.CORDONED, reason, message, wake=ends)
    verdict = case.verdict(Phase.CORDONED, reason, message, wake=next_poll(case, JOBS_PACE))
    return replace(verdict, wants_pods=True)


def _begin_jobs(case: FencedCase) -> Verdict | None:
    """Return the WaitingForJobs verdict (JobsRunning) whose only action sets the fence's deadline to the time when the
    last job must have ended, and records that the drain waits for jobs. None if no job's turn has come
    (`DrainPlan.jobs`), the pods were not listed, or the deadline is already right. Once the jobs have ended, the drain
    gets the whole of `drain.timeout`.

    During the wait, the deadline is only ever extended, and only to the time that the policy allows now. An unlimited
    wait gets a limit if somebody edits the policy to set one.
    """
    plan, fence = case.drain, case.fence
    if plan is None or plan.jobs_until is None:
        return None
    until = plan.jobs_until
    ends_now = fence.deadline == NEVER and until != NEVER
    if fence.jobs and until <= fence.deadline and not ends_now:
        return None
    message = f"the node is {fence.closed} and is waiting for its jobs to finish"
    verdict = case.verdict(Phase.WAITING_FOR_JOBS, Reason.JOBS_RUNNING, message)
    return _set_clock(case, plan, verdict, replace(fence, jobs=True, deadline=until))


def _end_jobs(case: FencedCase) -> Verdict | None:
    """Return the Draining verdict (PodsLeaving) whose only action records that the wait for jobs is over and sets the
    drain's deadline to `drain.timeout` from now, because no job is left whose turn it is (`DrainPlan.jobs`). None if
    the drain does not wait for jobs, if such jobs are left, if the pods were not listed or the LIST failed, or if no
    readable policy drives the node."""
    plan, fence = case.drain, case.fence
    spec = case.assessment.policy.spec if case.assessment is not None else None
    if not fence.jobs or spec is None or plan is None or plan.holders < 0 or plan.jobs_until is not None:
        return None
    verdict = case.verdict(Phase.DRAINING, Reason.PODS_LEAVING, "the drain is no longer waiting for jobs")
    deadline = case.now + parse_duration(spec.drain.timeout)
    return _set_clock(case, plan, verdict, replace(fence, jobs=False, deadline=deadline))


def _set_clock(case: FencedCase, plan: DrainPlan, verdict: Verdict, fence: Fence) -> Verdict:
    """Return `verdict` with the number of GPU pods and the blockers of `plan`, and with the write of `fence` as its
    only action. The next pass needs the node's pods."""
    verdict = replace(verdict, pods=plan.holders, blockers=plan.blockers, wants_pods=True)
    return verdict.then(UpdateFence(case.node, fence))


def _holds(spec: GPUSharingPolicySpec) -> bool:
    """Whether the policy is paused and also holds changes that are in flight."""
    return spec.rollout.paused and spec.rollout.when_paused == "Hold"


# --- giving up ---------------------------------------------------------------------------------------------


@value
class Ending:
    """A cause that ends a change before the PNR."""

    find: Callable[[FencedCase], str | Finding]
    """Returns the message, or a Finding if the cause has a reason of its own. The message is empty if the change goes
    on."""
    reason: Reason
    """The reason of the verdict that ends the change, unless the Finding has one of its own."""
    defer: bool = False
    """Whether the next attempt waits for a back-off, because it could end in the same way."""


def find_ending(case: FencedCase) -> Verdict | None:
    """Return the verdict that gives the change up (`_abort`) because of the first of ENDINGS that applies, with the
    reason of that row or of its Finding. None if the change goes on."""
    for ending in ENDINGS:
        if match := ending.find(case):
            return _abort(case, Finding.of(match, ending.reason), defer=ending.defer)
    return None


def _other_node(case: FencedCase) -> str:
    """Return the message that the Node was created again during the change, or an empty string if the fence has the
    UID of this Node."""
    if case.fence.node_uid == case.node.uid:
        return ""
    return "the Node was deleted and created again during the change, so the change is given up"


def _node_going(case: FencedCase) -> str:
    """Return the message that the Node is being deleted, or an empty string if it is not."""
    if not case.node.deleting:
        return ""
    cordon = ", and the cordon stays until the Node is gone" if case.fence.cordons else ""
    return f"{case.node.name} is being deleted; the change is abandoned{cordon}"


def _policy_going(case: FencedCase) -> str:
    """Return the message that the policy of the change was deleted or is being deleted. Empty if the policy that drives
    the node is not being deleted, or resets its nodes first; it is the owner if the change's policy is gone."""
    if case.assessment is not None and not case.assessment.policy.deleting:
        return ""
    return f"policy {case.fence.policy} was deleted or is being deleted; the node is being restored"


def _asked_to_end(case: FencedCase) -> str:
    """Return a message if a person asked to abort exactly this change, whose id the annotation names. Empty if nobody
    did, or if the annotation names another change."""
    requested = case.node.abort == case.fence.op
    return f"aborted by {names.ANNOTATION_ABORT}; evicted pods are not brought back" if requested else ""


def _paused(case: FencedCase) -> str:
    """Return the message that the policy is paused and aborts changes in flight, or an empty string if it does not, if
    no policy drives the node, or if its spec cannot be read."""
    policy = case.assessment.policy.spec if case.assessment is not None else None
    aborts = policy is not None and policy.rollout.paused and policy.rollout.when_paused == "Abort"
    return f"{tell_pause(case)} and whenPaused is Abort, so the node is being restored" if aborts else ""


def _unapproved(case: FencedCase) -> str:
    """Return the message that the change no longer leads to what was approved, or an empty string if it does, if the
    policy asks for no approval, or if no readable policy drives the node.

    An edit that keeps the target, such as a pause, keeps the class of disruption too, so the approval still covers it.
    While the target is unknown, an approved change goes on. A change that began without an approval needs one once the
    policy asks for approvals. No approval covers a policy that was deleted and created again.
    """
    assessment, fence = case.assessment, case.fence
    policy = assessment.policy if assessment is not None else None
    if policy is None or policy.spec is None or policy.spec.rollout.approval != "Manual":
        return ""
    other = not fence.approved or fence.version.uid != policy.uid
    if not other:
        other = isinstance(assessment, Assessed) and owed_for(assessment.target) != fence.approved
    return (
        "the policy has changed and its new plan needs approval; the node is being restored" if other else ""
    )


def _other_owner(case: FencedCase) -> str:
    """Return the message that another policy owns the node now, or an empty string if the policy of the change still
    owns it or no policy does."""
    return _disowned(case) if case.owner_name else ""


def _no_owner(case: FencedCase) -> str:
    """Return the message that no policy owns the node any more, or an empty string if one does."""
    return "" if case.owner_name else _disowned(case)


def _disowned(case: FencedCase) -> str:
    """Return the message that the policy of the change no longer owns the node, or an empty string if it does."""
    fence = case.fence
    return (
        f"policy {fence.policy} no longer owns the node; the node is being restored"
        if case.owner_name != fence.policy
        else ""
    )


def _refused(case: FencedCase) -> str | Finding:
    """Return the objection to the policy or to its target on this node, or an empty string if there is no objection or
    only a momentary one."""
    assessment = case.assessment
    if not isinstance(assessment, Untargeted) or assessment.unobserved:
        return ""
    if Mark.MOMENTARY in assessment.objection.reason.marks:
        return ""
    return assessment.objection


def _as_wanted(case: FencedCase) -> str:
    """Return the message that the node already matches its target. Empty if it does not, or if the target is
    unknown."""
    assessment = case.assessment
    as_wanted = isinstance(assessment, Assessed) and assessment.mismatch is None
    return "the node already matches its target, so nothing is left to change" if as_wanted else ""


def _now_cordons(case: FencedCase) -> str:
    """Return the message that the change began without a cordon but now needs an idle node, or an empty string if that
    is not so or the target is unknown."""
    assessment = case.assessment
    cordons = isinstance(assessment, Assessed) and assessment.disruption.cordons
    anew = cordons and not case.fence.disruption.cordons
    return "the change now needs an idle node; it starts over with a drain" if anew else ""


def _uncordoned(case: FencedCase) -> str:
    """Return the message that somebody lifted our cordon. Empty if nobody did, or if the change needs no cordon or a
    DeviceTaintRule takes its place."""
    lifted = case.fence.cordons and not case.node.unschedulable
    return "someone uncordoned the node during the drain; the change is abandoned" if lifted else ""


def _barred(case: FencedCase) -> str | Finding:
    """Return the objection of the first closed gate of AIM to the target. Empty if these gates are open, or if the node
    has no target now. An objection ends the change, because so far nothing is lost except evicted pods."""
    assessment = case.assessment
    return (find_gate(case, assessment, AIM) if isinstance(assessment, Assessed) else None) or ""


def _foreign(case: FencedCase) -> str:
    """Return the message that somebody else has begun to work on the node, even if that work has stopped halfway, or an
    empty string if nobody has. Work that is only queued does not count, because the labels and annotations on a fenced
    node keep it from beginning until the change is done."""
    node = case.node
    return (
        f"{node.foreign} started working on the node; the cordon stays in place for it"
        if node.foreign_works
        else ""
    )


def _unhealthy(case: FencedCase) -> str:
    """Return which GPU is unhealthy and why, or an empty string if all are healthy or nothing is known."""
    unhealthy = case.unhealthy
    return "" if unhealthy is None else unhealthy.message


def _jobs_late(case: FencedCase) -> str:
    """Return the message that names the pods of jobs that must not be evicted and did not end in time
    (`DrainPlan.overdue`; at most MAX_PODS of them by name). Empty if there are none, or if the pods were not listed."""
    late = case.drain.overdue if case.drain is not None else ()
    if not late:
        return ""
    refs = some([pod.ref for pod in late], MAX_PODS)
    return f"{refs} did not finish in time; the node is being restored and they keep running"


def _late(case: FencedCase) -> str | Finding:
    """Return the message that ends the change because its deadline and the extra time of `_limit` are over, or an empty
    string if the change goes on. In one case the message is a Finding (`_time_out`). Even after its time, the change
    goes on if the policy's onTimeout is Hold, and while the pods still have to be listed (`_unlooked`). On a node with
    a target, it also goes on while the fence waits for jobs, unless the last LIST failed or shows a job whose turn it
    is. What a LIST shows counts more than the clock."""
    if holds(case) or _unlooked(case):
        return ""
    plan = case.drain
    ended = plan is None or (plan.holders >= 0 and not plan.jobs)
    if case.fence.jobs and ended and isinstance(case.assessment, Assessed):
        return ""  # the pods were not listed yet, or the jobs ended: a LIST counts more than the clock
    late = case.now >= case.fence.deadline and case.now >= _limit(case)
    return _time_out(case) if late else ""


def _unlooked(case: FencedCase) -> bool:
    """Whether the deadline has passed, but the change has to go on because no usable LIST of the pods is at hand: this
    process has made none, has discarded it, or its latest one failed, whatever earlier ones showed. After a failed LIST
    the change goes on only until `proof_time` after the deadline, because the operator may lack the right to list pods.
    False if the change needs no cordon, if the node has no target, or if the policy is paused and holds the change.

    An operator that was not running for a while may find the pods gone, and what a LIST shows counts more than the
    clock (docs/design/drain.md#x10).
    """
    assessment, fence = case.assessment, case.fence
    if not fence.disruption.cordons or case.now < fence.deadline:
        return False
    failed = case.work is not None and bool(case.work.error)
    if case.work is not None and not (failed and case.now < fence.deadline + proof_time(case)):
        return False
    return isinstance(assessment, Assessed) and not _holds(assessment.spec)


ENDINGS = (
    Ending(_other_node, Reason.CORDON_KEPT),
    Ending(_node_going, Reason.NODE_NOT_READY),
    Ending(_policy_going, Reason.DELETING),
    Ending(_asked_to_end, Reason.ABORT_REQUESTED, defer=True),
    Ending(_other_owner, Reason.SUPERSEDED),
    Ending(_no_owner, Reason.SUPERSEDED, defer=True),  # a label may come and go with the fence
    Ending(_refused, Reason.NOT_ACCEPTED, defer=True),  # reported with the objection's own reason
    Ending(_as_wanted, Reason.SYNCED),
    Ending(_paused, Reason.PAUSED),
    Ending(_unapproved, Reason.APPROVAL_NEEDED),
    Ending(_barred, Reason.MPS_NOT_SWITCHABLE, defer=True),  # reported with the reason of its gate
    Ending(_now_cordons, Reason.PODS_LEAVING),
    Ending(_uncordoned, Reason.UNCORDONED_EXTERNALLY, defer=True),
    Ending(_foreign, Reason.FOREIGN_MAINTENANCE, defer=True),
    Ending(_unhealthy, Reason.GPU_UNHEALTHY, defer=True),
    Ending(_jobs_late, Reason.JOBS_TIMEOUT, defer=True),
    Ending(_late, Reason.DRAIN_TIMEOUT, defer=True),
)
"""The first match wins. Ownership of the node comes before its target, and people and other
programs come before the deadline, so that an abort names its real cause."""


def _limit(case: FencedCase) -> datetime:
    """Return when the change ends by the clock: at the deadline, or later in two cases. The proof gets extra time
    (`proof_time`) if no pod is left, or if the change needs no cordon, whatever pods the node has. Terminating pods get
    STUCK_AFTER if no other pod is left and the policy deletes by force. A change that cordons gets no extra time if its
    pods were not listed or the LIST failed."""
    plan = case.drain if case.fence.disruption.cordons else None
    if (
        plan is not None and plan.only_leaving
    ):  # pods deleted by force have their grace period until the deadline
        return case.fence.deadline + STUCK_AFTER
    gone = plan.idle if plan is not None else not case.fence.disruption.cordons
    return case.fence.deadline + proof_time(case) if gone else case.fence.deadline


def _time_out(case: FencedCase) -> str | Finding:
    """Return the message that the change is given up at its deadline, with the first line of `explain_blockers` on what
    kept its drain from succeeding, if there is one. If the change needs no cordon, so that it has no drain, the message
    only says that it could not begin. If the pods are gone, but the agent last found the GPUs in use, unreadable or not
    responding (`last_busy`), return a Finding with the reason GPUStillBusy instead."""
    if not case.fence.disruption.cordons:
        return "the change did not begin before its deadline (drain.timeout), so it was given up"
    if case.drain is not None and case.drain.idle:
        text = "the pods are gone, but the node was not proven idle in time, so it was restored"
        busy = last_busy(case)
        return Finding(Reason.GPU_STILL_BUSY, f"{text}: {busy}") if busy else text
    text = "the drain timed out and the node was restored; evicted pods are not brought back"
    lines = explain_blockers(case.drain.blockers) if case.drain is not None else ()
    return f"{text}: {lines[0]}" if lines else text


def _abort(case: FencedCase, why: Finding, *, defer: bool) -> Verdict:
    """Return the Aborting verdict that gives the change up. It releases the node and restores its marks and its routing
    label as they were before the fence; the cordon is lifted only if `may_uncordon`. With `defer`, the release records
    a back-off; otherwise it records only a failure that the change already had.

    There are two exceptions while somebody else works on the node. If a DeviceTaintRule fences the node, the verdict
    first cordons it (`cordon_instead`). If the cordon is ours alone, the verdict yields the node, and the fence and the
    cordon stay (`give_way`).
    """
    if case.fence.tainted and case.node.foreign_works:
        return cordon_instead(case, Phase.ABORTING, f"{case.node.foreign} is working on the node")
    if keeps_cordon(case):
        return give_way(case, why.message)
    labels, annotations = unmarked(case.fence, case.node)
    return case.verdict(Phase.ABORTING, why.reason, why.message).then(
        Release(
            case.node,
            uncordon=may_uncordon(case),
            labels=labels | routing_before(case.fence, case.node),
            annotations=annotations,
            deferred=(next_deferral if defer else remembered)(case, why.reason),
        )
    )
