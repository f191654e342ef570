"""A fenced node before the point of no return (PNR): drain, prove idle, or give up and restore.

    Cordoned ── settle ──► Draining ── no holder by LIST ──► VerifyingIdle ── twice, agent quiet, GPUs idle ──► PNR
        └───────────────────────┴──────────── any objection, time-out, lifted cordon ──────────────► Aborting

Until the PNR nothing is lost but evicted pods: people win over us, and an abort restores the node as it was.
"""

from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.actions import Release
from gpusharing.planning.drain.plan import DrainPlan
from gpusharing.planning.proof.assess import Assessed, Refused
from gpusharing.planning.stack.acceptance import passes
from gpusharing.planning.way.actuation import run
from gpusharing.planning.way.attempts import next_deferral, proof_time
from gpusharing.planning.way.gates import CORDONING
from gpusharing.planning.way.idle import drain_plan, rise
from gpusharing.planning.way.marks import unmarked
from gpusharing.planning.way.verdict import FencedCase, Verdict
from gpusharing.planning.way.yielding import give_way, holds_our_cordon, may_uncordon
from gpusharing.planning.words.blockers import explain_blockers
from gpusharing.planning.words.reasons import Reason


def before_pnr(case: FencedCase) -> Verdict:
    """The next step of a node whose fence stage is `fenced`."""
    if (ended := _ended(case)) is not None:
        return ended
    assessment = case.assessment
    if isinstance(assessment, Refused):
        objection = assessment.objection
        return case.verdict(Phase.CORDONED, objection.reason, objection.message, wake=_next_limit(case))
    if not isinstance(assessment, Assessed):
        message = "waiting for the agent to read the GPUs"
        return case.verdict(Phase.CORDONED, Reason.OBSERVATION_PENDING, message, wake=_next_limit(case))
    if case.fence.disruption not in CORDONING:
        return run(case, assessment)
    if (risen := rise(case)) is not None:
        return risen
    settled = case.fence.since + timedelta(seconds=case.settings.settle)
    if case.now < settled:
        message = "cordoned; pods that were just being bound may still appear"
        return case.verdict(Phase.CORDONED, Reason.SETTLING, message, wake=settled)
    return run(case, assessment)


# --- giving up ---------------------------------------------------------------------------------------------


def _ended(case: FencedCase) -> Verdict | None:
    """The reasons to stop before the PNR, in their order. Whatever could begin and end alike again is put off."""
    fence, node, assessment = case.fence, case.node, case.assessment
    if fence.node_uid != node.uid:
        return _abort(
            case, Reason.CORDON_KEPT, "the fence belongs to an earlier node of this name", restore=False
        )
    if node.deleting:
        message = f"{node.name} is being deleted; the change is given up, and the cordon stays until the node is gone"
        return _abort(case, Reason.NODE_NOT_READY, message)
    if assessment is None or assessment.policy.deleting:
        return _abort(
            case, Reason.DELETING, f"policy {fence.policy} is gone or going; the node is given back"
        )
    if case.owner != fence.policy:
        message = f"policy {fence.policy} no longer owns the node; it is given back"
        return _abort(
            case, Reason.SUPERSEDED, message, defer=not case.owner
        )  # a label may come and go with the fence
    if isinstance(assessment, Refused) and not passes(assessment.objection.reason):
        return _abort(case, assessment.objection.reason, assessment.objection.message, defer=True)
    assessed = assessment if isinstance(assessment, Assessed) else None
    if assessed is not None and assessed.mismatch is None:
        return _abort(case, Reason.SYNCED, "the node is already as wanted; nothing is left to change")
    if fence.disruption not in CORDONING and assessed is not None and assessed.disruption in CORDONING:
        return _abort(
            case, Reason.PODS_LEAVING, "the change now needs an idle node; it starts over with a drain"
        )
    if fence.disruption in CORDONING and not node.unschedulable:
        message = "somebody lifted the cordon during the drain; the change is given up"
        return _abort(case, Reason.UNCORDONED_EXTERNALLY, message, defer=True)
    if node.foreign:
        message = f"{node.foreign} began to work on the node; the cordon is left to it"
        return _abort(case, Reason.FOREIGN_MAINTENANCE, message, defer=True)
    if (ailment := case.ailment) is not None:
        return _abort(case, Reason.GPU_UNHEALTHY, ailment.message, defer=True)
    if case.now >= fence.deadline and case.now >= _limit(case):
        return _abort(case, Reason.DRAIN_TIMEOUT, _timeout_text(case), defer=True)
    return None


def _limit(case: FencedCase) -> datetime:
    """`drain.timeout` is for pods to leave: the proof that the node is idle has a time of its own."""
    gone = case.fence.disruption not in CORDONING
    if (plan := _drain(case)) is not None:
        gone = plan.idle
    return case.fence.deadline + proof_time(case) if gone else case.fence.deadline


def _next_limit(case: FencedCase) -> datetime:
    """When the clock may end the drain next."""
    return case.fence.deadline if case.now < case.fence.deadline else _limit(case)


def _timeout_text(case: FencedCase) -> str:
    text = "the drain was given up at its deadline and the node restored; evicted pods are not brought back"
    plan = _drain(case)
    lines = explain_blockers(plan.blockers) if plan is not None else ()
    return f"{text}: {lines[0]}" if lines else text


def _drain(case: FencedCase) -> DrainPlan | None:
    """How far the drain is, as far as the pods were listed."""
    spec = case.assessment.policy.spec if case.assessment is not None else None
    return None if case.work is None or spec is None else drain_plan(case, case.work, spec.drain)


def _abort(
    case: FencedCase, reason: Reason, message: str, *, defer: bool = False, restore: bool = True
) -> Verdict:
    """Give the node back as it was before the fence; where somebody else works on it, when that is done."""
    fence, node = case.fence, case.node
    if node.foreign and holds_our_cordon(case):
        return give_way(case, message)
    labels, annotations = unmarked(fence)
    if restore and fence.from_mode:
        labels[names.LABEL_MODE] = fence.from_mode
    return case.verdict(Phase.ABORTING, reason, message).then(
        Release(
            node,
            uncordon=restore and may_uncordon(case),
            labels=labels,
            annotations=annotations,
            deferred=next_deferral(case, reason) if defer else None,
        )
    )
