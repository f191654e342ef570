"""Starts operators in a few milliseconds: a process that has imported everything forks them.

A start costs 0.9 s of imports; the crash matrix needs hundreds. What is forked is the shipped `main`, a process of
its own that can be killed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from hack.cluster.process import pid_exists, wait_until
from hack.stage import DEBUG, PYTHONPATH, ROOT, own_environment

MOTHER = """\
import json, os, signal, sys
import gpusharing.controller.main as program
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number in (1, 2):
            os.dup2(log, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(order["environment"])
        program.main()
        os._exit(0)
    print(pid, flush=True)
"""


class Nursery:
    """Forks operators; ends those that still run when it is closed."""

    def __init__(self) -> None:
        self._mother: subprocess.Popen[str] | None = None
        self._pids: set[int] = set()

    def __enter__(self) -> Self:
        """Import everything once."""
        self._mother = subprocess.Popen(
            [sys.executable, "-c", MOTHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**own_environment(), "PYTHONPATH": PYTHONPATH, **DEBUG},
        )
        assert self._read() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        """End all of them."""
        for pid in list(self._pids):
            self.kill(pid)
        assert self._mother is not None, "entered before"
        self._mother.communicate(timeout=60)

    def start(self, environment: Mapping[str, str], log: Path) -> int:
        """A new operator; returns its process id."""
        assert self._mother is not None, "enter it before"
        assert self._mother.stdin is not None
        self._mother.stdin.write(json.dumps({"environment": dict(environment), "log": str(log)}) + "\n")
        self._mother.stdin.flush()
        pid = int(self._read())
        self._pids.add(pid)
        return pid

    def kill(self, pid: int) -> None:
        """SIGKILL, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not pid_exists(pid), 60, f"process {pid} to end")
        self._pids.discard(pid)

    def _read(self) -> str:
        assert self._mother is not None, "enter it before"
        assert self._mother.stdout is not None
        return self._mother.stdout.readline().strip()
