"""Tenants for the benched agent: a SIMULATED kubelet gives each device to a pod, in which a process computes.

The processes are real ones that sleep, so that the agent finds them in procfs; that they compute is SIMULATED. They
are in cgroups that are called as a kubelet calls those of pods, where this machine lets us make any.
"""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from gpusharing.agent.podresources import Held
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
        """Of the pod."""
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
    held = [Held(each.namespace, each.pod, each.resource, (each.device,)) for each in found]
    others = [Held("kube-system", f"other-{number}", "", ()) for number in range(OTHER_PODS)]
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
    """Its path; empty where we may not."""
    with suppress(OSError):
        return cgroups.make("bench")
    return ""
