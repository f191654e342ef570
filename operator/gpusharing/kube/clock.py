"""What time is it, how long ago was something, and how long to wait after a failure?

Ages are measured by a monotonic clock such as `loop_time`. Deadlines and claims are absolute times on the API server's
objects, read by other processes on other machines, so they need a time of day: `SteadyClock`.
"""

import asyncio
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

SLEW = 0.0005
"""The most by which the clock is corrected, in seconds per second, as adjtime(3) and NTP do it."""


def loop_time() -> float:
    """Return the seconds of the running event loop's monotonic clock, which is virtual in tests."""
    return asyncio.get_running_loop().time()


def boot_time() -> float:
    """Return the seconds of a clock that cannot be set and, where possible, advances in sleep.

    Linux: CLOCK_BOOTTIME (clock_gettime(2)). macOS: CLOCK_MONOTONIC, which advances in sleep there, unlike the
    mach_absolute_time behind Python's `time.monotonic` (its clock_gettime(3)).
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()


def wall_time() -> datetime:
    return datetime.now(UTC)


class SteadyClock:
    """A time of day in UTC that cannot be set and follows the API server's. Call the object to read it.

    A time of day that is set back or forward must neither stop a rollout nor end a drain early. So the API server's
    time is taken once, from the `Date` of its answers, and then advances by a clock that cannot be set:

    - a step of any machine's wall clock changes nothing, whether it is ours (never read again) or the API server's;
    - while the server's Date differs, it is followed by at most SLEW seconds per second (as adjtime(3) does): two
      clocks that drift apart stay together, and a step of ten minutes takes two weeks;
    - while a machine is suspended, CLOCK_BOOTTIME goes on. A virtual machine that its hypervisor stopped has no clock
      that knows; it is behind by the length of the stop, deadlines pass later than written, and the Lease tells whether
      we may still write;
    - a process that is started again takes the server's time anew, so a wrong one lasts until then and no longer.

    The time never goes back, with one exception: the first time that the API server reports may be earlier.
    """

    def __init__(self, steady: Callable[[], float] = boot_time, wall: Callable[[], datetime] = wall_time) -> None:
        self.steady = steady
        """Returns the seconds of the clock that cannot be set, for the parameter `sent_at` of `note_date`."""
        self._offset = wall().timestamp() - steady()
        """Seconds to add to the steady clock."""
        self._dated_at: float | None = None
        """When the server's last Date arrived, by the steady clock, or None before the first."""
        self._shown = float("-inf")
        """The highest result so far, below which no later result may fall."""

    def __call__(self) -> datetime:
        self._shown = max(self._shown, self.steady() + self._offset)
        return datetime.fromtimestamp(self._shown, UTC)

    def note_date(self, date: str, sent_at: float) -> None:
        """Correct the clock by the `Date` of an answer that has just arrived to a request sent at `sent_at`.

        Whole seconds and the duration of the call leave a range of times; the first sets the clock to its middle, a
        later one corrects a clock outside of it.
        """
        try:
            server_time = parsedate_to_datetime(date).timestamp()
        except (ValueError, TypeError, OverflowError):
            return
        now = self.steady()
        earliest, latest = server_time - now, server_time + 1 - sent_at
        if self._dated_at is None:
            self._offset, self._shown = (earliest + latest) / 2, float("-inf")
        else:
            most = SLEW * (now - self._dated_at)
            wanted = min(max(self._offset, earliest), latest)
            self._offset += min(max(wanted - self._offset, -most), most)
        self._dated_at = now


def half_to_one_and_a_half() -> float:
    """Return a random factor for a wait, so that clients which failed together do not come back together."""
    return random.uniform(0.5, 1.5)


class Backoff:
    """Waits in seconds after failures in a row: jittered, and doubled each time up to a limit."""

    def __init__(self, first: float, last: float, jitter: Callable[[], float] = half_to_one_and_a_half) -> None:
        self.first = self._next = first
        self._last = last
        self._jitter = jitter

    def after_failure(self) -> float:
        """Return the seconds to wait after this failure; jitter may exceed the limit."""
        delay, self._next = self._next, min(self._next * 2, self._last)
        return delay * self._jitter()

    def success(self) -> None:
        self._next = self.first
