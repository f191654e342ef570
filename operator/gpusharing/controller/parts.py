"""The parts of a loop, which read and write but decide nothing, and three periodic tasks alongside its passes."""

import asyncio
from collections.abc import Callable
from datetime import datetime

from gpusharing.controller.complaints import Complaints
from gpusharing.controller.execute import Executor
from gpusharing.controller.idleness import Leader
from gpusharing.controller.observer import Observer
from gpusharing.controller.publish import Publisher
from gpusharing.controller.settings import Settings
from gpusharing.controller.tainttest import PERIOD, TaintTest
from gpusharing.kube.client import KubeClient
from gpusharing.kube.crew import Crew
from gpusharing.kube.errors import KubeError
from gpusharing.kube.fanout import Fanout, PublishingClient
from gpusharing.kube.gather import Gatherer
from gpusharing.kube.http import Limits
from gpusharing.kube.sources import AdminMaps, Sources, SourceSettings
from gpusharing.planning.snapshot.actions import Action, SetPointers


class LoopParts:
    """Creates the parts of one loop and connects them."""

    def __init__(
        self,
        client: KubeClient,
        leader: Leader,
        settings: Settings,
        observer: Observer,
        now: Callable[[], datetime],
    ) -> None:
        """Create the parts, and connect them: all use one client, one cache (`sources`) and one event (`wake`), and the
        gatherer knows which calls of the executor failed. No call is made and no task is started yet. `now` returns the
        time of day. `settings.parallel` decides how many workers each part has: the executor has as many, the gatherer
        at most half and the publisher an eighth, each at least one."""
        self.leader, self.settings, self.observer, self.now = leader, settings, observer, now
        self.wake, self._complaints = asyncio.Event(), Complaints()
        """`wake` is set by every event; one pass then handles all of them."""
        wake, limit = self.wake.set, Limits().parallel
        self.calls = Fanout(client, parallel=min(settings.parallel, limit))
        """The client that every call of the loop goes through, except the calls about the Lease."""
        admin_maps = AdminMaps(settings.admin_plugin_config_map, settings.admin_mig_config_map)
        keys = frozenset(settings.maintenance_keys)
        read = SourceSettings(settings.plan, admin_maps, settings.agent_namespace, keys)
        self.sources = Sources(self.calls, read, wake, lambda: leader.restores)
        crew = Crew(max(1, settings.parallel // 8), wake)
        self.publisher = Publisher(
            PublishingClient(self.calls),
            self.sources,
            settings.publish_period,
            leader.identity,
            crew,
            observer.changed,
        )
        self.executor = Executor(
            self.calls,
            self.sources,
            leader.set_claims,
            now,
            crew=Crew(settings.parallel, wake),
            eviction_wait=settings.plan.eviction_wait,
            on_action=self._acted,
            event_of=lambda action: self.publisher.shared_event(action, now()),
        )
        crew = Crew(max(1, min(settings.parallel, limit) // 2), wake)
        self.gatherer = Gatherer(self.calls, self.sources, self.executor.calls, crew)

    def _acted(self, action: Action, result: str) -> None:
        """Report an action and its result to the observer, and queue an Event if the action changed ClusterPolicy."""
        self.observer.acted(action, result)
        if isinstance(action, SetPointers) and result == "done":
            self.publisher.report_pointers(action, self.now())

    async def close(self) -> None:
        """End the calls of the publisher, the executor and the gatherer that are still under way, and return when all
        of them have ended. The tasks of `sources` and the periodic tasks are not ended."""
        await self.publisher.close()
        await self.executor.crew.close()
        await self.gatherer.close()

    async def list_policies(self) -> None:
        """Wake the loop every `relist` seconds, for the first time after that long, and make its next pass list the
        policies even if no event came. Runs until canceled."""
        while True:
            await asyncio.sleep(self.settings.relist)
            self.sources.policies.touch()
            self.wake.set()

    async def count_pending(self) -> None:
        """Count the Pending pods that request a GPU, at once and then every `pending_period` seconds. A round is
        skipped unless this process leads and all sources can be relied on (`Sources.missing`). If the number of pods
        for some GPU resource has changed, wake the loop. If a count fails with a KubeError, log that and count again in
        the next round. Runs until canceled."""
        pending = self.gatherer.pending
        while True:
            if self.leader.is_leader and not self.sources.missing():
                try:
                    before = pending.pods
                    await pending.count()
                    if pending.pods != before:
                        self.wake.set()
                    self._complaints.ends("pending pods")
                except KubeError as error:
                    self._complaints.begins(
                        "pending pods",
                        "Pending pods cannot be counted; trying again",
                        type(error).__name__,
                        error=str(error),
                    )
            await asyncio.sleep(self.settings.pending_period)

    async def test_taints(self) -> None:
        """Test whether the scheduler obeys DeviceTaintRules, at once and then every PERIOD seconds
        (`TaintTest.repeat`), as long as this process leads, all sources can be relied on (`Sources.missing`) and
        NVIDIA's DRA stack has been seen. Otherwise check every `pending_period` seconds whether that is so now. If the
        result has changed, store it in `calls.taint_proof` and wake the loop. Runs until canceled; returns at once if
        the setting `device_taints` is off."""
        if not self.settings.plan.device_taints:
            return
        test = TaintTest(self.calls, self.settings.plan.namespace)
        while True:
            ready = self.leader.is_leader and self.sources.of_dra and not self.sources.missing()
            if ready and (proof := await test.repeat()) != self.executor.calls.taint_proof:
                self.executor.calls.taint_proof = proof
                self.wake.set()
            await asyncio.sleep(PERIOD if ready else self.settings.pending_period)
