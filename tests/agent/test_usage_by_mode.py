"""From a process by its cgroup to its pod, and what Prometheus is told of that pod, in each of five ways to share GPUs.
The agent's loop, its NVML adapter, its way through procfs and log folders and its client of the kubelet are those that are shipped. NVML, the processes and the kubelet are SIMULATED; tests/e2e/test_modes.py and test_uninstall.py walk all five on real cgroups and a real kubelet, time-slicing on a whole GPU beside MIG. That a client of MPS is listed under its own pid, and the server beside it, is what NVIDIA says (docs/design/hardware.md#usage); it was not seen here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hack.nvmlsim.simulator import Simulator
from hack.sim.kubeletsocket import serving
from prometheus_client.parser import text_string_to_metric_families
from tests.agent.nvml_machine import finish, in_process, needs_compiler, read, start

from gpusharing.agent.podresources import PodDevices
from gpusharing.agent.processes import MPS_SERVER

pytestmark = needs_compiler
MIB = 1024 * 1024
GPU, LARGE = "nvidia.com/gpu", "nvidia.com/mig-3g.40gb"
CONTAINER = "c" * 64
BY = ("namespace", "pod", "uuid")


@dataclass(frozen=True)
class Pod:
    namespace: str
    name: str
    uid: str


TRAIN = Pod("team-a", "train-0", "0f3c1de2-54a1-4f6c-9a0e-3b1f2c4d5e6f")
SERVE = Pod("team-b", "serve-7d4b9-x2x2x", "11111111-2222-3333-4444-555555555555")
DAEMON = Pod("gpu-operator", "mps-control-daemon-q2x4z", "99999999-2222-3333-4444-555555555555")


@dataclass(frozen=True)
class Way:
    parts: tuple[str, ...] = ()
    """Profiles of the instances of GPU 0; none: MIG is off."""
    resource: str = GPU
    replicas: int = 1
    """Of each device; both pods are on the first device where there are several."""
    mps: bool = False


WAYS = {
    "whole GPUs": Way(),
    "MIG": Way(("3g.40gb", "3g.40gb"), LARGE),
    "time-slicing": Way(replicas=4),
    "MPS": Way(replicas=4, mps=True),
    "MIG and time-slicing": Way(("3g.40gb",), LARGE, 2),
}


@dataclass(frozen=True)
class Device:
    uuid: str
    gpu: int
    instance: int = -1
    """Id of its GPU instance; -1: none."""


class Node:
    """A SIMULATED node on which pods compute."""

    def __init__(self, machine: Simulator, folder: Path, way: Way) -> None:
        self.machine, self.folder, self.way = machine, folder, way
        (folder / "proc").mkdir()
        (folder / "logs").mkdir()
        if way.parts:
            in_process(machine, "partition", "0", *way.parts)
        gpus = read(machine)["gpus"]
        whole = [Device(gpu["uuid"], gpu["index"]) for gpu in gpus]
        divided = [Device(one["uuid"], 0, one["id"]) for one in gpus[0]["instances"]]
        self.devices = divided or whole

    def of(self, pod: Pod) -> Device:
        return self.devices[0 if self.way.replicas > 1 or pod is TRAIN else 1]

    def run(self, pid: int, device: Device, memory: int, sm: int = 0, *, pod: Pod | None = None) -> None:
        """A process begins to compute, in the cgroup of a pod, or as a daemon of the host."""
        server = pod is DAEMON
        self.machine.add_process(
            device.gpu,
            pid,
            MPS_SERVER if server else "python3",
            memory_mib=memory,
            sm_percent=sm,
            gpu_instance=device.instance,
            compute_instance=0 if device.instance >= 0 else -1,
            mps=self.way.mps and pod is not None and not server,
        )
        cgroup = "/system.slice/exporter.service"
        if pod is not None:
            slice_ = f"kubepods-burstable-pod{pod.uid.replace('-', '_')}.slice"
            cgroup = f"/kubepods.slice/kubepods-burstable.slice/{slice_}/cri-containerd-{CONTAINER}.scope"
            (self.folder / "logs" / f"{pod.namespace}_{pod.name}_{pod.uid}").mkdir(exist_ok=True)
        (self.folder / "proc" / str(pid)).mkdir()
        (self.folder / "proc" / str(pid) / "cgroup").write_text(f"0::{cgroup}\n")

    def told(self) -> "Told":
        """What its agent tells, while a kubelet says which tenant holds what."""
        held = [PodDevices(pod.namespace, pod.name, self.way.resource, (self._id(pod),)) for pod in (TRAIN, SERVE)]
        offered = [(self.way.resource, name) for device in self.devices for name in self._ids(device)]
        with serving(self.folder / "kubelet.sock", held, offered):
            page = finish(start(self.machine, str(self.folder), module="nvml_told"))
        return Told(page)

    def _id(self, pod: Pod) -> str:
        ids = self._ids(self.of(pod))
        return ids[-1] if pod is SERVE else ids[0]

    def _ids(self, device: Device) -> Sequence[str]:
        replicas = self.way.replicas
        return [f"{device.uuid}::{one}" for one in range(replicas)] if replicas > 1 else [device.uuid]


@dataclass(frozen=True)
class Told:
    page: str

    def of(self, metric: str) -> Mapping[tuple[str, ...], float]:
        return {
            tuple(sample.labels[key] for key in BY if key in sample.labels): sample.value
            for family in text_string_to_metric_families(self.page)
            for sample in family.samples
            if sample.name == f"gpusharing_{metric}"
        }


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_memory_processes_and_slices_are_told_by_pod(machine: Simulator, tmp_path: Path, way: Way) -> None:
    node = Node(machine, tmp_path, way)
    mine, theirs = node.of(TRAIN), node.of(SERVE)
    node.run(4_000_001, mine, 9_000, 30, pod=TRAIN)
    node.run(4_000_002, mine, 1_000, 10, pod=TRAIN)
    node.run(4_000_003, theirs, 4_000, 5, pod=SERVE)
    node.run(4_000_004, mine, 200)
    expected = {
        (TRAIN.namespace, TRAIN.name, mine.uuid): 10_000.0 * MIB,
        (SERVE.namespace, SERVE.name, theirs.uuid): 4_000.0 * MIB,
    }
    if way.mps:
        node.run(4_000_005, mine, 30, pod=DAEMON)
        expected[DAEMON.namespace, DAEMON.name, mine.uuid] = 30.0 * MIB
    told = node.told()
    assert told.of("pod_memory_used_bytes") == expected
    tenants = {(TRAIN.namespace, TRAIN.name, mine.uuid): 2.0, (SERVE.namespace, SERVE.name, theirs.uuid): 1.0}
    assert told.of("pod_processes") == {**dict.fromkeys(expected, 1.0), **tenants}
    assert told.of("pod_slices") == dict.fromkeys(tenants, 1.0)
    others = {(device.uuid,): 200.0 * MIB if device == mine else 0.0 for device in node.devices}
    assert told.of("device_unattributed_memory_bytes").items() >= others.items()
    shares = {key: 0.4 if key[1] == TRAIN.name else 0.05 if key in tenants else 0.0 for key in expected}
    assert told.of("pod_sm_ratio") == ({} if way.parts else pytest.approx(shares)), "with MIG nobody tells"
