"""A day of a pool, SIMULATED: pods that come and go, layouts that change in mid-hour, restarts of agents and operator, nodes that vanish. Every second of every GPU is somebody's, idle, stranded or in transition, or lies in one of the gaps of docs/adr/0043-the-meter.md."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hack.sim.agentpages import Lapse
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakestore import StoredChange
from hack.sim.workloads import SimWorkload
from tests.agent.scraping import GPUS, PARTS, CountingPrometheus
from tests.embedded.scene import FULL, HOUR, MIXED, RARELY, Scene, node, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.agent.loop import AgentLoop
from gpusharing.agent.meter import LAG, Meter
from gpusharing.kube.client import JSON, NODES, PODS, Resource

SCRAPE = 60.0
"""Seconds between two scrapes."""


@dataclass
class Life:
    """One process of an agent."""

    node: str
    began: float
    meter: Meter
    ended: float | None = None
    metered: float = 0.0
    """Increase of its counter of GPU-seconds."""


@dataclass
class Scraped:
    """`hack.sim.agentpages.Pages`: what a Prometheus makes of the page of each node."""

    now: Callable[[], float]
    lives: list[Life] = field(default_factory=list)
    nodes: dict[str, CountingPrometheus] = field(default_factory=lambda: defaultdict(CountingPrometheus))
    _running: dict[str, Life] = field(default_factory=dict)

    def show(self, node: str, agent: AgentLoop, lapse: Lapse | None = None) -> None:
        self.hide(node)
        self._running[node] = Life(node, self.now(), agent.meter)
        self.lives.append(self._running[node])

    def hide(self, node: str) -> None:
        if (life := self._running.pop(node, None)) is not None:
            life.ended = self.now()

    def close(self) -> None:
        for name in list(self._running):
            self.hide(name)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SCRAPE)
            for life in self._running.values():
                self._scrape(life)

    def _scrape(self, life: Life) -> None:
        page, told = self.nodes[life.node], life.meter.metered
        before = page.grown(GPUS)
        page.scrape(life.meter)
        life.metered += page.grown(GPUS) - before
        parts = sum(sum(counts.values()) for part, counts in told.items() if part != "gpus")
        assert parts == pytest.approx(sum(told["gpus"].values()), abs=1e-6), "in every scrape"

    def grown(self, *parts: str) -> float:
        """GPU-seconds of these parts together."""
        return sum(page.grown(*parts) for page in self.nodes.values())

    def billed(self) -> dict[str, float]:
        """GPU-seconds by namespace."""
        found: dict[str, float] = defaultdict(float)
        for page in self.nodes.values():
            for (name, labels), seconds in page.increase.items():
                if name == "gpusharing_slice_seconds_total":
                    found[dict(labels)["namespace"]] += seconds
        return found


@dataclass
class Journal:
    """What really was, from every change that the API server took: which nodes there were, and which pods ran."""

    cluster: FakeCluster
    now: Callable[[], float]
    shares: Mapping[str, float]
    """By resource name, of a GPU."""
    nodes: dict[str, list[float]] = field(default_factory=dict)
    """From when on, and until when if it is gone."""
    held: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """GPU-seconds by namespace, of pods that are gone."""
    moves: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Comings and goings by namespace, in GPUs."""
    lengths: list[float] = field(default_factory=list)
    """For how long each pod ran."""
    _running: dict[str, tuple[float, JSON]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for raw in self.cluster.objects(NODES):
            self.nodes[raw["metadata"]["name"]] = [self.now()]
        self.cluster.store.on_commit.append(self._take)

    def _take(self, resource: Resource, change: StoredChange) -> None:
        metadata = change.last["metadata"]
        if resource == NODES and change.old is None:
            self.nodes[metadata["name"]] = [self.now()]
        elif resource == NODES and change.new is None:
            self.nodes[metadata["name"]].append(self.now())
        elif resource == PODS and _resource(change.last) in self.shares:
            runs = change.new is not None and (change.new.get("status") or {}).get("phase") == "Running"
            if runs and metadata["uid"] not in self._running:
                self._running[metadata["uid"]] = (self.now(), change.last)
            elif not runs and metadata["uid"] in self._running:
                self._end(metadata["uid"])

    def close(self) -> None:
        for uid in list(self._running):
            self._end(uid)
        for times in self.nodes.values():
            times.extend([self.now()] * (2 - len(times)))

    def _end(self, uid: str) -> None:
        began, pod = self._running.pop(uid)
        share, namespace = self.shares[_resource(pod)], pod["metadata"]["namespace"]
        self.lengths.append(self.now() - began)
        self.held[namespace] += (self.now() - began) * share
        self.moves[namespace] += 2 * share


def _resource(pod: JSON) -> str:
    """The first GPU resource that it asks for; empty: none."""
    containers: list[dict[str, Any]] = (pod.get("spec") or {}).get("containers") or []
    limits: dict[str, str] = (containers[0].get("resources") or {}).get("limits") or {} if containers else {}
    return next(iter(limits), "")


EACH = 2
TURN = 33.0
"""Seconds between two turns of an agent, at most."""
BEGINS = 60.0
"""Seconds after which an agent that was shown has had its first turn, at most; those of a new node, its GPUNode too."""
AWAY = 90.0
"""Seconds from the end of an agent's process to the next one, or from a new node to its first, at most."""
TOLD_LATE = TURN + SCRAPE
"""Seconds before the end of a process of which Prometheus has not been told, at most, but for what was new."""
SHARED: JSON = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4, "renameByDefault": True}}
THIRDS: JSON = {"mode": "MIG", "mig": {"layouts": [{"profiles": {"2g.20gb": 3}}]}}
SHARES = {
    "nvidia.com/gpu.shared": 1 / 4,
    "nvidia.com/mig-3g.40gb": 1 / 2,
    "nvidia.com/mig-2g.20gb": 2 / 7,
    "nvidia.com/gpu": 1.0,
}
"""Of a GPU, with the layouts below: a third strands the seventh compute slice."""
TENANTS = [
    SimWorkload("a", 13, "nvidia.com/gpu.shared", namespace="team-a"),
    SimWorkload("b", 6, "nvidia.com/mig-3g.40gb", namespace="team-b"),
    SimWorkload("c", 9, "nvidia.com/mig-2g.20gb", namespace="team-c"),
    SimWorkload("d", 3, "nvidia.com/gpu", namespace="team-d"),
]
BRIEF = [SimWorkload(f"brief-{number}", 1, name, namespace="team-e") for number, name in enumerate(SHARES)]
"""Pods that are gone within seconds."""


