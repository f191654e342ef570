"""What SIMULATED GPUs are used for (`agent.library.Use`): nothing, but for processes that were given a use."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from gpusharing.agent.library import GPU, UNKNOWN_PROCESS, DeviceUse, ProcessUse, Use
from gpusharing.planning.gpus.cards import Card

GIB = 1024**3


def use_of(gpus: Sequence[GPU], cards: Sequence[Card], uses: Mapping[int, ProcessUse]) -> Use:
    """The use of the GPUs as a container sees them. No shares of SM time: what is told here has no clock."""
    processes = tuple(each for gpu in gpus for each in _processes(gpu, uses))
    devices = tuple(
        each for gpu, card in zip(gpus, cards, strict=True) for each in _devices(gpu, card, processes)
    )
    return Use(devices, processes)


def _processes(gpu: GPU, uses: Mapping[int, ProcessUse]) -> Iterator[ProcessUse]:
    for process in gpu.processes:
        if process != UNKNOWN_PROCESS:
            use = uses.get(process.pid, ProcessUse(process.pid, "", 0))
            yield replace(use, pid=process.pid, device=process.device or gpu.uuid)


def _devices(gpu: GPU, card: Card, processes: Sequence[ProcessUse]) -> Iterator[DeviceUse]:
    if gpu.access != "Ok":
        return
    seen = UNKNOWN_PROCESS not in gpu.processes
    if gpu.mig_mode != "Enabled":
        yield DeviceUse(
            gpu.index, gpu.uuid, gpu.uuid, _used(gpu.uuid, processes), card.memory_gb * GIB, all_seen=seen
        )
        return
    memory_gb = {profile.name: profile.memory_gb for profile in card.profiles}
    for instance in gpu.instances:
        memory = memory_gb[instance.profile] * GIB
        used = _used(instance.uuid, processes)
        yield DeviceUse(gpu.index, gpu.uuid, instance.uuid, used, memory, instance, all_seen=seen)


def _used(uuid: str, processes: Sequence[ProcessUse]) -> int:
    return sum(process.memory or 0 for process in processes if process.device == uuid)
