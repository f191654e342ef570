"""Read what the GPUs are used for through NVML: memory and SM time by process, and how often each XID was received."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pynvml

from gpusharing.agent.library import GPU, UNKNOWN_PROCESS, DeviceUse, PodID, ProcessUse, Use
from gpusharing.agent.nvml_devices import ListedProcess
from gpusharing.agent.nvml_mig import Device

MOST_XIDS = 64
"""XID numbers that are counted per GPU. NVIDIA's catalog has fewer than 200, and a broken GPU raises a handful."""


class UseOfGPUs:
    """Collects the use of the GPUs during one reading after another; what cannot be read is left out.

    The memory of a MIG device needs no right, that of its GPU does, and SM time by process is not supported with MIG on
    (docs/design/hardware.md#device-memory, #utilisation).
    """

    def __init__(self, pod_of: Callable[[int], PodID | None]) -> None:
        self._pod_of = pod_of
        self._sampled: dict[str, int | None] = {}
        """When each GPU's SM shares were last sampled, in the driver's microseconds; None if it reports no shares."""
        self._xids: Counter[tuple[int, int]] = Counter()
        self._devices: list[DeviceUse] = []
        self._processes: list[ProcessUse] = []

    def begin(self) -> None:
        """Begin a new reading. The counts of XIDs stay."""
        self._devices, self._processes = [], []

    def hear(self, index: int, xid: int) -> None:
        distinct = sum(gpu == index for gpu, _ in self._xids)
        if (index, xid) in self._xids or distinct < MOST_XIDS:
            self._xids[index, xid] += 1

    def take(self, gpu: GPU, devices: Sequence[Device], lists: Sequence[Sequence[ListedProcess]]) -> None:
        """Record the use of these devices of a GPU; `lists` has the processes of each device, in the same order."""
        mig = gpu.mig_mode == "Enabled"
        complete = all(process.pid != UNKNOWN_PROCESS.pid for process in gpu.processes)
        for (handle, uuid, instance), listed in zip(devices, lists, strict=True):
            known = [(process.pid, memory) for process, memory in listed if process.pid != UNKNOWN_PROCESS.pid]
            shares = None if mig else self._sm_shares(handle, uuid, idle=not known)
            used, total = _memory(handle, whole=not mig)
            self._devices.append(
                DeviceUse(gpu.index, gpu.uuid, uuid, used, total, instance, complete, reports_sm=shares is not None)
            )
            for pid, memory in known:
                share = None if shares is None else shares.get(pid, 0)
                self._processes.append(ProcessUse(pid, uuid, memory, share, self._pod_of(pid)))

    def so_far(self) -> Use:
        xids = tuple((gpu, xid, count) for (gpu, xid), count in sorted(self._xids.items()))
        return Use(tuple(self._devices), tuple(self._processes), xids)

    def _sm_shares(self, handle: Any, uuid: str, *, idle: bool) -> dict[int, int] | None:
        """Return the percentage of SM time by pid of active processes, or None if the driver does not report it."""
        # Without a process nobody has a share, and the first sample has shown whether the driver reports any.
        if idle and uuid in self._sampled:
            return None if self._sampled[uuid] is None else {}
        since = self._sampled.get(uuid) or 0
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, since)
        except pynvml.NVMLError as error:
            # NOT_FOUND means that no process was active; pynvml raises SUCCESS for an empty list.
            answered = error.value in (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS)
            self._sampled[uuid] = since if answered else None
            return {} if answered else None
        samples = sorted(samples, key=lambda sample: sample.timeStamp)
        self._sampled[uuid] = max([since, *(int(sample.timeStamp) for sample in samples)])
        return {sample.pid: sample.smUtil for sample in samples}


def _memory(handle: Any, *, whole: bool) -> tuple[int | None, int | None]:
    """Return the bytes in use and in total; with `whole`, without the driver's reserve, except before R510."""
    for version in (pynvml.nvmlMemory_v2, None) if whole else (None,):
        with suppress(pynvml.NVMLError):
            info = pynvml.nvmlDeviceGetMemoryInfo(handle, version)
            return int(info.used), int(info.total)
    return None, None
