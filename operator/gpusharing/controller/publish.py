"""Write what people see: Events, and the statuses of policies and GPUNodes. Only changes are written, and no decision
depends on any of it.

A node that begins to change is shown one period after it began to differ from what is shown. Its next phases are shown
after two periods. Shorter phases are never shown; their information is shown with the next one. A phase that lasts
(Synced, Failed, Blocked ...) is written at once.
Failures are logged and tried again, after a longer wait each time: no pass ends or waits because of them, and no
object waits because of another one. An Event counts as posted when the server has accepted it.

Terms: docs/design/glossary.md#fence.
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
from gpusharing.kube.crew import Crew
from gpusharing.kube.errors import (
    AlreadyExists,
    HeldBack,
    Invalid,
    KubeError,
    NotFound,
    ServerAway,
    Unauthorized,
)
from gpusharing.kube.raw import entries, text
from gpusharing.kube.sources import Sources
from gpusharing.planning.report.events import Event, cordon_event, node_events, refusal_event, shared_event
from gpusharing.planning.report.status import find_grounds, tell_status
from gpusharing.planning.report.transition import health_conditions, transition
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import RepairMps, SetPointers
from gpusharing.planning.snapshot.callfailures import LONGEST_WAIT
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, NodeView, PolicyView
from gpusharing.planning.transition.verdict import Verdict

log = structlog.get_logger()

POOL_FACTOR = 2
"""How many periods the numbers and the message of a policy may lag, because every node of the pool changes them."""

MOVING_FACTOR = 2
"""How many periods pass until a node that is changing is shown again, because a transition has half a dozen phases."""

MOST_PENDING = 1000
"""The most Events that may wait for the server; the oldest is dropped to make room for a new one."""

RESTING = frozenset(phase for phase in Phase if phase.lasts)
"""The phases that last. A transition to one of them is written without delay."""

FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors that computing a status may raise because of our own mistakes; they must not end a pass."""

_EVENTS = "events"


