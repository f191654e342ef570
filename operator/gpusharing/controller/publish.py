"""Write what people see: Events, and the statuses of policies and GPUNodes.

Only changes are written, and no decision depends on any of it. Failures are logged and tried again, after a longer wait
each time: no pass ends or waits because of them, and no object waits because of another one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.times import to_micro_time
from gpusharing.controller.complaints import Complaints
from gpusharing.kube.client import CLUSTER_POLICIES, EVENTS, GPUNODES, JSON, POLICIES, KubeClient, Resource
from gpusharing.kube.errors import (
    REFUSALS,
    AlreadyExists,
    CallFailed,
    Forbidden,
    HeldBack,
    Invalid,
    NotFound,
    ServerAway,
    Unauthorized,
    Undone,
)
from gpusharing.kube.fanout import Workers
from gpusharing.kube.raw import entries, text
from gpusharing.kube.sources import Sources
from gpusharing.planning.report.events import (
    Event,
    cordon_event,
    eviction_event,
    node_events,
    refusal_event,
    shared_event,
    unwritten_event,
)
from gpusharing.planning.report.status import find_grounds, tell_status
from gpusharing.planning.report.transition import health_conditions, transition
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Evict, ForceDelete, RepairMps, SetPointers
from gpusharing.planning.snapshot.memory import LASTING, STUCK, CallFailure, failed_again, policy_subject
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, NodeView, PolicyView
from gpusharing.planning.transition.verdict import Verdict

log = structlog.get_logger()

POOL_FACTOR = 2
"""How many periods a policy's numbers and message may lag: every node of the pool changes them."""

MOVING_FACTOR = 2
"""How many periods until a changing node is shown again: a transition has half a dozen phases."""

LONGEST_NAME = 220
"""How much of an object's name the name of its Event has: both may have at most 253 characters."""

MOST_PENDING = 1000
"""The most Events that may wait for the server; the oldest is dropped to make room for a new one."""

PODS_PER_SECOND = 10
"""The most Events about evicted pods in one second: a change of many nodes at once evicts hundreds of pods."""

RESTING = frozenset(phase for phase in Phase if phase.lasts)

FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors that computing a status may raise because of our own mistakes; they must not end a pass."""

_EVENTS, _EVICTIONS = "events", "evictions"


@dataclass(slots=True)
class Publisher:
    """Writes statuses and posts Events.

    A node that begins to change is shown one period later, its next phases after two periods, and shorter phases never.
    A phase that lasts (Synced, Failed, Blocked ...) is written at once.
    """

    client: KubeClient
    sources: Sources
    period: float
    """Seconds for which a change of a resting node is held back. Other changes are held back for multiples of this."""
    identity: str
    """Name of this process in Events."""
    workers: Workers = field(default_factory=lambda: Workers(16))
    on_verdict: Callable[[Verdict | None, Verdict], None] = lambda before, after: None
    _verdicts: dict[str, Verdict] = field(default_factory=dict)
    """The verdict of each node that was last reported to metrics, log and Events."""
    _drains: dict[str, str] = field(default_factory=dict)
    """The change (`op` of the fence) of each node whose drain was last reported by an Event."""
    _due: dict[str, datetime] = field(default_factory=dict)
    """When to write the status of each object that has to change, by key, unless it becomes urgent."""
    _unwritten: set[str] = field(default_factory=set)
    """Keys of nodes whose transition may differ from what is shown and was not written yet."""
    _objects: dict[str, tuple[NodeView, GPUNodeView | None]] = field(default_factory=dict)
    """The Node and the GPUNode of each node in the last pass. They are compared by identity."""
    _grounds: dict[str, tuple[object, ...]] = field(default_factory=dict)
    """The facts that decided the conditions of each policy when they were last checked."""
    _refused: dict[str, CallFailure] = field(default_factory=dict)
    """The refusals in a row, by key of the object."""
    _pending_events: deque[JSON] = field(default_factory=lambda: deque(maxlen=MOST_PENDING))
    _pending_evictions: deque[JSON] = field(default_factory=lambda: deque(maxlen=MOST_PENDING))
    """Events about evicted pods, each of which is sent once, whatever becomes of it."""
    _complaints: Complaints = field(default_factory=Complaints)
    _serial: int = 0
    _round: asyncio.Task[datetime | None] | None = None

    def begin(self, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime) -> None:
        """Start a round in the background. Call it only after `ended`: there is one round at a time."""
        self._round = asyncio.create_task(self.publish(plan, snapshot, now))

    async def ended(self) -> datetime | None:
        """Wait for the present round, and return when the next write is due. Raises a group if the Lease is lost."""
        round_, self._round = self._round, None
        return await round_ if round_ is not None else None

    async def close(self) -> None:
        """Cancel the current round and every write that is still under way, and return when all have ended."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.wait({self._round})
            # The error is retrieved, because asyncio would log it otherwise. The round ended for the same reason as
            # the process.
            _ = self._round.cancelled() or self._round.exception()
            self._round = None
        await self.workers.close()

    async def publish(self, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime) -> datetime | None:
        """Report changed verdicts, write changed statuses, post pending Events; return when the next write is due."""
        verdicts = {f"node/{v.node}": v for v in plan.verdicts.values() if self._is_news(v, snapshot)}
        policies = {f"policy/{policy.name}": policy for policy in snapshot.policies}
        for verdict in verdicts.values():
            self._notice(verdict, plan, snapshot, now)
        for name in self._verdicts.keys() - plan.verdicts.keys():
            del self._verdicts[name]
            self._objects.pop(name, None)
            self._drains.pop(name, None)
            self._drop(f"node/{name}")
        for name in self._grounds.keys() - plan.pools.keys():
            del self._grounds[name]
            self._drop(f"policy/{name}")
        due: list[datetime] = []

        async def write(key: str) -> None:
            try:
                if (refused := self._refused.get(key)) is not None and refused.holds(now):
                    later: datetime | None = refused.next_try
                elif key == _EVENTS:
                    later = await self._post_events(now)
                elif key == _EVICTIONS:
                    later = await self._post_evictions(now)
                elif key in verdicts:
                    later = await self._write_transition(verdicts[key], snapshot, now)
                else:
                    later = await self._status(policies[key], plan, snapshot, now)
            except FAULTS as error:
                later = self._refusal(key, "the status cannot be computed; please report this bug", error, now)
            if later is not None:
                due.append(later)

        queues = {_EVENTS: self._pending_events, _EVICTIONS: self._pending_evictions}
        try:
            await self.workers.each([*verdicts, *policies, *(key for key, queue in queues.items() if queue)], write)
        except* (ServerAway, Unauthorized) as group:
            self._complaints.begins(
                "status", "statuses and Events cannot be written; trying again", error=str(group.exceptions[0])
            )
            due.append(now + timedelta(seconds=max(self.period, 1.0)))
        else:
            self._complaints.ends("status")
        return min(due, default=None)

    def _drop(self, key: str) -> None:
        self._unwritten.discard(key)
        self._due.pop(key, None)
        self._accepted(key)

    def _is_news(self, verdict: Verdict, snapshot: ClusterSnapshot) -> bool:
        name = verdict.node
        node, gpunode = self._objects.get(name, (None, None))
        same = node is snapshot.nodes[name] and gpunode is snapshot.gpunodes.get(name)
        return not same or self._verdicts.get(name) != verdict or f"node/{name}" in self._unwritten

    def _notice(self, verdict: Verdict, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime) -> None:
        before, node = self._verdicts.get(verdict.node), snapshot.nodes[verdict.node]
        if before is not None and verdict.mps_pod is not None and verdict.mps_pod.settling:
            # The later count is then compared with the last one that was taken while config-manager ran.
            verdict = replace(verdict, mps_pod=before.mps_pod)
        known, _ = self._objects.get(verdict.node, (None, None))
        self._objects[verdict.node] = node, snapshot.gpunodes.get(verdict.node)
        if known is not None and (cordon := cordon_event(known, node)) is not None:
            # `kubectl describe node` looks for Events whose uid is the name of the Node, as in the kubelet's Events.
            self._queue(cordon, {**_reference("Node", node.name), "uid": node.name}, now)
        self._unwritten.add(f"node/{verdict.node}")
        if before != verdict:
            self._verdicts[verdict.node] = verdict
            self.on_verdict(before, verdict)
            change = node.fence.op if node.fence is not None else ""
            events = node_events(before, verdict, drained=self._drains.get(verdict.node) == change)
            pool = plan.pools.get(verdict.policy)
            # kubectl describe shows the Events about one object, and people describe the policy or the GPUNode.
            subjects = [_policy_of(pool.policy)] if pool is not None else []
            if pool is not None and (gpunode := snapshot.gpunodes.get(verdict.node)) is not None:
                subjects.append(_reference("GPUNode", gpunode.name, names.API_VERSION) | {"uid": gpunode.uid})
            for event in events if subjects else ():
                for regarding in subjects:
                    self._queue(event, regarding, now, related=_reference("Node", verdict.node))
                _log(event, node=verdict.node, policy=verdict.policy, phase=str(verdict.phase))
            if verdict.phase is Phase.DRAINING and verdict.pods:
                self._drains[verdict.node] = change

    # --- transitions and status ----------------------------------------------------------------------------

    async def _write_transition(self, verdict: Verdict, snapshot: ClusterSnapshot, now: datetime) -> datetime | None:
        key = f"node/{verdict.node}"
        if verdict.node not in snapshot.gpunodes:
            return None  # it is being created in this pass
        resting = verdict.phase.lasts
        if not resting and (due := self._due.get(key, now)) > now:
            return due
        previous, stand = self.sources.shown(verdict.node)
        wanted = transition(verdict, snapshot.nodes[verdict.node], previous, now)
        conditions = health_conditions(verdict, stand, now)
        if _without_none(wanted) == previous and conditions == stand:
            self._due.pop(key, None)
            self._unwritten.discard(key)
            return None
        rested = previous.get("phase", Phase.SYNCED) in RESTING
        lag = timedelta(seconds=self.period * (1 if rested else MOVING_FACTOR))
        if not resting and (later := self._hold(key, now, lag)) is not None:
            return later
        body = {"status": {"transition": wanted, "conditions": conditions}}
        later = await self._write(key, now, GPUNODES, body, self.sources.gpunodes.accept)
        if later is None and self._verdicts.get(verdict.node) == verdict:  # nothing newer arrived
            self._unwritten.discard(key)
        return later

    async def _status(
        self, policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime
    ) -> datetime | None:
        key = f"policy/{policy.name}"
        snapshot = self._with_own_failures(policy.name, plan, snapshot)
        grounds = find_grounds(policy, plan, snapshot)
        before, self._grounds[policy.name] = self._grounds.get(policy.name), grounds
        if grounds == before and (due := self._due.get(key, now)) > now:
            return due  # only numbers and messages may have changed, which can wait
        previous = self.sources.policies.status(policy.name)
        wanted = tell_status(policy, plan, snapshot, previous, now)
        if _without_none(wanted) == dict(previous):
            self._due.pop(key, None)
            return None
        urgent = wanted["observedGeneration"] != previous.get("observedGeneration")
        urgent = urgent or _statuses(wanted) != _statuses(previous)
        lag = timedelta(seconds=self.period * POOL_FACTOR)
        if not urgent and (later := self._hold(key, now, lag)) is not None:
            return later
        body = {"status": _replacing(wanted, previous)}
        refusal = refusal_event(previous, wanted)
        tried = self._refused[key].tries if key in self._refused else 0
        later = await self._write(key, now, POLICIES, body, self.sources.policies.accept)
        if later is None and refusal is not None:
            self._queue(refusal, _policy_of(policy), now)
            _log(refusal, policy=policy.name)
            return now  # the Event is posted with the next round
        failure = self._refused.get(key)
        if failure is not None and tried < failure.tries == (LASTING if failure.refused else STUCK):
            event = unwritten_event(failure.message)  # the conditions cannot tell
            self._queue(event, _policy_of(policy), now)
            _log(event, policy=policy.name)
        return later

    def _with_own_failures(self, policy: str, plan: RolloutPlan, snapshot: ClusterSnapshot) -> ClusterSnapshot:
        subject = policy_subject(policy)
        refused = (self._refused.get(f"node/{name}") for name in plan.pools[policy].names)
        failure = next((one for one in refused if one is not None and (one.stuck or (one.lasts and one.refused))), None)
        if failure is None or subject in snapshot.call_failures:
            return snapshot
        message = f"the status of a GPUNode cannot be written: {failure.message}"
        return replace(snapshot, call_failures={**snapshot.call_failures, subject: replace(failure, message=message)})

    def _hold(self, key: str, now: datetime, lag: timedelta) -> datetime | None:
        due = self._due.setdefault(key, now + lag)
        return due if due > now else None

    async def _write(
        self, key: str, now: datetime, resource: Resource, body: JSON, accept: Callable[[JSON], None]
    ) -> datetime | None:
        try:
            name = key.partition("/")[2]
            accept(await self.client.patch(resource, name, body, subresource="status"))
        except NotFound:
            pass
        except CallFailed as error:
            return self._refusal(key, "the status cannot be written; trying again", error, now)
        self._due.pop(key, None)
        self._accepted(key)
        return None

    def _refusal(self, key: str, event: str, error: Exception, now: datetime) -> datetime:
        if isinstance(error, HeldBack):
            return now + timedelta(seconds=error.retry_after or 1.0)
        words = str(error) or repr(error)
        refused, undone = isinstance(error, REFUSALS), isinstance(error, Undone)
        before, first = self._refused.get(key), max(self.period, 1.0)
        self._refused[key] = failed_again(before, words, now, 0.0, first=first, refused=refused, at_once=undone)
        self._complaints.follow(key, event, error)
        return self._refused[key].next_try

    def _accepted(self, key: str) -> None:
        self._refused.pop(key, None)
        self._complaints.ends(key)

    # --- events --------------------------------------------------------------------------------------------

    def report_pointers(self, action: SetPointers, now: datetime) -> None:
        self._pending_events.append(self.shared_event(action, now))

    def shared_event(self, action: SetPointers | RepairMps, now: datetime) -> JSON:
        """Return an Event that tells that the operator changed a ClusterPolicy or its MPS DaemonSet."""
        policy = action.policy
        regarding = _reference("ClusterPolicy", policy.name, CLUSTER_POLICIES.api_version)
        return self._event(shared_event(action), {**regarding, "uid": policy.uid}, now)

    def report_eviction(self, action: Evict | ForceDelete, verdict: Verdict, now: datetime) -> None:
        """Queue an Event about a pod whose eviction or deletion the API server has accepted."""
        pod = {**_reference("Pod", action.name), "namespace": action.namespace, "uid": action.uid}
        event = self._event(eviction_event(action, verdict), pod, now)
        self._pending_evictions.append({**event, "related": _reference("Node", action.node)})

    def _queue(self, event: Event, regarding: JSON, now: datetime, **more: JSON) -> None:
        self._pending_events.append({**self._event(event, regarding, now), **more})

    async def _post_events(self, now: datetime) -> datetime | None:
        while self._pending_events:
            body = self._pending_events[0]
            try:
                await self.client.create(EVENTS, body, namespace="default")
            except AlreadyExists:
                pass  # it was created by an earlier attempt, whose answer was lost
            except (Invalid, NotFound) as error:
                self._complaints.follow(_EVENTS, "the API server rejected an Event, so the operator drops it", error)
            except CallFailed as error:
                return self._refusal(_EVENTS, "Events cannot be posted; trying again", error, now)
            else:
                self._accepted(_EVENTS)
            if self._pending_events and self._pending_events[0] is body:
                self._pending_events.popleft()
        return None

    async def _post_evictions(self, now: datetime) -> datetime | None:
        if (due := self._due.get(_EVICTIONS, now)) > now:
            return due
        self._due[_EVICTIONS] = now + timedelta(seconds=1)
        for _ in range(min(PODS_PER_SECOND, len(self._pending_evictions))):
            body = self._pending_evictions.popleft()
            namespace = body["metadata"]["namespace"]
            subject, event = f"events in {namespace}", "an Event about an evicted pod cannot be posted; it is dropped"
            try:
                await self.client.create(EVENTS, body, namespace=namespace)
            except HeldBack:
                self._pending_evictions.appendleft(body)  # it was not sent
                break
            except CallFailed as error:
                gone = isinstance(error, NotFound) or (isinstance(error, Forbidden) and error.namespace_terminating)
                if not gone and not isinstance(error, AlreadyExists):
                    self._complaints.follow(subject, event, error)
            else:
                self._complaints.ends(subject)
        return self._due[_EVICTIONS] if self._pending_evictions else None

    def _event(self, event: Event, regarding: JSON, now: datetime) -> JSON:
        self._serial += 1
        stamp = to_micro_time(now)
        name = regarding["name"][:LONGEST_NAME].rstrip("-.")
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{name}.{int(now.timestamp() * 1000):x}.{self._serial:x}",
                "namespace": regarding.get("namespace", "default"),
            },
            "eventTime": stamp,
            "reportingController": f"{names.GROUP}/operator",
            "reportingInstance": self.identity[:128],
            "action": event.reason,
            "reason": event.reason,
            "type": event.type,
            "note": event.note,
            "regarding": regarding,
        }


def _log(event: Event, **where: str) -> None:
    write = log.warning if event.type == "Warning" else log.info
    write(event.reason, **where, note=event.note)


def _reference(kind: str, name: str, api_version: str = "v1") -> JSON:
    return {"apiVersion": api_version, "kind": kind, "name": name}


def _policy_of(policy: PolicyView) -> JSON:
    return {**_reference("GPUSharingPolicy", policy.name, names.API_VERSION), "uid": policy.uid}


def _without_none(wanted: Mapping[str, Any]) -> JSON:
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in wanted.items()
        if value is not None
    }


def _statuses(status: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((text(row, "type"), text(row, "status")) for row in entries(status, "conditions"))


def _replacing(wanted: Mapping[str, Any], previous: Mapping[str, Any]) -> JSON:
    # A merge patch keeps map keys that it does not name, so resources that are gone are set to null.
    body = dict(wanted)
    old, new = previous.get("plan"), wanted.get("plan")
    if old and new:
        body["plan"] = dict(new)
        for field_name in ("capacityBefore", "capacityAfter"):
            gone = set(old.get(field_name) or ()) - set(new[field_name])
            body["plan"][field_name] = {**new[field_name], **dict.fromkeys(gone)}
    return body
