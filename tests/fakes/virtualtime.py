"""An event loop whose time runs only when everybody waits: minutes pass in milliseconds, without races.
For code that sleeps and talks to fakes in the same process. Nothing in such a loop may wait for the network; work in threads is waited for, but for a SIMULATED reading of GPUs that hangs on purpose."""

import asyncio
import functools
import random
import selectors
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from hack.sim.readings import HANGING

Result = TypeVar("Result")
Args = ParamSpec("Args")
PATIENCE = 120.0
"""Real seconds; a thread that works longer is a mistake."""
BEGIN = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
"""The wall clock of `virtual_now` when a loop begins."""
_FIRST = 1000.0

Ready = list[tuple[selectors.SelectorKey, int]]


class _Selector(selectors.PollSelector):
    """Instead of waiting until the next timer it moves the loop's time there.

    poll() keeps its list of files in the process. epoll would keep it in the kernel, where a fork (forks.py) shares it.
    """

    loop: "VirtualLoop"

    def __init__(self) -> None:
        super().__init__()
        self._before = set(threading.enumerate())

    def select(self, timeout: float | None = None) -> Ready:
        if timeout is not None and timeout <= 0:
            return [] if self._is_alone() else super().select(0)
        if ready := self._wait_for_threads():
            return ready
        if timeout is None:
            raise RuntimeError("deadlock: every task waits and no timer runs")
        self.loop.now += timeout
        return super().select(0)

    def _is_alone(self) -> bool:
        """No file is open but the loop's own pipe. A byte in it says that a thread has put a call into the loop, and the loop makes that call in this very round, whether or not it knows of the byte."""
        return len(self.get_map()) <= 1

    def _wait_for_threads(self) -> Ready:
        patient_until = time.monotonic() + PATIENCE
        while working := self.working():
            if ready := super().select(0.0002):
                return ready
            if time.monotonic() > patient_until:
                raise RuntimeError(f"threads do not end: {working}")
        return super().select(0)  # one that ended a moment ago has left its result

    def working(self) -> set[threading.Thread]:
        """Threads that were started in this loop and are to end."""
        return set(threading.enumerate()) - self._before - set(HANGING)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = _FIRST
        self._virtual = _Selector()
        self._virtual.loop = self
        super().__init__(self._virtual)

    def time(self) -> float:
        return self.now

    def finish_threads(self) -> None:
        """Wait until no thread works; what they found is handled by the loop in its next round."""
        for thread in self._virtual.working():
            thread.join(PATIENCE)
            if thread.is_alive():
                raise RuntimeError(f"a thread does not end: {thread}")


def run_virtually(main: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtually(test: Callable[Args, Coroutine[Any, Any, Result]]) -> Callable[Args, Result]:
    """Decorator of an async test: it runs in virtual time, and with the same random numbers every time."""

    @functools.wraps(test)
    def run(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        random.seed(test.__name__)
        return run_virtually(test(*args, **kwargs))

    return run


def virtual_now() -> datetime:
    return BEGIN + timedelta(seconds=asyncio.get_running_loop().time() - _FIRST)
