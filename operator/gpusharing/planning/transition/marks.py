"""Marks on a fenced Node that keep driver upgrades, autoscalers and repair controllers away (docs/design/drain.md#c6).

Only marks that we set are removed again; the fence lists them.
"""

from collections.abc import Iterable

from gpusharing.api import names
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import NodeView

Marks = dict[str, str | None]


def marks_for(node: NodeView, more: Iterable[str] = ()) -> tuple[Marks, Marks]:
    """Return the labels and annotations that the fence adds. `more` has further labels of this cluster, as `key=value` or `key`."""
    parts = (entry.partition("=") for entry in more)
    known = {key: value for key, _, value in parts} | names.NEIGHBOUR_LABELS
    labels: Marks = {name: text for name, text in known.items() if name not in node.labels}
    missing = (name for name in names.NEIGHBOUR_ANNOTATIONS if name not in node.neighbour_marks)
    return labels, dict.fromkeys(missing, "true")


def routing_before(fence: Fence, node: NodeView) -> Marks:
    """Return the routing label that the release sets: the one from before the change, or of the proven layout on a yielded node."""
    kept = fence.from_mode and fence.node_uid == node.uid and fence.stage != "actuating"
    return {names.LABEL_MODE: fence.from_mode} if kept else {}


def tell_foreign(node: NodeView) -> str:
    """Return a clause on who else maintains the node and whether they work, wait, or may have stopped halfway; `node.foreign` must not be empty."""
    if node.foreign_queued:
        return f"{node.foreign} is waiting for {node.name}"
    return f"{node.foreign} {'has not finished with' if node.foreign_waits else 'is working on'} {node.name}"


def unfence_command(fence: Fence, node: NodeView) -> str:
    labels, annotations = ([f"{key}-" for key in marks] for marks in unmarked(fence, node))
    commands = [" ".join(["kubectl annotate node", node.name, f"{names.ANNOTATION_FENCE}-", *annotations])]
    if labels:
        commands.insert(0, " ".join(["kubectl label node", node.name, *labels]))
    ours = node.unschedulable and fence.cordons and not fence.prior_unschedulable
    if ours and not node.hold_cordon and not node.foreign_works:
        commands.append(f"kubectl uncordon {node.name}")
    return " && ".join(commands)


def unmarked(fence: Fence, node: NodeView) -> tuple[Marks, Marks]:
    """Return the labels and annotations that a release removes, with None as their values: those that the fence added."""
    annotations: Marks = {name: None for name in fence.added if name in names.NEIGHBOUR_ANNOTATIONS}
    # medik8s marks a node that it maintains with the label that we set too, and removes it at the end
    # (node-maintenance-operator, addExcludeRemediationLabel). Its remediation never removes the label.
    maintained = node.foreign.startswith(("medik8s NodeMaintenance", "medik8s node maintenance"))
    theirs = {names.LABEL_NO_REMEDIATION} if maintained else set()
    return {name: None for name in fence.added if name not in annotations and name not in theirs}, annotations
