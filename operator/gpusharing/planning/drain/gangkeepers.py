"""What the members of a gang mean for a drain: how long it waits for the gang's pods, and which gangs must not be interrupted.

Evicting one rank ends the whole gang. So while any member, on any node, may still end by itself, the drain waits for
all members (docs/design/drain.md#t13).

Whether a member must stay is checked in every pass, up to the last eviction. The preflight checks the same before the
node is cordoned (gangs.py), but a drain may wait for hours, and meanwhile somebody may mark a member or set a rule. A
member that must stay keeps all pods of its gang from being evicted or deleted by force (docs/design/drain.md#gangs).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import timedelta

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.holders import Classified, classify
from gpusharing.planning.drain.rules import patience
from gpusharing.planning.snapshot.podviews import Gang, GangMember, GangView, NodeWork, PodView, Scope
from gpusharing.planning.vocabulary.blockers import Blocker, merge
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

MAX_NODES = 3
"""The most nodes of a gang that a message names."""
MAX_GANGS = 2
"""The most gangs on a node that a message describes."""


def describe_gang(view: GangView) -> str:
    """Describe the gang, such as `JobSet team-a/train, 16 pods (8 on gpu-1, 8 on gpu-2)`."""
    count = len(view.members)
    where = Counter(member.node for member in view.members)
    waiting = where.pop("", 0)
    places = [f"{number} on {name}" for name, number in sorted(where.items())]
    if len(places) > MAX_NODES:
        places = [*places[:MAX_NODES], counted(len(places) - MAX_NODES, "more node")]
    places += [f"{waiting} without a node"] * bool(waiting)
    least = "at least " if view.partial else ""
    text = f"{view.gang.ref}, {least}{counted(count, 'pod')}"
    return f"{text} ({', '.join(places)})" if places else text


def explain_gangs(gangs: Sequence[GangView]) -> str:
    shown = [describe_gang(view) if not view.error else view.gang.ref for view in gangs[:MAX_GANGS]]
    more = len(gangs) - len(shown)
    return " and ".join(shown) + (f" and {counted(more, 'more gang')}" if more else "")


def name_gang(view: GangView, blocker: Blocker) -> Blocker:
    return replace(blocker, message=f"Gang: {describe_gang(view)}. {blocker.message}".rstrip())


def unlisted(view: GangView) -> str:
    return f"The members of {view.gang.ref} cannot be listed: {view.error}"


def everywhere(scope: Scope) -> Scope:
    """Return the scope by which members on any node are judged, with or without a GPU, as if they had to leave too."""
    return replace(scope, all_pods=True, cordoned_at=None)


@value
class GangWait:
    """How long a drain waits for every pod of a gang."""

    patience: timedelta | None
    """How long after the cordon the drain waits, or None if it waits for as long as the member runs."""
    member: PodView
    """The member that is given the most time; in a tie, the first by name."""
    text: str
    """Why the drain waits for the other pods of the gang."""
    spared: bool = False
    """Whether some member must never be evicted before it ends. When its time is over, the change is given up."""


def find_gang_waits(work: NodeWork, options: Drain, scope: Scope) -> Mapping[Gang, GangWait]:
    """Return, by gang, the wait for the member that is given the longest time to end by itself, if the drain waits for any."""
    longest, wide = {}, everywhere(scope)
    for view in work.gangs:
        members = _find_members(view, work, scope.node)
        waited = classify((member.pod for member in members), options, wide).waited
        waits = [_wait_for(member, view, options) for member in members if member.pod.uid in waited]
        # The policy of a member's own node counts too, and may forbid to evict the member at last.
        for member in members:
            if member.drain is not None and classify((member.pod,), member.drain, wide).waited:
                spared = member.drain.jobs.on_timeout == "Abort"
                waits.append(replace(_wait_for(member, view, member.drain), spared=spared))
        if waits:
            # Unlimited waits come first, then longer waits before shorter ones, then the member's name decides.
            first = min(
                waits,
                key=lambda one: (one.patience is not None, -(one.patience or timedelta(0)), one.member.ref),
            )
            longest[view.gang] = replace(first, spared=any(wait.spared for wait in waits))
    return longest


def _wait_for(member: GangMember, view: GangView, options: Drain) -> GangWait:
    where = f" on {member.node}" if member.node else ""
    may = f"whose member {member.pod.ref}{where} may still complete on its own"
    text = f"evicting the pod would end {view.gang.ref}, {may}"
    return GangWait(patience(member.pod, options), member.pod, text)


def _find_members(view: GangView, work: NodeWork, node: str) -> list[GangMember]:
    """Return the members that have a node, because only these do work that could be lost.

    Those on `node` come first, and from the node's own LIST, which is newer; finished ones are included.
    """
    here = [GangMember(node, pod) for pod in work.pods if pod.gang == view.gang]
    seen = {member.pod.uid for member in here}
    return here + [
        member for member in view.members if member.node not in ("", node) and member.pod.uid not in seen
    ]


def find_blocked_gangs(
    work: NodeWork, classified: Classified, gangs: AbstractSet[Gang], options: Drain, scope: Scope
) -> tuple[frozenset[Gang], tuple[Blocker, ...]]:
    """Return the gangs on a node whose pods must not be evicted or deleted now, and the blockers that explain why.

    `classified` has the pods of the node; its blockers are not repeated. `gangs` has the gangs with a pod that still has
    to be evicted; if it is empty, so is the result.
    """
    blocked = {pod.gang for pod in classified.blocked} if gangs else set()
    known = {pod.uid for pod in classified.blocked}
    blockers: list[Blocker] = []
    for view in work.gangs:
        if view.gang not in gangs:
            continue
        here: list[Blocker] = []
        if view.error:
            its = (pod for pod in classified.holders if pod.gang == view.gang and pod.deleted_at is None)
            here.append(Blocker(Reason.LIST_FAILED, tuple(pod.ref for pod in its), message=unlisted(view)))
        else:
            for member in _find_members(view, work, scope.node):
                if member.pod.uid in known:
                    continue
                where = f"Runs on {member.node}. " if member.node else ""
                ours = classify((member.pod,), options, everywhere(scope)).blockers
                for blocker in ours or find_ruled((member,), scope):
                    named = replace(blocker, message=f"{where}{blocker.message}".rstrip())
                    here.append(name_gang(view, named))
        blockers += here
        blocked |= {view.gang} if here else set()
    return frozenset(gang for gang in blocked if gang is not None), merge(blockers)


def find_ruled(members: Iterable[GangMember], scope: Scope) -> tuple[Blocker, ...]:
    """Return the blockers of members that must stay according to the policy of their own node, where that differs."""
    blockers: list[Blocker] = []
    for member in members:
        if member.unruled is not None:  # a policy that cannot be read counts as one that blocks every pod
            for blocker in classify((member.pod,), _KEEPS_ALL, everywhere(scope)).blockers:
                unread = blocker.reason is Reason.RULE_BLOCKS
                said = replace(blocker, reason=member.unruled.reason, message=member.unruled.message)
                blockers.append(said if unread else blocker)
        elif member.drain is not None:
            for blocker in classify((member.pod,), member.drain, everywhere(scope)).blockers:
                message = f"Policy {member.policy} applies here. {blocker.message}".rstrip()
                blockers.append(replace(blocker, message=message))
    return tuple(blockers)


_KEEPS_ALL = Drain.model_validate({"rules": [{"behavior": "Block"}]})
