"""Background programs of a control plane: own process group, log file, recorded pid, stopped by that pid."""

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
"""First of the ports that a system gives by itself (RFC 6335, dynamic ports), where there is no /proc to tell."""


class ComponentError(Exception):
    """A program of the control plane ended, or did not get ready in time. The text has its last log lines."""


@dataclass
class Component:
    """One running program."""

    name: str
    pid: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    """None when another process of ours started it (`up` started it, `down` stops it)."""

    def alive(self) -> bool:
        """Whether the program still runs."""
        if self.process is not None:
            return self.process.poll() is None
        return pid_exists(self.pid)

    def check(self) -> None:
        """Raise ComponentError when the program has ended."""
        if not self.alive():
            code = "" if self.process is None else f" with status {self.process.returncode}"
            raise ComponentError(f"{self.name} ended{code}; its last lines ({self.log}):\n{tail(self.log)}")

    def stop(self, *, kill: bool = False, patience: float = STOP_SECONDS) -> None:
        """End the program and wait until it is gone: TERM first, KILL after `patience` seconds or at once.

        Children that a program started by this process leaves behind get KILL.
        """
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


def start(
    name: str, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
) -> Component:
    """Start a program in its own process group with its output appended to `log`."""
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
    """Whether `pid` runs and has `mark` (our state folder) in its command line.

    Pids are used again by the system: a recorded pid alone must never be killed.
    """
    try:
        return mark in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (
        FileNotFoundError,
        ProcessLookupError,
    ):  # the latter when it ends between being opened and being read
        if Path("/proc/self").exists():
            return False
    told = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return mark in told.stdout


def pid_exists(pid: int) -> bool:
    """Whether a process with this pid exists and is no zombie."""
    if not _is_taken(pid):
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def end_group(leader: subprocess.Popen[Any], sign: signal.Signals = signal.SIGKILL) -> None:
    """Signal the process group of a program of ours, with the children that it may have left behind.

    Once the leader has been waited for, a process with its pid is somebody else's: pids are used again. As long as
    a member of the group lives, the kernel does not give the number away, so without such a process it is the group.
    """
    if leader.poll() is not None and _is_taken(leader.pid):
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, sign)


def _is_taken(pid: int) -> bool:
    """Whether any process has this pid, a zombie too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def free_ports(count: int) -> list[int]:
    """Loopback ports that are free now, for programs that are given theirs, and that may be started again on them.

    They are none of those that the system gives to whoever asks for any, or connects to somebody: one that nobody
    listens on for a moment would soon be taken. Another call of this may still find the same: callers start again then.
    """
    found: dict[int, None] = {}
    while len(found) < count:
        with socket.socket() as one, contextlib.suppress(OSError):  # somebody has it
            one.bind(("127.0.0.1", _any_port()))
            found[int(one.getsockname()[1])] = None
    return list(found)


def _any_port() -> int:
    """One that the system does not hand out automatically; 0, which lets it choose, where it hands out nearly all."""
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
    """Poll until `condition()`; `check()` runs between two looks, `poll` seconds apart, and may raise.

    Raises:
        TimeoutError: it did not come true within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(poll)


def text_of(file: Path) -> str:
    """What another program has written so far; empty where there is no file, or no more."""
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def tail(log: Path) -> str:
    """The last lines of a log file."""
    text = text_of(log)
    return "\n".join(f"  {line}" for line in text.splitlines()[-LOG_TAIL_LINES:]) or "  (nothing)"
