"""Whose is the cordon of a fenced node, and may we lift it? Asked before the point of no return and after it."""

from gpusharing.planning.way.verdict import FencedCase


def holds_our_cordon(case: FencedCase) -> bool:
    """The node is cordoned, and as far as we can tell only by us."""
    node, fence = case.node, case.fence
    ours = fence.disruption.cordons and not fence.prior_unschedulable
    return ours and node.unschedulable and fence.node_uid == node.uid


def may_uncordon(case: FencedCase) -> bool:
    """Only our own cordon, only while nobody else wants the node cordoned (docs/design/drain.md#rule-5)."""
    node = case.node
    return holds_our_cordon(case) and not node.hold_cordon and not node.foreign and not node.deleting
