"""A Gatherer on a FakeCluster with one node, in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hack.sim.fakecluster import FakeClient, FakeCluster
from tests.build import at
from tests.fakes.running import running
from tests.kube.objects import node

from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import JSON, NODES, KubeClient, Resource
from gpusharing.kube.gather import Gatherer
from gpusharing.kube.sources import Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.planning.snapshot.memory import PassMemory
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.views import ClusterSnapshot

WANTED = frozenset({"gpu-07"})
SETTINGS = SourceSettings(agent_namespace="")


@dataclass
class Gathering:
    cluster: FakeCluster
    gatherer: Gatherer
    calls: CallMemory = field(default_factory=CallMemory)

    async def snapshot(
        self, seconds: float = 0.0, wanted: frozenset[str] = WANTED, proving: frozenset[str] = frozenset()
    ) -> ClusterSnapshot:
        return await self.gatherer.snapshot(wanted, PassMemory(proving=proving), {}, {}, at(seconds))

    async def work(self, seconds: float = 0.0) -> NodeWork:
        return (await self.snapshot(seconds)).work["gpu-07"]

    def lists(self, plural: str) -> int:
        """How often a kind was listed since the sources are in step."""
        return self.cluster.calls["operator", "list", plural]

    async def seen(self) -> None:
        await asyncio.sleep(0.1)


@asynccontextmanager
async def gathering(
    *objects: tuple[Resource, JSON],
    settings: SourceSettings = SETTINGS,
    client: Callable[[FakeCluster, str], KubeClient] = FakeClient,
) -> AsyncIterator[Gathering]:
    """A cluster with gpu-07 and these objects, its sources in step. `client` makes the one of the Gatherer."""
    cluster = FakeCluster()
    cluster.add(NODES, node())
    for resource, obj in objects:
        cluster.add(resource, obj)
    sources = Sources(cluster.client("sources"), settings, lambda: None)
    calls = CallMemory()
    async with running(sources.run()):
        await asyncio.sleep(0.1)
        reader = client(cluster, "operator")
        yield Gathering(cluster, Gatherer(reader, sources, calls), calls)
