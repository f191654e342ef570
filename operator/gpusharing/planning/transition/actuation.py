"""What starts, reverses or yields a change after the point of no return (PNR)?

This is the only place that starts an actuator: it writes what the actuator follows and restarts its pods.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import Actuate, Release, RestartOperand, UpdateFence
from gpusharing.planning.snapshot.nvidia import Operand
from gpusharing.planning.snapshot.records import Fence, Verified
from gpusharing.planning.snapshot.views import ObservedView
from gpusharing.planning.stack.requirements import explain_failed_upgrade
from gpusharing.planning.transition.attempts import (
    actuation_limit,
    add_retry,
    corrects_drift,
    find_work,
    goes_back,
    next_deferral,
    owe,
    owed_for,
    remembered,
    still_failed,
)
from gpusharing.planning.transition.fencing import restore, tell_foreign, unmarked
from gpusharing.planning.transition.gates import first_closed, propagation_gates, target_gates
from gpusharing.planning.transition.idle import find_kept, next_poll, way_to_idle
from gpusharing.planning.transition.requests import close_request, fresh_reading
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators import Written
from gpusharing.planning.wanted.assess import Assessed, Untargeted, aim
from gpusharing.planning.wanted.target import Target, find_last_proven


def run(case: NodeCase, assessed: Assessed, *, again: bool = False, step_proven: bool = False) -> Verdict:
    """Make the node idle and, once that is proven, pass the PNR towards the target or the intermediate stop.

    `again`: the last run is repeated, and the pods are replaced. `step_proven`: the previous step is proven, which only
    the request to the agent records. A plugin restart disturbs no pod, so it needs no idle node and never changes a
    GPU.
    """
    # If the first of two steps is repeated, it leads to the intermediate stop, no matter how far the node has come.
    goal = assessed.stop if again and case.fence.step < case.fence.steps else assessed.goal
    waiting = _wait_to_run(case, assessed, goal, again=again)
    if not case.fence.disruption.cordons:
        if case.overreach is not None or case.actuator.needs_run(case, goal):
            return _wait_or_start_anew(case)
        return waiting or _begin(case, assessed, goal, None)
    way = way_to_idle(case, waiting, step_proven=step_proven)
    return way or _begin(case, assessed, goal, fresh_reading(case, "quiet"), again=again)


def _wait_or_start_anew(case: NodeCase) -> Verdict:
    """Start anew with a drain what began as a plugin restart if an edit needs that, else wait until it is over."""
    if case.asked_excess or goes_back(case):
        return start_anew(case)
    text = "the change began as a restart of the device plugin, and what is seen of the node now would need a drain"
    waits = case.overreach or Finding(Reason.WIDER_DRAIN_NEEDED, f"{text}, so the operator waits until that is over")
    phase = Phase.PREFLIGHT if case.fence.stage == "fenced" else Phase.RECONFIGURING
    return case.show(phase, waits, wake=next_poll(case))


def start_anew(case: NodeCase) -> Verdict:
    """Release a node whose change began as a plugin restart and now needs a cordon, so that it is fenced again."""
    if goes_back(case):  # only its fence records the failure
        message = "the rollback needs an idle node, but this one is in use"
        return case.verdict(Phase.FAILED, Reason.ROLLING_BACK, message)
    message = "the change now needs an idle node, so it starts over with a drain"
    labels, annotations = unmarked(case.fence, case.node)
    failed = remembered(case, Reason.PODS_LEAVING)
    release = Release(case.node, uncordon=False, labels=labels, annotations=annotations, deferred=failed)
    return case.verdict(Phase.ABORTING, Reason.PODS_LEAVING, message, release)


def restart_pod(case: NodeCase, operand: Operand, what: str) -> Verdict:
    """Delete this pod of the actuator `what` on an idle node; its replacement begins a new run."""
    phase, reason, message = Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, f"restarting {what} on the node"
    if operand.deleting:  # a second DELETE would change nothing, and its success would look like progress
        return case.verdict(phase, reason, message, wake=case.now + timedelta(seconds=case.settings.poll))
    if not case.fence.disruption.cordons:
        return _wait_or_start_anew(case)
    if (way := way_to_idle(case, any_event=True)) is not None:
        return way
    restart = RestartOperand(case.node.name, operand.namespace, operand.name, operand.uid)
    # With another LIST the node stays proven idle without another request to the agent.
    return case.verdict(phase, reason, message, restart, wake=next_poll(case), wants_pods=True)


def restore_labels(case: NodeCase, lost: Written) -> Verdict:
    """Write labels again that the actuator still has to read. No GPU changes, so the node need not be idle."""
    fence, labels = lost
    label, due = next(iter(labels.items()))
    who, shown = case.node.label_rewriters.get(label, "someone"), case.node.labels.get(label) or "missing"
    message = f"{label} is {shown}, not {due or 'absent'}: {who} changed it; setting it again"
    update = UpdateFence(case.node, fence, labels=labels)
    return case.verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, message, update)


def _wait_to_run(case: NodeCase, assessed: Assessed, goal: Target, *, again: bool) -> Verdict | None:
    phase = Phase.VERIFYING_IDLE if case.fence.disruption.cordons else Phase.PREFLIGHT
    if case.fence.stage == "actuating" and phase is Phase.PREFLIGHT:
        phase = Phase.RECONFIGURING
    if case.node.deleting:
        message = f"{case.node.name} is being deleted; no change starts on it"
        return case.verdict(phase, Reason.NODE_NOT_READY, message)
    if case.old_views:
        message = f"waiting for updates about {case.old_views} from the API server, because the cached data is stale"
        return case.verdict(phase, Reason.OBSERVATION_PENDING, message, wake=next_poll(case))
    if case.fence.stage == "fenced" and (busy := find_work(case)) is not None:
        request = close_request(case)
        actions = () if request is None else (request,)
        return case.show(phase, busy, *actions, wake=busy.until)
    # A repeated run of the first step towards MPS leads to whole GPUs, so objections to the final target do not apply.
    objections = () if again and goal is not assessed.target else target_gates(case, assessed)
    if (closed := first_closed(objections, propagation_gates(case, assessed))) is not None:
        return case.show(phase, closed, wake=closed.until)
    if missing := case.actuator.find_missing(case, goal, again):
        return case.verdict(phase, Reason.ACTUATOR_MISSING, missing, wake=next_poll(case))
    return None


def _begin(
    case: NodeCase, assessed: Assessed, goal: Target, idle: ObservedView | None, *, again: bool = False
) -> Verdict:
    """Pass the PNR with one PATCH. Without `idle`, the proof, nothing is written that could change a GPU."""
    node, policy = case.node, assessed.policy
    fence, labels = case.actuator.write(case, case.fence, goal, idle, again)
    if assessed.two_steps:
        step, steps = 1, 2
    elif again:
        step, steps = fence.step, fence.steps
    else:
        step, steps = (2, 2) if fence.step < fence.steps else (1, 1)
    version = fence.version if goes_back(case) else policy.version
    begun = replace(
        fence,
        policy=policy.name,
        version=version,
        turned=fence.turned or fence.version != version,
        drift=corrects_drift(fence, policy),
        stage="actuating",
        stage_since=case.now,
        began=fence.began or case.now,
        deadline=case.now + actuation_limit(assessed.spec),
        step=step,
        steps=steps,
        attempt=fence.attempt if again else 1,
        to_layout=goal.text,
        target_mig_config=goal.mig_config,
        target_plugin_config=goal.plugin_key,
        retry=node.retry,
        proven=None,
        owed="",
        jobs=False,
        failed=still_failed(case) if fence.version == version else None,
        rolls_back=goes_back(case),
        failure=fence.failure if goes_back(case) else "",
        kept=find_kept(idle, fence.gpus) if idle and case.scope.part and not fence.kept else fence.kept,
    )
    return case.verdict(
        Phase.RECONFIGURING,
        Reason.ACTUATION_IN_PROGRESS,
        f"changing to {goal.text}",
        Actuate(node, begun, labels),
        wants_pods=bool(fence.restart_uid or fence.daemon_uid) or fence.disruption.cordons,
    )


MAX_FAILURE = 300
"""The maximum length of a failure's cause on the Node, in characters."""


