"""The hash with which a person approves a plan. It covers what each node will become, and how much the changes
disturb.

The plan is hashed as it was when the change of each node began. Pods and progress are not part of the hash, so an
approval lasts until the plan is carried out. The hash changes with every edit of the policy, and when a node joins,
leaves, or cannot be read before its change begins. It also changes if a node drifts and correcting the drift disturbs
more than was approved; an approval covers lesser drift.

Even an edit that restores an earlier spec changes the hash, because nobody has reviewed that spec since.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#drift, docs/design/glossary.md#point-of-no-return,
docs/design/glossary.md#class.
"""

from collections.abc import Sequence
from hashlib import sha256

from gpusharing.api.names import DisruptionClass
from gpusharing.planning.snapshot.records import SpecVersion
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.attempts import owed_by, owed_for
from gpusharing.planning.transition.members import Member
from gpusharing.planning.wanted.assess import Assessed

LENGTH = 7
"""How many characters a hash has: enough to tell two plans apart, and few enough to read aloud."""


def plan_hash(policy: PolicyView, members: Sequence[Member]) -> str:
    """Return the hash, LENGTH characters long, of what a policy is about to do or is doing with `members`. The UID and
    the generation of the policy are hashed too. The order of `members` does not matter."""
    version = policy.version
    rows = sorted(row for member in members if (row := _row(version, member)) is not None)
    text = f"{policy.uid}/{policy.generation}/{rows}"
    return sha256(text.encode()).hexdigest()[:LENGTH]


def _row(version: SpecVersion, member: Member) -> tuple[str, str, str] | None:
    """Return the plan's entry for one node: its UID, its target in the form of `owed_for`, and the class of disruption.
    None if it is past the point of no return of an earlier revision's change with the same approved target, or
    matches its target and was not changed in this revision. `_planned` gives the class, `_row_on_record` the entry of
    a node that cannot be compared."""
    assessment = member.assessment
    if not isinstance(assessment, Assessed):
        return _row_on_record(version, member.node)
    fence, owed = member.node.fence, owed_for(assessment.target)
    earlier = fence is not None and fence.stage == "actuating" and fence.version != version
    if fence is not None and earlier and fence.version.uid == version.uid and fence.approved == owed:
        # The node is past the point of no return and on its way to a target that the policy still wants, which needs no
        # new approval. Its proof will say nothing about this revision, so an entry would disappear with the proof.
        return None
    planned = _planned(version, member, assessment)
    return None if planned is None else (member.node.uid, owed, str(planned))


def _row_on_record(version: SpecVersion, node: NodeView) -> tuple[str, str, str] | None:
    """Return the plan's entry, as in `_row`, for a node that cannot be compared with its policy now. The entry is
    taken from the fence or the proof for this version of the spec, so that a node whose GPU or agent is gone does not
    invalidate the approval. None if neither exists, if the fence was not approved, or if the node was rolled back."""
    fence, verified = node.fence, node.verified
    if fence is not None and fence.version == version:
        return (node.uid, fence.approved, str(fence.planned)) if fence.approved else None
    if verified is None or verified.rolled_back or verified.version != version:
        return None
    return node.uid, owed_by(verified), str(verified.planned)


def _planned(version: SpecVersion, member: Member, assessed: Assessed) -> DisruptionClass | None:
    """Return the disruption class that the plan shows for a node. If the node's fence is for this revision, the
    class planned in the fence is returned. Otherwise the result is the class recorded in the node's proof for this
    revision, or None if there is no such proof. For a node that differs from its target, the present class replaces
    that result if there is no such proof, or if the node has no fence and the present class is graver."""
    fence, verified = member.node.fence, member.node.verified
    if fence is not None and fence.version == version:
        return fence.planned
    shown = verified.planned if verified is not None and verified.version == version else None
    if assessed.mismatch is None:
        return shown
    if shown is None or (fence is None and assessed.disruption.severity > shown.severity):
        return assessed.disruption
    return shown
