"""The parts of one loop, and which of them know each other: sources, gatherer, executor, publisher."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from gpusharing.controller.execute import Executor
from gpusharing.controller.idleness import Leader
from gpusharing.controller.observer import Observer
from gpusharing.controller.publish import Publisher
from gpusharing.controller.settings import Settings
from gpusharing.kube.fanout import Fanout, Published
from gpusharing.kube.gather import Gatherer
from gpusharing.kube.http import Limits
from gpusharing.kube.sources import Sources
from gpusharing.planning.snapshot.actions import Action, SetPointers


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that read and write and decide nothing."""

    sources: Sources
    """The reflectors."""
    gatherer: Gatherer
    """Makes the snapshot."""
    executor: Executor
    """Carries out what the plan says."""
    publisher: Publisher
    """Writes statuses and Events."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """What the parts are made from. `client` carries every call of the loop; those of the Lease go elsewhere."""

    client: Fanout
    """Carries every call of the loop."""
    leader: Leader
    """Holds the Lease, by calls of its own."""
    settings: Settings
    """The operator's settings."""
    observer: Observer
    """Is told of what is decided and done, for the metrics."""
    wake: Callable[[], None]
    """Wakes the loop."""
    now: Callable[[], datetime]
    """The clock."""
    identity: str
    """Name of this process, as on the Lease."""

    def assemble(self) -> Parts:
        """New parts, which have made no call yet."""
        sources = self._sources()
        publisher = self._publisher(sources)
        executor = self._executor(sources, publisher)
        return Parts(sources, self._gatherer(sources, executor), executor, publisher)

    def _sources(self) -> Sources:
        return Sources(
            self.client,
            self.settings.plan,
            self.wake,
            admin_maps=self.settings.admin_maps,
            agent_namespace=self.settings.agent_namespace,
            maintenance_keys=frozenset(self.settings.maintenance_keys),
            restores=lambda: self.leader.restores,
        )

    def _publisher(self, sources: Sources) -> Publisher:
        return Publisher(
            Published(self.client),
            sources,
            self.settings.publish_period,
            self.identity,
            on_verdict=self.observer.changed,
            parallel=max(1, self.settings.parallel // 8),
            on_late=self.wake,
        )

    def _executor(self, sources: Sources, publisher: Publisher) -> Executor:
        def acted(action: Action, result: str) -> None:
            self.observer.acted(action, result)
            if isinstance(action, SetPointers) and result == "done":
                publisher.tell_pointers(action, self.now())

        return Executor(
            self.client,
            sources,
            self.leader.set_claims,
            self.now,
            parallel=self.settings.parallel,
            eviction_wait=self.settings.plan.eviction_wait,
            on_action=acted,
            on_late=self.wake,
        )

    def _gatherer(self, sources: Sources, executor: Executor) -> Gatherer:
        return Gatherer(
            self.client,
            sources,
            self.settings.plan,
            self.settings.admin_maps,
            executor.calls,
            parallel=max(1, min(self.settings.parallel, Limits().parallel) // 2),
            on_late=self.wake,
        )