def find_way_back(case: NodeCase) -> NodeCase | None:
    """Return the case with the last proven layout as its target, or None if no rollback is under way.

    A node is rolled back only once (docs/design/transition.md#rollback).
    """
    if not goes_back(case):
        return None
    assessment = case.assessed
    if assessment is None:
        return case
    back = _assess_back(case, assessment)
    if isinstance(back, Finding):
        gone = replace(back, message=f"the rollback is no longer possible: {back.message}")
        return replace(case, assessment=Untargeted(assessment.policy, gone, assessment.observed_text))
    return replace(case, assessment=back)


def find_begun(case: NodeCase) -> NodeCase | None:
    """Return the case with the target that the change began with, or None if the present one needs no more.

    What its policy asks for beyond that begins after the proof, with an approval, a window and a look at the pods of
    its own: nobody agreed to evict the pods that were to stay.
    """
    fence, assessed, node = case.fence, case.assessed, case.node
    if assessed is None or not case.excess or not fence.disruption.cordons:
        return None
    if fence.rolls_back or fence.failed is not None or fence.step < fence.steps:
        return None
    names_of = fence.target_mig_config, fence.target_plugin_config
    record = Verified(fence.policy, *names_of, layout=fence.to_layout, gpus=len(assessed.observed.gpus))
    target = find_last_proven(replace(node, verified=record), assessed.observed, case.stack)
    if isinstance(target, str) or fence.owed not in ("", owed_for(target)):
        return None
    if target == assessed.target and not case.edited:
        return None
    # The begun change keeps its scope, and what a person has corrected since is tried, and not blamed.
    parts = {"drain": {"scope": "Changed"}, "rollout": {"on_failure": "Hold"} if case.edited else {}}
    spec = assessed.spec.model_copy(
        update={part: getattr(assessed.spec, part).model_copy(update=fields) for part, fields in parts.items()}
    )
    return replace(case, assessment=aim(replace(assessed, spec=spec), target, node, case.stack, case.actuator))


