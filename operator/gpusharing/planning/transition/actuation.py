"""The only place that starts an actuator: it writes what the actuator follows at the point of no return (PNR) and
restarts its pods.

A run begins only on a node that was just proven idle, whether for the first run, a retry, a repetition after a fault
or the next step. A plugin restart disturbs no pod, so it needs no idle node and never changes a GPU.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return.
"""

from dataclasses import replace
from datetime import timedelta

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import Actuate, Release, RestartOperand
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.stackviews import Operand
from gpusharing.planning.transition.attempts import (
    actuation_limit,
    corrects_drift,
    goes_back,
    remembered,
    still_failed,
)
from gpusharing.planning.transition.gates import AIM, PROPAGATION, find_gate
from gpusharing.planning.transition.idle import next_poll, way_to_idle
from gpusharing.planning.transition.marks import unmarked
from gpusharing.planning.transition.quiet import find_work
from gpusharing.planning.transition.requests import FreshReading, close_request
from gpusharing.planning.transition.verdict import FencedCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed
from gpusharing.planning.wanted.target import Target


def run(
    case: FencedCase,
    assessed: Assessed,
    *,
    again: bool = False,
    step_proven: bool = False,
) -> Verdict:
    """Return the verdict for the next step of a change: make the node idle or, once it is proven idle, pass the PNR.
    What the run still waits for (`_waiting`) is shown only when no pod is left. A plugin restart needs no idle node and
    passes the PNR as soon as there is nothing to wait for. If such a change now needs a cordon or a run of mig-manager,
    it starts over at once (`start_anew`).

    The run leads to the intermediate stop if the change still needs one, else to the final target. `again`: the last
    run is repeated. The same values are written, also if it is the first of two steps, and the pods are replaced. A
    plugin restart that is repeated counts as attempt 1. `step_proven`: the previous step is proven, and this is the
    next one; only the request to the agent records that.
    """
    # If the first of two steps is repeated, it leads to the intermediate stop, no matter how far the node has come.
    goal = assessed.stop if again and case.fence.step < case.fence.steps else assessed.goal
    waiting = _waiting(case, assessed, goal, again=again)
    if not case.fence.disruption.cordons:
        if case.disruption.cordons or case.actuator.needs_run(case, goal):
            return start_anew(case)
        return waiting or _begin(case, assessed, goal, None)
    way = way_to_idle(case, waiting, step_proven=step_proven)
    return way or _begin(case, assessed, goal, FreshReading.of(case, "quiet"), again=again)


def start_anew(case: FencedCase) -> Verdict:
    """Return the Aborting verdict, with the reason PodsLeaving, for a change that began as a plugin restart and now
    needs an idle node. It releases the node without a back-off, removes the labels and annotations that the fence
    added, and leaves the cordon as it is, so that the node is fenced again with a cordon. If the change had failed, the
    release records that (`remembered`). A node that is being rolled back gets a Failed verdict (RollingBack) without
    actions instead, because only its fence records the failure."""
    if goes_back(case):
        message = "the rollback needs an idle node, but this one is in use"
        return case.verdict(Phase.FAILED, Reason.ROLLING_BACK, message)
    message = "the change now needs an idle node, so it starts over with a drain"
    labels, annotations = unmarked(case.fence, case.node)
    verdict = case.verdict(Phase.ABORTING, Reason.PODS_LEAVING, message)
    failed = remembered(case, Reason.PODS_LEAVING)
    release = Release(case.node, uncordon=False, labels=labels, annotations=annotations, deferred=failed)
    return verdict.then(release)


def restart_pod(case: FencedCase, operand: Operand, what: str) -> Verdict:
    """Return the Reconfiguring verdict (ActuationInProgress) that deletes this pod of an actuator, so that its
    replacement begins a new run. If the pod is already terminating, the verdict has no action and wakes one poll
    interval from now. Else, if the change began without needing an idle node, it starts over (`start_anew`). Otherwise
    the node must first be proven idle again (`way_to_idle`); for that proof, the agent's reading may be older than the
    last event. After the deletion, the node's pods are listed again at the next poll, so that the node stays proven
    idle without another request to the agent. `what` names the actuator in the message."""
    verdict = case.verdict(
        Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, f"restarting {what} on the node"
    )
    if operand.deleting:  # a second DELETE would change nothing, and its success would look like progress
        return replace(verdict, wake=case.now + timedelta(seconds=case.settings.poll))
    if not case.fence.disruption.cordons:
        return start_anew(case)
    if (way := way_to_idle(case, any_event=True)) is not None:
        return way
    restart = RestartOperand(case.node.name, operand.namespace, operand.name, operand.uid)
    return replace(verdict, wake=next_poll(case), wants_pods=True).then(restart)


