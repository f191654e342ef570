"""The programs of one node's pods. They are started, stopped and, if they end on their own, restarted, as a kubelet
does with containers."""

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
"""The first and the longest pause between restarts, doubled each time; a kubelet uses 10 s and 5 min."""


class Task(Protocol):
    """One program, which a container runs."""

    def start(self) -> object:
        """Start the program; it must not be running."""

    def alive(self) -> bool:
        """Whether the program is running."""

    def kill(self) -> None:
        """End the program with SIGKILL, as the kubelet does when the grace period is over."""

    def stop(self) -> None:
        """End the program with SIGTERM and wait for its end."""


class SandboxTask:
    """One of NVIDIA's programs. Those with the same `proc` see one another, as in a shared PID namespace."""

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
        """Start the program, wait until it has replaced the shell, and show it to those that share `proc`."""
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
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def run(self, seconds: float) -> int:
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
        for number in dict.fromkeys((sign, signal.SIGKILL)):
            if self._process.poll() is None:
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)
        end_group(self._process)
        self.proc.hide(self._process.pid)
        self._process = None

    def _wait_for_program(self, process: "subprocess.Popen[str]") -> None:
        """Wait until the process runs the program: before that it is `unshare` and then a shell."""
        wanted = os.fsencode(build.program(self.program)) + b"\0"
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(wanted):
                return
            time.sleep(0.005)


class RestartedTask:
    def __init__(self, task: Task) -> None:
        self.task = task
        self._pause = FIRST_RESTART
        self._not_before = 0.0

    def look(self) -> None:
        """Start the task, or restart it if it has ended and its pause has passed."""
        if self.task.alive():
            return
        self.task.stop()  # clean up, so that other programs of the pod do not see an ended process during the pause
        now = time.monotonic()
        if now < self._not_before:
            return
        self.task.start()
        self._not_before, self._pause = now + self._pause, min(self._pause * 2, LAST_RESTART)


class PodProcesses:
    """The processes of one pod: first the init containers, then the containers in parallel."""

    def __init__(self, uid: str, containers: Sequence[Task], init: Callable[[], bool]) -> None:
        self.uid = uid
        self._containers = [RestartedTask(task) for task in containers]
        self._init = init
        self._ready = False

    def look(self) -> None:
        """Run `init` until it succeeds, then start the containers, and restart those that have ended."""
        self._ready = self._ready or self._init()
        if self._ready:
            for container in self._containers:
                container.look()

    def kill(self, number: int = 0) -> None:
        """Kill the process of container `number`, by default the first; a later `look` restarts it."""
        self._containers[number].task.kill()

    def stop(self) -> None:
        for container in self._containers:
            container.task.stop()
