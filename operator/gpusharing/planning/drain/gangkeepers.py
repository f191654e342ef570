"""What the members of a gang mean for a drain: how long the drain waits for the gang's pods, and which gangs must not
be interrupted now.

Evicting one rank ends the whole gang. So while any member, on any node, may still end by itself, the drain waits for
all members (docs/design/drain.md#t13).

Whether a member must stay is checked in every pass, up to the last eviction. The preflight checks the same before the
node is cordoned (gangs.py), but a drain may wait for hours, and meanwhile somebody may mark a member or set a rule. A
member that must stay keeps all pods of its gang from being evicted or deleted by force (docs/design/drain.md#gangs).

Terms: docs/design/glossary.md#gang.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """Return a description of the gang with its size and the nodes on which it runs, such as `JobSet team-a/train, 16 pods (8 on gpu-1, 8 on gpu-2)`."""
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
    """Describe the gangs on a node in one phrase: the first MAX_GANGS of them at most (`describe_gang`), followed by the number of the others."""
    shown = [describe_gang(view) if not view.error else view.gang.ref for view in gangs[:MAX_GANGS]]
    more = len(gangs) - len(shown)
    return " and ".join(shown) + (f" and {counted(more, 'more gang')}" if more else "")


def name_gang(view: GangView, blocker: Blocker) -> Blocker:
    """Return the blocker with a description of the gang in front of its message."""
    return replace(blocker, message=f"Gang: {describe_gang(view)}. {blocker.message}".rstrip())


def unlisted(view: GangView) -> str:
    """Return the message that the members of a gang cannot be listed, with the error of the gang's LIST."""
    return f"The members of {view.gang.ref} cannot be listed: {view.error}"


@value
class GangWait:
    """How long a drain waits for every pod of a gang."""

    patience: timedelta | None
    """How long after the cordon the drain waits, or None if it waits for as long as the member runs."""
    member: PodView
    text: str
    spared: bool = False
    """Whether some member must never be evicted before it ends."""


def find_gang_waits(work: NodeWork, options: Drain, scope: Scope) -> Mapping[Gang, GangWait]:
    """Return, by gang, the wait for the member that is given the longest time to end by itself."""
    waits_by_gang = {}
    for view in work.gangs:
        members = members_with_node(view, work, scope.node)
        everywhere = replace(scope, all_pods=True, cordoned_at=None)
        waited = classify((member.pod for member in members), options, everywhere)
        waits = [_wait_of(member, view, options) for member in members if member.pod.uid in waited.waited]
        waits += _ruled_waits(view, members, everywhere)
        if waits:
            # Unlimited waits come first, then longer waits before shorter ones, then the member's name decides.
            longest = min(
                waits,
                key=lambda one: (one.patience is not None, -(one.patience or timedelta(0)), one.member.ref),
            )
            waits_by_gang[view.gang] = replace(longest, spared=any(wait.spared for wait in waits))
    return waits_by_gang


def _ruled_waits(view: GangView, members: Iterable[GangMember], scope: Scope) -> Iterator[GangWait]:
    for member in members:
        if member.drain is not None and classify((member.pod,), member.drain, scope).waited:
            yield replace(
                _wait_of(member, view, member.drain), spared=member.drain.jobs.on_timeout == "Abort"
            )


def members_with_node(view: GangView, work: NodeWork, node: str) -> list[GangMember]:
    """Return the members that have a node."""
    here = [GangMember(node, pod) for pod in work.pods if pod.gang == view.gang]
    seen = {member.pod.uid for member in here}
    return here + [
        member for member in view.members if member.node not in ("", node) and member.pod.uid not in seen
    ]


def _wait_of(member: GangMember, view: GangView, options: Drain) -> GangWait:
    where = f" on {member.node}" if member.node else ""
    member_text = f"{member.pod.ref}{where}"
    text = f"evicting the pod would end {view.gang.ref}, whose member {member_text} may still complete on its own"
    return GangWait(patience(member.pod, options), member.pod, text)


_KEEPS_ALL = Drain.model_validate({"rules": [{"behavior": "Block"}]})
"""The drain options assumed for a policy that cannot be read: every pod is blocked."""


def find_blocked_gangs(
    work: NodeWork, classified: Classified, gangs: AbstractSet[Gang], options: Drain, scope: Scope
) -> tuple[frozenset[Gang], tuple[Blocker, ...]]:
    """Return the gangs on a node whose pods must not be evicted or deleted now, and the blockers that explain why."""
    blocked = {pod.gang for pod in classified.blocked} if gangs else set()
    blockers: list[Blocker] = []
    for view in work.gangs:
        here = list(_keepers(view, work, classified, options, scope)) if view.gang in gangs else []
        blockers += here
        blocked |= {view.gang} if here else set()
    return frozenset(gang for gang in blocked if gang is not None), merge(blockers)


def find_keepers(
    members: Iterable[GangMember], options: Drain, scope: Scope
) -> Iterator[tuple[str, Blocker]]:
    """Yield a pair for each blocker of the members that must stay: the name of the member's node, empty if it has none, and the blocker."""
    everywhere = replace(scope, all_pods=True, cordoned_at=None)
    for member in members:
        for blocker in classify((member.pod,), options, everywhere).blockers or find_ruled((member,), scope):
            yield member.node, blocker


def find_ruled(members: Iterable[GangMember], scope: Scope) -> tuple[Blocker, ...]:
    """Return the blockers of members that must stay according to the policy of their own node, where its drain options differ from those of the policy that changes this node."""
    everywhere = replace(scope, all_pods=True, cordoned_at=None)
    return tuple(
        _by_policy(member, blocker)
        for member in members
        if member.drain is not None or member.unruled is not None
        for blocker in classify((member.pod,), member.drain or _KEEPS_ALL, everywhere).blockers
    )


def _by_policy(member: GangMember, blocker: Blocker) -> Blocker:
    if member.unruled is None:
        return replace(blocker, message=f"Policy {member.policy} applies here. {blocker.message}".rstrip())
    if blocker.reason is not Reason.RULE_BLOCKS:
        return blocker
    return replace(blocker, reason=member.unruled.reason, message=member.unruled.message)


def _keepers(
    view: GangView, work: NodeWork, classified: Classified, options: Drain, scope: Scope
) -> Iterator[Blocker]:
    if view.error:
        its = tuple(pod.ref for pod in classified.holders if pod.gang == view.gang and pod.deleted_at is None)
        yield Blocker(Reason.LIST_FAILED, its, message=unlisted(view))
        return
    blocked = {pod.uid for pod in classified.blocked}
    members = [
        member for member in members_with_node(view, work, scope.node) if member.pod.uid not in blocked
    ]
    for node, blocker in find_keepers(members, options, scope):
        where = f"Runs on {node}. " if node else ""
        yield name_gang(view, replace(blocker, message=f"{where}{blocker.message}".rstrip()))
