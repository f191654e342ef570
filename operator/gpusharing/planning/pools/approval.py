"""The hash with which a person approves a plan. It covers what each node will become, and how much the changes disturb.

The plan is hashed as it was when the change of each node began, without pods and progress, so an approval lasts until the plan is carried out. Every edit of the policy changes the hash, even one that restores an earlier spec, because nobody has reviewed that spec since. So does a node that joins or leaves, or a drift whose correction disturbs more than was approved.
"""

from collections.abc import Sequence
from hashlib import sha256

from gpusharing.planning.snapshot.records import SpecVersion
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.attempts import owed_by, owed_for
from gpusharing.planning.transition.members import Member
from gpusharing.planning.wanted.assess import Assessed

LENGTH = 7
"""How many characters a hash has: enough to tell two plans apart, and few enough to read aloud."""


def plan_hash(policy: PolicyView, members: Sequence[Member]) -> str:
    """Return the hash of what a policy is about to do or is doing with `members`, in whatever order."""
    rows = sorted(row for member in members if (row := _row(policy.version, member)) is not None)
    text = f"{policy.uid}/{policy.generation}/{rows}"
    return sha256(text.encode()).hexdigest()[:LENGTH]


def _row(version: SpecVersion, member: Member) -> tuple[str, str, str] | None:
    node, assessment = member.node, member.assessment
    fence = node.fence if node.fence is not None and node.fence.version == version else None
    proof = node.verified if node.verified is not None and node.verified.version == version else None
    if not isinstance(assessment, Assessed):
        # The record counts, so that a node whose GPU or agent is gone does not invalidate the approval.
        if fence is not None:
            return (node.uid, fence.approved, str(fence.planned)) if fence.approved else None
        if proof is None or proof.rolled_back:
            return None
        return node.uid, owed_by(proof), str(proof.planned)
    owed, earlier = owed_for(assessment.target), None if fence is not None else node.fence
    if earlier is not None and (earlier.stage, earlier.version.uid, earlier.approved) == (
        "actuating",
        version.uid,
        owed,
    ):
        # The node is past the point of no return and on its way to a target that the policy still wants, which needs no
        # new approval. Its proof will not be for this revision, so an entry would disappear with the proof.
        return None
    planned = fence.planned if fence is not None else proof.planned if proof is not None else None
    if fence is None and assessment.mismatch is not None:
        now = assessment.disruption
        if planned is None or (node.fence is None and now.severity > planned.severity):
            planned = now
    return None if planned is None else (node.uid, owed, str(planned))
