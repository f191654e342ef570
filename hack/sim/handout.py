"""Which SIMULATED device the kubelet gave to which pod, and what the pod takes of it.

The kubelet gives a device once, when the pod is admitted, and takes it back when the pod ends. Of shared devices the
replicas of different ones go first. What a pod takes of the memory is in the pod's own annotation; it is SIMULATED, and
nothing runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import TypeAlias

from gpusharing.agent.library import PodID, ProcessUse
from gpusharing.agent.podresources import Held, Holdings
from gpusharing.agent.usage import base
from gpusharing.api.gpunode import GPU
from gpusharing.api.names import RESOURCE_GPU, is_gpu_resource
from gpusharing.planning.gpus.geometry import resource_name
from hack.sim.gpu import SimulatedGPUs
from hack.sim.nodeobject import NodeObject
from hack.sim.pods import DeviceHolder, PodBook

GIB = 1024**3
SHARED = ".shared"
FIRST_PID = 100_000
Devices: TypeAlias = Mapping[str, Sequence[str]]
"""Resource name to device ids, in the order in which they are given out."""


class Handout:
    """`agent.podresources.PodResources` of one node, which tells devices and not only how many."""

    def __init__(self, book: PodBook, node: NodeObject, gpus: SimulatedGPUs) -> None:
        self._book, self._node, self._gpus = book, node, gpus
        self._given: dict[str, dict[str, tuple[str, ...]]] = {}
        """By uid of the pod and resource name."""
        self._pids: dict[str, int] = {}
        """By uid of the pod, its process."""
        self._next_pid = count(FIRST_PID)

    async def read(self) -> Holdings:
        """Never unavailable."""
        pods = self._book.pods(self._node.name)
        offered = offers(self._gpus.look(), _allocatable(self._node))
        for uid in self._given.keys() - pods.keys():
            self._end(uid)
        for uid, pod in pods.items():
            if uid not in self._given:
                self._give(uid, pod, offered)
        counted = self._book.holdings(self._node.name)
        held = tuple(
            Held(pod.namespace, pod.name, resource, devices)
            for uid, pod in pods.items()
            for resource, devices in self._given.get(uid, dict.fromkeys(pod.resources, ())).items()
        )
        rows = tuple((resource, device) for resource, ids in offered.items() for device in ids)
        return Holdings(counted.allocated, counted.pods, held, rows)

    def _give(self, uid: str, pod: DeviceHolder, offered: Devices) -> None:
        taken = {device for given in self._given.values() for ids in given.values() for device in ids}
        given = {}
        for resource, wanted in pod.resources.items():
            free = [device for device in offered.get(resource, ()) if device not in taken]
            if len(free) < wanted:
                return  # the plugin is being started anew: a kubelet would have admitted the pod before, or later
            given[resource] = tuple(free[:wanted])
        self._given[uid] = given
        first = next((base(device) for ids in given.values() for device in ids), "")
        if pod.memory_gib and first:
            self._compute(uid, pod, first)

    def _compute(self, uid: str, pod: DeviceHolder, device: str) -> None:
        gpus = self._gpus.look()
        index = next(
            gpu.index for gpu in gpus if device in (gpu.uuid, *(each.uuid for each in gpu.instances))
        )
        pid = self._pids[uid] = next(self._next_pid)
        owner = PodID(uid, pod.namespace, pod.name)
        self._gpus.uses[pid] = ProcessUse(pid, device, pod.memory_gib * GIB, None, owner)
        self._gpus.add_process(index, "python3", pid, device)

    def _end(self, uid: str) -> None:
        del self._given[uid]
        if (pid := self._pids.pop(uid, None)) is not None:
            self._gpus.remove_process(pid)
            self._gpus.uses.pop(pid, None)


def offers(gpus: Sequence[GPU], allocatable: Mapping[str, int]) -> dict[str, list[str]]:
    """What the device plugin offers: device ids by resource name, replicas of one device far apart.

    A name whose count does not go with the devices that there are is one of a layout that is on its way; none of it is
    told, as the kubelet tells of healthy devices only.
    """
    found: dict[str, list[str]] = {}
    for resource, wanted in allocatable.items():
        devices = _devices(gpus, resource.removesuffix(SHARED))
        replicas, rest = divmod(wanted, len(devices)) if devices else (0, 1)
        if rest or not replicas:
            continue
        shared = replicas > 1 or resource.endswith(SHARED)
        found[resource] = [
            f"{device}::{replica}" if shared else device for replica in range(replicas) for device in devices
        ]
    return found


def _allocatable(node: NodeObject) -> dict[str, int]:
    found = (node.raw.get("status") or {}).get("allocatable") or {}
    return {name: int(value) for name, value in found.items() if is_gpu_resource(name)}


def _devices(gpus: Iterable[GPU], resource: str) -> list[str]:
    """Whole GPUs without MIG, or MIG devices; `nvidia.com/gpu` is either, as the strategy has it."""
    gpus = list(gpus)
    divided = [gpu for gpu in gpus if gpu.mig_mode == "Enabled"]
    if resource == RESOURCE_GPU and len(divided) < len(gpus):
        return [gpu.uuid for gpu in gpus if gpu.mig_mode != "Enabled"]
    return [
        instance.uuid
        for gpu in divided
        for instance in gpu.instances
        if resource in (RESOURCE_GPU, resource_name(instance.profile))
    ]
