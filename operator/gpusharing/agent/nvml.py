"""NVML behind the Library Protocol. Only this module and `nvml_health.py` import pynvml.

Calls and their traps: reference/hardware-facts.md (g), NVIDIA's NVML API reference, nvml.h.
"""

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import pynvml

from gpusharing.agent.library import (
    GPU,
    Access,
    ComputeMode,
    Instance,
    LibraryError,
    MigMode,
    Model,
    NotLoaded,
    Process,
    Profile,
    Reading,
    unreachable,
)
from gpusharing.agent.nvml_health import (
    UNSUPPORTED,
    Xids,
    ecc_uncorrected,
    fields,
    maybe,
    recovery_action,
    remapped_rows,
)
from gpusharing.agent.processes import ProcessNames

_PROFILE_ENUM = range(18)  # NVML_GPU_INSTANCE_PROFILE_COUNT; a driver stops it earlier with INVALID_ARGUMENT
_CAPACITY = 64  # more placements or instances of one profile than any card has
_MOST_PROCESSES = 1024  # what the CRD takes; the first ones suffice to say that a GPU is busy
_MIB = 1024 * 1024

_COMPUTE_MODES: dict[int, ComputeMode] = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "Default",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "Prohibited",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "ExclusiveProcess",
}
# What is so of one GPU is told of that GPU; the others are read all the same.
_UNREACHABLE: dict[int, Access] = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "Lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "ResetRequired",
}
_NOT_LOADED = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "libnvidia-ml.so.1 is not in the agent's container; give the agent the runtime class `nvidia` with "
        "NVIDIA_VISIBLE_DEVICES=all and NVIDIA_DRIVER_CAPABILITIES=utility"
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the NVIDIA driver is not loaded on this node; look at the driver pod of the GPU Operator"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the driver was replaced under the running agent; delete this agent pod"
    ),
}
_WHAT_TO_DO = {
    pynvml.NVML_ERROR_NO_PERMISSION: "the agent's container may not open the NVIDIA devices",
}


class NVML:
    """The real GPUs of this node."""

    simulated = False

    def __init__(self, names: ProcessNames | None = None) -> None:
        self._names = names or ProcessNames()
        self._xids: dict[int, int] = {}
        """GPU index to the first critical XID heard. NVML keeps none; the driver's recovery action does."""

    def read(self) -> Reading:
        """See Library.read."""
        try:
            with _session():
                return self._read()
        except pynvml.NVMLError as error:
            raise _explained("NVML", error) from error

    def _read(self) -> Reading:
        models: dict[str, Model] = {}
        gpus = []
        with Xids() as xids:
            for index in range(pynvml.nvmlDeviceGetCount()):
                try:
                    gpus.append(self._gpu_at(index, models, xids))
                except pynvml.NVMLError as error:
                    if error.value not in _UNREACHABLE:
                        raise _explained(f"GPU {index}", error) from error
                    gpus.append(unreachable(index, _UNREACHABLE[error.value]))
            for index, xid in xids.heard():
                self._xids.setdefault(index, xid)
        told = tuple(replace(gpu, xid=self._xids.get(gpu.index)) for gpu in gpus)
        return Reading(pynvml.nvmlSystemGetDriverVersion(), tuple(models.values()), told)

    def _gpu_at(self, index: int, models: dict[str, Model], xids: "Xids") -> GPU:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        xids.listen(index, handle)
        product = pynvml.nvmlDeviceGetName(handle)
        known = models.get(product)
        # Some drivers list no profiles while MIG is off: another GPU of this model may tell.
        if known is None or (known.mig_capable and not known.profiles):
            models[product] = _model(handle, product)
        return self._gpu(handle, index, models[product])

    def _gpu(self, handle: Any, index: int, model: Model) -> GPU:
        current, pending = _mig_mode(handle)
        migs = tuple(_mig_devices(handle)) if current == "Enabled" else ()
        if current == "Enabled":
            processes = [process for mig, uuid in migs for process in self._processes(mig, uuid)]
        else:
            processes = self._processes(handle, "")
        mode = maybe(None, pynvml.nvmlDeviceGetComputeMode, handle)
        return GPU(
            index=index,
            uuid=_uuid(handle),
            product=model.product,
            mig_mode=current,
            mig_mode_pending=pending,
            compute_mode=_COMPUTE_MODES.get(mode, "NotSupported"),
            instances=_instances(handle, model.profiles, migs) if current == "Enabled" else (),
            processes=tuple(processes[:_MOST_PROCESSES]),
            ecc_uncorrected=ecc_uncorrected(handle),
            remapped_rows=remapped_rows(handle),
            recovery_action=recovery_action(handle),
        )

    def _processes(self, handle: Any, device: str) -> list[Process]:
        """Compute processes by pid, MPS clients included; pid 0 stands for "may not look", which is busy."""
        pids: set[int] = set()
        for call in (
            pynvml.nvmlDeviceGetComputeRunningProcesses,
            pynvml.nvmlDeviceGetMPSComputeRunningProcesses,
        ):
            try:
                pids.update(process.pid for process in maybe((), call, handle))
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_NO_PERMISSION:
                    raise
                pids.add(0)
        return [Process(pid=pid, name=self._name(pid), device=device) for pid in sorted(pids)]

    def _name(self, pid: int) -> str:
        try:
            reported = pynvml.nvmlSystemGetProcessName(pid)
        except (pynvml.NVMLError, UnicodeDecodeError):
            reported = ""
        return self._names.of(pid, reported)


