"""What is deleted by force near the end of a drain (docs/design/drain.md#t4): `drain.onTimeout: ForceDelete`.

A DELETE bypasses PodDisruptionBudgets, so it comes last and affects few pods: only those that the drain evicts anyway
and whose eviction a budget refused. They are deleted early enough for their grace period to end with the drain. No pod
is deleted if the node would not become empty even so. Specification: docs/adr/0032-force-is-a-delete-with-grace.md.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.evictions import is_seen
from gpusharing.planning.drain.standing import STUCK_AFTER, Standing, Standings, stuck_from
from gpusharing.planning.vocabulary.blockers import Blocker
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason

SLACK = timedelta(seconds=10)
"""Time added to a pod's grace period, so that the next pass comes early enough and a failed DELETE can be repeated."""


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


def find_forced(
    pods: Standings, end: datetime | None, now: datetime
) -> tuple[list[Standing], list[Standing]]:
    """Return the pods to delete now, and those to evict now even if it is not their turn.

    The time to delete these pods by force has come. The first ones have a refusal that still counts, the others need
    one. Both are empty if `end`, the end of the drain, is None, or if some pod will stay anyway.
    """
    forced: list[Standing] = []
    unasked: list[Standing] = []
    if end is None or _in_vain(pods, end, now):
        return forced, unasked
    for standing in pods.remaining:
        moment = force_moment(standing, pods, end)
        if moment is None or moment > now:
            continue
        stale = _is_stale(standing, pods, moment)
        if _is_refused(standing, pods, now) and not stale:
            forced.append(standing)
        elif not standing.conflicts and (stale or _is_unasked(standing, now)):
            unasked.append(standing)
    return forced, unasked


def waits_for_forced(pods: Standings, end: datetime | None) -> bool:
    """Whether only leaving pods remain in a drain that deletes by force, so that one more minute after `end` may suffice."""
    only_leaving = bool(pods.leaving) and not pods.remaining and not pods.blocked
    return end is not None and pods.force_within is not None and only_leaving


def explain_force(pods: Standings, forced: list[Standing]) -> Iterator[Blocker]:
    deleted = (standing for standing in pods.leaving if standing.answer is Reason.FORCE_DELETE)
    for standing in (*forced, *deleted):
        # A failed deletion is reported as failed until one is accepted.
        if standing.answer is not Reason.FORCE_DELETE_FAILED:
            yield Blocker(Reason.FORCE_DELETE, (standing.pod.ref,))
    if pods.force_within is None:
        return
    for standing in pods.remaining:
        if (standing.conflicts or standing.is_full) and not standing.waits and not fits(standing, pods):
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
    return moment if pods.cordoned_at is None or moment > pods.cordoned_at else None


def _is_refused(standing: Standing, pods: Standings, now: datetime) -> bool:
    """Whether the eviction of the pod is refused, so that the pod may be deleted; every one fails under several budgets (E8)."""
    if standing.memory is None:
        return standing.conflicts
    if not is_seen(standing.memory, pods.listed_at):
        return False  # it may be leaving already
    over = standing.memory.next_try <= now
    if standing.answer is Reason.FORCE_DELETE_FAILED:
        return over
    return Mark.FORCIBLE in standing.marks or (standing.conflicts and over)


def _is_unasked(standing: Standing, now: datetime) -> bool:
    if standing.memory is None:
        return True
    return Mark.FORCIBLE not in standing.marks and standing.memory.next_try <= now


def _is_stale(standing: Standing, pods: Standings, moment: datetime) -> bool:
    """Whether the last refusal came before the pod could be deleted, and its budget would allow the eviction now."""
    if standing.memory is None or standing.conflicts or standing.is_full:
        return False
    if standing.answer not in (Reason.PDB, Reason.EVICTION_ERROR):
        return False
    asked = standing.memory.asked_at
    return is_seen(standing.memory, pods.listed_at) and (asked is None or asked < moment)


def _in_vain(pods: Standings, end: datetime, now: datetime) -> bool:
    """Whether some pod will stay on the node no matter which pods are deleted, so that the change will be given up."""
    if pods.silent or pods.blocked:
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
