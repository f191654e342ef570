"""A fenced node after the point of no return (PNR): wait for the actuators, restart stuck ones, prove, release.

    Reconfiguring ── state success, operands back ──► Verifying ── all sources agree ──► Uncordoning (one PATCH)
        │  stuck: another run, at most twice
        └── failed, time-out ──► Failed: stays cordoned, keeps its slot; a retry or another target repairs it, or
                                 onFailure Rollback restores what was proven last (wayback.py)

After the PNR safety comes first: the node stays fenced until a good layout is proven, even if somebody lifts the
cordon. A result counts more than the deadline: a Failed node that is proven after all is returned to service.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#slot, docs/design/glossary.md#point-of-no-return.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Generic, TypeVar

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import Actuate, Release, RestartOperand, UpdateFence
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.actuation import restart_pod, run
from gpusharing.planning.transition.attempts import (
    change_deadline,
    goes_back,
    is_late,
    owe,
    owed_for,
    proven,
    retry_command,
    was_asked_again,
)
from gpusharing.planning.transition.marks import unfence_command, unmarked
from gpusharing.planning.transition.requests import (
    FreshReading,
    answer_due,
    prepares_next_step,
    verify_request,
)
from gpusharing.planning.transition.taintfence import restore_rule
from gpusharing.planning.transition.verdict import FencedCase, Verdict
from gpusharing.planning.transition.wayback import find_way_back, present_way_back, turn_back
from gpusharing.planning.transition.yielding import aside_fence, keeps_cordon, may_uncordon, tell_wait
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.actuators.actuator import Unfinished
from gpusharing.planning.wanted.assess import Assessed, Untargeted
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import Comparison, find_mismatch


def after_pnr(case: FencedCase) -> Verdict:
    """Return the verdict with the next step of a node whose fence stage is `actuating`. If the node is being rolled
    back, its last proven layout is the target, and the verdict mentions the rollback (`present_way_back`). Either way
    the deadline of the change is applied (`_in_time`)."""
    back = find_way_back(case)
    if back is None:
        return _in_time(case, _way(case))
    return present_way_back(_in_time(back, _way(back)), case)


def _in_time(case: FencedCase, verdict: Verdict) -> Verdict:
    """Return the verdict after applying the deadline of the change (`change_deadline`), which every verdict shows. It
    changes nothing else in a Failed verdict or one with an action of a type in _STEPS. Before the deadline, `wake` is
    set to the deadline if it is later or None. After it, the verdict becomes Failed, says that the step timed out and
    which command tries again, and keeps its actions and a `wake` that lies ahead; the reason ActuationInProgress
    becomes ActuatorStuck and others stay.

    While the answer of a Ready agent is awaited (ObservationPending) and the fence records no failure, this happens at
    `answer_due` at the earliest, and until then `wake` is no later than that. If `_failed` begins another run or a
    rollback, the verdict of `_failed` is returned instead.
    """
    deadline = change_deadline(case)
    verdict = replace(verdict, deadline=deadline)
    if verdict.phase is Phase.FAILED or any(isinstance(action, _STEPS) for action in verdict.actions):
        return verdict
    if not is_late(case):
        return replace(verdict, wake=min(verdict.wake or deadline, deadline))
    awaited = verdict.reason is Reason.OBSERVATION_PENDING and case.agent_ready and case.fence.failed is None
    if awaited and case.now < (due := answer_due(case)):
        return replace(verdict, wake=min(verdict.wake or due, due))
    reason = verdict.reason
    if reason is Reason.ACTUATION_IN_PROGRESS:
        reason = Reason.ACTUATOR_STUCK
    known = Mark.TURNS_BACK in verdict.reason.marks
    late = _failed(case, Finding(reason, f"{verdict.message}; timed out"), known=known)
    if late.phase is not Phase.FAILED:
        return late
    wake = verdict.wake if verdict.wake is not None and verdict.wake > case.now else None
    return replace(verdict, phase=late.phase, reason=reason, message=late.message, wake=wake)


_STEPS = (Actuate, Release, RestartOperand, UpdateFence)


def _way(case: FencedCase) -> Verdict:
    """Return the verdict of the first situation that applies. HELD is tried first, then AIMED if the node has a target,
    or AIMLESS if it has none. If none of these applies, return the verdict of `_changed_late` for a node with a target,
    and of `_unobserved` for one without."""
    if (verdict := _first(HELD, case)) is not None:
        return verdict
    if not isinstance(case.assessment, Assessed):
        return _first(AIMLESS, case) or _unobserved(case)
    aimed = _Aimed.of(case, case.assessment)
    return _first(AIMED, aimed) or _changed_late(aimed)


Looked = TypeVar("Looked")


@value
class Situation(Generic[Looked]):
    """A situation of a node after the PNR, and what follows from it."""

    follow: Callable[[Looked, Reason], Verdict | None]
    """Returns the verdict, or None if the node is not in this situation. The verdict has `reason` as its reason unless
    a more specific one is known."""
    reason: Reason
    """The reason of the verdict."""


def _first(situations: Iterable[Situation[Looked]], looked: Looked) -> Verdict | None:
    """Return the verdict of the first of these situations that applies to `looked`, or None if none does."""
    verdicts = (situation.follow(looked, situation.reason) for situation in situations)
    return next((verdict for verdict in verdicts if verdict is not None), None)


# --- whatever the target is ------------------------------------------------------------------------


def _other_node(case: FencedCase, reason: Reason) -> Verdict | None:
    """Return a Failed verdict without an action, with the command that removes the fence, if the UID in the fence is
    not that of the Node, because the fence belongs to an earlier Node of this name. Return None if the UIDs are the
    same."""
    if case.fence.node_uid == case.node.uid:
        return None
    message = (
        "the fence belongs to an earlier Node with this name; check the node, then run (with the right to"
        f" patch Nodes): {unfence_command(case.fence, case.node)}"
    )
    return case.verdict(Phase.FAILED, reason, message)


def _no_policy(case: FencedCase, reason: Reason) -> Verdict | None:
    """Return a Failed verdict without an action, with the command that removes the fence, if no policy drives the node
    any more (it was compared with none), else None. The node stays fenced."""
    if case.assessment is not None:
        return None
    message = (
        f"policy {case.fence.policy} was deleted and no other policy owns the node; the node stays fenced until one"
        " does. To give it up instead, check its GPUs, then run (with the right to patch Nodes):"
        f" {unfence_command(case.fence, case.node)}"
    )
    return case.verdict(Phase.FAILED, reason, message)


def _uncordoned(case: FencedCase, reason: Reason) -> Verdict | None:
    """Return the Reconfiguring verdict that puts the cordon back if somebody lifted it. None if the node is cordoned,
    or if the change needs no cordon or a DeviceTaintRule takes its place. The same PATCH sets the fence's `since` to
    now, so that pods and readings from before the new cordon prove nothing."""
    if not case.fence.cordons or case.node.unschedulable:
        return None
    message = "someone uncordoned the node before a good layout was proven; the operator cordons it again"
    verdict = case.verdict(Phase.RECONFIGURING, reason, message)
    # What was seen before this cordon proves nothing, and pods that arrived before it need not tolerate it.
    return verdict.then(UpdateFence(case.node, replace(case.fence, since=case.now), cordon=True))


def _untainted(case: FencedCase, reason: Reason) -> Verdict | None:
    """Return the verdict of `restore_rule` for a node whose DeviceTaintRule does not keep all GPU pods off. None if the
    rule does, or if no such rule fences the node. The verdict cordons the node in the rule's place or waits for the
    rule; its reason is that of `restore_rule`, and `reason` is ignored."""
    return restore_rule(case, Phase.RECONFIGURING)


HELD = (
    Situation(_other_node, Reason.ORPHAN_FENCE),
    Situation(_no_policy, Reason.ORPHAN_FENCE),
    Situation(_uncordoned, Reason.CORDON_RESTORED),
    Situation(_untainted, Reason.DEVICE_TAINT_FAILED),  # or the rule is only missing
)
"""The first match wins. Nothing else matters for a node that is not ours, or on which pods may
still be scheduled."""


# --- the policy gives no target now, so there is nothing against which a layout could be proven ------------------


def _works_on(case: FencedCase, reason: Reason) -> Verdict | None:
    """Return the Reconfiguring verdict that the actuator is still at work (`_at_work`), with the reason of its trouble.
    `reason` is ignored. None if the actuator shows no trouble, or trouble that waiting longer would not change, such as
    a failure (`Unfinished.final`)."""
    trouble = case.actuator.find_trouble(case, case.fence)
    return None if trouble is None or trouble.final else _at_work(case, trouble)


def _refused(case: FencedCase, reason: Reason) -> Verdict | None:
    """Return the verdict that says why the policy, in its present form, gives the node no target, or None if the only
    obstacle is that the GPUs are unknown. The verdict is Verifying if the objection is momentary (`Mark.MOMENTARY`),
    else Failed. The verdict has the objection's reason (`reason` is ignored) and no action."""
    assessment = case.assessment
    if not isinstance(assessment, Untargeted) or assessment.unobserved:
        return None
    if Mark.MOMENTARY in assessment.objection.reason.marks:
        message = f"{assessment.objection.message}; the node stays fenced, and its proof continues once this has ended"
        return case.verdict(Phase.VERIFYING, assessment.objection.reason, message)
    message = f"{assessment.objection.message}; the node stays fenced until the policy gives it a layout"
    return case.verdict(Phase.FAILED, assessment.objection.reason, message)


