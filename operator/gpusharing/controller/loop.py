"""wake → gather → plan → execute → publish: one level-triggered loop for the whole cluster.

An event only says "look again". No decision depends on what only this process remembers, except for waits: how long to
back off, since when a node differs, when a blocked node was last looked at. Everything else that the process remembers
only saves work.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.controller.execute import FATAL
from gpusharing.controller.idleness import Idleness, Leader
from gpusharing.controller.observer import Observer
from gpusharing.controller.pace import RETRY, Pace
from gpusharing.controller.parts import LoopParts
from gpusharing.controller.progress import Progress
from gpusharing.controller.settings import Settings
from gpusharing.kube.client import KubeClient
from gpusharing.kube.clock import wall_time
from gpusharing.kube.errors import KubeError, first_of
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.looks import PassMemory
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.views import ClusterSnapshot


@contextmanager
def timing(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Measure how long the block takes, and store the seconds in `seconds` under `step`. Nothing is stored if the
    block raises."""
    begun = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - begun


class Loop(LoopParts):
    """The operator without kopf, HTTP server and process, so that tests and the demo can embed it."""

    def __init__(
        self,
        client: KubeClient,
        leader: Leader,
        settings: Settings,
        observer: Observer,
        *,
        now: Callable[[], datetime] = wall_time,
        on_first_pass: Callable[[], None] | None = None,
    ) -> None:
        """Create the parts; no call is made before `run`. `now` returns the time of day, and `on_first_pass` is called
        once, after the first complete pass."""
        super().__init__(client, leader, settings, observer, now)
        self._idleness = Idleness(leader, self.sources, self._complaints)
        self._pace = Pace(self.wake, settings.debounce, now)
        self.memo, self.memory = Memo(), PassMemory()
        self.plan: RolloutPlan | None = None
        self._on_first_pass = on_first_pass
        """Called once, when the whole cluster has been read and planned; then None."""
        self.progress = Progress()
        """Whether passes end, for /healthz."""

    async def run(self) -> None:
        """Follow the API and run passes until canceled, or until one of the tasks raises an error, which is then
        raised in a group; in both cases end all calls."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.sources.run())
            group.create_task(self.list_policies())
            group.create_task(self.count_pending())
            group.create_task(self.test_taints())
            try:
                while True:
                    with self.progress.of_a_pass():
                        due = await self._pass()
                    await self._pace.rest(due)
            finally:
                await self.close()

    async def _pass(self) -> datetime | None:
        """Clear `wake` and run one pass, unless the operator must be idle or the API server asks us to wait. Return
        when the next one is due at the latest, or None if only an event or the regular interval can start it. An idle
        operator tries again after a quarter of RETRY seconds, and one that has to wait when the wait is over.
        `on_first_pass` is called after the first pass that succeeds. A pass that fails with a KubeError or a lost Lease
        is logged, and tried again after RETRY seconds. After an error that concerns all calls (FATAL), policies and
        pods are listed anew. Other errors are raised."""
        self.wake.clear()
        if self._idleness.lasts():
            return self.now() + timedelta(seconds=RETRY / 4)
        if (left := self.calls.hold_left()) > 0:
            self._complaints.begins(
                "pace",
                "the API server asked the operator to back off, so no pass starts for now",
                seconds=round(left, 1),
            )
            return self.now() + timedelta(seconds=left)
        self._complaints.ends("pace")
        try:
            due = await self.once()
        except* FATAL as group:
            self.sources.policies.touch()
            self.gatherer.pods.forget()
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
        """Log the first error in the group that ended a pass, unless the last pass was ended by an error of the same
        type."""
        error = first_of(group)
        self._complaints.begins(
            "pass",
            "passes fail; trying again",
            type(error).__name__,
            error=str(error) or repr(error),
        )

    async def once(self) -> datetime | None:
        """Gather, plan, execute and publish; set `plan` and `memory`, and report the pass to the observer. If the plan
        wants the pods of further nodes, gather and plan once more first. Return when the next pass is due at the
        latest, or None if no time is known.

        That time is now if one of our writes was accepted, or if the plan still wants the pods of a node that were not
        listed; publishing then continues in the background. While the policies may be out of date, which is logged, it
        is always RETRY seconds from now. Raises Unavailable if the policies have never been listed, and a group of
        errors that concern all calls, but no other error of the API server.
        """
        seconds: dict[str, float] = {}
        # The snapshot may not show the results of writes that are under way when it begins.
        unseen = frozenset(self.executor.crew.busy)
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
        self.observer.passed(seconds, plan, snapshot, outcome)
        if why := snapshot.policies_error:
            self._complaints.begins(
                "policies",
                "the cached policies may be out of date, so the operator does not start a change on any node",
                error=why,
            )
            return now + timedelta(seconds=RETRY)
        self._complaints.ends("policies")
        moments = (
            (now,) if at_once else (plan.wake_at, held_back, outcome.again, self.calls.next_release(now))
        )
        return min((moment for moment in moments if moment is not None), default=None)

    async def _gather(self, wanted: frozenset[str], now: datetime) -> ClusterSnapshot:
        """Return a snapshot with the pods of the `wanted` nodes. It contains failures that were recorded on the Lease
        while it was made. Raises Unavailable if the policies have never been listed, and a group of errors that concern
        all calls."""
        leader = self.leader
        snapshot = await self.gatherer.snapshot(wanted, self.memory, leader.claims, leader.failed_nodes, now)
        # A write of the Lease from an earlier pass may have ended in the meantime.
        return replace(snapshot, failed_nodes=leader.failed_nodes)
