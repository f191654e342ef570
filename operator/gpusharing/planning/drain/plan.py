"""Which pods of one node are evicted or deleted now, and what holds back the others?

Specification: docs/design/drain.md, with docs/design/drain.md#t4 for `drain.onTimeout: ForceDelete` and
docs/design/drain.md#t13 for gangs.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeAlias

from gpusharing.api.policy import Drain
from gpusharing.api.times import NEVER, to_rfc3339
from gpusharing.planning.drain.evictions import MAX_EVICTIONS, PACE, QUIET_WAIT, is_in_use, is_seen, never_allows
from gpusharing.planning.drain.pods import by_ref, find_leaving
from gpusharing.planning.drain.standing import (
    STUCK_AFTER,
    Standing,
    Standings,
    everywhere,
    find_ruled,
    find_standings,
    name_gang,
    stuck_from,
    unlisted,
)
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.snapshot.podviews import GangView, NodeWork, PdbView, PodView, Scope
from gpusharing.planning.vocabulary.findings import Blocker, Finding, merge
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Mark, Reason
from gpusharing.planning.vocabulary.values import value

Crowd: TypeAlias = dict[str, Counter[str]]
"""By PodDisruptionBudget (`namespace/name`): how many pods each node in flight has to evict under it now."""
SLACK = timedelta(seconds=10)
"""Time added to a pod's grace period. With it, the next pass comes early enough and a failed DELETE can be repeated."""


def find_force_note(options: Drain, *, granted: bool, namespace: str) -> Finding | None:
    if granted or options.on_timeout != "ForceDelete":
        return None
    return Finding(
        Reason.FORCE_DELETE_OFF,
        "spec.drain.onTimeout is ForceDelete, but the operator is not allowed to delete pods, so the setting is treated"
        " as Abort. To allow it,"
        f" run helm upgrade RELEASE CHART -n {namespace} --reset-then-reuse-values --set forceDelete=true",
    )


def fits(standing: Standing, pods: Standings) -> bool:
    """Whether the drain is long enough for the pod to be deleted by force before it ends."""
    return pods.force_within is not None and _lead(standing, pods.force_within) < pods.force_within


def _lead(standing: Standing, within: timedelta) -> timedelta:
    return timedelta(seconds=standing.pod.grace) + _slack(within)


def _slack(within: timedelta) -> timedelta:
    return min(SLACK, within / 4)


def find_forced(pods: Standings, end: datetime | None, now: datetime) -> tuple[list[Standing], list[Standing]]:
    """Return the pods to delete now, and those to evict now even if it is not their turn.

    A DELETE bypasses PodDisruptionBudgets, so it comes last, only for pods whose eviction a budget refused, and early
    enough for their grace period. No pod is deleted if the node would not become empty even so
    (docs/adr/0032-force-is-a-delete-with-grace.md).
    """
    forced: list[Standing] = []
    unasked: list[Standing] = []
    if end is None or _in_vain(pods, end, now):
        return forced, unasked
    for standing in pods.remaining:
        moment = force_moment(standing, pods, end)
        if moment is None or moment > now:
            continue
        memory, conflicts, marks = standing.memory, standing.conflicts, standing.marks
        over = memory is None or memory.next_try <= now
        seen = memory is None or is_seen(memory, pods.listed_at)  # else it may be leaving already
        # Under several budgets, every eviction is refused (E8).
        refused = Mark.FORCIBLE in marks or (conflicts and over)
        if standing.answer is Reason.FORCE_DELETE_FAILED:
            refused = over
        # A refusal from before the pod could be deleted does not count if its budget would allow the eviction now.
        old = memory is not None and seen and memory.asked_at < moment and not (conflicts or standing.is_full)
        stale = old and standing.answer in (Reason.PDB, Reason.EVICTION_ERROR)
        if seen and refused and not stale:
            forced.append(standing)
        elif not conflicts and (stale or (Mark.FORCIBLE not in marks and over)):
            unasked.append(standing)
    return forced, unasked