@dataclass
class Day:
    scene: Scene
    dice: random.Random = field(default_factory=lambda: random.Random("day"))

    now: int = 0
    """Whose slices the pool offers: of TENANTS."""

    def layout(self, spec: JSON, tenant: int) -> None:
        self.scene.apply(spec, drain={"strandedPods": "Allow"}, rollout={"maxUnavailable": 1})
        self.scale(self.now, 0)
        self.now = tenant
        self.scale(tenant, TENANTS[tenant].replicas)

    def restart_agent(self, name: str) -> None:
        for pod in self.scene.e.cluster.objects(PODS, namespace="gpusharing-agent"):
            if pod["spec"].get("nodeName") == name:
                self.end(pod)

    async def restart_operator(self) -> None:
        await self.scene.e.kill_operator()
        await asyncio.sleep(120)
        self.scene.e.start_operator()

    def vanish(self, name: str) -> None:
        self.scene.e.cluster.delete(NODES, name)
        for pod in self.scene.e.cluster.objects(PODS):
            if pod["spec"].get("nodeName") == name:
                self.end(pod)

    def join(self, name: str) -> None:
        self.scene.e.cluster.add(NODES, node(name, gpus=EACH))

    def scale(self, tenant: int, wanted: int) -> None:
        """It wants so many pods from now on; further ones end, with their grace period."""
        workload = TENANTS[tenant]
        self.scene.e.workloads.apply(replace(workload, replicas=wanted))
        for pod in self.scene.pods(workload.name)[wanted:]:
            self.scene.e.cluster.delete(PODS, pod["metadata"]["name"], workload.namespace)

    def more_or_fewer(self) -> None:
        self.scale(self.now, self.dice.randrange(TENANTS[self.now].replicas + 1))

    async def come_and_go(self) -> None:
        """Pods that run for some seconds, also such as no node offers anything for at the moment."""
        for workload in BRIEF:
            self.scene.e.workloads.apply(workload)
        await asyncio.sleep(self.dice.uniform(3, 25))
        for workload in BRIEF:
            self.scene.e.workloads.apply(replace(workload, replicas=0))
            for pod in self.scene.pods(workload.name):
                self.end(pod)

    def end(self, pod: JSON) -> None:
        metadata = pod["metadata"]
        if "deletionTimestamp" not in metadata:
            self.scene.e.cluster.delete(PODS, metadata["name"], metadata["namespace"])
        self.scene.e.cluster.pods.finish(uid=metadata["uid"])

    def plan(self) -> list[tuple[float, Callable[[], Awaitable[None] | None]]]:
        """Hour, and what happens then; the layout and an agent or the operator change within the same minutes."""
        found: list[tuple[float, Callable[[], Awaitable[None] | None]]] = [
            (2.05, lambda: self.restart_agent("gpu-1")),
            (3.42, lambda: self.layout(MIXED, 1)),
            (8.70, lambda: self.layout(THIRDS, 2)),
            (8.73, self.restart_operator),
            (8.80, lambda: self.restart_agent("gpu-2")),
            (10.31, lambda: self.vanish("gpu-1")),
            (13.24, lambda: self.layout(FULL, 3)),
            (13.26, lambda: self.restart_agent("gpu-2")),
            (11.57, lambda: self.join("gpu-3")),
            (15.90, self.restart_operator),
            (17.63, lambda: self.layout(SHARED, 0)),
            (21.12, lambda: self.layout(MIXED, 1)),
            (22.40, lambda: self.vanish("gpu-2")),
            (23.50, lambda: self.restart_agent("gpu-3")),
        ]
        found += [(self.dice.uniform(0.1, 23.9), self.more_or_fewer) for _ in range(120)]
        found += [(self.dice.uniform(0.1, 23.9), self.come_and_go) for _ in range(120)]
        return sorted(found, key=lambda one: one[0])


