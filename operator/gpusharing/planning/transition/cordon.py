"""Whether the cordon of a fenced node is ours and may be lifted, before the point of no return and after it.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return.
"""

from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import FencedCase


def holds_our_cordon(case: FencedCase) -> bool:
    """Whether the node is cordoned and, as far as we can tell, only by us: our change cordons, the node was not
    cordoned before, and the fence was written for this same Node object."""
    node, fence = case.node, case.fence
    ours = fence.cordons and not fence.prior_unschedulable
    return ours and node.unschedulable and fence.node_uid == node.uid


def may_uncordon(case: FencedCase) -> bool:
    """Whether the release may lift the cordon (docs/design/drain.md#rule-5). The cordon must be ours alone, nobody may
    have asked to keep it, and nobody else may be working on the node. False also while the Node object is being
    deleted. Others that are merely waiting their turn do not count; they cordon the node themselves when they
    begin."""
    node = case.node
    return holds_our_cordon(case) and not node.hold_cordon and not node.foreign_works and not node.deleting


def tell_foreign(node: NodeView) -> str:
    """Return a clause that says who else maintains the node, and whether they are working on it, are still waiting for
    it, or may have stopped halfway. `node.foreign` must not be empty."""
    if node.foreign_queued:
        return f"{node.foreign} is waiting for {node.name}"
    return f"{node.foreign} {'has not finished with' if node.foreign_waits else 'is working on'} {node.name}"
