"""A program that uses nvidia-ml-py on the simulated machine; each test calls one of its functions in a process.
`python client.py <function> <json arguments>` prints the function's result as JSON. An NVML error is `{"error": <code>}`."""

import ctypes
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pynvml as nvml

MAX_INSTANCES = 8


def gpu_handle(gpu: int) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(gpu)


def profiles(gpu: int) -> list[dict[str, Any]]:
    """Every profile, probed as NVIDIA documents it: indexes from 0 until INVALID_ARGUMENT."""
    found: list[dict[str, Any]] = []
    for index in range(100):
        try:
            info = nvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu_handle(gpu), index, version=2)
        except nvml.NVMLError_NotSupported:
            continue
        except nvml.NVMLError_InvalidArgument:
            return found
        found.append(
            {
                "index": index,
                "id": info.id,
                "name": info.name,
                "max": info.instanceCount,
                "slices": info.sliceCount,
                "memory_mib": info.memorySizeMB,
                "placements": placements(gpu, info.id),
            }
        )
    raise AssertionError("the profile indexes never end")


def placements(gpu: int, profile_id: int) -> list[list[int]]:
    """(start, size) pairs of a profile, asked in two steps: how many, then which."""
    function = nvml._nvmlGetFunctionPointer("nvmlDeviceGetGpuInstancePossiblePlacements_v2")
    count = ctypes.c_uint(0)
    nvml._nvmlCheckReturn(function(gpu_handle(gpu), profile_id, None, ctypes.byref(count)))
    array = (nvml.c_nvmlGpuInstancePlacement_t * count.value)()
    nvml._nvmlCheckReturn(function(gpu_handle(gpu), profile_id, array, ctypes.byref(count)))
    return [[place.start, place.size] for place in array]


def set_mode(gpu: int, mode: int) -> dict[str, Any]:
    activation = nvml.nvmlDeviceSetMigMode(gpu_handle(gpu), mode)
    current, pending = nvml.nvmlDeviceGetMigMode(gpu_handle(gpu))
    return {"activation": activation, "current": current, "pending": pending}


def create(gpu: int, profile_ids: Sequence[int], starts: Sequence[int | None] = ()) -> list[list[int]]:
    """GPU instances with one full compute instance each; (id, start, size) of each."""
    made = []
    for number, profile_id in enumerate(profile_ids):
        start = starts[number] if starts else None
        instance = _create_gpu_instance(gpu, profile_id, start)
        info = nvml.nvmlGpuInstanceGetInfo(instance)
        nvml.nvmlGpuInstanceCreateComputeInstance(instance, _full_compute_profile(instance))
        made.append([info.id, info.placement.start, info.placement.size])
    return made


def _create_gpu_instance(gpu: int, profile_id: int, start: int | None) -> Any:
    if start is None:
        return nvml.nvmlDeviceCreateGpuInstance(gpu_handle(gpu), profile_id)
    size = placements(gpu, profile_id)[0][1]
    place = nvml.c_nvmlGpuInstancePlacement_t(start, size)
    return nvml.nvmlDeviceCreateGpuInstanceWithPlacement(gpu_handle(gpu), profile_id, ctypes.byref(place))


def _compute_profiles(instance: Any) -> Iterator[Any]:
    for index in range(nvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            yield nvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, index, 0)
        except nvml.NVMLError_NotSupported:
            continue


def _full_compute_profile(instance: Any) -> int:
    return int(max(_compute_profiles(instance), key=lambda info: info.sliceCount).id)


