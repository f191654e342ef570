"""Events as values: one per transition of a node, none while nothing happens. (before, after) → Events."""

from collections.abc import Mapping
from typing import Any, Literal

from gpusharing.api.names import ConditionType, DisruptionClass, Phase
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.snapshot.actions import Actuate, SetPointers, UpdateFence
from gpusharing.planning.stack.pointers import VALUE
from gpusharing.planning.way.verdict import Verdict
from gpusharing.planning.words.blockers import Blocker, explain_blockers
from gpusharing.planning.words.lengths import counted, cut
from gpusharing.planning.words.reasons import Reason
from gpusharing.planning.words.values import value

MAX_NOTE = 1000
"""events.k8s.io allows 1024 characters."""


@value
class Event:
    """Something that happened: to a node, reported on its policy and its Node, to a policy, or to ClusterPolicy."""

    type: Literal["Normal", "Warning"]
    """Warning where somebody should look."""
    reason: str
    """One CamelCase word, for tools."""
    note: str
    """What happened, with the names, for people; at most MAX_NOTE characters."""


def node_events(before: Verdict | None, after: Verdict, *, drained: bool = False) -> tuple[Event, ...]:
    """What changed between two verdicts of one node. Without a `before` (after a restart) only what is new since then.
    `drained`: the start of this drain was reported; it is not again after its pods could not be listed for a while."""
    if before is None or before is after:
        return ()
    told: list[Event] = []
    if _drain_started(before, after) and not drained:
        text = f"{after.node}: {counted(after.pods, 'GPU pod')} to evict before {after.wanted}"
        told.append(Event("Normal", "DrainStarted", text))
    if (begun := _begun(before, after)) is not None:
        told.append(begun)
    entered = _entered(before, after) if before.phase is not after.phase else None
    if entered is not None:
        told.append(entered)
    if new := _newly_blocked(before, after):
        note = f"{after.node}: {explain_blockers(new)[0]}"
        told.append(Event("Warning", "PodEvictionBlocked", note))
    if forced := _forced(after) - _forced(before):
        note = f"{after.node}: {explain_blockers([Blocker(Reason.FORCE_DELETE, tuple(sorted(forced)))])[0]}"
        told.append(Event("Warning", "PodsForceDeleted", note))
    if after.attempt > max(before.attempt, 1) and after.phase.in_flight:
        told.append(Event("Warning", "ActuatorRestarted", f"{after.node}: {before.message}"))
    if entered is None and after.reason is not before.reason and after.reason in _WORTH_TELLING:
        told.append(Event("Warning", str(after.reason), f"{after.node}: {after.message}"))
    if _turns_back(after) and not _turns_back(before):
        told.append(Event("Warning", "RollingBack", f"{after.node}: {after.message}"))
    if (news := _health(before, after)) is not None:
        told.append(news)
    return tuple(Event(event.type, event.reason, cut(event.note, MAX_NOTE)) for event in told)


def refusal_event(before: Mapping[str, Any], after: Mapping[str, Any]) -> Event | None:
    """Return the Warning about a policy that is not accepted, or None if it is accepted or was refused with the same
    reason and message before. `before` and `after` are the status of the policy, as stored and as it is written now."""
    earlier, answer = _acceptance(before), _acceptance(after)
    if answer == earlier or answer.get("status") != "False":
        return None
    return Event("Warning", answer["reason"], cut(answer["message"], MAX_NOTE))


def _acceptance(status: Mapping[str, Any]) -> dict[str, str]:
    """The status, reason and message of the condition Accepted; empty if there is none yet."""
    rows = (row for row in status.get("conditions") or () if row.get("type") == ConditionType.ACCEPTED)
    return next(({key: row.get(key, "") for key in ("status", "reason", "message")} for row in rows), {})


def pointers_event(action: SetPointers) -> Event:
    """What we changed in somebody else's object."""
    fields = ", ".join(f"{field}={name}" for field, name in sorted(action.wanted.items()))
    text = f"set {fields}; {VALUE}. The GPU Operator restarts its operands on every GPU node"
    return Event("Normal", "PointersSet", cut(text, MAX_NOTE))


