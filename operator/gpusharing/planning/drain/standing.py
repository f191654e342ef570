"""The standing of each pod in the drain of its node: whether the pod is leaving, is waited for, or may be evicted now
(docs/design/drain.md). Preflight and plan both use it.

Everything about a single pod comes together here: whether a filter blocks it (holders.py), the server's last answer
about it (evictions.py), the budgets that guard it (pdb.py), and hence whether it may be evicted now.

Terms: docs/design/glossary.md#gang.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api.policy import Drain
from gpusharing.api.times import NEVER
from gpusharing.api.validation import parse_duration
from gpusharing.planning.drain import pdb
from gpusharing.planning.drain.evictions import forget_old, is_accepted, is_seen, sent_lately
from gpusharing.planning.drain.gangkeepers import GangWait, find_blocked_gangs, find_gang_waits
from gpusharing.planning.drain.holders import Classified, classify
from gpusharing.planning.drain.rules import Tier, patience, tier_of
from gpusharing.planning.snapshot.podviews import EvictionMemory, Gang, NodeWork, PdbView, PodView, Scope
from gpusharing.planning.vocabulary.blockers import Blocker, merge
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

STUCK_AFTER = timedelta(seconds=60)
"""How long after the end of its grace period a pod that still exists counts as stuck (T5)."""


@value
class Standing:
    """One pod that has to leave the node and that no filter blocks, and the state of its eviction in this pass."""

    pod: PodView
    """The pod."""
    memory: EvictionMemory | None
    """The server's last answer about the pod, or None if no eviction was sent or the answer no longer counts."""
    budgets: tuple[PdbView, ...]
    """The budgets that the server will check, sorted by name; with more than one, the server always refuses (E8)."""
    leaves: bool
    """Whether the pod needs no eviction: it is terminating, its eviction was accepted (E1), or the server no longer
    knows it (E2, E3)."""
    due: bool
    """Whether nothing about the pod itself prevents its eviction now. The plan also respects the pace and what the
    budget still allows."""
    tier: Tier = (0, False)
    """The pod's tier. The pod is evicted only after all pods of lower tiers are gone."""
    waits: bool = False
    """Whether the pod is not evicted now because it, or its gang, should end by itself."""
    ends: datetime | None = None
    """Until when the drain waits for the pod; NEVER if the wait is unlimited. None if there is no wait, or if the node
    is not cordoned yet."""
    spared: bool = False
    """Whether the drain waits for the pod and never evicts it. When the pod's time is over, the change is given up."""
    waits_for: str = ""
    """Why the drain waits for the pod, if another member of its gang causes the wait; else empty."""
    gang_blocked: bool = False
    """Whether the pod is neither evicted nor deleted because a member of its gang must stay, or the members are
    unknown."""

    @property
    def budget(self) -> PdbView | None:
        """The one budget that decides about the eviction, or None if no budget does or if several conflict."""
        return self.budgets[0] if len(self.budgets) == 1 else None

    @property
    def answer(self) -> Reason | None:
        """The server's last answer, or None if there is none that still counts."""
        return None if self.memory is None else self.memory.reason

    @property
    def marks(self) -> frozenset[Mark]:
        """The marks of the answer; empty without an answer."""
        return frozenset() if self.memory is None else self.memory.reason.marks

    @property
    def conflicts(self) -> bool:
        """Whether the server would check several budgets for the pod, so that every eviction of it fails (500,
        kubernetes#75957)."""
        return len(self.budgets) > 1


@value
class Standings:
    """All pods that have to leave one node, each in exactly one place, sorted by `namespace/name`."""

    listed_at: datetime
    """When the LIST of the pods began."""
    leaving: tuple[Standing, ...] = ()
    """Pods that need no eviction any more: see `Standing.leaves`."""
    remaining: tuple[Standing, ...] = ()
    """Pods that still have to be evicted, now or later."""
    blocked: int = 0
    """How many pods would have to leave, but must not or cannot be evicted."""
    blockers: tuple[Blocker, ...] = ()
    """Why the blocked pods must stay, and why some gangs must not be interrupted."""
    front: Tier = (0, False)
    """The tier whose turn it is: the lowest of all pods that have to leave, blocked ones included."""
    sent_at: tuple[datetime, ...] = ()
    """When the evictions of the last `PACE` were sent, including those of pods that have gone since."""
    error: str = ""
    """Why the pods could not be listed; nothing else is known then."""
    force_within: timedelta | None = None
    """The length of the drain if pods may be deleted by force at its end (T4); only pods with a shorter grace period
    are deleted. None if no pod may be deleted by force."""
    cordoned_at: datetime | None = None
    """When we cordoned the node, or None if we did not."""
    silent: bool = False
    """Whether the node is not Ready. No pod is evicted then, and it is unknown whether the leaving pods still run."""
    node: str = ""
    """Name of the node; empty if unknown."""

    @property
    def holders(self) -> int:
        """How many pods still have to leave, blocked ones included, or -1 if the pods could not be listed."""
        return -1 if self.error else len(self.leaving) + len(self.remaining) + self.blocked


