"""A real Prometheus with our recording rules scrapes agents on SIMULATED GPUs, and a SIMULATED dcgm-exporter."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hack.cluster.process import free_ports, wait_until
from hack.sim.dcgmexporter import DCGMValues
from hack.sim.gpu import SimulatedGPUs
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry
from tests.agent.test_meter import devices, handed_out
from tests.chart.charts import CHART
from tests.chart.scraping import RunningPrometheus, dcgm_exporter, page, scraping
from tests.fakes.gpus import FixedPods, OneNode

from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.metrics import AgentCollector, UsageCollector
from gpusharing.kube.pageserver import Answer, PageServer

pytestmark = pytest.mark.tools

H100 = "NVIDIA H100 80GB HBM3"
RULES = CHART / "files" / "recording.yaml"
PARTS = ("slice", "idle_slice", "stranded_slice", "transition_slice")
COUNTERS = (*PARTS, "gpu")
LAG = 3
"""Of the meter, in scrapes: so often a series is seen at 0 before it grows."""
SCRAPES = 6
"""After each event, at one a second where the machine keeps up with that."""
PATIENCE = 120.0


def increases(seen: RunningPrometheus) -> dict[str, float]:
    names = {one: f"gpusharing_{one}_seconds_total" for one in COUNTERS}
    grown = seen.increases(names.values())
    return {one: grown[name] for one, name in names.items()}


def samples(seen: RunningPrometheus, node: str) -> int:
    found = seen.ask(f'count_over_time(gpusharing_gpu_seconds_total{{node="{node}"}}[10m])')
    return sum(int(float(series["value"][1])) for series in found)


@contextmanager
def prometheus(folder: Path, targets: dict[str, int], exporter: int) -> Iterator[RunningPrometheus]:
    """A Prometheus that scrapes the agents of these nodes every second, and dcgm-exporter as its chart has it."""
    agents = [
        {"targets": [f"127.0.0.1:{at}"], "labels": {"node": node, "namespace": "gpusharing-agent", "pod": "agent"}}
        for node, at in targets.items()
    ]
    jobs = [{"job_name": "gpusharing-agent", "honor_labels": True, "static_configs": agents}]
    with scraping(folder, [*jobs, dcgm_exporter(exporter)], {RULES.name: RULES.read_text()}) as seen:
        yield seen


class Scrapes(Collector):
    """A clock of a node: a second goes by with each scrape, however long that takes on this machine."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def collect(self) -> Iterable[Metric]:
        self.seconds += 1
        return ()


class Node:
    def __init__(self, name: str, *products: str) -> None:
        self.server, self.pods = OneNode(name), FixedPods()
        self.gpus = SimulatedGPUs(name, products)
        (self.port,) = free_ports(1)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[AgentLoop]:
        """Its agent, with a process's counters of its own, at the same address."""
        server, scrapes = self.server, Scrapes()
        settings = LoopSettings(interval=0.2, meter_lag=LAG)
        loop = AgentLoop(server.name, server.client, self.gpus, self.pods, settings, clock=lambda: scrapes.seconds)
        registry = CollectorRegistry()
        for collector in (scrapes, AgentCollector(loop), UsageCollector(loop)):
            registry.register(collector)
        # Rendered anew for each scrape, which metrics_page would not do.
        probes = PageServer(("127.0.0.1", self.port), {"/metrics": lambda _: Answer(200, generate_latest(registry))})
        probes.start()
        task = asyncio.create_task(loop.run())
        try:
            yield loop
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(probes.stop)


async def until_scraped(seen: RunningPrometheus, *nodes: Node) -> None:
    wanted = {node.server.name: samples(seen, node.server.name) + SCRAPES for node in nodes}

    def enough() -> bool:
        return all(samples(seen, name) >= count for name, count in wanted.items())

    await asyncio.to_thread(wait_until, enough, PATIENCE, "Prometheus to scrape the agents")


async def until_recorded(seen: RunningPrometheus, query: str, wanted: list[Any], of: Callable[[Any], Any]) -> None:
    """What a recording rule says, with its next evaluation or one after that."""
    found: list[Any] = []

    def recorded() -> bool:
        found[:] = map(of, seen.ask(query))
        return found == wanted

    try:
        await asyncio.to_thread(wait_until, recorded, PATIENCE, query)
    except TimeoutError:
        assert found == wanted, query


async def test_the_bill_adds_up_and_the_rules_tell_what_the_agents_saw(tmp_path: Path) -> None:
    divided, whole = Node("gpu-01", H100), Node("gpu-02", H100, H100)
    divided.gpus.set_mig_mode(0, on=True)
    for _ in range(3):
        divided.gpus.create(0, "2g.20gb")
    slices, gpus = devices(divided.gpus.read()), devices(whole.gpus.read())
    instance = divided.gpus.look()[0].instances[0]
    metered = [DCGMValues(0, divided.gpus.look()[0].uuid, 0.5, 7, instance.profile, str(instance.id))]
    for node in (divided, whole):
        node.server.ask("r1")
        node.server.show({"policy": "pool-b", "phase": "Synced"})
    ports = {node.server.name: node.port for node in (divided, whole)}
    with page(metered) as exporter, prometheus(tmp_path, ports, exporter) as seen:
        async with divided.agent():
            async with whole.agent():
                divided.pods.holdings = handed_out(slices, ["team-a", "team-b"])
                await until_scraped(seen, divided, whole)
                whole.pods.holdings = handed_out(gpus, ["team-a"])
                divided.server.show({"policy": "pool-b", "phase": "Draining"})
                await until_scraped(seen, divided, whole)
            async with whole.agent():  # its container was restarted
                divided.pods.holdings = handed_out(slices, [])
                await until_scraped(seen, divided, whole)
            # Its node vanishes.
            await until_scraped(seen, divided)
            await until_recorded(
                seen,
                "gpusharing:slice_utilization:ratio",
                [("2g.20gb", "dcgm-exporter", "0.5")],
                lambda one: (one["metric"]["profile"], one["metric"]["source"], one["value"][1]),
            )
            idle = 'gpusharing:slices_idle:sum{node="gpu-01"}'
            await until_recorded(seen, idle, ["3"], lambda one: one["value"][1])
            told_of = increases(seen)
            gpu_seconds = told_of.pop("gpu")
    assert min(told_of.values()) > 0, "each of the four happened"
    assert sum(told_of.values()) == pytest.approx(gpu_seconds, abs=1e-6)