def fill_with_each(gpu: int, fillings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fill the GPU with one profile after the other, each time until it refuses."""
    results = []
    for filling in fillings:
        made = create(gpu, **filling)
        once_more = _or_error(partial(create, gpu, filling["profile_ids"][:1]))
        names = [device["name"] for device in mig_devices(gpu)]
        destroy_all(gpu)
        results.append({"made": made, "once_more": once_more, "names": names, "left": instances(gpu)})
    return results


def build_layouts(gpu: int, layouts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Build each layout (profile ids) in the first order that works, as mig-parted does, and tell what is left."""
    results = []
    ids = [profile["id"] for profile in profiles(gpu)]
    for layout in layouts:
        attempts = 0
        for order in dict.fromkeys(itertools.permutations(layout)):
            attempts += 1
            if not isinstance(_or_error(partial(create, gpu, order)), dict):
                break
            destroy_all(gpu)
        rest = {profile: nvml.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu_handle(gpu), profile) for profile in ids}
        built = sorted(instance[1] for instance in instances(gpu))
        results.append({"attempts": attempts, "built": built, "room_for": [i for i in ids if rest[i]]})
        destroy_all(gpu)
    return results


def compute_profiles(gpu: int, gpu_instance: int) -> list[list[int]]:
    """(id, slices, count, SMs) of the compute instance profiles of a GPU instance."""
    instance = nvml.nvmlDeviceGetGpuInstanceById(gpu_handle(gpu), gpu_instance)
    return [
        [info.id, info.sliceCount, info.instanceCount, info.multiprocessorCount] for info in _compute_profiles(instance)
    ]


def create_compute(gpu: int, gpu_instance: int, profile_ids: Sequence[int]) -> list[list[int]]:
    """Compute instances in an existing GPU instance; (id, start, size) of each."""
    instance = nvml.nvmlDeviceGetGpuInstanceById(gpu_handle(gpu), gpu_instance)
    made = []
    for profile_id in profile_ids:
        info = nvml.nvmlComputeInstanceGetInfo(nvml.nvmlGpuInstanceCreateComputeInstance(instance, profile_id))
        made.append([info.id, info.placement.start, info.placement.size])
    return made


def _listed(function: Callable[..., Any], owner: Any, profile_id: int, kind: Any) -> list[Any]:
    array, count = (kind * MAX_INSTANCES)(), ctypes.c_uint(0)
    function(owner, profile_id, array, ctypes.byref(count))
    return [array[number] for number in range(count.value)]


def _gpu_instances(gpu: int) -> Iterator[Any]:
    for profile in profiles(gpu):
        yield from _listed(nvml.nvmlDeviceGetGpuInstances, gpu_handle(gpu), profile["id"], nvml.c_nvmlGpuInstance_t)


def instances(gpu: int) -> list[list[int]]:
    """(id, profile id, start, size) of the GPU instances, by start."""
    infos = [nvml.nvmlGpuInstanceGetInfo(instance) for instance in _gpu_instances(gpu)]
    return sorted([[i.id, i.profileId, i.placement.start, i.placement.size] for i in infos], key=lambda i: i[2])


def destroy_all(gpu: int) -> None:
    for instance in list(_gpu_instances(gpu)):
        for profile in _compute_profiles(instance):
            for compute in _listed(
                nvml.nvmlGpuInstanceGetComputeInstances, instance, profile.id, nvml.c_nvmlComputeInstance_t
            ):
                nvml.nvmlComputeInstanceDestroy(compute)
        nvml.nvmlGpuInstanceDestroy(instance)


def destroy_gpu_instance(gpu: int, gpu_instance: int) -> None:
    nvml.nvmlGpuInstanceDestroy(nvml.nvmlDeviceGetGpuInstanceById(gpu_handle(gpu), gpu_instance))


def destroy_compute(gpu: int, gpu_instance: int, compute_instance: int) -> None:
    instance = nvml.nvmlDeviceGetGpuInstanceById(gpu_handle(gpu), gpu_instance)
    nvml.nvmlComputeInstanceDestroy(nvml.nvmlGpuInstanceGetComputeInstanceById(instance, compute_instance))


