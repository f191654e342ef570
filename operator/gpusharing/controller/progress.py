"""Whether the loop makes progress. Liveness is decided by this and not by the duration of a pass.

A pass that creates five thousand objects takes minutes on a slow API server, and nothing is wrong with it. Other calls of the process (watches, the Lease, the count of Pending pods) continue while the loop hangs, and do not count.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gpusharing.kube.client import ApiRequest
from gpusharing.kube.clock import loop_time

_OF_A_PASS: ContextVar[bool] = ContextVar("of_a_pass", default=False)
"""Whether the running task belongs to a pass. Inherited by every task that a pass starts."""


class Progress:
    """Records when the loop last made progress: a pass ended, or a call of it was answered."""

    def __init__(self, clock: Callable[[], float] = loop_time) -> None:
        self._clock = clock
        self.last = clock()

    @contextmanager
    def of_a_pass(self) -> Iterator[None]:
        """Let the calls in this block, and in tasks that are started in it, count as calls of a pass."""
        token = _OF_A_PASS.set(True)
        try:
            yield
            self.last = self._clock()
        finally:
            _OF_A_PASS.reset(token)

    def called(self, request: ApiRequest, status: int) -> None:
        """Record an answer, whatever it is; a status of 0 means that there was none. See http.OnCall."""
        if status and _OF_A_PASS.get():
            self.last = self._clock()