def present_way_back(verdict: Verdict, case: NodeCase) -> Verdict:
    wanted = case.assessed.target.text if case.assessed is not None else verdict.wanted
    found = Finding(verdict.reason, verdict.message, commands=verdict.commands)
    if verdict.phase not in (Phase.FAILED, Phase.UNCORDONING):
        found = replace(found, message=f"rolling back after a failure: {found.message}")
    if verdict.phase is Phase.FAILED and found.reason is Reason.ROLLING_BACK:
        # That layout cannot be reached any more.
        found = add_retry(found, case.node.name, case.fence.retry, f". To try {wanted} again, run")
    reason = found.reason
    if reason in (Reason.ACTUATION_IN_PROGRESS, Reason.OBSERVATION_PENDING):
        reason = Reason.ROLLING_BACK
    return replace(verdict, wanted=wanted, reason=reason, message=found.message, commands=found.commands)


def turn_back(case: NodeCase, failure: Finding, *, known: bool) -> Verdict | str | Finding:
    """Begin the rollback by recording it in the fence, or return a clause that says why not now."""
    assessment = case.assessed
    if assessment is None or assessment.spec.rollout.on_failure != "Rollback":
        return ""
    if goes_back(case):
        return f"the rollback to {assessment.target.text} failed too"
    # What the kubelet last advertised on a node that is not Ready dates from before the change.
    if not (known and case.node.ready and case.agent_ready):
        return "spec.rollout.onFailure is Rollback; the rollback starts once the state of the node is known"
    back = _assess_back(case, assessment)
    if isinstance(back, Finding):
        return replace(back, message=f"spec.rollout.onFailure is Rollback, but {back.message}")
    if owed_for(back.target) == owed_for(assessment.target):
        return "spec.rollout.onFailure is Rollback, but the layout that failed is also the last one proven on this node"
    if not case.fence.covers(back.disruption, back.gpus):
        return "spec.rollout.onFailure is Rollback, but the rollback would need more pods to leave than the change did"
    message = f"{failure.message}; rolling back to {back.target.text}, the last layout proven on this node"
    # When people read the record, a command of the message may not fit any more.
    cause = failure.message.partition(". ")[0] if failure.commands else failure.message
    owed = owe(case, back, attempt=1, failed=True)
    policy, begun_version = assessment.policy, case.fence.version
    fence = replace(
        owed.fence,
        version=policy.version,
        failed_version=policy.version if begun_version.uid == policy.uid else begun_version,
        drift=False,
        step=1,
        steps=1,
        rolls_back=True,
        failure=cut(cause, MAX_FAILURE),
    )
    turned = replace(failure, reason=Reason.ROLLING_BACK, message=message)
    return case.show(Phase.RECONFIGURING, turned, UpdateFence(case.node, fence))


