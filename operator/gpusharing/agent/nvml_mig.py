"""Read the MIG profiles, devices and instances of one GPU through NVML (docs/design/hardware.md#nvml)."""

import ctypes
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import pynvml

from gpusharing.agent.library import Instance
from gpusharing.agent.nvml_devices import REFUSED, UNSUPPORTED, maybe, supported
from gpusharing.planning.gpus.cards import Profile

_PROFILE_ENUM = range(18)  # NVML_GPU_INSTANCE_PROFILE_COUNT; a driver stops it earlier with INVALID_ARGUMENT
_COMPUTE_PROFILE_ENUM = range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT)
_SHARED_ENGINES = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
_CAPACITY = 64  # more placements or instances of one profile than any card has

Device: TypeAlias = tuple[Any, str, Instance | None]
"""Handle and UUID of a device, and its instance if it is a MIG device."""


def mig_profiles(handle: Any) -> tuple[tuple[Profile, ...], bool]:
    """Return the profiles of a card (docs/design/hardware.md#nvml-profiles), and whether placements are withheld."""
    profiles: list[Profile] = []
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
            Profile(
                name=name,
                starts=tuple(sorted(placement.start for placement in placements)),
                size=placements[0].size if placements else 0,
                max_count=info.instanceCount,
                slices=info.sliceCount,
                memory_gb=int(gigabytes[1]) if gigabytes else 0,
                profile_id=info.id,
            )
        )
    return tuple(profiles), withheld


def _infos(ask: Callable[[int], Any], enum: range) -> Iterator[Any]:
    for number in enum:
        try:
            info = ask(number)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_INVALID_ARGUMENT:
                return  # this driver has no further profiles
            raise
        if info is not None:
            yield info


def _mig_devices(handle: Any) -> Iterator[tuple[Any, str]]:
    """Yield handle and UUID of each visible MIG device; indices have gaps (docs/design/hardware.md#nvml-devices)."""
    for index in range(maybe(0, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle)):
        try:
            mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            yield mig, pynvml.nvmlDeviceGetUUID(mig)
        except pynvml.NVMLError as error:
            if error.value not in (*UNSUPPORTED, REFUSED, pynvml.NVML_ERROR_NOT_FOUND):
                raise


def mig_instances(
    handle: Any, profiles: Sequence[Profile]
) -> tuple[tuple[Instance, ...], Sequence[Device], bool, bool]:
    """Return the instances of a GPU with MIG on: those that NVML lists, and those of the visible MIG devices.

    Also these devices, whether NVML withholds some instances or what is in them, and whether processes may run on one
    without a visible MIG device.

    Listing instances and placements needs read access to mig/config, and a MIG device is visible to a process that may
    open it. So a container without rights sees some devices, none, or those of an earlier layout. What it cannot list
    is unknown. An instance without a compute instance, which a creation that failed midway leaves behind, hides no
    process.
    """
    migs = tuple(_mig_devices(handle))
    listed = _list_all(handle, profiles)
    numbers = [pynvml.nvmlDeviceGetGpuInstanceId(mig) for mig, _ in migs]
    visible: dict[int, list[tuple[Any, str]]] = {}
    for number, mig in zip(numbers, migs, strict=True):
        visible.setdefault(number, []).append(mig)
    known: dict[int, Instance] = {}
    withheld = hidden = listed is None
    for profile, each, info in listed or ():
        present = visible.get(info.id, [])
        compute = [(_compute_slices(mig), uuid) for mig, uuid in present] or _list_compute(each)
        unknown = compute is None or any(slices is None for slices, _ in compute)
        withheld, hidden = withheld or unknown, hidden or unknown or bool(compute and not present)
        known[info.id] = Instance(
            profile=profile.name,
            start=info.placement.start,
            size=info.placement.size,
            id=info.id,
            uuid=present[0][1] if present else "",
            parts=None if compute is None or unknown else _parts(profile, compute),
        )
    for number in visible.keys() - known.keys():
        withheld = hidden = True
        mig, uuid = visible[number][0]
        known[number] = _instance_of_device(mig, uuid, profiles)
    ordered = sorted(known.values(), key=lambda instance: (instance.start, instance.id))
    devices = [(mig, uuid, known[number]) for (mig, uuid), number in zip(migs, numbers, strict=True)]
    return tuple(ordered), devices, withheld, hidden


Compute: TypeAlias = Sequence[tuple[int | None, str]]
"""Compute slices, None if unknown, and the UUID of the MIG device, empty if it cannot be seen, of compute instances."""


def _parts(profile: Profile, compute: Compute) -> tuple[tuple[str, str], ...] | None:
    if [slices for slices, _ in compute] == [profile.slices]:
        return None
    # As go-nvlib names them (v0.12.0 pkg/nvlib/device/mig_profile.go, MigProfileInfo.String).
    names = ((profile.name if n == profile.slices else f"{n}c.{profile.name}", uuid) for n, uuid in compute)
    return tuple(sorted(names))


def _compute_slices(mig: Any) -> int | None:
    attributes = maybe(None, pynvml.nvmlDeviceGetAttributes, mig)
    return None if attributes is None else int(attributes.computeInstanceSliceCount)


def _list_all(handle: Any, profiles: Sequence[Profile]) -> list[tuple[Profile, Any, Any]] | None:
    listed: list[tuple[Profile, Any, Any]] = []
    try:
        for profile in profiles:
            found = (pynvml.c_nvmlGpuInstance_t * _CAPACITY)()
            count = ctypes.c_uint(_CAPACITY)
            pynvml.nvmlDeviceGetGpuInstances(handle, profile.profile_id, found, ctypes.byref(count))
            present = [instance for instance in found[: count.value] if instance]
            listed += [(profile, each, pynvml.nvmlGpuInstanceGetInfo(each)) for each in present]
    except pynvml.NVMLError as error:
        if error.value not in (REFUSED, *UNSUPPORTED):
            raise
        return None
    return listed if profiles else None


def _list_compute(instance: Any) -> Compute | None:
    """Return the compute instances of a GPU instance without a visible MIG device, or None if they cannot be known."""
    ask = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo
    compute: list[tuple[int | None, str]] = []
    try:
        infos = list(_infos(lambda enum: supported(None, ask, instance, enum, _SHARED_ENGINES), _COMPUTE_PROFILE_ENUM))
        for info in infos:
            found = (pynvml.c_nvmlComputeInstance_t * _CAPACITY)()
            count = ctypes.c_uint(_CAPACITY)
            pynvml.nvmlGpuInstanceGetComputeInstances(instance, info.id, found, ctypes.byref(count))
            compute += [(info.sliceCount, "") for one in found[: count.value] if one]
    except pynvml.NVMLError:
        return None
    return compute if infos else None


def _instance_of_device(mig: Any, uuid: str, profiles: Sequence[Profile]) -> Instance:
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
        start=-1,  # unknown
        size=profile.size if profile else 0,
        id=pynvml.nvmlDeviceGetGpuInstanceId(mig),
        uuid=uuid,
    )
