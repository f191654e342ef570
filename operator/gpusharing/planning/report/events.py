"""Computes the Kubernetes Events to post about what has changed: in the verdict on a node, in its Node, in the status
of a policy, or in one of NVIDIA's objects. If nothing has changed, there are no Events. The caller posts them.

Terms: docs/design/glossary.md#point-of-no-return, docs/design/glossary.md#fence, docs/design/glossary.md#class.
"""

from collections.abc import Mapping
from typing import Any, Literal

from gpusharing.api.names import ConditionType, DisruptionClass, Phase
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.report.transition import whose_cordon
from gpusharing.planning.snapshot.actions import Actuate, RepairMps, SetPointers, UpdateFence
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack import mpsrepair, pointers
from gpusharing.planning.transition.callverdicts import calls_fail
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import Blocker, explain_blockers
from gpusharing.planning.vocabulary.lengths import counted, cut_bytes
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

MAX_NOTE = 1000
"""The most bytes of a note, in UTF-8. events.k8s.io allows 1024 bytes, not characters (kubernetes v1.36.3
pkg/apis/core/validation/events.go)."""


@value
class Event:
    """A Kubernetes Event to be posted about a policy, about a node (on its policy, with the Node as related object),
    about a Node, or about ClusterPolicy."""

    type: Literal["Normal", "Warning"]
    """`Warning` if somebody should look at it."""
    reason: str
    """One CamelCase word, for tools."""
    note: str
    """What happened, with the names of the objects, for people; at most MAX_NOTE bytes."""


def node_events(before: Verdict | None, after: Verdict, *, drained: bool = False) -> tuple[Event, ...]:
    """Return the Events about what changed on one node between the verdicts `before` and `after`: the start of a drain,
    the point of no return, the phase, new blockers, pods deleted by force, another attempt, the reason, a rollback,
    ended MPS clients, and the health of the GPUs. They are in this order, with at most one Event of each kind; that
    about new blockers quotes only the first line of `explain_blockers`. The reason is left out if there is an Event
    about the phase. Empty if `before` is None, as in the first pass after a restart, or if both are the same object.

    `drained` says whether the start of this drain was reported already. Then it is not reported again, even if the pods
    could not be listed for a while. Notes are cut to MAX_NOTE bytes.
    """
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
    events += [_lapse(before, after), _health(before, after)]
    return tuple(
        Event(event.type, event.reason, cut_bytes(event.note, MAX_NOTE))
        for event in events
        if event is not None
    )


