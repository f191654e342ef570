"""What a process does to a simulated machine through NVML: NVML is loaded once per process, so tests run this one.

python -m tests.agent.nvml_process partition GPU PROFILE...   MIG on, instances with a full compute instance
python -m tests.agent.nvml_process read                       the adapter's reading as JSON
python -m tests.agent.nvml_process hang                       what the Reader answers at once and after 0.2 s
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict

import pynvml

from gpusharing.agent.library import LibraryError
from gpusharing.agent.nvml import NVML
from gpusharing.agent.observation import Request
from gpusharing.agent.reader import Reader

COMPUTE_PROFILES = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4}  # NVML_COMPUTE_INSTANCE_PROFILE_<n>_SLICE


def partition(index: int, profiles: list[str]) -> None:
    """Divide a GPU, in that order."""
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


def read() -> object:
    """One reading, or why there is none."""
    try:
        reading = NVML().read()
    except LibraryError as error:
        return {"error": f"{error.reason}: {error}"}
    return asdict(reading)


async def hang() -> object:
    """Ask twice while NVML hangs."""
    reader = Reader(NVML(), 0.2, time.monotonic, lambda: None)
    answers = [await reader.read(Request(id="r1")), await reader.read(Request(id="r2"))]
    return [{key: value for key, value in asdict(a).items() if key in ("outcome", "error")} for a in answers]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["partition", gpu, *wanted]:
            partition(int(gpu), wanted)
        case ["read"]:
            print(json.dumps(read()))
        case ["hang"]:
            print(json.dumps(asyncio.run(hang())))
        case _:
            raise SystemExit(__doc__)
