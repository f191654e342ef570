"""The drain of one node: which pods to evict now, and what keeps the others.

The plan is a function of the pods' standings (standing.py); it examines no pod a second time.

Specification: docs/design/drain.md. What holds in every plan:

- a finished, static, DaemonSet or terminating pod is never evicted, and no pod twice;
- every pod that holds a GPU is evicted, waited for, put off to the next pass or blocked with a reason. None is
  skipped: it holds the GPU until its API object is gone;
- the order of the input makes no difference.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from gpusharing.api.policy import Drain
from gpusharing.api.times import NEVER, to_rfc3339
from gpusharing.planning.drain import pdb
from gpusharing.planning.drain.evictions import MAX_EVICTIONS, PACE, QUIET_WAIT
from gpusharing.planning.drain.force import (
    explain_force,
    find_forced,
    find_unasked,
    fits,
    next_force,
    waits_for_forced,
)
from gpusharing.planning.drain.holders import by_ref
from gpusharing.planning.drain.standing import Standing, Standings, stuck_from
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.snapshot.podviews import PdbView, PodView
from gpusharing.planning.vocabulary.blockers import Blocker, merge
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value


@value
class DrainPlan:
    """What to do about the pods of one node in this pass."""

    evict: tuple[PodView, ...] = ()
    """Pods to evict now, in this order."""
    delete: tuple[PodView, ...] = ()
    """Pods to delete now, because the time of the drain is nearly over."""
    only_leaving: bool = False
    """Whether every pod that is left is terminating, and the policy wants the node empty at the end of the drain."""
    holders: int = 0
    """Pods that still hold a GPU, blocked ones included; -1: unknown, the pods could not be listed."""
    first: str = ""
    """`namespace/name` of the first of these that is asked to leave or terminates already; empty: there is none."""
    blockers: tuple[Blocker, ...] = ()
    """What a person may have to look at; the drain goes on trying."""
    jobs: tuple[PodView, ...] = ()
    """Pods whose turn it is and that run to completion: until they have, no pod of their tier is evicted."""
    jobs_until: datetime | None = None
    """When the time of the last of these is over, NEVER where it has no end; None: there are none."""
    overdue: tuple[PodView, ...] = ()
    """Pods of `jobs` whose time is over and that are not to be evicted: the change is to be given up."""
    needs: tuple[tuple[str, int], ...] = ()
    """By PodDisruptionBudget (`namespace/name`): how many pods are still to be evicted under it."""
    next_wake: datetime | None = None
    """When the clock alone changes something; every other change shows in the next LIST."""

    @property
    def idle(self) -> bool:
        """Whether no pod holds a GPU, by the last LIST."""
        return self.holders == 0


def preflight(found: Standings, options: Drain, afterwards: Afterwards, now: datetime) -> tuple[Blocker, ...]:
    """Return what would keep a drain from succeeding; while there is any blocker, the node is not cordoned.

    `found`: the standings on a node that is not cordoned yet. Pods that could not run `afterwards` are blockers unless
    the policy allows that. If the pods could not be listed, that is the only blocker.
    """
    if found.error:
        return (_list_failed(found),)
    lost = (one.pod for one in _to_evict(found)) if options.stranded_pods == "Hold" else ()
    stranded = afterwards.find_stranded(found.node, lost)
    return merge(
        (*_kept(found, _unforced(_to_evict(found), found), now), *explain_force(found, []), *stranded)
    )


def plan_drain(found: Standings, now: datetime, end: datetime | None = None) -> DrainPlan:
    """Which pods to evict now, and what keeps the others. `end`: when the drain's time is over and the remaining pods
    are to be deleted by force; None: no pod is."""
    if found.error:
        return DrainPlan(holders=found.holders, blockers=(_list_failed(found),))
    throttled = found.throttled_until is not None
    jobs, most = _jobs(found), MAX_EVICTIONS - len(found.asked)
    forced = find_forced(found, end, now)[: max(0, most)]
    unasked = find_unasked(found, end, now)
    due = [one for one in _in_turn(found, unasked) if one not in forced]
    evict = () if throttled else _pick(due, most - len(forced), unasked)
    return DrainPlan(
        evict=evict,
        delete=tuple(one.pod for one in forced),
        only_leaving=waits_for_forced(found, end),
        holders=found.holders,
        first=min((one.pod.ref for one in (*found.staying, *found.leaving)), default=""),
        blockers=merge(
            (
                *_kept(found, _to_evict(found), now),
                *explain_force(found, forced),
                *_running(jobs),
                *(_throttled(found.staying, due) if throttled else ()),
            )
        ),
        jobs=tuple(one.pod for one in jobs),
        jobs_until=max((one.ends for one in jobs if one.ends is not None), default=None),
        overdue=tuple(one.pod for one in jobs if one.ends is not None and one.ends <= now),
        needs=tuple(budget_room(found).items()),
        next_wake=_next_wake(found, len(evict) + len(forced), end, now),
    )


def budget_room(found: Standings) -> Counter[str]:
    """By PodDisruptionBudget (`namespace/name`): how many pods of the node a drain still has to evict under it."""
    return Counter(pdb.ref(one.budget) for one in _to_evict(found) if one.budget is not None)


def crowding(found: Standings, crowd: Mapping[str, int]) -> tuple[Blocker, ...]:
    """The budgets whose disruptions are all used by other nodes. `crowd`: the sum of the nodes' `budget_room`."""
    return merge(
        Blocker(
            Reason.PDB,
            tuple(one.pod.ref for one in guarded),
            pdb.ref(budget),
            "Nodes that are already being drained use up the disruptions that it allows",
        )
        for budget, guarded in _by_budget(_to_evict(found))
        if crowd.get(pdb.ref(budget), 0) >= max(1, budget.disruptions_allowed)
    )


