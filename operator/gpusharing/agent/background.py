"""Calls that may block for ever, in daemon threads: neither the event loop nor the exit waits for them."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Background(Protocol):
    """Starts a call that may block for ever, in a thread of that name; the future carries the result."""

    def __call__(self, call: Callable[[], T], name: str) -> asyncio.Future[T]:
        """Call it in the running event loop."""
        ...


def in_daemon_thread(call: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Start the call in a thread of its own.

    asyncio.to_thread will not do: its threads are joined at exit, and a hung one would hold the process.
    """
    run, future = _prepare(call)
    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class Worker:
    """Like `in_daemon_thread`, in one thread that stays: that halves the cost of an occasional call.

    Calls run one after the other: if one hangs, the next waits. For a caller that never has two at once.
    """

    def __init__(self) -> None:
        """The thread starts with the first call and has its name."""
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __call__(self, call: Callable[[], T], name: str) -> asyncio.Future[T]:
        """See Background."""
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
    """What a thread has to run, and the future that then carries the result."""
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
        except BaseException as raised:  # noqa: BLE001 - handed over to the one who awaits
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    return run, future
