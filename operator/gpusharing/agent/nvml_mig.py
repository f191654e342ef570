"""MIG as NVML reports it: the profiles of a card, the instances of a GPU, and which of them may be hidden. Part of
`nvml.py`.

Listing instances and placements needs read access to mig/config. A MIG device is visible to a process that may open
it. So a container without rights sees some devices, none, or those of an earlier layout. What it cannot list is
unknown.
"""

import ctypes
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import pynvml

from gpusharing.agent.nvml_health import REFUSED, UNSUPPORTED, maybe, supported
from gpusharing.api.gpunode import DriverProfile, Instance
from gpusharing.planning.vocabulary.values import value

_PROFILE_ENUM = range(18)  # NVML_GPU_INSTANCE_PROFILE_COUNT; a driver stops it earlier with INVALID_ARGUMENT
_COMPUTE_PROFILE_ENUM = range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT)
_SHARED_ENGINES = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
_CAPACITY = 64  # more placements or instances of one profile than any card has

MigDevice: TypeAlias = tuple[Any, str]
"""Handle and UUID of a MIG device."""


@value
class MigInstances:
    """The instances of one GPU with MIG on."""

    instances: tuple[Instance, ...]
    """The known instances; if `withheld`, there may be more."""
    withheld: bool
    """Whether NVML does not list every instance. An instance that it does not list is known only if one of its MIG
    devices is visible."""
    hidden: bool
    """Whether processes may run on an instance without a visible MIG device."""
    devices: tuple[Instance, ...]
    """The instance of each visible MIG device, in the order of the devices."""


def mig_profiles(handle: Any) -> tuple[tuple[DriverProfile, ...], bool]:
    """Return the profiles of a card, and whether NVML refuses to list the placements of any of them. Profiles that are
    not supported or not permitted are left out. A profile without listed placements has no starts and the size 0. Other
    errors of NVML are raised."""
    profiles: list[DriverProfile] = []
    withheld = False
    for info in _profile_infos(handle):
        placements = _placements(handle, info.id)
        withheld = withheld or placements is None
        profiles.append(_profile(info, placements or []))
    return tuple(profiles), withheld


def _profile_infos(handle: Any) -> Iterator[Any]:
    """Yield NVML's information about each profile of a card; profiles that are not supported or not permitted are
    skipped. NVML's INVALID_ARGUMENT ends the iteration; other errors are raised. Profiles are requested by enum index
    and identified by their id, which differs between cards (docs/design/hardware.md#nvml-profiles)."""
    for enum in _PROFILE_ENUM:
        try:
            info = maybe(None, pynvml.nvmlDeviceGetGpuInstanceProfileInfo, handle, enum)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_INVALID_ARGUMENT:
                return  # this driver has no further profiles
            raise
        if info is not None:
            yield info


def _profile(info: Any, placements: list[Any]) -> DriverProfile:
    """Convert NVML's information about a profile to the reported record. The name is without `MIG `, and `memory_gb` is
    the number of GB in it. The starts are sorted. Without placements there are no starts, and the size is 0."""
    name = info.name.removeprefix("MIG ")
    return DriverProfile(
        name=name,
        id=info.id,
        slices=info.sliceCount,
        memory_gb=_nominal_gb(name),
        max_count=info.instanceCount,
        starts=tuple(sorted(placement.start for placement in placements)),
        size=placements[0].size if placements else 0,
    )


def _nominal_gb(profile: str) -> int:
    """Return the number of GB in the name of a profile, or 0 if the name has none."""
    match = re.search(r"\.(\d+)gb", profile)
    return int(match[1]) if match else 0


def _placements(handle: Any, profile_id: int) -> list[Any] | None:
    """Return the possible placements of a profile, at most _CAPACITY. Empty if listing them is not supported, None if
    it is not permitted. Other errors are raised."""
    buffer = (pynvml.c_nvmlGpuInstancePlacement_t * _CAPACITY)()
    count = ctypes.c_uint(_CAPACITY)
    try:
        pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile_id, buffer, ctypes.byref(count))
    except pynvml.NVMLError as error:
        if error.value == REFUSED:
            return None
        if error.value in UNSUPPORTED:
            return []
        raise
    return list(buffer[: count.value])


def mig_devices(handle: Any) -> Iterator[MigDevice]:
    """Yield the visible MIG devices of a GPU. Their indices have gaps and no stable order
    (docs/design/hardware.md#nvml-devices); an index without a device, or with one that may not be read, is skipped.
    Yields nothing if NVML does not report how many indices there are. Other errors are raised."""
    for index in range(maybe(0, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle)):
        try:
            mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            yield mig, pynvml.nvmlDeviceGetUUID(mig)
        except pynvml.NVMLError as error:
            if error.value not in (*UNSUPPORTED, REFUSED, pynvml.NVML_ERROR_NOT_FOUND):
                raise