def _not_asked(case: FencedCase, reason: Reason) -> Verdict | None:
    """Return the Verifying verdict that asks the agent to read the GPUs, or None if the agent has already been asked
    since the last event. The request is the verdict's only action."""
    request = verify_request(case)
    if request is None:
        return None
    return case.verdict(Phase.VERIFYING, reason, "asking the agent to read the GPUs again").then(request)


def _unobserved(case: FencedCase) -> Verdict:
    """Return the Verifying verdict (ObservationPending) that waits for the agent's reading. If there is a reading, but
    the agent reports an error, no GPU or a GPU that has never answered, the verdict has that reason and message. The
    verdict has no action and no `wake` of its own."""
    assessment = case.assessment
    unobserved = isinstance(assessment, Untargeted) and assessment.unobserved
    pending = assessment.objection if isinstance(assessment, Untargeted) and unobserved else None
    if (
        pending is not None and pending.reason is not Reason.OBSERVATION_PENDING
    ):  # no GPU at all, or a nameless one
        return case.verdict(Phase.VERIFYING, pending.reason, pending.message)
    return case.verdict(Phase.VERIFYING, Reason.OBSERVATION_PENDING, "waiting for the agent to read the GPUs")


AIMLESS = (
    Situation(_works_on, Reason.ACTUATION_IN_PROGRESS),  # shown with what the actuator says
    Situation(_refused, Reason.NOT_ACCEPTED),  # shown with the objection's own reason
    Situation(_not_asked, Reason.OBSERVATION_PENDING),
)
"""The first match wins. If none applies, the node waits for the agent's answer."""


