"""The shipped agent process on the SIMULATED libnvidia-ml.so.1: eight whole GPUs, then seven MIG instances on each.

Each device is held by a pod and used by a process of it (tenants.py), as on a node that earns its money; once more
without, for what a node costs that nobody uses.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from gpusharing.api import names
from hack import launch
from hack.bench.divide import INSTANCES
from hack.bench.machine import cpu_ms, rss_mib
from hack.bench.results import Measured
from hack.bench.tenants import SeenTenants, occupied
from hack.bench.testbed import GPUNODES, Testbed
from hack.cluster.process import wait_until
from hack.cluster.tokens import node_bound_token
from hack.nvmlsim.simulator import Simulator

NODE = "bench-agent"
GPUS = 8
INTERVAL = 0.05
CYCLES = 200
SELDOM = 2.0
"""Seconds between two looks at the agent's metrics while it is measured: each costs more than a reading."""
SCRAPES = 50
SERVICE_ACCOUNT = "gpusharing-agent"


@dataclass(frozen=True, slots=True)
class Running:
    """An agent process and its port of probes and metrics."""

    pid: int
    port: int

    def metrics(self) -> str:
        """One scrape."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            return str(answer.read().decode())

    def readings(self) -> float:
        """How often it has read the GPUs."""
        found = re.search(r'readings_total\{outcome="ok"\} (\S+)', self.metrics())
        return float(found[1]) if found else 0.0


@dataclass(frozen=True, slots=True)
class _Used:
    """What an agent used so far, or between two moments."""

    readings: float
    cpu_ms: float
    """Of the process, the library in it included."""
    calls: int
    driver_ms: float
    """The library's own part; of a real one nearly all of it is the driver's."""

    @classmethod
    def so_far(cls, running: Running, machine: Simulator) -> "_Used":
        calls, driver_ms = machine.library_calls()
        return cls(running.readings(), cpu_ms(running.pid), calls, driver_ms)

    def __sub__(self, earlier: "_Used") -> "_Used":
        return _Used(
            self.readings - earlier.readings,
            self.cpu_ms - earlier.cpu_ms,
            self.calls - earlier.calls,
            self.driver_ms - earlier.driver_ms,
        )

    @property
    def own_ms(self) -> float:
        """Of each reading, without the library."""
        return (self.cpu_ms - self.driver_ms) / self.readings

    def __str__(self) -> str:
        return (
            f"CPU clock over {self.readings:.0f} unchanged readings, every {INTERVAL} s, without the"
            f" {self.driver_ms / self.readings:.2f} ms that the SIMULATED library took for the"
            f" {self.calls / self.readings:.0f} calls of each"
        )


def agent(testbed: Testbed) -> Iterator[Measured]:
    """Memory, and CPU of a reading in which nothing changed."""
    machine = Simulator.create(testbed.directory / "nvml.state", ["h100-80gb"] * GPUS, seed="bench")
    testbed.api.create("/api/v1/nodes", {"metadata": {"name": NODE}})
    gpunode = {"apiVersion": names.API_VERSION, "kind": "GPUNode", "metadata": {"name": NODE}, "spec": {}}
    testbed.api.create(GPUNODES, gpunode)
    library = machine.environment("root")
    with _run(testbed, library, "unused") as running:
        used = _over_cycles(running, machine)
        how = f"{GPUS} whole GPUs that nobody uses, without a kubelet's socket; {used}"
        yield Measured("agent_cpu_ms_per_cycle_unused", used.own_ms, how)
    how = f"{GPUS} whole GPUs"
    yield from _with_tenants(testbed, machine, how, "whole")
    divide = (sys.executable, "-m", "hack.bench.divide")
    subprocess.run(divide, env={**os.environ, **library}, cwd=launch.ROOT, check=True)
    how = f"{GPUS} GPUs with {INSTANCES} MIG instances each"
    yield from _with_tenants(testbed, machine, how, "divided")
    testbed.api.delete(f"{GPUNODES}/{NODE}")
    testbed.api.delete(f"/api/v1/nodes/{NODE}")


def _with_tenants(testbed: Testbed, machine: Simulator, which: str, kind: str) -> Iterator[Measured]:
    """Memory, CPU of a reading, and of a scrape, in which the use is attributed."""
    folder = testbed.directory / f"tenants-{kind}"
    folder.mkdir()
    mig = "_mig" if kind == "divided" else ""
    with occupied(machine, folder) as tenants:
        library = {**machine.environment("root"), **tenants.environment}
        with _run(testbed, library, kind) as running:
            used = _over_cycles(running, machine)
            _check_told(running.metrics(), tenants)
            how = f"{which}, {tenants}"
            yield Measured(f"agent_rss{mig}_mib", rss_mib(running.pid), f"VmRSS of gpusharing-agent; {how}")
            yield Measured(f"agent_cpu_ms_per_cycle{mig}", used.own_ms, f"{how}; {used}")
            how = f"same; /metrics with the use of each pod and the meter, the mean of {SCRAPES}"
            yield Measured(f"agent_cpu_ms_per_scrape{mig}", _per_scrape(running, machine, used), how)


def _check_told(metrics: str, tenants: SeenTenants) -> None:
    """What was to be measured did happen. Raises RuntimeError."""
    for name, expected in tenants.expected().items():
        rows = re.findall(rf"^gpusharing_{name}\{{.*\}} (\S+)$", metrics, re.MULTILINE)
        told = len(rows) if name.endswith("_total") else sum(map(float, rows))
        if told != expected:
            raise RuntimeError(f"{told:g} of gpusharing_{name} on the agent's page, not {expected}: {rows}")


def _per_scrape(running: Running, machine: Simulator, used: _Used) -> float:
    """The readings that come meanwhile, and the library's time for them, taken away."""
    begun = _Used.so_far(running, machine)
    for _ in range(SCRAPES - 1):
        running.metrics()
    spent = _Used.so_far(running, machine) - begun
    return (spent.cpu_ms - spent.driver_ms - spent.readings * used.own_ms) / SCRAPES