def _explained(where: str, error: Any) -> LibraryError:
    if error.value in _NOT_LOADED:
        return NotLoaded(_NOT_LOADED[error.value])
    advice = _WHAT_TO_DO.get(error.value, "see `dmesg | grep -i nvrm` on the node")
    return LibraryError(f"{where}: {error}; {advice}")


@contextmanager
def _session() -> Iterator[None]:
    """NVML open for the length of the block. A failing shutdown is an error: the devices may still be held."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _uuid(handle: Any) -> str:
    uuid: str = pynvml.nvmlDeviceGetUUID(handle)
    return uuid


def _mig_mode(handle: Any) -> tuple[MigMode, MigMode]:
    """Mode in force and mode after the next reset."""
    modes = maybe(None, pynvml.nvmlDeviceGetMigMode, handle)
    if modes is None:
        return "NotSupported", "NotSupported"
    current, pending = modes
    return ("Enabled" if current else "Disabled"), ("Enabled" if pending else "Disabled")


def _model(handle: Any, product: str) -> Model:
    memory = maybe(None, pynvml.nvmlDeviceGetMemoryInfo, handle)
    capability = maybe((), pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    mig_capable = _mig_mode(handle)[0] != "NotSupported"
    live = fields(handle, pynvml.NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED) if mig_capable else None
    return Model(
        product=product,
        memory_mib=memory.total // _MIB if memory else 0,
        compute_capability=".".join(map(str, capability)),
        mig_capable=mig_capable,
        mig_mode_change="Unknown" if live is None else "Live" if live[0] else "Reset",
        profiles=tuple(_profiles(handle)) if mig_capable else (),
    )


def _profiles(handle: Any) -> Iterator[Profile]:
    """Profiles are asked for by their enum index and known by their id, which differs between cards."""
    for enum in _PROFILE_ENUM:
        try:
            info = maybe(None, pynvml.nvmlDeviceGetGpuInstanceProfileInfo, handle, enum)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_INVALID_ARGUMENT:
                return  # this driver knows no further ones
            raise
        if info is None:
            continue
        placements = _placements(handle, info.id)
        name = info.name.removeprefix("MIG ")
        yield Profile(
            name=name,
            id=info.id,
            slices=info.sliceCount,
            memory_gb=_nominal_gb(name),
            max_count=info.instanceCount,
            starts=tuple(sorted(placement.start for placement in placements)),
            size=placements[0].size if placements else 0,
        )


def _nominal_gb(profile: str) -> int:
    match = re.search(r"\.(\d+)gb", profile)
    return int(match[1]) if match else 0


def _placements(handle: Any, profile_id: int) -> list[Any]:
    """Possible placements; none where listing them is not supported or not allowed."""
    found = (pynvml.c_nvmlGpuInstancePlacement_t * _CAPACITY)()
    count = ctypes.c_uint(_CAPACITY)
    try:
        pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile_id, found, ctypes.byref(count))
    except pynvml.NVMLError as error:
        if error.value in (*UNSUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION):
            return []
        raise
    return list(found[: count.value])


_MigDevice: TypeAlias = tuple[Any, str]  # handle and UUID


def _mig_devices(handle: Any) -> Iterator[_MigDevice]:
    """The MIG devices of a GPU; their indices have gaps and no stable order."""
    for index in range(maybe(0, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle)):
        try:
            mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            yield mig, _uuid(mig)
        except pynvml.NVMLError as error:
            if error.value not in (*UNSUPPORTED, pynvml.NVML_ERROR_NOT_FOUND):
                raise


def _instances(handle: Any, profiles: Sequence[Profile], migs: Sequence[_MigDevice]) -> tuple[Instance, ...]:
    """GPU instances by placement; without the right to list them (mig/config), what the MIG devices tell."""
    uuids: dict[int, str] = {}
    for mig, uuid in migs:  # several compute instances of one GPU instance: the first stands for it
        uuids.setdefault(pynvml.nvmlDeviceGetGpuInstanceId(mig), uuid)
    try:
        found = [_instance(info, p, uuids) for p in profiles for info in _instance_infos(handle, p.id)]
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_NO_PERMISSION:
            raise
        found = list(
            {i.id: i for i in (_instance_of_device(mig, profiles) for mig in reversed(migs))}.values()
        )
    return tuple(sorted(found, key=lambda instance: (instance.start, instance.id)))


def _instance_infos(handle: Any, profile_id: int) -> list[Any]:
    found = (pynvml.c_nvmlGpuInstance_t * _CAPACITY)()
    count = ctypes.c_uint(_CAPACITY)
    maybe(None, pynvml.nvmlDeviceGetGpuInstances, handle, profile_id, found, ctypes.byref(count))
    return [pynvml.nvmlGpuInstanceGetInfo(instance) for instance in found[: count.value] if instance]


def _instance(info: Any, profile: Profile, uuids: dict[int, str]) -> Instance:
    place = info.placement
    uuid = uuids.get(info.id, "")
    return Instance(profile=profile.name, start=place.start, size=place.size, id=info.id, uuid=uuid)


def _instance_of_device(device: _MigDevice, profiles: Sequence[Profile]) -> Instance:
    """Profile from the device's name ("... MIG 1c.3g.40gb"), else from its attributes; no placement."""
    mig, uuid = device
    name = pynvml.nvmlDeviceGetName(mig).rpartition(" MIG ")[2]
    name = re.sub(r"^\d+c\.", "", name)
    profile = next((profile for profile in profiles if profile.name == name), None)
    if profile is None:
        attributes = pynvml.nvmlDeviceGetAttributes(mig)
        alike = [p for p in profiles if p.slices == attributes.gpuInstanceSliceCount]
        # The usable memory is below the nominal one of the name, never above it.
        profile = min(alike, key=lambda p: abs(p.memory_gb - attributes.memorySizeMB / 1024), default=None)
    return Instance(
        profile=profile.name if profile else "",
        start=-1,
        size=profile.size if profile else 0,
        id=pynvml.nvmlDeviceGetGpuInstanceId(mig),
        uuid=uuid,
    )
