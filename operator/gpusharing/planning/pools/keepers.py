"""Who keeps a slot of the budget until somebody or something else acts, for the nodes that wait for one: KEEPERS.

Nodes that are changing are not named: one begins every few minutes, and each waiting node would be written again.
"""

from collections.abc import Iterable

from gpusharing.api.names import Phase
from gpusharing.api.times import NEVER
from gpusharing.planning.transition.cordon import tell_foreign
from gpusharing.planning.transition.members import Member, MemberState, cordoned, going, unready
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason

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


def goes_on(verdict: Verdict) -> bool:
    """Whether a change of ours is under way there that some clock ends."""
    ends = verdict.phase is not Phase.FAILED and verdict.reason is not Reason.CALL_FAILED
    return verdict.phase.in_flight and ends and not _lasts(verdict)


def _lasts(verdict: Verdict) -> bool:
    """Its drain goes on until somebody or something else ends it: one that is held past its time, or one that waits
    for jobs as long as they run."""
    return verdict.phase.part == "emptying" and verdict.deadline in (None, NEVER)


def keeps_its_slot(verdict: Verdict) -> bool:
    """Whether a fenced node with this verdict has a slot of the operator-wide cap until somebody acts."""
    return verdict.phase is Phase.FAILED or verdict.reason is Reason.DRAIN_HELD or not verdict.phase.in_flight


def _why(member: Member) -> str:
    """The first of KEEPERS; a node that none of them explains was marked by somebody else."""
    node = member.node
    says = next((one.says for one in KEEPERS if one.holds(member)), "{foreign} has begun to work on {name}")
    return says.format(name=node.name, foreign=node.foreign, work=tell_foreign(node))


def _failed(member: Member) -> bool:
    return member.verdict.phase is Phase.FAILED


def _calls_fail(member: Member) -> bool:
    return member.verdict.reason is Reason.CALL_FAILED


def _yielded(member: Member) -> bool:
    """Somebody else works on it: our change waits for that."""
    fence = member.node.fence
    return fence is not None and fence.stage == "yielded" and member.node.foreign_works


def _is_held(member: Member) -> bool:
    """What is fenced, keeps its slot and has not failed is a change that does not go on by itself."""
    return member.node.fence is not None


KEEPERS: tuple[MemberState, ...] = (
    MemberState(_failed, "{name} has failed"),
    MemberState(_calls_fail, "the calls about {name} fail"),
    MemberState(_yielded, "{work}"),
    MemberState(_is_held, "the change of {name} is held"),
    MemberState(going, "{name} is being deleted"),
    MemberState(unready, "{name} is not Ready"),
    MemberState(cordoned, "{name} is cordoned"),
)
"""The first match wins; a test pins the order. What a change of ours left behind explains the others. {name} is the
node, {work} what somebody else does there."""
