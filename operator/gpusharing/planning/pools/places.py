"""Where the operator's own pod could be scheduled: our cordons must leave one node for it.

A cordoned node keeps its pods, but the operator's own pod may be replaced in the middle of a change, because somebody
deletes, upgrades or drains it. If our cordons covered every node then, no operator could run to lift them
(docs/design/drain.md#place).

Terms: docs/design/glossary.md#fence.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import NodeCase

LAST_PLACE = (
    "this is one of the last schedulable nodes, and the operator's own pod needs one; waiting until another node is"
    " Ready and not cordoned"
)
"""The message on a node that has to stay schedulable for our own pod."""


@dataclass(slots=True)
class Places:
    """The nodes on which our own pod could be scheduled. The pod's own tolerations and selectors are not known, and
    are ignored."""

    open: set[str]
    """The names of the nodes that are Ready, schedulable, and without a taint that keeps pods off."""
    all: int
    """How many nodes are open or may open again, such as nodes that are cordoned or not Ready."""

    @staticmethod
    def of(nodes: Iterable[NodeView]) -> "Places":
        """Return the nodes that are open now (`is_open`) and may take pods (`_is_able`), and how many nodes may take
        pods, open or not."""
        able = [node for node in nodes if _is_able(node)]
        return Places({node.name for node in able if is_open(node)}, len(able))

    def spare(self, candidates: Iterable[NodeCase]) -> int | None:
        """Return how many open nodes may be cordoned so that one is left: their number less one, whichever candidates
        there are. None if there is no limit: either no candidate is open and has a change of a class that cordons
        (even if a DeviceTaintRule would fence it), or no second node is open or may ever open, so that waiting would
        not help."""
        closes = any(case.node.name in self.open and case.disruption.cordons for case in candidates)
        return len(self.open) - 1 if closes and self.all > 1 else None


def becomes_place(node: NodeView) -> bool:
    """Whether our fence is on the node and pods cannot be scheduled there now, because it is cordoned or not Ready, but
    can be again when our change ends. False if the node was cordoned before our change, is being deleted, or has a
    NoSchedule or NoExecute taint, tolerated or not and our start-up taint included, other than those of
    node.kubernetes.io/ (`_is_able`)."""
    fence = node.fence
    return fence is not None and not fence.prior_unschedulable and _is_able(node) and not is_open(node)


def is_open(node: NodeView) -> bool:
    """Whether the node is Ready and not cordoned; other taints are not considered."""
    return node.ready and not node.unschedulable


def _is_able(node: NodeView) -> bool:
    """Whether pods could be scheduled on the node if it were Ready and not cordoned (`is_open`): it is not being
    deleted, and has no NoSchedule or NoExecute taint, tolerated or not. Taints of node.kubernetes.io/, such as that of
    a cordon, are ignored."""
    return not node.barred and not node.deleting