# --- the node has a target ---------------------------------------------------------------------------------


@value
class _Aimed:
    """A node with a target, and how its last run relates to that target."""

    case: FencedCase
    assessed: Assessed
    aim: Target
    """The target of the present step: the policy's target, or the intermediate stop on the way to it."""
    on_course: bool
    """Whether what was written at the PNR leads to the aim. If not, the spec has changed since."""
    owed: bool
    """Whether the fence records that another run towards the policy's target is due. False if the run that it records
    leads to another target."""
    trouble: Unfinished | None
    """What is wrong with the last run, or None if it succeeded or involves no program that could fail."""

    @staticmethod
    def of(case: FencedCase, assessed: Assessed) -> "_Aimed":
        """Return the case with the target of its present step (the intermediate stop or the final target), whether the
        last run led there, whether another run is due, and what is wrong with the actuator."""
        fence = case.fence
        aim = assessed.stop if fence.step < fence.steps else assessed.target
        owed = fence.owed == owed_for(assessed.target)
        # The layout is compared too, because an administrator may since have given a configuration another meaning.
        written = (fence.target_mig_config, fence.target_plugin_config, fence.to_layout)
        on_course = written == (aim.mig_config, aim.plugin_key, aim.text)
        return _Aimed(case, assessed, aim, on_course, owed, case.actuator.find_trouble(case, fence))

    def owe(self, reason: Reason, message: str, attempt: int, *, failed: bool = False) -> Verdict:
        """Return the Reconfiguring verdict whose only action records in the fence that another run is due, as attempt
        number `attempt`. `failed`: the change has failed so far."""
        verdict = self.case.verdict(Phase.RECONFIGURING, reason, message)
        return verdict.then(owe(self.case, self.assessed, attempt, failed=failed))


