"""One level-triggered loop for the whole cluster: wake → gather → plan → execute → publish.

An event only says "look again". No decision depends on what only this process remembers, except for waits: how long to
back off, since when a node differs, when a blocked node was last looked at. Everything else that the process remembers
only saves work.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from gpusharing.controller.complaints import Complaints
from gpusharing.controller.execute import FATAL, Executor
from gpusharing.controller.metrics import Metrics
from gpusharing.controller.publish import Publisher
from gpusharing.controller.settings import Settings
from gpusharing.controller.tainttest import PERIOD, TaintTest
from gpusharing.kube.client import ApiRequest, KubeClient
from gpusharing.kube.clock import loop_time, wall_time
from gpusharing.kube.errors import KubeError, first_of
from gpusharing.kube.fanout import Fanout, PublishingClient, Workers
from gpusharing.kube.gather import Gatherer
from gpusharing.kube.http import Limits
from gpusharing.kube.lease import LeaderLease
from gpusharing.kube.sender import Sender, Writes
from gpusharing.kube.sources import NOT_YET, Sources
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.actions import Action, Evict, ForceDelete, SetPointers
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.memory import PassMemory
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.stack.effects import tell_effects
from gpusharing.planning.vocabulary.commands import Effect, label_commands

log = structlog.get_logger()

LONGEST_REST = timedelta(seconds=10)
"""The longest rest between two passes, even if a plan names a later time."""
DEBOUNCE_PARTS = 4
"""An event after a quiet time waits for a debounce divided by this; related events arrive within it."""
UNBROKEN_PASSES = 2
"""Follow-up passes without a break: configuration, then fence. A large pool causes more, each over all nodes."""
FOLLOW_UPS = 30
"""The most passes that may follow one another without a rest and without an event."""
RETRY = 2.0
"""Seconds until the next pass, after the API server or the Lease has ended one."""
PASSES_FAIL = "passes fail; trying again"


_OF_A_PASS: ContextVar[bool] = ContextVar("of_a_pass", default=False)
"""Whether the running task belongs to a pass. Inherited by every task that a pass starts."""


@contextmanager
def timing(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Store the seconds that the block takes under `step`, unless it raises."""
    begun = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - begun


def report_held(complaints: Complaints, held: Sequence[Effect]) -> None:
    """Log once that the operator's own write to ClusterPolicy waits, and the commands that protect nodes."""
    waits = "the operator does not set ClusterPolicy's pointers, because nodes would lose by it"
    why, run = tell_effects(held).removeprefix("; "), [*map(str, label_commands(held))]
    complaints.check("pointers", held, waits, nodes=sorted({effect.node for effect in held}), why=why, run=run)


