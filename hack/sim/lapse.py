"""A SIMULATED clock for agents that are looked at for hours: it goes on in steps, however fast this machine is.

A step comes when every agent that runs has made a turn since the last one, and whoever looks has said that its page
was seen as it is now. So an hour has as many turns and scrapes as one has in life, in less time where the machine keeps
up and in more where it does not, and nothing that is counted depends on which.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime

from gpusharing.agent.loop import LoopSettings

ANNOTATION_LAPSE = "sim.gpusharing.dev/lapse"
"""On a Node: `"true"` gives its agent this clock, and the samples of its page the times of it."""
STEP = 30.0
"""Simulated seconds of a step: as often an agent reads, and Prometheus usually scrapes."""
BEFORE = 6 * 3600.0
"""Real seconds before now at which the clock begins, so that it never tells a time to come."""
LAPSING = LoopSettings(interval=0.1, hung_after=1e9)
"""Of an agent with this clock: it turns as often as the clock can use, in real seconds, and no reading counts as hung,
for while one lasts the clock may go on by any number of steps."""

_ALL = frozenset({"turn", "seen"})


class Lapse:
    """The clock, and what it waits for. Threads may use it."""

    def __init__(self) -> None:
        """It stands until somebody joins."""
        self._lock = threading.Lock()
        self._at = float(int(datetime.now(UTC).timestamp() - BEFORE))
        self._missing: dict[str, frozenset[str]] = {}
        """By node: what has not happened since the last step."""

    @property
    def at(self) -> float:
        """Now, in seconds since 1970."""
        return self._at

    def join(self, node: str) -> Callable[[], float]:
        """An agent begins on that node; its clock. It reads it in every turn."""
        with self._lock:
            self._missing[node] = _ALL

        def clock() -> float:
            self._happened(node, "turn")
            return self._at

        return clock

    def leave(self, node: str) -> None:
        """The agent of that node has ended."""
        with self._lock:
            self._missing.pop(node, None)
            self._step()

    def seen(self, node: str) -> None:
        """Its page was read, and what it told of this moment has arrived."""
        self._happened(node, "seen")

    def _happened(self, node: str, what: str) -> None:
        with self._lock:
            if node in self._missing:
                self._missing[node] -= {what}
                self._step()

    def _step(self) -> None:
        if self._missing and not any(self._missing.values()):
            self._at += STEP
            self._missing = dict.fromkeys(self._missing, _ALL)
