"""One reading at a time, with a deadline: a hung NVML call never blocks the report that it hangs."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gpusharing.agent.background import Background
from gpusharing.agent.library import Library, LibraryError, Reading
from gpusharing.api.gpunode import Request

Outcome = Literal["ok", "failed", "hung"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of asking the library."""

    request: Request
    """The request that was known before the reading began."""
    outcome: Outcome
    """`hung`: the library has not answered in time, and may yet."""
    seconds: float
    """How long it took so far."""
    reading: Reading | None = None
    """The reading of an `ok`."""
    error: str = ""
    """What went wrong and what to do, beginning with a reason; empty with `ok`."""
    patience: int = 0
    """Readings in a row with this error after which only a new process can help; 0: never."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    request: Request
    future: asyncio.Future[Reading]
    started: float


class Reader:
    """Asks a library in the background and gives up waiting, not the reading, at the deadline."""

    def __init__(
        self,
        library: Library,
        hung_after: float,
        clock: Callable[[], float],
        on_late: Callable[[], None],
        background: Background,
    ) -> None:
        """`hung_after` in seconds; `on_late` is called when a reading that was given up on returns."""
        self._library = library
        self._background = background
        self._hung_after = hung_after
        self._clock = clock
        self._on_late = on_late
        self._attempt: _Attempt | None = None
        self._late: _Attempt | None = None

    async def read(self, request: Request) -> Answer:
        """Read for this request, or collect the reading that is still under way for an earlier one.

        A second reading never starts beside one that hangs: it would hang too and leak a thread a turn.
        """
        attempt = self._attempt or self._begin(request)
        left = attempt.started + self._hung_after - self._clock()
        await asyncio.wait({attempt.future}, timeout=max(0.0, left))
        seconds = self._clock() - attempt.started
        if not attempt.future.done():
            return self._hung(attempt, seconds)
        self._attempt = None
        try:
            return Answer(attempt.request, "ok", seconds, attempt.future.result())
        except LibraryError as error:
            text = f"{error.reason}: {error}"
            return Answer(attempt.request, "failed", seconds, error=text, patience=error.patience)

    def _begin(self, request: Request) -> _Attempt:
        future = self._background(self._library.read, "nvml-reading")
        self._attempt = _Attempt(request, future, self._clock())
        return self._attempt

    def _hung(self, attempt: _Attempt, seconds: float) -> Answer:
        """Return an answer with outcome `hung`, and have `on_late` called once if the reading returns after all. The
        text of the error omits the elapsed seconds, so that repeated reports are equal."""
        if self._late is not attempt:
            self._late = attempt
            attempt.future.add_done_callback(lambda _: self._on_late())
        # No running count of seconds in the text: it would make every report a new one.
        error = (
            f"NVMLHung: a reading did not return within {self._hung_after:g} s; the driver or a GPU hangs. "
            "See `dmesg | grep -i xid` on the node; if it does not recover, drain and reboot the node"
        )
        return Answer(attempt.request, "hung", seconds, error=error)