def mig_instances(handle: Any, profiles: Sequence[DriverProfile], migs: Sequence[MigDevice]) -> MigInstances:
    """Return the instances of a GPU with MIG on, sorted by start and id: those that NVML lists, and further ones that
    are known only from the visible MIG devices `migs`. `devices` has the instance of each of `migs`, in their order.
    `withheld` is True if there are further ones, or if NVML cannot list instances. `hidden` is True in the same cases,
    and also if a listed instance has no visible device but may have compute instances. Errors of NVML are raised.

    An instance without a compute instance, which a creation that failed midway leaves behind, hides no process.
    """
    listed = _list_all(handle, profiles)
    numbers = [pynvml.nvmlDeviceGetGpuInstanceId(mig) for mig, _ in migs]
    # A GPU instance may have several compute instances; the first one represents it.
    first = dict(reversed(list(zip(numbers, migs, strict=True))))
    uuids = {number: uuid for number, (_, uuid) in first.items()}
    instances = {info.id: _instance(info, profile, uuids) for profile, _, info in listed or ()}
    unlisted = {n: _instance_of_device(mig, profiles) for n, mig in first.items() if n not in instances}
    known = instances | unlisted
    withheld = listed is None or bool(unlisted)
    hidden = withheld or any(info.id not in uuids and _may_compute(each) for _, each, info in listed or ())
    ordered = sorted(known.values(), key=lambda instance: (instance.start, instance.id))
    return MigInstances(tuple(ordered), withheld, hidden, tuple(known[number] for number in numbers))


def _list_all(handle: Any, profiles: Sequence[DriverProfile]) -> list[tuple[DriverProfile, Any, Any]] | None:
    """Return the profile, the handle and NVML's information for each instance. None if there are no profiles, or if
    NVML does not permit or support listing for any one of them. Other errors are raised."""
    if not profiles:
        return None
    try:
        return [(profile, *found) for profile in profiles for found in _list_instances(handle, profile.id)]
    except pynvml.NVMLError as error:
        if error.value not in (REFUSED, *UNSUPPORTED):
            raise
        return None


def _list_instances(handle: Any, profile_id: int) -> list[tuple[Any, Any]]:
    """Return the handle and NVML's information for each instance of a profile, at most _CAPACITY. All errors of NVML
    are raised."""
    found = (pynvml.c_nvmlGpuInstance_t * _CAPACITY)()
    count = ctypes.c_uint(_CAPACITY)
    pynvml.nvmlDeviceGetGpuInstances(handle, profile_id, found, ctypes.byref(count))
    present = [instance for instance in found[: count.value] if instance]
    return [(instance, pynvml.nvmlGpuInstanceGetInfo(instance)) for instance in present]


def _may_compute(instance: Any) -> bool:
    """Whether a GPU instance may have compute instances. True if it has any, if they cannot be listed, or if NVML
    names no profile for them."""
    try:
        infos = list(_compute_profile_infos(instance))
        for info in infos:
            found = (pynvml.c_nvmlComputeInstance_t * _CAPACITY)()
            count = ctypes.c_uint(_CAPACITY)
            pynvml.nvmlGpuInstanceGetComputeInstances(instance, info.id, found, ctypes.byref(count))
            if any(found[: count.value]):
                return True
    except pynvml.NVMLError:
        return True
    return not infos


def _compute_profile_infos(instance: Any) -> Iterator[Any]:
    """Yield NVML's information about each profile of compute instances that a GPU instance supports. Errors are
    raised, except those for a profile that is not supported or does not exist."""
    ask = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo
    for enum in _COMPUTE_PROFILE_ENUM:
        try:
            info = supported(None, ask, instance, enum, _SHARED_ENGINES)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_INVALID_ARGUMENT:
                return  # this driver has no further profiles
            raise
        if info is not None:
            yield info


def _instance(info: Any, profile: DriverProfile, uuids: dict[int, str]) -> Instance:
    """Convert NVML's information about a GPU instance. `uuids` has the UUIDs of the visible MIG devices, by id of the
    GPU instance; an instance that is not in it gets an empty UUID."""
    place = info.placement
    uuid = uuids.get(info.id, "")
    return Instance(profile=profile.name, start=place.start, size=place.size, id=info.id, uuid=uuid)


def _instance_of_device(device: MigDevice, profiles: Sequence[DriverProfile]) -> Instance:
    """Return the GPU instance of a MIG device, without a placement: its start is -1. Its profile is found by the
    device's name ("... MIG 1c.3g.40gb"), else by its slices and the nearest memory size. If neither leads to one of
    `profiles`, the profile is empty and the size 0."""
    mig, uuid = device
    name = maybe("", pynvml.nvmlDeviceGetName, mig).rpartition(" MIG ")[2]
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
