"""Which labels, taints and marks are written around a change?

Marks keep other controllers away from a node. A cordon keeps new pods off, or a DeviceTaintRule, behind which pods
without a GPU may still start.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.snapshot.actions import Release, UpdateFence
from gpusharing.planning.snapshot.nvidia import RULE_PREFIX
from gpusharing.planning.snapshot.records import Deferred, Fence
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.effects import effects_of
from gpusharing.planning.stack.requirements import (
    find_untolerated,
    find_untolerated_agents,
    find_untolerated_finders,
    restart_of,
)
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, cut, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import has_gpu

Marks = dict[str, str | None]


def marks_for(node: NodeView, more: Iterable[str] = ()) -> tuple[Marks, Marks]:
    """Return the labels and annotations that keep other controllers away (docs/design/drain.md#c6).

    Only marks that we set are removed again; the fence lists them. `more` has further labels, as `key=value` or `key`.
    """
    parts = (entry.partition("=") for entry in more)
    known = {key: value for key, _, value in parts} | names.NEIGHBOR_LABELS
    labels: Marks = {name: text for name, text in known.items() if name not in node.labels}
    missing = (name for name in names.NEIGHBOR_ANNOTATIONS if name not in node.neighbor_marks)
    return labels, dict.fromkeys(missing, "true")


def routing_before(fence: Fence, node: NodeView) -> Marks:
    """Return the routing label that the release sets: from before the change, or of a yielded node's proven layout."""
    kept = fence.from_mode and fence.node_uid == node.uid and fence.stage != "actuating"
    return {names.LABEL_MODE: fence.from_mode} if kept else {}


def tell_foreign(node: NodeView) -> str:
    """Return a clause on who else maintains the node; `node.foreign` must not be empty."""
    if node.upgrade_failed:
        return f"NVIDIA's driver upgrade failed on {node.name}"
    if node.foreign_queued:
        return f"{node.foreign} is waiting for {node.name}"
    return f"{node.foreign} {'has not finished with' if node.foreign_waits else 'is working on'} {node.name}"


def unfence_command(fence: Fence, node: NodeView) -> Command:
    labels, annotations = ([f"{key}-" for key in marks] for marks in unmarked(fence, node))
    # These marks only keep others away while the node changes.
    first = [Command.of("kubectl label node", node.name, *labels, effects=())] if labels else []
    unfence = Command.of("kubectl annotate node", node.name, f"{names.ANNOTATION_FENCE}-", *annotations, effects=())
    ours = node.unschedulable and fence.cordons and not fence.prior_unschedulable
    if ours and not node.hold_cordon and not node.foreign_works:
        return Command.of("kubectl uncordon", node.name).after(*first, unfence)
    return unfence.after(*first)


def unmarked(fence: Fence, node: NodeView) -> tuple[Marks, Marks]:
    """Return the labels and annotations that the fence added and a release removes, with None as their values."""
    annotations: Marks = {name: None for name in fence.added if name in names.NEIGHBOR_ANNOTATIONS}
    # medik8s marks a node that it maintains with the label that we set too, and removes it at the end
    # (node-maintenance-operator, addExcludeRemediationLabel). Its remediation never removes the label.
    maintained = node.foreign.startswith(("medik8s NodeMaintenance", "medik8s node maintenance"))
    theirs = {names.LABEL_NO_REMEDIATION} if maintained else set()
    return {name: None for name in fence.added if name not in annotations and name not in theirs}, annotations


def restore(case: NodeCase, *, uncordon: bool = False, deferred: Deferred | None = None) -> Release:
    """Return the release of a node as it was before the change."""
    labels, annotations = unmarked(case.fence, case.node)
    labels |= routing_before(case.fence, case.node)
    return Release(case.node, uncordon, labels, annotations=annotations, deferred=deferred)


def may_taint(case: NodeCase) -> bool:
    """Whether a DeviceTaintRule may fence the node for a change that drains it, as far as its pods are known."""
    pods = case.work.pods if case.work is not None else ()
    evaded = any(pod.evades_rules and pod.dra != "none" for pod in pods)
    return case.stack.by_dra and case.stack.dra.taints_work and not evaded and not _needs_cordon(case)


def cordon_instead(case: NodeCase, phase: Phase, why: str) -> Verdict:
    """Cordon the node in one PATCH and record that no DeviceTaintRule fences it; `why` is a clause.

    A rule holds for one scheduler that was tested, and only for claims that it allocates
    (docs/adr/0079-a-device-taint-rule-for-a-cordon.md). Pods and readings from before the cordon prove nothing.
    """
    # A person may have cordoned the node in the meantime, and that cordon is not ours to lift.
    prior = case.node.unschedulable
    fence = replace(case.fence, tainted=False, since=case.now, prior_unschedulable=prior)
    cordon = UpdateFence(case.node, fence, cordon=True)
    message = f"{why}, so the operator cordons the node instead"
    return case.verdict(phase, Reason.DEVICE_TAINT_FAILED, message, cordon, wants_pods=True)


def restore_rule(case: NodeCase, phase: Phase) -> Verdict | None:
    """Cordon a node whose DeviceTaintRule does not keep all GPU pods off, or wait for a missing rule."""
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
    return tell_foreign(case.node) if case.node.foreign_works else ""


def find_closed(case: NodeCase) -> Finding | None:
    """Return which component cannot run behind the taint, so that the node can never be proven.

    Raises ValueError if recorded tolerations are not valid JSON.
    """
    if case.node.gate is None:
        return None
    policy, namespace = case.stack.cluster_policy, case.settings.gpu_operator_namespace
    effects = effects_of(restart_of(policy), case.stack) if policy is not None else ()
    others = find_untolerated(case.stack, namespace, effects)
    if (missing := find_untolerated_agents(case.stack) or next(others, None)) is None:
        return None
    message, command = missing
    pods = "its pods" if message.startswith("DaemonSet ") else "NVIDIA's pods"
    text = f"{message}, so {pods} cannot run on {case.node.name} and it cannot be proven"
    tail = f". To fix it, run (this restarts those pods on every node): {command}" if command else ""
    commands = (command,) if command is not None else ()
    return Finding(Reason.TAINT_NOT_TOLERATED, cut(text, MAX_TEXT - len(tail)) + tail, commands=commands)


def add_unseen(case: NodeCase, found: Finding) -> Finding:
    """Return the finding that a node has no GPU with why one would not be detected behind the start-up taint."""
    if case.node.gate is None or has_gpu(case.node):
        return found
    namespace = case.settings.gpu_operator_namespace
    for message, command in find_untolerated_finders(case.stack, namespace):
        text = f"{found.message}. If it has one, it is not detected, because {message}; run: {command}"
        return replace(found, message=text, commands=(command,) if command is not None else ())
    if case.stack.finders:
        return found
    message = (
        f"{found.message}. If it has one, the worker of Node Feature Discovery must tolerate {names.TAINT_UNPROVEN} to detect it. The"
        f" operator cannot check that: its DaemonSet is not in namespace {namespace}, the only one that the operator"
        " reads"
    )
    return replace(found, message=message)