@pytest.mark.long
@virtually
async def test_a_day_adds_up_to_the_second() -> None:
    clock = asyncio.get_running_loop().time
    seen = Scraped(clock)
    async with open_scene(*nodes(2, gpus=EACH), lease=RARELY, pages=seen) as scene:
        journal = Journal(scene.e.cluster, clock, SHARES)
        day, begin = Day(scene), clock()
        scrapes = asyncio.create_task(seen.run())
        day.layout(SHARED, 0)
        for hour, what in day.plan():
            await asyncio.sleep(max(0.0, begin + hour * HOUR - clock()))
            if (going_on := what()) is not None:
                await going_on
        await asyncio.sleep(begin + 24 * HOUR - clock())
        scrapes.cancel()
        seen.close()
        journal.close()
    assert min(map(seen.grown, PARTS)) > 60, "GPU-seconds"
    assert seen.grown(*PARTS) == pytest.approx(seen.grown(GPUS), abs=1e-3)
    check_gaps(seen, journal)
    check_tenants(seen, journal)


def check_gaps(seen: Scraped, journal: Journal) -> None:
    """What the pool's GPUs lasted and nobody metered is what each end of an agent costs, and no second more."""
    lasted = sum(until - since for since, until in journal.nodes.values())
    unmetered = 0.0
    for name, (since, until) in journal.nodes.items():
        before = since
        for life in (one for one in seen.lives if one.node == name):
            assert life.ended is not None
            away, untold = life.began - before, life.ended - life.began - life.metered / EACH
            assert 0 <= away <= AWAY, (name, away)
            assert 0 < untold <= BEGINS + TOLD_LATE + LAG + TURN, (name, untold)
            unmetered += away + untold
            before = life.ended
        assert before == until, name
    assert seen.grown(GPUS) + EACH * unmetered == pytest.approx(EACH * lasted, abs=1)
    assert unmetered < lasted / 50


def check_tenants(seen: Scraped, journal: Journal) -> None:
    """Each is billed what it held, but for a turn at each coming and going, and for the gaps."""
    assert len(journal.lengths) > 250
    assert sum(1 for length in journal.lengths if length < TURN) > 50, "pods that came and went between two turns"
    gaps = EACH * (BEGINS + TOLD_LATE + AWAY) * len(seen.lives)
    billed = seen.billed()
    assert set(billed) <= set(journal.held)
    for namespace, held in journal.held.items():
        allowed = TURN * journal.moves[namespace] / 2 + gaps / len(journal.held)
        assert abs(billed[namespace] - held) <= allowed, (namespace, billed[namespace], held)
