"""What is deleted by force near the end of a drain (docs/design/drain.md#t4): `drain.onTimeout: ForceDelete`.

A DELETE asks no PodDisruptionBudget, so it comes last and to few: to pods that the drain evicts anyway and whose
eviction their budget refused, so early that their own grace period is over with the drain. Nobody is deleted for a
node that would not be empty anyway. Specification: docs/adr/0032-force-is-a-delete-with-grace.md.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.evictions import is_seen
from gpusharing.planning.drain.standing import STUCK_AFTER, Standing, Standings, asks_for_force, stuck_from
from gpusharing.planning.words.blockers import Blocker
from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.reasons import Reason

_REFUSED = frozenset({Reason.PDB, Reason.PDB_NOT_OBSERVED, Reason.EVICTION_ERROR, Reason.FORCE_DELETE_FAILED})
"""Answers after which a DELETE may follow: a budget refused, or the server could not say."""
_NOT_OURS = frozenset({Reason.FORBIDDEN, Reason.INTERNAL_ERROR})
"""Answers that no DELETE overrides: a right is missing, or somebody's admission refuses."""
SLACK = timedelta(seconds=10)
"""Beyond the grace period, for a pass to come and for a DELETE that fails at first; a quarter of a short drain."""


def find_note(options: Drain, *, granted: bool, namespace: str) -> Finding | None:
    """What is told of a policy that asks for what the operator may not do; None: nothing. `namespace`: our own."""
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
    """Those to delete now. `end`: of the drain; None: nobody is deleted in this pass."""
    if end is None or found.throttled_until is not None or _in_vain(found, end, now):
        return []
    come = (one for one in found.staying if _has_come(one, found, end, now))
    return [one for one in come if _is_refused(one, found, now) and not _is_stale(one, found, end)]


def find_unasked(found: Standings, end: datetime | None, now: datetime) -> list[Standing]:
    """Those whose time is as good as over without a refusal that counts: their eviction is asked for first, whether it
    is their turn or not."""
    if end is None or _in_vain(found, end, now):
        return []
    come = (one for one in found.staying if _has_come(one, found, end, now) and not one.conflicts)
    return [one for one in come if _is_unasked(one, now) or _is_stale(one, found, end)]


def next_force(found: Standings, end: datetime | None) -> Iterator[datetime]:
    """When the time of a pod comes by the clock alone."""
    for one in found.staying:
        if (moment := _moment(one, found, end)) is not None:
            yield moment


def waits_for_forced(found: Standings, end: datetime | None) -> bool:
    """Nobody is left but pods that are leaving, so that a minute more than the drain has may still be enough."""
    only_leaving = bool(found.leaving) and not found.staying and not found.blocked
    return end is not None and found.force_within is not None and only_leaving


def explain_force(found: Standings, forced: list[Standing]) -> Iterator[Blocker]:
    """Who is deleted, and who cannot be because of the grace period."""
    deleted = (one for one in found.leaving if one.answer is Reason.FORCE_DELETE)
    for one in (*forced, *deleted):
        if one.answer is not Reason.FORCE_DELETE_FAILED:  # told as that until a deletion is accepted
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
    """From when on the pod may be deleted: its grace period is then over with the drain. None: it never may."""
    if end is None or found.force_within is None or not fits(one, found):
        return None
    moment = end - _lead(one, found.force_within)
    # Before the cordon nobody was asked to go: the drain is shorter than the policy says by now.
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
    return one.answer in _REFUSED or (one.conflicts and one.memory.next_try <= now)


def _is_unasked(one: Standing, now: datetime) -> bool:
    """Nobody asked, or the answer said nothing about the pod (E7) and nothing came of it since (E2, E3, E12)."""
    if one.memory is None:
        return True
    return one.answer not in _REFUSED and one.memory.next_try <= now


def _is_stale(one: Standing, found: Standings, end: datetime) -> bool:
    """It was refused before its time came, and for all we see it would not be refused now: it is asked once more.

    Between two tries is up to a minute, in which budgets get room.
    """
    full = one.budget is not None and one.budget.disruptions_allowed <= 0
    if one.memory is None or one.conflicts or full or one.answer not in (Reason.PDB, Reason.EVICTION_ERROR):
        return False
    moment, asked = _moment(one, found, end), one.memory.asked_at
    return moment is not None and is_seen(one.memory, found.listed_at) and (asked is None or asked < moment)


def _in_vain(found: Standings, end: datetime, now: datetime) -> bool:
    """Somebody stays whatever is deleted, so the change will be given up, and nobody is to die for it."""
    if found.blocked:
        return True
    if any(one.waits or one.answer in _NOT_OURS or _moment(one, found, end) is None for one in found.staying):
        return True
    return any(_stays(one, end, now) for one in found.leaving) or any(
        _is_too_late(one, end, now) for one in found.staying
    )


def _is_too_late(one: Standing, end: datetime, now: datetime) -> bool:
    """Its moment was missed (nobody ran, the node was silent, calls failed): deleted now it would outlive the drain."""
    return now + timedelta(seconds=max(1, one.pod.grace)) + SLACK > end + STUCK_AFTER


def _stays(one: Standing, end: datetime, now: datetime) -> bool:
    """A pod that is leaving will not be gone in time."""
    stuck = stuck_from(one.pod)
    if one.pod.deleted_at is not None and stuck is None:
        return True  # beyond every clock
    late = one.pod.deleted_at is not None and one.pod.deleted_at > end + STUCK_AFTER
    return late or one.pod.phase == "Unknown" or (stuck is not None and now > stuck)