def _old_pod(aimed: _Aimed, reason: Reason) -> Verdict | None:
    """Return the verdict of `restart_pod` for the next pod that this run has to replace, or None if there is no such
    pod. The verdict deletes the pod, waits if it is terminating, first makes the node idle, or starts over a change
    without a cordon. `reason` is ignored."""
    old = aimed.case.actuator.find_old(aimed.case, aimed.case.fence)
    return None if old is None else restart_pod(aimed.case, *old)


def _owes_run(aimed: _Aimed, reason: Reason) -> Verdict | None:
    """Return the verdict for the run that the fence records as due, as a repetition (`actuation.run` with `again`).
    `reason` is ignored. None if no run towards the present target is due, or if the values written last lead to another
    target."""
    return run(aimed.case, aimed.assessed, again=True) if aimed.on_course and aimed.owed else None


def _still_at_work(aimed: _Aimed, reason: Reason) -> Verdict | None:
    """Return the Reconfiguring verdict of a node whose actuator is still working (`_at_work`), with the reason that
    its trouble has; the argument `reason` is ignored. None if the actuator shows no trouble, or trouble that waiting
    longer would not change (`Unfinished.final`). A new target does not interrupt the actuator's work."""
    trouble = aimed.trouble
    return None if trouble is None or trouble.final else _at_work(aimed.case, trouble)


def _stop_proven(aimed: _Aimed, reason: Reason) -> Verdict | None:
    """Return the verdict of the run for the second step (`actuation.run`), which may first have to prove the node idle
    again. None if the last run did not lead to the intermediate stop, or if the stop is not proven yet. The stop counts
    as proven if the current request to the agent records the proof (`prepares_next_step`). `reason` is ignored."""
    proven = aimed.on_course and aimed.aim is aimed.assessed.stop and prepares_next_step(aimed.case)
    return run(aimed.case, aimed.assessed, step_proven=True) if proven else None


def _run_ended(aimed: _Aimed, reason: Reason) -> Verdict | None:
    """Return the verdict for the next step of the proof (`_verify`) if the last run led to the present target and the
    actuator shows no trouble, else None. `reason` is ignored."""
    if not aimed.on_course or aimed.trouble is not None:
        return None
    return _verify(aimed.case, aimed.aim, aimed.assessed)


