"""What a process does to a simulated machine through NVML: NVML is loaded once per process, so tests run this one.

python -m tests.agent.nvml_process partition GPU PROFILE...   MIG on, instances with a full compute instance
python -m tests.agent.nvml_process destroy GPU                destroys its instances; the error's name, or null
python -m tests.agent.nvml_process read                       the adapter's reading as JSON
python -m tests.agent.nvml_process read-without GPU           the same, while that GPU is left alone
python -m tests.agent.nvml_process report                     what the agent reports of it, as JSON
python -m tests.agent.nvml_process read-anew                  the same, of an adapter that knows no card yet
python -m tests.agent.nvml_process read-blind                 the same, as process 1 of a PID namespace of its own
python -m tests.agent.nvml_process hang                       what the Reader answers at once and after 0.2 s
python -m tests.agent.nvml_process serve                      any of these but the last, one per line of input
"""

import asyncio
import json
import sys
import time
from collections.abc import Collection
from dataclasses import asdict

import pynvml

from gpusharing.agent.gpunode import Observation
from gpusharing.agent.library import LibraryError, in_background
from gpusharing.agent.nvml import NVML
from gpusharing.agent.processes import Processes
from gpusharing.api.gpunode import Request
from gpusharing.api.records import to_wire
from gpusharing.kube.background import new_worker

COMPUTE_PROFILES = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4}  # NVML_COMPUTE_INSTANCE_PROFILE_<n>_SLICE
LIBRARY = NVML()
"""One adapter as long as the process lives, as in an agent."""


def partition(index: int, profiles: list[str]) -> None:
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    pynvml.nvmlDeviceSetMigMode(gpu, 1)
    offered = {}
    for enum in range(18):
        try:
            info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, enum)
        except pynvml.NVMLError:
            continue
        offered[info.name.removeprefix("MIG ")] = info
    for profile in profiles:
        instance = pynvml.nvmlDeviceCreateGpuInstance(gpu, offered[profile].id)
        pynvml.nvmlGpuInstanceCreateComputeInstance(instance, COMPUTE_PROFILES[offered[profile].sliceCount])
    pynvml.nvmlShutdown()


def destroy(index: int) -> str | None:
    """Destroy every compute and GPU instance, as far as the driver lets us; the first refusal."""
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        for mig in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
            device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, mig)
            number = pynvml.nvmlDeviceGetGpuInstanceId(device)
            instance = pynvml.nvmlDeviceGetGpuInstanceById(gpu, number)
            compute = pynvml.nvmlGpuInstanceGetComputeInstanceById(
                instance, pynvml.nvmlDeviceGetComputeInstanceId(device)
            )
            pynvml.nvmlComputeInstanceDestroy(compute)
            pynvml.nvmlGpuInstanceDestroy(instance)
    except pynvml.NVMLError as error:
        return type(error).__name__
    finally:
        pynvml.nvmlShutdown()
    return None


def read(library: NVML = LIBRARY, leave: Collection[int] = ()) -> object:
    """One reading, or why there is none."""
    try:
        reading = library.read(leave)
    except LibraryError as error:
        return {"error": f"{error.reason}: {error}"}
    return asdict(reading)


async def hang() -> object:
    read = in_background(LIBRARY, 0.2, time.monotonic, lambda: None, new_worker())
    answers = [await read(Request(id="r1"), ()), await read(Request(id="r2"), ())]
    return [f"{error.reason}: {error}" for _, error, _ in answers if isinstance(error, LibraryError)]


def do(arguments: list[str]) -> object:
    match arguments:
        case ["partition", gpu, *wanted]:
            partition(int(gpu), wanted)
            return None
        case ["destroy", gpu]:
            return destroy(int(gpu))
        case ["read"]:
            return read()
        case ["read-without", gpu]:
            return read(leave=(int(gpu),))
        case ["report"]:
            return to_wire(Observation.after(Request("r1"), LIBRARY.read(), simulated=False))
        case ["read-anew"]:
            return read(NVML())
        case ["read-blind"]:
            return read(NVML(Processes(own_pid=1)))
        case ["hang"]:
            return asyncio.run(hang())
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        for line in sys.stdin:
            print(json.dumps(do(line.split())), flush=True)
    else:
        print(json.dumps(do(sys.argv[1:]), default=repr))