def _over_cycles(running: Running, machine: Simulator) -> _Used:
    wait_until(lambda: running.readings() > 10, 30, "the agent to read its GPUs")
    begun = _Used.so_far(running, machine)
    enough = begun.readings + CYCLES
    time.sleep(CYCLES * INTERVAL)  # nobody looks meanwhile
    wait_until(lambda: running.readings() >= enough, 60, f"{CYCLES} readings", poll=SELDOM)
    return _Used.so_far(running, machine) - begun


@contextmanager
def _run(testbed: Testbed, library: Mapping[str, str], name: str) -> Iterator[Running]:
    """gpusharing-agent with the rights of the shipped ServiceAccount, on the simulated library."""
    folder = testbed.directory / f"agent-{name}"
    folder.mkdir()
    (folder / "token").write_text(
        node_bound_token(testbed.api, launch.AGENT_NAMESPACE, SERVICE_ACCOUNT, NODE)
    )
    (folder / "ca.crt").write_text(testbed.api.ca_pem)
    server = urlsplit(testbed.api.url)
    environment = {
        **library,
        "NODE_NAME": NODE,
        "SERVICE_ACCOUNT": str(folder),
        "KUBERNETES_SERVICE_HOST": server.hostname or "",
        "KUBERNETES_SERVICE_PORT": str(server.port),
        "METRICS_ADDR": "127.0.0.1:0",
        "INTERVAL_SECONDS": str(INTERVAL),
    }
    log = folder / "agent.log"
    with launch.LaunchedProcess(("-m", "gpusharing.agent.main"), environment, log) as process:
        wait_until(lambda: log.read_text().endswith("\n"), 30, "the agent to start")
        started = json.loads(log.read_text().splitlines()[0])
        yield Running(process.pid, int(started["probes"].rpartition(":")[2]))
