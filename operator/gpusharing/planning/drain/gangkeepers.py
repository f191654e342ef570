"""What the members of a gang mean for a drain: how long its pods are waited for, and which gangs must not be ended now.

Evicting one rank ends them all, so a member that is evicted at once would end the ones that are given time: while any
member may end by itself first, on whatever node it runs, all are waited for (docs/design/drain.md#t13).

Whether a member must stay is asked in every pass, up to the last eviction. The preflight asks the same before the node
is cordoned (gangs.py), but a drain may wait for hours, for jobs or for a budget, and meanwhile somebody may ask not to
disturb a member, or set a rule. A member that must stay keeps its mates from being evicted, and from being deleted by
force (docs/design/drain.md#gangs).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import timedelta

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.holders import Classified, Scope, classify
from gpusharing.planning.drain.rules import patience
from gpusharing.planning.snapshot.podviews import Gang, GangMember, GangView, NodeWork, PodView
from gpusharing.planning.vocabulary.blockers import Blocker, merge
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

MAX_NODES = 3
"""The most nodes of a gang that a text names."""
MAX_GANGS = 2
"""The most gangs of a node that a text names."""


def describe_gang(view: GangView) -> str:
    """`JobSet team-a/train, 16 pods (8 on gpu-1, 8 on gpu-2)`; at most three nodes."""
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
    """The gangs of a node in one phrase; at most two."""
    shown = [describe_gang(view) if not view.error else view.gang.ref for view in gangs[:MAX_GANGS]]
    more = len(gangs) - len(shown)
    return " and ".join(shown) + (f" and {counted(more, 'more gang')}" if more else "")


def name_gang(view: GangView, blocker: Blocker) -> Blocker:
    """The blocker with the gang that it concerns."""
    return replace(blocker, message=f"Gang: {describe_gang(view)}. {blocker.message}".rstrip())


def unlisted(view: GangView) -> str:
    """Why nothing is known about the members of a gang."""
    return f"The members of {view.gang.ref} cannot be listed: {view.error}"


@value
class GangWait:
    """How long a drain waits for every pod of a gang."""

    patience: timedelta | None
    """From the cordon; None: as long as the member runs."""
    member: PodView
    """The one that is given the most time, the first by name of several."""
    text: str
    """Why the other pods of the gang are waited for."""
    spared: bool = False
    """The policy of a member's own node never evicts pods that may end by themselves."""


def find_gang_waits(work: NodeWork, options: Drain, scope: Scope) -> Mapping[Gang, GangWait]:
    """By gang of this node: the longest time that any of its members is given; no gang of which none is given any.

    Every member counts, with or without a GPU. What runs on this node is told by its own LIST, which is newer.
    """
    found = {}
    for view in work.gangs:
        members = running(view, work, scope.node)
        everywhere = replace(scope, all_pods=True, cordoned_at=None)
        waited = classify((one.pod for one in members), options, everywhere)
        waits = [_wait_of(one, view, options) for one in members if one.pod.uid in waited.waited]
        waits += _ruled_waits(view, members, everywhere)
        if waits:
            longest = min(waits, key=_longest_first)
            found[view.gang] = replace(longest, spared=any(one.spared for one in waits))
    return found


def _ruled_waits(view: GangView, members: Iterable[GangMember], scope: Scope) -> Iterator[GangWait]:
    """What the policies of the members' own nodes say, where these are other ones than that of the change."""
    for one in members:
        if one.drain is not None and classify((one.pod,), one.drain, scope).waited:
            yield replace(_wait_of(one, view, one.drain), spared=one.drain.jobs.on_timeout == "Abort")


def running(view: GangView, work: NodeWork, node: str) -> list[GangMember]:
    """The members that have a node: one that waits for a node does no work that could be lost."""
    here = [GangMember(node, pod) for pod in work.pods if pod.gang == view.gang]
    seen = {one.pod.uid for one in here}
    return here + [one for one in view.members if one.node not in ("", node) and one.pod.uid not in seen]


def _wait_of(one: GangMember, view: GangView, options: Drain) -> GangWait:
    where = f" on {one.node}" if one.node else ""
    text = f"evicting it would end {view.gang.ref}, whose member {one.pod.ref}{where} may end by itself first"
    return GangWait(patience(one.pod, options), one.pod, text)


def _longest_first(wait: GangWait) -> tuple[bool, timedelta, str]:
    longest = wait.patience
    return longest is not None, -(longest or timedelta(0)), wait.member.ref


_KEEPS_ALL = Drain.model_validate({"rules": [{"behavior": "Block"}]})
"""What is assumed of a policy that cannot be read."""


def find_kept_gangs(
    work: NodeWork, found: Classified, gangs: AbstractSet[Gang], options: Drain, scope: Scope
) -> tuple[frozenset[Gang], tuple[Blocker, ...]]:
    """Return the gangs of a node of which no pod may be evicted or deleted now, and what keeps them, as far as no
    blocker of the node's own pods says it. `found`: the pods of the node itself. `gangs`: those of which a pod is still
    to leave the node."""
    kept = {pod.gang for pod in found.blocked} if gangs else set()
    blockers: list[Blocker] = []
    for view in work.gangs:
        here = list(_keepers(view, work, found, options, scope)) if view.gang in gangs else []
        blockers += here
        kept |= {view.gang} if here else set()
    return frozenset(gang for gang in kept if gang is not None), merge(blockers)


def find_keepers(
    members: Iterable[GangMember], options: Drain, scope: Scope
) -> Iterator[tuple[str, Blocker]]:
    """The members that must stay, GPU or not: the node of each and why.

    By the options of this change, or else by those of the policy that the member's own node follows.
    """
    everywhere = replace(scope, all_pods=True, cordoned_at=None)
    for one in members:
        for blocker in classify((one.pod,), options, everywhere).blockers or find_ruled((one,), scope):
            yield one.node, blocker


def find_ruled(members: Iterable[GangMember], scope: Scope) -> tuple[Blocker, ...]:
    """Why members must stay by the policy of their own node, where that is another one than that of the change, or one
    of which nobody knows what it says."""
    everywhere = replace(scope, all_pods=True, cordoned_at=None)
    return tuple(
        _by_policy(one, blocker)
        for one in members
        if one.drain is not None or one.unruled is not None
        for blocker in classify((one.pod,), one.drain or _KEEPS_ALL, everywhere).blockers
    )


def _by_policy(one: GangMember, blocker: Blocker) -> Blocker:
    if one.unruled is None:
        return replace(blocker, message=f"By policy {one.policy}. {blocker.message}".rstrip())
    if blocker.reason is not Reason.RULE_BLOCKS:
        return blocker
    return replace(blocker, reason=one.unruled.reason, message=one.unruled.message)


def _keepers(
    view: GangView, work: NodeWork, found: Classified, options: Drain, scope: Scope
) -> Iterator[Blocker]:
    """Yield why members of a gang must stay, besides those of which a blocker of the node's own pods says it."""
    if view.error:
        its = tuple(pod.ref for pod in found.holders if pod.gang == view.gang and pod.deleted_at is None)
        yield Blocker(Reason.LIST_FAILED, its, message=unlisted(view))
        return
    told = {pod.uid for pod in found.blocked}
    members = [one for one in running(view, work, scope.node) if one.pod.uid not in told]
    for node, blocker in find_keepers(members, options, scope):
        where = f"Runs on {node}. " if node else ""
        yield name_gang(view, replace(blocker, message=f"{where}{blocker.message}".rstrip()))
