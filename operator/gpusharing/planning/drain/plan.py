"""The drain of one node: which pods to evict now, and what holds back the others.

The plan is a function of the pods' standings (standing.py); it examines no pod a second time.

Specification: docs/design/drain.md. Every plan has these properties:

- a finished, static, DaemonSet or terminating pod is never evicted, and no pod is evicted twice;
- every pod that holds a GPU is evicted, waited for, put off to the next pass or blocked with a reason. No such
  pod is skipped, because it holds the GPU until its API object is gone;
- the order of the input makes no difference.

Terms: docs/design/glossary.md#gang.
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
    force_moment,
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
    """Pods to delete now, because the drain's time is nearly over."""
    only_leaving: bool = False
    """Whether every remaining pod is terminating and the policy deletes by force the pods that remain at the end of
    the drain."""
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
    """When the passing of time alone may change the plan, or None if it cannot. Every other change shows in the next
    LIST."""

    @property
    def idle(self) -> bool:
        """Whether no pod has to leave any more, according to the last LIST. False if the pods could not be listed."""
        return self.holders == 0


def preflight(pods: Standings, options: Drain, afterwards: Afterwards, now: datetime) -> tuple[Blocker, ...]:
    """Return the blockers that would make a drain fail. While there are any, the node is not cordoned.

    `pods` are the standings on a node that is not cordoned yet. Budgets count only for pods that cannot be deleted by
    force at the end of the drain. If the policy deletes by force, a pod that budgets keep and whose grace period is too
    long for that is a blocker too (`explain_force`). Pods that could not run `afterwards` are blockers if the policy
    says Hold for stranded pods. If the pods could not be listed, the failed LIST (LIST_FAILED) is the only blocker.
    """
    if pods.error:
        return (Blocker(Reason.LIST_FAILED, message=pods.error),)
    lost = (standing.pod for standing in _to_evict(pods)) if options.stranded_pods == "Hold" else ()
    stranded = afterwards.find_stranded(pods.node, lost)
    return merge(
        (
            *_find_blockers(pods, _unforced(_to_evict(pods), pods), now),
            *explain_force(pods, []),
            *stranded,
        )
    )


def plan_drain(pods: Standings, now: datetime, end: datetime | None = None) -> DrainPlan:
    """Return which pods to evict and delete now, and what holds back the others. `end` is when the drain's time is over
    and the remaining pods must have been deleted by force, or None if no pod is deleted by force.

    At most MAX_EVICTIONS evictions and deletions are sent within `PACE`, and deletions come first. If the pods could not be listed, nothing is sent, and the failed LIST (LIST_FAILED)
    is the only blocker.
    """
    if pods.error:
        failed = Blocker(Reason.LIST_FAILED, message=pods.error)
        return DrainPlan(holders=pods.holders, blockers=(failed,))
    jobs, most = _jobs(pods), MAX_EVICTIONS - len(pods.sent_at)
    forced = find_forced(pods, end, now)[: max(0, most)]
    unasked = find_unasked(pods, end, now)
    due = [standing for standing in _in_turn(pods, unasked) if standing not in forced]
    evict = _pick(due, most - len(forced), unasked)
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
                *_running(jobs),
                *_throttled(pods.remaining),
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
    """Return how many pods of the node a drain still has to evict under each PodDisruptionBudget, by the budget's
    `namespace/name`. Pods that several budgets guard are left out, because every eviction of them fails."""
    return Counter(pdb.ref(standing.budget) for standing in _to_evict(pods) if standing.budget is not None)


def crowding(pods: Standings, crowd: Mapping[str, int]) -> tuple[Blocker, ...]:
    """Return a blocker (PDB) for each budget that guards pods of this node that still have to be evicted, and whose
    allowed disruptions other nodes already use up. The blocker names these pods. A budget that allows no disruption
    counts as allowing one. Pods that several budgets guard are left out. `crowd` is the sum of `budget_room` over the
    nodes in flight, by the budget's `namespace/name`."""
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
    """Return the blockers of pods that were not evicted yet and must not be evicted now or ever: a rule or a gang
    forbids the eviction, or a budget refuses it. Budgets of pods whose grace period leaves room for a deletion by force
    before the end of the drain do not count."""
    return merge((*pods.blockers, *_budgets(_unforced(pods.remaining, pods))))


# --- what holds pods back ----------------------------------------------------------------------------------------


def _find_blockers(pods: Standings, guarded: Sequence[Standing], now: datetime) -> Iterator[Blocker]:
    """Yield what stops pods from leaving, before or during a drain: rules that block pods, pods that are stuck,
    budgets, and other refusals by the server. On a node that is not Ready, the pods that no rule blocks are reported as
    unreachable (T6) in one blocker (NODE_UNREACHABLE), and none as stuck. The pace of evictions does not count. Budgets
    count only for the pods in `guarded`."""
    yield from pods.blockers
    if not pods.silent:
        yield from _stuck(pods.leaving, now)
    elif refs := tuple(standing.pod.ref for standing in (*pods.leaving, *pods.remaining)):
        yield Blocker(Reason.NODE_UNREACHABLE, refs, message="The node is not Ready")
    yield from _budgets(guarded)
    yield from _refused(pods.remaining, now)


