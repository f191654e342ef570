"""How a gang affects a drain: the strictest rule of any member, on whatever node, applies to all of them.

Specification: docs/design/drain.md#t13.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.gangwaits import unlisted, with_labels
from gpusharing.planning.drain.holders import Scope
from gpusharing.planning.drain.plan import forbidding
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.snapshot.podviews import GangView, NodeWork
from gpusharing.planning.words.blockers import Blocker, merge
from gpusharing.planning.words.reasons import Reason

MAX_NODES = 3
"""The most nodes of a gang that a text names."""
MAX_GANGS = 2
"""The most gangs of a node that a text names."""


def find_gang_blockers(
    work: NodeWork, node: str, options: Drain, now: datetime, scope: Scope
) -> tuple[Blocker, ...]:
    """Why the gangs of this node must not be interrupted, although no pod on the node itself says so.

    Every member counts, with or without a GPU: what ends one of them ends them all.
    """
    found: list[Blocker] = []
    everywhere = replace(scope, all_pods=True, cordoned_at=None)
    for view in work.gangs:
        if view.error:
            found.append(Blocker(Reason.LIST_FAILED, message=unlisted(view)))
            continue
        pods = tuple(member.pod for member in with_labels(view, work) if member.node != node)
        if pods:
            elsewhere = NodeWork(pods, work.pdbs, work.listed_at)
            standings = find_standings(elsewhere, options, now, scope=everywhere, cordoned=False)
            found += [_of(view, blocker) for blocker in forbidding(standings)]
    return merge(found)


def with_gangs(
    blockers: tuple[Blocker, ...], work: NodeWork, node: str, options: Drain, *, now: datetime, scope: Scope
) -> tuple[Blocker, ...]:
    """The blockers of the node's own pods and those of its gangs elsewhere, each with the gang that it concerns."""
    if not work.gangs:
        return blockers
    return merge((*name_gangs(blockers, work), *find_gang_blockers(work, node, options, now, scope)))


def name_gangs(blockers: Iterable[Blocker], work: NodeWork) -> tuple[Blocker, ...]:
    """The blockers of the node's own pods; a blocker whose pods all belong to one gang names it."""
    views = {view.gang: view for view in work.gangs}
    gangs = {pod.ref: views.get(pod.gang) if pod.gang is not None else None for pod in work.pods}
    named = []
    for blocker in blockers:
        its = {view.gang for ref in blocker.pods if (view := gangs.get(ref)) is not None}
        whole = len(its) == 1 and all(gangs.get(ref) is not None for ref in blocker.pods)
        named.append(_of(views[next(iter(its))], blocker) if whole else blocker)
    return merge(named)


def describe_gang(view: GangView) -> str:
    """`JobSet team-a/train, 16 pods (8 on gpu-1, 8 on gpu-2)`; at most three nodes."""
    count = len(view.members)
    where = Counter(member.node for member in view.members)
    waiting = where.pop("", 0)
    places = [f"{number} on {name}" for name, number in sorted(where.items())]
    if len(places) > MAX_NODES:
        places = [*places[:MAX_NODES], f"{len(places) - MAX_NODES} more nodes"]
    places += [f"{waiting} without a node"] * bool(waiting)
    least = "at least " if view.partial else ""
    text = f"{view.gang.ref}, {least}{count} pod{'' if count == 1 else 's'}"
    return f"{text} ({', '.join(places)})" if places else text


def explain_gangs(work: NodeWork) -> str:
    """The gangs of a node in one phrase; at most two."""
    shown = [describe_gang(view) if not view.error else view.gang.ref for view in work.gangs[:MAX_GANGS]]
    more = len(work.gangs) - len(shown)
    return " and ".join(shown) + (f" and {more} more gang{'' if more == 1 else 's'}" if more else "")


def _of(view: GangView, blocker: Blocker) -> Blocker:
    return replace(blocker, message=f"Gang: {describe_gang(view)}. {blocker.message}".rstrip())
