"""The cost of the shipped agent on the SIMULATED libnvidia-ml.so.1, with whole GPUs and then with seven instances on each.

First nobody uses them, then a SIMULATED kubelet assigns each device to a pod. Its process is real and sleeps, so that
it is found in procfs, where possible in a cgroup named as a kubelet names those of pods; its use is SIMULATED.
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
from hack.cluster.api import Api
from hack.cluster.kubeconfig import node_bound_token
from hack.cluster.process import wait_until
from hack.nvmlsim.simulator import Simulator
from hack.realnode import cgroups
from hack.sim import kubeletsocket

OTHER_PODS = 32
"""Pods without a device, which a kubelet lists as well: pods of the system, and others that use no GPU."""
MEMORY_MIB, SM_PERCENT = 4096, 40
COMMAND = ("sleep", "infinity")
"""The command line of each process; NVML reports it as the process name."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A pod to which one device is assigned and whose process uses it."""

    namespace: str
    pod: str
    resource: str
    device: str
    gpu: int
    gpu_instance: int = -1
    """The id of the GPU instance, or -1 for a whole GPU."""
    compute_instance: int = -1
    """The id of the compute instance, or -1 for a whole GPU."""

    @property
    def uid(self) -> str:
        return str(uuid5(NAMESPACE_OID, f"{self.namespace}/{self.pod}"))


@dataclass(frozen=True, slots=True)
class SeenTenants:
    """The tenants of a machine, and the environment variables with which an agent finds them."""

    tenants: tuple[Tenant, ...]
    environment: Mapping[str, str]
    attributed: bool

    def expected(self) -> Mapping[str, int]:
        """Return, by metric, the sum of its series (gauge) or their number (counter) if every tenant is seen."""
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
            else "no pod's cgroup, because this machine does not permit us to create any"
        )
        return (
            f"each assigned to a pod by a SIMULATED kubelet and used by a process in {whose}; a reading includes the"
            " kubelet's answer, the processes with their pods, and the meter"
        )


def tenants_of(machine: Simulator) -> tuple[Tenant, ...]:
    """Return one tenant for each MIG device of the machine, and one for each GPU that is not divided."""
    tenants: list[Tenant] = []
    for gpu in machine.show()["gpus"]:
        places = [
            (f"nvidia.com/mig-{instance['profile']}", compute["uuid"], instance["id"], compute["id"])
            for instance in gpu["instances"]
            for compute in instance["compute"]
        ] or [("nvidia.com/gpu", gpu["uuid"], -1, -1)]
        for resource, device, *ids in places:
            number = len(tenants)
            tenants.append(Tenant(f"team-{number % 8}", f"train-{number}", resource, device, gpu["index"], *ids))
    return tuple(tenants)


@contextmanager
def occupied(machine: Simulator, folder: Path) -> Iterator[SeenTenants]:
    """Run a SIMULATED kubelet and a process for every device of the machine, and yield the tenants."""
    tenants = tenants_of(machine)
    logs, socket = folder / "logs", folder / "kubelet.sock"
    for tenant in tenants:
        (logs / f"{tenant.namespace}_{tenant.pod}_{tenant.uid}").mkdir(parents=True)
    users = [PodDevices(each.namespace, each.pod, each.resource, (each.device,)) for each in tenants]
    others = [PodDevices("kube-system", f"other-{number}", "", ()) for number in range(OTHER_PODS)]
    devices = [(each.resource, each.device) for each in tenants]
    environment = {"POD_RESOURCES_SOCKET": str(socket), "POD_LOGS": str(logs)}
    with kubeletsocket.serving(socket, [*users, *others], devices), _computing(machine, tenants) as attributed:
        yield SeenTenants(tenants, environment, attributed)


@contextmanager
def _computing(machine: Simulator, tenants: Sequence[Tenant]) -> Iterator[bool]:
    running: list[subprocess.Popen[bytes]] = []
    cgroup = ""
    with suppress(OSError):
        cgroup = cgroups.make("bench")
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


NODE = "bench-agent"
GPUS = 8
INTERVAL = 0.05
CYCLES = 200
SELDOM = 2.0
"""Seconds between two scrapes of the agent while it is measured: a scrape costs more than a reading."""
SCRAPES = 50
SERVICE_ACCOUNT = "gpusharing-agent"


@dataclass(frozen=True, slots=True)
class Running:
    pid: int
    port: int
    token: str

    def metrics(self) -> str:
        return read_metrics(self.port, self.token)

    def readings(self) -> float:
        """Return how often the agent has read its GPUs successfully since it started."""
        return read_metric(self.port, 'gpusharing_agent_readings_total{outcome="ok"}', self.token)


