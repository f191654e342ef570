"""This machine, and what a process on it uses, from /proc (Linux)."""

import os
import platform
import re
import statistics
import time
import urllib.request
from pathlib import Path

CPUCLOCK_SCHED = 2
"""Which clock of a process: what the scheduler gave it (Linux, include/linux/posix-timers_types.h)."""


def facts() -> dict[str, str | int | float]:
    """What a reader needs to compare numbers with those of another machine."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
    }


def pace_ms() -> float:
    """CPU time of a fixed walk over 200,000 objects, the median of five: how fast this machine runs just now.

    Where others use its caches and memory as well, the same work takes twice the CPU time, and nothing else says so: a
    loop over numbers stays as quick, and the load counts our processes only. Numbers of two runs may be compared where
    these are alike.
    """
    things = [{"name": str(number)} for number in range(200_000)]
    taken = []
    for _ in range(5):
        begun = time.process_time()
        sum(len(things[number * 7919 % len(things)]["name"]) for number in range(len(things)))
        taken.append(time.process_time() - begun)
    return statistics.median(taken) * 1000


def read_metrics(port: int) -> str:
    """Read the metrics page of a process of ours. Raises OSError while nobody listens on the port."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return str(answer.read().decode())


def read_metric(port: int, sample: str) -> float:
    """Read the value of one sample from that page; 0 if the page does not have it."""
    found = re.search(rf"^{re.escape(sample)} (\S+)$", read_metrics(port), re.MULTILINE)
    return float(found[1]) if found else 0.0


def stolen_s() -> float:
    """Seconds since the boot for which all cores of this machine were given to others (proc(5), /proc/stat)."""
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(first[8]) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise ProcessLookupError(pid)
    return int(found[1]) / 1024


def cpu_ms(pid: int) -> float:
    """CPU time of a process so far, exact to the switch, with threads that have ended: the agent reads in such.

    By the process's CPU clock, which every process may read (clock_getcpuclockid(3) of glibc; Python has none).
    """
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED) * 1000
