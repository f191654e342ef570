"""A node that joins behind the start-up taint `gpusharing.dev/unproven` (docs/design/transition.md#gate).

The node gets its layout in the ordinary way. The taint is removed with the proof: when the node is released after its
change, or when it is adopted because it already matches its target. Until then every verdict says that the taint keeps
workloads off.
"""

from gpusharing.api import names
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView
from gpusharing.planning.stack.startgate import (
    find_untolerated,
    find_untolerated_agents,
    find_untolerated_driver,
    find_untolerated_finder,
)
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, cut
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import has_gpu


def is_newcomer(node: NodeView, gpunode: GPUNodeView | None) -> bool:
    """Whether no workload depends on the node yet, so that its change takes no slot (docs/adr/0034-the-start-up-gate.md). The agent does not count pods that hold claims."""
    if node.fence is not None:
        return node.fence.newcomer
    if node.gate is None or node.verified is not None or node.devices is not None:
        return False
    observed = gpunode.observed if gpunode is not None else None
    return observed is None or observed.pods == 0


def find_closed(case: NodeCase) -> Finding | None:
    """Return which component cannot run behind the taint, so that the node can never be proven. Raises ValueError if recorded tolerations are not valid JSON."""
    if case.node.gate is None:
        return None
    policy, namespace = case.stack.cluster_policy, case.settings.gpu_operator_namespace
    operands = None if policy is None else find_untolerated(policy, namespace)
    driver = find_untolerated_driver(case.stack.dra.driver, namespace) if case.stack.by_dra else None
    missing = find_untolerated_agents(case.stack) or operands or driver or _find_finder(case)
    if missing is None:
        return None
    (message, command), pods = missing, "NVIDIA's pods" if missing is operands else "its pods"
    text = f"{message}, so {pods} cannot run on {case.node.name} and it cannot be proven"
    tail = f". To fix it, run (this restarts those pods on every node): {command}"
    return Finding(Reason.TAINT_NOT_TOLERATED, cut(text, MAX_TEXT - len(tail)) + tail)


def _find_finder(case: NodeCase) -> tuple[str, str] | None:
    policy, namespace = case.stack.cluster_policy, case.settings.gpu_operator_namespace
    plain = policy is not None and policy.plain is not None
    return find_untolerated_finder(case.stack.finders, namespace, plain=plain)


def find_unseen(case: NodeCase) -> str:
    if case.node.gate is None or has_gpu(case.node):
        return ""
    if (missing := _find_finder(case)) is not None:
        message, command = missing
        return f". If it has one, it is not detected, because {message}; run: {command}"
    if case.stack.finders:
        return ""
    namespace = case.settings.gpu_operator_namespace
    return (
        f". If it has one, the worker of Node Feature Discovery must tolerate {names.TAINT_UNPROVEN} to detect it. The"
        f" operator cannot check that: its DaemonSet is not in namespace {namespace}, the only one that the operator"
        " reads"
    )
