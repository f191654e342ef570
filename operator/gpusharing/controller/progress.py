"""Whether the loop makes progress. This decides liveness, because the duration of a pass does not.

A pass that creates five thousand objects takes minutes on a slow API server, and nothing is wrong with it. So passes
must end, or the API server must answer the calls of the pass that is under way. Other calls of the process (watches,
the Lease, the count of Pending pods) continue while the loop hangs, and do not count.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gpusharing.kube.client import ApiRequest
from gpusharing.kube.clock import loop_time

_OF_A_PASS: ContextVar[bool] = ContextVar("of_a_pass", default=False)
"""Inherited by every task that a pass starts."""


class Progress:
    """The moment at which the loop last made progress."""

    def __init__(self, clock: Callable[[], float] = loop_time) -> None:
        self._clock = clock
        self.last = clock()
        """By the clock, in seconds."""

    def made(self) -> None:
        """Note that the loop has made progress now."""
        self.last = self._clock()

    @contextmanager
    def of_a_pass(self) -> Iterator[None]:
        """Make calls in this block, and in tasks that are started in it, count as calls of a pass."""
        token = _OF_A_PASS.set(True)
        try:
            yield
        finally:
            _OF_A_PASS.reset(token)

    def called(self, request: ApiRequest, status: int) -> None:
        """Note an answer to a call of a pass, whatever the answer is. Status 0 is no answer. See http.OnCall."""
        if status and _OF_A_PASS.get():
            self.made()
