"""The drain of one node: which pods to evict now, and what holds back the others.

The plan is a function of the pods' standings (standing.py). Specification: docs/design/drain.md. Every plan has these
properties:

- a finished, static, DaemonSet or terminating pod is never evicted, and no pod is evicted twice;
- every pod that holds a GPU is evicted, waited for, put off to the next pass or blocked with a reason. No such
  pod is skipped, because it holds the GPU until its API object is gone;
- the order of the input makes no difference.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from gpusharing.api.policy import Drain
from gpusharing.api.times import NEVER, to_rfc3339
from gpusharing.planning.drain import pdb
from gpusharing.planning.drain.evictions import MAX_EVICTIONS, PACE, QUIET_WAIT
from gpusharing.planning.drain.force import explain_force, find_forced, fits, force_moment, waits_for_forced
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
    """Pods to delete now, because the drain's time is nearly over."""
    only_leaving: bool = False
    """Whether only terminating pods remain in a drain that deletes by force the pods that remain at its end."""
    holders: int = 0
    """How many pods still have to leave, blocked ones included, or -1 if the pods could not be listed."""
    first: str = ""
    """The first pod that has to leave or is leaving, as `namespace/name`; empty if there is none."""
    blockers: tuple[Blocker, ...] = ()
    """Why pods have not left yet, for people. The drain keeps trying nevertheless."""
    jobs: tuple[PodView, ...] = ()
    """Pods whose turn it is and that end by themselves. Until they have ended, no pod of their tier is evicted."""
    jobs_until: datetime | None = None
    """When the time of all `jobs` is over: NEVER if it is unlimited for one of them, None if there are no jobs."""
    overdue: tuple[PodView, ...] = ()
    """Pods of `jobs` whose time is over and that must not be evicted, so that the change has to be given up."""
    needs: tuple[tuple[str, int], ...] = ()
    """By PodDisruptionBudget (`namespace/name`): how many pods are still to be evicted under it."""
    next_wake: datetime | None = None
    """When the passing of time alone may change the plan, or None if it cannot. Other changes show in the next LIST."""

    @property
    def idle(self) -> bool:
        return self.holders == 0


def preflight(pods: Standings, options: Drain, afterwards: Afterwards, now: datetime) -> tuple[Blocker, ...]:
    """Return the blockers that would make a drain fail, on a node that is not cordoned yet (docs/design/drain.md#rule-10).

    Budgets count only for pods that cannot be deleted by force at the end of the drain.
    """
    if pods.error:
        return (Blocker(Reason.LIST_FAILED, message=pods.error),)
    evicted = _to_evict(pods)
    lost = (standing.pod for standing in evicted) if options.stranded_pods == "Hold" else ()
    found = _find_blockers(pods, [standing for standing in evicted if not fits(standing, pods)], now)
    return merge((*found, *explain_force(pods, []), *afterwards.find_stranded(pods.node, lost)))


def plan_drain(pods: Standings, now: datetime, end: datetime | None = None) -> DrainPlan:
    """Return which pods to evict and delete now, and what holds back the others.

    `end` is when the remaining pods must have been deleted by force, or None if no pod is deleted by force. At most
    MAX_EVICTIONS evictions and deletions are sent within `PACE`, deletions first.
    """
    if pods.error:
        failed = Blocker(Reason.LIST_FAILED, message=pods.error)
        return DrainPlan(holders=pods.holders, blockers=(failed,))
    most = max(0, MAX_EVICTIONS - len(pods.sent_at))
    forced, unasked = find_forced(pods, end, now)
    forced = forced[:most]
    evict = _pick(pods, forced, {standing.pod.uid for standing in unasked}, most - len(forced))
    jobs = [
        standing
        for standing in pods.remaining
        if standing.waits and standing.ends is not None and standing.tier == pods.front
    ]
    return DrainPlan(
        evict=evict,
        delete=tuple(standing.pod for standing in forced),
        only_leaving=waits_for_forced(pods, end),
        holders=pods.holders,
        first=min((standing.pod.ref for standing in (*pods.remaining, *pods.leaving)), default=""),
        blockers=merge(
            (
                *_find_blockers(pods, _to_evict(pods), now),
                *explain_force(pods, forced),
                *_explain_waits(pods, jobs),
            )
        ),
        jobs=tuple(standing.pod for standing in jobs),
        jobs_until=max((standing.ends for standing in jobs if standing.ends is not None), default=None),
        overdue=tuple(
            standing.pod for standing in jobs if standing.ends is not None and standing.ends <= now
        ),
        needs=tuple(budget_room(pods).items()),
        next_wake=_next_wake(pods, len(evict) + len(forced), end, now),
    )


