"""A node that somebody else begins to maintain during our change: we yield the node to them and remember our cordon.

    fenced ──── somebody begins ────────────► yielded ── the marker goes, or only waits ──► released, our own cordon
    actuating ── proven while somebody works ──┘                                             lifted

The fence stays, because otherwise our cordon would look like somebody else's forever. Our marks are removed at once:
NVIDIA's driver upgrade skips a node that has them, and we would wait for the upgrade forever.
"""

from dataclasses import replace
from datetime import datetime

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import Release, UpdateFence
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.transition.attempts import next_deferral
from gpusharing.planning.transition.marks import routing_before, tell_foreign, unmarked
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason


def holds_our_cordon(case: NodeCase) -> bool:
    node, fence = case.node, case.fence
    ours = fence.cordons and not fence.prior_unschedulable
    return ours and node.unschedulable and fence.node_uid == node.uid


def may_uncordon(case: NodeCase) -> bool:
    """Whether the release may lift the cordon (docs/design/drain.md#rule-5). Others that only wait cordon the node themselves when they begin."""
    node = case.node
    return holds_our_cordon(case) and not node.hold_cordon and not node.foreign_works and not node.deleting


def give_way(case: NodeCase, message: str) -> Verdict:
    labels, annotations = unmarked(case.fence, case.node)
    update = UpdateFence(case.node, aside_fence(case), labels=labels, annotations=annotations)
    return case.verdict(Phase.ABORTING, Reason.FOREIGN_MAINTENANCE, message, update)


def keeps_cordon(case: NodeCase) -> bool:
    """Whether our cordon stays when the change ends, because somebody else works on the node or has stopped halfway."""
    return case.node.foreign_works and holds_our_cordon(case)


def aside_fence(case: NodeCase, proven: datetime | None = None, from_mode: str | None = None) -> Fence:
    """Return the fence of a yielded node. `from_mode` is the routing label that a node which was just `proven` gets at its release."""
    fence = replace(case.fence, stage="yielded", stage_since=case.now, added=())
    return fence if from_mode is None else replace(fence, proven=proven, from_mode=from_mode)


def tell_wait(case: NodeCase) -> str:
    return f"{tell_foreign(case.node)}; the operator uncordons the node when that is done"


def yielded(case: NodeCase) -> Verdict:
    if keeps_cordon(case):
        waiting = case.verdict(Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE, tell_wait(case))
        return replace(waiting, deadline=None)
    done = case.fence.proven is not None
    fate = "returned to service" if done else "restored"
    message = f"nobody else is working on {case.node.name} anymore; it is being {fate}"
    if case.node.foreign_works:
        message = f"someone uncordoned {case.node.name}; {case.node.foreign} decides what happens next"
    deferred = None if done else next_deferral(case, Reason.FOREIGN_MAINTENANCE)
    labels = routing_before(case.fence, case.node)
    release = Release(case.node, may_uncordon(case), labels, deferred=deferred)
    return case.verdict(Phase.UNCORDONING, Reason.FOREIGN_MAINTENANCE, message, release)
