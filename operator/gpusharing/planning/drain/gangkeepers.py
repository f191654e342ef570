"""Which gangs a drain must not end now, because a member must stay: it is asked for in every pass, up to the last
eviction.

The preflight asks the same before the node is cordoned (gangs.py), but a drain may wait for hours, for jobs or for a
budget, and meanwhile somebody may ask not to disturb a member, or set a rule. What ends one member ends them all, so a
member that must stay keeps its mates from being evicted, and from being deleted by force.
Specification: docs/design/drain.md#gangs.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import replace

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.gangwaits import running
from gpusharing.planning.drain.gangwords import name_gang, unlisted
from gpusharing.planning.drain.holders import Classified, Scope, classify
from gpusharing.planning.snapshot.podviews import Gang, GangMember, GangView, NodeWork
from gpusharing.planning.vocabulary.blockers import Blocker, merge
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

_KEEPS_ALL = Drain.model_validate({"rules": [{"behavior": "Block"}]})
"""What is assumed of a policy that cannot be read."""


@value
class KeptGangs:
    """The gangs of a node of which no pod may be evicted or deleted now."""

    gangs: frozenset[Gang] = frozenset()
    """Those gangs."""
    blockers: tuple[Blocker, ...] = ()
    """What keeps them, as far as no blocker of the node's own pods says it."""


def find_kept_gangs(
    work: NodeWork, found: Classified, gangs: AbstractSet[Gang], options: Drain, scope: Scope
) -> KeptGangs:
    """`found`: the pods of the node itself. `gangs`: those of which a pod is still to leave the node."""
    kept = {pod.gang for pod in found.blocked}
    blockers: list[Blocker] = []
    for view in work.gangs:
        if view.gang not in gangs:
            continue
        if view.error:
            its = tuple(pod.ref for pod in found.holders if pod.gang == view.gang and pod.deleted_at is None)
            blockers.append(Blocker(Reason.LIST_FAILED, its, message=unlisted(view)))
            kept.add(view.gang)
            continue
        told = {pod.uid for pod in found.blocked}
        others = [one for one in running(view, work, scope.node) if one.pod.uid not in told]
        if here := list(_keepers(view, others, options, scope)):
            blockers += here
            kept.add(view.gang)
    return KeptGangs(frozenset(gang for gang in kept if gang is not None), merge(blockers))


def find_keepers(
    members: Iterable[GangMember], options: Drain, scope: Scope
) -> Iterator[tuple[str, Blocker]]:
    """The members that must stay, GPU or not: the node of each and why.

    By the options of this change, or else by those of the policy that the member's own node follows.
    """
    everywhere = replace(scope, all_pods=True, cordoned_at=None)
    for one in members:
        blockers = classify((one.pod,), options, everywhere).blockers or find_ruled((one,), scope)
        for blocker in blockers:
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
    view: GangView, members: Iterable[GangMember], options: Drain, scope: Scope
) -> Iterator[Blocker]:
    for node, blocker in find_keepers(members, options, scope):
        where = f"Runs on {node}. " if node else ""
        yield name_gang(view, replace(blocker, message=f"{where}{blocker.message}".rstrip()))
