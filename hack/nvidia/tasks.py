"""Programs of one node's pods: started, ended, and started again when they end by themselves, as a kubelet does."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from hack.cluster.process import end_group
from hack.nvidia import build
from hack.nvidia.sandbox import KUBELET_PLUGINS, ProcessView, Sandbox

START_SECONDS, STOP_SECONDS = 20.0, 20.0
FIRST_RESTART, LAST_RESTART = 1.0, 10.0
"""Seconds between restarts of a container, doubled each time; a kubelet takes 10 s and 5 min."""


class Task(Protocol):
    """One program."""

    def start(self) -> object:
        """Start it."""

    def alive(self) -> bool:
        """Whether it runs."""

    def kill(self) -> None:
        """SIGKILL, as the kubelet's when the grace period is over."""

    def stop(self) -> None:
        """SIGTERM, and wait."""


class SandboxTask:
    """One of NVIDIA's programs in the sandbox. Those with the same `proc` see it, as in a shared PID namespace."""

    def __init__(
        self,
        sandbox: Sandbox,
        program: str,
        *arguments: str,
        log: Path,
        extra: Mapping[str, str] | None = None,
        added: Sequence[str] = (),
        proc: ProcessView | None = None,
    ) -> None:
        self.sandbox, self.program, self.arguments = sandbox, program, arguments
        self.proc = proc or sandbox.proc
        self.log, self.extra, self.added = log, extra, added
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """See Task. It returns when the program itself runs, as a container runtime does: whoever looks finds it."""
        with self.log.open("a") as log:
            self._process = self.sandbox.start(
                self.program,
                *self.arguments,
                log=log,
                extra=self.extra,
                binds={KUBELET_PLUGINS: self.sandbox.plugins},
                added=self.added,
                proc=self.proc,
            )
        self._wait_for_program(self._process)
        self.proc.show(self._process.pid)

    def alive(self) -> bool:
        """See Task."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """See Task."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """See Task."""
        self._end(signal.SIGTERM)

    def run(self, seconds: float) -> int:
        """Run it to its end, as an init container; returns its status."""
        self.start()
        assert self._process is not None, "just started"
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return -1
        finally:
            self.kill()

    def _end(self, sign: signal.Signals) -> None:
        if self._process is None:
            return
        for one in dict.fromkeys((sign, signal.SIGKILL)):
            if self._process.poll() is None:
                self._process.send_signal(one)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)
        end_group(self._process)
        self.proc.hide(self._process.pid)
        self._process = None

    def _wait_for_program(self, process: "subprocess.Popen[str]") -> None:
        """Before it there are `unshare` and a shell, and for a moment of each exec no command line at all."""
        wanted = os.fsencode(build.program(self.program)) + b"\0"
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(wanted):
                return
            time.sleep(0.005)


class RestartedTask:
    """A task that is started again when it ends."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._pause = FIRST_RESTART
        self._not_before = 0.0

    def look(self) -> None:
        """Start it when it does not run, unless it has ended too often of late."""
        if self.task.alive():
            return
        self.task.stop()  # what is left of the last one: a pod sees no process that has ended, however long it waits
        now = time.monotonic()
        if now < self._not_before:
            return
        self.task.start()
        self._not_before, self._pause = now + self._pause, min(self._pause * 2, LAST_RESTART)


class PodProcesses:
    """What runs on the node while one pod is there: init steps in order, then the containers side by side."""

    def __init__(self, uid: str, containers: Sequence[Task], init: Callable[[], bool]) -> None:
        """`init` is called until it says True: volumes are there and init containers have ended well."""
        self.uid = uid
        self._containers = [RestartedTask(task) for task in containers]
        self._init = init
        self._ready = False

    def look(self) -> None:
        """Start what should run."""
        self._ready = self._ready or self._init()
        if self._ready:
            for container in self._containers:
                container.look()

    def kill(self, number: int = 0) -> None:
        """The process of one container dies; the kubelet starts it again."""
        self._containers[number].task.kill()

    def stop(self) -> None:
        """The pod is deleted: all its processes end."""
        for container in self._containers:
            container.task.stop()
