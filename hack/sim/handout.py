"""The SIMULATED devices that the kubelet assigned to each pod, and how much GPU memory the pod uses.

The kubelet assigns devices once, at admission, replicas of different ones first. The pod's annotation states its memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import TypeAlias

from gpusharing.agent.library import GPU, PodID, ProcessUse
from gpusharing.agent.podresources import Holdings, PodDevices, PodResourcesUnavailable, base
from gpusharing.api.names import RESOURCE_GPU, is_gpu_resource
from gpusharing.planning.gpus.geometry import resource_name
from hack.sim.gpu import SimulatedGPUs, mig_devices
from hack.sim.nodeobject import NodeObject
from hack.sim.pods import DeviceHolder, PodBook

GIB = 1024**3
SHARED = ".shared"
FIRST_PID = 100_000
Devices: TypeAlias = Mapping[str, Sequence[str]]
"""Device ids by resource name, in the order in which they are assigned."""


class Handout:
    """The `agent.podresources.PodResources` of one node. It reports which devices each pod holds, not only how many."""

    def __init__(self, book: PodBook, node: NodeObject, gpus: SimulatedGPUs) -> None:
        self._book, self._node, self._gpus = book, node, gpus
        self._assigned: dict[str, dict[str, tuple[str, ...]]] = {}
        """The assigned device ids, by uid of the pod and resource name."""
        self._pids: dict[str, int] = {}
        """The pid of a pod's process, by uid of the pod."""
        self._next_pid = count(FIRST_PID)
        self.answers = True

    async def read(self) -> Holdings:
        """Assign devices to new pods and start their processes, free those of ended ones, and return the holdings."""
        if not self.answers:
            raise PodResourcesUnavailable("SIMULATED: the kubelet does not answer")
        pods = self._book.pods(self._node.name)
        advertised = advertised_ids(self._gpus.look(), _allocatable(self._node))
        for uid in self._assigned.keys() - pods.keys():
            self._end(uid)
        for uid, pod in pods.items():
            if uid not in self._assigned:
                self._give(uid, pod, advertised)
        counted = self._book.holdings(self._node.name)
        assigned = tuple(
            PodDevices(pod.namespace, pod.name, resource, devices)
            for uid, pod in pods.items()
            for resource, devices in self._assigned.get(uid, dict.fromkeys(pod.resources, ())).items()
        )
        rows = tuple((resource, device) for resource, ids in advertised.items() for device in ids)
        return Holdings(counted.allocated, counted.pods, assigned, rows)

    def gpus_of(self, uid: str) -> set[int]:
        ids = {base(device) for devices in self._assigned.get(uid, {}).values() for device in devices}
        gpus = self._gpus.look()
        return {gpu.index for gpu in gpus if ids & {gpu.uuid, *(one.uuid for one in gpu.instances)}}

    def _give(self, uid: str, pod: DeviceHolder, advertised: Devices) -> None:
        taken = {device for pod_ids in self._assigned.values() for ids in pod_ids.values() for device in ids}
        assigned = {}
        for resource, wanted in pod.resources.items():
            free = [device for device in advertised.get(resource, ()) if device not in taken]
            if len(free) < wanted:
                return  # the plugin is restarting: a kubelet would have admitted the pod earlier, or admits it later
            assigned[resource] = tuple(free[:wanted])
        self._assigned[uid] = assigned
        first = next((base(device) for ids in assigned.values() for device in ids), "")
        if pod.memory_gib and first:
            gpus = self._gpus.look()
            index = next(gpu.index for gpu in gpus if first in (gpu.uuid, *(each.uuid for each in gpu.instances)))
            pid = self._pids[uid] = next(self._next_pid)
            owner = PodID(uid, pod.namespace, pod.name)
            self._gpus.uses[pid] = ProcessUse(pid, first, pod.memory_gib * GIB, None, owner)
            self._gpus.add_process(index, "python3", pid, first)

    def _end(self, uid: str) -> None:
        del self._assigned[uid]
        if (pid := self._pids.pop(uid, None)) is not None:
            self._gpus.remove_process(pid)
            self._gpus.uses.pop(pid, None)


def advertised_ids(gpus: Sequence[GPU], allocatable: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the device ids that the plugin advertises, by resource name: UUID, or UUID::REPLICA of a shared device."""
    advertised: dict[str, list[str]] = {}
    for resource, wanted in allocatable.items():
        devices = _devices(gpus, resource.removesuffix(SHARED))
        replicas, rest = divmod(wanted, len(devices)) if devices else (0, 1)
        if rest or not replicas:
            continue
        shared = replicas > 1 or resource.endswith(SHARED)
        advertised[resource] = [
            f"{device}::{replica}" if shared else device for replica in range(replicas) for device in devices if device
        ]
    return advertised


def _allocatable(node: NodeObject) -> dict[str, int]:
    allocatable = (node.raw.get("status") or {}).get("allocatable") or {}
    return {name: int(value) for name, value in allocatable.items() if is_gpu_resource(name)}


def _devices(gpus: Iterable[GPU], resource: str) -> list[str]:
    gpus = list(gpus)
    divided = [gpu for gpu in gpus if gpu.mig_mode == "Enabled"]
    if resource == RESOURCE_GPU and len(divided) < len(gpus):
        return [gpu.uuid for gpu in gpus if gpu.mig_mode != "Enabled"]
    return [
        instance.uuid
        for gpu in divided
        for instance in mig_devices(gpu)
        if resource in (RESOURCE_GPU, resource_name(instance.profile))
    ]
