"""How long a test may take before it fails for it: one that waits for what never comes would take the whole run along.

pytest-timeout ends it by a signal in the test's own thread and says where it stood; the tests after it are played. The
limits are far above what the slowest test of a rung takes on a slow machine: they are there for tests that hang.
"""

import signal
from collections.abc import Generator, Iterable
from typing import Any

import pytest

from hack.verbs import find_rung

LIMITS = {
    0: 600,
    1: 600,
    2: 1500,
    3: 1800,
    4: 1500,
    5: 600,
}
"""By rung, in seconds, with fixtures: from rung 2 on these may build programs that nobody has built before."""
ENDLESS = "faults"
"""Marks tests that play one run after another, for hours in the full matrix; each run has its own limit."""

AGAIN = 30.0
"""Seconds until the next signal, for what hangs while it is torn down."""
NEVER = 0.0, 0.0
"""What stops a timer (setitimer(2))."""


class TimeLimits:
    """The plugin that makes pytest-timeout's signal come again, and only while a test, or a fixture, is running.

    A signal that came while pytest writes down how a test ended would end pytest.
    """

    def __init__(self) -> None:
        self._clock = NEVER

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Give each test its limit, when all markers are there."""
        limit(items)

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_set_timer(self, settings: Any) -> Generator[None, object, object]:
        """It sets a timer that goes off once: a coroutine that swallows its end would hang behind it."""
        done = yield
        signal.setitimer(signal.ITIMER_REAL, *NEVER)
        self._clock = settings.timeout, AGAIN
        return done

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_cancel_timer(self) -> Generator[None, object, object]:
        """The next test may have no limit."""
        self._clock = NEVER
        return (yield)

    def _limited(self) -> Generator[None, object, object]:
        signal.setitimer(signal.ITIMER_REAL, *self._clock)
        try:
            return (yield)
        finally:
            self._clock = signal.setitimer(signal.ITIMER_REAL, *NEVER)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        """The clock goes on from here to the end of the fixtures' beginning."""
        return (yield from self._limited())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """And during the test."""
        return (yield from self._limited())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        """And during the fixtures' end."""
        return (yield from self._limited())


def limit(items: Iterable[pytest.Item]) -> None:
    """Give each test its limit, but those that name one themselves."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            seconds = 0 if item.get_closest_marker(ENDLESS) else LIMITS[find_rung(item)]
            item.add_marker(pytest.mark.timeout(seconds, method="signal"))
