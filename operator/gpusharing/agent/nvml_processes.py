"""Who uses a GPU, as NVML lists it. Part of `nvml.py`.

Three lists: compute, clients of MPS, graphics. Whatever of them may not be seen counts as busy.
"""

from collections.abc import Sequence
from typing import Any

import pynvml

from gpusharing.agent.library import Process
from gpusharing.agent.nvml_health import REFUSED, UNSUPPORTED
from gpusharing.agent.nvml_mig import MigDevice
from gpusharing.agent.processes import Processes

_ALWAYS = (pynvml.nvmlDeviceGetComputeRunningProcesses,)
"""Exists for every card: a driver that does not support it says nothing about who computes."""
_WHERE_SUPPORTED = (
    pynvml.nvmlDeviceGetMPSComputeRunningProcesses,
    pynvml.nvmlDeviceGetGraphicsRunningProcesses,
)
"""A card or driver without it has no such clients."""


class ProcessLists:
    """Processes by pid; pid 0 stands for those that may not be listed."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def of(self, handle: Any, device: str = "") -> list[Process]:
        """The processes of a whole GPU, or of the MIG device with this UUID."""
        pids: set[int] = {0} if self._processes.blind else set()
        for call in (*_ALWAYS, *_WHERE_SUPPORTED):
            try:
                pids.update(process.pid for process in call(handle))
            except pynvml.NVMLError as error:
                if error.value not in (REFUSED, *UNSUPPORTED):
                    raise
                if error.value == REFUSED or call in _ALWAYS:
                    pids.add(0)
        return [self._processes.of(pid, _reported(pid), device) for pid in sorted(pids)]

    def of_mig(self, migs: Sequence[MigDevice], *, hidden: bool) -> list[Process]:
        """The processes of a divided GPU; `hidden`: some may be on instances that cannot be seen."""
        unseen = [self._processes.of(0)] if hidden or self._processes.blind else []
        return unseen + [process for mig, uuid in migs for process in self.of(mig, uuid)]


def _reported(pid: int) -> str:
    """What NVML calls a process: a word that the process chose itself."""
    try:
        name: str = pynvml.nvmlSystemGetProcessName(pid) if pid else ""
    except (pynvml.NVMLError, UnicodeDecodeError):
        return ""
    return name