_WORTH_TELLING = frozenset(
    {
        Reason.CALL_FAILED,
        Reason.DRIFTED,
        Reason.DRIFT_RETURNED,
        Reason.ORPHAN_FENCE,
        Reason.FENCE_UNREADABLE,
        Reason.GPU_STILL_BUSY,
        Reason.CORDON_KEPT,
        Reason.CORDON_RESTORED,
        Reason.DRAIN_HELD,
        Reason.ROLLED_BACK,
    }
)


_PAST_RETURN = frozenset(
    {Phase.RECONFIGURING, Phase.VERIFYING, Phase.UNCORDONING, Phase.SYNCED, Phase.FAILED}
)
_REPORTED_APART = frozenset({Reason.CORDON_RESTORED, Reason.ROLLING_BACK})


def _begun(before: Verdict, after: Verdict) -> Event | None:
    """Report that a node has passed its point of no return. It has not while the write is planned, or was refused."""
    if _plans_return(after) or after.attempt > 1 or after.reason in _REPORTED_APART:
        return None
    if _plans_return(before):
        begun, known = after.phase in _PAST_RETURN, before  # as it was before the labels changed
    else:
        # The pass that wrote it ended without an answer.
        begun, known = after.phase is Phase.RECONFIGURING and before.phase not in _PAST_RETURN, after
        begun = begun and not after.actions
    text = f"{known.node}: {known.observed} -> {known.wanted} (class {known.disruption})"
    return Event("Normal", "Reconfiguring", text) if begun else None


def _plans_return(verdict: Verdict) -> bool:
    """Whether the pass writes the point of no return."""
    return any(isinstance(action, Actuate) for action in verdict.actions)


def _entered(before: Verdict, after: Verdict) -> Event | None:
    node = after.node
    match after.phase:
        case Phase.WAITING_FOR_JOBS:
            return Event("Normal", "WaitingForJobs", f"{node}: {after.message}")
        case Phase.SYNCED if before.phase.in_flight and before.disruption is not DisruptionClass.NONE:
            return Event("Normal", "LayoutVerified", f"{node}: {after.message}")
        case Phase.ABORTING:
            return Event("Warning", "ChangeGivenUp", f"{node}: {after.reason}: {after.message}")
        case Phase.FAILED:
            return Event("Warning", "NodeFailed", f"{node}: {after.reason}: {after.message}")
        case _:
            return None


def _health(before: Verdict, after: Verdict) -> Event | None:
    """A missing report is not a recovery, and a first report that all are healthy is not news."""
    known, health = before.health, after.health
    if health is None or health == known:
        return None
    if not is_healthy(health):
        note = f"{after.node}: {health.reason}: {health.message}"
        return Event("Warning", str(Reason.GPU_UNHEALTHY), note)
    if known is None:
        return None
    return Event("Normal", "GPUHealthy", f"{after.node}: every GPU is healthy again")


def _turns_back(verdict: Verdict) -> bool:
    """In this pass the node turns back to what was proven on it last."""
    records = (action for action in verdict.actions if isinstance(action, UpdateFence))
    return any(
        one.fence.rolls_back and one.node.fence is not None and not one.node.fence.rolls_back
        for one in records
    )


def _drain_started(before: Verdict, after: Verdict) -> bool:
    """A drain begins before the pods are known; it is reported when they are."""
    draining = before.phase is Phase.DRAINING and before.pods > 0
    return after.phase is Phase.DRAINING and after.pods > 0 and not draining


def _newly_blocked(before: Verdict, after: Verdict) -> tuple[Blocker, ...]:
    """Blockers whose reason and budget are new; the pods and words of a known one may change."""
    known = {(blocker.reason, blocker.pdb) for blocker in before.blockers}
    news = (blocker for blocker in after.blockers if (blocker.reason, blocker.pdb) not in known)
    return tuple(blocker for blocker in news if blocker.reason not in _TOLD_OTHERWISE)


_TOLD_OTHERWISE = (Reason.CALL_FAILED, Reason.JOBS_RUNNING, Reason.FORCE_DELETE)
"""No pod is to blame, or it is reported as a wait or as an action of ours."""


def _forced(verdict: Verdict) -> set[str]:
    """Pods that are deleted by force."""
    return {ref for one in verdict.blockers if one.reason is Reason.FORCE_DELETE for ref in one.pods}