def budget_room(pods: Standings) -> Counter[str]:
    """Return how many pods a drain still has to evict under each PodDisruptionBudget (`namespace/name`)."""
    return Counter(pdb.ref(standing.budget) for standing in _to_evict(pods) if standing.budget is not None)


def crowding(pods: Standings, crowd: Mapping[str, int]) -> tuple[Blocker, ...]:
    """Return a blocker (PDB) for each budget whose allowed disruptions other nodes already use up.

    `crowd` is the sum of `budget_room` over the nodes in flight. A budget that allows none counts as allowing one.
    """
    return merge(
        Blocker(
            Reason.PDB,
            tuple(standing.pod.ref for standing in guarded),
            pdb.ref(budget),
            "Nodes that are already being drained use up the disruptions that the budget allows",
        )
        for budget, guarded in _by_budget(_to_evict(pods))
        if crowd.get(pdb.ref(budget), 0) >= max(1, budget.disruptions_allowed)
    )


def forbidding(pods: Standings) -> tuple[Blocker, ...]:
    """Return the blockers of pods that must not be evicted: a rule or gang forbids it, or a budget that force cannot bypass."""
    guarded = [standing for standing in pods.remaining if not fits(standing, pods)]
    return merge((*pods.blockers, *_explain_budgets(guarded)))


def _to_evict(pods: Standings) -> list[Standing]:
    """Return the remaining pods that will be evicted sooner or later, except those that still have time to end by themselves."""
    return [
        standing
        for standing in pods.remaining
        if not (standing.spared or (standing.waits and standing.ends is not None))
    ]


def _by_budget(remaining: Iterable[Standing]) -> Iterable[tuple[PdbView, list[Standing]]]:
    guarded: dict[str, tuple[PdbView, list[Standing]]] = {}
    for standing in remaining:
        if (budget := standing.budget) is not None:
            guarded.setdefault(pdb.ref(budget), (budget, []))[1].append(standing)
    return guarded.values()


# --- what holds pods back ----------------------------------------------------------------------------------------


def _find_blockers(pods: Standings, guarded: Sequence[Standing], now: datetime) -> Iterator[Blocker]:
    yield from pods.blockers
    if not pods.silent:
        for pod in (standing.pod for standing in pods.leaving):
            if (moment := stuck_from(pod)) is not None and now > moment:
                finalizers = f"Finalizers: {', '.join(sorted(pod.finalizers))}" if pod.finalizers else ""
                message = finalizers or "The pod has no finalizer"
                yield Blocker(Reason.TERMINATING_STUCK, (pod.ref,), message=message)
    elif refs := tuple(standing.pod.ref for standing in (*pods.leaving, *pods.remaining)):
        yield Blocker(Reason.NODE_UNREACHABLE, refs, message="The node is not Ready")
    yield from _explain_budgets(guarded)
    for standing in pods.remaining:
        memory = standing.memory
        if memory is None or standing.conflicts:
            continue
        if memory.reason is Reason.PDB and standing.budget is not None:
            continue  # reported with its budget
        if memory.reason is Reason.PDB_NOT_OBSERVED and now < memory.since + timedelta(seconds=QUIET_WAIT):
            continue
        if memory.reason not in (
            Reason.THROTTLED,
            Reason.PODS_LEAVING,
        ):  # neither keeps a drain from succeeding
            yield Blocker(memory.reason, (standing.pod.ref,), message=_server_said([standing]))