def _curable(aimed: _Aimed, reason: Reason) -> Verdict | None:
    """Return the Reconfiguring verdict that records that the actuator must run once more, with the next attempt's
    number. None if the last run had no trouble, if the target has changed, if another run would not help, or if the
    number of the present attempt is already above `settings.max_cures`."""
    trouble, attempt = aimed.trouble, aimed.case.fence.attempt
    if trouble is None or not aimed.on_course:
        return None
    if not trouble.cure or attempt > aimed.case.settings.max_cures:
        return None
    return aimed.owe(reason, f"{trouble.mismatch.message}; {trouble.cure}", attempt + 1)


def _incurable(aimed: _Aimed, reason: Reason) -> Verdict | None:
    """Return the verdict of `_failed` for the actuator's trouble. None if the actuator has no trouble or the target has
    changed. The failure counts as the present state of the node (`known`). `reason` is ignored."""
    if aimed.trouble is None or not aimed.on_course:
        return None
    return _failed(aimed.case, aimed.trouble.mismatch, known=True)


def _changed(aimed: _Aimed, reason: Reason) -> Verdict | None:
    """Return the verdict for a new run (`actuation.run`) towards a target that has changed since the last run. `reason`
    is ignored. A change that cordons must first prove the node idle again. None if the deadline has passed, unless the
    fence records that a run towards the target is due."""
    return run(aimed.case, aimed.assessed) if aimed.owed or not is_late(aimed.case) else None


def _changed_late(aimed: _Aimed) -> Verdict:
    """Return the Reconfiguring verdict (ActuationInProgress) that records a run towards a target that was set after the
    deadline. The run gets a new deadline, and the fence keeps the version of the spec that failed (`owe` with
    `failed`)."""
    message = (
        f"the spec changed after the deadline; the node is now being changed to {aimed.assessed.target.text}"
    )
    return aimed.owe(Reason.ACTUATION_IN_PROGRESS, message, attempt=1, failed=True)


AIMED = (
    Situation(_old_pod, Reason.ACTUATION_IN_PROGRESS),
    Situation(_owes_run, Reason.ACTUATION_IN_PROGRESS),
    Situation(_still_at_work, Reason.ACTUATION_IN_PROGRESS),  # shown with what the actuator says
    Situation(_stop_proven, Reason.ACTUATION_IN_PROGRESS),
    Situation(_run_ended, Reason.OBSERVATION_PENDING),  # or what the proof finds
    Situation(_curable, Reason.ACTUATION_IN_PROGRESS),
    Situation(_incurable, Reason.ACTUATOR_FAILED),  # shown with what the actuator says
    Situation(_changed, Reason.ACTUATION_IN_PROGRESS),
)
"""The first match wins. A run that the fence records as due comes before any new decision, and
a run that is under way may finish. If none applies, the spec was changed after the deadline: another run is due, with
a deadline of its own."""


def _at_work(case: FencedCase, trouble: Unfinished) -> Verdict:
    """Return the Reconfiguring verdict of a node on which the actuator is at work, with the reason and message of
    `trouble`. The verdict wakes when the mere passing of time may change the state that the actuator shows. The verdict
    has no action."""
    mismatch = trouble.mismatch
    return case.verdict(
        Phase.RECONFIGURING, mismatch.reason, mismatch.message, wake=case.actuator.next_look(case, case.fence)
    )


