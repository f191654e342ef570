"""Marks on a fenced Node that keep driver upgrades, autoscalers and repair controllers away
(docs/design/drain.md#c6).

Only marks that we set are removed again; the fence lists them.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return.
"""

from collections.abc import Iterable

from gpusharing.api import names
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import NodeView

Marks = dict[str, str | None]


def marks_for(node: NodeView, more: Iterable[str] = ()) -> tuple[Marks, Marks]:
    """Return the labels and the annotations that the fence sets to keep other controllers away, with their values:
    those whose keys the node does not have yet. The annotations all have the value `true`. `more` has further labels
    for this cluster, as `key=value`, or as `key` alone for an empty value; a label whose key is in NEIGHBOUR_LABELS has
    no effect."""
    known = {
        key: value for key, _, value in (entry.partition("=") for entry in more)
    } | names.NEIGHBOUR_LABELS
    labels: Marks = {name: text for name, text in known.items() if name not in node.labels}
    missing = (name for name in names.NEIGHBOUR_ANNOTATIONS if name not in node.neighbour_marks)
    return labels, dict.fromkeys(missing, "true")


def routing_before(fence: Fence, node: NodeView) -> Marks:
    """Return the routing label that the release sets, with the value recorded in the fence. It is the value from
    before the change or, for a yielded node that was proven, the value of the proven layout. Empty if no value is
    recorded, if the fence belongs to another Node, or if the fence stage is `actuating`."""
    kept = fence.from_mode and fence.node_uid == node.uid and fence.stage != "actuating"
    return {names.LABEL_MODE: fence.from_mode} if kept else {}


def tell_foreign(node: NodeView) -> str:
    """Return a clause that says who else maintains the node, and whether they are working on it, are still waiting for
    it, or may have stopped halfway. `node.foreign` must not be empty."""
    if node.foreign_queued:
        return f"{node.foreign} is waiting for {node.name}"
    return f"{node.foreign} {'has not finished with' if node.foreign_waits else 'is working on'} {node.name}"


_MAINTAINED = ("medik8s NodeMaintenance", "medik8s node maintenance")
"""The prefixes of `NodeView.foreign` for nodes that medik8s's maintenance operator works on (kube/maintenance.py,
kube/foreign.py). medik8s's remediation never removes the label, so our label would stay for good if we left its
removal to the remediation."""


def unfence_command(fence: Fence, node: NodeView) -> str:
    """Return the kubectl commands with which a person removes the fence, and everything of ours that only it remembers:
    the labels and annotations that `unmarked` names, and our cordon unless somebody else needs it."""
    labels, annotations = ([f"{key}-" for key in marks] for marks in unmarked(fence, node))
    commands = [" ".join(["kubectl annotate node", node.name, f"{names.ANNOTATION_FENCE}-", *annotations])]
    if labels:
        commands.insert(0, " ".join(["kubectl label node", node.name, *labels]))
    ours = node.unschedulable and fence.cordons and not fence.prior_unschedulable
    if ours and not node.hold_cordon and not node.foreign_works:
        commands.append(f"kubectl uncordon {node.name}")
    return " && ".join(commands)


def unmarked(fence: Fence, node: NodeView) -> tuple[Marks, Marks]:
    """Return the labels and the annotations that a release removes, with None as their values: those that the fence
    added.

    medik8s marks a node that it maintains with the same label that we set, and removes the label at the end
    (node-maintenance-operator, addExcludeRemediationLabel). While it works on the node, the label belongs to medik8s
    and is not removed.
    """
    annotations: Marks = {name: None for name in fence.added if name in names.NEIGHBOUR_ANNOTATIONS}
    theirs = {names.LABEL_NO_REMEDIATION} if node.foreign.startswith(_MAINTAINED) else set()
    return {name: None for name in fence.added if name not in annotations and name not in theirs}, annotations
