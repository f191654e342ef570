"""An event loop whose time runs only when everybody waits: minutes pass in milliseconds, without races.

For code that sleeps and talks to fakes in the same process. Nothing in such a loop may wait for the network.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Selector(selectors.DefaultSelector):
    """Instead of waiting until the next timer it moves the loop's time there."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Ready files, without waiting for them."""
        if timeout is None:
            raise RuntimeError("deadlock: every task waits and no timer runs")
        self.loop.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module's text."""

    def __init__(self) -> None:
        """Time begins at 1000 s, so that nobody takes 0 for never."""
        self.now = 1000.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        """The loop's own time."""
        return self.now


def run_virtually(main: Coroutine[Any, Any, Result]) -> Result:
    """Run `main` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
