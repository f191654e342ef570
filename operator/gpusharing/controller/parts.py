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


def assemble(
    client: Fanout,
    leader: Leader,
    settings: Settings,
    observer: Observer,
    wake: Callable[[], None],
    now: Callable[[], datetime],
    identity: str,
) -> Parts:
    """Return new parts, which have made no call yet. `client` carries every call of the loop; those of the Lease go
    elsewhere. `wake` is called when there is something new to look at. `identity` is our name on the Lease."""
    plan = settings.plan
    sources = Sources(
        client,
        plan,
        wake,
        admin_maps=settings.admin_maps,
        agent_namespace=settings.agent_namespace,
        maintenance_keys=frozenset(settings.maintenance_keys),
        restores=lambda: leader.restores,
    )
    publisher = Publisher(
        Published(client),
        sources,
        settings.publish_period,
        identity,
        on_verdict=observer.changed,
        parallel=max(1, settings.parallel // 8),
        on_late=wake,
    )

    def acted(action: Action, result: str) -> None:
        observer.acted(action, result)
        if isinstance(action, SetPointers) and result == "done":
            publisher.tell_pointers(action, now())

    executor = Executor(
        client,
        sources,
        leader.set_claims,
        now,
        parallel=settings.parallel,
        eviction_wait=plan.eviction_wait,
        on_action=acted,
        on_late=wake,
    )
    half = max(1, min(settings.parallel, Limits().parallel) // 2)
    gatherer = Gatherer(
        client, sources, plan, settings.admin_maps, executor.calls, parallel=half, on_late=wake
    )
    return Parts(sources, gatherer, executor, publisher)
