"""One node as its pool counts it. A member has facts about its node only, so the memo can cache it, and a pass only
has to add members up.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#slot.
"""

from collections.abc import Callable

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import Release, UpdateFence
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView
from gpusharing.planning.transition.startgate import is_newcomer
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.assess import Assessed, Assessment
from gpusharing.planning.wanted.target import Target


@value
class Member:
    """One node as the pool of its policy counts it."""

    node: NodeView
    """The Node."""
    verdict: Verdict
    """The node's verdict before the pools choose."""
    case: NodeCase | None
    """The case that was judged, which has the time of the pass in which it was judged, or None if the node cannot be
    judged."""
    policy: str
    """The policy whose budget counts the node: the policy with which the node is compared or, if there is none, the
    policy that its verdict names."""
    away: bool
    """Whether the node counts as used: it is unavailable (`is_unavailable`), or somebody else has begun to work on it
    and may cordon and drain it at any moment. Work that has not begun or was given up (`NodeView.foreign_waits`) takes
    no slot: a required driver upgrade may wait for weeks (docs/design/nvidia.md#d4)."""
    newcomer: bool
    """Whether the node takes no slot of the budget (`is_newcomer`)."""
    marked: bool
    """Whether the Node has a fence or a record of a failed change. Any other node cannot have failed."""
    to_go: bool
    """Whether the node has yet to be drained: its change needs an idle node, is not skipped and has not begun."""
    outside: bool
    """Whether the policy selects the node but the node does not concern it, because it has no GPU or only a product
    that the policy leaves out. A node whose change has begun always concerns the policy, because nobody else releases
    the node."""
    target: Target | None
    """What the node will become, or None if it has no target or cannot be judged."""
    differs: bool = False
    """Whether the node is Ready, has no fence, and was seen to differ from its target."""
    heir: str = ""
    """The other policy whose pool the node joins, still unavailable, once the verdict's actions are done
    (`find_heir`). Empty if there is none."""

    @property
    def assessment(self) -> Assessment | None:
        """The comparison of the node with its policy, or None if it has no policy or cannot be judged."""
        return self.case.assessment if self.case is not None else None


def find_member(
    verdict: Verdict,
    node: NodeView,
    gpunode: GPUNodeView | None,
    case: NodeCase | None = None,
    *,
    differs: bool = False,
) -> Member:
    """Return the node as its pool counts it. `case` is the case that was judged, or None if the node cannot be judged.
    `differs`: the node is Ready, has no fence, and was seen to differ from its target."""
    waits = verdict.phase.part == "before" and verdict.phase is not Phase.SKIPPED
    assessment = case.assessment if case is not None else None
    policy = assessment.policy.name if assessment is not None else verdict.policy
    records = (node.verified, node.deferred)
    return Member(
        node,
        verdict,
        case,
        policy=policy,
        away=is_unavailable(node) or (bool(node.foreign) and not node.foreign_waits),
        newcomer=is_newcomer(node, gpunode),
        marked=node.fence is not None or any(record and record.failed_version for record in records),
        to_go=verdict.disruption.cordons and waits and node.fence is None,
        outside=Mark.OUTSIDE in verdict.reason.marks and not is_begun(node),
        target=assessment.target if isinstance(assessment, Assessed) else None,
        differs=differs,
        heir=find_heir(case, policy, verdict) if case is not None and node.fence is not None else "",
    )


def find_heir(case: NodeCase, policy: str, verdict: Verdict) -> str:
    """Return the other policy whose pool the node joins, still out of service, once the verdict's actions are done.
    This is the policy that an action writes into the fence, as when a Failed change is handed over. If the node is
    released and stays cordoned, it is the node's owner. The last such action counts. Empty if no policy owns the node
    then, if the result would be `policy` itself, if the verdict has no such action, or if the node has no fence."""
    fence, heir = case.node.fence, policy
    for action in verdict.actions if fence is not None else ():
        if isinstance(action, UpdateFence) and fence is not None and action.fence.policy != fence.policy:
            heir = action.fence.policy
        elif isinstance(action, Release) and case.node.unschedulable and not action.uncordon:
            heir = case.owner_name
    return "" if heir == policy else heir


def is_begun(node: NodeView) -> bool:
    """Whether a change has begun on the node and has not ended, even if its fence cannot be read."""
    return node.fence is not None or bool(node.fence_error)


def is_unavailable(node: NodeView) -> bool:
    """Whether the node is not Ready, cordoned, being deleted, or in a change that has begun (`is_begun`). A change
    counts even if it needs no cordon, so that pods can still be placed on the node."""
    return not node.ready or node.unschedulable or node.deleting or is_begun(node)


# --- states of a node that messages of pools/ name -----------------------------------------------------------


@value
class MemberState:
    """A state of a node, and the words that describe it in a message."""

    holds: Callable[[Member], bool]
    """Whether the node is in this state."""
    says: str
    """The words for such a node. Each list of states says which placeholders it fills in."""


def going(member: Member) -> bool:
    """Whether the Node is being deleted. In lists of states, this comes before `unready`, because such a node does not
    become Ready again."""
    return member.node.deleting


def unready(member: Member) -> bool:
    """Whether the node is not Ready. It is then unknown whether its pods run."""
    return not member.node.ready


def cordoned(member: Member) -> bool:
    """Whether the node is cordoned, by us or anybody else."""
    return member.node.unschedulable
