"""An hour of the meter in a real Prometheus, which scrapes the agents of SIMULATED nodes; `cost` adds it up.
The hour is SIMULATED too, and no second of it is left out: the agents' clock goes on by 30 s when each of them has made a turn and Prometheus has what it told (hack/sim/agentpages.py), and each sample has the time of that clock. So Prometheus holds an hour of samples with 30 s between them, as of any other hour, whether that took half a minute or five."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hack.cluster.api import Object
from hack.cluster.process import wait_until
from hack.launch import PYTHONPATH
from hack.sim.agentpages import ANNOTATION_LAPSE, STEP
from tests.chart.scraping import RunningPrometheus, scraping
from tests.integration.product import FULL, GPUNODES, H100, HELD, NODES, SECONDS, Pool, Product
from tests.integration.workloads import pod_spec

from gpusharing.agent.meter import LAG
from hack import launch
from kubectl_gpusharing.shell.troubles import CHANGES

EACH = 2
HOUR = 3600.0
SCRAPE = "200ms"
"""In life. At best 30 s of the hour go by with each: as fast as the SIMULATED hardware here, about."""
OLD: Object = {"tsdb": {"out_of_order_time_window": "1d"}}
"""Prometheus takes samples of hours ago beside its own of now."""
WHOLE, QUARTER, THIRD = "nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-2g.20gb"
PATIENCE = 3 * SECONDS
"""An hour may take that long where others are busy, too."""
QUARTERS: Object = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4, "renameByDefault": True}}
THIRDS: Object = {"mode": "MIG", "mig": {"layouts": [{"profiles": {"2g.20gb": 3}}]}}
"""It strands a seventh of each GPU."""
PARTS = tuple(
    f"gpusharing_{part}_seconds_total" for part in ("slice", "idle_slice", "stranded_slice", "transition_slice")
)
GPUS = "gpusharing_gpu_seconds_total"
ENDS = LAG + 4 * STEP
"""Seconds of an agent's process of which Prometheus is not told, at most: a turn and a scrape at its end, and what was new then."""
LOST = 3.0
"""Minutes in which Prometheus asks an agent in vain."""
BEFORE = 2 * STEP
"""Seconds that an agent has metered when it is first scraped, at most."""


