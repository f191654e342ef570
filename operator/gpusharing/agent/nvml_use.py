"""What a GPU is used for, as NVML reports it. Part of `nvml.py`. Nothing is decided by it: what fails here is left out.

Reading the memory of a MIG device needs no right; reading that of the whole GPU beside it does
(docs/design/hardware.md#device-memory). Shares of SM time by process are not supported while MIG is on
(docs/design/hardware.md#utilisation).
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pynvml

from gpusharing.agent.library import UNKNOWN_PROCESS, DeviceUse, PodID, ProcessUse, Use
from gpusharing.agent.nvml_mig import MigDevice
from gpusharing.agent.nvml_processes import Listed
from gpusharing.api.gpunode import GPU, Instance

MOST_XIDS = 64
"""Numbers of XIDs told apart on one GPU; NVIDIA's catalogue has fewer than 200, and a broken GPU raises a handful."""


class UseOfGPUs:
    """Collects the Use of one reading after the other."""

    def __init__(self, pod_of: Callable[[int], PodID | None]) -> None:
        """`pod_of`: the pod of a process."""
        self._pod_of = pod_of
        self._sampled: dict[str, int | None] = {}
        """GPU by UUID to the time stamp of the last sample of SM shares, in the driver's microseconds; None when the
        driver does not report shares."""
        self._xids: dict[tuple[int, int], int] = {}
        self._devices: list[DeviceUse] = []
        self._processes: list[ProcessUse] = []

    def begin(self) -> None:
        """A new reading: forget the devices of the last one."""
        self._devices, self._processes = [], []

    def hear(self, index: int, xid: int) -> None:
        """An XID of a GPU."""
        told_apart = sum(gpu == index for gpu, _ in self._xids)
        if (index, xid) in self._xids or told_apart < MOST_XIDS:
            self._xids[index, xid] = self._xids.get((index, xid), 0) + 1

    def take(
        self,
        gpu: GPU,
        devices: Sequence[MigDevice],
        instances: Sequence[Instance | None],
        lists: Sequence[Sequence[Listed]],
    ) -> None:
        """Take the devices of a GPU: itself, whose instance is None, or its MIG devices with the instance of each.
        `lists`: who is on each of them."""
        mig = gpu.mig_mode == "Enabled"
        complete = all(process.pid != UNKNOWN_PROCESS.pid for process in gpu.processes)
        for (handle, uuid), instance, listed in zip(devices, instances, lists, strict=True):
            known = [each for each in listed if each.process.pid != UNKNOWN_PROCESS.pid]
            shares = None if mig else self._sm_shares(handle, uuid, idle=not known)
            used, memory = _memory(handle, whole=not mig)
            self._devices.append(
                DeviceUse(
                    gpu.index,
                    gpu.uuid,
                    uuid,
                    used,
                    memory,
                    instance,
                    all_seen=complete,
                    tells_sm=shares is not None,
                )
            )
            for each in known:
                pid = each.process.pid
                share = None if shares is None else shares.get(pid, 0)
                self._processes.append(ProcessUse(pid, uuid, each.memory, share, self._pod_of(pid)))

    def so_far(self) -> Use:
        """Everything taken since `begin`, and all XIDs."""
        xids = tuple((gpu, xid, count) for (gpu, xid), count in sorted(self._xids.items()))
        return Use(tuple(self._devices), tuple(self._processes), xids)

    def _sm_shares(self, handle: Any, uuid: str, *, idle: bool) -> dict[int, int] | None:
        """Percent of SM time by pid since the last reading: the driver's newest sample of each process. A process that
        did nothing has none. None when the driver does not report it. An idle GPU is asked once."""
        if idle and uuid in self._sampled:
            return None if self._sampled[uuid] is None else {}
        since = self._sampled.get(uuid) or 0
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, since)
        except pynvml.NVMLError as error:
            # NOT_FOUND: nobody did anything. SUCCESS is what pynvml makes of an empty list.
            told = error.value in (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS)
            self._sampled[uuid] = since if told else None
            return {} if told else None
        samples = sorted(samples, key=lambda sample: sample.timeStamp)
        self._sampled[uuid] = max([since, *(int(sample.timeStamp) for sample in samples)])
        return {sample.pid: sample.smUtil for sample in samples}


def _memory(handle: Any, *, whole: bool) -> tuple[int | None, int | None]:
    """Bytes used, without what the driver reserves, and bytes in all. Before R510 the driver counts both as used."""
    for version in (pynvml.nvmlMemory_v2, None) if whole else (None,):
        with suppress(pynvml.NVMLError):
            found = pynvml.nvmlDeviceGetMemoryInfo(handle, version)
            return int(found.used), int(found.total)
    return None, None
