"""A plugin of pytest that notes which tests failed."""

import pytest


class Failures:
    """Notes which tests failed, in the test itself; with `every_phase` also in its fixtures."""

    def __init__(self, *, every_phase: bool = False) -> None:
        self.failed: list[str] = []
        self._every_phase = every_phase

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """See pytest."""
        counts = self._every_phase or report.when == "call"
        if report.failed and counts and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)
