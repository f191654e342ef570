"""One node as its pool counts it: facts about the node only, so the memo can cache it, and a pass only has to add members up."""

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
    verdict: Verdict
    """The verdict before the pools choose."""
    case: NodeCase | None
    """The case that was judged, at the time of that pass; None if the node cannot be judged."""
    policy: str
    """The policy with which the node is compared, else the policy that its verdict names."""
    away: bool
    """Whether the node is unavailable, or somebody else has begun to work on it and may drain it at any moment. A required driver upgrade that has not begun may wait for weeks and takes no slot (docs/design/nvidia.md#d4)."""
    newcomer: bool
    marked: bool
    """Whether the Node has a fence or a record of a failed change. Any other node cannot have failed."""
    to_go: bool
    """Whether the node has yet to be drained: its change needs an idle node, is not skipped and has not begun."""
    outside: bool
    """Whether the policy selects the node but has nothing to change there, such as a node without a GPU. A change that has begun always concerns the policy."""
    target: Target | None
    differs: bool = False
    """Whether the node is Ready, has no fence, and was seen to differ from its target."""
    heir: str = ""
    """The other policy whose pool the node joins, still unavailable, once the verdict's actions are done."""

    @property
    def assessment(self) -> Assessment | None:
        return self.case.assessment if self.case is not None else None


def find_member(
    verdict: Verdict,
    node: NodeView,
    gpunode: GPUNodeView | None,
    case: NodeCase | None = None,
    *,
    differs: bool = False,
) -> Member:
    waits = verdict.phase.part == "before" and verdict.phase is not Phase.SKIPPED
    assessment = case.assessment if case is not None else None
    policy = assessment.policy.name if assessment is not None else verdict.policy
    records = (node.verified, node.deferred)
    heir = policy
    for action in verdict.actions if case is not None and node.fence is not None else ():
        if isinstance(action, UpdateFence) and node.fence and action.fence.policy != node.fence.policy:
            heir = action.fence.policy
        elif isinstance(action, Release) and case and node.unschedulable and not action.uncordon:
            heir = case.owner_name
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
        heir="" if heir == policy else heir,
    )


def is_begun(node: NodeView) -> bool:
    """Whether a change has begun on the node and has not ended, even if its fence cannot be read."""
    return node.fence is not None or bool(node.fence_error)


def is_unavailable(node: NodeView) -> bool:
    """Whether the node is not Ready, cordoned, being deleted, or in a change that has begun, even if pods can still be placed on it."""
    return not node.ready or node.unschedulable or node.deleting or is_begun(node)
