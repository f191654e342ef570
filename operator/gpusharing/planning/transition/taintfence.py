"""A node that is fenced by a DeviceTaintRule, on which pods without a GPU may still start.

The rule holds for one scheduler that was tested, and only for claims that it allocates. So a node gets the cordon
instead if the rule cannot keep every pod off, before the drain if that is known and otherwise in the middle of it
(docs/adr/0079-a-device-taint-rule-for-a-cordon.md).
"""

from dataclasses import replace
from datetime import timedelta

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.snapshot.actions import UpdateFence
from gpusharing.planning.snapshot.draviews import RULE_PREFIX
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason


def may_taint(case: NodeCase) -> bool:
    """Whether a DeviceTaintRule may fence the node for a change that drains it. Pods that were not listed do not count."""
    pods = case.work.pods if case.work is not None else ()
    evaded = any(pod.evades_rules and pod.dra != "none" for pod in pods)
    return case.stack.by_dra and case.stack.dra.taints.works and not evaded and not _needs_cordon(case)


def cordon_instead(case: NodeCase, phase: Phase, why: str) -> Verdict:
    """Cordon the node in one PATCH and record that no DeviceTaintRule fences it. Pods and readings from before the cordon prove nothing; `why` is a clause."""
    # A person may have cordoned the node in the meantime, and that cordon is not ours to lift.
    prior = case.node.unschedulable
    fence = replace(case.fence, tainted=False, since=case.now, prior_unschedulable=prior)
    cordon = UpdateFence(case.node, fence, cordon=True)
    message = f"{why}, so the operator cordons the node instead"
    return case.verdict(phase, Reason.DEVICE_TAINT_FAILED, message, cordon, wants_pods=True)


def restore_rule(case: NodeCase, phase: Phase) -> Verdict | None:
    """Cordon a node whose DeviceTaintRule does not keep all GPU pods off, or wait for a rule that is missing; None if it holds or is not used."""
    if not case.fence.tainted:
        return None
    rule = f"DeviceTaintRule {RULE_PREFIX}{case.node.name}"
    if why := _needs_cordon(case):
        return cordon_instead(case, phase, why)
    if case.node.rule_since is None and (error := case.stack.dra.rule_error):
        return cordon_instead(case, phase, f"{rule} is not in place ({error})")
    blockers = case.drain.blockers if case.drain is not None else ()
    if pods := [ref for one in blockers if one.reason is Reason.TOLERATES_CORDON for ref in one.pods]:
        return cordon_instead(case, phase, f"{rule} does not keep {some(pods)} off the node")
    if case.node.rule_since is not None:
        return None
    wake = case.now + timedelta(seconds=case.settings.poll)
    message = f"{rule} is not in place yet; no pod is evicted before"
    return case.verdict(phase, Reason.SETTLING, message, wake=wake, wants_pods=True)


def _needs_cordon(case: NodeCase) -> str:
    if case.disruption is DisruptionClass.REBOOT:
        return "all pods must leave, because the change reboots the node"
    if case.node.hold_cordon:
        return f"annotation {names.ANNOTATION_HOLD_CORDON} asks for a cordon"
    return f"{case.node.foreign} is working on the node" if case.node.foreign_works else ""