def forbidding(found: Standings) -> tuple[Blocker, ...]:
    """Why some pods must not be evicted at all, or not now: a rule or a budget. For pods that were not evicted yet."""
    return merge((*found.blockers, *_budgets(_unforced(found.staying, found))))


# --- what keeps pods ----------------------------------------------------------------------------------------


def _kept(found: Standings, guarded: Sequence[Standing], now: datetime) -> Iterator[Blocker]:
    """What keeps pods from leaving whatever the pace, before and during a drain. `guarded`: the pods whose budgets
    count."""
    yield from found.blockers
    yield from _unheard(found) if found.silent else _stuck(found.leaving, now)
    yield from _budgets(guarded)
    yield from _refused(found.staying, now)


def _unforced(staying: Iterable[Standing], found: Standings) -> list[Standing]:
    """The pods whose budgets can keep a drain from succeeding: the others are deleted at its end (T4)."""
    return [one for one in staying if not fits(one, found)]


def _to_evict(found: Standings) -> list[Standing]:
    """The pods that are evicted sooner or later, without those that get time to end first."""
    return [one for one in found.staying if not (one.spared or (one.waits and one.ends is not None))]


def _jobs(found: Standings) -> list[Standing]:
    """T11: the pods that end by themselves and whose turn it is, on a cordoned node."""
    waiting = (one for one in found.staying if one.waits and one.ends is not None)
    return [one for one in waiting if one.tier == found.front]


def _running(jobs: Iterable[Standing]) -> Iterator[Blocker]:
    """Yield a blocker for each pod that the drain waits for, with the time until which it waits."""
    for one in jobs:
        why = f": {one.waits_for}" if one.waits_for else ""
        if one.ends == NEVER:
            said = f"The drain waits as long as the pod runs{why}"
            yield Blocker(Reason.JOBS_RUNNING, (one.pod.ref,), message=said)
        elif one.ends is not None:
            said = f"The drain waits until {to_rfc3339(one.ends)}{why}"
            yield Blocker(Reason.JOBS_RUNNING, (one.pod.ref,), message=said, until=one.ends)


def _list_failed(found: Standings) -> Blocker:
    return Blocker(Reason.LIST_FAILED, message=found.error)


def _unheard(found: Standings) -> Iterator[Blocker]:
    """Yield one NodeUnreachable blocker for all pods that the drain waits for, or nothing without any (T6).

    The caller knows that the node is not Ready. Nobody knows whether its terminating pods still run.
    """
    if pods := tuple(one.pod.ref for one in (*found.leaving, *found.staying)):
        yield Blocker(Reason.NODE_UNREACHABLE, pods, message="The node is not Ready")


def _stuck(leaving: Iterable[Standing], now: datetime) -> Iterator[Blocker]:
    """T5: pods that should leave and do not."""
    for pod in (one.pod for one in leaving):
        moment = stuck_from(pod)
        if moment is not None and now > moment:
            held = (
                f"Finalizers: {', '.join(sorted(pod.finalizers))}"
                if pod.finalizers
                else "It has no finalizer"
            )
            yield Blocker(Reason.TERMINATING_STUCK, (pod.ref,), message=held)


def _budgets(staying: Sequence[Standing]) -> Iterator[Blocker]:
    """E5, E8, E9: one blocker per PodDisruptionBudget that refuses, whether the server has said so or will."""
    for one in staying:
        if one.conflicts:
            names = ", ".join(map(pdb.ref, one.budgets))
            yield Blocker(Reason.PDB_CONFLICT, (one.pod.ref,), names, _server_said([one]))
    for budget, guarded in _by_budget(staying):
        refused = [one for one in guarded if one.answer is Reason.PDB]
        shown = refused if budget.disruptions_allowed > 0 else guarded
        if shown:
            reason = Reason.PDB_NEVER_ALLOWS if pdb.never_allows(budget) else Reason.PDB
            message = f"{_state(budget)}. {_server_said(refused)}".rstrip()
            yield Blocker(reason, tuple(one.pod.ref for one in shown), pdb.ref(budget), message)


