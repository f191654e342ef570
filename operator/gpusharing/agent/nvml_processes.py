"""The processes that use a GPU, as NVML lists them. Part of `nvml.py`.

NVML has three lists: compute, clients of MPS, graphics. A list that may not be read counts as busy
(docs/design/hardware.md#processes, docs/design/transition.md#idle).
"""

from collections.abc import Collection, Iterable
from typing import Any

import pynvml

from gpusharing.agent.library import UNKNOWN_PROCESS
from gpusharing.agent.nvml_health import REFUSED, UNSUPPORTED
from gpusharing.agent.processes import Processes
from gpusharing.api.gpunode import Process
from gpusharing.planning.vocabulary.values import value

_ALWAYS = (pynvml.nvmlDeviceGetComputeRunningProcesses,)
"""Calls that every card supports. If one fails, it is unknown which processes compute."""
_WHERE_SUPPORTED = (
    pynvml.nvmlDeviceGetMPSComputeRunningProcesses,
    pynvml.nvmlDeviceGetGraphicsRunningProcesses,
)
"""Calls that some cards or drivers do not support; these have no such clients."""


@value
class Listed:
    """A process on one of NVML's lists."""

    process: Process
    """The process, or UNKNOWN_PROCESS."""
    memory: int | None = None
    """Bytes of memory that it uses there; None when the driver does not report it."""


class ProcessLists:
    """Reads NVML's lists of processes. Pid 0 stands for processes that cannot be listed."""

    def __init__(self, processes: Processes) -> None:
        """`processes` finds the name and the pod of each pid."""
        self._processes = processes

    def of(self, handle: Any, device: str = "") -> list[Listed]:
        """Return the processes of a whole GPU, or of the MIG device with the UUID `device`. UNKNOWN_PROCESS is
        included if the driver shows the agent no other process, if a list is refused, or if the list of compute
        processes is not supported. Other errors of NVML are raised."""
        return self._listed(handle, device, required=_ALWAYS, hidden=False)

    def beside(self, handle: Any, lists: Iterable[Iterable[Listed]], *, hidden: bool) -> list[Listed]:
        """Return the processes of a GPU with MIG on that are not in `lists`, the processes of its MIG devices, sorted
        by pid. UNKNOWN_PROCESS is included if `hidden` (there may be processes that no call lists), if the driver shows
        the agent no other process, or if a list is refused. Other errors of NVML are raised.

        An empty list for the whole GPU does not contradict the lists of its MIG devices. A list that is not supported
        counts as empty.
        """
        known = {each.process.pid for listed in lists for each in listed} - {UNKNOWN_PROCESS.pid}
        listed = self._listed(handle, "", required=(), hidden=hidden)
        return [each for each in listed if each.process.pid not in known]

    def _listed(self, handle: Any, device: str, *, required: Collection[Any], hidden: bool) -> list[Listed]:
        """Return the processes in all of NVML's lists for this handle, sorted by pid. UNKNOWN_PROCESS is included if
        there may be more: if `hidden`, if the driver shows the agent no other process (`Processes.blind`), if a
        list is refused or not in this driver, or if one of the `required` lists is not supported. Other errors of NVML
        are raised.

        A client of MPS is in two lists, shown as M+C by nvidia-smi, with the same memory, and counts once.
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
            except pynvml.NVMLLibraryMismatchError:
                # The driver is older than this version of the list (R510), so the GPU may have such processes.
                known[UNKNOWN_PROCESS.pid] = None
        return [
            Listed(self._processes.of(pid, device, _reported_name), memory)
            for pid, memory in sorted(known.items())
        ]


def _add(known: dict[int, int | None], processes: Iterable[Any]) -> None:
    """Add the processes of one of NVML's lists to `known`, which maps each pid to its bytes of memory, or to None if
    the driver does not report them. For a process that is already there, the higher number is kept."""
    for process in processes:
        reported, memory = process.usedGpuMemory, known.get(process.pid)
        known[process.pid] = reported if memory is None else max(memory, reported or 0)


def _reported_name(pid: int) -> str:
    """Return the command line that NVML reports for a process, which the process itself may have chosen. Empty for any
    error of NVML, and if the name is not UTF-8."""
    try:
        name: str = pynvml.nvmlSystemGetProcessName(pid)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return ""
    return name
