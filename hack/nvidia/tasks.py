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
"""The first and the longest pause in seconds between two restarts of a container. Each pause is twice the one before.
A kubelet uses 10 s and 5 min."""


class Task(Protocol):
    """One program, which a container runs."""

    def start(self) -> object:
        """Start the program; it must not be running."""

    def alive(self) -> bool:
        """Whether the program is running."""

    def kill(self) -> None:
        """End the program with SIGKILL, as the kubelet does when the grace period is over."""

    def stop(self) -> None:
        """End the program with SIGTERM and wait for its end. Does nothing if the program was never started."""


class SandboxTask:
    """One of NVIDIA's programs in the sandbox. Programs with the same `proc` see one another, as in a shared PID
    namespace."""

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
        """Prepare the program; nothing runs yet. Its output is appended to `log`, `extra` are further environment
        variables, and `added` are folders as in `Sandbox.command`. Without `proc`, the program is shown to all
        programs of the sandbox that have no `proc` either."""
        self.sandbox, self.program, self.arguments = sandbox, program, arguments
        self.proc = proc or sandbox.proc
        self.log, self.extra, self.added = log, extra, added
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the program, wait until it has replaced the shell, but at most START_SECONDS, and show it to the
        programs with the same `proc`, so that they find it by its name. A program that ends at once, or is not up by
        then, is no error. Raises UnavailableError if the program cannot be built, and SandboxError for mig-manager,
        which needs HOST_ROOT_MOUNT."""
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
        """Whether the program has been started and is still running; False after it has ended on its own, and after
        `stop` or `kill`."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End the program, and what is left of its process group, with SIGKILL, and hide it from other programs. Does
        nothing if the program is not started."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the program with SIGTERM, or with SIGKILL if it has not ended after STOP_SECONDS, kill what is left of
        its process group, and hide it from other programs. Does nothing if the program is not started."""
        self._end(signal.SIGTERM)

    def run(self, seconds: float) -> int:
        """Run the program and wait for its end, as for an init container. What is left of its process group is killed
        then. Returns the exit status, or -1 if the program was killed after `seconds`. Raises UnavailableError if the
        program cannot be built, and SandboxError for mig-manager."""
        self.start()
        assert self._process is not None, "just started"
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return -1
        finally:
            self.kill()

    def _end(self, sign: signal.Signals) -> None:
        """Send the signal and wait, and send SIGKILL if the program is still running after STOP_SECONDS. After SIGKILL
        wait for STOP_SECONDS at most, too; no error is raised then. Then kill what is left of its process group, and
        hide the process. Does nothing if the program is not started."""
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
        """Wait until the process runs the program or has ended, but at most START_SECONDS; no error is raised then.
        Before that it is `unshare` and then a shell, and during each exec it has no command line."""
        wanted = os.fsencode(build.program(self.program)) + b"\0"
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(wanted):
                return
            time.sleep(0.005)


class RestartedTask:
    """A task that is restarted when it ends. The pause before each restart grows from FIRST_RESTART to LAST_RESTART,
    and never shrinks."""

    def __init__(self, task: Task) -> None:
        """Prepare to restart `task`; the first `look` starts it without a pause."""
        self.task = task
        self._pause = FIRST_RESTART
        self._not_before = 0.0

    def look(self) -> None:
        """Start the task if it is not running and the pause since its last start has passed. The next pause is then
        twice as long, up to LAST_RESTART. A task that has ended is cleaned up with its `stop` first, even during the
        pause. Errors of `start` pass through, and the next call then tries again without a pause."""
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
        """Prepare the processes of the pod with this UID; nothing runs yet. `init` is called repeatedly until it
        returns True: the volumes are then mounted, and the init containers have succeeded. `containers` are started in
        this order."""
        self.uid = uid
        self._containers = [RestartedTask(task) for task in containers]
        self._init = init
        self._ready = False

    def look(self) -> None:
        """Call `init` unless it has returned True before. Once it has, start the containers, and restart those that
        have ended and whose pause is over. Waits while `init` runs and while each program starts. Raises what these
        raise, such as UnavailableError if a program cannot be built; the later containers are then left for the next
        call."""
        self._ready = self._ready or self._init()
        if self._ready:
            for container in self._containers:
                container.look()

    def kill(self, number: int = 0) -> None:
        """Kill the process of container `number`, by default the first; a later `look` restarts it. Does nothing if it
        is not running. Raises IndexError if there is no such container."""
        self._containers[number].task.kill()

    def stop(self) -> None:
        """Stop all processes, one after another, because the pod is deleted. The containers are not marked as stopped,
        so call no `look` afterwards."""
        for container in self._containers:
            container.task.stop()
