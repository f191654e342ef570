"""`python -m tests.agent.nvml_day`: 24 hours of the shipped agent loop on a SIMULATED machine, in virtual time.

The loop, the reader and nvidia-ml-py are the real ones; the GPUs are those of hack/nvmlsim ($NVMLSIM_STATE), which a
process of its own changes: the simulator's lock is one of processes. Prints what the process held, hour by hour.

python -m tests.agent.nvml_day hands      does what it is told, one call of the Simulator per line
"""

import asyncio
import ctypes
import gc
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hack.nvmlsim.simulator import Simulator
from hack.sim.readings import HANGING
from tests.agent.nvml_process import do
from tests.fakes.gpus import FixedPods, OneNode
from tests.fakes.virtualtime import PATIENCE, run_virtually

from gpusharing.agent.library import Reading
from gpusharing.agent.loop import AgentLoop
from gpusharing.agent.nvml import NVML
from gpusharing.agent.podresources import Holdings
from gpusharing.kube.client import GPUNODES
from gpusharing.kube.errors import Unavailable
from gpusharing.planning.gpus.geometry import normalize
from gpusharing.planning.gpus.texts import read_mig

HOURS = 24
HOUR = 3600.0
PARTS = (["3g.40gb", "3g.40gb"], ["2g.20gb", "1g.10gb", "1g.10gb"], ["7g.80gb"])


class Library(NVML):
    """NVML; while it is meant to hang, virtual time does not wait for its thread."""

    hanging = False
    stuck: threading.Thread | None = None

    def read(self, leave: Collection[int] = ()) -> Reading:
        if self.hanging:
            self.stuck = threading.current_thread()
            HANGING.add(self.stuck)
        return super().read(leave)


class Hands:
    """Changes the machine, from another process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.agent.nvml_day", "hands"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )

    def do(self, method: str, *arguments: Any, **fields: Any) -> None:
        """Call a method of the Simulator, or with `nvml` a command of nvml_process, and wait until it is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, arguments, fields]) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n", f"{method} failed"

    def close(self) -> None:
        self._process.communicate(timeout=PATIENCE)


class Day:
    """One agent, its GPUNode, and what happens to them."""

    def __init__(self, hands: Hands) -> None:
        self.hands = hands
        self.node, self.pods, self.library = OneNode(), FixedPods(), Library()
        clock = asyncio.get_running_loop().time
        self.loop = AgentLoop(self.node.name, self.node.client, self.library, self.pods, clock=clock)
        self.away = Unavailable("connection reset")
        self.errors = 0
        self.requests = 0

    async def hour(self, number: int) -> None:
        """What happens in each hour: work, faults of every kind, and an end in which all is well again."""
        began = asyncio.get_running_loop().time()
        hands, pid = self.hands, 1000 + number
        self.pods.holdings = Holdings({"nvidia.com/gpu": number % 3 + 1, f"nvidia.com/r{number % 4}": 1}, 2)
        hands.do("add_process", 1, pid, f"python3 job-{number}.py")
        hands.do("set_gpu", 1, ecc_volatile_uncorrected=number, recovery_action=number % 2)
        await self._ask(quiet=False)
        await self._fails("nvmlDeviceGetCount", "IN_USE")
        hands.do("set_gpu", 1, lost=1)
        await asyncio.sleep(300)
        hands.do("set_gpu", 1, lost=0)
        await self._fails("nvmlDeviceGetGpuInstances", "NOT_SUPPORTED")
        if number % 3 == 0:
            await self._hangs()
        self.node.cluster.faults.fail("patch", GPUNODES, self.away, times=3)
        await self._ask(quiet=True)
        hands.do("nvml", "destroy", "0")
        hands.do("nvml", "partition", "0", *PARTS[number % len(PARTS)])
        self.node.cluster.expire()
        await self._ask(quiet=False)
        observed = self.node.observed
        assert observed is not None
        assert read_mig(observed.gpus[0].mig)[0] == normalize(Counter(PARTS[number % len(PARTS)]))
        hands.do("remove_process", pid)
        await asyncio.sleep(began + HOUR - asyncio.get_running_loop().time())

    async def _ask(self, *, quiet: bool) -> None:
        self.requests += 1
        self.node.ask(f"r{self.requests}", quiet=quiet)
        await asyncio.sleep(300)
        observed = self.node.observed
        assert observed is not None
        assert (observed.request_id, observed.quiet) == (f"r{self.requests}", quiet), observed.error

    async def _fails(self, function: str, fault: str) -> None:
        self.hands.do("inject", function, fault)
        await asyncio.sleep(300)
        self.errors += bool(self.node.observed and self.node.observed.error)
        self.hands.do("clear_faults")

    async def _hangs(self) -> None:
        await asyncio.sleep(1)  # readings begin in step with the hour; none is under way now that would hang too
        self.library.hanging = True
        self.hands.do("inject", "nvmlDeviceGetComputeMode", "hang")
        await asyncio.sleep(300)
        assert self.node.observed is not None
        assert self.node.observed.error.startswith("NVMLHung: ")
        self.hands.do("clear_faults")
        self.library.hanging = False
        assert self.library.stuck is not None
        HANGING.discard(self.library.stuck)
        await asyncio.sleep(60)

    def forget(self) -> None:
        """What the fake server remembers is not the agent's."""
        self.node.cluster.writes.clear()
        self.node.cluster.expire()
        self.away.__traceback__ = None  # it was raised through the agent's frames


class MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc (mallinfo(3)): of the main arena, so run with MALLOC_ARENA_MAX=1."""

    _fields_ = tuple((f"field{number}", ctypes.c_size_t) for number in range(10))
    in_use = 7  # uordblks


def heap() -> int:
    """Bytes that C code holds by malloc; 0 where the C library does not tell."""
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return 0
    function.restype = MallInfo
    return int(getattr(function(), f"field{MallInfo.in_use}"))


def threads() -> int:
    """Threads of this process. One that Python has ended is the system's for a moment more."""
    patient_until = time.monotonic() + PATIENCE
    while (count := len(os.listdir("/proc/self/task"))) > threading.active_count():
        if time.monotonic() > patient_until:
            break
        time.sleep(0.001)
    return count


def held() -> dict[str, int]:
    """What this process holds now: Python's memory, C's, all its memory, files and threads."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "traced": tracemalloc.get_traced_memory()[0],
        "heap": heap(),
        "rss": pages * resource.getpagesize(),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threads(),
        "objects": len(gc.get_objects()),
    }


async def live() -> dict[str, Any]:
    hands = Hands()
    day = Day(hands)
    task = asyncio.create_task(day.loop.run())
    diary = Path(os.environ["NVMLSIM_STATE"]).with_name("hours")
    for number in range(1, HOURS + 1):
        await day.hour(number)
        day.forget()
        with diary.open("a") as page:  # kept here, the hours themselves would be what grows
            page.write(json.dumps(held()) + "\n")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    hands.close()
    counts = {"readings": day.loop.readings_by_outcome, "writes": day.loop.writes_by_outcome["ok"]}
    hours = [json.loads(line) for line in diary.read_text().splitlines()]
    return {"hours": hours, **counts, "errors": day.errors}


def serve() -> None:
    simulator = Simulator(Path(os.environ["NVMLSIM_STATE"]))
    for line in sys.stdin:
        method, arguments, fields = json.loads(line)
        if method == "nvml":
            do(arguments)
        else:
            getattr(simulator, method)(*arguments, **fields)
        print("done", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["hands"]:
        serve()
    else:
        random.seed("a day")
        tracemalloc.start()
        print(json.dumps(run_virtually(live())))