def explain_force(pods: Standings, forced: list[Standing]) -> Iterator[Blocker]:
    deleted = (standing for standing in pods.leaving if standing.answer is Reason.FORCE_DELETE)
    for standing in (*forced, *deleted):
        # A failed deletion is reported as failed until one is accepted.
        if standing.answer is not Reason.FORCE_DELETE_FAILED:
            yield Blocker(Reason.FORCE_DELETE, (standing.pod.ref,))
    if pods.force_within is None:
        return
    for standing in pods.remaining:
        full = standing.is_full and standing.budget is not None and not is_in_use(standing.budget)
        if (standing.conflicts or full) and not standing.waits and not fits(standing, pods):
            within = int(pods.force_within.total_seconds())
            more = _slack(pods.force_within).total_seconds()
            message = (
                f"Its grace period of {standing.pod.grace} s plus a margin of {more:g} s does not fit within"
                f" drain.timeout ({within} s)"
            )
            yield Blocker(Reason.GRACE_TOO_LONG, (standing.pod.ref,), message=message)


def force_moment(standing: Standing, pods: Standings, end: datetime | None) -> datetime | None:
    """Return the time from which the pod may be deleted by force before `end`, or None if it must not be."""
    if end is None or pods.force_within is None or not fits(standing, pods):
        return None
    moment = end - _lead(standing, pods.force_within)
    # A moment before the cordon: the drain is shorter than the policy says now, and no pod had been evicted yet.
    cordoned_at = pods.scope.cordoned_at
    return moment if cordoned_at is None or moment > cordoned_at else None


def _in_vain(pods: Standings, end: datetime, now: datetime) -> bool:
    """Whether some pod will stay no matter which pods are deleted, so that the change will be given up."""
    if pods.scope.silent or pods.blocked:
        return True
    # Deleted now, a pod would still exist after its grace period. That is too late if the time to delete it was missed,
    # because no operator ran, the node was silent, or calls failed.
    left = end + STUCK_AFTER - SLACK - now
    for standing in pods.remaining:
        if standing.gang_blocked or standing.waits or Mark.DENIED in standing.marks:
            return True
        if force_moment(standing, pods, end) is None:
            return True
        if timedelta(seconds=max(1, standing.pod.grace)) > left:
            return True
    for pod in (standing.pod for standing in pods.leaving):
        stuck = stuck_from(pod)
        if pod.deleted_at is not None and (stuck is None or pod.deleted_at > end + STUCK_AFTER):
            return True  # without `stuck`, it is later than any datetime
        if stuck is not None and now > stuck:
            return True
    return False


@value
class DrainPlan:
    """What to do about the pods of one node in this pass.

    Every plan has these properties (docs/design/drain.md):

    - a finished, static, DaemonSet or terminating pod is never evicted, and no pod is evicted twice;
    - every pod that holds a GPU is evicted, waited for, put off to the next pass or blocked with a reason. No such
      pod is skipped, because it holds the GPU until its API object is gone;
    - the order of the input makes no difference.
    """

    evict: tuple[PodView, ...] = ()
    delete: tuple[PodView, ...] = ()
    only_leaving: bool = False
    """Whether only terminating pods remain in a drain that deletes the last pods by force."""
    holders: int = 0
    """How many pods still have to leave, blocked ones included, or -1 if the pods could not be listed."""
    first: str = ""
    """The first pod that has to leave or is leaving, as `namespace/name`; empty if there is none."""
    blockers: tuple[Blocker, ...] = ()
    """Why pods have not left yet, for people. The drain keeps trying nevertheless."""
    jobs: tuple[PodView, ...] = ()
    """Pods whose turn it is and that end by themselves. Until they have ended, no pod of their tier is evicted."""
    jobs_until: datetime | None = None
    """When the time of all `jobs` is over. NEVER if it is unlimited for one of them, None if there are no jobs."""
    overdue: tuple[PodView, ...] = ()
    """Pods of `jobs` whose time is over and that must not be evicted, so the change has to be given up."""
    needs: tuple[tuple[str, int], ...] = ()
    """By PodDisruptionBudget (`namespace/name`): how many pods are to be evicted under it now (`due_under`)."""
    next_wake: datetime | None = None
    """When the passing of time alone may change the plan, or None if it cannot. Other changes show in the next LIST."""

    @property
    def idle(self) -> bool:
        return self.holders == 0


def preflight(pods: Standings, options: Drain, afterwards: Afterwards, now: datetime) -> tuple[Blocker, ...]:
    """Return the blockers that would make a drain fail before it begins (docs/design/drain.md#rule-10).

    Budgets count only for pods that cannot be deleted by force at the end of the drain.
    """
    if pods.error:
        return (Blocker(Reason.LIST_FAILED, message=pods.error),)
    evicted = _to_evict(pods)
    lost = (standing.pod for standing in evicted) if options.stranded_pods == "Hold" else ()
    found = _find_blockers(pods, [standing for standing in evicted if not fits(standing, pods)], now)
    return merge((*found, *explain_force(pods, []), *afterwards.find_stranded(pods.scope.node, lost)))


