"""A node that is fenced by a DeviceTaintRule, on which pods without a GPU may still start.

The rule holds for one scheduler that was tested, and only for claims that it allocates. So a node gets the cordon
instead if the rule cannot keep every pod off, before the drain if that is known and otherwise in the middle of it
(docs/adr/0079-a-device-taint-rule-for-a-cordon.md).

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#class, docs/design/glossary.md#point-of-no-return.
"""

from dataclasses import replace
from datetime import timedelta

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.snapshot.actions import UpdateFence
from gpusharing.planning.snapshot.draviews import RULE_PREFIX
from gpusharing.planning.transition.verdict import FencedCase, NodeCase, Verdict
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason


def may_taint(case: NodeCase) -> bool:
    """Whether a DeviceTaintRule may fence the node for a change that drains it. NVIDIA's DRA driver must serve the
    GPUs, the scheduler must have been shown to obey such rules, no listed pod with a ResourceClaim may evade them (pods
    that were not listed do not count), and nothing may need a cordon (`_needs_cordon`)."""
    pods = case.work.pods if case.work is not None else ()
    evaded = any(pod.evades_rules and pod.dra != "none" for pod in pods)
    return case.stack.by_dra and case.stack.dra.taints.works and not evaded and not _needs_cordon(case)


def cordon_instead(case: FencedCase, phase: Phase, why: str) -> Verdict:
    """Return the verdict, in this phase and with the reason DeviceTaintFailed, whose one PATCH cordons the node and
    records in the fence that no DeviceTaintRule fences it any more. `why` is a clause for the message. The fence's
    `since` becomes now, so pods and readings from before the cordon prove nothing. The next pass lists the pods. If the
    node is cordoned already, that cordon counts as somebody else's."""
    verdict = case.verdict(
        phase, Reason.DEVICE_TAINT_FAILED, f"{why}, so the operator cordons the node instead"
    )
    # A person may have cordoned the node in the meantime, and that cordon is not ours to lift.
    prior = case.node.unschedulable
    fence = replace(case.fence, tainted=False, since=case.now, prior_unschedulable=prior)
    return replace(verdict, wants_pods=True).then(UpdateFence(case.node, fence, cordon=True))


def restore_rule(case: FencedCase, phase: Phase) -> Verdict | None:
    """Return the verdict of a node whose DeviceTaintRule does not keep all GPU pods off, in this phase. The verdict
    puts a cordon in the place of the rule (`cordon_instead`) or, if the rule is only missing, waits until it is in
    place, with the reason Settling, and wakes after one poll interval. None if the rule keeps the pods off, or if the
    node is fenced without a rule."""
    if not case.fence.tainted:
        return None
    if why := _needs_cordon(case) or _find_failing(case):
        return cordon_instead(case, phase, why)
    if case.node.rule_since is not None:
        return None
    message = f"DeviceTaintRule {RULE_PREFIX}{case.node.name} is not in place yet; no pod is evicted before"
    wake = case.now + timedelta(seconds=case.settings.poll)
    return replace(case.verdict(phase, Reason.SETTLING, message, wake=wake), wants_pods=True)


def _needs_cordon(case: NodeCase) -> str:
    """Return why a rule is not enough for the node, as a clause: its change is a reboot, a person wants the cordon to
    stay, or somebody else works on the node. Empty if it is enough."""
    if case.disruption is DisruptionClass.REBOOT:
        return "all pods must leave, because the change reboots the node"
    if case.node.hold_cordon:
        return f"annotation {names.ANNOTATION_HOLD_CORDON} asks for a cordon"
    return f"{case.node.foreign} is working on the node" if case.node.foreign_works else ""


def _find_failing(case: FencedCase) -> str:
    """Return why the node's DeviceTaintRule does not hold, as a clause: it is not in place because it cannot be read or
    written, or a pod with a GPU has started behind it (a blocker TOLERATES_CORDON of the drain names it). Empty if none
    of this is known; an error is ignored while the rule is in place."""
    rule = f"DeviceTaintRule {RULE_PREFIX}{case.node.name}"
    if case.node.rule_since is None and case.stack.dra.rule_error:
        return f"{rule} is not in place ({case.stack.dra.rule_error})"
    blockers = case.drain.blockers if case.drain is not None else ()
    pods = [ref for one in blockers if one.reason is Reason.TOLERATES_CORDON for ref in one.pods]
    return f"{rule} does not keep {some(pods)} off the node" if pods else ""
