"""Read one GPU through NVML: its health, its MIG devices and the processes on it.

Calls and their traps: docs/design/hardware.md#nvml, nvml.h of NVML 13.3 and NVIDIA's reference for it.
"""

import ctypes
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import pynvml

from gpusharing.agent.library import UNKNOWN_PROCESS
from gpusharing.agent.processes import Processes
from gpusharing.api.gpunode import DriverProfile, Instance, Process, RecoveryAction, RemappedRows

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
    """Return the result of `call`, or `otherwise` if the card or driver does not support it.

    Raises other errors, such as a refusal.
    """
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in UNSUPPORTED:
            return otherwise
        raise


def maybe(otherwise: Any, call: Any, *arguments: Any) -> Any:
    """Return the same as `supported`, but also `otherwise` if the call is not permitted.

    It is only for values on which no decision depends.
    """
    try:
        return supported(otherwise, call, *arguments)
    except pynvml.NVMLError as error:
        if error.value == REFUSED:
            return otherwise
        raise


def fields(handle: Any, *numbers: int) -> tuple[int, ...] | None:
    """Return the unsigned values of NVML fields.

    None if the call, or any of the fields, is not supported or permitted.
    """
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
    """Return the recovery action that the driver requests; None if it reports none, as before R565."""
    values = fields(handle, pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)
    return None if values is None else _RECOVERY.get(values[0], "Unknown")


def remapped_rows(handle: Any) -> RemappedRows | None:
    """Return the remapped rows of a GPU.

    NVML's call for them is not supported while MIG instances are active (docs/design/hardware.md#remapped-rows), but
    the fields 142 to 145 are.
    """
    rows = maybe(None, pynvml.nvmlDeviceGetRemappedRows, handle) or fields(handle, *_REMAPPED_FIELDS)
    if rows is None:
        return None
    correctable, uncorrectable, pending, failed = rows
    return RemappedRows(
        correctable=correctable, uncorrectable=uncorrectable, pending=bool(pending), failed=bool(failed)
    )


