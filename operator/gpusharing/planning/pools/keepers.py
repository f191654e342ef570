"""Which nodes occupy a slot of the budget until somebody or something else acts, and why, for the messages of waiting nodes.

Nodes whose changes make progress are not named: a change begins every few minutes, and the status of every waiting node would have to be written again each time.
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


def name_keepers(members: Iterable[Member]) -> tuple[str, str]:
    """Return a clause in parentheses, after a space, that says why these nodes are unavailable, and the first of them as `node/NAME`; two empty strings if there are none."""
    kept = sorted(members, key=lambda member: member.node.name)
    if not kept:
        return "", ""
    reasons = [*map(_why, kept[:MOST]), *["others"] * (len(kept) > MOST)]
    return f" ({'; '.join(reasons)})", f"node/{kept[0].node.name}"


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


def is_for_a_person(member: Member) -> bool:
    """Whether only a person, or somebody else's maintenance, can free the node's slot; the kubelet of a node that is not Ready may report again by itself."""
    node, verdict = member.node, member.verdict
    if verdict.phase is Phase.FAILED or verdict.reason is Reason.DRAIN_HELD:
        return True
    return node.fence is None and node.ready and not node.deleting


def goes_on(verdict: Verdict) -> bool:
    """Whether our change of the node is under way and ends by itself at some deadline."""
    ends = verdict.phase is not Phase.FAILED and not calls_fail(verdict)
    lasts = verdict.phase.part == "emptying" and verdict.deadline in (None, NEVER)
    return verdict.phase.in_flight and ends and not lasts