def _assess_back(case: NodeCase, assessment: Assessed) -> Assessed | Finding:
    node, observed, stack = case.node, assessment.observed, case.stack
    target = find_last_proven(node, observed, stack)
    if isinstance(target, str):
        return Finding(Reason.ROLLING_BACK, target)
    if (objection := next(case.actuator.objections(case, target), None)) is not None:
        message = f"the last proven mode is {target.mode}, and {objection.message}"
        return replace(objection, reason=Reason.ROLLING_BACK, message=message)
    return aim(assessment, target, node, stack, case.actuator)


def holds_our_cordon(case: NodeCase) -> bool:
    node, fence = case.node, case.fence
    ours = fence.cordons and not fence.prior_unschedulable
    return ours and node.unschedulable and fence.node_uid == node.uid


def may_uncordon(case: NodeCase) -> bool:
    """Whether the release may lift the cordon (docs/design/drain.md#rule-5). Others that only wait set their own."""
    node = case.node
    return holds_our_cordon(case) and not node.hold_cordon and not node.foreign_works and not node.deleting


def give_way(case: NodeCase, why: Finding) -> Verdict:
    """Yield the node to whoever else maintains it; it counts as unavailable, but holds no slot of the cap."""
    labels, annotations = unmarked(case.fence, case.node)
    update = UpdateFence(case.node, aside_fence(case), labels=labels, annotations=annotations)
    return case.show(Phase.ABORTING, replace(why, reason=Reason.FOREIGN_MAINTENANCE), update)


def keeps_cordon(case: NodeCase) -> bool:
    """Whether our cordon stays when the change ends: somebody else works on the node or stopped halfway."""
    return case.node.foreign_works and holds_our_cordon(case)


def aside_fence(case: NodeCase, proven: datetime | None = None, from_mode: str | None = None) -> Fence:
    """Return the fence of a yielded node, without which our cordon would look like somebody else's forever.

    Our marks are removed at once: NVIDIA's driver upgrade skips a node that has them, and we would wait for the upgrade
    forever. `from_mode` is the routing label that a node which was just `proven` gets at its release.
    """
    fence = replace(case.fence, stage="yielded", stage_since=case.now, added=())
    return fence if from_mode is None else replace(fence, proven=proven, from_mode=from_mode)


def find_wait(case: NodeCase) -> Finding:
    if case.node.upgrade_failed:  # the message ends with a command
        failed = explain_failed_upgrade(case.node, case.stack.cluster_policy)
        over = "the operator uncordons the node when NVIDIA's driver upgrade is over"
        return replace(failed, message=f"{over}. {failed.message}")
    message = f"{tell_foreign(case.node)}; the operator uncordons the node when that is done"
    return Finding(Reason.FOREIGN_MAINTENANCE, message)


def yielded(case: NodeCase) -> Verdict:
    if keeps_cordon(case):
        return replace(case.show(Phase.BLOCKED, find_wait(case)), deadline=None)
    done = case.fence.proven is not None
    fate = "returned to service" if done else "restored"
    message = f"nobody else is working on {case.node.name} anymore; it is being {fate}"
    if case.node.foreign_works:
        message = f"someone uncordoned {case.node.name}; {case.node.foreign} decides what happens next"
    deferred = None if done else next_deferral(case, Reason.FOREIGN_MAINTENANCE)
    release = restore(case, uncordon=may_uncordon(case), deferred=deferred)
    return case.verdict(Phase.UNCORDONING, Reason.FOREIGN_MAINTENANCE, message, release)
