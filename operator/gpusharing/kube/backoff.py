"""How long to wait after failures in a row, for all loops of the operator and the agent."""

import random
from collections.abc import Callable


def half_to_one_and_a_half() -> float:
    """Return a random factor for a wait, so that clients which failed together do not come back together."""
    return random.uniform(0.5, 1.5)


class Backoff:
    """Waits in seconds after failures in a row: each is twice as long as the one before, up to a limit, and jittered."""

    def __init__(
        self, first: float, last: float, jitter: Callable[[], float] = half_to_one_and_a_half
    ) -> None:
        self.first = self._next = first
        self._last = last
        self._jitter = jitter

    def after_failure(self) -> float:
        """Return the seconds to wait after this failure; jitter may exceed the limit."""
        delay, self._next = self._next, min(self._next * 2, self._last)
        return delay * self._jitter()

    def success(self) -> None:
        self._next = self.first
