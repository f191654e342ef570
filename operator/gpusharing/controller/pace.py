"""When the loop runs again: what wakes it, how a burst of events becomes one pass, and what slows down a plan that never settles."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

log = structlog.get_logger()

LOOK_EVERY = timedelta(seconds=10)
"""The longest rest between two passes, even if a plan names a later time."""
FIRST_LOOK = 4
"""An event after a quiet time waits for the debounce divided by this: events that belong together arrive within that time."""
AT_ONCE = 2
"""How many follow-up passes run without a break: configuration, then fence. More of them are caused by other nodes of a large pool, and every pass examines all nodes."""
FOLLOW_UPS = 30
"""The most passes that may follow one another without a rest; more would only load the API server."""
RETRY = 2.0
"""Seconds until the next pass, after the API server or the Lease has ended one."""


@dataclass(slots=True)
class Pace:
    """Decides how long one loop rests between its passes."""

    wake: asyncio.Event
    debounce: float
    now: Callable[[], datetime]
    _follow_ups: int = 0

    async def rest(self, due: datetime | None) -> None:
        """Wait until an event arrives or the time `due` is reached, but for LOOK_EVERY at most. After an event, passes are a whole debounce apart, or a quarter after a quiet time."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        left = min(LOOK_EVERY, due - self.now()) if due is not None else LOOK_EVERY
        try:
            async with asyncio.timeout(max(0.0, left.total_seconds())):
                await self.wake.wait()
        except TimeoutError:
            # A plan that writes in every pass and never settles must not run fast.
            self._follow_ups = self._follow_ups + 1 if left <= timedelta(0) else 0
            if self._follow_ups > FOLLOW_UPS:
                log.warning(
                    "too many passes have run back to back, so the operator waits longer before the next one",
                    passes=self._follow_ups,
                )
                await asyncio.sleep(RETRY)
            elif self._follow_ups > AT_ONCE:
                await asyncio.sleep(self.debounce / FIRST_LOOK)
            return
        apart = self.debounce - (clock() - begun)
        await asyncio.sleep(max(apart, self.debounce / FIRST_LOOK))
