"""How long to wait after failures in a row, for all loops of the operator and the agent."""

import random
from collections.abc import Callable


def half_to_one_and_a_half() -> float:
    """Return a random factor between 0.5 and 1.5 for a wait, so that clients which failed together do not come back
    together."""
    return random.uniform(0.5, 1.5)


class Backoff:
    """The waits after failures in a row, in seconds: each is twice as long as the one before, up to a limit, and
    jittered."""

    def __init__(
        self, first: float, last: float, jitter: Callable[[], float] = half_to_one_and_a_half
    ) -> None:
        """Begin with the shortest wait. `first` and `last` are the shortest and the longest wait before jitter, in
        seconds; `jitter` returns the factor for each wait."""
        self.first = self._next = first
        self._last = last
        self._jitter = jitter

    def after_failure(self) -> float:
        """Return the jittered wait after this failure, in seconds. Nothing is waited for here. Before jitter, the wait
        after the next failure is twice as long, up to the limit; jitter may exceed the limit."""
        delay, self._next = self._next, min(self._next * 2, self._last)
        return delay * self._jitter()

    def success(self) -> None:
        """Reset the back-off: the wait after the next failure is the shortest one again."""
        self._next = self.first
