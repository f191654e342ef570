"""A pytest plugin that says, at the end of a run, what ran on which rung of the test ladder and what it cost.

In CI (variable CI set) a run fails when a test of rung 2, 3 or 4 was skipped: there the control plane, NVIDIA's
programs and real nodes are required. What rung 3 has counted comes as a table, model by model (`hack.results`).

With workers side by side (pytest-xdist, `-n`) the tests are collected and run in processes of their own, and the tables
are made in the first one: each test's rung travels with its report, what was left out when the worker ends.
"""

import inspect
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import pytest

from hack import happened
from hack.bench.machine import pace_ms
from hack.bench.results import REFERENCE_PACE_MS
from hack.results import Results

RUNGS = {
    0: "pure",
    1: "embedded",
    2: "control plane",
    3: "NVIDIA's programs",
    4: "real nodes",
    5: "real GPU",
}
MARKERS = {"gpu": 5, "e2e": 4, "nvidia": 3, "cluster": 2}
ASKED_BY = {3: "make test-nvidia", 4: "make e2e", 5: "make test-gpu"}
KILLS = "make test-crash"
"""What asks for the tests marked `crash`, which are of rung 2 and which `make test` leaves out."""
EMBEDDED = frozenset({"agent", "controller", "demo", "embedded", "integration", "nvmlsim", "sim"})
"""Folders of tests that run our loops, the FakeCluster or the simulators in the test's process."""
REQUIRED_IN_CI = (2, 3, 4)
SLOWEST = 10
LONG = 120.0
"""Seconds from which on a run reports how fast the machine was."""
FEW_FILES = 15
"""Up to here the time is reported by file."""
FROM_WORKER = "gpusharing-report"
"""Key of what a worker reports at its end."""


class Report:
    """Collects what pytest reports and prints it before pytest's closing line."""

    def __init__(self) -> None:
        """The wall clock runs from here."""
        self._begin = time.monotonic()
        self._collected = 0.0
        self._rungs: dict[str, int] = {}
        self._not_selected: Counter[tuple[int, str]] = Counter()
        """By rung and verb that selects them."""
        self._outcomes: dict[int, Counter[str]] = defaultdict(Counter)
        self._skipped: Counter[tuple[int, str]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._results = Results()
        self._properties: list[tuple[str, object]] = []

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
        for item in items:
            rung = find_rung(item)
            verb = KILLS if item.get_closest_marker("crash") else ASKED_BY.get(rung, "")
            self._not_selected[rung, verb] += 1

    def pytest_collection_finish(self) -> None:
        """Importing the tests costs too."""
        self._collected = time.monotonic() - self._begin

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Give each report its rung to take along."""
        report = yield
        vars(report)["rung"] = find_rung(item)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up one phase (setup, call or teardown) of one test."""
        # A worker that died reports for the test that it was in, without a rung.
        rung = vars(report).get("rung", 0)
        self._seconds[report.nodeid] += report.duration
        if report.failed:
            self._outcomes[rung]["failed"] += 1
        elif report.skipped and not hasattr(report, "wasxfail"):
            self._outcomes[rung]["skipped"] += 1
            self._skipped[rung, skip_reason(report)] += 1
        elif report.when == "call":
            self._outcomes[rung]["passed"] += 1
            self._results.add(report.user_properties)
            self._properties += report.user_properties

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Turn a run without what CI requires into a failure, in CI."""
        if (told := getattr(session.config, "workeroutput", None)) is not None:
            left_out = [[rung, verb, count] for (rung, verb), count in self._not_selected.items()]
            told[FROM_WORKER] = {"left out": left_out, "collected": self._collected}
        if exitstatus == pytest.ExitCode.OK and self.missing_in_ci():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker reports at its end; all of them collect the same tests."""
        told = getattr(node, "workeroutput", {}).get(FROM_WORKER)
        if told is not None:
            self._not_selected = Counter({(rung, verb): count for rung, verb, count in told["left out"]})
            self._collected = told["collected"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the tables; pytest's own closing line comes after them."""
        if terminalreporter.config.get_verbosity() < 0 or not (self._rungs or self._seconds):
            return
        for title, lines in (
            ("test ladder", self._ladder()),
            (f"slowest {SLOWEST}", self._slowest()),
            ("where the time went", (*self._folders(), *pace_of(time.monotonic() - self._begin))),
            ("what happened in the random world", happened.lines(self._properties)),
            ("NVIDIA's programs on SIMULATED GPUs, model by model", self._results.lines()),
        ):
            told = list(lines)
            if told:
                terminalreporter.section(title, sep="-")
            for line in told:
                terminalreporter.line(line)
        for rung in self.missing_in_ci():
            title = f"rung {rung} was skipped, which CI does not allow"
            terminalreporter.section(title, sep="!", red=True, bold=True)

    # --- what it makes of it ---------------------------------------------------------------------------

    def missing_in_ci(self) -> list[int]:
        """Rungs that CI requires and of which tests were skipped; outside CI none."""
        if not os.environ.get("CI"):
            return []
        return [rung for rung in REQUIRED_IN_CI if self._outcomes[rung]["skipped"]]

    def _ladder(self) -> Iterable[str]:
        for rung, name in RUNGS.items():
            counts = self._outcomes[rung]
            told = [f"{counts[key]} {key}" for key in ("passed", "failed", "skipped") if counts[key]]
            told += [
                f"{count} not selected" + (f" ({verb})" if verb else "")
                for (of, verb), count in sorted(self._not_selected.items())
                if of == rung
            ]
            yield f"rung {rung}  {name:18} {', '.join(told) or 'none'}"
        for (rung, reason), count in sorted(self._skipped.items()):
            yield f"SKIPPED on rung {rung}: {count} x {reason}"

    def _slowest(self) -> Iterable[str]:
        for nodeid, seconds in most(self._seconds)[:SLOWEST]:
            yield f"{seconds:7.2f} s  {nodeid}"

    def _folders(self) -> Iterable[str]:
        """By folder; by file where they are few."""
        files = {nodeid: PurePosixPath(nodeid.split("::")[0]) for nodeid in self._seconds}
        by_file = 1 < len(set(files.values())) <= FEW_FILES
        places: defaultdict[str, float] = defaultdict(float)
        tests: Counter[str] = Counter()
        for nodeid, seconds in self._seconds.items():
            place = str(files[nodeid] if by_file else files[nodeid].parent)
            places[place] += seconds
            tests[place] += 1
        for place, seconds in most(places):
            yield f"{seconds:7.1f} s  {place} ({tests[place]} tests)"
        yield f"{self._collected:7.1f} s  collecting"
        yield f"{time.monotonic() - self._begin:7.1f} s  in all"


def pace_of(seconds: float, measure: Callable[[], float] = pace_ms) -> Iterable[str]:
    """How fast the machine was, of a run that was long enough for anybody to compare it with another one."""
    if seconds >= LONG:
        yield f"{measure():6.0f} ms  pace; the aims hold at {REFERENCE_PACE_MS:g} (docs/adr/0051-aims-at-a-pace.md)"


def find_rung(item: pytest.Item) -> int:
    """The rung (docs/design/faults.md#rungs) that a test is on: its marker, else what it runs."""
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
