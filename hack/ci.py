"""Run every part of the project's check for `.ci/run`, or those in CI_ONLY, and print a table.

Rungs 3 and 4 wait for programs most of the time, so they run beside all other parts. The fault matrix always runs the
same sample. Tests marked `thorough` are left to `make test-all`: each has one of its kind here (tests/README.md).
The system's Python runs this file before .venv exists, so it imports nothing but the standard library.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import IO

PYTHON = ".venv/bin/python"
BUILD = Path("build")
PASSED = BUILD / "passed.txt"
"""The commit that passed every part, and the sha256 of each image that was there, for `hack.release check`."""
TOOLS = [
    "controlplane",
    "kwok",
    "helm",
    "helm3",
    "kind",
    "actionlint",
    "charttools",
    "krewtools",
    "olmtools",
    "releasetools",
]
"""The tools that tests of rung 2 need and `hack.cluster.toolchain` builds."""
BUILT_FIRST = {"test-crash", "test-cluster", "test-faults"}
"""The parts whose tests need TOOLS. The other parts build what they need themselves."""
STOPPED, NOT_FOUND = 143, 127
"""The exit statuses that a shell reports for a process ended by SIGTERM, and for a program that does not exist."""
OUT_OF_TIME = (124, 137)
"""The statuses with which `timeout` reports that it ended a command, the second one by SIGKILL."""
PARTS = (
    "verify",
    "docs",
    "test",
    "test-long",
    "test-hack",
    "test-crash",
    "test-cluster",
    "test-faults",
    "test-nvidia",
    "e2e",
)
"""The names that CI_ONLY may have, separated by spaces. If it is empty, all are run."""
NOT_THOROUGH = "ARGS=-m 'not thorough'"
"""The argument of `make` that leaves out the tests marked `thorough`."""
YIELDING = ("nice", "-n", "5")
"""What begins the commands that yield the processors to rungs 3 and 4. Those run one test at a time, so the check ends
sooner if they never wait for a processor."""
Parts = Callable[[IO[str]], Awaitable[int]]
"""A function that runs parts, writes their output to a log, and returns their status."""


class Checks:
    """One run of all parts. A signal ends the running parts, and only those that clean up start afterwards."""

    def __init__(self, chosen: Collection[str] = PARTS) -> None:
        self._chosen = chosen
        self._begin = time.monotonic()
        self._running: set[asyncio.subprocess.Process] = set()
        self._stopped = False
        self._failed = False
        self._table: list[str] = []

    async def run(self) -> int:
        """Run the chosen parts, and return the exit status. If `make setup` fails, nothing else is run."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop)
        if status := await self._part("setup", "make", "setup"):
            return status
        built = [] if BUILT_FIRST.isdisjoint(self._chosen) else [self._logged("programs", self._programs)]
        programs = asyncio.gather(*built)
        waiting = asyncio.create_task(self._rungs_3_and_4(programs))
        await self._verb("verify", *YIELDING, PYTHON, "-m", "hack.verify", "--without-tests")
        await self._verb("docs", *YIELDING, "make", "docs")
        await programs  # A program that could not be built fails the tests that need it, which say so.
        await self._verb("test", *YIELDING, "make", "test", "WORKERS=logical")
        await self._verb("test-long", *YIELDING, "make", "test-long", "WORKERS=logical", NOT_THOROUGH)
        await self._verb("test-hack", *YIELDING, "make", "test-hack", "WORKERS=logical")
        # Several scenarios run in parallel (hack/sidebyside.py), because each spends a third of its time waiting.
        await self._verb("test-crash", *YIELDING, "make", "test-crash", "WORKERS=4", NOT_THOROUGH)
        await self._verb("test-cluster", *YIELDING, "make", "test-cluster", "WORKERS=auto", NOT_THOROUGH)
        await self._verb("test-faults", *YIELDING, "make", "test-faults", "SEED=1", "RUNS=30", NOT_THOROUGH)
        await waiting
        if self._stopped:
            return STOPPED
        return self._report()

    def _stop(self) -> None:
        self._stopped = True
        for process in self._running:
            _terminate(process)

    def _seconds(self) -> int:
        return int(time.monotonic() - self._begin)

    async def _part(self, name: str, *command: str, out: IO[str] | None = None, cleanup: bool = False) -> int:
        """Run a command, add its row to the table, and return its status. After a signal only a `cleanup` starts."""
        if self._stopped and not cleanup:
            return STOPPED
        begin = self._seconds()
        print(f"== {name}", file=out, flush=True)
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out
            )
        except OSError as error:
            print(f"!! {name}: {error}", file=out, flush=True)
            status = NOT_FOUND
        else:
            status = await self._status(process, cleanup=cleanup)
        self._table.append(f"{name:<14} {status:6} {self._seconds() - begin:6} s, from {begin:4} s on")
        return status

    async def _status(self, process: asyncio.subprocess.Process, *, cleanup: bool) -> int:
        if not cleanup:
            self._running.add(process)
            if self._stopped:  # The signal came while the process was being started.
                _terminate(process)
        status = await process.wait()
        self._running.discard(process)
        if status == 0 and self._stopped and not cleanup:
            return STOPPED
        return 128 - status if status < 0 else status

    async def _verb(self, name: str, *command: str) -> None:
        # Not `|=`, which would overwrite a failure that another task notes meanwhile.
        if name in self._chosen and await self._part(name, *command):
            self._failed = True

    async def _logged(self, name: str, parts: Parts) -> int:
        """Run parts with their output in build/`name`.log, which is printed once they have ended."""
        with (BUILD / f"{name}.log").open("w+", errors="replace") as out:
            status = await parts(out)
            out.seek(0)
            print(out.read(), end="", flush=True)
        return status

    async def _programs(self, out: IO[str]) -> int:
        return (
            await self._part("toolchain", PYTHON, "-m", "hack.cluster.toolchain", *TOOLS, out=out)
            or await self._part("promtool", PYTHON, "-m", "hack.promtool", "--install", out=out)
            or await self._part("browser", PYTHON, "-m", "hack.browser", out=out)
        )

    async def _rungs_3_and_4(self, programs: Awaitable[object]) -> None:
        await programs
        for name, parts in (("test-nvidia", self._rung3), ("e2e", self._rung4)):
            if name in self._chosen and await self._logged(name, parts):
                self._failed = True

    async def _rung3(self, out: IO[str]) -> int:
        return await self._part("test-nvidia", "make", "test-nvidia", NOT_THOROUGH, out=out)

    async def _rung4(self, out: IO[str]) -> int:
        """Run rung 4, and then remove what killed runs have left behind, even after a signal."""
        if status := await self._part("needs", PYTHON, "-m", "hack.realnode.needs", "--install", out=out):
            return status
        status = await self._part("e2e", "timeout", "--kill-after=90", "45m", "make", "e2e", NOT_THOROUGH, out=out)
        if status in OUT_OF_TIME:
            print("!! rung 4 was ended after 45 minutes", file=out, flush=True)
        swept = await self._part("sweep", PYTHON, "-m", "hack.realnode.sweep", out=out, cleanup=True)
        return status or swept

    def _report(self) -> int:
        print(f"\n{'part':<14} status  seconds", *self._table, f"in all: {self._seconds()} s", sep="\n")
        if left_out := os.environ.get("LEAVE_OUT"):
            print(f"!! LEFT OUT ON PURPOSE, so this is no full check: {left_out}")
        if tests := count_tests():
            print(f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")
        elif not {*self._chosen} <= {"verify", "docs"}:
            print("!! no test was played")
            self._failed = True
        if paces := find_paces():
            slowness = statistics.median(pace / aim for pace, aim in paces)
            print(
                f"in all at the pace of the aims (docs/adr/0051-aims-at-a-pace.md): {self._seconds() / slowness:.0f} s"
            )
        if not (self._failed or left_out) and {*self._chosen} == {*PARTS}:
            record()
        return int(self._failed)


def record() -> int:
    commands = (["git", "status", "--porcelain", "--untracked-files=no"], ["git", "rev-parse", "HEAD"])
    changed, commit = (subprocess.run(each, capture_output=True, text=True, check=False) for each in commands)
    if changed.stdout or changed.returncode or commit.returncode:
        return 1
    images = sorted((BUILD / "images").glob("*.tar"))  # those that rung 4 ran
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in images]
    PASSED.write_text("\n".join((commit.stdout.strip(), *hashes)) + "\n")
    return 0