@dataclass(slots=True)
class Publisher:
    """Writes statuses and posts Events. There is one in each operator process."""

    client: KubeClient
    sources: Sources
    """The cache that holds the statuses as last read or written, and takes the server's answers."""
    period: float
    """Seconds for which a change of a resting node is held back; other changes are held back for multiples of this."""
    identity: str
    """Name of this process in Events."""
    crew: Crew = field(default_factory=lambda: Crew(16))
    on_verdict: Callable[[Verdict | None, Verdict], None] = lambda before, after: None
    """Called with the previous and the present verdict of each node whose verdict changed; for metrics."""
    _verdicts: dict[str, Verdict] = field(default_factory=dict)
    """The verdict of each node that was last reported to metrics, log and Events, by node name."""
    _drains: dict[str, str] = field(default_factory=dict)
    """The change (`op` of the fence) of each node whose drain was last reported by an Event, by node name."""
    _due: dict[str, datetime] = field(default_factory=dict)
    """When to write the status of each object that has to change, by key of the object, unless the change becomes
    urgent earlier."""
    _unwritten: set[str] = field(default_factory=set)
    """Keys of nodes whose transition may differ from what is shown and was not written yet."""
    _objects: dict[str, tuple[NodeView, GPUNodeView | None]] = field(default_factory=dict)
    """The Node and the GPUNode of each node in the last pass, by node name. They are compared by identity."""
    _grounds: dict[str, tuple[object, ...]] = field(default_factory=dict)
    """The facts that decided the conditions of each policy when they were last checked, by policy name."""
    _refused: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    """How many refusals came in a row, and when to try again, by key of the object."""
    _pending_events: deque[JSON] = field(default_factory=lambda: deque(maxlen=MOST_PENDING))
    """Events that the server has not accepted yet, oldest first."""
    _complaints: Complaints = field(default_factory=Complaints)
    _serial: int = 0
    """How many Events were made, to give each a name of its own."""
    _round: asyncio.Task[datetime | None] | None = None
    """The round that was started last, or None once its end was awaited."""

    def begin(self, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime) -> None:
        """Start a round that publishes in the background; `ended` awaits it. Call this only after `ended`, because
        there is only one round at a time."""
        self._round = asyncio.create_task(self.publish(plan, snapshot, now))

    async def ended(self) -> datetime | None:
        """Wait for the end of the current round. Return when the first write that was held back or refused is due, or
        None if there is none, or no round. Raises a group if the Lease was lost (`publish`)."""
        round_, self._round = self._round, None
        return await round_ if round_ is not None else None

    async def close(self) -> None:
        """Cancel the current round and every write that is still under way, and return when all of them have ended. An
        error of the round is dropped."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.wait({self._round})
            # The error is retrieved, because asyncio would log it otherwise. The round ended for the same reason as
            # the process.
            _ = self._round.cancelled() or self._round.exception()
            self._round = None
        await self.crew.close()

    async def publish(self, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime) -> datetime | None:
        """Report nodes whose verdict has changed (`_notice`), write the statuses that have changed, and post the
        pending Events. A write that takes too long continues in the background, and its object is left out of later
        rounds until it has ended; writes that have not begun by then are left to a later round.

        Return when the first write that was held back, refused, or prevented by ServerAway or Unauthorized is due, or
        None if there is none. These two errors end the round. Errors of the server, and errors in computing a status,
        are logged and not raised; a lost Lease is raised in a group.
        """
        verdicts = {f"node/{v.node}": v for v in plan.verdicts.values() if self._is_news(v, snapshot)}
        policies = {f"policy/{policy.name}": policy for policy in snapshot.policies}
        for verdict in verdicts.values():
            self._notice(verdict, plan, snapshot, now)
        self._forget(plan)
        due: list[datetime] = []

        async def write(key: str) -> None:
            """Publish the status of one object, or the Events, and append to `due` when that has to be tried again, if
            at all. Writes nothing while a refusal of this object holds. Raises errors that concern all calls; an
            error in computing a status (FAULTS) counts as a refusal."""
            try:
                if (refused := self._refused.get(key)) is not None and refused[1] > now:
                    later: datetime | None = refused[1]
                elif key == _EVENTS:
                    later = await self._post_events(now)
                elif key in verdicts:
                    later = await self._write_transition(verdicts[key], snapshot, now)
                else:
                    later = await self._status(policies[key], plan, snapshot, now)
            except FAULTS as error:
                later = self._refusal(
                    key, "the status cannot be computed; please report this bug", error, now
                )
            if later is not None:
                due.append(later)

        try:
            await self.crew.each([*verdicts, *policies, *([_EVENTS] if self._pending_events else [])], write)
        except* (ServerAway, Unauthorized) as group:
            self._complaints.begins(
                "status",
                "statuses and Events cannot be written; trying again",
                error=str(group.exceptions[0]),
            )
            due.append(now + timedelta(seconds=max(self.period, 1.0)))
        else:
            self._complaints.ends("status")
        return min(due, default=None)

    def _forget(self, plan: RolloutPlan) -> None:
        """Drop what is remembered about nodes and policies that are not in the plan any more."""
        for name in self._verdicts.keys() - plan.verdicts.keys():
            del self._verdicts[name]
            self._objects.pop(name, None)
            self._drains.pop(name, None)
            self._drop(f"node/{name}")
        for name in self._grounds.keys() - plan.pools.keys():
            del self._grounds[name]
            self._drop(f"policy/{name}")

    def _drop(self, key: str) -> None:
        """Drop what is remembered about the status of the object with this key. If the last attempts to write it
        failed, also log that this problem is over."""
        self._unwritten.discard(key)
        self._due.pop(key, None)
        self._refused.pop(key, None)
        self._complaints.ends(key)

    def _is_news(self, verdict: Verdict, snapshot: ClusterSnapshot) -> bool:
        """Whether the transition of a node may have to be written: its verdict differs from the last pass, its Node or
        its GPUNode is another object than in the last pass, even an equal one, or an earlier change was not written
        yet. Always true for a new node."""
        name = verdict.node
        node, gpunode = self._objects.get(name, (None, None))
        same = node is snapshot.nodes[name] and gpunode is snapshot.gpunodes.get(name)
        return not same or self._verdicts.get(name) != verdict or f"node/{name}" in self._unwritten

    def _notice(self, verdict: Verdict, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime) -> None:
        """Record that the transition of a node may have to be written. If its verdict changed, report that to
        `on_verdict` and, if its policy has a pool, log and queue its Events. If the operator has cordoned or released
        the Node since the last pass, queue an Event about the Node. Remembers the Node and its GPUNode for the next
        pass and, if the new verdict is Draining with pods left, the node's change, so that each drain is reported
        once."""
        before, node = self._verdicts.get(verdict.node), snapshot.nodes[verdict.node]
        verdict = _with_settled_count(verdict, before)
        known, _ = self._objects.get(verdict.node, (None, None))
        self._objects[verdict.node] = node, snapshot.gpunodes.get(verdict.node)
        if known is not None and (cordon := cordon_event(known, node)) is not None:
            # `kubectl describe node` looks for Events whose uid is the name of the Node, as in the kubelet's Events.
            regarding = {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.name}
            self._pending_events.append(self._event(cordon, regarding, now))
        self._unwritten.add(f"node/{verdict.node}")
        if before != verdict:
            self._verdicts[verdict.node] = verdict
            self.on_verdict(before, verdict)
            change = node.fence.op if node.fence is not None else ""
            events = node_events(before, verdict, drained=self._drains.get(verdict.node) == change)
            pool = plan.pools.get(verdict.policy)
            regarding = _policy_of(pool.policy) if pool is not None else {}
            for event in events if regarding else ():
                related = {"apiVersion": "v1", "kind": "Node", "name": verdict.node}
                body = self._event(event, regarding, now)
                self._pending_events.append({**body, "related": related})
                _log(event, node=verdict.node, policy=verdict.policy, phase=str(verdict.phase))
            if verdict.phase is Phase.DRAINING and verdict.pods:
                self._drains[verdict.node] = change

    # --- transitions and status ----------------------------------------------------------------------------

    async def _write_transition(
        self, verdict: Verdict, snapshot: ClusterSnapshot, now: datetime
    ) -> datetime | None:
        """Write the transition and the health of a node to its GPUNode if they differ from what is shown. A phase that
        lasts is written at once. Any other is due one `period` after the change was first noticed if the phase shown
        until now lasts, else MOVING_FACTOR periods after it. Return when to try again, or None if nothing is left to
        write or the GPUNode does not exist. Raises errors that concern all calls."""
        key = f"node/{verdict.node}"
        if verdict.node not in snapshot.gpunodes:
            return None  # it is being created in this pass
        resting = verdict.phase.lasts
        if not resting and (due := self._due.get(key, now)) > now:
            return due
        previous, stand = self.sources.shown(verdict.node)
        wanted = transition(verdict, snapshot.nodes[verdict.node], previous, now)
        conditions = health_conditions(verdict, stand, now)
        if wanted == previous and conditions == stand:
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
        """Write the status of a policy if it has changed. It is written at once for a new generation or if the status
        of a condition changes, otherwise POOL_FACTOR periods after the change was first noticed. If the policy has just
        been refused, queue an Event once the status is written, and return `now`. Otherwise return when to check it
        again, or None if nothing is left to write. Raises errors that concern all calls."""
        key = f"policy/{policy.name}"
        grounds = find_grounds(policy, plan, snapshot)
        before, self._grounds[policy.name] = self._grounds.get(policy.name), grounds
        if grounds == before and (due := self._due.get(key, now)) > now:
            return due  # only numbers and messages may have changed, which can wait
        previous = self.sources.policies.status(policy.name)
        wanted = tell_status(policy, plan, snapshot, previous, now)
        if {name: value for name, value in wanted.items() if value is not None} == dict(previous):
            self._due.pop(key, None)
            return None
        urgent = wanted["observedGeneration"] != previous.get("observedGeneration")
        urgent = urgent or _statuses(wanted) != _statuses(previous)
        lag = timedelta(seconds=self.period * POOL_FACTOR)
        if not urgent and (later := self._hold(key, now, lag)) is not None:
            return later
        body = {"status": _replacing(wanted, previous)}
        refusal = refusal_event(previous, wanted)
        later = await self._write(key, now, POLICIES, body, self.sources.policies.accept)
        if later is None and refusal is not None:
            self._pending_events.append(self._event(refusal, _policy_of(policy), now))
            _log(refusal, policy=policy.name)
            return now  # the Event is posted with the next round
        return later

    def _hold(self, key: str, now: datetime, lag: timedelta) -> datetime | None:
        """Return when the change of the object `key` may be written, or None if it may be written now. A change may be
        written `lag` after it was first noticed; that time is recorded in `_due`."""
        due = self._due.setdefault(key, now + lag)
        return due if due > now else None

    async def _write(
        self, key: str, now: datetime, resource: Resource, body: JSON, accept: Callable[[JSON], None]
    ) -> datetime | None:
        """Patch the status of the object named by `key`, and pass the server's answer to `accept`. Return when to try
        again after a refusal, or None if the status was written or the object is gone; then its due time and its
        refusals are forgotten. Raises errors that concern all calls."""
        try:
            name = key.partition("/")[2]
            accept(await self.client.patch(resource, name, body, subresource="status"))
        except NotFound:
            pass
        except KubeError as error:
            return self._refusal(key, "the status cannot be written; trying again", error, now)
        self._due.pop(key, None)
        self._accepted(key)
        return None

    def _refusal(self, key: str, event: str, error: Exception, now: datetime) -> datetime:
        """Record a refusal, log `event` unless the last refusal of this object was of the same kind, and return when
        to try again. The first wait is `period` seconds, at least one; it doubles with each refusal in a row, up to
        LONGEST_WAIT. A call that was held back is neither recorded nor logged; it is tried again when the hold ends.
        Raises `error` if it concerns all calls."""
        if isinstance(error, ServerAway | Unauthorized):
            raise error
        if isinstance(error, HeldBack):
            return now + timedelta(seconds=error.retry_after or 1.0)
        tries = self._refused[key][0] + 1 if key in self._refused else 1
        wait = min(LONGEST_WAIT, max(self.period, 1.0) * 2.0 ** min(tries - 1, 10))
        self._refused[key] = tries, now + timedelta(seconds=wait)
        self._complaints.begins(key, event, type(error).__name__, error=str(error) or repr(error))
        return self._refused[key][1]

    def _accepted(self, key: str) -> None:
        """Forget the refusals of an object, and log that they are over if there were any."""
        self._refused.pop(key, None)
        self._complaints.ends(key)

    # --- events --------------------------------------------------------------------------------------------

    def report_pointers(self, action: SetPointers, now: datetime) -> None:
        """Queue the Event about a ClusterPolicy that the operator has changed. It is posted in the next round."""
        self._pending_events.append(self.shared_event(action, now))

    def shared_event(self, action: SetPointers | RepairMps, now: datetime) -> JSON:
        """Return the body of an Event about the ClusterPolicy, which says that the operator has changed the
        ClusterPolicy or its MPS DaemonSet. Nothing is posted."""
        policy = action.policy
        kind = {"apiVersion": CLUSTER_POLICIES.api_version, "kind": "ClusterPolicy"}
        regarding = {**kind, "name": policy.name, "uid": policy.uid}
        return self._event(shared_event(action), regarding, now)

    async def _post_events(self, now: datetime) -> datetime | None:
        """Post the pending Events, oldest first. Return when to try again after a failure, or None if none is left. An
        Event that exists already counts as posted; one that the server rejects as Invalid or NotFound is dropped, which
        is logged once for several in a row. Raises errors that concern all calls."""
        while self._pending_events:
            body = self._pending_events[0]
            try:
                await self.client.create(EVENTS, body, namespace="default")
            except AlreadyExists:
                pass  # it was created by an earlier attempt, whose answer was lost
            except (Invalid, NotFound) as error:
                self._complaints.begins(
                    _EVENTS,
                    "the API server rejected an Event, so the operator drops it",
                    type(error).__name__,
                    error=str(error),
                )
            except KubeError as error:
                return self._refusal(_EVENTS, "Events cannot be posted; trying again", error, now)
            else:
                self._accepted(_EVENTS)
            if self._pending_events and self._pending_events[0] is body:
                self._pending_events.popleft()
        return None

    def _event(self, event: Event, regarding: JSON, now: datetime) -> JSON:
        """Return the body of an Event (events.k8s.io/v1) about the object `regarding`, with a name that no other call
        returns. Nothing is posted. The Event's reason is also its action, and the first 128 characters of `identity`
        name the process that reports it. Events about cluster-scoped objects are created in the namespace default."""
        self._serial += 1
        stamp = to_micro_time(now)
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{regarding['name']}.{int(now.timestamp() * 1000):x}.{self._serial:x}",
                "namespace": "default",
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
    """Log an Event with its reason as the message, its note, and the keys in `where`. A Warning is logged at the level
    warning, any other Event at the level info."""
    write = log.warning if event.type == "Warning" else log.info
    write(event.reason, **where, note=event.note)


def _with_settled_count(verdict: Verdict, before: Verdict | None) -> Verdict:
    """Return the verdict with the count of ended MPS clients of the verdict before it, while its own count is settling
    (`MpsLapses.settling`). The later count is then compared with the last one that was taken while config-manager ran.
    Otherwise, and if there is no verdict before, the same verdict is returned."""
    if before is None or verdict.lapses is None or not verdict.lapses.settling:
        return verdict
    return replace(verdict, lapses=before.lapses)


def _policy_of(policy: PolicyView) -> JSON:
    """Return the object reference that Events use for a policy."""
    kind = {"apiVersion": names.API_VERSION, "kind": "GPUSharingPolicy"}
    return {**kind, "name": policy.name, "uid": policy.uid}


def _statuses(status: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the type and the status of each condition in the status of a policy, in the order of the conditions. Empty
    if it has none."""
    return tuple((text(row, "type"), text(row, "status")) for row in entries(status, "conditions"))


def _replacing(wanted: Mapping[str, Any], previous: Mapping[str, Any]) -> JSON:
    """Return a merge patch that replaces the status `previous` by `wanted`, with every field of `wanted`; a field that
    is None becomes null and is removed. A merge patch keeps map keys that it does not name. If both statuses have a
    plan, resources that are no longer in its capacities are therefore set to null."""
    body = dict(wanted)
    old, new = previous.get("plan"), wanted.get("plan")
    if old and new:
        body["plan"] = dict(new)
        for field_name in ("capacityBefore", "capacityAfter"):
            gone = set(old.get(field_name) or ()) - set(new[field_name])
            body["plan"][field_name] = {**new[field_name], **dict.fromkeys(gone)}
    return body
