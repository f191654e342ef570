"""A node that somebody else begins to maintain during our change: we yield the node to them and remember our cordon.

    fenced ──── somebody begins ────────────► yielded ── the marker goes, or only waits ──► released, our own cordon
    actuating ── proven while somebody works ──┘                                             lifted

Before the point of no return the change is given up at once; after it the PATCH that records the proof writes the
stage `yielded`. The fence stays, because otherwise our cordon would look like somebody else's forever. The PATCH that
writes the stage removes our marks that keep others away: NVIDIA's driver upgrade skips a node that has them, and we
would wait for the upgrade forever. No pod is evicted in the meantime. The node counts as unavailable in its pool, and
holds no slot of the operator-wide cap.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#slot, docs/design/glossary.md#point-of-no-return.
"""

from dataclasses import replace
from datetime import datetime

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import Release, UpdateFence
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.transition.attempts import next_deferral
from gpusharing.planning.transition.marks import routing_before, tell_foreign, unmarked
from gpusharing.planning.transition.verdict import FencedCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason


def holds_our_cordon(case: FencedCase) -> bool:
    """Whether the node is cordoned and, as far as we can tell, only by us: our change cordons, the node was not
    cordoned before, and the fence was written for this same Node object."""
    node, fence = case.node, case.fence
    ours = fence.cordons and not fence.prior_unschedulable
    return ours and node.unschedulable and fence.node_uid == node.uid


def may_uncordon(case: FencedCase) -> bool:
    """Whether the release may lift the cordon (docs/design/drain.md#rule-5). The cordon must be ours alone, nobody may
    have asked to keep it, and nobody else may be working on the node or have stopped halfway. False also while the Node
    object is being deleted. Others that are merely waiting their turn do not count; they cordon the node themselves
    when they begin."""
    node = case.node
    return holds_our_cordon(case) and not node.hold_cordon and not node.foreign_works and not node.deleting


def give_way(case: FencedCase, message: str) -> Verdict:
    """Return the Aborting verdict, with the reason ForeignMaintenance, that gives the change up and yields the node.
    Its one PATCH sets the fence's stage to `yielded` and removes the labels and annotations that keep other controllers
    away. The fence and our cordon stay as long as somebody else works on the node. The routing label is not restored
    yet; `yielded` does that."""
    labels, annotations = unmarked(case.fence, case.node)
    verdict = case.verdict(Phase.ABORTING, Reason.FOREIGN_MAINTENANCE, message)
    return verdict.then(UpdateFence(case.node, aside_fence(case), labels=labels, annotations=annotations))


def keeps_cordon(case: FencedCase) -> bool:
    """Whether the node keeps our cordon when its change ends, because somebody else works on it or has stopped halfway
    (`NodeView.foreign_works`). False if the cordon is not ours alone."""
    return case.node.foreign_works and holds_our_cordon(case)


def aside_fence(case: FencedCase, proven: datetime | None = None, from_mode: str | None = None) -> Fence:
    """Return the fence with the stage `yielded`, which remembers our cordon while somebody else works on the node. Its
    `added` is empty, because the PATCH that writes it removes the labels and annotations that are listed there. For a
    node that was just `proven`, `from_mode` is the value that the routing label gets when the node is released. If
    `from_mode` is None, `proven` is ignored and both fields stay as they were."""
    fence = replace(case.fence, stage="yielded", stage_since=case.now, added=())
    return fence if from_mode is None else replace(fence, proven=proven, from_mode=from_mode)


def tell_wait(case: FencedCase) -> str:
    """Return a clause that says who else works on the node, and that our cordon is lifted when they are done."""
    return f"{tell_foreign(case.node)}; the operator uncordons the node when that is done"


def yielded(case: FencedCase) -> Verdict:
    """Return the verdict (ForeignMaintenance) with the next step of a node whose fence stage is `yielded`. The verdict
    is Blocked, without a deadline, while somebody else works on the node and our cordon is in place. Otherwise it is
    Uncordoning: it releases the node with the routing label that the fence records, and lifts the cordon if
    `may_uncordon`. If the change was given up, the release records a back-off."""
    if keeps_cordon(case):
        waiting = case.verdict(Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE, tell_wait(case))
        return replace(waiting, deadline=None)
    done = case.fence.proven is not None
    fate = "returned to service" if done else "restored"
    message = f"nobody else is working on {case.node.name} anymore; it is being {fate}"
    if case.node.foreign_works:
        message = f"someone uncordoned {case.node.name}; {case.node.foreign} decides what happens next"
    verdict = case.verdict(Phase.UNCORDONING, Reason.FOREIGN_MAINTENANCE, message)
    return verdict.then(
        Release(
            case.node,
            uncordon=may_uncordon(case),
            labels=routing_before(case.fence, case.node),
            deferred=None if done else next_deferral(case, Reason.FOREIGN_MAINTENANCE),
        )
    )