class Xids:
    """Collects the XIDs that arrive in its `with` block, also those that the reading provokes (79, 119).

    An event set receives nothing from before it was created (docs/design/hardware.md#events), and NVML is closed
    between readings (docs/design/transition.md#quiet), so other XIDs are known only by their consequences. An error
    here does not fail the reading, because XIDs are only additional information.
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


_PROFILE_ENUM = range(18)  # NVML_GPU_INSTANCE_PROFILE_COUNT; a driver stops it earlier with INVALID_ARGUMENT
_COMPUTE_PROFILE_ENUM = range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT)
_SHARED_ENGINES = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
_CAPACITY = 64  # more placements or instances of one profile than any card has

MigDevice: TypeAlias = tuple[Any, str]
"""Handle and UUID of a MIG device."""


def mig_profiles(handle: Any) -> tuple[tuple[DriverProfile, ...], bool]:
    """Return the profiles of a card, and whether NVML refuses to list the placements of any of them.

    Profiles are requested by enum index and identified by their id, which differs between cards
    (docs/design/hardware.md#nvml-profiles). One without listed placements has no starts and the size 0.
    """
    profiles: list[DriverProfile] = []
    withheld = False
    for info in _infos(partial(maybe, None, pynvml.nvmlDeviceGetGpuInstanceProfileInfo, handle), _PROFILE_ENUM):
        buffer = (pynvml.c_nvmlGpuInstancePlacement_t * _CAPACITY)()
        count = ctypes.c_uint(_CAPACITY)
        try:
            pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, info.id, buffer, ctypes.byref(count))
        except pynvml.NVMLError as error:
            if error.value not in (REFUSED, *UNSUPPORTED):
                raise
            withheld = withheld or error.value == REFUSED
            count = ctypes.c_uint(0)
        placements = list(buffer[: count.value])
        name = info.name.removeprefix("MIG ")
        gigabytes = re.search(r"\.(\d+)gb", name)
        profiles.append(
            DriverProfile(
                name=name,
                id=info.id,
                slices=info.sliceCount,
                memory_gb=int(gigabytes[1]) if gigabytes else 0,
                max_count=info.instanceCount,
                starts=tuple(sorted(placement.start for placement in placements)),
                size=placements[0].size if placements else 0,
            )
        )
    return tuple(profiles), withheld


def _infos(ask: Callable[[int], Any], enum: range) -> Iterator[Any]:
    """Yield what NVML knows about each profile; `ask` returns None for one that the card does not support."""
    for number in enum:
        try:
            info = ask(number)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_INVALID_ARGUMENT:
                return  # this driver has no further profiles
            raise
        if info is not None:
            yield info


def mig_devices(handle: Any) -> Iterator[MigDevice]:
    """Yield the visible MIG devices of a GPU.

    Their indices have gaps and no stable order (docs/design/hardware.md#nvml-devices).
    """
    for index in range(maybe(0, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle)):
        try:
            mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            yield mig, pynvml.nvmlDeviceGetUUID(mig)
        except pynvml.NVMLError as error:
            if error.value not in (*UNSUPPORTED, REFUSED, pynvml.NVML_ERROR_NOT_FOUND):
                raise


def mig_instances(
    handle: Any, profiles: Sequence[DriverProfile], migs: Sequence[MigDevice]
) -> tuple[tuple[Instance, ...], bool, bool, tuple[Instance, ...]]:
    """Return the instances of a GPU with MIG on, sorted by start and id.

    They are those that NVML lists, and further ones that are known only from the visible MIG devices `migs`. Also
    whether NVML withholds some, whether processes may run on one without a visible MIG device, and the instance of each
    of `migs`.

    Listing instances and placements needs read access to mig/config, and a MIG device is visible to a process that may
    open it. So a container without rights sees some devices, none, or those of an earlier layout. What it cannot list
    is unknown. An instance without a compute instance, which a creation that failed midway leaves behind, hides no
    process.
    """
    listed = _list_all(handle, profiles)
    numbers = [pynvml.nvmlDeviceGetGpuInstanceId(mig) for mig, _ in migs]
    # A GPU instance may have several compute instances; the first one represents it.
    first = dict(reversed(list(zip(numbers, migs, strict=True))))
    known: dict[int, Instance] = {}
    for profile, _, info in listed or ():
        uuid, place = first[info.id][1] if info.id in first else "", info.placement
        known[info.id] = Instance(profile=profile.name, start=place.start, size=place.size, id=info.id, uuid=uuid)
    unlisted = {n: _instance_of_device(mig, profiles) for n, mig in first.items() if n not in known}
    known |= unlisted
    withheld = listed is None or bool(unlisted)
    hidden = withheld or any(info.id not in first and _may_compute(each) for _, each, info in listed or ())
    ordered = sorted(known.values(), key=lambda instance: (instance.start, instance.id))
    return tuple(ordered), withheld, hidden, tuple(known[number] for number in numbers)


def _list_all(handle: Any, profiles: Sequence[DriverProfile]) -> list[tuple[DriverProfile, Any, Any]] | None:
    """Return profile, handle and NVML's information of each instance, or None if NVML does not list them."""
    listed: list[tuple[DriverProfile, Any, Any]] = []
    try:
        for profile in profiles:
            found = (pynvml.c_nvmlGpuInstance_t * _CAPACITY)()
            count = ctypes.c_uint(_CAPACITY)
            pynvml.nvmlDeviceGetGpuInstances(handle, profile.id, found, ctypes.byref(count))
            present = [instance for instance in found[: count.value] if instance]
            listed += [(profile, each, pynvml.nvmlGpuInstanceGetInfo(each)) for each in present]
    except pynvml.NVMLError as error:
        if error.value not in (REFUSED, *UNSUPPORTED):
            raise
        return None
    return listed if profiles else None


def _may_compute(instance: Any) -> bool:
    """Whether a GPU instance has compute instances, or it cannot be known."""
    ask = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo
    try:
        infos = list(_infos(lambda enum: supported(None, ask, instance, enum, _SHARED_ENGINES), _COMPUTE_PROFILE_ENUM))
        for info in infos:
            found = (pynvml.c_nvmlComputeInstance_t * _CAPACITY)()
            count = ctypes.c_uint(_CAPACITY)
            pynvml.nvmlGpuInstanceGetComputeInstances(instance, info.id, found, ctypes.byref(count))
            if any(found[: count.value]):
                return True
    except pynvml.NVMLError:
        return True
    return not infos


def _instance_of_device(device: MigDevice, profiles: Sequence[DriverProfile]) -> Instance:
    """Return the GPU instance of a MIG device, without a placement: its start is -1."""
    mig, uuid = device
    name = maybe("", pynvml.nvmlDeviceGetName, mig).rpartition(" MIG ")[2]  # "... MIG 1c.3g.40gb"
    name = re.sub(r"^\d+c\.", "", name)
    profile = next((profile for profile in profiles if profile.name == name), None)
    if profile is None:
        attributes = maybe(None, pynvml.nvmlDeviceGetAttributes, mig)
        alike = [p for p in profiles if attributes and p.slices == attributes.gpuInstanceSliceCount]
        # The usable memory is less than the nominal memory in the name, never more.
        profile = min(alike, key=lambda p: abs(p.memory_gb - attributes.memorySizeMB / 1024), default=None)
    return Instance(
        profile=profile.name if profile else "",
        start=-1,
        size=profile.size if profile else 0,
        id=pynvml.nvmlDeviceGetGpuInstanceId(mig),
        uuid=uuid,
    )


ListedProcess: TypeAlias = tuple[Process, int | None]
"""A process on a list of NVML, with the bytes of memory that it uses there; None if not reported."""

_ALWAYS = pynvml.nvmlDeviceGetComputeRunningProcesses  # without this list, it is unknown which processes compute
_WHERE_SUPPORTED = (
    pynvml.nvmlDeviceGetMPSComputeRunningProcesses,
    pynvml.nvmlDeviceGetGraphicsRunningProcesses,
)
"""Cards or drivers without these lists have no such clients."""


def list_processes(processes: Processes, handle: Any, device: str = "") -> list[ListedProcess]:
    """Return the processes of a whole GPU, or of the MIG device with the UUID `device`.

    NVML has three lists: compute, clients of MPS, graphics. A list that may not be read counts as busy
    (docs/design/hardware.md#processes, docs/design/transition.md#idle): UNKNOWN_PROCESS is included if there may be
    more.
    """
    return _list(processes, handle, device, required=True, hidden=False)


def list_rest(
    processes: Processes, handle: Any, listed: Iterable[ListedProcess], *, hidden: bool
) -> list[ListedProcess]:
    """Return the processes of a GPU with MIG on that are not `listed` for its MIG devices.

    UNKNOWN_PROCESS is included if there may be more, as with `hidden`. An empty list for the whole GPU does not
    contradict the lists of its MIG devices.
    """
    known = {process.pid for process, _ in listed} - {UNKNOWN_PROCESS.pid}
    found = _list(processes, handle, "", required=False, hidden=hidden)
    return [each for each in found if each[0].pid not in known]


def _list(processes: Processes, handle: Any, device: str, *, required: bool, hidden: bool) -> list[ListedProcess]:
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
