"""Where the operator's own pod could be scheduled: our cordons must leave it one node.

A cordoned node keeps the pods that it has, but the operator's may be replaced in the middle of a change: deleted,
upgraded or drained by somebody. If our own cordons covered every node then, nobody would be left to lift them
(docs/design/drain.md#place).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.wanted.assess import Assessed

LAST_PLACE = (
    "this is one of the last schedulable nodes, and the operator's own pod needs one; waiting until another node is"
    " Ready and not cordoned"
)


@dataclass(slots=True)
class Places:
    """The nodes that would take our pod, as far as we know: our own tolerations and selectors are not known."""

    open: set[str]
    """Ready, schedulable, and without a taint that keeps pods off."""
    all: int
    """These, and those that may be open again: cordoned or not Ready."""

    @staticmethod
    def of(nodes: Iterable[NodeView]) -> "Places":
        """From the present state of the nodes."""
        able = [node for node in nodes if _is_able(node)]
        return Places({node.name for node in able if is_open(node)}, len(able))

    def spare(self, candidates: Iterable[NodeCase]) -> int | None:
        """How many of these nodes may be cordoned so that one open node is left.

        None: any number, because none of them would close a place, or because no other node may ever open again, so
        waiting would not help.
        """
        if self.all <= 1 or not any(case.node.name in self.open and _cordons(case) for case in candidates):
            return None
        return len(self.open) - 1

    def close(self, names: Iterable[str]) -> None:
        """These nodes begin in this pass."""
        self.open.difference_update(names)


def becomes_place(node: NodeView) -> bool:
    """Whether it is no place now and becomes one with the end of our change. It does not where it was cordoned
    before."""
    fence = node.fence
    return fence is not None and not fence.prior_unschedulable and _is_able(node) and not is_open(node)


def is_open(node: NodeView) -> bool:
    """Whether the node is Ready and not cordoned; other taints are not considered."""
    return node.ready and not node.unschedulable


def _is_able(node: NodeView) -> bool:
    return not node.barred and not node.deleting


def _cordons(case: NodeCase) -> bool:
    return isinstance(case.assessment, Assessed) and case.assessment.disruption.cordons
