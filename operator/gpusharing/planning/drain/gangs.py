"""How a gang affects a preflight: the strictest rule of any member, on any node, applies to all of them (docs/design/drain.md#t13)."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.gangkeepers import everywhere, find_ruled, name_gang, unlisted
from gpusharing.planning.drain.holders import NO_OPTIONS, classify
from gpusharing.planning.drain.plan import forbidding
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.snapshot.podviews import GangView, NodeWork, Scope
from gpusharing.planning.vocabulary.blockers import Blocker, merge
from gpusharing.planning.vocabulary.reasons import Reason


def ending_gangs(work: NodeWork, scope: Scope) -> tuple[GangView, ...]:
    """Return the gangs that a change of the node interrupts: those with a pod that must leave the node."""
    leaving = {pod.gang for pod in classify(work.pods, NO_OPTIONS, scope).must_leave}
    return tuple(view for view in work.gangs if view.gang in leaving)


def find_gang_blockers(work: NodeWork, options: Drain, now: datetime, scope: Scope) -> tuple[Blocker, ...]:
    """Return why the gangs that a change of this node would interrupt must not be interrupted.

    Members on all nodes count, with or without a GPU, because evicting one of them ends the whole gang. Those that have
    to leave this node are left to its own preflight. Members that a very large gang has beyond those that were read
    (`GangView.partial`) are not examined.
    """
    blockers: list[Blocker] = []
    for view in ending_gangs(work, scope):
        if view.error:
            blockers.append(Blocker(Reason.LIST_FAILED, message=unlisted(view)))
            continue
        here = (member.pod for member in view.members if member.node == scope.node)
        leave = {pod.uid for pod in classify(here, NO_OPTIONS, scope).must_leave}
        members = [member for member in view.members if member.pod.uid not in leave]
        elsewhere = NodeWork(tuple(member.pod for member in members), work.pdbs, work.listed_at)
        standings = find_standings(elsewhere, options, now, scope=everywhere(scope), cordoned=False)
        blocked = {ref for blocker in standings.blockers for ref in blocker.pods}
        rest = (member for member in members if member.pod.ref not in blocked)
        found = (*forbidding(standings), *find_ruled(rest, replace(scope, now=now)))
        blockers += [name_gang(view, blocker) for blocker in found]
    return merge(blockers)


def with_gangs(
    blockers: tuple[Blocker, ...], work: NodeWork, options: Drain, *, now: datetime, scope: Scope
) -> tuple[Blocker, ...]:
    """Return the merged blockers of the node's own pods, worded by `name_gangs`, and of their gangs' members elsewhere."""
    if not work.gangs:
        return blockers
    return merge((*name_gangs(blockers, work), *find_gang_blockers(work, options, now, scope)))


def name_gangs(blockers: Iterable[Blocker], work: NodeWork) -> tuple[Blocker, ...]:
    """Return the blockers of the node's own pods, each with a description of the gang to which all of its pods belong."""
    views = {view.gang: view for view in work.gangs}
    gangs = {pod.ref: views.get(pod.gang) if pod.gang is not None else None for pod in work.pods}
    named = []
    for blocker in blockers:
        its = [gangs.get(ref) for ref in blocker.pods]
        view = its[0] if its else None
        same = view is not None and all(one is not None and one.gang == view.gang for one in its)
        named.append(name_gang(view, blocker) if view is not None and same else blocker)
    return merge(named)