def _failed(case: FencedCase, mismatch: Finding, *, known: bool) -> Verdict:
    """Return a Failed verdict with this cause and the command for a retry. If the policy says Rollback, the message
    also says why the node is not rolled back. If the reason is ActuatorFailed, the verdict's only action asks the agent
    to read the GPUs, unless the agent has already been asked since the last event; otherwise the verdict has no action.

    If a person asked for another try and the node has a target, return instead the Reconfiguring verdict
    (ActuationInProgress) that records a new run in the fence, as attempt 1. If the policy says Rollback and a rollback
    is possible, return the verdict that begins it (`turn_back`). `known`: the cause shows the present state of the
    node; only `turn_back` reads it.
    """
    if was_asked_again(case) and isinstance(case.assessment, Assessed):
        verdict = case.verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, "trying again on request")
        return verdict.then(owe(case, case.assessment, attempt=1, failed=True))
    back = turn_back(case, mismatch, known=known)
    if isinstance(back, Verdict):
        return back
    kept = f"The node stays {case.fence.closed}. Once" if case.fence.disruption.cordons else "Once"
    retry = retry_command(case.node.name, case.fence.retry)
    message = f"{mismatch.message}{back and '; '}{back}. {kept} the cause is fixed, run: {retry}"
    verdict = case.verdict(Phase.FAILED, mismatch.reason, message)
    request = verify_request(case) if mismatch.reason is Reason.ACTUATOR_FAILED else None
    return (
        verdict.then(request) if request is not None else verdict
    )  # its programs are idle, so read what they left behind


# --- the proof ---------------------------------------------------------------------------------------------


def _verify(case: FencedCase, aim: Target, assessed: Assessed) -> Verdict:
    """Return the verdict for the next step of the proof: ask the agent to read the GPUs and wait for its answer
    (ObservationPending), show what still differs from `aim` (`find_mismatch`) or else that the node is not Ready
    (NodeNotReady), begin the second step, or release the node. Until the last two the phase is Verifying, and the
    verdict has no `wake` of its own."""
    if (request := verify_request(case)) is not None:
        verdict = case.verdict(
            Phase.VERIFYING, Reason.OBSERVATION_PENDING, "asking the agent to read the GPUs again"
        )
        return verdict.then(request)
    reading = FreshReading.of(case, "verify")
    if reading is None:
        message = "waiting for the agent to read the GPUs again"
        return case.verdict(Phase.VERIFYING, Reason.OBSERVATION_PENDING, message)
    compared = Comparison(case.node, reading.observed, aim, case.stack, case.fence.gfd_timestamp)
    mismatch = find_mismatch(compared, case.actuator.checks)
    if mismatch is None and not case.node.ready:
        mismatch = Finding(Reason.NODE_NOT_READY, "all checks have passed, but the node is not Ready")
    if mismatch is not None:
        return case.verdict(Phase.VERIFYING, mismatch.reason, mismatch.message)
    if case.fence.step < case.fence.steps:
        return run(case, assessed, step_proven=True)
    return _release(case, aim, assessed.policy)


def _release(case: FencedCase, target: Target, policy: PolicyView) -> Verdict:
    """Return the Uncordoning verdict that releases a proven node. One PATCH writes the record of the proof, sets our
    two labels, and removes the fence, the labels and annotations that keep other controllers away, and the cordon if
    `may_uncordon`. While somebody else works on the node and the cordon is ours alone, the fence stays too, and the
    routing label is not set yet (yielding.py). A record of abandoned attempts is removed. The reason is RolledBack
    after a rollback, else CordonKept if a cordon stays, else Synced."""
    fence, node = case.fence, case.node
    labels, annotations = unmarked(fence, node)
    labels[names.LABEL_POLICY] = policy.name
    aside = aside_fence(case, proven=case.now, from_mode=target.routing) if keeps_cordon(case) else None
    if aside is None:
        labels[names.LABEL_MODE] = target.routing
    uncordon = may_uncordon(case)
    kept = node.unschedulable and not uncordon
    reason = Reason.CORDON_KEPT if kept else Reason.SYNCED
    why_kept = (
        tell_wait(case)
        if aside is not None
        else "the node stays cordoned, because the operator is not the only one that cordoned it"
    )
    message = f"{target.text} proven" + (f"; {why_kept}" if kept else "")
    if goes_back(case):
        reason, message = (
            Reason.ROLLED_BACK,
            f"{message}; the node was rolled back to it after a failure: {fence.failure}",
        )
    release = Release(node, uncordon, labels, proven(case, target, policy), annotations, fence=aside)
    return case.verdict(Phase.UNCORDONING, reason, message).then(release)
