"""Does the loop make progress? This decides liveness: the duration of a pass says nothing.

A pass that creates five thousand objects takes minutes on a slow API server, and nothing is wrong with it. So what
counts is that passes end, or that the API server answers the calls of the pass that is under way. Other calls of the
process (watches, the Lease, the count of Pending pods) continue while the loop hangs, and do not count.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gpusharing.kube.client import ApiRequest
from gpusharing.kube.clock import loop_time

_OF_A_PASS: ContextVar[bool] = ContextVar("of_a_pass", default=False)
"""Inherited by every task that a pass starts."""


class Progress:
    """When the loop last made progress."""

    def __init__(self, clock: Callable[[], float] = loop_time) -> None:
        self._clock = clock
        self.last = clock()
        """By the clock, in seconds."""

    def made(self) -> None:
        """A pass has ended."""
        self.last = self._clock()

    @contextmanager
    def of_a_pass(self) -> Iterator[None]:
        """Calls made in this block, and by tasks started in it, are those of a pass."""
        token = _OF_A_PASS.set(True)
        try:
            yield
        finally:
            _OF_A_PASS.reset(token)

    def called(self, request: ApiRequest, status: int) -> None:
        """See http.OnCall. An answer of any kind is progress; status 0 is none."""
        if status and _OF_A_PASS.get():
            self.made()
