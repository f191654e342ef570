"""Reads the GPUs, one reading at a time, with a deadline: a hung NVML call never delays the report that it hangs."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gpusharing.agent.library import Library, LibraryError, Reading, bug_text
from gpusharing.api.gpunode import Request
from gpusharing.kube.background import Background

Outcome = Literal["ok", "failed", "hung"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one attempt to read the library."""

    request: Request
    """The request that the reading answers, which was known before it began."""
    outcome: Outcome
    """Whether the library answered; `hung` if it has not by the deadline, but still may."""
    seconds: float
    """How long the reading has taken so far."""
    reading: Reading | None = None
    """The reading if the outcome is `ok`, else None."""
    error: str = ""
    """What went wrong and what to do, beginning with a reason; empty if the outcome is `ok`."""
    patience: int = 0
    """How many consecutive readings with this error are tolerated before the process ends; 0 if a new process would
    not help."""
    bug: Exception | None = None
    """The error if it is not one that a library announces."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A reading that is under way: the request that it answers, the future of its result, and when it started."""

    request: Request
    future: asyncio.Future[Reading]
    started: float


class Reader:
    """Reads a library in the background. At the deadline it stops waiting, but the reading continues."""

    def __init__(
        self,
        library: Library,
        hung_after: float,
        clock: Callable[[], float],
        on_late: Callable[[], None],
        background: Background,
    ) -> None:
        """Wait for a reading for `hung_after` seconds at most, measured by `clock`. `on_late` is called when a reading
        returns after its deadline. `background` starts the reading in a thread."""
        self._library = library
        self._background = background
        self._hung_after = hung_after
        self._clock = clock
        self._on_late = on_late
        self._attempt: _Attempt | None = None
        self._late: _Attempt | None = None

    async def read(self, request: Request) -> Answer:
        """Start a reading for this request, or wait for one that is still under way for an earlier request, and return
        the outcome with the request that it answers. The outcome is `hung` if the reading has not returned within
        `hung_after` seconds of its start. An error becomes the outcome `failed`.

        A second reading never starts while one hangs: it would hang too, and leak a thread at every turn.
        """
        if (attempt := self._attempt) is None:
            future = self._background(self._library.read, "nvml-reading")
            self._attempt = attempt = _Attempt(request, future, self._clock())
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
        except Exception as bug:  # noqa: BLE001 -- the error is reported, and the next turn reads again
            return Answer(attempt.request, "failed", seconds, error=bug_text(bug), bug=bug)

    def _hung(self, attempt: _Attempt, seconds: float) -> Answer:
        """Return an answer with outcome `hung`, and have `on_late` called once if the reading returns after all. The
        error message does not contain the elapsed seconds, so that repeated reports are equal."""
        if self._late is not attempt:
            self._late = attempt
            attempt.future.add_done_callback(lambda _: self._on_late())
        error = (
            f"NVMLHung: a reading did not return within {self._hung_after:g} s; the driver or a GPU is hung. "
            "See `dmesg | grep -i xid` on the node; if it does not recover, drain and reboot the node"
        )
        return Answer(attempt.request, "hung", seconds, error=error)
