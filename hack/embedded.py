"""The shipped loop, planner and agents on a SIMULATED cluster in one process, for tests and the demo.

SIMULATED: the API server (FakeCluster), GPUs, mig-manager, device plugin, GFD, scheduler and workloads. Shipped code:
everything under `gpusharing`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from gpusharing.controller.loop import Loop
from gpusharing.controller.metrics import Metrics
from gpusharing.controller.role import Role
from gpusharing.controller.settings import Settings
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    DAEMON_SETS,
    DEVICE_CLASSES,
    GPUNODES,
    JSON,
    NODES,
    POLICIES,
    REPLICA_SETS,
    KubeClient,
)
from gpusharing.kube.clock import wall_time
from gpusharing.kube.lease import LeaderLease, Timing
from gpusharing.kube.reflector import Reflector
from gpusharing.planning.snapshot.nvidia import TAINT_TEST
from hack.cluster.api import is_true
from hack.sim.agentpages import Pages
from hack.sim.daemons import MPS_DAEMON, played_daemon_sets
from hack.sim.dra import DRA_SET, device_classes
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import Crash
from hack.sim.gpu import SimulatedGPUs
from hack.sim.manifests import dra_daemon_set, mps_daemon_set
from hack.sim.mortal import MortalClient
from hack.sim.nodesoftware import NodeSoftware
from hack.sim.settings import SimSettings
from hack.sim.workloads import SimWorkload, Workloads

FACTOR = 100.0
"""Simulated seconds in one real second."""
FAST_LEASE = Timing(duration=0.6, deadline=0.4, retry=0.05)


def fast_settings(factor: float = FACTOR) -> Settings:
    """Return the default settings with the planner's waits, except `eviction_wait`, divided by `factor`."""
    settings = Settings()
    waits = (
        "settle",
        "idle",
        "config_propagation",
        "wedge_pending",
        "wedge_paused",
        "abort_backoff",
        "poll",
        "restart_grace",
        "drift_grace",
    )
    fast = {name: getattr(settings, name) / factor for name in waits}
    return replace(settings, **fast, debounce=0.01, publish_period=0.05, pending_period=0.5)


CLUSTER_POLICY: JSON = {
    "metadata": {"name": "cluster-policy"},
    "spec": {
        "devicePlugin": {"config": {"name": "gpusharing-device-plugin"}},
        "migManager": {"enabled": True, "config": {"name": "gpusharing-mig-parted", "default": "all-disabled"}},
    },
    "status": {"state": "ready"},
}


LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass
class Embedded:
    """A cluster in memory with its node software, on which operators can be started and killed."""

    cluster: FakeCluster
    software: NodeSoftware
    workloads: Workloads
    settings: Settings
    lease_timing: Timing = FAST_LEASE
    now: Callable[[], datetime] = wall_time
    operators: int = 0
    loop: Loop | None = None
    lease: LeaderLease | None = None
    client: MortalClient | None = None
    _operator: asyncio.Task[None] | None = None
    log: list[str] = field(default_factory=list)

    def start_operator(self, client: KubeClient | None = None) -> Loop:
        """Start an operator as a task; it works as soon as it has the Lease. An earlier one is not ended."""
        self.operators += 1
        identity = f"operator-{self.operators}"
        client = self.client = MortalClient(client or self.cluster.client("operator"))
        lease = self.lease = LeaderLease(
            client,
            self.settings.namespace,
            self.settings.lease_name,
            identity,
            on_lost=client.die,
            timing=replace(self.lease_timing, clock=asyncio.get_running_loop().time),
            now=self.now,
        )
        loop = Loop(client, lease, self.settings, Metrics(), now=self.now)

        def changed(name: str) -> None:
            if loop.sources.policies.touch(name, policies.version(name)):
                loop.wake.set()

        policies: Reflector[str] = Reflector(
            client,
            POLICIES,
            lambda raw: str(raw["metadata"]["resourceVersion"]),
            on_change=changed,
            restores=lambda: lease.restores,
        )

        async def process() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(lease.run())
                await Role(lease).wait_to_lead(self.settings.retry_period)
                group.create_task(policies.run())
                group.create_task(loop.run())

        self.loop = loop
        self._operator = asyncio.create_task(process())
        return loop

    async def kill_operator(self) -> None:
        """Kill the last operator as `kill -9` does: its Lease stays until it expires."""
        if self._operator is None or self.client is None:
            return
        self.client.die()
        operator, self._operator = self._operator, None
        operator.cancel()
        try:
            await operator
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as group:
            if (others := group.split((Crash, asyncio.CancelledError))[1]) is not None:
                raise others from None

    # --- what a person does --------------------------------------------------------------------------------

    def apply(self, manifest: JSON) -> JSON:
        """Create a policy, or edit it as `kubectl apply` does: what it set before and no longer sets is removed."""
        metadata = manifest["metadata"]
        own = metadata.get("annotations", {})
        annotations = {**own, LAST_APPLIED: json.dumps(manifest)}
        live = next(
            (one for one in self.cluster.objects(POLICIES) if one["metadata"]["name"] == metadata["name"]), None
        )
        if live is None:
            return self.cluster.add(POLICIES, {**manifest, "metadata": {**metadata, "annotations": annotations}})
        last = json.loads(live["metadata"].get("annotations", {}).get(LAST_APPLIED, '{"metadata": {}, "spec": {}}'))
        changed = {"annotations": _replacing(last["metadata"].get("annotations", {}), annotations)}
        spec = _replacing(last["spec"], manifest["spec"])
        return self.cluster.patch(POLICIES, metadata["name"], {"metadata": changed, "spec": spec})

    def policy(self, name: str) -> JSON:
        return self.cluster.get(POLICIES, name)

    def node(self, name: str) -> JSON:
        return self.cluster.get(NODES, name)

    def gpunode(self, name: str) -> JSON:
        return self.cluster.get(GPUNODES, name)

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        """Wait until `condition` holds. Raises AssertionError with the state, or the operator's error."""
        changed = asyncio.Event()
        self.cluster.store.waiting.add(changed)
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._wait(changed)
        except TimeoutError:
            raise AssertionError(f"{what} did not come within {seconds:.0f} s\n{self.describe()}") from None
        finally:
            self.cluster.store.waiting.discard(changed)

    async def _wait(self, changed: asyncio.Event) -> None:
        operator, client = self._operator, self.client

        def ended(_: asyncio.Task[None]) -> None:
            changed.set()

        if operator is not None and not operator.done():
            operator.add_done_callback(ended)
        try:
            await changed.wait()
        finally:
            changed.clear()
            if operator is not None:
                operator.remove_done_callback(ended)
        if operator is not None and operator.done() and client is not None and not client.dead:
            operator.result()
            raise AssertionError("the operator ended by itself")

    async def ready(self, *policies: str, seconds: float = 30.0) -> None:
        """Wait until the present generation of each policy is Ready, as `kubectl wait` does."""
        await self.until(
            lambda: all(is_true(self.policy(name), "Ready") for name in policies), f"Ready {policies}", seconds
        )

    def describe(self) -> str:
        """Return the state of GPUNodes and policies and the end of the log, for failure messages."""
        lines = []
        for raw in self.cluster.objects(GPUNODES):
            shown = (raw.get("status") or {}).get("transition") or {}
            lines.append(
                f"{raw['metadata']['name']}: {shown.get('phase')} {shown.get('reason')} {shown.get('message')}"
            )
        for raw in self.cluster.objects(POLICIES):
            lines.append(f"{raw['metadata']['name']}: {(raw.get('status') or {}).get('conditions')}")
        return "\n".join([*lines, *self.log[-20:]])


