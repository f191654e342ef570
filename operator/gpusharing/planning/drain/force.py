"""What is deleted by force near the end of a drain (docs/design/drain.md#t4): `drain.onTimeout: ForceDelete`.

A DELETE bypasses PodDisruptionBudgets, so it comes last and affects few pods: only those that the drain evicts anyway
and whose eviction a budget refused. They are deleted early enough for their grace period to end with the drain. No pod
is deleted if the node would not become empty even so. Specification: docs/adr/0032-force-is-a-delete-with-grace.md.

Terms: docs/design/glossary.md#gang.
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
"""Time added to a pod's grace period, so that the next pass comes early enough and a DELETE that fails at first can be
repeated. In a short drain, a quarter of the drain is added instead."""


def find_force_note(options: Drain, *, granted: bool, namespace: str) -> Finding | None:
    """Return a Finding (FORCE_DELETE_OFF), with the command that grants the right, for a policy that says ForceDelete
    while the operator lacks the right to delete pods. None if the policy does not say ForceDelete, or if the right is
    `granted`. `namespace` is the operator's own, for the command."""
    if granted or options.on_timeout != "ForceDelete":
        return None
    return Finding(
        Reason.FORCE_DELETE_OFF,
        "spec.drain.onTimeout is ForceDelete, but the operator is not allowed to delete pods, so the setting is treated"
        " as Abort. To allow it,"
        f" run helm upgrade RELEASE CHART -n {namespace} --reset-then-reuse-values --set forceDelete=true",
    )


def fits(standing: Standing, pods: Standings) -> bool:
    """Whether the drain is longer than the pod's grace period and the slack together, so that the pod can be deleted
    by force before the drain ends. False if no pod may be deleted by force."""
    return pods.force_within is not None and _lead(standing, pods.force_within) < pods.force_within


def _lead(standing: Standing, within: timedelta) -> timedelta:
    """Return how long before the end of the drain the pod has to be deleted: its grace period plus the slack. `within`
    is the length of the drain."""
    return timedelta(seconds=standing.pod.grace) + _slack(within)


def _slack(within: timedelta) -> timedelta:
    """Return SLACK, or a quarter of the drain's length `within` if that is shorter."""
    return min(SLACK, within / 4)


def find_forced(pods: Standings, end: datetime | None, now: datetime) -> list[Standing]:
    """Return the pods to delete now: the pods whose time has come and whose eviction is refused (`_is_refused`),
    unless that refusal no longer counts (`_is_stale`). Empty if `end`, the end of the drain, is None, if the
    policy does not ask for force or the operator lacks the right, or if the change will be given up anyway, for example because the grace period of one pod is too long."""
    if end is None or _in_vain(pods, end, now):
        return []
    come = (standing for standing in pods.remaining if _has_come(standing, pods, end, now))
    return [
        standing
        for standing in come
        if _is_refused(standing, pods, now) and not _is_stale(standing, pods, end)
    ]


def find_unasked(pods: Standings, end: datetime | None, now: datetime) -> list[Standing]:
    """Return the pods to evict now even if it is not their turn. The time to delete these pods by force has come, but
    `find_forced` needs a refusal that still counts, and they have none. Pods that several budgets guard are left out,
    because their eviction always fails, and pods whose last answer permits no DELETE until the wait after it is over.
    Empty if `end`, the end of the drain, is None or if the change will be given up anyway."""
    if end is None or _in_vain(pods, end, now):
        return []
    come = (
        standing
        for standing in pods.remaining
        if _has_come(standing, pods, end, now) and not standing.conflicts
    )
    return [standing for standing in come if _is_unasked(standing, now) or _is_stale(standing, pods, end)]


def waits_for_forced(pods: Standings, end: datetime | None) -> bool:
    """Whether every pod that still has to leave is leaving and the policy deletes pods by force, so that waiting one
    more minute after `end` may be enough. False if `end` is None, or if no pod is left."""
    only_leaving = bool(pods.leaving) and not pods.remaining and not pods.blocked
    return end is not None and pods.force_within is not None and only_leaving


def explain_force(pods: Standings, forced: list[Standing]) -> Iterator[Blocker]:
    """Yield a blocker (FORCE_DELETE) for each pod that is deleted by force, now (`forced`) or earlier, unless its last
    deletion failed. If the policy deletes pods by force, also yield one (GRACE_TOO_LONG) for each remaining pod for
    which the drain does not wait, whose grace period is too long, and which several budgets guard, or one that allows
    no disruption."""
    deleted = (standing for standing in pods.leaving if standing.answer is Reason.FORCE_DELETE)
    for standing in (*forced, *deleted):
        # A failed deletion is reported as failed until one is accepted.
        if standing.answer is not Reason.FORCE_DELETE_FAILED:
            yield Blocker(Reason.FORCE_DELETE, (standing.pod.ref,))
    if pods.force_within is None:
        return
    for standing in pods.remaining:
        refuses = standing.conflicts or (
            standing.budget is not None and standing.budget.disruptions_allowed <= 0
        )
        if refuses and not standing.waits and not fits(standing, pods):
            within = int(pods.force_within.total_seconds())
            more = _slack(pods.force_within).total_seconds()
            message = (
                f"Its grace period of {standing.pod.grace} s plus a margin of {more:g} s does not fit within"
                f" drain.timeout ({within} s)"
            )
            yield Blocker(Reason.GRACE_TOO_LONG, (standing.pod.ref,), message=message)


