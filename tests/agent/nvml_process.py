"""What a process does to a simulated machine through NVML: NVML is loaded once per process, so tests run this one.

python -m tests.agent.nvml_process partition GPU PROFILE...   MIG on, instances with a full compute instance
python -m tests.agent.nvml_process put GPU PROFILE [SLICES...] one more instance, with compute instances of these sizes
python -m tests.agent.nvml_process shuffle GPU SEED           MIG on, then instances and parts of them come and go
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
import random
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

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
    with machine(index) as gpu:
        pynvml.nvmlDeviceSetMigMode(gpu, 1)
        offered = offers(gpu)
        for profile in profiles:
            create(gpu, offered[profile], offered[profile].sliceCount)


@contextmanager
def machine(index: int) -> Iterator[Any]:
    """The handle of a GPU."""
    pynvml.nvmlInit()
    yield pynvml.nvmlDeviceGetHandleByIndex(index)
    pynvml.nvmlShutdown()


def offers(gpu: Any) -> dict[str, Any]:
    """The infos of the GPU instance profiles by name."""
    found = {}
    for enum in range(18):
        try:
            info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, enum)
        except pynvml.NVMLError:
            continue
        found[info.name.removeprefix("MIG ")] = info
    return found


def create(gpu: Any, info: Any, *sizes: int) -> tuple[Any, list[Any]]:
    """A GPU instance with compute instances of these sizes."""
    instance = pynvml.nvmlDeviceCreateGpuInstance(gpu, info.id)
    return instance, [pynvml.nvmlGpuInstanceCreateComputeInstance(instance, COMPUTE_PROFILES[size]) for size in sizes]


def shuffle(index: int, seed: str) -> None:
    """Create and destroy GPU and compute instances at random, as far as the driver lets us."""
    dice = random.Random(seed)
    with machine(index) as gpu:
        pynvml.nvmlDeviceSetMigMode(gpu, 1)
        offered = {name: info for name, info in offers(gpu).items() if not set("+-") & set(name)}
        present: list[tuple[Any, list[Any]]] = []
        for _ in range(dice.randrange(1, 12)):
            with suppress(pynvml.NVMLError):
                match dice.choice(("create", "create", "create", "add", "remove", "destroy")):
                    case "create":
                        info = offered[dice.choice(sorted(offered))]
                        full = dice.random() < 0.7
                        present.append(create(gpu, info, *([info.sliceCount] if full else [])))
                    case "add" if present:
                        instance, compute = dice.choice(present)
                        size = COMPUTE_PROFILES[dice.choice((1, 2, 3))]
                        compute.append(pynvml.nvmlGpuInstanceCreateComputeInstance(instance, size))
                    case "remove" if present:
                        _, compute = dice.choice(present)
                        if compute:
                            pynvml.nvmlComputeInstanceDestroy(compute.pop())
                    case "destroy" if present:
                        instance, compute = present.pop(dice.randrange(len(present)))
                        for each in compute:
                            pynvml.nvmlComputeInstanceDestroy(each)
                        pynvml.nvmlGpuInstanceDestroy(instance)


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
        case ["put", gpu, profile, *sizes]:
            with machine(int(gpu)) as handle:
                create(handle, offers(handle)[profile], *map(int, sizes))
            return None
        case ["shuffle", gpu, seed]:
            shuffle(int(gpu), seed)
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
