"""wake → gather → plan → execute → publish: one level-triggered loop for the whole cluster.

An event only says "look again". What was seen, asked or done before is not remembered, except back-offs.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Protocol

import structlog

from gpusharing.api.names import Phase
from gpusharing.controller.complaints import Complaints
from gpusharing.controller.execute import FATAL, Executor, Outcome
from gpusharing.controller.idleness import Idleness, Leader
from gpusharing.controller.progress import Progress
from gpusharing.controller.publish import Publisher
from gpusharing.controller.settings import Settings
from gpusharing.kube.client import JSON, KubeClient
from gpusharing.kube.errors import KubeError
from gpusharing.kube.fanout import Fanout
from gpusharing.kube.gather import Gatherer
from gpusharing.kube.http import Limits
from gpusharing.kube.sources import Sources
from gpusharing.planning.actions import Action, SetPointers
from gpusharing.planning.rollout import Memo, RolloutPlan, plan_rollout
from gpusharing.planning.way.verdict import Verdict
from gpusharing.planning.words.reasons import Reason

log = structlog.get_logger()

FIRST_LOOK = 4
"""The first event after a quiet time waits for this part of the debounce: what belongs together comes within it."""
AT_ONCE = 2
"""Follow-ups without a break: configuration, then fence. In a long row of them other nodes keep a large pool busy, and
every pass looks at all of it."""
FOLLOW_UPS = 30
"""Passes that may follow one another at once. More of them make no progress and would press the API server."""
RETRY = 2.0
"""Seconds until the next pass after one that the API server or the Lease ended."""


def utc_now() -> datetime:
    """The wall clock, read once per pass."""
    return datetime.now(UTC)


class Observer(Protocol):
    """Metrics, told what happens."""

    def passed(self, seconds: Mapping[str, float], plan: RolloutPlan, outcome: Outcome) -> None:
        """One pass and the seconds of its steps."""
        ...

    def acted(self, action: Action, result: str) -> None:
        """One action and its result."""
        ...

    def changed(self, before: Verdict | None, after: Verdict) -> None:
        """One verdict changed."""
        ...


@dataclass(slots=True)
class Statuses:
    """Where the publisher finds what is written already."""

    sources: Sources

    def policy_status(self, name: str) -> Mapping[str, Any]:
        """See publish.Statuses."""
        return self.sources.policies.status(name)

    def mirror(self, node: str) -> Mapping[str, Any]:
        """See publish.Statuses."""
        return self.sources.mirror(node)

    def conditions(self, node: str) -> Sequence[Mapping[str, Any]]:
        """See publish.Statuses."""
        return self.sources.conditions(node)

    def accept_policy(self, raw: JSON) -> None:
        """See publish.Statuses."""
        self.sources.policies.accept(raw)

    def accept_gpunode(self, raw: JSON) -> None:
        """See publish.Statuses."""
        self.sources.gpunodes.accept(raw)


@dataclass(slots=True)
class Wake:
    """One coalescing signal. Sets at any time; the loop looks at everything at once."""

    event: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self) -> None:
        """Something may have changed."""
        self.event.set()


def _sources(client: KubeClient, settings: Settings, wake: Callable[[], None]) -> Sources:
    return Sources(
        client,
        settings.plan,
        wake,
        admin_mig_map=settings.admin_mig_config_map,
        agent_namespace=settings.agent_namespace,
        maintenance_keys=frozenset(settings.maintenance_keys),
    )


def is_proving(verdict: Verdict) -> bool:
    """Only a look at the pods of the node is missing."""
    return verdict.phase is Phase.VERIFYING_IDLE and verdict.reason is Reason.SETTLING


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Loop:
    """The operator without kopf, HTTP server and process: embeddable in tests and the demo."""

    def __init__(
        self,
        client: KubeClient,
        leader: Leader,
        settings: Settings,
        observer: Observer,
        *,
        identity: str = "operator",
        now: Callable[[], datetime] = utc_now,
        on_first_pass: Callable[[], None] | None = None,
    ) -> None:
        self.settings, self.leader, self.observer, self.now = settings, leader, observer, now
        self.wake = Wake()
        self.calls = Fanout(client, parallel=min(settings.parallel, Limits().parallel))
        """Every call of the loop goes through it; those of the Lease do not."""
        self.sources = _sources(self.calls, settings, self.wake)
        self.executor = self._executor()
        self.gatherer = self._gatherer()
        self.publisher = self._publisher(identity)
        self._complaints = Complaints()
        self._idleness = Idleness(leader, self.sources, self._complaints)
        self.memo = Memo()
        self.plan: RolloutPlan | None = None
        self._publishing: asyncio.Task[datetime | None] | None = None
        """The writes of the last pass that people see; one round at a time."""
        self._follow_ups = 0
        self._on_first_pass = on_first_pass
        """Called once, when the whole cluster was read and planned."""
        self.last_pass = time.monotonic()
        """When (monotonic) the loop last came round."""
        self.progress = Progress()
        """/healthz looks at it."""

    def _executor(self) -> Executor:
        sources = self.sources
        return Executor(
            self.calls,
            sources.nodes,
            sources.gpunodes,
            sources.policies,
            self.leader,
            self.now,
            parallel=self.settings.parallel,
            eviction_wait=self.settings.plan.eviction_wait,
            config_maps=sources.config_maps,
            cluster_policies=sources.cluster_policies,
            on_action=self._acted,
            view=sources.node_view,
            seen=sources.seen_node,
            on_late=self.wake,
        )

    def _acted(self, action: Action, result: str) -> None:
        self.observer.acted(action, result)
        if isinstance(action, SetPointers) and result == "done":
            self.publisher.tell_pointers(action, self.now())

    def _gatherer(self) -> Gatherer:
        settings, executor = self.settings, self.executor
        return Gatherer(
            self.calls,
            self.sources,
            settings.plan,
            settings.admin_mig_config_map,
            executor.evictions,
            executor.failures,
            executor.unsure,
            parallel=max(1, min(settings.parallel, Limits().parallel) // 2),
            on_late=self.wake,
        )

    def _publisher(self, identity: str) -> Publisher:
        return Publisher(
            self.calls,
            Statuses(self.sources),
            self.settings.publish_period,
            identity,
            on_verdict=self.observer.changed,
            parallel=max(1, self.settings.parallel // 8),
            on_late=self.wake,
        )

    async def run(self) -> None:
        """Follow the API and go round until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.sources.run())
            group.create_task(self._tick(self.settings.relist, self.sources.policies.touch))
            group.create_task(self._count_pending())
            try:
                await self._go_round()
            finally:
                await self.close()

    async def close(self) -> None:
        """End every call that is still under way; returns when they have ended."""
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.wait({self._publishing})
            # Nobody awaits it any more: what ended it is what ended us, and no news.
            _ = self._publishing.cancelled() or self._publishing.exception()
            self._publishing = None
        for crew in (self.executor.crew, self.gatherer.crew, self.gatherer.shared, self.publisher.crew):
            await crew.close()

    async def _go_round(self) -> None:
        while True:
            with self.progress.of_a_pass():
                due = await self._pass()
            self.last_pass = time.monotonic()
            self.progress.made()
            await self._sleep(due)

    async def _sleep(self, due: datetime | None) -> None:
        """Until something happens or is due; then a moment more, so that one pass sees all of a burst.

        What happens after a quiet time is looked at soon; while much happens, passes keep the whole debounce apart.
        """
        limit = timedelta(seconds=10)
        left = min(limit, due - self.now()) if due is not None else limit
        try:
            async with asyncio.timeout(max(0.0, left.total_seconds())):
                await self.wake.event.wait()
        except TimeoutError:
            await self._pace(left)
            return
        debounce = self.settings.debounce
        apart = debounce - (time.monotonic() - self.last_pass)
        await asyncio.sleep(max(apart, debounce / FIRST_LOOK))

    async def _pace(self, left: timedelta) -> None:
        """A plan that writes in every pass and never comes to rest is a mistake; it must not be one at full speed."""
        self._follow_ups = self._follow_ups + 1 if left <= timedelta(0) else 0
        if self._follow_ups > FOLLOW_UPS:
            log.warning("passes make no progress", passes=self._follow_ups)
            await asyncio.sleep(RETRY)
        elif self._follow_ups > AT_ONCE:
            await asyncio.sleep(self.settings.debounce / FIRST_LOOK)

    async def _pass(self) -> datetime | None:
        """One round; returns when to look again at the latest."""
        self.wake.event.clear()
        if self._idleness.lasts():
            return self.now() + timedelta(seconds=RETRY / 4)
        if (left := self.calls.holds.left()) > 0:
            self._complaints.begins("pace", "the API server asks us to wait", seconds=round(left, 1))
            return self.now() + timedelta(seconds=left)
        self._complaints.ends("pace")
        try:
            due = await self.once()
        except* FATAL as group:
            self.sources.policies.touch()
            self.gatherer.forget_pods()
            self._ended_by(group)
        except* KubeError as group:
            self._ended_by(group)
        else:
            self._complaints.ends("pass")
            if self._on_first_pass is not None:
                self._on_first_pass()
                self._on_first_pass = None
            return due
        return self.now() + timedelta(seconds=RETRY)

    def _ended_by(self, group: BaseExceptionGroup[Exception]) -> None:
        error = first_of(group)
        self._complaints.begins(
            "pass", "no pass comes to its end", type(error).__name__, error=str(error) or repr(error)
        )

    async def once(self) -> datetime | None:
        """Gather, plan, execute, publish. Follow-up passes run at once while our own writes make progress.

        Raises a group with what speaks about all calls, and nothing else of what the API server may do.
        """
        times = [time.perf_counter()]

        def lap() -> None:
            times.append(time.perf_counter())

        now = self.now()
        unseen = self.executor.under_way()
        wanted = self.plan.wants_pods if self.plan else frozenset[str]()
        snapshot = await self.gatherer.snapshot(wanted, self.leader.claims, now)
        lap()
        now = self.now()  # what was seen is as old as it is now
        plan = plan_rollout(snapshot, now, self.memo)
        if plan.wants_pods - wanted:
            # Nobody waits for a round of status writes to learn whether the pods of a node block its change.
            wanted |= plan.wants_pods
            snapshot = await self.gatherer.snapshot(wanted, self.leader.claims, now)
            now = self.now()
            plan = plan_rollout(snapshot, now, self.memo)
        more_pods = plan.wants_pods - wanted
        self.plan = plan
        lap()
        outcome = await self.executor.execute(plan, snapshot, unseen)
        self._remember(plan, now)
        lap()
        await self._published()
        self._publishing = asyncio.create_task(self.publisher.publish(plan, snapshot, now))
        # What people see does not hold up what is done: a follow-up pass does not wait for it.
        held_back = None if outcome.done or more_pods else await self._published()
        lap()
        steps = ("gather", "plan", "execute", "publish")
        self.observer.passed(
            {step: end - start for step, (start, end) in zip(steps, pairwise(times), strict=True)},
            plan,
            outcome,
        )
        if snapshot.policies_error:
            self._complaints.begins("policies", "no node starts", why=snapshot.policies_error)
            return now + timedelta(seconds=RETRY)
        self._complaints.ends("policies")
        if outcome.done or more_pods:
            return now
        return min(
            (moment for moment in (plan.wake_at, held_back, outcome.again) if moment is not None),
            default=None,
        )

    def _remember(self, plan: RolloutPlan, now: datetime) -> None:
        """What the next snapshot needs of this pass."""
        self.gatherer.write_error = self.executor.write_error
        self.gatherer.remember_differing(plan.differing, now)
        self.gatherer.looks = plan.looks
        self.gatherer.proving = frozenset(v.node for v in plan.verdicts.values() if is_proving(v))

    async def _published(self) -> datetime | None:
        """Wait for the writes that people see; when more of them are due."""
        publishing, self._publishing = self._publishing, None
        return await publishing if publishing is not None else None

    # --- clocks ------------------------------------------------------------------------------------------

    async def _tick(self, period: float, action: Callable[[], object]) -> None:
        while True:
            await asyncio.sleep(period)
            action()
            self.wake()

    async def _count_pending(self) -> None:
        while True:
            if self.leader.is_leader and not self.sources.missing():
                try:
                    before = dict(self.gatherer.pending)
                    await self.gatherer.count_pending()
                    if self.gatherer.pending != before:
                        self.wake()
                    self._complaints.ends("pending pods")
                except KubeError as error:
                    self._complaints.begins(
                        "pending pods", "pending pods are not counted", type(error).__name__, error=str(error)
                    )
            await asyncio.sleep(self.settings.pending_period)
