"""What the agents' meters told a SIMULATED Prometheus in a run of this folder, and beside it what really was."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hack.sim.agentpages import Lapse
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakestore import StoredChange

from gpusharing.agent.loop import AgentLoop
from gpusharing.agent.meter import Meter
from gpusharing.agent.metrics import of_meter
from gpusharing.kube.client import JSON, NODES, PODS, Resource

SCRAPE = 60.0
"""Seconds between two scrapes."""
PARTS = tuple(
    f"gpusharing_{part}_seconds_total" for part in ("slice", "idle_slice", "stranded_slice", "transition_slice")
)
GPUS = "gpusharing_gpu_seconds_total"
Key = tuple[str, tuple[tuple[str, str], ...]]


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
    """`hack.sim.agentpages.Pages`: a Prometheus that sees what increase() sees.

    A first value is no increase, and a counter that fell began anew.
    """

    now: Callable[[], float]
    lives: list[Life] = field(default_factory=list)
    grown: dict[Key, float] = field(default_factory=lambda: defaultdict(float))
    _seen: dict[tuple[str, Key], float] = field(default_factory=dict)
    _running: dict[str, Life] = field(default_factory=dict)

    def show(self, node: str, agent: AgentLoop, lapse: Lapse | None = None) -> None:
        self.hide(node)
        self._running[node] = Life(node, self.now(), agent.meter)
        self.lives.append(self._running[node])

    def hide(self, node: str) -> None:
        if (life := self._running.pop(node, None)) is not None:
            life.ended = self.now()

    def close(self) -> None:
        for node in list(self._running):
            self.hide(node)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SCRAPE)
            for life in self._running.values():
                self._scrape(life)

    def _scrape(self, life: Life) -> None:
        told: dict[str, float] = defaultdict(float)
        for family in of_meter(life.meter.metered):
            for sample in family.samples:
                told[sample.name] += sample.value
                key = (sample.name, tuple(sorted(sample.labels.items())))
                before = self._seen.get((life.node, key))
                grown = 0.0 if before is None else sample.value - (before if sample.value >= before else 0.0)
                self._seen[life.node, key] = sample.value
                self.grown[key] += grown
                if sample.name == GPUS:
                    life.metered += grown
        assert sum(told[part] for part in PARTS) == pytest.approx(told[GPUS], abs=1e-6), "in every scrape"

    def sums(self) -> dict[str, float]:
        """GPU-seconds by metric."""
        found: dict[str, float] = defaultdict(float)
        for (name, _), seconds in self.grown.items():
            found[name] += seconds
        return found

    def billed(self) -> dict[str, float]:
        """GPU-seconds by namespace."""
        found: dict[str, float] = defaultdict(float)
        for (name, labels), seconds in self.grown.items():
            if name == PARTS[0]:
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
