"""Starts operators in a few milliseconds: a process that has imported everything forks them.
A start costs 0.9 s of imports; the crash matrix needs hundreds. What is forked is the shipped `main`, a process of its own that can be killed. The process that forked them waits for one only when it is told to. Until then the system gives the pid to nobody else, so that what is killed is always an operator of ours."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from hack.cluster.process import wait_until
from hack.launch import DEBUG, PYTHONPATH, ROOT, own_environment

MOTHER = """\
import json, os, sys
from hack import inpod
inpod.hide()
import gpusharing.controller.leading  # which main imports once the process leads
import gpusharing.controller.main as program
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "reap" in order:
        print(os.waitpid(order["reap"], os.WNOHANG)[0], flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number in (1, 2):
            os.dup2(log, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(order["environment"])
        program.main()
        os._exit(0)
    print(pid, flush=True)
"""


WAITS = {"22", "232", "281", "441"}
"""epoll_wait, epoll_pwait and epoll_pwait2 (syscall_64.tbl for x86-64, asm-generic/unistd.h for arm64; Linux 6.1)."""


def freeze(pid: int) -> bool:
    """SIGSTOP, as a hypervisor that stops a machine; whether its event loop was waiting, with nothing in hand.

    Of a main thread in the middle of its work, proc_pid_syscall(5) says -1, or the number of another call.
    """
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: _proc(pid, "stat").rpartition(")")[2].split()[0] == "T", 10, "it to stand still")
    return _proc(pid, "syscall").split()[0] in WAITS


def _proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text(encoding="ascii")


class Nursery:
    """Forks operators; ends those that still run when it is closed."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: more of it, for what must be there before anything is imported."""
        self._more = dict(environment or {})
        self._mother: subprocess.Popen[str] | None = None
        self._pids: set[int] = set()
        self._talk = threading.Lock()

    def __enter__(self) -> Self:
        self._mother = subprocess.Popen(
            [sys.executable, "-c", MOTHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**own_environment(), "PYTHONPATH": PYTHONPATH, **DEBUG, **self._more},
        )
        assert self._read() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self._pids):
            self.kill(pid)
        assert self._mother is not None, "entered before"
        self._mother.communicate(timeout=60)

    def start(self, environment: Mapping[str, str], log: Path) -> int:
        pid = self._ask({"environment": dict(environment), "log": str(log)})
        self._pids.add(pid)
        return pid

    def strike(self, pid: int) -> None:
        """SIGKILL, without waiting; harmless when it has ended.

        Raises: ValueError: it was waited for, so that the pid may be somebody else's.
        """
        self._check(pid)
        os.kill(pid, signal.SIGKILL)

    def freeze(self, pid: int) -> bool:
        """See `freeze` above.

        Raises: ValueError: as `strike`.
        """
        self._check(pid)
        return freeze(pid)

    def wake(self, pid: int) -> None:
        """SIGCONT.

        Raises: ValueError: as `strike`.
        """
        self._check(pid)
        os.kill(pid, signal.SIGCONT)

    def has_ended(self, pid: int) -> bool:
        """Whether it ended by itself, or was struck; it is waited for then."""
        if pid in self._pids and self._ask({"reap": pid}) == pid:
            self._pids.discard(pid)
        return pid not in self._pids

    def wait(self, pid: int) -> None:
        wait_until(lambda: self._ask({"reap": pid}) == pid, 60, f"process {pid} to end")
        self._pids.discard(pid)

    def kill(self, pid: int) -> None:
        """SIGKILL, and wait until it is gone; nothing when it was waited for."""
        if pid in self._pids:
            self.strike(pid)
            self.wait(pid)

    def _check(self, pid: int) -> None:
        if pid not in self._pids:
            raise ValueError(f"{pid} is not an operator of ours")

    def _ask(self, order: Mapping[str, object]) -> int:
        assert self._mother is not None, "enter it before"
        assert self._mother.stdin is not None
        with self._talk:
            self._mother.stdin.write(json.dumps(order) + "\n")
            self._mother.stdin.flush()
            return int(self._read())

    def _read(self) -> str:
        assert self._mother is not None, "enter it before"
        assert self._mother.stdout is not None
        return self._mother.stdout.readline().strip()
