"""The hash of a plan, by which a person approves it: what each node will become, and how much that disturbs.

It covers the plan as it was when the change of each node began: pods and progress are not in it, and an approval lasts
until the plan is carried out. A node that joins or leaves, or that cannot be read before its change begins, and every
edit of the policy, makes another plan. So does a node that has drifted since, if correcting it disturbs more than what
was approved; lesser drift is covered.

Every edit: a spec that comes back after another one has the same words, and nobody looked at its plan again.
"""

from collections.abc import Sequence
from hashlib import sha256

from gpusharing.api.names import DisruptionClass
from gpusharing.planning.snapshot.records import Fence, SpecVersion
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.attempts import owed_by, owed_for
from gpusharing.planning.transition.members import Member
from gpusharing.planning.wanted.assess import Assessed

LENGTH = 7
"""Characters of a hash: enough to tell two plans apart, and short enough to be read out."""


def plan_hash(policy: PolicyView, members: Sequence[Member]) -> str:
    """The hash of what a policy is about to do, or is doing."""
    version = policy.version
    rows = sorted(row for member in members if (row := _row(version, member)) is not None)
    text = f"{policy.uid}/{policy.generation}/{rows}"
    return sha256(text.encode()).hexdigest()[:LENGTH]


def _row(version: SpecVersion, member: Member) -> tuple[str, str, str] | None:
    """What the plan says about one node; None: nothing, the node is as wanted."""
    found = member.assessment
    if not isinstance(found, Assessed):
        return _row_on_record(version, member.node)
    if _ends_anyway(version, member.node.fence, found):
        return None
    planned = _planned(version, member, found)
    return None if planned is None else (member.node.uid, owed_for(found.target), str(planned))


def _row_on_record(version: SpecVersion, node: NodeView) -> tuple[str, str, str] | None:
    """The same of a node that cannot be compared now: what it was approved for, if that began or was proven; None: it
    did not. So a node whose GPU or agent is gone takes no approval with it."""
    fence, verified = node.fence, node.verified
    if fence is not None and fence.version == version:
        return (node.uid, fence.approved, str(fence.planned)) if fence.approved else None
    if verified is None or verified.rolled_back or verified.version != version:
        return None
    return node.uid, owed_by(verified), str(verified.planned)


def _planned(version: SpecVersion, member: Member, found: Assessed) -> DisruptionClass | None:
    """Return the disruption class that the plan shows for a node: that of its fence for this generation, else that of
    its proof for this generation. If the node is not as wanted and has no such fence, the present class replaces a
    missing record, or a milder one. None if the node is as wanted and this generation did not change it."""
    fence, verified = member.node.fence, member.node.verified
    if fence is not None and fence.version == version:
        return fence.planned
    shown = verified.planned if verified is not None and verified.version == version else None
    if found.mismatch is None:
        return shown
    if shown is None or (fence is None and found.disruption.severity > shown.severity):
        return found.disruption
    return shown


def _ends_anyway(version: SpecVersion, fence: Fence | None, found: Assessed) -> bool:
    """Whether the node is past the point of no return for an earlier generation, on its way to what the policy still
    wants. Nothing of it needs an approval, and its proof says nothing of this generation: in the plan it would only
    make another one when it is proven."""
    if fence is None or fence.stage != "actuating" or fence.version == version:
        return False
    return fence.version.uid == version.uid and fence.approved == owed_for(found.target)
