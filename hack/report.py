"""A pytest plugin that selects the tests of a verb (`--verb`) and reports, in ten lines, what ran and what did not.

The file that the last line names has the rest. With workers (pytest-xdist) the report is made in the first process: a
test's rung is sent with its report, and the numbers of deselected tests when a worker ends.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from hack.bench.machine import pace_ms
from hack.bench.results import REFERENCE_PACE_MS
from hack.verbs import RUNGS, MakeVerb, add_markers, find_rung, find_verb, folder_of, is_elsewhere

PROPERTY = "what happened in the random world"
"""The name of pytest's `user_properties` under which a test leaves its counts, as a mapping."""
MEASURED = "measured"
"""The name under which a test leaves a line that states what it measured."""
WIDTH = 110
"""The largest number of characters in a line of counts."""


def count_lines(properties: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Yield the counts that tests left as PROPERTY, as `COUNT x WHAT`, in lines of about WIDTH characters."""
    row = ""
    for name, counts in properties:
        if name != PROPERTY or not isinstance(counts, Mapping):
            continue
        for what, count in sorted(counts.items()):
            part = f"{count} x {what}"
            if row and len(row) + len(part) > WIDTH:
                yield row
                row = ""
            row = f"{row}; {part}" if row else part
    if row:
        yield row


SLOWEST = 5
"""The number of slow tests that the terminal names."""
SOON = (MakeVerb.TEST, MakeVerb.CLUSTER, MakeVerb.HACK)
"""Verbs that take minutes: after one of them the report names the others."""
LONG = 120.0
"""Runs of at least this many seconds report how fast the machine was."""
FEW_FILES = 15
"""A run of at most this many files reports the time by file, a larger one by folder."""
MOST_LINES = 30
"""The largest number of lines of an assertion message on the terminal. The file has all of them."""
FROM_WORKER = "gpusharing-report"
"""The key under which a worker sends its numbers at its end."""


class Report:
    """Collects what pytest reports, and prints the summary before pytest's closing line."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._collected = 0.0
        self._rungs: dict[str, int] = {}
        self._left_out: Counter[str] = Counter()
        """Number of collected tests that belong to another verb, by verb."""
        self._outcomes: dict[int, Counter[str]] = defaultdict(Counter)
        self._skipped: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._properties: list[tuple[str, object]] = []
        self._logs: list[str] = []

    # --- what pytest calls -----------------------------------------------------------------------------

    @staticmethod
    def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
        return is_elsewhere(collection_path, config.getoption("verb", None)) or None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep the tests of the verb, marked (`add_markers`), the lowest rung first."""
        verb: MakeVerb | None = config.getoption("verb", None)
        verbs: dict[pytest.Item, MakeVerb] = {}
        for item in items:
            add_markers(item)
            verbs[item] = find_verb(item)
            if is_elsewhere(config.rootpath / "tests" / folder_of(item), verbs[item]):
                raise pytest.UsageError(f"no verb plays {item.nodeid}: give it a marker (hack/verbs.py)")
        others = [item for item in items if verb not in (None, verbs[item])]
        self._left_out = Counter(verbs[item] for item in others)
        config.hook.pytest_deselected(items=others)
        rungs = {item: find_rung(item) for item in items if verb in (None, verbs[item])}
        items[:] = sorted(rungs, key=rungs.__getitem__)
        self._rungs = {item.nodeid: rung for item, rung in rungs.items()}

    def pytest_collection_finish(self) -> None:
        self._collected = time.monotonic() - self._begin

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        vars(report)["rung"] = find_rung(item)
        if report.failed:
            vars(report)["whole"] = report.longreprtext
            shorten(report)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count an outcome. A test that passes and whose teardown then fails counts twice."""
        # A worker that died reports the test that it was playing, without a rung.
        rung = vars(report).get("rung", 0)
        self._seconds[report.nodeid] += report.duration
        if report.failed:
            self._outcomes[rung]["failed"] += 1
            sections = [f"--- {title}\n{text}" for title, text in report.sections]
            whole = vars(report).get("whole", report.longreprtext)
            self._logs.append("\n".join([f"=== {report.nodeid} ({report.when})", whole, *sections]))
        elif report.skipped and not hasattr(report, "wasxfail"):
            self._outcomes[rung]["skipped"] += 1
            self._skipped[skip_reason(report)] += 1
        elif report.when == "call":
            self._outcomes[rung]["passed"] += 1
            self._properties += report.user_properties

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send our numbers to the process that started this worker (`pytest_testnodedown`)."""
        if (output := getattr(session.config, "workeroutput", None)) is not None:
            left_out = {str(verb): count for verb, count in self._left_out.items()}
            output[FROM_WORKER] = {"left out": left_out, "collected": self._collected}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {}).get(FROM_WORKER)
        if output is not None:
            self._left_out = Counter(output["left out"])
            self._collected = output["collected"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        config = terminalreporter.config
        if config.get_verbosity() < 0 or not (self._rungs or self._seconds or self._left_out):
            return
        path = self._write(config)
        terminalreporter.ensure_newline()
        for line in (*self._lines(config.getoption("verb", None)), f"more: {path}"):
            terminalreporter.line(line)

    # --- what it makes of it ---------------------------------------------------------------------------

    def _lines(self, verb: str | None) -> Iterator[str]:
        rungs = []
        for rung, name in RUNGS.items():
            counts = self._outcomes[rung]
            if parts := [f"{counts[key]} {key}" for key in ("passed", "failed", "skipped") if counts[key]]:
                rungs.append(f"rung {rung} ({name}): {', '.join(parts)}")
        yield "; ".join(rungs) or "no tests"
        for reason, count in sorted(self._skipped.items()):
            yield f"SKIPPED {count} x {reason}"
        for nodeid, seconds in largest(self._seconds)[:SLOWEST]:
            yield f"{seconds:7.2f} s  {nodeid}"
        if not self._seconds:
            yield from (f"{count} of these tests belong to make {verb}" for verb, count in self._left_out.items())
        elif verb in SOON:
            others = [f"make {other}" for other in SOON if other != verb]
            yield f"next: {', '.join(others)}; make test-all plays everything"

    def _write(self, config: pytest.Config) -> Path:
        verb = config.getoption("verb", None)
        path = Path("build", f"report-{verb}.txt" if verb else "report.txt")
        whole = config.rootpath / path
        whole.parent.mkdir(exist_ok=True)
        chapters = {
            "where the time went": [*self._places(), *pace_of(time.monotonic() - self._begin)],
            "slowest 40": [f"{took:7.2f} s  {nodeid}" for nodeid, took in largest(self._seconds)[:40]],
            "what happened in the random world": list(count_lines(self._properties)),
            MEASURED: [str(line) for name, line in self._properties if name == MEASURED],
            "failed": self._logs,
        }
        texts = ["\n".join([f"## {title}", *lines, ""]) for title, lines in chapters.items() if lines]
        whole.write_text("\n".join([*self._lines(verb), "", *texts]))
        return path

    def _places(self) -> Iterator[str]:
        files = {nodeid: PurePosixPath(nodeid.split("::")[0]) for nodeid in self._seconds}
        by_file = 1 < len(set(files.values())) <= FEW_FILES
        places: defaultdict[str, float] = defaultdict(float)
        tests: Counter[str] = Counter()
        for nodeid, seconds in self._seconds.items():
            place = str(files[nodeid] if by_file else files[nodeid].parent)
            places[place] += seconds
            tests[place] += 1
        for place, seconds in largest(places):
            yield f"{seconds:7.1f} s  {place} ({tests[place]} tests)"
        yield f"{self._collected:7.1f} s  collecting"
        yield f"{time.monotonic() - self._begin:7.1f} s  in all"


def add_option(parser: pytest.Parser) -> None:
    """Add --verb. A conftest must call this: options are parsed before the plugin `Report` is registered."""
    parser.addoption("--verb", choices=list(MakeVerb), help="play the tests of this verb of the Makefile only")


def pace_of(seconds: float, measure: Callable[[], float] = pace_ms) -> Iterable[str]:
    """Yield a line that says how fast the machine is now."""
    if seconds >= LONG:
        yield f"{measure():6.0f} ms  pace; the aims hold at {REFERENCE_PACE_MS:g} (docs/adr/0051-aims-at-a-pace.md)"


def shorten(report: pytest.TestReport) -> None:
    """Shorten a failure for the terminal: pytest would repeat a whole message in its summary line in CI."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = crash.message.partition("\n")[0]
    for entry in getattr(getattr(report.longrepr, "reprtraceback", None), "reprentries", ()):
        lines = getattr(entry, "lines", [])
        errors = [index for index, line in enumerate(lines) if line.startswith("E ")]
        if len(errors) > MOST_LINES:
            first, last = errors[MOST_LINES], errors[-1]
            lines[first : last + 1] = [f"E     ... and {last + 1 - first} more lines, in the file named below"]


def largest(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda entry: -entry[1])


def skip_reason(report: pytest.TestReport) -> str:
    """Return the first line of the reason why a test was skipped."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ").splitlines()[0]