# --- what a run needs --------------------------------------------------------------------------------------


def _waiting(case: FencedCase, assessed: Assessed, goal: Target, *, again: bool) -> Verdict | None:
    """Return the verdict of a node whose run cannot begin yet, or None if it can. The first obstacle counts: the Node
    is being deleted (NodeNotReady), the cached data is stale (ObservationPending), the actuator is still at work before
    the PNR, for example after a reboot (ActuatorBusy), a gate of AIM or PROPAGATION is closed (with its reason), or a
    pod that the run needs is missing (ActuatorMissing). The only action is to have NVML closed while the actuator
    works. The verdict wakes at the next poll if the cached data is stale or a pod is missing, and for ActuatorBusy or a
    closed gate when that ends by itself. If a gate does not end by itself, or the Node is being deleted, it has no
    `wake`. The gates of AIM, which object to the final target, are skipped when the first of two steps is repeated
    (`again`). The phase is VerifyingIdle for a change that cordons. For any other change it is Preflight, or
    Reconfiguring after the PNR."""
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
        verdict = case.verdict(phase, busy.reason, busy.message, wake=busy.until)
        return verdict.then(*([close] if (close := close_request(case)) is not None else []))
    # A repeated run of the first step towards MPS leads to whole GPUs, so objections to the final target do not apply.
    gates = PROPAGATION if again and goal is not assessed.target else (*AIM, *PROPAGATION)
    if (closed := find_gate(case, assessed, gates)) is not None:
        return case.verdict(phase, closed.reason, closed.message, wake=closed.until)
    if missing := case.actuator.find_missing(case, goal, again):
        return case.verdict(phase, Reason.ACTUATOR_MISSING, missing, wake=next_poll(case))
    return None


# --- the point of no return --------------------------------------------------------------------------------


def _begin(
    case: FencedCase, assessed: Assessed, goal: Target, idle: FreshReading | None, *, again: bool = False
) -> Verdict:
    """Return the Reconfiguring verdict (ActuationInProgress) that takes the node past the PNR now. Its only action is
    one PATCH, which writes what the actuator needs for `goal` and moves the fence to the stage `actuating`. The verdict
    has no `wake`, and it asks for the node's pods in the next pass if the change needs an idle node or the run has to
    delete a pod.

    `idle` is the reading that proved the node idle. For a plugin restart it is None, and then nothing is written that
    could change a GPU. `again`: the last run is repeated, and the attempt keeps its number.
    """
    message = f"changing to {goal.text}"
    verdict = case.verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, message)
    action = _actuate(case, assessed, goal, idle, again=again)
    restarts = bool(action.fence.restart_uid or action.fence.daemon_uid) or case.fence.disruption.cordons
    return replace(verdict.then(action), wants_pods=restarts)


def _actuate(
    case: FencedCase, assessed: Assessed, goal: Target, idle: FreshReading | None, *, again: bool
) -> Actuate:
    """Return the action that passes the PNR: one PATCH that writes what the actuator needs for `goal`, and the fence
    with the stage `actuating`. The fence now follows the policy's present version, its deadline is set anew
    (`actuation_limit`), and the retry annotation counts as answered. The due run, the wait for jobs and the time of the
    proof are cleared. Which pods have to be replaced, and GPU Feature Discovery's last timestamp, come from the
    actuator's `write`. The time at which the change began stays. The attempt is 1 unless `again`. A recorded failure
    stays only if the policy's version is still that of the fence, and a rollback only while `goes_back` holds."""
    node, fence, policy = case.node, case.fence, assessed.policy
    writing = case.actuator.write(case, fence, goal, idle.observed if idle is not None else None, again)
    step, steps = _step(fence, two_steps=assessed.two_steps, again=again)
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
    return Actuate(node, begun, writing.labels)


def _step(fence: Fence, *, two_steps: bool, again: bool) -> tuple[int, int]:
    """Return the number of the step that begins and how many steps there are: (1, 2) with `two_steps`, for a change
    with an intermediate stop, and else, with `again`, the fence's own numbers for a repeated run. Any other run is step
    2 of 2 if the fence is at step 1 of 2, else step 1 of 1."""
    if two_steps:
        return 1, 2
    if again:
        return fence.step, fence.steps
    return (2, 2) if fence.step < fence.steps else (1, 1)
