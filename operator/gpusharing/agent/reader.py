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
    """`hung` if the library has not answered by the deadline, but still may."""
    seconds: float
    reading: Reading | None = None
    error: str = ""
    """What went wrong and what to do, beginning with a reason; empty if the outcome is `ok`."""
    patience: int = 0
    """See `LibraryError.patience`."""
    bug: Exception | None = None
    """The error if it is not one that a library announces."""


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
        self._library = library
        self._background = background
        self._hung_after = hung_after
        self._clock = clock
        self._on_late = on_late
        self._attempt: tuple[Request, asyncio.Future[Reading], float] | None = None
        """The reading that is under way, with its request and its start."""
        self._is_late = False

    async def read(self, request: Request) -> Answer:
        """Read for this request, or wait for a reading that is still under way for an earlier one.

        A second reading never starts while one hangs: it would hang too, and leak a thread at every turn.
        """
        if self._attempt is None:
            future = self._background(self._library.read, "nvml-reading")
            self._attempt, self._is_late = (request, future, self._clock()), False
        request, future, started = self._attempt
        await asyncio.wait({future}, timeout=max(0.0, started + self._hung_after - self._clock()))
        seconds = self._clock() - started
        if not future.done():
            if not self._is_late:
                self._is_late = True
                future.add_done_callback(lambda _: self._on_late())
            why = (  # without the elapsed seconds, so that repeated reports are equal
                f"NVMLHung: a reading did not return within {self._hung_after:g} s; the driver or a GPU is hung. "
                "See `dmesg | grep -i xid` on the node; if it does not recover, drain and reboot the node"
            )
            return Answer(request, "hung", seconds, error=why)
        self._attempt = None
        try:
            return Answer(request, "ok", seconds, future.result())
        except LibraryError as error:
            return Answer(
                request, "failed", seconds, error=f"{error.reason}: {error}", patience=error.patience
            )
        except Exception as bug:  # noqa: BLE001 -- the error is reported, and the next turn reads again
            return Answer(request, "failed", seconds, error=bug_text(bug), bug=bug)