def mig_devices(gpu: int) -> list[dict[str, Any]]:
    """The MIG devices by index; indexes without one are left out."""
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu_handle(gpu))):
        try:
            device = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu_handle(gpu), index)
        except nvml.NVMLError_NotFound:
            continue
        uuid = nvml.nvmlDeviceGetUUID(device)
        parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvml.nvmlDeviceGetHandleByUUID(uuid))
        attributes = nvml.nvmlDeviceGetAttributes(device)
        found.append(
            {
                "index": index,
                "name": nvml.nvmlDeviceGetName(device),
                "uuid": uuid,
                "parent": nvml.nvmlDeviceGetIndex(parent),
                "is_mig": nvml.nvmlDeviceIsMigDeviceHandle(device).value,
                "gpu_instance": nvml.nvmlDeviceGetGpuInstanceId(device),
                "compute_instance": nvml.nvmlDeviceGetComputeInstanceId(device),
                "memory_mib": nvml.nvmlDeviceGetMemoryInfo(device).total >> 20,
                "sms": attributes.multiprocessorCount,
                "processes": _pids(device),
            }
        )
    return found


def _pids(device: Any) -> list[int]:
    return [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(device)]


def gpu_report(gpu: int) -> dict[str, Any]:
    """What a card says about itself and its health; an error code where it does not answer."""
    handle = gpu_handle(gpu)
    return {
        "name": nvml.nvmlDeviceGetName(handle),
        "bus_id": nvml.nvmlDeviceGetPciInfo(handle).busId,
        "pci_device_id": nvml.nvmlDeviceGetPciInfo(handle).pciDeviceId,
        "compute_capability": list(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        "memory_mib": _or_error(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total >> 20),
        "memory_v2": _or_error(lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).used),
        "mig_mode": _or_error(lambda: list(nvml.nvmlDeviceGetMigMode(handle))),
        "max_mig": nvml.nvmlDeviceGetMaxMigDeviceCount(handle),
        "compute_mode": nvml.nvmlDeviceGetComputeMode(handle),
        "utilization": _or_error(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "ecc": _or_error(lambda: nvml.nvmlDeviceGetTotalEccErrors(handle, 1, 0)),
        "remapped": _or_error(lambda: list(nvml.nvmlDeviceGetRemappedRows(handle))),
        "fields": [
            [value.nvmlReturn, value.value.uiVal]
            for value in nvml.nvmlDeviceGetFieldValues(handle, [142, 143, 144, 145, 184, 199, 230])
        ],
        "processes": _or_error(lambda: _pids(handle)),
    }


def _or_error(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except nvml.NVMLError as error:
        return {"error": error.value}


def uuids() -> list[str]:
    return [nvml.nvmlDeviceGetUUID(gpu_handle(index)) for index in range(nvml.nvmlDeviceGetCount())]


def by_uuid(uuid: str) -> int:
    return int(nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByUUID(uuid)))


def drawing(gpu: int) -> list[int]:
    return [process.pid for process in nvml.nvmlDeviceGetGraphicsRunningProcesses(gpu_handle(gpu))]


def open_twice_more() -> list[Any]:
    """Say READY, wait for a line, then open NVML twice; what each gave."""
    print("READY", flush=True)
    sys.stdin.readline()
    nvml.nvmlShutdown()
    return [_or_error(nvml.nvmlInit) for _ in range(2)]


def all_of(calls: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Functions of this module, one after the other, for GPU 0; the errors where they fail."""
    return [_or_error(partial(globals()[name], 0, **arguments)) for name, arguments in calls]


def read_beyond_the_end() -> None:
    """Hand over an array that is shorter than its count says: a bad access inside the library, on purpose."""
    ctypes.CDLL(None).malloc.restype = ctypes.c_void_p
    values = ctypes.c_void_p(ctypes.CDLL(None).malloc(ctypes.sizeof(nvml.c_nvmlFieldValue_t)))
    nvml._nvmlGetFunctionPointer("nvmlDeviceGetFieldValues")(gpu_handle(0), 64, values)


def without_files(gpu: int) -> dict[str, Any]:
    """What a call answers once every file of the process is closed, the state file too."""
    handle = gpu_handle(gpu)
    os.closerange(3, 256)
    return {"name": _or_error(lambda: nvml.nvmlDeviceGetName(handle)), "end": _or_error(nvml.nvmlShutdown)}


def after_a_line(gpu: int, then: str = "gpu_report") -> Any:
    """Say READY, wait for a line, then call this function of the module."""
    print("READY", flush=True)
    sys.stdin.readline()
    return globals()[then](gpu)


def process_name(pid: int) -> str:
    return str(nvml.nvmlSystemGetProcessName(pid))


def set_compute_mode(gpu: int, mode: int) -> None:
    nvml.nvmlDeviceSetComputeMode(gpu_handle(gpu), mode)


def call_by_name(name: str) -> int:
    return int(nvml._nvmlGetFunctionPointer(name)())


def stale_handle(gpu: int, profile_id: int) -> dict[str, Any]:
    """What a handle answers after its GPU instance is gone."""
    instance = nvml.nvmlDeviceCreateGpuInstance(gpu_handle(gpu), profile_id)
    nvml.nvmlGpuInstanceDestroy(instance)
    return {"after": _or_error(lambda: nvml.nvmlGpuInstanceGetInfo(instance).id)}


def wait_events(gpu: int, types: int, count: int) -> list[list[int]]:
    """Say READY, then wait for events; (type, data, GPU instance id) of each."""
    events = nvml.nvmlEventSetCreate()
    nvml.nvmlDeviceRegisterEvents(gpu_handle(gpu), types, events)
    print("READY", flush=True)
    got = []
    for _ in range(count):
        data = nvml.nvmlEventSetWait_v2(events, 10_000)
        got.append([data.eventType, data.eventData, data.gpuInstanceId])
    return got


def wait_in_vain(milliseconds: int) -> float:
    events = nvml.nvmlEventSetCreate()
    nvml.nvmlDeviceRegisterEvents(gpu_handle(0), 0x8, events)
    begin = time.monotonic()
    try:
        nvml.nvmlEventSetWait_v2(events, milliseconds)
    except nvml.NVMLError_Timeout:
        return time.monotonic() - begin
    raise AssertionError("an event came from nowhere")


def hold(gpu: int) -> None:
    """Say READY and keep NVML open until the standard input ends."""
    gpu_handle(gpu)
    print("READY", flush=True)
    sys.stdin.read()


def churn(gpu: int, profile_ids: Sequence[int], turns: int) -> dict[str, int]:
    """Say READY, then create and destroy instances of changing profiles; count what worked and what was refused.

    On a busy machine one may be refused in all its turns by another that sleeps meanwhile: it goes on until it is not.
    """
    print("READY", flush=True)
    sys.stdin.readline()
    counts, deadline = {"created": 0, "refused": 0}, time.monotonic() + 30
    for turn in itertools.count():
        if turn >= turns and (counts["created"] or time.monotonic() > deadline):
            break
        try:
            instance = nvml.nvmlDeviceCreateGpuInstance(gpu_handle(gpu), profile_ids[turn * 7 % len(profile_ids)])
        except nvml.NVMLError_InsufficientResources:
            counts["refused"] += 1
            continue
        counts["created"] += 1
        compute = nvml.nvmlGpuInstanceCreateComputeInstance(instance, _full_compute_profile(instance))
        nvml.nvmlComputeInstanceDestroy(compute)
        nvml.nvmlGpuInstanceDestroy(instance)
    return counts


def main(function: str, arguments: str) -> None:
    try:
        nvml.nvmlInit()
        result = globals()[function](**json.loads(arguments))
        with suppress(nvml.NVMLError_Uninitialized, nvml.NVMLError_Unknown):
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        result = {"error": error.value}
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
