"""Read one GPU through NVML: its compute mode, its health and the processes on it.

Calls and their traps: docs/design/hardware.md#nvml, nvml.h of NVML 13.3 and NVIDIA's reference for it.
"""

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal, TypeAlias

import pynvml

from gpusharing.agent.library import UNKNOWN_PROCESS, Process
from gpusharing.agent.processes import Processes
from gpusharing.api.gpunode import ComputeMode, RecoveryAction

_MOST_EVENTS = 256  # the most that one reading takes
_REMAPPED_FIELDS = (
    pynvml.NVML_FI_DEV_REMAPPED_COR,
    pynvml.NVML_FI_DEV_REMAPPED_UNC,
    pynvml.NVML_FI_DEV_REMAPPED_PENDING,
    pynvml.NVML_FI_DEV_REMAPPED_FAILURE,
)
_COMPUTE_MODES: dict[int, ComputeMode] = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "Default",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "Prohibited",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "ExclusiveProcess",
}
# nvmlDeviceGpuRecoveryAction_t (docs/design/hardware.md#recovery-action); a number that is newer than this
# table is Unknown, which is not healthy.
_RECOVERY: dict[int, RecoveryAction | Literal["None"]] = {
    pynvml.NVML_GPU_RECOVERY_ACTION_NONE: "None",
    pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: "Reset",
    pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: "Reboot",
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P: "DrainP2P",
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: "DrainAndReset",
    pynvml.NVML_GPU_RECOVERY_ACTION_RECOVER_IMEX_DOMAIN: "RecoverIMEX",
    pynvml.NVML_GPU_RECOVERY_ACTION_BUS_RESET: "BusReset",
    pynvml.NVML_GPU_RECOVERY_ACTION_SYSTEM_REBOOT: "SystemReboot",
}
# These errors mean that the call, or this version of it, does not exist for this card or driver.
UNSUPPORTED = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
)
REFUSED = pynvml.NVML_ERROR_NO_PERMISSION


def supported(otherwise: Any, call: Any, *arguments: Any) -> Any:
    """Return the result of `call`, or `otherwise` if the card or driver does not support it. A refusal is raised."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in UNSUPPORTED:
            return otherwise
        raise


def maybe(otherwise: Any, call: Any, *arguments: Any) -> Any:
    """Return `otherwise` also if the call is refused. Only for values on which no decision depends."""
    try:
        return supported(otherwise, call, *arguments)
    except pynvml.NVMLError as error:
        if error.value == REFUSED:
            return otherwise
        raise


def fields(handle: Any, *numbers: int) -> tuple[int, ...] | None:
    """Return the unsigned values of NVML fields, or None if any of them is not supported or permitted."""
    # Each number is paired with a scope, because pynvml raises and catches an error for a bare number.
    scoped = [(number, 0) for number in numbers]
    values = maybe(None, pynvml.nvmlDeviceGetFieldValues, handle, scoped)
    if values is None or any(value.nvmlReturn != pynvml.NVML_SUCCESS for value in values):
        return None
    return tuple(value.value.uiVal for value in values)


def ecc_uncorrected(handle: Any) -> int | None:
    """Return the number of uncorrected ECC errors since the driver was loaded (nvml.h, NVML_VOLATILE_ECC)."""
    kind, since_load = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    errors: int | None = maybe(None, pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, since_load)
    return errors


def recovery_action(handle: Any) -> RecoveryAction | Literal["None"] | None:
    """Return the recovery action that the driver requests; drivers before R565 report none."""
    values = fields(handle, pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)
    return None if values is None else _RECOVERY.get(values[0], "Unknown")


def remapped_rows(handle: Any) -> tuple[bool, bool] | None:
    # NVML's call is not supported while MIG instances are active (docs/design/hardware.md#remapped-rows).
    rows = maybe(None, pynvml.nvmlDeviceGetRemappedRows, handle) or fields(handle, *_REMAPPED_FIELDS)
    # The numbers of corrected and uncorrected rows, and whether a remapping is pending and has failed.
    return None if rows is None else (bool(rows[2]), bool(rows[3]))


def compute_mode(handle: Any) -> ComputeMode:
    """Return the CUDA compute mode; Unknown if the agent may not read it."""
    try:
        mode = supported(None, pynvml.nvmlDeviceGetComputeMode, handle)
    except pynvml.NVMLError as error:
        if error.value != REFUSED:
            raise
        return "Unknown"
    return "NotSupported" if mode is None else _COMPUTE_MODES.get(mode, "Unknown")


class Xids:
    """Collects the XIDs that arrive in its `with` block, also those that the reading provokes (79, 119).

    An event set receives nothing from before it was created (docs/design/hardware.md#events), and NVML is closed
    between readings. An error here does not fail the reading.
    """

    def __init__(self) -> None:
        self._set: Any = None
        self._gpus: dict[int, int] = {}
        """Index of each subscribed GPU, by the address of its handle."""

    def __enter__(self) -> "Xids":
        with suppress(pynvml.NVMLError):
            self._set = pynvml.nvmlEventSetCreate()
        return self

    def __exit__(self, *_: object) -> None:
        if self._set is not None:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._set)

    def listen(self, index: int, handle: Any) -> None:
        if self._set is None:
            return
        with suppress(pynvml.NVMLError):
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._set)
            self._gpus[ctypes.addressof(handle.contents)] = index

    def heard(self) -> Iterator[tuple[int, int]]:
        """Yield the GPU index and the XID of each event that has arrived so far, without waiting."""
        with suppress(pynvml.NVMLError):  # a time-out: there are no more
            for _ in range(_MOST_EVENTS if self._gpus else 0):
                event = pynvml.nvmlEventSetWait_v2(self._set, 0)
                index = self._gpus.get(ctypes.addressof(event.device.contents))
                if index is not None:
                    yield index, int(event.eventData)


ListedProcess: TypeAlias = tuple[Process, int | None]
"""A process on a list of NVML, with the bytes of memory that it uses there; None if not reported."""

_ALWAYS = pynvml.nvmlDeviceGetComputeRunningProcesses  # without this list, it is unknown which processes compute
_WHERE_SUPPORTED = (pynvml.nvmlDeviceGetMPSComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses)
"""A device that does not support these lists has no such clients that are on no other (docs/design/hardware.md#lists)."""


def list_processes(
    processes: Processes, handle: Any, device: str = "", *, required: bool = True, hidden: bool = False
) -> list[ListedProcess]:
    """Return the processes of a GPU or of the MIG device `device`, with UNKNOWN_PROCESS if there may be more.

    There may be if some are `hidden`, or if the list of those that compute is `required` and not given.
    """
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
            # Only NOT_SUPPORTED is about the device; the others say that this driver lists in another form.
            if error.value != pynvml.NVML_ERROR_NOT_SUPPORTED or (required and call is _ALWAYS):
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
