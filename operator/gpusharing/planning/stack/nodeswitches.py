"""Why NVIDIA's programs do not run on one node: its labels keep them off, or its host lacks what ClusterPolicy leaves
to the host."""

from gpusharing.api import names
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.commands import kubectl_patch
from gpusharing.planning.stack.requirements import (
    DEPLOY_NEEDED,
    PRE_INSTALLED,
    SANDBOX_DEFAULT,
    find_absent,
    is_switched_off,
    tell_off,
    workload_of,
)
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import cut


def find_other_workload(node: NodeView, policy: ClusterPolicyView | None) -> str:
    """Say that the GPUs of a node are not for containers but for virtual machines, by its label or by ClusterPolicy's
    default, and how to change that; empty if they are for containers."""
    workload = workload_of(node.labels, policy)
    if workload == names.WORKLOAD_CONTAINER:
        return ""
    label, end = names.LABEL_WORKLOAD_CONFIG, "-"
    said = f"{label} is {workload}"
    if not node.labels.get(label):
        said, end = f"ClusterPolicy {SANDBOX_DEFAULT} is {workload}", f"={names.WORKLOAD_CONTAINER}"
    return (
        f"{said}: the GPUs of {node.name} are not for containers; to change that: kubectl label node {node.name}"
        f" {label}{end}"
    )


def find_disabled(node: NodeView) -> str:
    """Say which label of a node keeps a program of NVIDIA's off it that every mode needs, and how to remove the label;
    empty if none does."""
    if not node.held_off:
        return ""
    for operand, label in DEPLOY_NEEDED.items():
        value = node.held_off.get(label, "")
        if is_switched_off(operand, value):
            return (
                f"{label} is {value}, so the components of the GPU Operator that would serve and report the change do"
                f" not run on {node.name}; to change that: kubectl label node {node.name} {label}-"
            )
    return ""


def find_bare_host(node: NodeView, words: str, policy: ClusterPolicyView | None) -> Finding | None:
    """Say which program the host lacks that ClusterPolicy keeps the GPU Operator from installing. None if it lacks
    none, if that is unknown, or if the node serves GPUs. `words`: an error of the node's agent, or what Kubernetes says
    about the agent's pod."""
    row = find_absent(words, policy)
    if row is None or policy is None or node.resources:
        return None
    if node.labels.get(names.LABEL_DEPLOY_PREFIX + row.label) == PRE_INSTALLED:
        return None
    told = f"{node.name} serves no GPU ({cut(words, 200)}), and its host has to bring {row.operand}"
    how = (
        f"install it there, or, if no host is to bring its own, run: {kubectl_patch(policy.name, row.patch)}"
    )
    return Finding(row.disabled, f"{told}: {tell_off(row, policy)}; {how}")
