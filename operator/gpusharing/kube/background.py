"""Run calls that may block forever in daemon threads, so that neither the event loop nor the exit of the process waits for them."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Background: TypeAlias = Callable[[Callable[[], Any], str], asyncio.Future[Any]]
"""Starts a call in a daemon thread of this name, and returns a future of its result: `in_daemon_thread` or a `Worker`."""


def in_daemon_thread(call: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Start `call` in a new daemon thread, and return a future of its result. Canceling the future does not end the call.

    asyncio.to_thread does not fit: its threads are joined at exit, and a hung one would keep the process alive.
    """
    run, future = _prepare(call)
    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class Worker:
    """Runs calls as `in_daemon_thread` does, but all in one thread that is kept between calls, at half the cost.

    Calls run one after another, so if one hangs, the next ones wait.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __call__(self, call: Callable[[], T], name: str) -> asyncio.Future[T]:
        """Queue `call` and return a future of its result. Only the first call's `name` counts."""
        run, future = _prepare(call)
        self._calls.put(run)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._thread.start()
        return future

    def _work(self) -> None:
        while True:
            self._calls.get()()


def _prepare(call: Callable[[], T]) -> tuple[Callable[[], None], asyncio.Future[T]]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():  # the caller gave up
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # without an error there is a result, maybe None

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = call()
        except BaseException as raised:  # noqa: BLE001 - handed over to whoever awaits the future
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            return  # the event loop is closed, so nothing awaits the result

    return run, future