class Loop:
    """The operator without kopf, HTTP server and process, so that tests and the demo can embed it."""

    def __init__(
        self,
        client: KubeClient,
        leader: LeaderLease,
        settings: Settings,
        metrics: Metrics,
        *,
        now: Callable[[], datetime] = wall_time,
        on_first_pass: Callable[[], None] | None = None,
    ) -> None:
        self.leader, self.settings, self.metrics, self.now = leader, settings, metrics, now
        self._complaints = Complaints()
        self.wake = asyncio.Event()
        """Set by every event; one pass then handles all of them."""
        wake, limit = self.wake.set, Limits().parallel
        self.calls = Fanout(client, parallel=min(settings.parallel, limit))
        """The client that every call of the loop goes through, except the calls about the Lease."""
        writes = Writes()
        sender = self.sender = Sender(self.calls, writes)
        leader.on_stop = wake
        self.sources = Sources(sender, settings, wake, lambda: leader.restores, lambda: leader.stop)
        publish_workers = Workers(max(1, settings.parallel // 8), wake)
        self.publisher = Publisher(
            Sender(PublishingClient(self.calls), writes),
            self.sources,
            settings.publish_period,
            leader.identity,
            publish_workers,
            metrics.changed,
        )
        self.executor = Executor(
            sender,
            self.sources,
            leader.set_claims,
            now,
            workers=Workers(settings.parallel, wake),
            eviction_wait=settings.eviction_wait,
            on_action=self._acted,
            event_of=lambda action: self.publisher.shared_event(action, now()),
        )
        list_workers = Workers(max(1, min(settings.parallel, limit) // 2), wake)
        self.gatherer = Gatherer(sender, self.sources, self.executor.calls, list_workers)
        self._follow_ups = 0
        """How many passes have followed one another without a rest."""
        self.memo, self.memory = Memo(), PassMemory()
        self.plan: RolloutPlan | None = None
        self._unread: set[str] = set()
        """The sources that could not be read at some time since all of them last could."""
        self._on_first_pass = on_first_pass
        """Called once, when the whole cluster has been read and planned; then None."""
        self.last_progress = loop_time()
        """When a pass last ended, or a call of one was last answered; liveness depends on it.

        The duration of a pass does not tell: one that creates five thousand objects takes minutes on a slow API server.
        Nor do calls that belong to no pass (watches, the Lease), which continue while the loop hangs."""

    def _acted(self, action: Action, result: str) -> None:
        self.metrics.acted(action, result)
        if result != "done":
            return
        if isinstance(action, SetPointers):
            self.publisher.report_pointers(action, self.now())
        elif isinstance(action, Evict | ForceDelete) and self.plan and (at := self.plan.verdicts.get(action.node)):
            self.publisher.report_eviction(action, at, self.now())

    async def run(self) -> None:
        """Run passes and what they need until canceled; an error of one task ends all and is raised in a group."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.sources.run())
            group.create_task(self.list_policies())
            group.create_task(self.count_pending())
            group.create_task(self.test_taints())
            try:
                while True:
                    with self.of_a_pass():
                        due = await self._pass()
                    await self._rest(due)
            finally:
                await self.close()

    async def close(self) -> None:
        """End the calls that are still under way, and return when all of them have ended."""
        await self.publisher.close()
        await self.executor.workers.close()
        await self.gatherer.close()

    async def _rest(self, due: datetime | None) -> None:
        """Wait until an event or the time `due`, for LONGEST_REST at most, and keep passes a debounce apart."""
        begun = loop_time()
        left = min(LONGEST_REST, due - self.now()) if due is not None else LONGEST_REST
        try:
            async with asyncio.timeout(max(0.0, left.total_seconds())):
                await self.wake.wait()
        except TimeoutError:
            # No event follows a write that changes nothing, and a plan that repeats one must not run fast. One that
            # others undo is held back by `Sender`.
            self._follow_ups = self._follow_ups + 1 if left <= timedelta(0) else 0
            if self._follow_ups > FOLLOW_UPS:
                self._complaints.begins("follow-ups", "passes repeat without effect, so the operator slows down")
                await asyncio.sleep(RETRY)
            elif self._follow_ups > UNBROKEN_PASSES:
                await asyncio.sleep(self.settings.debounce / DEBOUNCE_PARTS)
            if not self._follow_ups:
                self._complaints.ends("follow-ups")
            return
        self._follow_ups = 0
        apart = self.settings.debounce - (loop_time() - begun)
        await asyncio.sleep(max(apart, self.settings.debounce / DEBOUNCE_PARTS))

    @contextmanager
    def of_a_pass(self) -> Iterator[None]:
        """Let the calls in this block, and in tasks that are started in it, count as calls of a pass."""
        token = _OF_A_PASS.set(True)
        try:
            yield
            self.last_progress = loop_time()
        finally:
            _OF_A_PASS.reset(token)

    def called(self, request: ApiRequest, status: int) -> None:
        """Record an answer, whatever it is; a status of 0 means that there was none. See http.OnCall."""
        if status and _OF_A_PASS.get():
            self.last_progress = loop_time()

    async def _pass(self) -> datetime | None:
        """Run one pass, if it may run, and return when the next one is due at the latest."""
        self.wake.clear()
        if not self._may_run():
            return self.now() + timedelta(seconds=RETRY / 4)
        left = self.calls.hold_left()
        waits = "the API server asked the operator to back off, so no pass starts for now"
        self._complaints.check("pace", left > 0, waits, seconds=round(left, 1))
        if left > 0:
            return self.now() + timedelta(seconds=left)
        try:
            due = await self.once()
        except* FATAL as group:
            self.sources.policies.touch()
            self.gatherer.pods.forget()
            self._complaints.follow("pass", PASSES_FAIL, first_of(group))
        except* KubeError as group:
            self._complaints.follow("pass", PASSES_FAIL, first_of(group))
        else:
            self._complaints.ends("pass")
            if self._on_first_pass is not None:
                self._on_first_pass()
                self._on_first_pass = None
            return due
        return self.now() + timedelta(seconds=RETRY)

    def _may_run(self) -> bool:
        """Whether this process leads and all sources can be relied on. Logs what is wrong, also what stops no pass."""
        leads, missing = self.leader.is_leader, self.sources.missing()
        why = self.leader.claims_error
        self._complaints.check(
            "claims",
            leads and why,
            "claims or failures recorded on the Lease cannot be read; until they can, only fences on nodes count as"
            " used slots, and a policy that was halted by failed nodes continues if those nodes have since been"
            " deleted",
            error=why,
        )
        self._report_sources(missing)
        return leads and not missing

    def _report_sources(self, missing: Mapping[str, str]) -> None:
        """Log which objects cannot be read, once for as long as it lasts."""
        unread = {name: why for name, why in missing.items() if why != NOT_YET}
        self._unread |= unread.keys()
        if unread:
            self._complaints.begins(
                "sources",
                "some objects cannot be read; the operator changes nothing until it can read them",
                " ".join(sorted(self._unread)),  # sources that recover one by one are not logged again
                sources=unread,
            )
        elif not missing:
            self._unread.clear()
            self._complaints.ends("sources")
        revoked = self.sources.revoked()
        self._complaints.check(
            "revoked rights",
            revoked,
            "some objects may no longer be read, so the operator goes on with what it read last; grant the right"
            " again, or restart the operator to let it continue as if there were no such objects",
            " ".join(sorted(revoked)),
            sources=revoked,
        )
        # Nothing waits for the Warning events, because they only explain. Only this log line shows that they are
        # missing. One kind for all errors, because a server that asks us to wait alternates between them.
        error = self.sources.agent_warnings.error
        event = "Warning events about the agent's pods cannot be read; trying again"
        self._complaints.check("agent warnings", error is not None, event, error=str(error) or repr(error))

    async def once(self) -> datetime | None:
        """Run one pass, set `plan` and `memory`, and return when the next pass is due at the latest.

        Raises Unavailable before the first list of the policies, and a group of errors that concern all calls.
        """
        seconds: dict[str, float] = {}
        # The snapshot may not show the results of writes that are under way when it begins.
        unseen = frozenset(self.executor.workers.busy)
        wanted = self.plan.memory.wants_pods if self.plan else frozenset[str]()
        with timing(seconds, "gather"):
            snapshot = await self._gather(wanted, self.now())
        with timing(seconds, "plan"):
            now = self.now()  # gathering took time, so the snapshot is that much older
            plan = plan_rollout(snapshot, now, self.memo)
            if plan.memory.wants_pods - wanted:
                # The pods of nodes that may start are listed now, and not only after this pass has written statuses.
                wanted |= plan.memory.wants_pods
                snapshot = await self._gather(wanted, now)
                now = self.now()
                plan = plan_rollout(snapshot, now, self.memo)
        self.plan = plan
        with timing(seconds, "execute"):
            outcome = await self.executor.execute(plan, snapshot, unseen)
            self.memory = plan.memory
        at_once = bool(outcome.done or plan.memory.wants_pods - wanted)
        with timing(seconds, "publish"):
            await self.publisher.ended()
            self.publisher.begin(plan, snapshot, now)
            # A follow-up pass does not wait for statuses and Events, which are only for people.
            held_back = None if at_once else await self.publisher.ended()
        self.metrics.passed(seconds, plan, snapshot)
        why = snapshot.policies_error
        stale = "the cached policies may be out of date, so the operator does not start a change on any node"
        self._complaints.check("policies", why, stale, error=why)
        report_held(self._complaints, plan.held)
        if why:
            return now + timedelta(seconds=RETRY)
        moments = (now,) if at_once else (plan.wake_at, held_back, outcome.again, self.calls.next_release(now))
        return min((moment for moment in moments if moment is not None), default=None)

    async def _gather(self, wanted: frozenset[str], now: datetime) -> ClusterSnapshot:
        leader = self.leader
        snapshot = await self.gatherer.snapshot(wanted, self.memory, leader.claims, leader.failed_nodes, now)
        # A write of the Lease from an earlier pass may have ended in the meantime.
        return replace(snapshot, failed_nodes=leader.failed_nodes, consents=leader.consents, lease_room=leader.room)

    # --- periodic tasks, which run until canceled ------------------------------------------------------------

    async def list_policies(self) -> None:
        """Every `relist` seconds, make the next pass list the policies even if no event came."""
        while True:
            await asyncio.sleep(self.settings.relist)
            self.sources.policies.touch()
            self.wake.set()

    async def count_pending(self) -> None:
        """Count the Pending pods that request a GPU, every `pending_period` seconds."""
        while True:
            if self.leader.is_leader and not self.sources.missing():
                failed = None
                try:
                    if await self.gatherer.count_pending():
                        self.wake.set()
                except KubeError as error:
                    failed = error
                self._complaints.follow("pending pods", "Pending pods cannot be counted; trying again", failed)
            await asyncio.sleep(self.settings.pending_period)

    async def test_taints(self) -> None:
        """Test whether the scheduler obeys DeviceTaintRules, every PERIOD seconds while a DRA stack is there."""
        if not self.settings.device_taints:
            return
        test = TaintTest(self.sender, self.settings.namespace)
        while True:
            ready = self.leader.is_leader and self.sources.of_dra and not self.sources.missing()
            if ready and (proof := await test.repeat()) != self.executor.calls.taint_proof:
                self.executor.calls.taint_proof = proof
                self.wake.set()
            await asyncio.sleep(PERIOD if ready else self.settings.pending_period)
