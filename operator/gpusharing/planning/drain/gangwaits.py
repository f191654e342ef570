"""How long the pods of a gang are waited for: while any member may end by itself first, on whatever node it runs.

Evicting one rank ends them all, so a member that is evicted at once would end the ones that are given time.
Specification: docs/design/drain.md#t13.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.holders import Scope, classify
from gpusharing.planning.drain.rules import patience
from gpusharing.planning.snapshot.podviews import Gang, GangMember, GangView, NodeWork, PodView
from gpusharing.planning.vocabulary.values import value


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