@dataclass
class Played:
    pool: Pool
    seen: RunningPrometheus
    began: float = 0.0
    spaces: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    """Nodes of which Prometheus is not told: nobody waits until it was."""

    @property
    def product(self) -> Product:
        return self.pool.product

    def at(self) -> float:
        """The time of the agents' clock, in seconds since 1970."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.product.agent_port}/lapse") as answer:
            return float(answer.read())

    def tell_what_arrived(self, nodes: Sequence[str], over: threading.Event) -> None:
        """Let the clock go on wherever Prometheus has what was told at its time, until it is over."""
        while not over.wait(0.02):
            with contextlib.suppress(OSError, ValueError, AssertionError):
                at = self.at()
                for node in nodes:
                    query = f'max(timestamp({GPUS}{{node="{node}"}}))'
                    if node in self.lost or any(float(one["value"][1]) >= at for one in self.seen.ask(query, at)):
                        self.page(node, "seen")

    def page(self, node: str, what: str) -> None:
        """Ask for something of a node (hack/sim/agentpages.py)."""
        urllib.request.urlopen(f"http://127.0.0.1:{self.product.agent_port}/{node}/{what}").close()

    def lose(self, node: str) -> None:
        """Prometheus asks its agent in vain for some minutes; the agent goes on."""
        self.page(node, "lost")
        self.lost.add(node)
        self.until(self.minutes() + LOST)
        self.page(node, "found")
        self.lost.discard(node)

    def minutes(self) -> float:
        """Of the hour that are over."""
        return (self.at() - self.began) / 60

    def until(self, minute: float) -> None:
        """Wait until so many minutes are over; on a slow machine they may be, because of what came before."""
        self.wait(lambda: self.minutes() >= minute, f"minute {minute}")

    def wait(self, holds: Callable[[], bool], what: str) -> None:
        wait_until(holds, PATIENCE, what)

    def space(self, word: str) -> str:
        name = f"{self.pool.name}-{word}"
        self.pool.create("/api/v1/namespaces", {"metadata": {"name": name}})
        self.wait(
            lambda: self.product.exists(f"/api/v1/namespaces/{name}/serviceaccounts/default"), f"{name} to be ready"
        )
        self.spaces.append(name)
        return name

    def run(self, space: str, name: str, node: str, resource: str) -> None:
        path = f"/api/v1/namespaces/{space}/pods"
        self.pool.create(path, {"metadata": {"name": name}, "spec": pod_spec(node, resource)})
        self.wait(lambda: self.product.api.get(f"{path}/{name}")["status"].get("phase") == "Running", f"{name} to run")

    def end(self, space: str, name: str) -> None:
        self.product.api.delete(f"/api/v1/namespaces/{space}/pods/{name}", {"gracePeriodSeconds": 0})

    def agent(self, node: str) -> str:
        """The uid of the agent's pod on a node that runs; empty: there is none."""
        pods = self.product.api.list(
            f"/api/v1/namespaces/{launch.AGENT_NAMESPACE}/pods", fieldSelector=f"spec.nodeName={node}"
        )
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return next((pod["metadata"]["uid"] for pod in alive if pod["status"].get("phase") == "Running"), "")

    def restart_agent(self, node: str) -> None:
        before = self.agent(node)
        path = f"/api/v1/namespaces/{launch.AGENT_NAMESPACE}/pods"
        (name,) = (pod["metadata"]["name"] for pod in self.product.api.list(path) if pod["metadata"]["uid"] == before)
        self.product.api.delete(f"{path}/{name}", {"gracePeriodSeconds": 0})
        self.wait(lambda: self.agent(node) not in ("", before), "another agent")

    def vanish(self, node: str) -> None:
        self.product.remove(f"{GPUNODES}/{node}", f"{NODES}/{node}")

    def samples(self, node: str, until: float) -> list[tuple[float, float]]:
        """Time and value of a node's counter of GPU-seconds, of all policies together."""
        query = f'{GPUS}{{node="{node}"}}[{round(until - self.began + 60)}s]'
        found: dict[float, float] = {}
        for series in self.seen.ask(query, until):
            for at, value in series["values"]:
                found[at] = found.get(at, 0.0) + float(value)
        return sorted(found.items())