def find_standings(
    work: NodeWork, options: Drain, now: datetime, *, scope: Scope, cordoned: bool = True
) -> Standings:
    """Return the standing of every pod that has to leave the node and that no filter blocks, and the number and
    blockers of the blocked pods. If the node's pods could not be listed, only the error and the time of the LIST are
    set.

    `cordoned` says whether the drain has begun. Before that, a refused eviction is ignored once its wait is over,
    because no further eviction would replace the refusal. Gangs that must not be interrupted are looked for only during
    the drain; before the drain, `with_gangs` finds them.
    """
    if work.error:
        return Standings(work.listed_at, error=work.error)
    memories = work.evictions if cordoned else forget_old(work.evictions, now)
    scope = replace(scope, now=now)
    classified = classify(work.pods, options, scope)
    front = min(
        (tier_of(pod, options) for pod in (*classified.holders, *classified.blocked)), default=(0, False)
    )
    standings = [
        _stand(pod, memories.get(pod.uid), work, now, silent=scope.silent) for pod in classified.holders
    ]
    waits = find_gang_waits(work, options, scope)
    if options.rules or classified.waited or waits or any(pod.system for pod in classified.holders):
        standings = _in_turn(
            [_waited(standing, classified, options, scope, now=now, gangs=waits) for standing in standings],
            front,
        )
    gangs = {one.pod.gang for one in standings if cordoned and not one.leaves and one.pod.gang is not None}
    blocked_gangs, why = find_blocked_gangs(work, classified, gangs, options, scope)
    standings = [
        replace(standing, gang_blocked=True, due=False) if standing.pod.gang in blocked_gangs else standing
        for standing in standings
    ]
    return Standings(
        work.listed_at,
        leaving=tuple(standing for standing in standings if standing.leaves),
        remaining=tuple(standing for standing in standings if not standing.leaves),
        blocked=len(classified.blocked),
        blockers=merge((*classified.blockers, *why)) if why else classified.blockers,
        front=front,
        sent_at=sent_lately(memories, now),
        force_within=force_within(options, scope),
        cordoned_at=scope.cordoned_at,
        silent=scope.silent,
        node=scope.node,
    )


def stuck_from(pod: PodView) -> datetime | None:
    """Return when a terminating pod counts as stuck (T5). None if the pod is not terminating, or if the time is too
    late for a datetime."""
    try:
        return None if pod.deleted_at is None else pod.deleted_at + STUCK_AFTER
    except OverflowError:
        return None


def force_within(options: Drain, scope: Scope) -> timedelta | None:
    """Return the length of the drain if pods may be deleted by force at its end (T4). None if the policy does not ask
    for that or the operator lacks the right."""
    forces = scope.forces and options.on_timeout == "ForceDelete"
    return parse_duration(options.timeout) if forces else None


def _waited(
    standing: Standing,
    classified: Classified,
    options: Drain,
    scope: Scope,
    *,
    now: datetime,
    gangs: Mapping[Gang, GangWait],
) -> Standing:
    """Return the standing with its tier. If the drain waits for the pod or a member of its gang to end by itself
    (T9-T13), also with the end of that wait; if both are waited for, the wait in `gangs` counts. The pod is not due
    until then, and never if it is spared. Before the cordon, the wait has no end. A leaving pod is not waited for."""
    standing = replace(standing, tier=tier_of(standing.pod, options))
    gang = gangs.get(standing.pod.gang) if standing.pod.gang is not None else None
    if standing.leaves or (standing.pod.uid not in classified.waited and gang is None):
        return standing
    wait, waits_for = patience(standing.pod, options), ""
    if gang is not None and (standing.pod.uid not in classified.waited or gang.patience != wait):
        wait, waits_for = gang.patience, gang.text
    ends = None
    if scope.cordoned_at is not None:
        ends = NEVER if wait is None else scope.cordoned_at + wait
    spared = options.jobs.on_timeout == "Abort" or (gang is not None and gang.spared)
    waits = spared or ends is None or now < ends
    due = standing.due and not waits
    return replace(standing, waits=waits, ends=ends, spared=spared, due=due, waits_for=waits_for)


def _in_turn(standings: list[Standing], front: Tier) -> list[Standing]:
    """Return the standings with `due` cleared where it is not yet the pod's turn: for pods in a tier other than
    `front`, the tier whose turn it is, and for all pods while the drain waits for any pod of that tier."""
    waits = any(standing.waits and standing.tier == front for standing in standings)
    return [
        replace(standing, due=standing.due and standing.tier == front and not waits) for standing in standings
    ]


def _stand(
    pod: PodView, memory: EvictionMemory | None, work: NodeWork, now: datetime, *, silent: bool
) -> Standing:
    """Return the standing of a pod that follows from `memory`, the last answer to its eviction, and from its budgets:
    whether the pod is already leaving (it is terminating, the server has accepted its eviction or deletion, or the
    server said that it is gone and no newer LIST was made), and whether its eviction is due now. The eviction is not
    due on a silent node, if several budgets guard the pod, or until the wait after the last answer is over and a newer
    LIST was made. The tier and all waits are left unset."""
    budgets = pdb.binding_budgets(pod, work.pdbs)
    # A pod that the server no longer knew needs no eviction before a newer LIST shows it (E2, E3).
    unknown = memory is not None and memory.reason is Reason.PODS_LEAVING
    gone = memory is not None and unknown and not is_seen(memory, work.listed_at)
    leaves = pod.deleted_at is not None or is_accepted(memory) or gone
    # A pod that was evicted since the LIST began is left alone: an eviction whose answer was lost may have been
    # accepted. With two budgets the server always refuses.
    waits = memory is not None and not (memory.next_try <= now and is_seen(memory, work.listed_at))
    due = not (leaves or waits or len(budgets) > 1 or silent)
    return Standing(pod, memory, budgets, leaves, due)
