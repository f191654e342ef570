"""Who keeps a slot of the budget until somebody or something else acts, for the nodes that wait for one.

Nodes that are changing are not named: one begins every few minutes, and each waiting node would be written again.
"""

from collections.abc import Iterable

from gpusharing.api.names import Phase
from gpusharing.planning.way.cordon import tell_foreign
from gpusharing.planning.way.members import Member
from gpusharing.planning.way.verdict import Verdict
from gpusharing.planning.words.reasons import Reason

MOST = 3
"""The most nodes that a text names; how many more there are would change too often."""


def explain_keepers(members: Iterable[Member]) -> str:
    """These nodes and why each is away, by name; empty: there is none."""
    told = [_why(one) for one in sorted(members, key=lambda one: one.node.name)]
    return "; ".join([*told[:MOST], *["others"] * (len(told) > MOST)])


def first_keeper(members: Iterable[Member]) -> str:
    """The first of these nodes by name, as a culprit is shown; empty: there is none."""
    return min((f"node/{one.node.name}" for one in members), default="")


def is_for_a_person(member: Member) -> bool:
    """Whether nobody but a person, or somebody else's maintenance, gives its slot back: no kubelet that may answer
    again."""
    node, verdict = member.node, member.verdict
    if verdict.phase is Phase.FAILED or verdict.reason is Reason.DRAIN_HELD:
        return True
    return node.fence is None and node.ready and not node.deleting


def keeps_its_slot(verdict: Verdict) -> bool:
    """Whether a fenced node with this verdict has a slot of the operator-wide cap until somebody acts."""
    return verdict.phase is Phase.FAILED or verdict.reason is Reason.DRAIN_HELD or not verdict.phase.in_flight


def _why(member: Member) -> str:
    """The first reason that applies; what a change of ours left behind explains the others."""
    node, name = member.node, member.node.name
    if member.verdict.phase is Phase.FAILED:
        return f"{name} has failed"
    if member.verdict.reason is Reason.CALL_FAILED:
        return f"the calls about {name} fail"
    if node.fence is not None and node.fence.stage == "yielded" and node.foreign_works:
        return tell_foreign(node)
    if node.fence is not None:
        return f"the change of {name} is held"
    if node.deleting:
        return f"{name} is being deleted"
    if not node.ready:
        return f"{name} is not Ready"
    if node.unschedulable:
        return f"{name} is cordoned"
    return f"{node.foreign} has begun to work on {name}"
