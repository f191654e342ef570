"""What is deleted by force near the end of a drain (docs/design/drain.md#t4): `drain.onTimeout: ForceDelete`.

A DELETE bypasses PodDisruptionBudgets, so it comes last and hits few pods: those that the drain evicts anyway and
whose budget refused the eviction, early enough for their own grace period to end with the drain. No pod is deleted on
a node that would not be empty anyway. Specification: docs/adr/0032-force-is-a-delete-with-grace.md.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.evictions import is_seen
from gpusharing.planning.drain.standing import STUCK_AFTER, Standing, Standings, asks_for_force, stuck_from
from gpusharing.planning.vocabulary.blockers import Blocker
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason

SLACK = timedelta(seconds=10)
"""Added to the grace period, for the next pass to come and for a DELETE that fails at first; a quarter of a short
drain."""


def find_force_note(options: Drain, *, granted: bool, namespace: str) -> Finding | None:
    """The note on a policy that asks for what the operator may not do; None: there is none. `namespace`: our own."""
    if granted or not asks_for_force(options):
        return None
    return Finding(
        Reason.FORCE_DELETE_OFF,
        "spec.drain.onTimeout is ForceDelete, but the operator may not delete pods, so it acts as Abort. To allow it:"
        f" helm upgrade RELEASE CHART -n {namespace} --reset-then-reuse-values --set forceDelete=true",
    )


def fits(one: Standing, found: Standings) -> bool:
    """Whether the pod may be deleted at the end of the drain and still has all of its grace period."""
    return found.force_within is not None and _lead(one, found.force_within) < found.force_within


def _lead(one: Standing, within: timedelta) -> timedelta:
    """How long before the end of the drain the pod is deleted."""
    return timedelta(seconds=one.pod.grace) + _slack(within)


def _slack(within: timedelta) -> timedelta:
    return min(SLACK, within / 4)


def find_forced(found: Standings, end: datetime | None, now: datetime) -> list[Standing]:
    """The pods to delete now. `end`: of the drain; None: no pod is deleted in this pass."""
    if end is None or found.throttled_until is not None or _in_vain(found, end, now):
        return []
    come = (one for one in found.staying if _has_come(one, found, end, now))
    return [one for one in come if _is_refused(one, found, now) and not _is_stale(one, found, end)]


def find_unasked(found: Standings, end: datetime | None, now: datetime) -> list[Standing]:
    """The pods whose time is nearly over without a refusal that counts: they are evicted first, whether it is their
    turn or not."""
    if end is None or _in_vain(found, end, now):
        return []
    come = (one for one in found.staying if _has_come(one, found, end, now) and not one.conflicts)
    return [one for one in come if _is_unasked(one, now) or _is_stale(one, found, end)]


def next_force(found: Standings, end: datetime | None) -> Iterator[datetime]:
    """When a pod becomes due for deletion by the clock alone."""
    for one in found.staying:
        if (moment := _moment(one, found, end)) is not None:
            yield moment


def waits_for_forced(found: Standings, end: datetime | None) -> bool:
    """Only pods that are leaving are left, so one minute beyond the end of the drain may still be enough."""
    only_leaving = bool(found.leaving) and not found.staying and not found.blocked
    return end is not None and found.force_within is not None and only_leaving


def explain_force(found: Standings, forced: list[Standing]) -> Iterator[Blocker]:
    """Which pods are deleted, and which cannot be because of their grace period."""
    deleted = (one for one in found.leaving if one.answer is Reason.FORCE_DELETE)
    for one in (*forced, *deleted):
        if one.answer is not Reason.FORCE_DELETE_FAILED:  # reported as failed until a deletion is accepted
            yield Blocker(Reason.FORCE_DELETE, (one.pod.ref,))
    if found.force_within is None:
        return
    for one in found.staying:
        refuses = one.conflicts or (one.budget is not None and one.budget.disruptions_allowed <= 0)
        if refuses and not one.waits and not fits(one, found):
            within = int(found.force_within.total_seconds())
            more = _slack(found.force_within).total_seconds()
            said = f"Its grace period of {one.pod.grace} s plus {more:g} s does not fit into drain.timeout, {within} s"
            yield Blocker(Reason.GRACE_TOO_LONG, (one.pod.ref,), message=said)


def _moment(one: Standing, found: Standings, end: datetime | None) -> datetime | None:
    """From when the pod may be deleted: its grace period then ends with the drain. None: it never may be."""
    if end is None or found.force_within is None or not fits(one, found):
        return None
    moment = end - _lead(one, found.force_within)
    # Before the cordon no pod was evicted: the drain is shorter than the policy now says.
    return moment if found.cordoned_at is None or moment > found.cordoned_at else None


def _has_come(one: Standing, found: Standings, end: datetime, now: datetime) -> bool:
    moment = _moment(one, found, end)
    return moment is not None and moment <= now


def _is_refused(one: Standing, found: Standings, now: datetime) -> bool:
    """The server did not let the pod go, and a LIST since then still shows it; or it never will (E8)."""
    if one.memory is None:
        return one.conflicts
    if not is_seen(one.memory, found.listed_at):
        return False  # it may be leaving already
    if one.answer is Reason.FORCE_DELETE_FAILED:
        return one.memory.next_try <= now
    return Mark.FORCIBLE in one.marks or (one.conflicts and one.memory.next_try <= now)


def _is_unasked(one: Standing, now: datetime) -> bool:
    """The pod was not evicted yet, or the answer said nothing about it (E7) and had no effect since (E2, E3, E12)."""
    if one.memory is None:
        return True
    return Mark.FORCIBLE not in one.marks and one.memory.next_try <= now


def _is_stale(one: Standing, found: Standings, end: datetime) -> bool:
    """It was refused before its time came, and as far as we can see it would not be refused now: it is evicted once
    more.

    Up to a minute passes between two tries, in which budgets may gain room.
    """
    full = one.budget is not None and one.budget.disruptions_allowed <= 0
    if one.memory is None or one.conflicts or full or one.answer not in (Reason.PDB, Reason.EVICTION_ERROR):
        return False
    moment, asked = _moment(one, found, end), one.memory.asked_at
    return moment is not None and is_seen(one.memory, found.listed_at) and (asked is None or asked < moment)


def _in_vain(found: Standings, end: datetime, now: datetime) -> bool:
    """Some pod stays whatever is deleted, so the change will be given up, and no pod should be deleted for it."""
    if found.silent or found.blocked or any(one.kept for one in found.staying):
        return True
    if any(
        one.waits or Mark.DENIED in one.marks or _moment(one, found, end) is None for one in found.staying
    ):
        return True
    return any(_stays(one, end, now) for one in found.leaving) or any(
        _is_too_late(one, end, now) for one in found.staying
    )


def _is_too_late(one: Standing, end: datetime, now: datetime) -> bool:
    """Its moment was missed (no operator ran, the node was silent, calls failed): deleted now, it would outlive the
    drain."""
    return now + timedelta(seconds=max(1, one.pod.grace)) + SLACK > end + STUCK_AFTER


def _stays(one: Standing, end: datetime, now: datetime) -> bool:
    """A pod that is leaving will not be gone in time."""
    stuck = stuck_from(one.pod)
    if one.pod.deleted_at is not None and stuck is None:
        return True  # later than any datetime
    late = one.pod.deleted_at is not None and one.pod.deleted_at > end + STUCK_AFTER
    return late or (stuck is not None and now > stuck)
