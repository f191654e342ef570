"""The shipped agent process on the SIMULATED libnvidia-ml.so.1: eight whole GPUs, then seven MIG instances on each.

Each device is held by a pod and used by a process of it, as on a node that earns its money; once more without, for
what a node costs that nobody uses. A SIMULATED kubelet gives each device to a pod, in which a process computes. The
processes are real ones that sleep, so that the agent finds them in procfs; that they compute is SIMULATED. They are in
cgroups that are called as a kubelet calls those of pods, where this machine lets us make any.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from gpusharing.agent.podresources import PodDevices
from gpusharing.api import names
from hack import launch
from hack.bench.divide import INSTANCES
from hack.bench.machine import cpu_ms, read_metric, read_metrics, rss_mib
from hack.bench.results import Measured
from hack.bench.testbed import GPUNODES, Testbed
from hack.cluster.kubeconfig import node_bound_token
from hack.cluster.process import wait_until
from hack.nvmlsim.simulator import Simulator
from hack.realnode import cgroups
from hack.sim import kubeletsocket

OTHER_PODS = 32
"""Pods without a device, which a kubelet lists as well: those of the system, and whoever needs no GPU."""
MEMORY_MIB, SM_PERCENT = 4096, 40
COMMAND = ("sleep", "infinity")
"""Of each process; NVML reports it as the name."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A pod that holds one device, and computes on it."""

    namespace: str
    pod: str
    resource: str
    device: str
    """Its UUID."""
    gpu: int
    gpu_instance: int = -1
    """-1 for a whole GPU."""
    compute_instance: int = -1

    @property
    def uid(self) -> str:
        """The UID of the pod; it follows from the pod's namespace and name."""
        return str(uuid5(NAMESPACE_OID, f"{self.namespace}/{self.pod}"))


@dataclass(frozen=True, slots=True)
class SeenTenants:
    """What an agent needs to see the tenants."""

    tenants: tuple[Tenant, ...]
    environment: Mapping[str, str]
    attributed: bool
    """Whether the processes are in the cgroups of their pods."""

    def expected(self) -> Mapping[str, int]:
        """What an agent that sees them tells: of a gauge the sum of its series, of a counter how many there are."""
        return {
            "device_slices": len(self.tenants),
            "pod_slices": len(self.tenants),
            "pod_processes": len(self.tenants) if self.attributed else 0,
            "device_unattributed_processes": 0 if self.attributed else len(self.tenants),
            "slice_seconds_total": len({(each.namespace, each.resource) for each in self.tenants}),
        }

    def __str__(self) -> str:
        whose = (
            "that pod's cgroup"
            if self.attributed
            else "no pod's cgroup, for this machine lets nobody make any"
        )
        return (
            f"each held by a pod of a SIMULATED kubelet's podresources and used by a process in {whose}: with the"
            " kubelet's answer, processes and their pods, and the meter"
        )


def tenants_of(machine: Simulator) -> tuple[Tenant, ...]:
    """One for each MIG device, and for each GPU that has none."""
    found: list[Tenant] = []
    for gpu in machine.show()["gpus"]:
        places = [
            (f"nvidia.com/mig-{instance['profile']}", compute["uuid"], instance["id"], compute["id"])
            for instance in gpu["instances"]
            for compute in instance["compute"]
        ] or [("nvidia.com/gpu", gpu["uuid"], -1, -1)]
        for resource, device, *ids in places:
            number = len(found)
            found.append(
                Tenant(f"team-{number % 8}", f"train-{number}", resource, device, gpu["index"], *ids)
            )
    return tuple(found)


@contextmanager
def occupied(machine: Simulator, folder: Path) -> Iterator[SeenTenants]:
    """Every device of the machine has its tenant; `folder` is new and takes the socket and the pods' log folders."""
    found = tenants_of(machine)
    logs, socket = folder / "logs", folder / "kubelet.sock"
    for tenant in found:
        (logs / f"{tenant.namespace}_{tenant.pod}_{tenant.uid}").mkdir(parents=True)
    held = [PodDevices(each.namespace, each.pod, each.resource, (each.device,)) for each in found]
    others = [PodDevices("kube-system", f"other-{number}", "", ()) for number in range(OTHER_PODS)]
    offered = [(each.resource, each.device) for each in found]
    environment = {"POD_RESOURCES_SOCKET": str(socket), "POD_LOGS": str(logs)}
    with kubeletsocket.serving(socket, [*held, *others], offered), _computing(machine, found) as attributed:
        yield SeenTenants(found, environment, attributed)


@contextmanager
def _computing(machine: Simulator, tenants: Sequence[Tenant]) -> Iterator[bool]:
    """Whether the processes are in the cgroups of their pods."""
    running: list[subprocess.Popen[bytes]] = []
    cgroup = _make_cgroup()
    try:
        for tenant in tenants:
            process = subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL)
            running.append(process)
            if cgroup:
                pod = cgroups.hierarchies()[0] / cgroup.lstrip("/") / f"pod{tenant.uid}"
                pod.mkdir()
                (pod / "cgroup.procs").write_text(str(process.pid))
            machine.add_process(
                tenant.gpu,
                process.pid,
                " ".join(COMMAND),
                memory_mib=MEMORY_MIB,
                sm_percent=SM_PERCENT,
                gpu_instance=tenant.gpu_instance,
                compute_instance=tenant.compute_instance,
            )
        yield bool(cgroup)
    finally:
        for process in running:
            machine.remove_process(process.pid)
            process.kill()
            process.wait()
        if cgroup:
            cgroups.remove(cgroup)


def _make_cgroup() -> str:
    """Make a cgroup for the processes of the bench and return its path; empty if this machine does not let us."""
    with suppress(OSError):
        return cgroups.make("bench")
    return ""


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
        return read_metrics(self.port)

    def readings(self) -> float:
        """How often it has read the GPUs."""
        return read_metric(self.port, 'gpusharing_agent_readings_total{outcome="ok"}')


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
    folder, api = testbed.directory / f"agent-{name}", testbed.api
    token = node_bound_token(api, launch.AGENT_NAMESPACE, SERVICE_ACCOUNT, NODE)
    environment = {
        **library,
        **launch.write_account(folder, launch.Door(api.url, api.ca_pem), token),
        "NODE_NAME": NODE,
        "METRICS_ADDR": "127.0.0.1:0",
        "INTERVAL_SECONDS": str(INTERVAL),
    }
    log = folder / "agent.log"
    with launch.LaunchedProcess(("-m", "gpusharing.agent.main"), environment, log) as process:
        wait_until(lambda: log.read_text().endswith("\n"), 30, "the agent to start")
        started = json.loads(log.read_text().splitlines()[0])
        yield Running(process.pid, int(started["probes"].rpartition(":")[2]))
