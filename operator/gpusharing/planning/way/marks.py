"""Being a good neighbour: marks on a fenced Node that keep driver upgrades and autoscalers away
(docs/design/drain.md#c6).

Only marks that we set are taken away again; the fence lists them.
"""

from gpusharing.api import names
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import NodeView

Marks = dict[str, str | None]


def marks_for(node: NodeView) -> tuple[Marks, Marks]:
    """(labels, annotations) that the fence sets: those that the node does not have already."""
    labels: Marks = {} if names.LABEL_UPGRADE_SKIP in node.labels else {names.LABEL_UPGRADE_SKIP: "true"}
    missing = (name for name in names.NEIGHBOUR_ANNOTATIONS if name not in node.neighbour_marks)
    return labels, dict.fromkeys(missing, "true")


def unmarked(fence: Fence) -> tuple[Marks, Marks]:
    """(labels, annotations) that a release takes away."""
    annotations: Marks = {name: None for name in fence.added if name in names.NEIGHBOUR_ANNOTATIONS}
    return {name: None for name in fence.added if name not in annotations}, annotations
