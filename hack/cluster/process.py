"""Starts, watches and ends background programs, each with a process group of its own, and waits for conditions.

Most are programs of a control plane (`Component`), which have a log file and can be ended by their recorded pid.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STOP_SECONDS = 10.0
POLL_SECONDS = 0.02
LOG_TAIL_LINES = 15
PORTS_FROM, ENOUGH_PORTS = 10_000, 5_000
LOCAL_PORTS_FROM = 49_152
"""The first dynamic port (RFC 6335), which a system may assign itself; used where /proc does not say."""


class ComponentError(Exception):
    """A program of the control plane ended, or did not become ready in time. The message has its last log lines."""


@dataclass
class Component:
    """A program of a control plane that has been started, with its pid and its log file."""

    name: str
    pid: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    """The process object, or None if another process started the program (`up` starts it, `down` stops it)."""

    def alive(self) -> bool:
        """Whether the program is still running. If another process started it, any process with its pid counts, except
        a zombie."""
        if self.process is not None:
            return self.process.poll() is None
        return pid_exists(self.pid)

    def check(self) -> None:
        """Raise ComponentError, with the exit status if it is known and the last lines of the log, if the program has
        ended."""
        if not self.alive():
            code = "" if self.process is None else f" with status {self.process.returncode}"
            raise ComponentError(f"{self.name} ended{code}; its last lines ({self.log}):\n{tail(self.log)}")

    def stop(self, *, kill: bool = False, patience: float = STOP_SECONDS) -> None:
        """End the program and wait until it is gone. Its process group gets SIGTERM and, if the program still runs
        after `patience` seconds, SIGKILL; with `kill`, it gets SIGKILL at once. If this process started the
        program, what is left of the group is killed as well, even if the program had already ended. If another
        process started it, the wait ends `patience` seconds after SIGKILL, even if the program still runs."""
        for sign in (signal.SIGKILL,) if kill else (signal.SIGTERM, signal.SIGKILL):
            if not self.alive():
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sign)
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: not self.alive(), patience, f"{self.name} to end")
        if self.process is not None:
            end_group(self.process)
            self.process.wait()


def start(name: str, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> Component:
    """Start a program in a session and process group of its own, and return it. Its output is appended to `log`, and
    `environ` is added to our environment. Raises OSError if the program or the folder of the log does not exist."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
    return Component(name, process.pid, log, process)


def is_ours(pid: int, mark: str) -> bool:
    """Whether the process `pid` is running and has `mark` (our state folder) anywhere in its command line, which is
    read from /proc, or with `ps` on a system without it. The system reuses pids, so a recorded pid alone does not
    permit us to kill the process."""
    try:
        return mark in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        # ProcessLookupError means that the process ended between open and read.
        if Path("/proc/self").exists():
            return False
    listing = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return mark in listing.stdout


def pid_exists(pid: int) -> bool:
    """Whether a process with this pid exists and is not a zombie. Without /proc, a zombie counts, too."""
    if not _is_taken(pid):
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def end_group(leader: subprocess.Popen[Any], sign: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to the process group of a program that we started, including children that it left behind. Does
    nothing if the group has ended.

    Nothing is sent if the leader has ended and a process has its pid, because that is an unrelated process: while any
    member of the group lives, the kernel does not reuse the number. If no process has the pid, the number still means
    our group.
    """
    if leader.poll() is not None and _is_taken(leader.pid):
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, sign)


def _is_taken(pid: int) -> bool:
    """Whether a process has this pid, even a zombie or another user's process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def free_ports(count: int) -> list[int]:
    """Return `count` different loopback ports that are free now, for programs that may be restarted on the same ports.

    If enough ports are left, they are outside the range from which the system itself assigns ports, because the system
    could assign a port that is briefly unused during a restart. Another call may return the same ports, so callers must
    retry if a port is taken.
    """
    ports: dict[int, None] = {}
    while len(ports) < count:
        with socket.socket() as server, contextlib.suppress(OSError):  # the port is in use
            server.bind(("127.0.0.1", _any_port()))
            ports[int(server.getsockname()[1])] = None
    return list(ports)


def _any_port() -> int:
    """Return a random port from PORTS_FROM up to the range from which the system itself assigns ports; it may be in
    use. If that leaves fewer than ENOUGH_PORTS to choose from, return 0, which lets the system choose."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = LOCAL_PORTS_FROM
    return random.randrange(PORTS_FROM, first) if first - PORTS_FROM >= ENOUGH_PORTS else 0


def wait_until(
    condition: Callable[[], bool],
    seconds: float,
    what: str,
    check: Callable[[], None] = lambda: None,
    poll: float = POLL_SECONDS,
) -> None:
    """Poll `condition` every `poll` seconds, at least once, until it is true. `check` is called after each poll that
    was false. Errors of both pass through. Raises TimeoutError with the message "timed out after … waiting for `what`"
    if the condition is still false at the first poll after `seconds`; a poll that has begun is never interrupted."""
    deadline = time.monotonic() + seconds
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out after {seconds:.0f} s waiting for {what}")
        time.sleep(poll)


def text_of(file: Path) -> str:
    """Return what another program has written to a file so far, or an empty string if the file does not exist."""
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def tail(log: Path) -> str:
    """Return the last LOG_TAIL_LINES lines of a log file, indented, or an indented `(nothing)` if it is empty or
    missing."""
    text = text_of(log)
    return "\n".join(f"  {line}" for line in text.splitlines()[-LOG_TAIL_LINES:]) or "  (nothing)"
