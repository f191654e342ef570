"""How each pod of a node stands in its drain (docs/design/drain.md): looked at once, for preflight and plan alike.

What is asked of one pod is asked here: who decides about it (holders.py), what the server said of it last
(evictions.py), which budgets guard it (pdb.py), and with these whether it may be evicted now.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api.policy import Drain
from gpusharing.api.times import NEVER
from gpusharing.api.validation import parse_duration
from gpusharing.planning.drain import pdb
from gpusharing.planning.drain.evictions import (
    asked_lately,
    forget_old,
    is_accepted,
    is_seen,
    throttled_until,
)
from gpusharing.planning.drain.holders import Classified, Scope, classify
from gpusharing.planning.drain.rules import Tier, patience, tier_of
from gpusharing.planning.snapshot.podviews import EvictionMemory, NodeWork, PdbView, PodView
from gpusharing.planning.words.blockers import Blocker
from gpusharing.planning.words.reasons import Reason, reason_of
from gpusharing.planning.words.values import value

STUCK_AFTER = timedelta(seconds=60)
"""From the end of the grace period until a pod that still exists is called stuck (T5)."""


@value
class Standing:
    """One pod that holds a GPU and that no filter keeps: where its eviction stands in this pass."""

    pod: PodView
    memory: EvictionMemory | None
    """The server's last answer about it, as far as that still counts; None: it was not asked."""
    answer: Reason | None
    """What that answer was."""
    budgets: tuple[PdbView, ...]
    """The budgets that the server will ask, by name; more than one: it refuses with certainty (E8)."""
    leaves: bool
    """It needs no eviction of ours: it is terminating, accepted (E1), unknown to the server by now (E2, E3), or on a
    kubelet that does not answer (P13)."""
    due: bool
    """It may be evicted now, as far as the pod goes; the pace and the room of its budget are the plan's."""
    tier: Tier = (0, False)
    """A lower one is gone before it is asked to go."""
    waits: bool = False
    """It is to end by itself, and is not evicted now."""
    ends: datetime | None = None
    """Until when it is waited for, NEVER where that has no end; None: it is not, or the node is not cordoned yet."""
    spared: bool = False
    """It is to end by itself, and is never evicted: past its time the change is given up."""

    @property
    def budget(self) -> PdbView | None:
        """The one budget that decides about the eviction; None: none does, or several conflict."""
        return self.budgets[0] if len(self.budgets) == 1 else None

    @property
    def conflicts(self) -> bool:
        """Two or more budgets make every eviction of it fail (500, kubernetes#75957)."""
        return len(self.budgets) > 1


@value
class Standings:
    """All pods of one node that hold a GPU, each in exactly one place, sorted by `namespace/name`."""

    listed_at: datetime
    leaving: tuple[Standing, ...] = ()
    """Only to be waited for."""
    staying: tuple[Standing, ...] = ()
    """To be evicted, now or later."""
    blocked: int = 0
    """Pods that hold a GPU and must not or cannot be evicted."""
    blockers: tuple[Blocker, ...] = ()
    """Why those are blocked."""
    front: Tier = (0, False)
    """The tier whose turn it is: the lowest of all pods that hold a GPU, blocked ones included."""
    asked: tuple[datetime, ...] = ()
    """When the evictions of the last `PACE` were sent, those of pods that are gone since included."""
    throttled_until: datetime | None = None
    """No eviction may be sent on this node before then; None: they may be (E7)."""
    error: str = ""
    """Why the pods could not be listed: then nothing else is known."""
    force_within: timedelta | None = None
    """Pods with a shorter grace period may be deleted at the end of the drain (T4); None: none is."""
    cordoned_at: datetime | None = None
    """When we cordoned the node; None: we did not."""

    @property
    def holders(self) -> int:
        """Pods that still hold a GPU; -1: unknown, the pods could not be listed."""
        return -1 if self.error else len(self.leaving) + len(self.staying) + self.blocked


