"""What NVML reports about a GPU's health, and how to call what may not be supported or permitted. Part of `nvml.py`.

Calls and their traps: docs/design/hardware.md#nvml, nvml.h of NVML 13.3 and NVIDIA's reference for it.
"""

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pynvml

from gpusharing.api.gpunode import RecoveryAction, RemappedRows

_MOST_EVENTS = 256  # the most that one reading takes
_REMAPPED_FIELDS = (
    pynvml.NVML_FI_DEV_REMAPPED_COR,
    pynvml.NVML_FI_DEV_REMAPPED_UNC,
    pynvml.NVML_FI_DEV_REMAPPED_PENDING,
    pynvml.NVML_FI_DEV_REMAPPED_FAILURE,
)
# nvmlDeviceGpuRecoveryAction_t (docs/design/hardware.md#recovery-action); a number that is newer than this
# table is Unknown, which is not healthy.
_RECOVERY: dict[int, RecoveryAction] = {
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
    """Return the result of `call`, or `otherwise` if the card or driver does not support it. Raises other errors, such as a refusal."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in UNSUPPORTED:
            return otherwise
        raise


def maybe(otherwise: Any, call: Any, *arguments: Any) -> Any:
    """Like `supported`, but also `otherwise` if the call is not permitted. Only for values on which no decision depends."""
    try:
        return supported(otherwise, call, *arguments)
    except pynvml.NVMLError as error:
        if error.value == REFUSED:
            return otherwise
        raise


def fields(handle: Any, *numbers: int) -> tuple[int, ...] | None:
    """Return the unsigned values of NVML fields, or None if the call, or any of the fields, is not supported or permitted."""
    # Each number is paired with a scope: pynvml tries that form first, and raises and catches an error for a bare
    # number.
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


def recovery_action(handle: Any) -> RecoveryAction | None:
    """Return the recovery action that the driver requests, or None if it does not report it, as before R565."""
    values = fields(handle, pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)
    return None if values is None else _RECOVERY.get(values[0], "Unknown")


def remapped_rows(handle: Any) -> RemappedRows | None:
    """Return the remapped rows of a GPU. NVML's call for them is not supported while MIG instances are active (docs/design/hardware.md#remapped-rows), but the fields 142 to 145 are."""
    rows = maybe(None, pynvml.nvmlDeviceGetRemappedRows, handle) or fields(handle, *_REMAPPED_FIELDS)
    if rows is None:
        return None
    correctable, uncorrectable, pending, failed = rows
    return RemappedRows(
        correctable=correctable, uncorrectable=uncorrectable, pending=bool(pending), failed=bool(failed)
    )


class Xids:
    """Collects the XIDs that arrive inside its `with` block, including those that the reading itself provokes (79, 119).

    An event set receives nothing from before it was created (docs/design/hardware.md#events), and NVML is closed between readings (docs/design/transition.md#quiet), so other XIDs are known only by their consequences. An error here does not fail the reading, because XIDs are only additional information.
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
        """Subscribe to the XIDs of this GPU from now on."""
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
