"""A pytest plugin that says, at the end of a run, what ran on which rung of the test ladder and what it cost.

In CI (variable CI set) a run fails when a test of rung 2 was skipped: there the control plane is required.
"""

import inspect
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

import pytest

RUNGS = {
    0: "pure",
    1: "embedded",
    2: "control plane",
    3: "NVIDIA's programs",
    5: "real GPU",
}
MARKERS = {"gpu": 5, "nvidia": 3, "cluster": 2}
ASKED_BY = {3: "make test-nvidia", 5: "make test-gpu"}
EMBEDDED = frozenset({"agent", "controller", "demo", "embedded", "integration", "nvmlsim", "sim"})
"""Folders of tests that run our loops, the FakeCluster or the simulators in the test's process."""
SLOWEST = 10


class Report:
    """Collects what pytest tells and prints it before pytest's closing line."""

    def __init__(self) -> None:
        """The wall clock runs from here."""
        self._begin = time.monotonic()
        self._collected = 0.0
        self._rungs: dict[str, int] = {}
        self._not_selected: Counter[int] = Counter()
        self._outcomes: dict[int, Counter[str]] = defaultdict(Counter)
        self._skipped: Counter[tuple[int, str]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    # --- what pytest calls -----------------------------------------------------------------------------

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Remember each test's rung (one that uses the control plane is of rung 2) and run the low rungs first."""
        for item in items:
            if "control_plane" in getattr(item, "fixturenames", ()):
                item.add_marker("cluster")
            self._rungs[item.nodeid] = find_rung(item)
        items.sort(key=lambda item: self._rungs[item.nodeid])

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        """Count what `-m` and `-k` leave out."""
        self._not_selected.update(find_rung(item) for item in items)

    def pytest_collection_finish(self) -> None:
        """Importing the tests costs too."""
        self._collected = time.monotonic() - self._begin

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up one phase (setup, call or teardown) of one test."""
        rung = self._rungs[report.nodeid]
        self._seconds[report.nodeid] += report.duration
        if report.failed:
            self._outcomes[rung]["failed"] += 1
        elif report.skipped and not hasattr(report, "wasxfail"):
            self._outcomes[rung]["skipped"] += 1
            self._skipped[rung, skip_reason(report)] += 1
        elif report.when == "call":
            self._outcomes[rung]["passed"] += 1

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Turn a run without its control plane into a failure, in CI."""
        if exitstatus == pytest.ExitCode.OK and self.misses_control_plane():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the tables; pytest's own closing line comes after them."""
        if terminalreporter.config.get_verbosity() < 0 or not self._rungs:
            return
        for title, lines in (
            ("test ladder", self._ladder()),
            (f"slowest {SLOWEST}", self._slowest()),
            ("where the time went", self._folders()),
        ):
            terminalreporter.section(title, sep="-")
            for line in lines:
                terminalreporter.line(line)
        if self.misses_control_plane():
            terminalreporter.section(
                "rung 2 was skipped, which CI does not allow", sep="!", red=True, bold=True
            )

    # --- what it makes of it ---------------------------------------------------------------------------

    def misses_control_plane(self) -> bool:
        """Whether this is CI and tests of rung 2 were skipped."""
        return bool(os.environ.get("CI")) and self._outcomes[2]["skipped"] > 0

    def _ladder(self) -> Iterable[str]:
        for rung, name in RUNGS.items():
            counts = self._outcomes[rung]
            text = ", ".join(f"{counts[key]} {key}" for key in ("passed", "failed", "skipped") if counts[key])
            if left_out := self._not_selected[rung]:
                how = f" ({ASKED_BY[rung]})" if rung in ASKED_BY else ""
                text = ", ".join(filter(None, (text, f"{left_out} not selected{how}")))
            yield f"rung {rung}  {name:18} {text or 'none'}"
        for (rung, reason), count in sorted(self._skipped.items()):
            yield f"SKIPPED on rung {rung}: {count} x {reason}"

    def _slowest(self) -> Iterable[str]:
        for nodeid, seconds in most(self._seconds)[:SLOWEST]:
            yield f"{seconds:7.2f} s  {nodeid}"

    def _folders(self) -> Iterable[str]:
        folders: defaultdict[str, float] = defaultdict(float)
        tests: Counter[str] = Counter()
        for nodeid, seconds in self._seconds.items():
            folder = str(PurePosixPath(nodeid.split("::")[0]).parent)
            folders[folder] += seconds
            tests[folder] += 1
        for folder, seconds in most(folders):
            yield f"{seconds:7.1f} s  {folder} ({tests[folder]} tests)"
        yield f"{self._collected:7.1f} s  collecting"
        yield f"{time.monotonic() - self._begin:7.1f} s  in all"


def find_rung(item: pytest.Item) -> int:
    """The rung of design.md section 8 that a test stands on: its marker, else what it runs."""
    for marker, rung in MARKERS.items():
        if item.get_closest_marker(marker) is not None:
            return rung
    parts = item.path.parts
    folder = parts[parts.index("tests") + 1] if "tests" in parts else ""
    embedded = folder in EMBEDDED or inspect.iscoroutinefunction(getattr(item, "function", None))
    return 1 if embedded else 0


def most(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    """The dearest first."""
    return sorted(seconds.items(), key=lambda entry: -entry[1])


def skip_reason(report: pytest.TestReport) -> str:
    """The first line of why, without where."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ").splitlines()[0]
