"""The drain of one node: which pods to evict now, and what keeps the others (`holders.py` says who must leave).

Specification: docs/design/drain.md. What holds in every plan:

- a finished, static, DaemonSet or terminating pod is never evicted, and no pod twice;
- every pod that holds a GPU is evicted, waited for, put off to the next pass or blocked with a reason. None is
  skipped: it holds the GPU until its API object is gone;
- the order of the input makes no difference.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gpusharing.api.policy import Drain
from gpusharing.planning.drain import pdb
from gpusharing.planning.drain.evictions import QUIET_WAIT, is_accepted, is_seen, throttled_until
from gpusharing.planning.drain.holders import Scope, by_ref, classify, gpu_resources
from gpusharing.planning.snapshot.podviews import EvictionMemory, NodeWork, PdbView, PodView
from gpusharing.planning.words.blockers import Blocker, merge
from gpusharing.planning.words.reasons import Reason, reason_of

MAX_EVICTIONS = 10
"""Evictions per node within `PACE`, however soon passes follow one another (E18)."""
EVICTIONS_PER_SECOND = 5
"""Per node (E18)."""
PACE = timedelta(seconds=MAX_EVICTIONS / EVICTIONS_PER_SECOND)
STUCK_AFTER = timedelta(seconds=60)
"""From the end of the grace period until a pod that still exists is called stuck (T5)."""


@dataclass(frozen=True, slots=True)
class DrainPlan:
    """What to do about the pods of one node in this pass."""

    evict: tuple[PodView, ...] = ()
    """To evict now, in this order."""
    waiting: tuple[PodView, ...] = ()
    """Terminating, evicted a moment ago, or on a kubelet that does not answer: nothing to do but look again."""
    later: tuple[PodView, ...] = ()
    """To evict in a later pass; nothing but our own pace holds them back."""
    holders: int = 0
    """Pods that still hold a GPU, blocked ones included; -1: unknown, the pods could not be listed."""
    blockers: tuple[Blocker, ...] = ()
    """What a person may have to look at; the drain goes on trying."""
    next_wake: datetime | None = None
    """When something changes by the clock alone; apart from that, the next LIST tells."""

    @property
    def idle(self) -> bool:
        """By this LIST no pod holds a GPU."""
        return self.holders == 0


def preflight(
    work: NodeWork, options: Drain, offered: AbstractSet[str], now: datetime, *, scope: Scope
) -> tuple[Blocker, ...]:
    """What would keep a drain from succeeding; while there is anything, the node is not cordoned.

    `offered`: the resource names that some node of the cluster will still offer after all planned changes.
    """
    if work.error:
        return (_list_failed(work),)
    work = replace(work, evictions=_standing(work, now))
    found = classify(work.pods, options, scope)
    leaving, staying = _split(found.holders, work)
    stranded = _stranded(staying, offered) if options.stranded_pods == "Hold" else ()
    return merge(
        (
            *found.blockers,
            *stranded,
            *_stuck(leaving, now),
            *_budgets(staying, work),
            *_refused(staying, work, now),
        )
    )


def plan_drain(
    work: NodeWork,
    options: Drain,
    now: datetime,
    *,
    scope: Scope,
) -> DrainPlan:
    """Whom to evict now and what keeps the others."""
    if work.error:
        return DrainPlan(holders=-1, blockers=(_list_failed(work),))
    found = classify(work.pods, options, scope)
    leaving, staying = _split(found.holders, work)
    due = _due(staying, work, now)
    until = throttled_until(work.evictions, now)
    evict = () if until else _pick(due, work, MAX_EVICTIONS - len(_asked_lately(work, now)))
    blockers = merge(
        (
            *found.blockers,
            *_stuck(leaving, now),
            *_budgets(staying, work),
            *_refused(staying, work, now),
            *(_throttled(staying, due, work) if until else ()),
        )
    )
    named = {ref for blocker in blockers for ref in blocker.pods}
    return DrainPlan(
        evict=evict,
        waiting=leaving,
        later=tuple(pod for pod in staying if pod not in evict and pod.ref not in named),
        holders=len(found.holders) + len(found.blocked),
        blockers=blockers,
        next_wake=_next_wake(leaving, staying, evict, work, now, until),
    )


def budget_room(work: NodeWork, options: Drain, scope: Scope) -> Counter[str]:
    """By PodDisruptionBudget (`namespace/name`): pods of the node that a drain has still to evict under it."""
    staying = _split(classify(work.pods, options, scope).holders, work)[1]
    budgets = (pdb.guarding(pod, work.pdbs) for pod in staying)
    return Counter(pdb.ref(budget) for budget in budgets if budget is not None)


def crowding(work: NodeWork, options: Drain, scope: Scope, crowd: Mapping[str, int]) -> tuple[Blocker, ...]:
    """The budgets whose whole room other nodes use. `crowd`: the sum of their `budget_room`."""
    taken: dict[str, tuple[PdbView, list[str]]] = {}
    for pod in _split(classify(work.pods, options, scope).holders, work)[1]:
        budget = pdb.guarding(pod, work.pdbs)
        if budget is not None and crowd.get(pdb.ref(budget), 0) >= max(1, budget.disruptions_allowed):
            taken.setdefault(pdb.ref(budget), (budget, []))[1].append(pod.ref)
    return merge(
        Blocker(
            Reason.PDB,
            tuple(refs),
            name,
            "Nodes that are already being drained use up the disruptions that it allows",
        )
        for name, (_, refs) in taken.items()
    )


def _standing(work: NodeWork, now: datetime) -> dict[str, EvictionMemory]:
    """Answers that still hold. An old refusal would block for ever: before the cordon nobody asks again."""
    return {
        uid: memory
        for uid, memory in work.evictions.items()
        if memory.next_try > now or reason_of(memory.reason) is Reason.EVICTED
    }


# --- what keeps pods ----------------------------------------------------------------------------------------


def _list_failed(work: NodeWork) -> Blocker:
    return Blocker(Reason.LIST_FAILED, message=work.error)


def _stranded(pods: Iterable[PodView], offered: AbstractSet[str]) -> Iterator[Blocker]:
    for pod in pods:
        lost = [name for name in gpu_resources(pod) if name not in offered]
        if lost:
            yield Blocker(Reason.STRANDED_PODS, (pod.ref,), message=f"No node would offer {', '.join(lost)}")


def _stuck(leaving: Iterable[PodView], now: datetime) -> Iterator[Blocker]:
    """T5, P13: pods that are to leave and do not."""
    for pod in leaving:
        stuck_from = _stuck_from(pod)
        if stuck_from is not None and now > stuck_from:
            held = (
                f"Finalizers: {', '.join(sorted(pod.finalizers))}"
                if pod.finalizers
                else "It has no finalizer"
            )
            yield Blocker(Reason.TERMINATING_STUCK, (pod.ref,), message=held)
        elif pod.phase == "Unknown":
            yield Blocker(Reason.NODE_UNREACHABLE, (pod.ref,))


def _stuck_from(pod: PodView) -> datetime | None:
    """When a pod that is to leave counts as stuck; None: it is not leaving, or its time is beyond every clock."""
    try:
        return None if pod.deleted_at is None else pod.deleted_at + STUCK_AFTER
    except OverflowError:
        return None


def _budgets(pods: Iterable[PodView], work: NodeWork) -> Iterator[Blocker]:
    """E5, E8, E9: one blocker per PodDisruptionBudget that refuses, whether the server said so or will."""
    guarded: dict[str, tuple[PdbView, list[PodView]]] = {}
    for pod in pods:
        if conflict := pdb.conflicting(pod, work.pdbs):
            yield Blocker(
                Reason.PDB_CONFLICT, (pod.ref,), ", ".join(map(pdb.ref, conflict)), _server_said([pod], work)
            )
        elif budget := pdb.guarding(pod, work.pdbs):
            guarded.setdefault(pdb.ref(budget), (budget, []))[1].append(pod)
    for name, (budget, its_pods) in guarded.items():
        refused = [pod for pod in its_pods if _refusal(pod, work) is Reason.PDB]
        shown = refused if budget.disruptions_allowed > 0 else its_pods
        if shown:
            reason = Reason.PDB_NEVER_ALLOWS if pdb.never_allows(budget) else Reason.PDB
            message = f"{_state(budget)}. {_server_said(refused, work)}".rstrip()
            yield Blocker(reason, tuple(pod.ref for pod in shown), name, message)


def _refused(pods: Iterable[PodView], work: NodeWork, now: datetime) -> Iterator[Blocker]:
    """The other answers of the server, verbatim."""
    for pod in pods:
        memory = work.evictions.get(pod.uid)
        if memory is None or pdb.conflicting(pod, work.pdbs):
            continue
        reason = reason_of(memory.reason)
        if reason is Reason.PDB and pdb.guarding(pod, work.pdbs) is not None:
            continue  # told with its budget
        if reason is Reason.PDB_NOT_OBSERVED and now < memory.since + timedelta(seconds=QUIET_WAIT):
            continue
        if reason not in (Reason.THROTTLED, Reason.PODS_LEAVING):  # told once for all pods; no trouble at all
            yield Blocker(reason, (pod.ref,), message=_server_said([pod], work))


def _throttled(staying: Iterable[PodView], due: Sequence[PodView], work: NodeWork) -> Iterator[Blocker]:
    """E7: no pod and no budget is to blame, so one blocker for all that would be evicted now."""
    told = [pod for pod in staying if _refusal(pod, work) is Reason.THROTTLED]
    if refs := {pod.ref for pod in (*told, *due)}:
        yield Blocker(Reason.THROTTLED, tuple(sorted(refs)), message=_server_said(told, work))


def _state(budget: PdbView) -> str:
    return (
        f"Allows {budget.disruptions_allowed} disruptions: {budget.current_healthy} of {budget.expected_pods} pods "
        f"are healthy, {budget.desired_healthy} must be"
    )


def _server_said(pods: Iterable[PodView], work: NodeWork) -> str:
    for pod in pods:
        memory = work.evictions.get(pod.uid)
        if memory is not None and memory.message:
            return f'Server: "{memory.message}"'
    return ""


# --- whom to evict, and when to look again -------------------------------------------------------------------


def _memory(pod: PodView, work: NodeWork) -> EvictionMemory | None:
    return work.evictions.get(pod.uid)


def _refusal(pod: PodView, work: NodeWork) -> Reason | None:
    memory = _memory(pod, work)
    return None if memory is None else reason_of(memory.reason)


def _split(holders: Iterable[PodView], work: NodeWork) -> tuple[tuple[PodView, ...], tuple[PodView, ...]]:
    """(those that need no eviction of ours, those that do). An accepted eviction is never repeated (E1)."""
    leaving: list[PodView] = []
    staying: list[PodView] = []
    for pod in holders:
        gone = pod.deleted_at is not None or pod.phase == "Unknown" or _is_answered(pod, work)
        (leaving if gone else staying).append(pod)
    return tuple(leaving), tuple(staying)


def _is_answered(pod: PodView, work: NodeWork) -> bool:
    """Accepted (E1); or the server knows no such pod any more, and only a newer LIST tells more (E2, E3)."""
    memory = _memory(pod, work)
    if memory is None:
        return False
    if reason_of(memory.reason) is Reason.PODS_LEAVING:
        return not is_seen(memory, work.listed_at)
    return is_accepted(memory)


def _asked_lately(work: NodeWork, now: datetime) -> list[datetime]:
    """When the requests of the last `PACE` were sent. A pass that made progress is followed by one at once."""
    times = (memory.asked_at for memory in work.evictions.values())
    return [moment for moment in times if moment is not None and now - PACE < moment]


def _due(staying: Iterable[PodView], work: NodeWork, now: datetime) -> tuple[PodView, ...]:
    """Those whose back-off is over, fewest refusals first, so that refused pods do not crowd out the others.

    A pod with two budgets is left out: the server would refuse it with certainty. So is one that was asked for since
    the LIST was begun: an eviction whose answer was lost may have been accepted.
    """
    due = []
    for pod in staying:
        memory = _memory(pod, work)
        if memory is not None and not (memory.next_try <= now and is_seen(memory, work.listed_at)):
            continue
        if not pdb.conflicting(pod, work.pdbs):
            due.append((0 if memory is None else memory.tries, by_ref(pod), pod))
    return tuple(pod for _, _, pod in sorted(due, key=lambda entry: entry[:2]))


def _pick(due: Iterable[PodView], work: NodeWork, most: int) -> tuple[PodView, ...]:
    """At most so many, and per budget no more than it allows now: the rest would surely be answered 429.

    Where a budget allows none, one pod is tried all the same: our reading of it may be out of date.
    """
    room: dict[str, int] = {}
    picked: list[PodView] = []
    for pod in due:
        if len(picked) >= most:
            break
        budget = pdb.guarding(pod, work.pdbs)
        if budget is not None:
            name = pdb.ref(budget)
            left = room.get(name, max(1, budget.disruptions_allowed))
            if left == 0:
                continue
            room[name] = left - 1
        picked.append(pod)
    return tuple(picked)


def _next_wake(
    leaving: Iterable[PodView],
    staying: Iterable[PodView],
    evict: tuple[PodView, ...],
    work: NodeWork,
    now: datetime,
    until: datetime | None,
) -> datetime | None:
    moments = [moment for pod in leaving if (moment := _stuck_from(pod)) is not None]
    for pod in staying:
        if memory := _memory(pod, work):
            moments.append(memory.next_try)
            if memory.reason == Reason.PDB_NOT_OBSERVED:
                moments.append(memory.since + timedelta(seconds=QUIET_WAIT))
    if until is not None:
        moments.append(until)
    asked = _asked_lately(work, now)
    if len(evict) + len(asked) >= MAX_EVICTIONS:
        moments += [moment + PACE for moment in asked] or [now + PACE]
    return min((moment for moment in moments if moment > now), default=None)