def _unforced(remaining: Iterable[Standing], pods: Standings) -> list[Standing]:
    """Return the pods whose grace period is too long for a deletion by force before the end of the drain (T4), or all
    if the policy deletes none by force. Only budgets of these pods can make a drain fail."""
    return [standing for standing in remaining if not fits(standing, pods)]


def _to_evict(pods: Standings) -> list[Standing]:
    """Return the remaining pods that will be evicted sooner or later, even if their gang is blocked now. Pods that are
    never evicted (`spared`) are left out. Once the node is cordoned, pods that still have time to end by themselves are
    left out too."""
    return [
        standing
        for standing in pods.remaining
        if not (standing.spared or (standing.waits and standing.ends is not None))
    ]


def _jobs(pods: Standings) -> list[Standing]:
    """Return the pods that should end by themselves (T11) in the tier whose turn it is. Empty if the node is not
    cordoned."""
    waiting = (standing for standing in pods.remaining if standing.waits and standing.ends is not None)
    return [standing for standing in waiting if standing.tier == pods.front]


def _running(jobs: Iterable[Standing]) -> Iterator[Blocker]:
    """Yield a blocker (JOBS_RUNNING) for each pod that the drain waits for, with the end of that wait, or a message
    that the wait has no time limit. A pod whose wait has no end yet, as before the cordon, gets none."""
    for standing in jobs:
        why = f": {standing.waits_for}" if standing.waits_for else ""
        if standing.ends == NEVER:
            message = f"The drain waits until the pod ends, without a time limit{why}"
            yield Blocker(Reason.JOBS_RUNNING, (standing.pod.ref,), message=message)
        elif standing.ends is not None:
            message = f"The drain waits until {to_rfc3339(standing.ends)}{why}"
            yield Blocker(Reason.JOBS_RUNNING, (standing.pod.ref,), message=message, until=standing.ends)


def _stuck(leaving: Iterable[Standing], now: datetime) -> Iterator[Blocker]:
    """Yield a blocker (TERMINATING_STUCK) for each leaving pod that should have been gone STUCK_AFTER ago (T5), with
    its finalizers sorted by name, or the note that it has none."""
    for pod in (standing.pod for standing in leaving):
        moment = stuck_from(pod)
        if moment is not None and now > moment:
            finalizers = (
                f"Finalizers: {', '.join(sorted(pod.finalizers))}"
                if pod.finalizers
                else "The pod has no finalizer"
            )
            yield Blocker(Reason.TERMINATING_STUCK, (pod.ref,), message=finalizers)


def _budgets(remaining: Sequence[Standing]) -> Iterator[Blocker]:
    """Yield one blocker (PDB_CONFLICT) for each pod that several budgets guard, whose eviction always fails (E8). Then
    yield one for each PodDisruptionBudget that refuses evictions (E5, E9), with the reason PDB_NEVER_ALLOWS if it never
    allows one (`pdb.never_allows`), else PDB. A budget whose status allows no disruption is reported for all of its
    pods in `remaining`, any other budget only for the pods that the server refused to evict because of it."""
    for standing in remaining:
        if standing.conflicts:
            names = ", ".join(map(pdb.ref, standing.budgets))
            yield Blocker(Reason.PDB_CONFLICT, (standing.pod.ref,), names, _server_said([standing]))
    for budget, guarded in _by_budget(remaining):
        refused = [standing for standing in guarded if standing.answer is Reason.PDB]
        shown = refused if budget.disruptions_allowed > 0 else guarded
        if shown:
            reason = Reason.PDB_NEVER_ALLOWS if pdb.never_allows(budget) else Reason.PDB
            message = f"{_state(budget)}. {_server_said(refused)}".rstrip()
            yield Blocker(reason, tuple(standing.pod.ref for standing in shown), pdb.ref(budget), message)


def _by_budget(remaining: Iterable[Standing]) -> Iterable[tuple[PdbView, list[Standing]]]:
    """Return pairs of a budget and the pods about which it alone decides. Pods that no budget or several budgets guard
    are left out."""
    guarded: dict[str, tuple[PdbView, list[Standing]]] = {}
    for standing in remaining:
        if (budget := standing.budget) is not None:
            guarded.setdefault(pdb.ref(budget), (budget, []))[1].append(standing)
    return guarded.values()


