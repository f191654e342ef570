"""The processes that use a GPU, as NVML lists them. Part of `nvml.py`.

NVML has three lists: compute, clients of MPS, graphics. A list that may not be read counts as busy
(docs/design/hardware.md#processes, docs/design/transition.md#idle).
"""

from collections.abc import Iterable
from typing import Any, TypeAlias

import pynvml

from gpusharing.agent.library import UNKNOWN_PROCESS
from gpusharing.agent.nvml_health import REFUSED, UNSUPPORTED
from gpusharing.agent.processes import Processes
from gpusharing.api.gpunode import Process

ListedProcess: TypeAlias = tuple[Process, int | None]
"""A process on one of NVML's lists, with the bytes of memory that it uses there; None when the driver does not report it."""

_ALWAYS = (
    pynvml.nvmlDeviceGetComputeRunningProcesses
)  # without this list, it is unknown which processes compute
_WHERE_SUPPORTED = (
    pynvml.nvmlDeviceGetMPSComputeRunningProcesses,
    pynvml.nvmlDeviceGetGraphicsRunningProcesses,
)
"""Cards or drivers without these lists have no such clients."""


def list_processes(processes: Processes, handle: Any, device: str = "") -> list[ListedProcess]:
    """Return the processes of a whole GPU, or of the MIG device with the UUID `device`.

    UNKNOWN_PROCESS is included if there may be more.
    """
    return _list(processes, handle, device, required=True, hidden=False)


def list_rest(
    processes: Processes, handle: Any, listed: Iterable[ListedProcess], *, hidden: bool
) -> list[ListedProcess]:
    """Return the processes of a GPU with MIG on that are not `listed` for its MIG devices.

    UNKNOWN_PROCESS is included if there may be more, as with `hidden`. An empty list for the whole GPU does not contradict the lists of its MIG devices.
    """
    known = {process.pid for process, _ in listed} - {UNKNOWN_PROCESS.pid}
    found = _list(processes, handle, "", required=False, hidden=hidden)
    return [each for each in found if each[0].pid not in known]


def _list(
    processes: Processes, handle: Any, device: str, *, required: bool, hidden: bool
) -> list[ListedProcess]:
    known: dict[int, int | None] = {UNKNOWN_PROCESS.pid: None} if hidden or processes.blind else {}
    for call in (_ALWAYS, *_WHERE_SUPPORTED):
        try:
            # A client of MPS is in two lists, shown as M+C by nvidia-smi, with the same memory, and counts once.
            for process in call(handle):
                reported, memory = process.usedGpuMemory, known.get(process.pid)
                known[process.pid] = reported if memory is None else max(memory, reported or 0)
        except pynvml.NVMLError as error:
            if error.value not in (REFUSED, *UNSUPPORTED):
                raise
            if error.value == REFUSED or (required and call is _ALWAYS):
                known[UNKNOWN_PROCESS.pid] = None
        except pynvml.NVMLLibraryMismatchError:
            # The driver is older than this version of the list (R510), so the GPU may have such processes.
            known[UNKNOWN_PROCESS.pid] = None
    return [(processes.of(pid, device, _reported_name), memory) for pid, memory in sorted(known.items())]


def _reported_name(pid: int) -> str:
    try:
        name: str = pynvml.nvmlSystemGetProcessName(pid)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return ""
    return name