@pytest.fixture
def played(product: Product, tmp_path: Path) -> Iterator[Played]:
    """Two nodes with whole GPUs. The clock stands until Prometheus comes."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(product.pool(empty=True))
        nodes = [
            pool.add_node(f"{pool.name}-{number}", H100, gpus=EACH, annotations={ANNOTATION_LAPSE: "true"})
            for number in range(2)
        ]
        with product.operator("hour"):
            pool.serve(FULL)
        every = {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE}
        job = {**product.scraped(nodes), **every}
        found = Played(pool, stack.enter_context(scraping(tmp_path, [job], storage=OLD)))
        found.began = found.at()
        over = threading.Event()
        telling = threading.Thread(target=found.tell_what_arrived, args=(nodes, over))
        telling.start()
        stack.callback(telling.join)
        stack.callback(over.set)
        yield found


def play(hour: Played) -> float:
    """The hour; returns when it ended, by its own clock. The times are those at which something happens at earliest."""
    one, other = hour.pool.nodes
    steady, brief = hour.space("steady"), hour.space("brief")
    with hour.product.operator("hour", **HELD):
        for number in range(6):
            hour.until(1 + number)
            hour.run(brief, f"brief-{number}", one, WHOLE)
            hour.end(brief, f"brief-{number}")
        hour.run(steady, "whole", other, WHOLE)
        hour.until(12)
        more = {"drain": {"unmanagedPods": "Evict", "strandedPods": "Allow"}, "rollout": {"maxUnavailable": 2}}
        hour.pool.apply({**QUARTERS, **more})
        hour.pool.wait_synced()
        for number in range(3):
            hour.run(steady, f"quarter-{number}", one, QUARTER)
        hour.until(hour.minutes() + 4)
        hour.pool.hold(one)
        hour.pool.apply({**THIRDS, **more})
        hour.pool.wait_held(one)
        hour.until(hour.minutes() + 2)
        hour.pool.let_go(one)
        hour.pool.wait_synced()
        hour.run(steady, "third", other, THIRD)
        hour.run(steady, "other-third", one, THIRD)
    # No operator for a while.
    hour.restart_agent(one)
    with hour.product.operator("hour"):
        now = hour.minutes()
        hour.until(now + 5)
        hour.lose(one)
        for number in range(4):
            hour.run(brief, f"third-{number}", other, THIRD)
            hour.until(hour.minutes() + 1)
            hour.end(brief, f"third-{number}")
        hour.vanish(other)
        hour.until(max(60, hour.minutes() + 5))
        return hour.at()


def ask_cost(*typed: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "kubectl_gpusharing", "cost", *typed],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def cost(prometheus: str, window: float, until: float) -> Any:
    """What `kubectl gpusharing cost` says of the hour. No price is told, so the bill is of GPU-hours and PARTIAL."""
    end = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    typed = ("--prometheus", prometheus, "--window", f"{round(window / 60)}m", "--until", end, "-o", "json")
    done = ask_cost(*typed)
    assert done.returncode == CHANGES, done.stderr
    return json.loads(done.stdout)


def test_an_hour_adds_up_in_a_real_prometheus_and_in_the_bill(played: Played) -> None:
    ended = play(played)
    end = played.began + (ended - played.began) // 60 * 60
    one, other = played.pool.nodes
    played.wait(lambda: played.samples(one, end + STEP)[-1][0] >= end, "the last scrape")
    lasted = {node: played.samples(node, end) for node in (one, other)}
    exact = played.seen.increases((*PARTS, GPUS), end - played.began, end)

    # To the second, by the samples as they are: the four parts are all that was metered.
    metered = exact.pop(GPUS)
    assert min(exact.values()) > 0, "each of the four happened"
    assert sum(exact.values()) == pytest.approx(metered, abs=1)

    # What was not metered is what the ends of three processes cost, and the time in which there was none. Scrapes that
    # were lost cost nothing.
    unmetered = EACH * sum(samples[-1][0] - samples[0][0] for samples in lasted.values()) - metered
    (away,) = (until - at for (at, a), (until, b) in pairwise(lasted[one]) if b < a)
    assert -3 * EACH * BEFORE <= unmetered <= 3 * EACH * ENDS + EACH * away
    assert max(until - at for (at, a), (until, b) in pairwise(lasted[one]) if b >= a) >= LOST * 60

    # The bill, by increase(): it may be wrong by the ends of a series, and says so where it is by more than 1 %.
    bill = cost(played.seen.address, end - played.began, end)
    price, *absences = bill["missing"]
    assert price.startswith("no price is known for "), "all is there but a price"
    assert all(one in text and "no samples from" in text for text in absences), "its agent was away"
    hours = sum(row["gpuHours"] for row in bill["rows"])
    (total,) = bill["totals"]
    assert hours == pytest.approx(total["gpuHours"], abs=1e-5)
    assert hours * HOUR == pytest.approx(metered, abs=2 * EACH * STEP)
    assert {row["name"] for row in bill["rows"] if row["part"] == "held"} == set(played.spaces)
    assert {row["part"] for row in bill["rows"]} == {"held", "idle", "stranded", "transition"}
    shared = [row for row in bill["rows"] if row["part"] == "held" and row["resource"] == QUARTER]
    assert [row["basis"] for row in shared] == ["reserved"]
    assert shared[0]["gpuHours"] > 0