def _refused(remaining: Iterable[Standing], now: datetime) -> Iterator[Blocker]:
    """Yield a blocker for each pod with the server's last answer about it, quoted. The reason is that answer. Left out
    are answers that are reported together with budgets (PDB if the budget is known, and all about a pod that several
    budgets guard), answers that the pod is gone (PODS_LEAVING), and THROTTLED. The answer that
    the budget's controller is behind (PDB_NOT_OBSERVED) is left out for the first QUIET_WAIT seconds (E6)."""
    for standing in remaining:
        if standing.memory is None or standing.answer is None or standing.conflicts:
            continue
        if standing.answer is Reason.PDB and standing.budget is not None:
            continue  # reported with its budget
        if standing.answer is Reason.PDB_NOT_OBSERVED and now < standing.memory.since + timedelta(
            seconds=QUIET_WAIT
        ):
            continue
        if standing.answer not in (
            Reason.THROTTLED,
            Reason.PODS_LEAVING,
        ):  # neither keeps a drain from succeeding
            yield Blocker(standing.answer, (standing.pod.ref,), message=_server_said([standing]))


def _throttled(remaining: Iterable[Standing]) -> Iterator[Blocker]:
    """Yield one blocker that names all pods whose last eviction the server has throttled (E7)."""
    busy = [standing for standing in remaining if standing.answer is Reason.THROTTLED]
    if busy:
        yield Blocker(
            Reason.THROTTLED, tuple(standing.pod.ref for standing in busy), message=_server_said(busy)
        )


def _state(budget: PdbView) -> str:
    """Describe how many disruptions the budget allows, how many of its pods are healthy, and how many must be."""
    return (
        f"The budget allows {counted(budget.disruptions_allowed, 'disruption')}: {budget.current_healthy} of"
        f" {counted(budget.expected_pods, 'pod is', 'pods are')} healthy, and {budget.desired_healthy} must be"
    )


def _server_said(standings: Iterable[Standing]) -> str:
    """Return the server's first message about these pods as `Server: "MESSAGE"`. Empty if there is none."""
    messages = (
        standing.memory.message
        for standing in standings
        if standing.memory is not None and standing.memory.message
    )
    return next((f'Server: "{message}"' for message in messages), "")


# --- which pods to evict, and when to check again -------------------------------------------------------------------


def _in_turn(pods: Standings, unasked: Sequence[Standing]) -> list[Standing]:
    """Return the pods that are due, and the pods in `unasked` even if it is not their turn. Pods with the fewest tries
    in a row come first, and of equals the first by name, so that refused pods do not crowd out the others."""
    early = {standing.pod.uid for standing in unasked}
    due = [standing for standing in pods.remaining if standing.due or standing.pod.uid in early]
    return sorted(due, key=lambda one: (one.memory.tries if one.memory is not None else 0, by_ref(one.pod)))


def _pick(due: Iterable[Standing], most: int, unasked: Sequence[Standing]) -> tuple[PodView, ...]:
    """Return the first of these pods, at most `most` in all, and for each budget no more than it allows now, because
    further evictions would be refused with 429.

    If a budget allows no eviction, one pod is tried anyway, because our copy of the budget may be stale. The pods in
    `unasked` are exempt from the limit of the budgets: there is no time left to try them one after another.
    """
    room: dict[str, int] = {}
    early = {standing.pod.uid for standing in unasked}
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
    """Return the first moment after `now` at which the passing of time alone may change the plan, or None if there is
    none. Such moments are when a leaving pod counts as stuck, when a pod may be deleted by force, when an eviction may
    be sent again (`_next_tries`), when a limited wait for a pod or a block ends, and, if MAX_EVICTIONS have been sent within `PACE`, when another may be sent. `sent` counts the evictions and deletions of this pass."""
    moments = [moment for standing in pods.leaving if (moment := stuck_from(standing.pod)) is not None]
    forced = (force_moment(standing, pods, end) for standing in pods.remaining)
    moments += [moment for moment in forced if moment is not None]
    moments += _next_tries(pods.remaining)
    moments += [standing.ends for standing in pods.remaining if standing.ends not in (None, NEVER)]
    moments += [blocker.until for blocker in pods.blockers if blocker.until is not None]
    if sent + len(pods.sent_at) >= MAX_EVICTIONS:
        moments += [moment + PACE for moment in pods.sent_at] or [now + PACE]
    return min((moment for moment in moments if moment > now), default=None)


def _next_tries(remaining: Iterable[Standing]) -> Iterator[datetime]:
    """Yield, for each pod about which the server has answered, when its eviction may be sent again. If the answer was
    that a budget's controller is behind, also yield when that starts to be shown as a blocker."""
    for memory in (standing.memory for standing in remaining if standing.memory is not None):
        yield memory.next_try
        if memory.reason is Reason.PDB_NOT_OBSERVED:
            yield memory.since + timedelta(seconds=QUIET_WAIT)