def _explain_budgets(guarded: Sequence[Standing]) -> Iterator[Blocker]:
    """Yield a blocker for each pod that several budgets guard (E8), and for each budget that refuses evictions (E5, E9).

    A budget that allows no disruption is reported for all of its pods, another one for those that the server refused.
    """
    for standing in guarded:
        if standing.conflicts:
            names = ", ".join(map(pdb.ref, standing.budgets))
            yield Blocker(Reason.PDB_CONFLICT, (standing.pod.ref,), names, _server_said([standing]))
    for budget, its in _by_budget(guarded):
        refused = [standing for standing in its if standing.answer is Reason.PDB]
        if shown := refused if budget.disruptions_allowed > 0 else its:
            reason = Reason.PDB_NEVER_ALLOWS if pdb.never_allows(budget) else Reason.PDB
            state = (
                f"The budget allows {counted(budget.disruptions_allowed, 'disruption')}: {budget.current_healthy} of"
                f" {counted(budget.expected_pods, 'pod is', 'pods are')} healthy, and {budget.desired_healthy} must be"
            )
            message = f"{state}. {_server_said(refused)}".rstrip()
            yield Blocker(reason, tuple(standing.pod.ref for standing in shown), pdb.ref(budget), message)


def _explain_waits(pods: Standings, jobs: Iterable[Standing]) -> Iterator[Blocker]:
    """Yield what a drain waits for although nothing is wrong: jobs (T11), and a server that is busy (E7)."""
    for standing in jobs:
        why = f": {standing.waits_for}" if standing.waits_for else ""
        if standing.ends == NEVER:
            message = f"The drain waits until the pod ends, without a time limit{why}"
            yield Blocker(Reason.JOBS_RUNNING, (standing.pod.ref,), message=message)
        elif standing.ends is not None:
            message = f"The drain waits until {to_rfc3339(standing.ends)}{why}"
            yield Blocker(Reason.JOBS_RUNNING, (standing.pod.ref,), message=message, until=standing.ends)
    if busy := [standing for standing in pods.remaining if standing.answer is Reason.THROTTLED]:
        refs = tuple(standing.pod.ref for standing in busy)
        yield Blocker(Reason.THROTTLED, refs, message=_server_said(busy))


def _server_said(standings: Iterable[Standing]) -> str:
    messages = (standing.memory.message for standing in standings if standing.memory is not None)
    return next((f'Server: "{message}"' for message in messages if message), "")


# --- which pods to evict, and when to check again -------------------------------------------------------------------


def _pick(pods: Standings, forced: Sequence[Standing], early: set[str], most: int) -> tuple[PodView, ...]:
    """Return at most `most` pods to evict, for each budget no more than it allows now, because more would be refused.

    If a budget allows no eviction, one pod is tried anyway, because our copy of the budget may be stale. Pods with the
    fewest tries come first, so that refused pods do not crowd out the others. The pods with the UIDs in `early` are
    evicted out of turn and exempt from the budgets: there is no time left to try them one after another.
    """
    due = [
        standing
        for standing in pods.remaining
        if (standing.due or standing.pod.uid in early) and standing not in forced
    ]
    due.sort(key=lambda one: (one.memory.tries if one.memory is not None else 0, by_ref(one.pod)))
    room: dict[str, int] = {}
    picked: list[PodView] = []
    for standing in due:
        if len(picked) >= most:
            break
        if (budget := standing.budget) is not None and standing.pod.uid not in early:
            name = pdb.ref(budget)
            left = room.get(name, max(1, budget.disruptions_allowed))
            if left == 0:
                continue
            room[name] = left - 1
        picked.append(standing.pod)
    return tuple(picked)


def _next_wake(pods: Standings, sent: int, end: datetime | None, now: datetime) -> datetime | None:
    """Return the first moment at which the passing of time alone may change the plan. `sent`: the requests of this pass."""
    moments = [stuck_from(standing.pod) for standing in pods.leaving]
    moments += [blocker.until for blocker in pods.blockers]
    for standing in pods.remaining:
        moments += [force_moment(standing, pods, end), standing.ends]
        if (memory := standing.memory) is not None:
            moments.append(memory.next_try)
            if memory.reason is Reason.PDB_NOT_OBSERVED:
                moments.append(memory.since + timedelta(seconds=QUIET_WAIT))
    if sent + len(pods.sent_at) >= MAX_EVICTIONS:
        moments += [moment + PACE for moment in pods.sent_at] or [now + PACE]
    known = (moment for moment in moments if moment is not None and moment != NEVER)
    return min((moment for moment in known if moment > now), default=None)
