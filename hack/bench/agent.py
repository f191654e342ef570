"""The shipped agent process on the SIMULATED libnvidia-ml.so.1: eight whole GPUs, then seven MIG instances on each."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from gpusharing.api import names
from hack import stage
from hack.bench.divide import INSTANCES
from hack.bench.machine import cpu_ms, rss_mib
from hack.bench.results import Measured
from hack.bench.testbed import GPUNODES, Testbed
from hack.cluster.process import wait_until
from hack.cluster.tokens import node_bound_token
from hack.nvmlsim.simulator import Simulator

NODE = "bench-agent"
GPUS = 8
INTERVAL = 0.05
CYCLES = 200
SELDOM = 2.0
"""Seconds between two looks at the agent's metrics while it is measured: each costs as much as a reading."""
SERVICE_ACCOUNT = "gpusharing-agent"


@dataclass(frozen=True, slots=True)
class Running:
    """An agent process and its port of probes and metrics."""

    pid: int
    port: int

    def readings(self) -> float:
        """How often it has read the GPUs."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = answer.read().decode()
        found = re.search(r'readings_total\{outcome="ok"\} (\S+)', text)
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
    with _run(testbed, machine.environment("root"), "whole") as running:
        used = _over_cycles(running, machine)
        how = f"VmRSS of gpusharing-agent, {GPUS} GPUs, SIMULATED libnvidia-ml.so.1"
        yield Measured("agent_rss_mib", rss_mib(running.pid), how)
        yield Measured("agent_cpu_ms_per_cycle", used.own_ms, f"{GPUS} whole GPUs; {used}")
    divide = (sys.executable, "-m", "hack.bench.divide")
    subprocess.run(divide, env={**os.environ, **machine.environment("root")}, cwd=stage.ROOT, check=True)
    with _run(testbed, machine.environment("root"), "divided") as running:
        used = _over_cycles(running, machine)
        how = f"{GPUS} GPUs with {INSTANCES} MIG instances each"
        yield Measured("agent_rss_mig_mib", rss_mib(running.pid), how)
        yield Measured("agent_cpu_ms_per_cycle_mig", used.own_ms, f"{how}; {used}")
    testbed.api.delete(f"{GPUNODES}/{NODE}")
    testbed.api.delete(f"/api/v1/nodes/{NODE}")


def _over_cycles(running: Running, machine: Simulator) -> _Used:
    wait_until(lambda: running.readings() > 10, 30, "the agent to read its GPUs")
    begun = _Used.so_far(running, machine)
    enough = begun.readings + CYCLES
    wait_until(lambda: running.readings() >= enough, 60, f"{CYCLES} readings", poll=SELDOM)
    return _Used.so_far(running, machine) - begun


@contextmanager
def _run(testbed: Testbed, library: Mapping[str, str], name: str) -> Iterator[Running]:
    """gpusharing-agent with the rights of the shipped ServiceAccount, on the simulated library."""
    folder = testbed.directory / f"agent-{name}"
    folder.mkdir()
    (folder / "token").write_text(node_bound_token(testbed.api, stage.AGENT_NAMESPACE, SERVICE_ACCOUNT, NODE))
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
    with stage.Process(("-m", "gpusharing.agent.main"), environment, log) as process:
        wait_until(lambda: log.read_text().endswith("\n"), 30, "the agent to start")
        started = json.loads(log.read_text().splitlines()[0])
        yield Running(process.pid, int(started["probes"].rpartition(":")[2]))