def cordon_event(before: NodeView, after: NodeView) -> Event | None:
    """Return the Event for a Node whose cordon by the operator (`whose_cordon`) has appeared or ended between `before`
    and `after`. None otherwise: the cordon of a person or of another controller is not reported."""
    begins, ends = (whose_cordon(node) == "ours" for node in (after, before))
    if begins is ends or (fence := after.fence or before.fence) is None:
        return None
    change = cut_bytes(f"the change to {fence.to_layout} under policy {fence.policy}", MAX_NOTE // 2)
    if begins:
        return Event("Normal", "NodeCordoned", f"the operator has cordoned the node for {change}")
    end = "it stays cordoned by others" if after.unschedulable else "it accepts pods again"
    return Event("Normal", "NodeReleased", f"the operator has released the node after {change}; {end}")


def refusal_event(before: Mapping[str, Any], after: Mapping[str, Any]) -> Event | None:
    """Return the Warning that a policy is not accepted. Return None if the condition Accepted is not False in `after`,
    or if it is False in `before` too, with the same reason and message. `before` is the stored status of the
    policy, and `after` is the one that will be written."""
    earlier, answer = _acceptance(before), _acceptance(after)
    if answer == earlier or answer.get("status") != "False":
        return None
    return Event("Warning", answer["reason"], cut_bytes(answer["message"], MAX_NOTE))


def _acceptance(status: Mapping[str, Any]) -> dict[str, str]:
    """Return the status, reason and message of the condition Accepted, by key, with an empty string for a missing one.
    The dict is empty if the status has no such condition."""
    rows = (row for row in status.get("conditions") or () if row.get("type") == ConditionType.ACCEPTED)
    return next(({key: row.get(key, "") for key in ("status", "reason", "message")} for row in rows), {})


def shared_event(action: SetPointers | RepairMps) -> Event:
    """Return the Normal Event (MPSDaemonRepaired or PointersSet) that names the fields that the operator has set in
    NVIDIA's object, their values, and what restarts because of that. The fields of ClusterPolicy are sorted by path,
    and the note is cut to MAX_NOTE bytes."""
    if isinstance(action, RepairMps):
        daemon, count = action.daemon, f"repair {action.repairs.count} of {mpsrepair.MOST_REPAIRS}"
        text = (
            f"set PROCESS_TO_SIGNAL={daemon.program} in the config-manager container of DaemonSet"
            f" {daemon.namespace}/{daemon.name} ({count} under {daemon.plugin}); {mpsrepair.VALUE}."
            " This restarts all MPS daemons"
        )
        return Event("Normal", "MPSDaemonRepaired", cut_bytes(text, MAX_NOTE))
    fields = ", ".join(f"{field}={name}" for field, name in sorted(action.wanted.items()))
    text = f"set {fields}; {pointers.VALUE}. The GPU Operator restarts its operands on every GPU node"
    return Event("Normal", "PointersSet", cut_bytes(text, MAX_NOTE))


def _begun(before: Verdict, after: Verdict) -> Event | None:
    """Return the Event that a node has passed its point of no return. None if it has not, if that was reported before,
    if this is a repeated attempt, or if the reason of `after` has the mark PAST_RETURN. The node has passed it if
    `before` planned that PATCH and `after` is Reconfiguring, Verifying, Uncordoning, Failed or Synced. Without such a
    plan, it has passed if `after` is Reconfiguring without an action and with a new deadline, and `before` was in none
    of these phases. The text has the class and the layouts before and after, from `before` in the first case. A PATCH
    that is only planned, or that was refused, does not count; the next pass shows whether it was made."""
    if _plans_return(after) or after.attempt > 1 or Mark.PAST_RETURN in after.reason.marks:
        return None
    if _plans_return(before):
        # The text shows the layout from before the labels changed.
        begun, known = after.phase.part in ("changing", "after"), before
    else:
        # The pass that wrote the point of no return got no response to its PATCH. Each run sets the deadline anew, so a
        # node with the same deadline was only proven idle again, before a pod is restarted.
        begun, known = before.phase.part not in ("changing", "after") and not after.actions, after
        begun = begun and after.phase is Phase.RECONFIGURING and after.deadline != before.deadline
    text = f"{known.node}: {known.observed} -> {known.wanted} (class {known.disruption})"
    return Event("Normal", "Reconfiguring", text) if begun else None


def _plans_return(verdict: Verdict) -> bool:
    """Whether the verdict has an Actuate action, which would take the node past its point of no return."""
    return any(isinstance(action, Actuate) for action in verdict.actions)


def _entered(before: Verdict, after: Verdict) -> Event | None:
    """Return the Event about the phase of `after`, which differs from that of `before`. None unless the phase is
    WaitingForJobs, Aborting, Failed or Synced. For Synced there is an Event only if the node was in a change before,
    even a Failed one, with a class of disruption other than None."""
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
    """Return the node's new reason if it has changed and is one that an Event reports. If it is unchanged, return
    CALL_FAILED if calls about the node now fail and did not before. None otherwise."""
    if after.reason is not before.reason:
        return after.reason if Mark.EVENT in after.reason.marks else None
    return Reason.CALL_FAILED if calls_fail(after) and not calls_fail(before) else None


def _health(before: Verdict, after: Verdict) -> Event | None:
    """Return a Warning if GPUs are unhealthy and their health has changed, or a Normal Event if they have recovered.
    None if their health is unchanged or unknown, or if the first report says that all are healthy."""
    known, health = before.health, after.health
    if health is None or health == known:
        return None
    if not is_healthy(health):
        note = f"{after.node}: {health.reason}: {health.message}"
        return Event("Warning", str(Reason.GPU_UNHEALTHY), note)
    if known is None:
        return None
    return Event("Normal", "GPUHealthy", f"{after.node}: every GPU is healthy again")


def _lapse(before: Verdict, after: Verdict) -> Event | None:
    """Return the Warning that MPS clients of the node have ended since `before` although nobody changed the node. If
    the daemon's pod is another one than before, all restarts in it count. None if no client has ended, or if the number
    of restarts is unknown before or after."""
    lapses = after.lapses
    if lapses is None or not (new := lapses.since(before.lapses)):
        return None
    text = lapses.describe(max(new, lapses.count))
    return Event("Warning", "MPSClientsEnded", f"{after.node}: {text}")


def _turns_back(verdict: Verdict) -> bool:
    """Whether this pass begins to roll the node back: the verdict updates the fence with `rolls_back` set, and the
    Node has a fence in which it is not set yet."""
    records = (action for action in verdict.actions if isinstance(action, UpdateFence))
    return any(
        one.fence.rolls_back and one.node.fence is not None and not one.node.fence.rolls_back
        for one in records
    )


def _drain_started(before: Verdict, after: Verdict) -> bool:
    """Whether the drain has pods to evict for the first time: `after` is Draining with a count of pods above 0, and
    `before` was not. A drain begins before its pods are listed, so its start is reported only once they are."""
    draining = before.phase is Phase.DRAINING and before.pods > 0
    return after.phase is Phase.DRAINING and after.pods > 0 and not draining


def _newly_blocked(before: Verdict, after: Verdict) -> tuple[Blocker, ...]:
    """Return the blockers of `after` whose pair of reason and PodDisruptionBudget is new, except those that no Event
    reports. A blocker is not new if only its pods or its message have changed."""
    known = {(blocker.reason, blocker.pdb) for blocker in before.blockers}
    news = (blocker for blocker in after.blockers if (blocker.reason, blocker.pdb) not in known)
    return tuple(blocker for blocker in news if Mark.NO_BLOCKER_EVENT not in blocker.reason.marks)


def _forced(verdict: Verdict) -> set[str]:
    """Return the pods that the drain deletes by force, as `namespace/name`. They are the pods of the verdict's
    blockers with the reason ForceDelete."""
    return {ref for one in verdict.blockers if one.reason is Reason.FORCE_DELETE for ref in one.pods}