def _replacing(old: JSON, new: JSON) -> JSON:
    merged: JSON = dict.fromkeys(old.keys() - new.keys())
    for key, value in new.items():
        before = old.get(key)
        merged[key] = _replacing(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _cluster(
    nodes: Iterable[JSON], cluster_policy: JSON | None, sim: SimSettings, now: Callable[[], datetime]
) -> FakeCluster:
    cluster = FakeCluster(now=now, grace=30.0 / sim.time_factor, later=asyncio.get_running_loop().call_later)
    if cluster_policy is not None:
        cluster.add(CLUSTER_POLICIES, cluster_policy)
    for node in nodes:
        cluster.add(NODES, node)
    for device_class in device_classes() if sim.dra else ():
        cluster.add(DEVICE_CLASSES, device_class)
    if sim.dra:  # our chart creates it
        test = {"name": TAINT_TEST, "namespace": Settings().namespace}
        cluster.add(REPLICA_SETS, {"metadata": test, "spec": {"replicas": 0}})
    for name, namespace in played_daemon_sets(sim):
        if name == MPS_DAEMON and cluster_policy is not None:
            policy = cluster.get(CLUSTER_POLICIES, cluster_policy["metadata"]["name"])
            cluster.add(DAEMON_SETS, mps_daemon_set(sim, policy))
        elif name == DRA_SET:
            cluster.add(DAEMON_SETS, dra_daemon_set(sim))
        else:
            cluster.add(DAEMON_SETS, {"metadata": {"name": name, "namespace": namespace}})
    return cluster


@asynccontextmanager
async def embedded(
    nodes: Iterable[JSON],
    *,
    factor: float = FACTOR,
    workloads: Iterable[SimWorkload] = (),
    sim: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    lease_timing: Timing = FAST_LEASE,
    now: Callable[[], datetime] = wall_time,
    cluster_policy: JSON | None = CLUSTER_POLICY,
    hardware: dict[str, SimulatedGPUs] | None = None,
    played: bool = True,
    pages: Pages | None = None,
) -> AsyncIterator[Embedded]:
    """Yield a cluster without an operator. The first failure of anything in it is raised at the end.

    `now`, the wall clock, must run with the event loop's time, and `hardware` has what labels of nodes cannot describe.
    """
    sim_settings = SimSettings(time_factor=factor, play_daemon_sets=True, **(sim or {}))
    cluster = _cluster(nodes, cluster_policy, sim_settings, now)
    log: list[str] = []
    software = NodeSoftware(
        cluster.client("node"),
        sim_settings,
        log=log.append,
        agent_client=lambda node: cluster.client(f"agent-{node}"),
        hardware=hardware,
        pages=pages,
    )
    players = Workloads(cluster.client("workloads"), sim_settings, refuse=software.refuse, waits=software.keeps_waiting)
    for workload in workloads:
        players.apply(workload)
    shell = settings or fast_settings(factor)
    environment = Embedded(cluster, software, players, shell, lease_timing, now, log=log)
    tasks = [asyncio.create_task(software.run()), asyncio.create_task(players.run())] if played else []
    try:
        yield environment
    finally:
        try:
            await environment.kill_operator()
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, asyncio.CancelledError):
                raise result
