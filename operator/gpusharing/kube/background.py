"""Run calls that may block forever, so that neither the event loop nor the end of the process waits.

`in_daemon_thread` and `new_worker` run single calls in daemon threads; `CommandLoop` is the event loop of a command at
a terminal.
"""

import asyncio
import queue
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Background: TypeAlias = Callable[[Callable[[], Any], str], asyncio.Future[Any]]
"""Starts a call in a daemon thread of this name, and returns a future; such as `in_daemon_thread`."""


def in_daemon_thread(call: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Start `call` in a daemon thread, and return a future of its result, whose cancellation does not end the call.

    asyncio.to_thread does not fit: its threads are joined at exit, and a hung one would keep the process alive.
    """
    run, future = _prepare(call)
    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def new_worker() -> Background:
    """Return a function that starts calls as `in_daemon_thread` does, one by one in one thread: half the cost."""
    calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    thread: threading.Thread | None = None

    def work() -> None:
        while True:
            calls.get()()

    def start(call: Callable[[], T], name: str) -> asyncio.Future[T]:
        nonlocal thread
        run, future = _prepare(call)
        calls.put(run)
        if thread is None:
            thread = threading.Thread(target=work, name=name, daemon=True)
            thread.start()
        return future

    return start


def _prepare(call: Callable[[], T]) -> tuple[Callable[[], None], asyncio.Future[T]]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[], None]) -> None:
        if not future.done():  # else the caller gave up
            set_outcome()

    def run() -> None:
        try:
            outcome = partial(future.set_result, call())
        except BaseException as error:  # noqa: BLE001 - handed over to whoever awaits the future
            outcome = partial(future.set_exception, error)
        with suppress(RuntimeError):  # the event loop is closed, so nothing awaits the result
            loop.call_soon_threadsafe(settle, outcome)

    return run, future


KILLED_EVERY = 0.01
"""Seconds between two checks whether a killed login program has ended."""


class CommandLoop(asyncio.SelectorEventLoop):
    """An event loop that can end the programs started on it, and resolves host names in daemon threads."""

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
        """Kill the programs that still run, though not what they started, and wait until they have ended."""
        for program in self._programs:
            program.close()
        while any(program.get_returncode() is None for program in self._programs):  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(KILLED_EVERY)


def run_command(command: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=CommandLoop) as runner:
        return runner.run(command)
