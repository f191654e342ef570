"""A FakeCluster with SIMULATED node software at work on it: the node software's tests act on this."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from hack.cluster.nodes import node_manifest
from hack.sim.fakecluster import FakeClient, FakeCluster
from hack.sim.nodesoftware import NodeSoftware
from hack.sim.settings import SimSettings
from tests.fakes.running import running

from gpusharing.kube.client import CLUSTER_POLICIES, CONFIG_MAPS, JSON, NODES

FACTOR = 1000.0
NAMESPACE = "gpu-operator"
MIG_CONFIG = "nvidia.com/mig.config"
STATE = "nvidia.com/mig.config.state"
PLUGIN_CONFIG = "nvidia.com/device-plugin.config"
TIMESTAMP = "nvidia.com/gfd.timestamp"
GPU = "nvidia.com/gpu"
PLUGIN_FILES = {
    "full": "version: v1",
    "single": "version: v1\nflags: {migStrategy: single}",
    "mixed": "version: v1\nflags: {migStrategy: mixed}",
    "ts4": "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}",
    "mps4": "version: v1\nsharing: {mps: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}",
    "mps8": "version: v1\nsharing: {mps: {resources: [{name: nvidia.com/gpu, replicas: 8}]}}",
    "mps49": "version: v1\nsharing: {mps: {resources: [{name: nvidia.com/gpu, replicas: 49}]}}",
    "bad": "version: v9",
}


@dataclass
class SimulatedCluster:
    cluster: FakeCluster
    software: NodeSoftware
    lines: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def labels(self, name: str = "n1") -> dict[str, str]:
        found: dict[str, str] = self.cluster.get(NODES, name)["metadata"]["labels"]
        return found

    def offered(self, name: str = "n1") -> dict[str, str]:
        allocatable = self.cluster.get(NODES, name)["status"]["allocatable"]
        return {key: value for key, value in allocatable.items() if key.startswith("nvidia.com/")}

    def patch(self, name: str = "n1", **metadata: Any) -> None:
        self.cluster.patch(NODES, name, {"metadata": metadata})

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; it is looked at after every change of the cluster and every log line."""
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)


def policy(**spec: Any) -> JSON:
    defaults = {"devicePlugin": {"config": {"name": "plugin-configs"}}, "migManager": {"config": {"name": ""}}}
    return {"metadata": {"name": "cluster-policy"}, "spec": {**defaults, **spec}}


def config_map(name: str, data: dict[str, str]) -> JSON:
    return {"metadata": {"name": name, "namespace": NAMESPACE}, "data": dict(data)}


@asynccontextmanager
async def playing(
    *nodes: JSON,
    settings: SimSettings | None = None,
    cluster_policy: JSON | None = None,
    client: type[FakeClient] = FakeClient,
) -> AsyncIterator[SimulatedCluster]:
    """Node software at work, after the start of every node."""
    loop = asyncio.get_running_loop()
    cluster = FakeCluster(grace=2 / FACTOR, later=loop.call_later)
    cluster.add(CONFIG_MAPS, config_map("plugin-configs", PLUGIN_FILES))
    cluster.add(CLUSTER_POLICIES, cluster_policy or policy())
    for node in nodes or (node_manifest("n1", gpus=2),):
        cluster.add(NODES, node)
    settings = settings or SimSettings(time_factor=FACTOR, agents=False, play_daemon_sets=True)
    lines: list[str] = []
    changed = asyncio.Event()

    def log(line: str) -> None:
        lines.append(line)
        changed.set()

    software = NodeSoftware(client(cluster, "sim"), settings, log=log)
    stage = SimulatedCluster(cluster, software, lines, changed)
    cluster.store.on_commit.append(lambda resource, change: changed.set())
    async with running(software.run()):
        await stage.until(lambda: all(TIMESTAMP in stage.labels(node["metadata"]["name"]) for node in nodes))
        await stage.until(lambda: TIMESTAMP in cluster.objects(NODES)[0]["metadata"]["labels"])
        yield stage
