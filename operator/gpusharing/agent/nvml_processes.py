"""Which processes use a GPU, as NVML lists them. Part of `nvml.py`.

Three lists: compute, clients of MPS, graphics. Whatever of them may not be seen counts as busy
(docs/design/hardware.md#processes, docs/design/way.md#idle).
"""

from typing import Any

import pynvml

from gpusharing.agent.library import UNKNOWN_PROCESS, PodID, Process
from gpusharing.agent.nvml_health import REFUSED, UNSUPPORTED
from gpusharing.agent.processes import Processes
from gpusharing.planning.words.values import value

_ALWAYS = (pynvml.nvmlDeviceGetComputeRunningProcesses,)
"""Exists for every card: a driver that does not support it says nothing about who computes."""
_WHERE_SUPPORTED = (
    pynvml.nvmlDeviceGetMPSComputeRunningProcesses,
    pynvml.nvmlDeviceGetGraphicsRunningProcesses,
)
"""A card or driver without it has no such clients."""


@value
class Listed:
    """A process on one of the lists."""

    process: Process
    """The process, or UNKNOWN_PROCESS."""
    memory: int | None = None
    """Bytes that it holds there; None when the driver does not report it."""


class ProcessLists:
    """Processes by pid; pid 0 stands for those that may not be listed."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def begin(self) -> None:
        """A new reading."""
        self._processes.begin()

    def of(self, handle: Any, device: str = "") -> list[Listed]:
        """The processes of a whole GPU, or of the MIG device with this UUID.

        A client of MPS is on two lists, as M+C in nvidia-smi, with the same memory: it counts once.
        """
        known: dict[int, int | None] = {UNKNOWN_PROCESS.pid: None} if self._processes.blind else {}
        for call in (*_ALWAYS, *_WHERE_SUPPORTED):
            try:
                for process in call(handle):
                    told, memory = process.usedGpuMemory, known.get(process.pid)
                    known[process.pid] = told if memory is None else max(memory, told or 0)
            except pynvml.NVMLError as error:
                if error.value not in (REFUSED, *UNSUPPORTED):
                    raise
                if error.value == REFUSED or call in _ALWAYS:
                    known[UNKNOWN_PROCESS.pid] = None
        return [
            Listed(self._processes.of(pid, device, _reported), memory)
            for pid, memory in sorted(known.items())
        ]

    def unseen(self, *, hidden: bool) -> list[Listed]:
        """Processes that may be on a divided GPU without being on a list of its MIG devices; `hidden`: some may be."""
        return [Listed(self._processes.of(0))] if hidden or self._processes.blind else []

    def pod_of(self, pid: int) -> PodID | None:
        """See Processes."""
        return self._processes.pod_of(pid)


def _reported(pid: int) -> str:
    """What NVML calls a process: a word that the process chose itself."""
    try:
        name: str = pynvml.nvmlSystemGetProcessName(pid)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return ""
    return name