def force_moment(standing: Standing, pods: Standings, end: datetime | None) -> datetime | None:
    """Return the time from which the pod may be deleted: its grace period plus a margin (`_lead`) before `end`, the end
    of the drain. None if the pod must not be deleted by force: `end` is None, the policy does not ask for force, the
    pod's grace period is too long, or the time is not later than the cordon."""
    if end is None or pods.force_within is None or not fits(standing, pods):
        return None
    moment = end - _lead(standing, pods.force_within)
    # A moment before the cordon: the drain is shorter than the policy says now, and no pod had been evicted yet.
    return moment if pods.cordoned_at is None or moment > pods.cordoned_at else None


def _has_come(standing: Standing, pods: Standings, end: datetime, now: datetime) -> bool:
    """Whether the pod may be deleted by force and its time to be deleted has come."""
    moment = force_moment(standing, pods, end)
    return moment is not None and moment <= now


def _is_refused(standing: Standing, pods: Standings, now: datetime) -> bool:
    """Whether the eviction of the pod is refused, so that the pod may be deleted. If no answer is remembered, this is
    true only if several budgets guard the pod, because every eviction then fails (E8). If one is remembered, a newer
    LIST must still show the pod. After a failed deletion (FORCE_DELETE_FAILED), the wait after that answer must also be
    over. After any other answer, either the answer must permit a DELETE (`Mark.FORCIBLE`), or several budgets must
    guard the pod and the wait must be over."""
    if standing.memory is None:
        return standing.conflicts
    if not is_seen(standing.memory, pods.listed_at):
        return False  # it may be leaving already
    if standing.answer is Reason.FORCE_DELETE_FAILED:
        return standing.memory.next_try <= now
    return Mark.FORCIBLE in standing.marks or (standing.conflicts and standing.memory.next_try <= now)


def _is_unasked(standing: Standing, now: datetime) -> bool:
    """Whether the pod's eviction still has to be requested: either it never was, or the server's last answer to an
    eviction does not permit a DELETE (such as E7, E2, E3 or E12) and the wait that followed that answer is over."""
    if standing.memory is None:
        return True
    return Mark.FORCIBLE not in standing.marks and standing.memory.next_try <= now


def _is_stale(standing: Standing, pods: Standings, end: datetime) -> bool:
    """Whether the last refusal no longer counts. That is so if it came before the pod could be deleted by force, a
    newer LIST still shows the pod, and its budget, as far as we can see, would allow the eviction now. Only the answers
    PDB and EVICTION_ERROR can become stale, and none can if several budgets guard the pod."""
    full = standing.budget is not None and standing.budget.disruptions_allowed <= 0
    if (
        standing.memory is None
        or standing.conflicts
        or full
        or standing.answer not in (Reason.PDB, Reason.EVICTION_ERROR)
    ):
        return False
    moment, asked = force_moment(standing, pods, end), standing.memory.asked_at
    return (
        moment is not None and is_seen(standing.memory, pods.listed_at) and (asked is None or asked < moment)
    )


def _in_vain(pods: Standings, end: datetime, now: datetime) -> bool:
    """Whether some pod will stay on the node no matter which pods are deleted. The change will then be given up, so no
    pod should be deleted for it. True if the node is not Ready, if a leaving pod will not be gone in time, or if a pod
    or its gang is blocked. True also if a remaining pod is waited for, if its eviction is refused for good
    (`Mark.DENIED`), or if it cannot be deleted by force in time: `force_moment` is None, or its grace period is longer
    than the time from now until SLACK before `end` plus STUCK_AFTER."""
    if pods.silent or pods.blocked or any(standing.gang_blocked for standing in pods.remaining):
        return True
    if any(
        standing.waits or Mark.DENIED in standing.marks or force_moment(standing, pods, end) is None
        for standing in pods.remaining
    ):
        return True
    # Deleted now, a pod would still exist after its grace period. That is too late if the time to delete it was missed,
    # because no operator ran, the node was silent, or calls failed.
    left = end + STUCK_AFTER - SLACK - now
    if any(timedelta(seconds=max(1, standing.pod.grace)) > left for standing in pods.remaining):
        return True
    return any(_stays(standing, end, now) for standing in pods.leaving)


def _stays(standing: Standing, end: datetime, now: datetime) -> bool:
    """Whether a leaving pod will not be gone in time, because its grace period ends more than STUCK_AFTER after `end`,
    or because it is already stuck."""
    stuck = stuck_from(standing.pod)
    if standing.pod.deleted_at is not None and stuck is None:
        return True  # later than any datetime
    late = standing.pod.deleted_at is not None and standing.pod.deleted_at > end + STUCK_AFTER
    return late or (stuck is not None and now > stuck)