@dataclass(frozen=True, slots=True)
class _Used:
    """What an agent and the library of its machine have used up to a moment, or between two moments."""

    readings: float
    cpu_ms: float
    """CPU time of the agent's process, including the library."""
    calls: int
    driver_ms: float
    """CPU time within the library; with a real one nearly all of it is the driver's."""

    @classmethod
    def so_far(cls, running: Running, machine: Simulator) -> "_Used":
        """Return what the agent, and the library by whatever program, have used so far."""
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
        """CPU milliseconds of one reading, without the time spent in the library."""
        return (self.cpu_ms - self.driver_ms) / self.readings

    def __str__(self) -> str:
        return (
            f"CPU clock over {self.readings:.0f} unchanged readings, every {INTERVAL} s, without the"
            f" {self.driver_ms / self.readings:.2f} ms that the SIMULATED library took for the"
            f" {self.calls / self.readings:.0f} calls of each"
        )


def agent(testbed: Testbed) -> Iterator[Measured]:
    """Measure the agent with eight unused GPUs, with whole GPUs in use, and with MIG instances in use."""
    machine = Simulator.create(testbed.directory / "nvml.state", ["h100-80gb"] * GPUS, seed="bench")
    testbed.api.create("/api/v1/nodes", {"metadata": {"name": NODE}})
    gpunode = {"apiVersion": names.API_VERSION, "kind": "GPUNode", "metadata": {"name": NODE}, "spec": {}}
    testbed.api.create(GPUNODES, gpunode)
    library = machine.environment("root")
    with _run(testbed, library, "unused") as running:
        used = _over_cycles(running, machine)
        how = f"{GPUS} unused whole GPUs, without a kubelet's socket; {used}"
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
    folder = testbed.directory / f"tenants-{kind}"
    folder.mkdir()
    mig = "_mig" if kind == "divided" else ""
    with occupied(machine, folder) as tenants:
        library = {**machine.environment("root"), **tenants.environment}
        with _run(testbed, library, kind) as running:
            used = _over_cycles(running, machine)
            metrics = running.metrics()
            for name, expected in tenants.expected().items():
                rows = re.findall(rf"^gpusharing_{name}\{{.*\}} (\S+)$", metrics, re.MULTILINE)
                value = len(rows) if name.endswith("_total") else sum(map(float, rows))
                if value != expected:
                    raise RuntimeError(
                        f"the agent reports {value:g} for gpusharing_{name} instead of {expected}: {rows}"
                    )
            how = f"{which}, {tenants}"
            yield Measured(f"agent_rss{mig}_mib", rss_mib(running.pid), f"VmRSS of gpusharing-agent; {how}")
            yield Measured(f"agent_cpu_ms_per_cycle{mig}", used.own_ms, f"{how}; {used}")
            how = f"same; /metrics with the use of each pod and the meter, the mean of {SCRAPES}"
            yield Measured(f"agent_cpu_ms_per_scrape{mig}", _per_scrape(running, machine, used), how)


def _per_scrape(running: Running, machine: Simulator, used: _Used) -> float:
    """Return the CPU milliseconds of one scrape, without the library's time and without that of readings meanwhile."""
    begun = _Used.so_far(running, machine)
    for _ in range(SCRAPES - 1):
        running.metrics()
    spent = _Used.so_far(running, machine) - begun
    return (spent.cpu_ms - spent.driver_ms - spent.readings * used.own_ms) / SCRAPES


def _over_cycles(running: Running, machine: Simulator) -> _Used:
    """Return what the agent uses for at least CYCLES readings, with hardly a scrape."""
    wait_until(lambda: running.readings() > 10, 30, "the agent to read its GPUs")
    begun = _Used.so_far(running, machine)
    enough = begun.readings + CYCLES
    time.sleep(CYCLES * INTERVAL)  # without a scrape, which would be measured as well
    wait_until(lambda: running.readings() >= enough, 60, f"{CYCLES} readings", poll=SELDOM)
    return _Used.so_far(running, machine) - begun


@contextmanager
def _run(testbed: Testbed, library: Mapping[str, str], name: str) -> Iterator[Running]:
    """Run gpusharing-agent with a token of the shipped ServiceAccount, and yield it once it has logged its port."""
    folder, api = testbed.directory / f"agent-{name}", testbed.api
    token = node_bound_token(api, launch.AGENT_NAMESPACE, SERVICE_ACCOUNT, NODE)
    _let_agent_read_metrics(api)
    environment = {
        **library,
        **launch.write_account(folder, launch.Door(api.url, api.ca_pem), token),
        "NODE_NAME": NODE,
        "METRICS_ADDR": "127.0.0.1:0",
        "METRICS_SECURE": "true",
        "INTERVAL": f"{INTERVAL}s",
    }
    log = folder / "agent.log"
    with launch.LaunchedProcess(("-m", "gpusharing.agent.main"), environment, log) as process:
        wait_until(lambda: log.read_text().endswith("\n"), 30, "the agent to start")
        started = json.loads(log.read_text().splitlines()[0])
        yield Running(process.pid, int(started["probes"].rpartition(":")[2]), token)


def _let_agent_read_metrics(api: Api) -> None:
    group = "rbac.authorization.k8s.io"
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "bench-reads-metrics"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "gpusharing-metrics-reader"},
        "subjects": [{"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": launch.AGENT_NAMESPACE}],
    }
    api.ensure(f"/apis/{group}/v1/clusterrolebindings", binding)
