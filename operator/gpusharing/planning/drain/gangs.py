"""How a gang affects a preflight: the strictest rule of any member, on any node, applies to all of them.

Specification: docs/design/drain.md#t13.

Terms: docs/design/glossary.md#gang.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.gangkeepers import find_ruled, name_gang, unlisted
from gpusharing.planning.drain.holders import NO_OPTIONS, classify
from gpusharing.planning.drain.plan import forbidding
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.snapshot.podviews import GangMember, GangView, NodeWork, Scope
from gpusharing.planning.vocabulary.blockers import Blocker, merge
from gpusharing.planning.vocabulary.reasons import Reason


def ending_gangs(work: NodeWork, scope: Scope) -> tuple[GangView, ...]:
    """Return the gangs that a change of the node interrupts: those with a pod that must leave the node."""
    leaving = {pod.gang for pod in classify(work.pods, NO_OPTIONS, scope).must_leave}
    return tuple(view for view in work.gangs if view.gang in leaving)


def find_gang_blockers(
    work: NodeWork, node: str, options: Drain, now: datetime, scope: Scope
) -> tuple[Blocker, ...]:
    """Return why the gangs that a change of this node would interrupt must not be interrupted, because of a policy or a PodDisruptionBudget."""
    blockers: list[Blocker] = []
    for view in ending_gangs(work, scope):
        if view.error:
            blockers.append(Blocker(Reason.LIST_FAILED, message=unlisted(view)))
            continue
        here = (member.pod for member in view.members if member.node == node)
        leave = {pod.uid for pod in classify(here, NO_OPTIONS, scope).must_leave}
        members = [member for member in view.members if member.pod.uid not in leave]
        blockers += [name_gang(view, blocker) for blocker in _forbid(members, work, options, now, scope)]
    return merge(blockers)


def _forbid(
    members: Sequence[GangMember], work: NodeWork, options: Drain, now: datetime, scope: Scope
) -> Iterator[Blocker]:
    elsewhere = NodeWork(tuple(member.pod for member in members), work.pdbs, work.listed_at)
    everywhere = replace(scope, all_pods=True, cordoned_at=None)
    standings = find_standings(elsewhere, options, now, scope=everywhere, cordoned=False)
    reported = {ref for blocker in standings.blockers for ref in blocker.pods}
    yield from forbidding(standings)
    yield from find_ruled(
        (member for member in members if member.pod.ref not in reported), replace(scope, now=now)
    )


def with_gangs(
    blockers: tuple[Blocker, ...], work: NodeWork, node: str, options: Drain, *, now: datetime, scope: Scope
) -> tuple[Blocker, ...]:
    """Return the merged blockers of the node's own pods, worded by `name_gangs`, and of their gangs' members elsewhere."""
    if not work.gangs:
        return blockers
    return merge((*name_gangs(blockers, work), *find_gang_blockers(work, node, options, now, scope)))


def name_gangs(blockers: Iterable[Blocker], work: NodeWork) -> tuple[Blocker, ...]:
    """Return the blockers of the node's own pods, merged."""
    views = {view.gang: view for view in work.gangs}
    gangs = {pod.ref: views.get(pod.gang) if pod.gang is not None else None for pod in work.pods}
    named = []
    for blocker in blockers:
        its = {view.gang for ref in blocker.pods if (view := gangs.get(ref)) is not None}
        whole = len(its) == 1 and all(gangs.get(ref) is not None for ref in blocker.pods)
        named.append(name_gang(views[next(iter(its))], blocker) if whole else blocker)
    return merge(named)
