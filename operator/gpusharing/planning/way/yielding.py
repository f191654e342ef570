"""A node that somebody else began to maintain before our point of no return: we stand aside, and remember our cordon.

    fenced ── somebody begins ──► yielded ── the marker goes, or only waits ──► given back, our own cordon lifted

The fence stays, or our cordon would look like somebody else's for ever. The PATCH that writes the stage removes our
marks for the neighbours: NVIDIA's driver upgrade skips a node that has them, and we would wait for it for ever. Nothing
is evicted meanwhile. The node is away from its pool, and holds no slot of the operator-wide cap.
"""

from dataclasses import replace

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import Release, UpdateFence
from gpusharing.planning.way.attempts import next_deferral
from gpusharing.planning.way.cordon import holds_our_cordon, may_uncordon, tell_foreign
from gpusharing.planning.way.marks import unmarked
from gpusharing.planning.way.verdict import FencedCase, Verdict
from gpusharing.planning.words.reasons import Reason


def give_way(case: FencedCase, message: str) -> Verdict:
    """The change is given up; the cordon stays as long as somebody else works on the node."""
    labels, annotations = unmarked(case.fence, case.node)
    fence = replace(case.fence, stage="yielded", stage_since=case.now, added=())
    verdict = case.verdict(Phase.ABORTING, Reason.FOREIGN_MAINTENANCE, message)
    return verdict.then(UpdateFence(case.node, fence, labels=labels, annotations=annotations))


def yielded(case: FencedCase) -> Verdict:
    """The next step of a node whose fence stage is `yielded`."""
    if case.node.foreign_works and holds_our_cordon(case):
        message = f"{tell_foreign(case.node)}; our cordon is lifted when that is done"
        waiting = case.verdict(Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE, message)
        return replace(waiting, deadline=None)
    message = f"nobody else works on {case.node.name} any more; it is given back as it was"
    if case.node.foreign_works:
        message = f"our cordon on {case.node.name} is gone; what happens next is up to {case.node.foreign}"
    verdict = case.verdict(Phase.UNCORDONING, Reason.FOREIGN_MAINTENANCE, message)
    return verdict.then(
        Release(
            case.node,
            uncordon=may_uncordon(case),
            labels={names.LABEL_MODE: case.fence.from_mode} if case.fence.from_mode else {},
            deferred=next_deferral(case, Reason.FOREIGN_MAINTENANCE),
        )
    )
