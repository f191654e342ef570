"""Which Kubernetes Events report what has changed since the last pass?"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from gpusharing.api.names import ConditionType, CordonedBy, DisruptionClass, Phase
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.report.transition import cordoned_by
from gpusharing.planning.snapshot.actions import Actuate, Evict, ForceDelete, RepairMps, SetPointers, UpdateFence
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack import mps, pointers
from gpusharing.planning.transition.cases import calls_fail
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Blocker, explain_blockers
from gpusharing.planning.vocabulary.lengths import counted, cut_bytes
from gpusharing.planning.vocabulary.reasons import Mark, Reason
from gpusharing.planning.vocabulary.values import value

MAX_NOTE = 1000
"""The most bytes of a note, in UTF-8. events.k8s.io allows 1024 bytes, not characters (kubernetes v1.36.3
pkg/apis/core/validation/events.go)."""


@value
class Event:
    """A Kubernetes Event about a policy, a GPUNode, a Node, ClusterPolicy or an evicted pod.

    One about a node's change is posted on its policy and on its GPUNode.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    note: str
    """What happened, with the names of the objects, for people; cut to MAX_NOTE bytes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "note", cut_bytes(self.note, MAX_NOTE))


def node_events(before: Verdict | None, after: Verdict, *, drained: bool = False) -> tuple[Event, ...]:
    """Return the Events about what changed on one node; none in the first pass, when `before` is None.

    `drained` says that the start of this drain was reported already, even if its pods could not be listed for a while.
    """
    if before is None or before is after:
        return ()
    return tuple(_find_events(before, after, drained=drained))


def _find_events(before: Verdict, after: Verdict, *, drained: bool) -> Iterator[Event]:
    node, message = after.node, f"{after.node}: {after.message}"
    # A drain begins before its pods are listed, so its start is reported only once they are.
    draining, drains = (one.phase is Phase.DRAINING and one.pods > 0 for one in (before, after))
    if drains and not draining and not drained:
        pods = counted(after.pods, "GPU pod")
        yield Event("Normal", "DrainStarted", f"{node}: {pods} will be evicted before the change to {after.wanted}")
    if (known := _find_begun(before, after)) is not None:
        change = f"{known.node}: {known.observed} -> {known.wanted} (class {known.disruption})"
        yield Event("Normal", "Reconfiguring", change)
    entered = _enter(before, after) if before.phase is not after.phase else None
    if entered is not None:
        yield entered
    blocked = {(blocker.reason, blocker.pdb) for blocker in before.blockers}
    blockers = [one for one in after.blockers if (one.reason, one.pdb) not in blocked]
    blockers = [one for one in blockers if Mark.NO_BLOCKER_EVENT not in one.reason.marks]
    if blockers:
        yield Event("Warning", "PodEvictionBlocked", f"{node}: {explain_blockers(blockers)[0]}")
    if forced := _forced(after) - _forced(before):
        lines = explain_blockers([Blocker(Reason.FORCE_DELETE, tuple(sorted(forced)))])
        yield Event("Warning", "PodsForceDeleted", f"{node}: {lines[0]}")
    if after.attempt > max(before.attempt, 1) and after.phase.in_flight:
        yield Event("Warning", "ActuatorRestarted", f"{node}: {before.message}")
    if entered is None and after.reason is not before.reason:
        if Mark.EVENT in after.reason.marks:
            yield Event("Warning", str(after.reason), message)
    elif entered is None and calls_fail(after) and not calls_fail(before):
        yield Event("Warning", str(Reason.CALL_FAILED), message)
    if _turns_back(after) and not _turns_back(before):
        yield Event("Warning", "RollingBack", message)
    if (pod := after.mps_pod) is not None and (new := mps.count_lapses(before.mps_pod, pod)):
        ended = mps.tell_lapses(pod, max(new, pod.lone_restarts))
        yield Event("Warning", "MPSClientsEnded", f"{node}: {ended}")
    if (health := after.health) is not None and health != before.health:
        if not is_healthy(health):
            yield Event("Warning", str(Reason.GPU_UNHEALTHY), f"{node}: {health.reason}: {health.message}")
        elif before.health is not None:
            yield Event("Normal", "GPUHealthy", f"{node}: every GPU is healthy again")


def _find_begun(before: Verdict, after: Verdict) -> Verdict | None:
    if _plans_return(after) or after.attempt > 1 or Mark.PAST_RETURN in after.reason.marks:
        return None
    if _plans_return(before):
        # It shows the layout from before the labels changed. That the PATCH was made shows only now.
        return before if after.phase.part in ("changing", "after") else None
    # The pass that wrote the point of no return got no response to its PATCH. Each run sets the deadline anew, so a
    # node with the same deadline was only proven idle again, before a pod is restarted.
    begun = before.phase.part not in ("changing", "after") and not after.actions
    return after if begun and after.phase is Phase.RECONFIGURING and after.deadline != before.deadline else None


def _plans_return(verdict: Verdict) -> bool:
    return any(isinstance(action, Actuate) for action in verdict.actions)


def _enter(before: Verdict, after: Verdict) -> Event | None:
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


def _turns_back(verdict: Verdict) -> bool:
    records = (action for action in verdict.actions if isinstance(action, UpdateFence))
    return any(one.fence.rolls_back and one.node.fence is not None and not one.node.fence.rolls_back for one in records)


def _forced(verdict: Verdict) -> set[str]:
    return {ref for one in verdict.blockers if one.reason is Reason.FORCE_DELETE for ref in one.pods}


def cordon_event(before: NodeView, after: NodeView) -> Event | None:
    begins, ends = (cordoned_by(node) == CordonedBy.OPERATOR for node in (after, before))
    if begins is ends or (fence := after.fence or before.fence) is None:
        return None
    change = cut_bytes(f"the change to {fence.to_layout} under policy {fence.policy}", MAX_NOTE // 2)
    if begins:
        return Event("Normal", "NodeCordoned", f"the operator has cordoned the node for {change}")
    end = "it stays cordoned by others" if after.unschedulable else "it accepts pods again"
    return Event("Normal", "NodeReleased", f"the operator has released the node after {change}; {end}")


def refusal_event(before: Mapping[str, Any], after: Mapping[str, Any]) -> Event | None:
    """Return the Warning about a policy that is not accepted, or stalls on a failing call; None if it is known."""
    for kind, status in ((ConditionType.ACCEPTED, "False"), (ConditionType.STALLED, "True")):
        earlier, answer = _condition(before, kind), _condition(after, kind)
        if kind is ConditionType.STALLED and answer.get("reason") != Reason.CALL_FAILED:
            continue
        if answer != earlier and answer.get("status") == status:
            return Event("Warning", answer["reason"], answer["message"])
    return None


def unwritten_event(words: str) -> Event:
    """Return the Warning about a policy whose own status the API server does not take."""
    text = f"the policy's status cannot be written, so what it shows is out of date; the call is retried: {words}"
    return Event("Warning", str(Reason.CALL_FAILED), text)


def shared_event(action: SetPointers | RepairMps) -> Event:
    if isinstance(action, RepairMps):
        daemon, count = action.daemon, f"repair {action.repairs.count} of {mps.MOST_REPAIRS}"
        text = (
            f"set PROCESS_TO_SIGNAL={daemon.program} in the config-manager container of DaemonSet"
            f" {daemon.namespace}/{daemon.name} ({count} under {daemon.plugin}); {mps.VALUE}."
            " This restarts all MPS daemons"
        )
        return Event("Normal", "MPSDaemonRepaired", text)
    fields = ", ".join(f"{field}={name}" for field, name in sorted(action.wanted.items()))
    text = f"set {fields}; {pointers.VALUE}. The GPU Operator restarts its operands on every GPU node"
    return Event("Normal", "PointersSet", text)


POD_EVICTED, POD_DELETED = "PodEvicted", "PodForceDeleted"
"""Reasons of the Events in the namespaces of pods; the chart's admission allows no others there."""


def eviction_event(action: Evict | ForceDelete, verdict: Verdict) -> Event:
    """Return the Event for the owner of a pod, who may have no right to see nodes or policies."""
    change = f"from {verdict.observed} to {verdict.wanted}" if verdict.observed else f"to {verdict.wanted}"
    why = cut_bytes(f"because policy {verdict.policy} changes the GPUs of that node {change}", MAX_NOTE // 2)
    if isinstance(action, Evict):
        done = f"the GPU sharing operator evicted this pod from node {action.node}"
        return Event("Normal", POD_EVICTED, f"{done}, {why}")
    done = f"the GPU sharing operator deleted this pod from node {action.node}, as drain.onTimeout says"
    return Event("Warning", POD_DELETED, f"{done}, after its eviction was refused until the drain had to end, {why}")


def _condition(status: Mapping[str, Any], kind: ConditionType) -> dict[str, str]:
    rows = (row for row in status.get("conditions") or () if row.get("type") == kind)
    return next(({key: row.get(key, "") for key in ("status", "reason", "message")} for row in rows), {})
