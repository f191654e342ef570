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
import urllib.request
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
    """A program of the control plane ended, or did not become ready in time."""


@dataclass
class Component:
    """A program of a control plane that has been started, with its pid and its log file."""

    name: str
    pid: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    """The process object, or None if another process started the program (`up` starts it, `down` stops it)."""

    def alive(self) -> bool:
        if self.process is not None:
            return self.process.poll() is None
        return pid_exists(self.pid)

    def check(self) -> None:
        """Raise ComponentError, with the last lines of the log, if the program has ended."""
        if not self.alive():
            code = "" if self.process is None else f" with status {self.process.returncode}"
            raise ComponentError(f"{self.name} ended{code}; its last lines ({self.log}):\n{tail(self.log)}")

    def stop(self, *, kill: bool = False, patience: float = STOP_SECONDS) -> None:
        """Stop the program and its process group with SIGTERM, and SIGKILL after `patience` seconds or with `kill`."""
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
    """Start a program in a session and process group of its own, and return it."""
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
    """Whether the process runs with `mark` in its command line: pids are reused, so one alone proves nothing."""
    try:
        return mark in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        # ProcessLookupError means that the process ended between open and read.
        if Path("/proc/self").exists():
            return False
    listing = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return mark in listing.stdout


def pid_exists(pid: int) -> bool:
    """Whether a process with this pid exists and is not a zombie."""
    if not _is_taken(pid):
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def end_group(leader: subprocess.Popen[Any], sign: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to the process group that `leader` began. While a member lives, the kernel does not reuse the
    number; if another process has it, nothing is sent."""
    if leader.poll() is not None and _is_taken(leader.pid):
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, sign)


def _is_taken(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def free_ports(count: int) -> list[int]:
    """Return free ports. Another call may return the same: retry if one is taken."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = LOCAL_PORTS_FROM
    enough, ports = first - PORTS_FROM >= ENOUGH_PORTS, dict[int, None]()
    while len(ports) < count:
        with socket.socket() as server, contextlib.suppress(OSError):  # the port is in use
            server.bind(("127.0.0.1", random.randrange(PORTS_FROM, first) if enough else 0))
            ports[int(server.getsockname()[1])] = None
    return list(ports)


def wait_until(
    condition: Callable[[], bool],
    seconds: float,
    what: str,
    check: Callable[[], None] = lambda: None,
    poll: float = POLL_SECONDS,
) -> None:
    """Wait until `condition` holds, calling `check` after each poll that was false. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out after {seconds:.0f} s waiting for {what}")
        time.sleep(poll)


def responds(url: str) -> bool:
    """Whether a GET of this URL succeeds within five seconds."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


def text_of(file: Path) -> str:
    """Return what another program has written to a file so far, or an empty string if the file does not exist."""
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def tail(log: Path) -> str:
    text = text_of(log)
    return "\n".join(f"  {line}" for line in text.splitlines()[-LOG_TAIL_LINES:]) or "  (nothing)"
