"""What the GPUs are used for, as NVML reports it. Part of `nvml.py`. No decision depends on it, so values that cannot
be read are left out.

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
"""XID numbers that are counted per GPU. NVIDIA's catalog has fewer than 200, and a broken GPU raises a handful."""


class UseOfGPUs:
    """Collects the use of the GPUs during a reading. The object is used for all readings in turn."""

    def __init__(self, pod_of: Callable[[int], PodID | None]) -> None:
        """Attribute each process to the pod that `pod_of` returns for its pid."""
        self._pod_of = pod_of
        self._sampled: dict[str, int | None] = {}
        """Time stamp of the last sample of SM shares of each GPU, by UUID, in the driver's microseconds. None if the
        driver does not report shares."""
        self._xids: dict[tuple[int, int], int] = {}
        self._devices: list[DeviceUse] = []
        self._processes: list[ProcessUse] = []

    def begin(self) -> None:
        """Begin a new reading: forget the devices and processes of the last one, but not the XIDs."""
        self._devices, self._processes = [], []

    def hear(self, index: int, xid: int) -> None:
        """Count an XID of the GPU with this index. Unlike devices and processes, XIDs are counted over all readings.
        At most MOST_XIDS different XIDs are counted per GPU; further ones are ignored."""
        distinct = sum(gpu == index for gpu, _ in self._xids)
        if (index, xid) in self._xids or distinct < MOST_XIDS:
            self._xids[index, xid] = self._xids.get((index, xid), 0) + 1

    def take(
        self,
        gpu: GPU,
        devices: Sequence[MigDevice],
        instances: Sequence[Instance | None],
        lists: Sequence[Sequence[Listed]],
    ) -> None:
        """Record the memory of a GPU's devices, and their processes, with SM shares unless MIG is on. `devices` are the
        GPU itself or its MIG devices, `instances` the instance of each (None for a whole GPU), and `lists` its
        processes. UNKNOWN_PROCESS is not recorded; if the GPU lists it, its devices are not marked `all_listed`. Raises
        ValueError if the sequences differ in length."""
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
                    all_listed=complete,
                    reports_sm=shares is not None,
                )
            )
            for each in known:
                pid = each.process.pid
                share = None if shares is None else shares.get(pid, 0)
                self._processes.append(ProcessUse(pid, uuid, each.memory, share, self._pod_of(pid)))

    def so_far(self) -> Use:
        """Return everything recorded since `begin`, and the XIDs since the agent started, sorted by GPU and number."""
        xids = tuple((gpu, xid, count) for (gpu, xid), count in sorted(self._xids.items()))
        return Use(tuple(self._devices), tuple(self._processes), xids)

    def _sm_shares(self, handle: Any, uuid: str, *, idle: bool) -> dict[int, int] | None:
        """Return the percentage of SM time since the last reading, by pid: the driver's newest sample of each process.
        A process without any activity is absent. None if the driver does not report shares, which is assumed after
        any error except that no process was active. A GPU that is `idle` (no process runs on it) is queried only
        the first time; later its result is empty, or None again."""
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
    """Return the bytes in use and the total bytes, or None for both if NVML does not report them. For a `whole` GPU,
    the bytes in use are without the driver's reserve, except with a driver before R510."""
    for version in (pynvml.nvmlMemory_v2, None) if whole else (None,):
        with suppress(pynvml.NVMLError):
            info = pynvml.nvmlDeviceGetMemoryInfo(handle, version)
            return int(info.used), int(info.total)
    return None, None