def find_standings(
    work: NodeWork, options: Drain, now: datetime, *, scope: Scope, cordoned: bool = True
) -> Standings:
    """Look at every pod of the node once.

    `cordoned`: the drain is under way. Before it nobody asks the server, so an answer whose wait is over would block
    for ever and is left out.
    """
    if work.error:
        return Standings(work.listed_at, error=work.error)
    memories = work.evictions if cordoned else forget_old(work.evictions, now)
    found = classify(work.pods, options, replace(scope, now=now))
    front = min((tier_of(pod, options) for pod in (*found.holders, *found.blocked)), default=(0, False))
    known = [_stand(pod, memories.get(pod.uid), work, now) for pod in found.holders]
    if options.rules or found.waited or any(pod.system for pod in found.holders):
        known = _in_turn([_waited(one, found, options, scope, now) for one in known], front)
    return Standings(
        work.listed_at,
        leaving=tuple(one for one in known if one.leaves),
        staying=tuple(one for one in known if not one.leaves),
        blocked=len(found.blocked),
        blockers=found.blockers,
        front=front,
        asked=asked_lately(memories, now),
        throttled_until=throttled_until(memories, now),
        force_within=force_within(options, scope),
        cordoned_at=scope.cordoned_at,
    )


def stuck_from(pod: PodView) -> datetime | None:
    """When a pod that is to leave counts as stuck (T5); None: it is not leaving, or its time is beyond every clock."""
    try:
        return None if pod.deleted_at is None else pod.deleted_at + STUCK_AFTER
    except OverflowError:
        return None


def force_within(options: Drain, scope: Scope) -> timedelta | None:
    """Pods with a shorter grace period may be deleted at the end of the drain (T4); None: none is."""
    return parse_duration(options.timeout) if asks_for_force(options) and scope.forces else None


def asks_for_force(options: Drain) -> bool:
    """Whether the policy wants what is left at the end of the drain deleted."""
    return options.on_timeout == "ForceDelete"


def _waited(one: Standing, found: Classified, options: Drain, scope: Scope, now: datetime) -> Standing:
    """With its tier, and whether it is waited for (T9-T12)."""
    one = replace(one, tier=tier_of(one.pod, options))
    if one.pod.uid not in found.waited or one.leaves:
        return one
    wait = patience(one.pod, options)
    ends = None
    if scope.cordoned_at is not None:
        ends = NEVER if wait is None else scope.cordoned_at + wait
    spared = options.jobs.on_timeout == "Abort"
    waits = spared or ends is None or now < ends
    return replace(one, waits=waits, ends=ends, spared=spared, due=one.due and not waits)


def _in_turn(standings: list[Standing], front: Tier) -> list[Standing]:
    """Nobody is evicted before it is the turn of its tier, nor while pods of that tier are waited for."""
    waits = any(one.waits and one.tier == front for one in standings)
    return [replace(one, due=one.due and one.tier == front and not waits) for one in standings]


def _stand(pod: PodView, memory: EvictionMemory | None, work: NodeWork, now: datetime) -> Standing:
    answer = None if memory is None else reason_of(memory.reason)
    budgets = pdb.asked(pod, work.pdbs)
    leaves = pod.deleted_at is not None or pod.phase == "Unknown" or _is_answered(memory, answer, work)
    # One that was asked for since the LIST was begun is left alone: an eviction whose answer was lost may have been
    # accepted. With two budgets the server would refuse with certainty.
    waits = memory is not None and not (memory.next_try <= now and is_seen(memory, work.listed_at))
    return Standing(pod, memory, answer, budgets, leaves, due=not (leaves or waits or len(budgets) > 1))


def _is_answered(memory: EvictionMemory | None, answer: Reason | None, work: NodeWork) -> bool:
    """Accepted (E1); or the server knows no such pod any more, and only a newer LIST tells more (E2, E3)."""
    if memory is None:
        return False
    if answer is Reason.PODS_LEAVING:
        return not is_seen(memory, work.listed_at)
    return is_accepted(memory)
