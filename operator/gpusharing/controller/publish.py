"""Write what people see: Events, and the status of policies and GPUNodes. Only changes are written.

A node that begins to change is shown one period after it began to differ from what is shown, its next phases after two:
shorter phases are never shown, and their information is shown with the next one. An end (Synced, Failed, Blocked ...)
is written at once. Nothing is decided from any of it.

Whatever fails here is logged and tried again, after a longer wait each time: no pass ends or waits because of it, and
no object waits because of another one. An Event counts as told when the server has accepted it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from gpusharing.kube.sources import Sources
from gpusharing.planning.report.events import Event, node_events, pointers_event, refusal_event
from gpusharing.planning.report.status import find_grounds, tell_status
from gpusharing.planning.report.transition import health_conditions, transition
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import SetPointers
from gpusharing.planning.snapshot.callfailures import LONGEST_WAIT
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, NodeView, PolicyView
from gpusharing.planning.transition.verdict import Verdict

log = structlog.get_logger()

POOL_FACTOR = 2
"""A policy's numbers and message may lag this many periods: every node of the pool changes them."""

MOVING_FACTOR = 2
"""A node that is changing is shown again after this many periods: a transition has half a dozen phases."""

UNTOLD = 1000
"""The most Events that may wait for the server; older ones are dropped to make room."""

RESTING = frozenset(phase for phase in Phase if phase.lasts)
"""Phases that last: their transition is written without delay."""

FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""The errors that computing a status from one odd object may raise: a fault of ours, which must not end a pass."""

_EVENTS = "events"


@dataclass(slots=True)
class Publisher:
    """One per operator process."""

    client: KubeClient
    sources: Sources
    """Has the statuses as they were read or written last, and takes the server's answers."""
    period: float
    identity: str
    crew: Crew = field(default_factory=lambda: Crew(16))
    on_verdict: Callable[[Verdict | None, Verdict], None] = lambda before, after: None
    """Called for every verdict that changed: for metrics."""
    _told: dict[str, Verdict] = field(default_factory=dict)
    _drains: dict[str, str] = field(default_factory=dict)
    """By node: the change (`op` of its fence) whose drain was reported last."""
    _due: dict[str, datetime] = field(default_factory=dict)
    """By object whose status differs from what it should be: when to write it. It is checked again then, not before."""
    _held: set[str] = field(default_factory=set)
    """Transitions that are due although their verdict did not change."""
    _seen: dict[str, tuple[NodeView, GPUNodeView | None]] = field(default_factory=dict)
    """The objects of the last pass, compared by identity."""
    _shown: dict[str, tuple[object, ...]] = field(default_factory=dict)
    """By policy: what decided the status of its conditions when they were last checked."""
    _refused: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    """By object: refusals in a row, and when to try again."""
    _untold: deque[JSON] = field(default_factory=lambda: deque(maxlen=UNTOLD))
    """Events that the server has not accepted yet, oldest first."""
    _complaints: Complaints = field(default_factory=Complaints)
    _serial: int = 0
    _round: asyncio.Task[datetime | None] | None = None
    """The latest round."""

    def begin(self, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime) -> None:
        """Begin to publish, concurrently with whatever comes next. Only after `ended`: there is one round at a time."""
        self._round = asyncio.create_task(self.publish(plan, snapshot, now))

    async def ended(self) -> datetime | None:
        """Wait for the current round; returns when something that was held back is due."""
        round_, self._round = self._round, None
        return await round_ if round_ is not None else None

    async def close(self) -> None:
        """End every write that is still under way; returns when they have ended."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.wait({self._round})
            # Nobody awaits it any more: it ended for the same reason as we did.
            _ = self._round.cancelled() or self._round.exception()
            self._round = None
        await self.crew.close()

    async def publish(self, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime) -> datetime | None:
        """Returns when something that was held back is due. Raises nothing that the server causes."""
        verdicts = {f"node/{v.node}": v for v in plan.verdicts.values() if self._is_news(v, snapshot)}
        policies = {f"policy/{policy.name}": policy for policy in snapshot.policies}
        for verdict in verdicts.values():
            self._notice(verdict, plan, snapshot, now)
        self._forget(plan)
        due: list[datetime] = []

        async def write(key: str) -> None:
            try:
                if (refused := self._refused.get(key)) is not None and refused[1] > now:
                    later: datetime | None = refused[1]
                elif key == _EVENTS:
                    later = await self._tell(now)
                elif key in verdicts:
                    later = await self._write_transition(verdicts[key], snapshot, now)
                else:
                    later = await self._status(policies[key], plan, snapshot, now)
            except FAULTS as error:
                later = self._refusal(key, "status cannot be told", error, now)
            if later is not None:
                due.append(later)

        try:
            await self.crew.each([*verdicts, *policies, *([_EVENTS] if self._untold else [])], write)
        except* (ServerAway, Unauthorized) as group:
            self._complaints.begins("status", "status is not written", error=str(group.exceptions[0]))
            due.append(now + timedelta(seconds=max(self.period, 1.0)))
        else:
            self._complaints.ends("status")
        return min(due, default=None)

    def _forget(self, plan: RolloutPlan) -> None:
        """Drop what is remembered about nodes and policies that no longer exist."""
        for name in self._told.keys() - plan.verdicts.keys():
            del self._told[name]
            self._seen.pop(name, None)
            self._drains.pop(name, None)
            self._drop(f"node/{name}")
        for name in self._shown.keys() - plan.pools.keys():
            del self._shown[name]
            self._drop(f"policy/{name}")

    def _drop(self, key: str) -> None:
        self._held.discard(key)
        self._due.pop(key, None)
        self._refused.pop(key, None)
        self._complaints.ends(key)

    def _is_news(self, verdict: Verdict, snapshot: ClusterSnapshot) -> bool:
        """Whether the transition may have to change: it shows the verdict and the node, and is stored on the
        GPUNode."""
        name = verdict.node
        seen = (snapshot.nodes[name], snapshot.gpunodes.get(name))
        before, self._seen[name] = self._seen.get(name), seen
        same = before is not None and before[0] is seen[0] and before[1] is seen[1]
        return not same or self._told.get(name) != verdict or f"node/{name}" in self._held

    def _notice(self, verdict: Verdict, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime) -> None:
        """Report a changed verdict in metrics and log, and compose its Events; an unchanged one is ignored."""
        before = self._told.get(verdict.node)
        self._held.add(f"node/{verdict.node}")
        if before != verdict:
            self._told[verdict.node] = verdict
            self.on_verdict(before, verdict)
            change = fence.op if (fence := snapshot.nodes[verdict.node].fence) is not None else ""
            events = node_events(before, verdict, drained=self._drains.get(verdict.node) == change)
            self._compose(events, verdict, plan, now)
            if verdict.phase is Phase.DRAINING and verdict.pods:
                self._drains[verdict.node] = change

    # --- transitions and status ----------------------------------------------------------------------------

    async def _write_transition(
        self, verdict: Verdict, snapshot: ClusterSnapshot, now: datetime
    ) -> datetime | None:
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
            self._held.discard(key)
            return None
        rested = previous.get("phase", Phase.SYNCED) in RESTING
        lag = timedelta(seconds=self.period * (1 if rested else MOVING_FACTOR))
        if not resting and (later := self._hold(key, now, lag)) is not None:
            return later
        body = {"status": {"transition": wanted, "conditions": conditions}}
        later = await self._write(key, now, GPUNODES, body, self.sources.gpunodes.accept)
        if later is None and self._told.get(verdict.node) == verdict:  # nothing newer came meanwhile
            self._held.discard(key)
        return later

    async def _status(
        self, policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime
    ) -> datetime | None:
        """Write the status of a policy if it has changed. Returns when the next write is due, or None if none is."""
        key = f"policy/{policy.name}"
        grounds = find_grounds(policy, plan, snapshot)
        before, self._shown[policy.name] = self._shown.get(policy.name), grounds
        if grounds == before and (due := self._due.get(key, now)) > now:
            return due  # numbers and messages: nobody needs them before they are due
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
            self._untold.append(self._event(refusal, _policy_of(policy), now))
            return now  # the Event is posted with the next round
        return later

    def _hold(self, key: str, now: datetime, lag: timedelta) -> datetime | None:
        """When the change may be written, if that is later than now. `lag`: from when it is first seen."""
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
        except KubeError as error:
            return self._refusal(key, "status not written", error, now)
        self._due.pop(key, None)
        self._accepted(key)
        return None

    def _refusal(self, key: str, event: str, error: Exception, now: datetime) -> datetime:
        """Note a refusal, log it once, and return when to try again. Raises what concerns all calls."""
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
        self._refused.pop(key, None)
        self._complaints.ends(key)

    # --- events --------------------------------------------------------------------------------------------

    def _compose(self, events: tuple[Event, ...], verdict: Verdict, plan: RolloutPlan, now: datetime) -> None:
        pool = plan.pools.get(verdict.policy)
        if pool is None:
            return
        for event in events:
            node = {"apiVersion": "v1", "kind": "Node", "name": verdict.node}
            self._untold.append({**self._event(event, _policy_of(pool.policy), now), "related": node})
            log.info(
                event.reason,
                node=verdict.node,
                policy=verdict.policy,
                phase=str(verdict.phase),
                note=event.note,
            )

    def tell_pointers(self, action: SetPointers, now: datetime) -> None:
        """Report that we changed somebody else's object; posted with the next round."""
        policy = action.policy
        kind = {"apiVersion": CLUSTER_POLICIES.api_version, "kind": "ClusterPolicy"}
        regarding = {**kind, "name": policy.name, "uid": policy.uid}
        self._untold.append(self._event(pointers_event(action), regarding, now))

    async def _tell(self, now: datetime) -> datetime | None:
        """Post the pending Events, in the order in which they happened."""
        while self._untold:
            body = self._untold[0]
            try:
                await self.client.create(EVENTS, body, namespace="default")
            except AlreadyExists:
                pass  # an answer was lost
            except (Invalid, NotFound) as error:
                self._complaints.begins(_EVENTS, "event refused", type(error).__name__, error=str(error))
            except KubeError as error:
                return self._refusal(_EVENTS, "events not posted", error, now)
            else:
                self._accepted(_EVENTS)
            if self._untold and self._untold[0] is body:
                self._untold.popleft()
        return None

    def _event(self, event: Event, regarding: JSON, now: datetime) -> JSON:
        """events.k8s.io/v1; events about cluster-scoped objects live in the namespace default."""
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


def _policy_of(policy: PolicyView) -> JSON:
    """A policy, as an Event names it."""
    kind = {"apiVersion": names.API_VERSION, "kind": "GPUSharingPolicy"}
    return {**kind, "name": policy.name, "uid": policy.uid}


def _statuses(status: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((row["type"], row["status"]) for row in status.get("conditions") or ())


def _replacing(wanted: Mapping[str, Any], previous: Mapping[str, Any]) -> JSON:
    """A merge patch merges maps: keys that are gone from the plan's capacities must be named to vanish."""
    body = dict(wanted)
    old, new = previous.get("plan"), wanted.get("plan")
    if old and new:
        body["plan"] = dict(new)
        for field_name in ("capacityBefore", "capacityAfter"):
            gone = set(old.get(field_name) or ()) - set(new[field_name])
            body["plan"][field_name] = {**new[field_name], **dict.fromkeys(gone)}
    return body