def _by_budget(staying: Iterable[Standing]) -> Iterable[tuple[PdbView, list[Standing]]]:
    """The pods that one budget decides about, budget by budget."""
    guarded: dict[str, tuple[PdbView, list[Standing]]] = {}
    for one in staying:
        if (budget := one.budget) is not None:
            guarded.setdefault(pdb.ref(budget), (budget, []))[1].append(one)
    return guarded.values()


def _refused(staying: Iterable[Standing], now: datetime) -> Iterator[Blocker]:
    """The other answers of the server, verbatim."""
    for one in staying:
        if one.memory is None or one.answer is None or one.conflicts:
            continue
        if one.answer is Reason.PDB and one.budget is not None:
            continue  # reported with its budget
        if one.answer is Reason.PDB_NOT_OBSERVED and now < one.memory.since + timedelta(seconds=QUIET_WAIT):
            continue
        if one.answer not in (
            Reason.THROTTLED,
            Reason.PODS_LEAVING,
        ):  # told once for all pods; no trouble at all
            yield Blocker(one.answer, (one.pod.ref,), message=_server_said([one]))


def _throttled(staying: Iterable[Standing], due: Iterable[Standing]) -> Iterator[Blocker]:
    """E7: no pod and no budget is to blame, so one blocker for all that would be evicted now."""
    told = [one for one in staying if one.answer is Reason.THROTTLED]
    if refs := {one.pod.ref for one in (*told, *due)}:
        yield Blocker(Reason.THROTTLED, tuple(sorted(refs)), message=_server_said(told))


def _state(budget: PdbView) -> str:
    """Describe the state of a PodDisruptionBudget: how many of its pods are healthy and how many have to be."""
    return (
        f"Allows {counted(budget.disruptions_allowed, 'disruption')}: {budget.current_healthy} of"
        f" {counted(budget.expected_pods, 'pod is', 'pods are')} healthy, {budget.desired_healthy} must be"
    )


def _server_said(standings: Iterable[Standing]) -> str:
    said = (one.memory.message for one in standings if one.memory is not None and one.memory.message)
    return next((f'Server: "{message}"' for message in said), "")


# --- whom to evict, and when to look again -------------------------------------------------------------------


def _in_turn(found: Standings, unasked: Sequence[Standing]) -> list[Standing]:
    """The pods that are due, fewest refusals first, so that refused pods do not crowd out the others. `unasked`: pods
    that are due although it is not their turn."""
    early = {one.pod.uid for one in unasked}
    return sorted((one for one in found.staying if one.due or one.pod.uid in early), key=_turn)


def _turn(one: Standing) -> tuple[int, tuple[str, str]]:
    return 0 if one.memory is None else one.memory.tries, by_ref(one.pod)


def _pick(due: Iterable[Standing], most: int, unasked: Sequence[Standing]) -> tuple[PodView, ...]:
    """At most `most` pods, and per budget no more than it allows now: the rest would surely be answered 429.

    If a budget allows none, one pod is tried anyway: our reading of the budget may be out of date. `unasked`: there is
    no time left to try these one after another.
    """
    room: dict[str, int] = {}
    early = {one.pod.uid for one in unasked}
    picked: list[PodView] = []
    for one in due:
        if len(picked) >= most:
            break
        if (budget := one.budget) is not None and one.pod.uid not in early:
            name = pdb.ref(budget)
            left = room.get(name, max(1, budget.disruptions_allowed))
            if left == 0:
                continue
            room[name] = left - 1
        picked.append(one.pod)
    return tuple(picked)


def _next_wake(found: Standings, sent: int, end: datetime | None, now: datetime) -> datetime | None:
    """The first moment at which the clock alone may change the plan. `sent`: evictions and deletions of this pass."""
    moments = [moment for one in found.leaving if (moment := stuck_from(one.pod)) is not None]
    moments += next_force(found, end)
    moments += _next_tries(found.staying)
    moments += [one.ends for one in found.staying if one.ends not in (None, NEVER)]
    moments += [blocker.until for blocker in found.blockers if blocker.until is not None]
    if found.throttled_until is not None:
        moments.append(found.throttled_until)
    if sent + len(found.asked) >= MAX_EVICTIONS:
        moments += [moment + PACE for moment in found.asked] or [now + PACE]
    return min((moment for moment in moments if moment > now), default=None)


def _next_tries(staying: Iterable[Standing]) -> Iterator[datetime]:
    """Yield when refused evictions are sent again, and until when a budget may not have observed its pods yet."""
    for memory in (one.memory for one in staying if one.memory is not None):
        yield memory.next_try
        if memory.reason is Reason.PDB_NOT_OBSERVED:
            yield memory.since + timedelta(seconds=QUIET_WAIT)
