"""The shipped agent process on the SIMULATED libnvidia-ml.so.1: eight GPUs with seven MIG instances each."""

import json
import re
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from gpusharing.api import names
from hack import stage
from hack.bench.machine import cpu_ms, rss_mib
from hack.bench.results import Measured
from hack.bench.scene import GPUNODES, Scene
from hack.cluster.process import wait_until
from hack.cluster.tokens import node_bound_token
from hack.nvmlsim.simulator import Simulator

NODE = "bench-agent"
GPUS, INSTANCES = 8, 7
INTERVAL = 0.05
CYCLES = 200
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


def agent(scene: Scene) -> Iterator[Measured]:
    """Memory, and CPU of a reading in which nothing changed."""
    machine = Simulator.create(scene.directory / "nvml.state", ["h100-80gb"] * GPUS, seed="bench")
    scene.api.create("/api/v1/nodes", {"metadata": {"name": NODE}})
    gpunode = {"apiVersion": names.API_VERSION, "kind": "GPUNode", "metadata": {"name": NODE}, "spec": {}}
    scene.api.create(GPUNODES, gpunode)
    with _run(scene, machine.environment("root")) as running:
        wait_until(lambda: running.readings() > 10, 30, "the agent to read its GPUs")
        used, begun = cpu_ms(running.pid), running.readings()
        wait_until(lambda: running.readings() >= begun + CYCLES, 60, f"{CYCLES} readings")
        cycles = running.readings() - begun
        used = cpu_ms(running.pid) - used
        how = f"VmRSS of gpusharing-agent, {GPUS} GPUs, SIMULATED libnvidia-ml.so.1"
        yield Measured("agent_rss_mib", rss_mib(running.pid), how)
        how = f"/proc over {cycles:.0f} unchanged readings, every {INTERVAL} s; the SIMULATED driver's calls included"
        yield Measured("agent_cpu_ms_per_cycle", used / cycles, how)
    scene.api.delete(f"{GPUNODES}/{NODE}")
    scene.api.delete(f"/api/v1/nodes/{NODE}")


@contextmanager
def _run(scene: Scene, library: Mapping[str, str]) -> Iterator[Running]:
    """gpusharing-agent with the rights of the shipped ServiceAccount, on the simulated library."""
    folder = scene.directory / "agent"
    folder.mkdir()
    (folder / "token").write_text(node_bound_token(scene.api, stage.AGENT_NAMESPACE, SERVICE_ACCOUNT, NODE))
    (folder / "ca.crt").write_text(scene.api.ca_pem)
    server = urlsplit(scene.api.url)
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