def count_tests() -> Counter[str]:
    """Return how many tests passed, failed and were skipped, over all files build/report-*.txt."""
    total: Counter[str] = Counter()
    for path in BUILD.glob("report-*.txt"):
        line = path.read_text().partition("\n")[0]
        for number, outcome in re.findall(r"(\d+) (passed|failed|skipped)", line):
            total[outcome] += int(number)
    return total


def find_paces() -> list[tuple[float, float]]:
    """Return the pace that was measured at the end of each verb's tests, and that at which the aims hold."""
    reports = "\n".join(path.read_text() for path in BUILD.glob("report-*.txt"))
    return [(float(pace), float(aim)) for pace, aim in re.findall(r"(\d+) ms  pace; the aims hold at (\d+)", reports)]


def _terminate(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # It has ended by itself.
        process.terminate()


def main() -> int:
    """Run the parts that CI_ONLY names, or all, and return the exit status of the run; 2 if a name is unknown."""
    chosen, passed = os.environ.get("CI_ONLY", "").split(), sys.argv[1:] == ["--passed"]
    if unknown := [name for name in chosen if name not in PARTS]:
        print(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    os.chdir(Path(__file__).resolve().parent.parent)
    os.environ["CI"] = "true"
    BUILD.mkdir(exist_ok=True)
    for path in (*BUILD.glob("report-*.txt"), PASSED):
        path.unlink(missing_ok=True)
    return record() if passed else asyncio.run(Checks(chosen or PARTS).run())


if __name__ == "__main__":
    sys.exit(main())
