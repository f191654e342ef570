"""Plugins of pytest: which tests failed, and in which of them a row of a ladder decided."""

from collections.abc import Callable
from typing import Any

import pytest

from hack.mutants.ladders import Ladder


class Failures:
    """Notes which tests failed, in the test itself: what could not be set up says nothing."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """See pytest."""
        if report.failed and report.when == "call" and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)


class Watch:
    """Notes in which tests a row applied."""

    def __init__(self) -> None:
        self.decided: dict[str, list[str]] = {}
        self._now = ""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """See pytest."""
        self._now = nodeid

    def follow(self, ladder: Ladder) -> None:
        """Wrap the rows of a ladder, permanently in this process. Plain functions cannot be followed."""
        for row, name in zip(ladder.rows(), ladder.names(), strict=True):
            if ladder.part:
                asks = getattr(row, ladder.part)
                object.__setattr__(row, ladder.part, self._wrapped(asks, f"{ladder.id}: {name}"))

    def _wrapped(self, asks: Callable[..., Any], what: str) -> Callable[..., Any]:
        def asked(*given: Any) -> Any:
            said = asks(*given)
            if said and self._now:  # not while tests are being collected
                tests = self.decided.setdefault(what, [])
                if self._now not in tests:
                    tests.append(self._now)
            return said

        asked.__name__ = asks.__name__
        return asked