def plan_drain(pods: Standings, now: datetime, end: datetime | None = None) -> DrainPlan:
    """Return which pods to evict and delete now, and what holds back the others.

    `end` is when the remaining pods must have been deleted by force, or None if no pod is. At most MAX_EVICTIONS
    evictions and deletions are sent within `PACE`.
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
    only_leaving = bool(pods.leaving) and not pods.remaining and not pods.blocked
    return DrainPlan(
        evict=evict,
        delete=tuple(standing.pod for standing in forced),
        only_leaving=end is not None and pods.force_within is not None and only_leaving,
        holders=pods.holders,
        first=min((standing.pod.ref for standing in (*pods.remaining, *pods.leaving)), default=""),
        blockers=merge(
            (*_find_blockers(pods, _to_evict(pods), now), *explain_force(pods, forced), *_explain_waits(pods, jobs))
        ),
        jobs=tuple(standing.pod for standing in jobs),
        jobs_until=max((standing.ends for standing in jobs if standing.ends is not None), default=None),
        overdue=tuple(standing.pod for standing in jobs if standing.ends is not None and standing.ends <= now),
        needs=tuple(due_under(pods).items()),
        next_wake=_next_wake(pods, len(evict) + len(forced), end, now),
    )


def due_under(pods: Standings) -> Counter[str]:
    """Return how many pods a drain evicts next under each PodDisruptionBudget (`namespace/name`)."""
    return Counter(standing.budget.ref for standing in _in_turn(pods) if standing.budget is not None)


def crowding(pods: Standings, crowd: Crowd) -> tuple[Blocker, ...]:
    """Return a blocker for each budget whose disruptions the nodes of `crowd` already use up.

    A budget that allows none counts as allowing one.
    """
    return merge(
        Blocker(
            Reason.PDB_IN_USE,
            tuple(standing.pod.ref for standing in guarded),
            budget.ref,
            f"The operator first evicts pods under this budget from {some(sorted(crowd[budget.ref]))}",
        )
        for budget, guarded in _by_budget(_in_turn(pods))
        if crowd.get(budget.ref, Counter()).total() >= max(1, budget.disruptions_allowed)
    )


def _in_turn(pods: Standings) -> list[Standing]:
    """Return the pods whose turn to be evicted comes before any job that still has time (T10, T11)."""
    if pods.scope.silent:
        return []
    jobs = min((standing.tier for standing in pods.remaining if standing.waits), default=None)
    first = [standing for standing in pods.remaining if jobs is None or standing.tier < jobs]
    return [standing for standing in first if not standing.gang_blocked]


def _to_evict(pods: Standings) -> list[Standing]:
    return [
        standing
        for standing in pods.remaining
        if not (standing.spared or (standing.waits and standing.ends is not None))
    ]


def _by_budget(remaining: Iterable[Standing]) -> Iterable[tuple[PdbView, list[Standing]]]:
    guarded: dict[str, tuple[PdbView, list[Standing]]] = {}
    for standing in remaining:
        if (budget := standing.budget) is not None:
            guarded.setdefault(budget.ref, (budget, []))[1].append(standing)
    return guarded.values()


# --- what holds pods back ----------------------------------------------------------------------------------------


def _find_blockers(pods: Standings, guarded: Sequence[Standing], now: datetime) -> Iterator[Blocker]:
    yield from pods.blockers
    if not pods.scope.silent:
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
        if memory.reason not in (Reason.THROTTLED, Reason.PODS_LEAVING):  # neither keeps a drain from succeeding
            yield Blocker(memory.reason, (standing.pod.ref,), message=_server_said([standing]))


def _explain_budgets(guarded: Sequence[Standing]) -> Iterator[Blocker]:
    """Yield a blocker for each pod under several budgets (E8), and for each budget that refuses (E5, E9)."""
    for standing in guarded:
        if standing.conflicts:
            names = ", ".join(budget.ref for budget in standing.budgets)
            yield Blocker(Reason.PDB_CONFLICT, (standing.pod.ref,), names, _server_said([standing]))
    for budget, its in _by_budget(guarded):
        refused = [standing for standing in its if standing.answer is Reason.PDB]
        if not (shown := refused if budget.disruptions_allowed > 0 else its):
            continue
        reason = Reason.PDB_NEVER_ALLOWS if never_allows(budget) else Reason.PDB
        state = (
            f"{budget.current_healthy} of {counted(budget.expected_pods, 'pod is', 'pods are')} healthy, and"
            f" {budget.desired_healthy} must be"
        )
        message = f"The budget allows {counted(budget.disruptions_allowed, 'disruption')}: {state}."
        message = f"{message} {_server_said(refused)}".rstrip()
        if reason is Reason.PDB and is_in_use(budget):
            reason = Reason.PDB_IN_USE
            nodes = some(sorted(set(budget.evicted_from)))
            message = f"The pods that the operator evicted from {nodes} are being replaced: {state}"
        yield Blocker(reason, tuple(standing.pod.ref for standing in shown), budget.ref, message)


def _explain_waits(pods: Standings, jobs: Iterable[Standing]) -> Iterator[Blocker]:
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
    """Return at most `most` pods to evict, for each budget no more than it allows now.

    If a budget allows no eviction, one pod is tried anyway, because our copy of the budget may be stale. There is no
    time left to try the pods with UIDs in `early` one after another, so the budgets do not limit them.
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
            name = budget.ref
            left = room.get(name, max(1, budget.disruptions_allowed))
            if left == 0:
                continue
            room[name] = left - 1
        picked.append(standing.pod)
    return tuple(picked)


