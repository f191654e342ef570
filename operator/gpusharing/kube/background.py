"""Run calls that may block forever in daemon threads, so that neither the event loop nor the exit of the process waits
for them."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Background(Protocol):
    """Starts a call that may block forever in a daemon thread, and returns a future of its result."""

    def __call__(self, call: Callable[[], T], name: str) -> asyncio.Future[T]:
        """Start `call` in a thread called `name`, and return the future that gets its result or the error that it
        raised. Canceling the future does not end the call. Must be called from a running event loop."""
        ...


def in_daemon_thread(call: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Start `call` in a new daemon thread called `name`, and return a future that gets its result or the error that it
    raised. Canceling the future does not end the call. Raises RuntimeError outside a running event loop.

    asyncio.to_thread does not fit: its threads are joined at exit, and a hung one would keep the process alive.
    """
    run, future = _prepare(call)
    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class Worker:
    """Runs calls as `in_daemon_thread` does, but all of them in one thread that is kept between calls. That halves the
    cost of an occasional call.

    Calls run one after another, so if one hangs, the next ones wait. Meant for a caller that never has two calls at
    once.
    """

    def __init__(self) -> None:
        """Start no thread yet: the first call starts it and gives it its name."""
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __call__(self, call: Callable[[], T], name: str) -> asyncio.Future[T]:
        """Queue `call` and return the future that gets its result or the error that it raised. `name` is used only by
        the first call, which starts the thread. Raises RuntimeError outside a running event loop."""
        run, future = _prepare(call)
        self._calls.put(run)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._thread.start()
        return future

    def _work(self) -> None:
        """Run queued calls forever, one after another, and wait for the next one."""
        while True:
            self._calls.get()()


def _prepare(call: Callable[[], T]) -> tuple[Callable[[], None], asyncio.Future[T]]:
    """Return a function for a thread to run, and the future that then gets the result of `call` or the error that it
    raised. The outcome is dropped if the future was canceled or the event loop is closed by then. Raises
    RuntimeError outside a running event loop."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        """Give the future its result, or `error` if there is one, unless it was canceled meanwhile."""
        if future.done():  # the caller gave up
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # without an error there is a result, maybe None

    def run() -> None:
        """Run the call in this thread and hand its outcome to the event loop. Never raises."""
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
