"""The only place that starts an actuator: it writes what the actuator follows at the point of no return (PNR) and restarts its pods.

A run begins only on a node that was just proven idle, whether for the first run, a retry, a repetition after a fault or the next step. A plugin restart disturbs no pod, so it needs no idle node and never changes a GPU.
"""

from dataclasses import replace
from datetime import timedelta

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import Actuate, Release, RestartOperand
from gpusharing.planning.snapshot.stackviews import Operand
from gpusharing.planning.snapshot.views import ObservedView
from gpusharing.planning.transition.attempts import (
    actuation_limit,
    corrects_drift,
    goes_back,
    remembered,
    still_failed,
)
from gpusharing.planning.transition.gates import first_closed, propagation_gates, target_gates
from gpusharing.planning.transition.idle import next_poll, way_to_idle
from gpusharing.planning.transition.marks import unmarked
from gpusharing.planning.transition.quiet import find_work
from gpusharing.planning.transition.requests import close_request, fresh_reading
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed
from gpusharing.planning.wanted.target import Target


def run(
    case: NodeCase,
    assessed: Assessed,
    *,
    again: bool = False,
    step_proven: bool = False,
) -> Verdict:
    """Make the node idle and, once that is proven, pass the point of no return towards the target or the intermediate stop.

    `again`: the last run is repeated, and the pods are replaced. `step_proven`: the previous step is proven, which only the request to the agent records.
    """
    # If the first of two steps is repeated, it leads to the intermediate stop, no matter how far the node has come.
    goal = assessed.stop if again and case.fence.step < case.fence.steps else assessed.goal
    waiting = _wait_to_run(case, assessed, goal, again=again)
    if not case.fence.disruption.cordons:
        if case.disruption.cordons or case.actuator.needs_run(case, goal):
            return start_anew(case)
        return waiting or _begin(case, assessed, goal, None)
    way = way_to_idle(case, waiting, step_proven=step_proven)
    return way or _begin(case, assessed, goal, fresh_reading(case, "quiet"), again=again)


def start_anew(case: NodeCase) -> Verdict:
    """Release a node whose change began as a plugin restart and now needs an idle node, so that it is fenced again with a cordon."""
    if goes_back(case):  # only its fence records the failure
        message = "the rollback needs an idle node, but this one is in use"
        return case.verdict(Phase.FAILED, Reason.ROLLING_BACK, message)
    message = "the change now needs an idle node, so it starts over with a drain"
    labels, annotations = unmarked(case.fence, case.node)
    failed = remembered(case, Reason.PODS_LEAVING)
    release = Release(case.node, uncordon=False, labels=labels, annotations=annotations, deferred=failed)
    return case.verdict(Phase.ABORTING, Reason.PODS_LEAVING, message, release)


def restart_pod(case: NodeCase, operand: Operand, what: str) -> Verdict:
    """Delete this pod of an actuator on a node that is idle again, so that its replacement begins a new run. `what` names the actuator."""
    phase, reason, message = (
        Phase.RECONFIGURING,
        Reason.ACTUATION_IN_PROGRESS,
        f"restarting {what} on the node",
    )
    if operand.deleting:  # a second DELETE would change nothing, and its success would look like progress
        return case.verdict(phase, reason, message, wake=case.now + timedelta(seconds=case.settings.poll))
    if not case.fence.disruption.cordons:
        return start_anew(case)
    if (way := way_to_idle(case, any_event=True)) is not None:
        return way
    restart = RestartOperand(case.node.name, operand.namespace, operand.name, operand.uid)
    # With another LIST the node stays proven idle without another request to the agent.
    return case.verdict(phase, reason, message, restart, wake=next_poll(case), wants_pods=True)


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
        return case.verdict(phase, busy.reason, busy.message, *actions, wake=busy.until)
    # A repeated run of the first step towards MPS leads to whole GPUs, so objections to the final target do not apply.
    objections = () if again and goal is not assessed.target else target_gates(case, assessed)
    if (closed := first_closed(objections, propagation_gates(case, assessed))) is not None:
        return case.verdict(phase, closed.reason, closed.message, wake=closed.until)
    if missing := case.actuator.find_missing(case, goal, again):
        return case.verdict(phase, Reason.ACTUATOR_MISSING, missing, wake=next_poll(case))
    return None


def _begin(
    case: NodeCase, assessed: Assessed, goal: Target, idle: ObservedView | None, *, again: bool = False
) -> Verdict:
    """Pass the point of no return with one PATCH. `idle` is the reading that proved the node idle; without it, nothing is written that could change a GPU."""
    node, fence, policy = case.node, case.fence, assessed.policy
    writing = case.actuator.write(case, fence, goal, idle, again)
    if assessed.two_steps:
        step, steps = 1, 2
    elif again:
        step, steps = fence.step, fence.steps
    else:
        step, steps = (2, 2) if fence.step < fence.steps else (1, 1)
    begun = replace(
        fence,
        policy=policy.name,
        version=policy.version,
        turned=fence.turned or fence.version != policy.version,
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
        gfd_timestamp=writing.gfd_timestamp,
        restart_uid=writing.restart_uid,
        daemon_uid=writing.daemon_uid,
        retry=node.retry,
        proven=None,
        owed="",
        jobs=False,
        failed=still_failed(case) if fence.version == policy.version else None,
        rolls_back=goes_back(case),
        failure=fence.failure if goes_back(case) else "",
    )
    return case.verdict(
        Phase.RECONFIGURING,
        Reason.ACTUATION_IN_PROGRESS,
        f"changing to {goal.text}",
        Actuate(node, begun, writing.labels),
        wants_pods=bool(writing.restart_uid or writing.daemon_uid) or fence.disruption.cordons,
    )
