"""A fenced node before the point of no return (PNR): drain, prove idle, or give up and restore.

    Cordoned ── settle ──► Draining ── no holder by LIST ──► VerifyingIdle ── twice, agent quiet, GPUs idle ──► PNR
        └───────────────────────┴──────────── any objection, time-out, lifted cordon ──────────────► Aborting

Until the PNR nothing is lost but evicted pods: people win over us, and an abort restores the node as it was.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.api.names import Mode, Phase
from gpusharing.api.validation import parse_duration
from gpusharing.planning.actions import Actuate, EnsureGPUNode, Evict, Release
from gpusharing.planning.assess import uses_mps
from gpusharing.planning.blockers import explain_blockers, main_reason
from gpusharing.planning.drain import DrainPlan, plan_drain
from gpusharing.planning.gates import CORDONING, needs_mig_manager, needs_restart, propagation
from gpusharing.planning.health import REACHABLE
from gpusharing.planning.marks import unmarked
from gpusharing.planning.reasons import Reason
from gpusharing.planning.target import Target
from gpusharing.planning.verdict import NodeCase, Verdict
from gpusharing.planning.verify import MPS_DAEMONS
from gpusharing.planning.views import Deferred, NodeWork


def before_pnr(case: NodeCase) -> Verdict:
    """The next step of a node whose fence stage is `fenced`."""
    if (ended := _ended(case)) is not None:
        return ended
    target = case.assessment.target if case.assessment else None
    if target is None:
        message = "waiting for the agent to read the GPUs"
        return case.verdict(Phase.CORDONED, Reason.OBSERVATION_PENDING, message, wake=case.fence.deadline)
    if case.fence.disruption not in CORDONING:
        return pass_pnr(case, target, Phase.PREFLIGHT)
    settled = case.fence.since + timedelta(seconds=case.settings.settle)
    if case.now < settled:
        message = "cordoned; pods that were just being bound may still appear"
        return case.verdict(Phase.CORDONED, Reason.SETTLING, message, wake=settled)
    return empty_and_pass(case, target)


def empty_and_pass(case: NodeCase, target: Target) -> Verdict:
    """Nearer to an idle node, and through the PNR once it is proven idle. The node is cordoned already."""
    if case.work is None or case.work.error:
        why = case.work.error if case.work else "listing the pods of the node"
        reason = Reason.LIST_FAILED if case.work else Reason.SETTLING
        return replace(case.verdict(Phase.DRAINING, reason, why, wake=_poll(case)), wants_pods=True)
    return _drain(case, target, case.work)


def _poll(case: NodeCase) -> datetime:
    """The next look at the pods; not past the deadline, which ends a drain."""
    soon = case.now + timedelta(seconds=case.settings.poll)
    return min(soon, case.fence.deadline) if case.now < case.fence.deadline else soon


# --- giving up ---------------------------------------------------------------------------------------------


def _ended(case: NodeCase) -> Verdict | None:
    """The reasons to stop before the PNR, in their order."""
    fence, node, assessment = case.fence, case.node, case.assessment
    if fence.node_uid != node.uid:
        return _abort(
            case, Reason.CORDON_KEPT, "the fence belongs to an earlier node of this name", restore=False
        )
    if assessment is None or assessment.policy.deleting:
        return _abort(
            case, Reason.DELETING, f"policy {fence.policy} is gone or going; the node is given back"
        )
    if case.owner != fence.policy:
        return _abort(
            case, Reason.SUPERSEDED, f"policy {fence.policy} no longer owns the node; it is given back"
        )
    if assessment.objection is not None:
        return _abort(case, assessment.objection.reason, assessment.objection.message)
    if assessment.target is not None and assessment.mismatch is None:
        return _abort(case, Reason.SYNCED, "the node is already as wanted; nothing to change any more")
    if fence.disruption not in CORDONING and assessment.disruption in CORDONING:
        return _abort(
            case, Reason.PODS_LEAVING, "the change now needs an idle node; it starts anew with a drain"
        )
    if fence.disruption in CORDONING and not node.unschedulable:
        message = "somebody lifted the cordon during the drain; the change is given up"
        return _abort(case, Reason.UNCORDONED_EXTERNALLY, message, defer=True)
    if node.foreign:
        message = f"{node.foreign} began to work on the node; the cordon is left to it"
        return _abort(case, Reason.FOREIGN_MAINTENANCE, message, defer=True)
    if (ailment := case.ailment) is not None:
        return _abort(case, Reason.GPU_UNHEALTHY, ailment.message, defer=True)
    if case.now >= fence.deadline:
        return _abort(case, Reason.DRAIN_TIMEOUT, _timeout_text(case), defer=True)
    return None


def _timeout_text(case: NodeCase) -> str:
    text = "the drain was given up at its deadline and the node restored; evicted pods are not brought back"
    if case.work is not None:
        plan = _plan(case, case.work)
        if lines := explain_blockers(plan.blockers):
            text += ": " + lines[0]
    return text


def _abort(
    case: NodeCase, reason: Reason, message: str, *, defer: bool = False, restore: bool = True
) -> Verdict:
    """Give the node back as it was before the fence."""
    fence, node = case.fence, case.node
    labels, annotations = unmarked(fence)
    if restore and fence.from_mode:
        labels[names.LABEL_MODE] = fence.from_mode
    return case.verdict(Phase.ABORTING, reason, message).then(
        Release(
            node,
            uncordon=restore and may_uncordon(case),
            labels=labels,
            annotations=annotations,
            deferred=_next_deferral(case, reason) if defer else None,
        )
    )


def may_uncordon(case: NodeCase) -> bool:
    """Only our own cordon, only while nobody else wants the node cordoned (drain.md rule 5)."""
    node, fence = case.node, case.fence
    return (
        fence.disruption in CORDONING
        and node.unschedulable
        and not fence.prior_unschedulable
        and not node.hold_cordon
        and not node.foreign
        and fence.node_uid == node.uid
    )


def _next_deferral(case: NodeCase, reason: Reason) -> Deferred:
    earlier = case.node.deferred
    generation = case.fence.generation
    count = earlier.count + 1 if earlier and earlier.generation == generation else 1
    wait = timedelta(seconds=case.settings.abort_backoff * 2 ** min(count - 1, 6))
    return Deferred(count, case.now + wait, str(reason), generation, case.node.retry)


# --- draining ----------------------------------------------------------------------------------------------


def _plan(case: NodeCase, work: NodeWork) -> DrainPlan:
    return plan_drain(
        work,
        case.spec.drain,
        case.now,
        scope=case.scope,
        throttled=case.throttled,
    )


def _drain(case: NodeCase, target: Target, work: NodeWork) -> Verdict:
    plan = _plan(case, work)
    if plan.holders == 0:
        return _prove_idle(case, target, work)
    reason = main_reason(plan.blockers) or Reason.PODS_LEAVING
    lines = explain_blockers(plan.blockers)
    message = f"{plan.holders} GPU pod{'s' if plan.holders > 1 else ''} left to go" + (
        f"; {lines[0]}" if lines else ""
    )
    wake = min(plan.next_wake, _poll(case)) if plan.next_wake else _poll(case)
    verdict = case.verdict(Phase.DRAINING, reason, message, wake=wake)
    evictions = (Evict(case.node.name, pod.namespace, pod.name, pod.uid) for pod in plan.evict)
    return replace(
        verdict, pods=plan.holders, blockers=plan.blockers, wants_pods=True, actions=tuple(evictions)
    )


def _prove_idle(case: NodeCase, target: Target, work: NodeWork) -> Verdict:
    """Two empty LISTs some seconds apart, an agent that closed NVML, and nobody who computes."""

    def wait(reason: Reason, message: str, wake: datetime | None = None) -> Verdict:
        verdict = case.verdict(Phase.VERIFYING_IDLE, reason, message, wake=wake or _poll(case))
        return replace(verdict, wants_pods=True)

    if not case.node.ready:
        return wait(Reason.NODE_UNREACHABLE, "the node is not Ready: nobody knows whether its pods still run")
    if not case.agent_ready:
        return wait(Reason.AGENT_NOT_READY, "no Ready agent pod: nobody can say whether the GPUs are idle")
    empty_since = work.empty_since or work.listed_at
    request, busy = _next_quiet_request(case, empty_since), _last_busy(case)
    if request is not None or busy or not answers_quiet(case):
        # What the last answer said stays in view until the next: status does not flap with every question.
        reason = Reason.GPU_STILL_BUSY if busy else Reason.OBSERVATION_PENDING
        verdict = wait(reason, busy or "waiting for the agent to read once more and to close NVML")
        return verdict.then(request) if request is not None else verdict
    proven_at = empty_since + timedelta(seconds=case.settings.idle)
    if work.listed_at < proven_at:  # the clock alone proves nothing: it takes a second LIST
        wake = proven_at if case.now < proven_at else _poll(case)
        return wait(Reason.SETTLING, "no pod holds a GPU; looking once more", wake)
    return pass_pnr(case, target, Phase.VERIFYING_IDLE)


def _quiet_prefix(case: NodeCase) -> str:
    """Of request ids; after a step they tell that the step is proven and the next one prepared."""
    after = f"after-{case.fence.step}:" if case.fence.stage == "actuating" else ""
    return f"{case.fence.op}:quiet:{after}"


def prepares_next_step(case: NodeCase) -> bool:
    """The agent was asked for silence after this step: the step is proven already."""
    return case.gpunode is not None and case.gpunode.request_id.startswith(_quiet_prefix(case))


def answers_quiet(case: NodeCase) -> bool:
    """The agent has closed NVML, and it did so for the request that stands."""
    gpunode = case.gpunode
    if gpunode is None or gpunode.observed is None:
        return False
    return gpunode.observed.quiet and gpunode.observed.request_id == gpunode.request_id


def _last_busy(case: NodeCase) -> str:
    """Who computed when the agent closed NVML for this change last; empty: nobody, or it has not yet."""
    observed = case.gpunode.observed if case.gpunode else None
    if observed is None or not observed.quiet or not observed.request_id.startswith(_quiet_prefix(case)):
        return ""
    if observed.error:
        return f"the agent cannot read the GPUs: {observed.error}"
    for gpu in observed.gpus:
        if gpu.vitals.access != REACHABLE:
            return f"GPU {gpu.index} does not answer: nobody knows whether a process computes on it"
        if foreign := [name for name in gpu.processes if name not in MPS_DAEMONS]:
            shown = ", ".join(name or "a process that the agent cannot name" for name in foreign[:3])
            return f"no pod holds a GPU, yet on GPU {gpu.index} runs {shown}"
    return ""


def _next_quiet_request(case: NodeCase, empty_since: datetime) -> EnsureGPUNode | None:
    """Ask for silence once the last pod is gone, and ask again every poll while somebody computes."""
    period = _period(case, case.now)
    asked = _asked_in(case)
    again = asked != period and answers_quiet(case) and _last_busy(case)
    if asked is not None and asked >= _period(case, empty_since) and not again:
        return None
    return EnsureGPUNode(
        node=case.node.name,
        node_uid=case.node.uid,
        request_id=f"{_quiet_prefix(case)}{period}",
        quiet=True,
    )


def _period(case: NodeCase, moment: datetime) -> int:
    return int(moment.timestamp() // max(case.settings.poll, 0.001))


def _asked_in(case: NodeCase) -> int | None:
    """The period in which this operation asked for silence last; None: it did not yet."""
    gpunode = case.gpunode
    if gpunode is None or not gpunode.quiet or not gpunode.request_id.startswith(_quiet_prefix(case)):
        return None
    number = gpunode.request_id.removeprefix(_quiet_prefix(case))
    return int(number) if number.isdecimal() else None


# --- the point of no return --------------------------------------------------------------------------------


def pass_pnr(case: NodeCase, target: Target, phase: Phase) -> Verdict:
    """Write every label that changes, unless configuration or actuator are not there yet."""
    watching = case.fence.disruption in CORDONING  # pods are looked at until the very PNR
    if (closed := propagation(case)) is not None:
        wake = _poll(case) if watching else closed.until
        return replace(case.verdict(phase, closed.reason, closed.message, wake=wake), wants_pods=watching)
    goal = case.goal(target)
    if needs_mig_manager(case, goal) and (case.operand is None or not case.operand.ready):
        message = f"no Ready mig-manager pod on {case.node.name}"
        verdict = case.verdict(phase, Reason.ACTUATOR_MISSING, message, wake=_poll(case))
        return replace(verdict, wants_pods=watching)
    verdict = case.verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, f"changing to {goal.text}")
    return verdict.then(actuate(case, goal))


def actuate(case: NodeCase, target: Target) -> Actuate:
    """The PNR: fence stage and labels in one PATCH. State goes to null only with a new value, never while rebooting."""
    node, fence = case.node, case.fence
    labels: dict[str, str | None] = {}
    restart = ""
    if target.mig_config:
        if node.labels.get(names.LABEL_MIG_CONFIG) != target.mig_config:
            labels[names.LABEL_MIG_CONFIG] = target.mig_config
            if node.labels.get(names.LABEL_MIG_STATE) not in (None, "rebooting"):
                labels[names.LABEL_MIG_STATE] = None
        elif needs_restart(case, target) and case.operand is not None:
            restart = case.operand.uid
    plugin_changes = node.labels.get(names.LABEL_PLUGIN_CONFIG) != target.plugin_key
    if plugin_changes:
        labels[names.LABEL_PLUGIN_CONFIG] = target.plugin_key
    assert case.assessment is not None, "a target needs a policy"
    steps = 2 if case.assessment.two_steps or fence.step < fence.steps else 1
    return Actuate(
        node,
        replace(
            fence,
            policy=case.assessment.policy.name,
            generation=case.assessment.policy.generation,
            stage="actuating",
            stage_since=case.now,
            deadline=case.now + actuation_limit(case),
            step=1 if case.assessment.two_steps else steps,
            steps=steps,
            attempt=1,
            to_layout=target.text,
            target_mode=target.routing,
            target_mig_config=target.mig_config,
            target_plugin_config=target.plugin_key,
            gfd_timestamp=node.labels.get(names.LABEL_GFD_TIMESTAMP, "") if plugin_changes else "",
            restart_uid=restart,
            daemon_uid=_daemon_to_restart(case, target) if plugin_changes else "",
            retry=node.retry,
        ),
        labels,
    )


def _daemon_to_restart(case: NodeCase, target: Target) -> str:
    """A running MPS daemon keeps its old number of clients: config-manager does not find its process (b.5)."""
    observed = case.gpunode.observed if case.gpunode else None
    if target.mode is not Mode.MPS or observed is None or case.mps_daemon is None:
        return ""
    return case.mps_daemon.uid if uses_mps(case.node, observed, case.stack) else ""


def actuation_limit(case: NodeCase) -> timedelta:
    """From the PNR until the node counts as Failed: actuation and verification together."""
    timeouts = case.spec.rollout.timeouts
    return parse_duration(timeouts.actuation) + parse_duration(timeouts.verification)