def _next_wake(pods: Standings, sent: int, end: datetime | None, now: datetime) -> datetime | None:
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


def ending_gangs(work: NodeWork, scope: Scope) -> tuple[GangView, ...]:
    """Return the gangs that a change of the node interrupts: those with a pod that must leave the node."""
    leaving = {pod.gang for pod in find_leaving(work.pods, scope)}
    return tuple(view for view in work.gangs if view.gang in leaving)


def find_gang_blockers(work: NodeWork, options: Drain, now: datetime, scope: Scope) -> tuple[Blocker, ...]:
    """Return why the gangs that a change of this node would interrupt must not be interrupted.

    The strictest rule of any member, on any node, with or without a GPU, applies to all of them
    (docs/design/drain.md#t13). Members beyond those that were read (`GangView.partial`) are not examined.
    """
    blockers: list[Blocker] = []
    for view in ending_gangs(work, scope):
        if view.error:
            blockers.append(Blocker(Reason.LIST_FAILED, message=unlisted(view)))
            continue
        here = (member.pod for member in view.members if member.node == scope.node)
        leave = {pod.uid for pod in find_leaving(here, scope)}
        members = [member for member in view.members if member.pod.uid not in leave]
        elsewhere = NodeWork(tuple(member.pod for member in members), work.pdbs, work.listed_at)
        standings = find_standings(elsewhere, options, now, scope=everywhere(scope), cordoned=False)
        blocked = {ref for blocker in standings.blockers for ref in blocker.pods}
        rest = (member for member in members if member.pod.ref not in blocked)
        guarded = _explain_budgets([one for one in standings.remaining if not fits(one, standings)])
        found = (*standings.blockers, *guarded, *find_ruled(rest, replace(scope, now=now)))
        blockers += [name_gang(view, blocker) for blocker in found]
    return merge(blockers)


def examine(
    work: NodeWork, options: Drain, now: datetime, *, scope: Scope, afterwards: Afterwards
) -> tuple[Standings, tuple[Blocker, ...]]:
    """Return how the pods of a node stand that is not drained yet, and what would make a drain fail."""
    pods = find_standings(work, options, now, scope=scope, cordoned=False)
    blockers = preflight(pods, options, afterwards, now)
    if work.gangs:
        blockers = merge((*name_gangs(blockers, work), *find_gang_blockers(work, options, now, scope)))
    return pods, blockers


def name_gangs(blockers: Iterable[Blocker], work: NodeWork) -> tuple[Blocker, ...]:
    """Return the blockers of the node's own pods, each with a description of the pods' common gang."""
    views = {view.gang: view for view in work.gangs}
    gangs = {pod.ref: views.get(pod.gang) if pod.gang is not None else None for pod in work.pods}
    named = []
    for blocker in blockers:
        its = [gangs.get(ref) for ref in blocker.pods]
        view = its[0] if its else None
        same = view is not None and all(one is not None and one.gang == view.gang for one in its)
        named.append(name_gang(view, blocker) if view is not None and same else blocker)
    return merge(named)
