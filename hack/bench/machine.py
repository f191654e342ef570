"""Facts about this machine, and the memory and CPU time of processes, read from /proc (Linux)."""

import os
import platform
import re
import ssl
import statistics
import time
import urllib.request
from pathlib import Path

CPUCLOCK_SCHED = 2
"""The clock of a process that counts the CPU time it was scheduled for (Linux, include/linux/posix-timers_types.h)."""


def facts() -> dict[str, str | int | float]:
    """Return what a reader needs to compare results with those of another machine."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
    }


def pace_ms() -> float:
    """Return how fast this machine runs now: the CPU milliseconds of a fixed walk over 200,000 objects, the median of
    five.

    The same work takes twice the CPU time while other tenants of the host use its caches and memory. Neither a loop
    over numbers nor the load average shows this. Results of two runs may be compared if their paces are similar.
    """
    things = [{"name": str(number)} for number in range(200_000)]
    taken = []
    for _ in range(5):
        begun = time.process_time()
        sum(len(things[number * 7919 % len(things)]["name"]) for number in range(len(things)))
        taken.append(time.process_time() - begun)
    return statistics.median(taken) * 1000


def read_metrics(port: int, token: str = "") -> str:
    """Return the metrics page of one of our processes; with a token by TLS, without verifying the certificate."""
    request = urllib.request.Request(f"http{'s' if token else ''}://127.0.0.1:{port}/metrics")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(request, context=context if token else None) as answer:
        return str(answer.read().decode())


def read_metric(port: int, sample: str, token: str = "") -> float:
    """Return the value of one sample, given as its name with its labels, or 0 if the page does not have it."""
    match = re.search(rf"^{re.escape(sample)} (\S+)$", read_metrics(port, token), re.MULTILINE)
    return float(match[1]) if match else 0.0


def stolen_s() -> float:
    """Return the seconds that the hypervisor gave to other guests, over all cores (proc(5), /proc/stat)."""
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(first[8]) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return _status_mib(pid, "VmRSS")


def peak_mib(pid: int) -> float:
    """Return the largest resident memory of a process in MiB, since it started or since `reset_peak`."""
    return _status_mib(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    """Make the present resident memory of a process the largest one from now on (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_mib(pid: int, field: str) -> float:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if match is None:
        raise ProcessLookupError(pid)
    return int(match[1]) / 1024


def cpu_ms(pid: int) -> float:
    """Return a process's CPU milliseconds since it started, with those of threads that have ended, from its CPU clock
    (clock_getcpuclockid(3) of glibc; Python has no function for it)."""
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED) * 1000
