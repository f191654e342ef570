"""The Events to post, as values: computed from the verdicts on a node before and after a pass. Nothing is posted while
nothing changes.

Terms: docs/design/glossary.md#point-of-no-return.
"""

from collections.abc import Mapping
from typing import Any, Literal

from gpusharing.api.names import ConditionType, DisruptionClass, Phase
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.snapshot.actions import Actuate, SetPointers, UpdateFence
from gpusharing.planning.stack.pointers import VALUE
from gpusharing.planning.transition.callverdicts import calls_fail
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import Blocker, explain_blockers
from gpusharing.planning.vocabulary.lengths import counted, cut
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

MAX_NOTE = 1000
"""The most characters of a note. events.k8s.io allows 1024."""


@value
class Event:
    """Something that happened: to a node, reported on its policy and its Node, to a policy, or to ClusterPolicy."""

    type: Literal["Normal", "Warning"]
    """`Warning` if somebody should look at it."""
    reason: str
    """One CamelCase word, for tools."""
    note: str
    """What happened, with the names of the objects, for people; at most MAX_NOTE characters."""


def node_events(before: Verdict | None, after: Verdict, *, drained: bool = False) -> tuple[Event, ...]:
    """Return the Events about what changed between two verdicts on one node. Empty if `before` is None, as in the
    first pass after a restart. `drained`: whether the start of this drain was reported already, so that it is not
    reported again after its pods could not be listed for a while."""
    if before is None or before is after:
        return ()
    events: list[Event | None] = []
    if _drain_started(before, after) and not drained:
        text = f"{after.node}: {counted(after.pods, 'GPU pod')} will be evicted before the change to {after.wanted}"
        events.append(Event("Normal", "DrainStarted", text))
    entered = _entered(before, after) if before.phase is not after.phase else None
    events += [_begun(before, after), entered]
    if new := _newly_blocked(before, after):
        note = f"{after.node}: {explain_blockers(new)[0]}"
        events.append(Event("Warning", "PodEvictionBlocked", note))
    if forced := _forced(after) - _forced(before):
        note = f"{after.node}: {explain_blockers([Blocker(Reason.FORCE_DELETE, tuple(sorted(forced)))])[0]}"
        events.append(Event("Warning", "PodsForceDeleted", note))
    if after.attempt > max(before.attempt, 1) and after.phase.in_flight:
        events.append(Event("Warning", "ActuatorRestarted", f"{after.node}: {before.message}"))
    if entered is None and (news := _new_reason(before, after)) is not None:
        events.append(Event("Warning", str(news), f"{after.node}: {after.message}"))
    if _turns_back(after) and not _turns_back(before):
        events.append(Event("Warning", "RollingBack", f"{after.node}: {after.message}"))
    events.append(_health(before, after))
    return tuple(
        Event(event.type, event.reason, cut(event.note, MAX_NOTE)) for event in events if event is not None
    )


def refusal_event(before: Mapping[str, Any], after: Mapping[str, Any]) -> Event | None:
    """Return the Warning about a policy that is not accepted, or None if it is accepted or was refused with the same
    reason and message before. `before` and `after`: the status of the policy as stored, and as it will be written."""
    earlier, answer = _acceptance(before), _acceptance(after)
    if answer == earlier or answer.get("status") != "False":
        return None
    return Event("Warning", answer["reason"], cut(answer["message"], MAX_NOTE))


def _acceptance(status: Mapping[str, Any]) -> dict[str, str]:
    """Return status, reason and message of the condition Accepted; empty if there is none yet."""
    rows = (row for row in status.get("conditions") or () if row.get("type") == ConditionType.ACCEPTED)
    return next(({key: row.get(key, "") for key in ("status", "reason", "message")} for row in rows), {})


def pointers_event(action: SetPointers) -> Event:
    """Return the Event that says which pointers the operator has set in ClusterPolicy."""
    fields = ", ".join(f"{field}={name}" for field, name in sorted(action.wanted.items()))
    text = f"set {fields}; {VALUE}. The GPU Operator restarts its operands on every GPU node"
    return Event("Normal", "PointersSet", cut(text, MAX_NOTE))


def _begun(before: Verdict, after: Verdict) -> Event | None:
    """Return the Event that a node has passed its point of no return, or None if it has not, or if that was reported.
    A planned or refused write does not count: only the next pass shows that it was made."""
    if _plans_return(after) or after.attempt > 1 or Mark.PAST_RETURN in after.reason.marks:
        return None
    if _plans_return(before):
        # The text shows the layout from before the labels changed.
        begun, known = after.phase.part in ("changing", "after"), before
    else:
        # The pass that wrote the point of no return ended without an answer to its write.
        begun, known = before.phase.part not in ("changing", "after") and not after.actions, after
        begun = begun and after.phase is Phase.RECONFIGURING
    text = f"{known.node}: {known.observed} -> {known.wanted} (class {known.disruption})"
    return Event("Normal", "Reconfiguring", text) if begun else None


def _plans_return(verdict: Verdict) -> bool:
    """Whether this pass is going to write that the node passes its point of no return."""
    return any(isinstance(action, Actuate) for action in verdict.actions)


def _entered(before: Verdict, after: Verdict) -> Event | None:
    """Return the Event about the phase that a node has entered, or None if the phase is not worth one."""
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


def _new_reason(before: Verdict, after: Verdict) -> Reason | None:
    """Return the reason that the node got, if it is one that an Event reports; else CALL_FAILED if its calls begin to
    fail; else None."""
    if after.reason is not before.reason:
        return after.reason if Mark.EVENT in after.reason.marks else None
    return Reason.CALL_FAILED if calls_fail(after) and not calls_fail(before) else None


def _health(before: Verdict, after: Verdict) -> Event | None:
    """Return the Event about GPUs that fail, or that are healthy again, or None if their health has not changed. A
    missing report is no recovery, and a first report that all are healthy is no news."""
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
    """Whether this pass begins to roll the node back to the configuration that was last proven on it."""
    records = (action for action in verdict.actions if isinstance(action, UpdateFence))
    return any(
        one.fence.rolls_back and one.node.fence is not None and not one.node.fence.rolls_back
        for one in records
    )


def _drain_started(before: Verdict, after: Verdict) -> bool:
    """Whether the pods that the drain has to evict are known for the first time. A drain begins before they are known,
    and is reported when they are."""
    draining = before.phase is Phase.DRAINING and before.pods > 0
    return after.phase is Phase.DRAINING and after.pods > 0 and not draining


def _newly_blocked(before: Verdict, after: Verdict) -> tuple[Blocker, ...]:
    """Return the blockers whose reason or budget is new, without those that no Event reports. The pods and the message
    of a known blocker may change."""
    known = {(blocker.reason, blocker.pdb) for blocker in before.blockers}
    news = (blocker for blocker in after.blockers if (blocker.reason, blocker.pdb) not in known)
    return tuple(blocker for blocker in news if Mark.NO_BLOCKER_EVENT not in blocker.reason.marks)


def _forced(verdict: Verdict) -> set[str]:
    """Return the pods that the drain deletes by force, as `namespace/name`."""
    return {ref for one in verdict.blockers if one.reason is Reason.FORCE_DELETE for ref in one.pods}
