"""The event loop of a command. What hangs on it does not hold up the end of the command."""

import asyncio
import socket
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from gpusharing.kube.background import in_daemon_thread

T = TypeVar("T")
KILLED_EVERY = 0.01
"""Seconds between two checks whether a killed login program has ended."""


class CommandLoop(asyncio.SelectorEventLoop):
    """An event loop that looks up host names in daemon threads and can end the programs that were started on it."""

    def __init__(self) -> None:
        super().__init__()
        self._programs: list[asyncio.SubprocessTransport] = []

    async def getaddrinfo(self, *arguments: Any, **options: Any) -> Any:
        # The base class uses a pool of threads, in which names that cannot be resolved keep others waiting (six threads
        # on two cores), and which a command must wait for at its end, for 40 s or more.
        return await in_daemon_thread(partial(socket.getaddrinfo, *arguments, **options), "getaddrinfo")

    async def subprocess_exec(self, *arguments: Any, **options: Any) -> Any:
        started = await super().subprocess_exec(*arguments, **options)
        self._programs.append(started[0])
        return started

    async def end_programs(self) -> None:
        """Kill the programs that still run, and wait until they have ended, without a limit of time.

        Processes that they started themselves are left alone: one may be the user's browser, in which to log in.
        """
        for program in self._programs:
            program.close()
        while any(program.get_returncode() is None for program in self._programs):  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(KILLED_EVERY)


def run_command(command: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=CommandLoop) as runner:
        return runner.run(command)
