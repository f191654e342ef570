"""Time limits for tests: one that waits forever fails instead of stopping the whole run.

pytest-timeout ends it with a signal in its own thread. The limits are meant for tests that hang.
"""

import signal
from collections.abc import Generator, Iterable
from typing import Any

import pytest

from hack.verbs import find_rung

LIMITS = {0: 600, 1: 600, 2: 1500, 3: 1800, 4: 1500, 5: 600}
"""The limit of each rung in seconds, for a test with its fixtures. From rung 2 they may have to build programs."""
ENDLESS = "faults"
"""The marker of tests that consist of many runs, which take hours in the full matrix. Each run has its own limit."""

AGAIN = 30.0
"""Seconds until the next signal, in case the test hangs while it is torn down."""
NEVER = 0.0, 0.0
"""The values that stop a timer (setitimer(2))."""


class TimeLimits:
    """Repeats pytest-timeout's signal, but not while pytest records an outcome, which would end pytest."""

    def __init__(self) -> None:
        self._clock = NEVER

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        limit(items)

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_set_timer(self, settings: Any) -> Generator[None, object, object]:
        """Replace pytest-timeout's timer by one that repeats: a coroutine may swallow the first signal."""
        done = yield
        signal.setitimer(signal.ITIMER_REAL, *NEVER)
        self._clock = settings.timeout, AGAIN
        return done

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_cancel_timer(self) -> Generator[None, object, object]:
        """Drop the limit of the test that has ended, because the next one may have none."""
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
        return (yield from self._limited())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        return (yield from self._limited())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        return (yield from self._limited())


def limit(items: Iterable[pytest.Item]) -> None:
    """Add a marker of pytest-timeout with the limit of its rung in LIMITS to each test."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            seconds = 0 if item.get_closest_marker(ENDLESS) else LIMITS[find_rung(item)]
            item.add_marker(pytest.mark.timeout(seconds, method="signal"))
