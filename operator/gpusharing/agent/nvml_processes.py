"""Which processes use a GPU, as NVML lists them. Part of `nvml.py`.

Three lists: compute, clients of MPS, graphics. Whatever of them may not be seen counts as busy
(docs/design/hardware.md#processes, docs/design/transition.md#idle).
"""

from collections.abc import Collection, Iterable
from typing import Any

import pynvml

from gpusharing.agent.library import UNKNOWN_PROCESS, PodID
from gpusharing.agent.nvml_health import REFUSED, UNSUPPORTED
from gpusharing.agent.processes import Processes
from gpusharing.api.gpunode import Process
from gpusharing.planning.vocabulary.values import value

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
        """The processes of a whole GPU, or of the MIG device with this UUID."""
        return self._listed(handle, device, required=_ALWAYS, hidden=False)

    def beside(self, handle: Any, lists: Iterable[Iterable[Listed]], *, hidden: bool) -> list[Listed]:
        """Return the processes of a GPU with MIG on that are on none of the `lists` of its MIG devices.

        With `hidden`, there may be others that no call lists. A driver that lists none for the whole GPU says nothing
        against the lists of its MIG devices.
        """
        known = {each.process.pid for listed in lists for each in listed} - {UNKNOWN_PROCESS.pid}
        found = self._listed(handle, "", required=(), hidden=hidden)
        return [each for each in found if each.process.pid not in known]

    def _listed(self, handle: Any, device: str, *, required: Collection[Any], hidden: bool) -> list[Listed]:
        """The processes on all lists, with UNKNOWN_PROCESS if there may be more, as without one of the `required`.

        A client of MPS is on two lists, as M+C in nvidia-smi, with the same memory: it counts once.
        """
        known: dict[int, int | None] = {UNKNOWN_PROCESS.pid: None} if hidden or self._processes.blind else {}
        for call in (*_ALWAYS, *_WHERE_SUPPORTED):
            try:
                _add(known, call(handle))
            except pynvml.NVMLError as error:
                if error.value not in (REFUSED, *UNSUPPORTED):
                    raise
                if error.value == REFUSED or call in required:
                    known[UNKNOWN_PROCESS.pid] = None
        return [
            Listed(self._processes.of(pid, device, _reported), memory)
            for pid, memory in sorted(known.items())
        ]

    def pod_of(self, pid: int) -> PodID | None:
        """See Processes."""
        return self._processes.pod_of(pid)


def _add(known: dict[int, int | None], processes: Iterable[Any]) -> None:
    """Add the processes of one list to the memory by pid; None is memory that the driver does not report."""
    for process in processes:
        told, memory = process.usedGpuMemory, known.get(process.pid)
        known[process.pid] = told if memory is None else max(memory, told or 0)


def _reported(pid: int) -> str:
    """What NVML calls a process: a word that the process chose itself."""
    try:
        name: str = pynvml.nvmlSystemGetProcessName(pid)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return ""
    return name
