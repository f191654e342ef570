"""How the SIMULATED programs of a node call NVML: at once, for a reading of simulated GPUs takes microseconds.

A thread for each, as with a real library, would cost more than the reading, and at which moment of the others' work it
reads would be the machine's choice. Only a reading that hangs on purpose gets one: it is a client of NVML for as long,
and in the way of what the driver refuses beside clients, as any reading of a real library is while it lasts.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from gpusharing.agent.background import in_daemon_thread

T = TypeVar("T")
HANGING: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
"""Threads in a reading that hangs on purpose: nothing should wait for them."""


class Hang:
    """A call of NVML that does not return, and the threads that are in it."""

    def __init__(self) -> None:
        """None hangs at first."""
        self._end: threading.Event | None = None
        """Of the hang that has begun: each has its own, so that who is in one does not wait for the next."""
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    @property
    def begun(self) -> bool:
        """Whether a call that is made now does not return."""
        return self._end is not None

    def begin(self) -> None:
        """From now on calls do not return."""
        with self._lock:
            self._end = self._end or threading.Event()

    def end(self) -> None:
        """Let them return. From here on they are waited for again: when their threads get to run is the machine's
        choice, and minutes of a simulated clock might pass before."""
        with self._lock:
            HANGING.difference_update(self._threads)
            self._threads.clear()
            if self._end is not None:
                self._end.set()
            self._end = None

    def wait(self) -> None:
        """Be in such a call, for as long as it hangs."""
        with self._lock:
            if (end := self._end) is None:
                return
            thread = threading.current_thread()
            self._threads.add(thread)
            HANGING.add(thread)
        end.wait()


class CanHang(Protocol):
    """SIMULATED GPUs."""

    @property
    def hangs(self) -> bool:
        """Whether a reading that begins now does not return."""
        ...


class Readings:
    """An `agent.background.Background` for calls that read these GPUs."""

    def __init__(self, gpus: CanHang) -> None:
        self._gpus = gpus

    def __call__(self, call: Callable[[], T], name: str) -> asyncio.Future[T]:
        """See Background. What is read is of now; the caller goes on in another turn of the loop, as with a thread."""
        if self._gpus.hangs:
            return in_daemon_thread(call, name)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        try:
            loop.call_soon(_settle, future, call(), None)
        except Exception as error:  # noqa: BLE001 - handed over to the one who awaits
            loop.call_soon(_settle, future, None, error)
        return future


def _settle(future: asyncio.Future[T], result: Any, error: Exception | None) -> None:
    if future.done():  # the caller gave up
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
