"""Which nodes occupy a slot of the budget until somebody or something else acts, and why. The messages of
waiting nodes say both.

Nodes whose changes make progress are not named: a change begins every few minutes, and the status of every waiting node
would have to be written again each time.

Terms: docs/design/glossary.md#slot, docs/design/glossary.md#fence.
"""

from collections.abc import Iterable

from gpusharing.api.names import Phase
from gpusharing.api.times import NEVER
from gpusharing.planning.transition.callverdicts import calls_fail
from gpusharing.planning.transition.marks import tell_foreign
from gpusharing.planning.transition.members import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason

MOST = 3
"""The most nodes that a message names. The number of the others is left out, because it would change too often."""


def explain_keepers(members: Iterable[Member]) -> str:
    """Return why each of these nodes is unavailable, as clauses separated by semicolons: the first MOST nodes by name,
    then `others` if there are more. Empty if there are none."""
    reasons = [_why(member) for member in sorted(members, key=lambda member: member.node.name)]
    return "; ".join([*reasons[:MOST], *["others"] * (len(reasons) > MOST)])


def first_keeper(members: Iterable[Member]) -> str:
    """Return the first of these nodes by name, in the form `node/NAME`. Empty if there are none."""
    return min((f"node/{one.node.name}" for one in members), default="")


def is_for_a_person(member: Member) -> bool:
    """Whether only a person, or somebody else's maintenance, can free the slot of the node. True if its change failed,
    if its drain is held after the deadline, or if it is Ready, not being deleted and without our fence. False for a
    node whose kubelet may report again by itself."""
    node, verdict = member.node, member.verdict
    if verdict.phase is Phase.FAILED or verdict.reason is Reason.DRAIN_HELD:
        return True
    return node.fence is None and node.ready and not node.deleting


def goes_on(verdict: Verdict) -> bool:
    """Whether our change of the node is under way and ends by itself at some deadline. False if it has failed, if
    calls about the node fail, or if its drain has no deadline: it is held past its time, or it waits for jobs for as
    long as they run."""
    ends = verdict.phase is not Phase.FAILED and not calls_fail(verdict)
    lasts = verdict.phase.part == "emptying" and verdict.deadline in (None, NEVER)
    return verdict.phase.in_flight and ends and not lasts


def _why(member: Member) -> str:
    node, verdict = member.node, member.verdict
    # Traces of our own change explain the other states, so they come first.
    if verdict.phase is Phase.FAILED:
        return f"{node.name} has failed"
    if calls_fail(verdict):
        return f"calls to the API server about {node.name} are failing"
    if node.fence is not None and node.fence.stage == "yielded" and node.foreign_works:
        return tell_foreign(node)
    if node.fence is not None:
        return f"the change on {node.name} is on hold"
    if node.deleting:
        return f"{node.name} is being deleted"
    if not node.ready:
        return f"{node.name} is not Ready"
    if node.unschedulable:
        return f"{node.name} is cordoned"
    return f"{node.foreign} has begun to work on {node.name}"
