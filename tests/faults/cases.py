"""Which faults are played where: every kind, at one object and at everything, in every scenario, at chosen writes.
With FULL=1 to FULL=3 these are the points of a scenario (points.py); else it is a sample that is the same for the same seed, and holds every kind and every scenario. `python -m tests.faults.cases FOLDER [DEPTH]` sums up the results in a folder and says what is missing at that depth (1 by default); without a folder it prints how many workers play side by side, with `--full` for the full matrix. With `--figures FOLDER` the last line is JSON for `make report` (hack/figures/page.py)."""

import json
import os
import random
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hack.cluster.process import text_of
from hack.figures.page import operator_commit

Scope = Literal["one", "all"]
PROCESS = ("kill-before", "kill-after", "lease-stolen")
"""Kinds that befall the process: there is nothing to tell apart."""
CALLS = ("answer-lost", "request-lost", "competitor", "throttled", "refused")
WATCHES = ("watch-late", "watch-410", "watch-500", "events-swallowed", "old-list")
ROWS = dict(
    zip(
        (*PROCESS, *CALLS, *WATCHES),
        ("F1", "F2", "F8", "F3", "F4", "F5", "F6", "F7", "F9", "F10", "F10", "F11", "F12"),
        strict=True,
    )
)
"""Row of docs/design/faults.md by kind."""
KINDS: tuple[tuple[str, Scope], ...] = (
    *((kind, "one") for kind in PROCESS),
    *((kind, scope) for kind in (*CALLS, *WATCHES) for scope in ("one", "all")),
)
DOMAIN = re.compile(r"\b[a-z0-9.-]+\.[a-z]+/")
SAMPLE = 150
WORKERS = min(4, 2 + (os.cpu_count() or 1))
"""Runs side by side (Makefile), two more than cores: alone, a run takes 0.4 of a core. Each has a control plane."""
FULL_WORKERS = min(8, 1 + 3 * (os.cpu_count() or 1))
"""Those of the full matrix, with 1.3 GB of memory each."""
FULL = "full"
WATCHED = 0.6
"""In a sample, what befalls watches begins in this share of a run: later there is little left to tell."""


@dataclass(frozen=True, slots=True)
class FaultCase:
    scenario: str
    kind: str
    scope: Scope
    place: float
    """How far into the run, from 0 to 1: at which of the writes that an undisturbed run has."""
    number: int = 0
    """In the full matrix the number of the write in the recorded run, from 1; 0: the write is the one at `place`."""
    aim: str = ""
    """With a number: what the write asks for (points.py). The order of writes differs from run to run, so the fault waits for a write that asks for this, whatever its number is."""
    turn: int = 0
    """Which of the writes that ask for it the fault waits for, from 1."""
    depth: int = 1
    """In the full matrix: the least FULL= that plays it."""

    def write(self, writes: int) -> int:
        """From 1, among those aimed at. In the full matrix it is the turn, even where a run has fewer of them."""
        return self.turn or min(writes, 1 + int(self.place * writes))

    @property
    def title(self) -> str:
        where = f"write {self.number} ({shorten(self.aim)}, no. {self.turn})" if self.number else f"{self.place:.3f}"
        return f"{self.scenario}: {self.kind} ({ROWS[self.kind]}) at {self.scope} from {where}"


def within(cases: Iterable[FaultCase], depth: int) -> tuple[FaultCase, ...]:
    """The cases that FULL=`depth` plays. A sample is whole at depth 1."""
    return tuple(case for case in cases if case.depth <= depth)


def shorten(text: str) -> str:
    return DOMAIN.sub("", text)


def sample(scenarios: Sequence[str], seed: str, count: int = SAMPLE, *, later: Sequence[str] = ()) -> list[FaultCase]:
    """`count` cases: each kind in its turn, the scenarios shuffled anew in each round, places at random.

    Scenarios that came `later` have the same share, drawn apart: what a seed plays of the others stays what it was.
    """
    share = round(count / (len(scenarios) + len(later)))
    drawn = [case for name in later for case in _draw([name], f"{seed} {name}", share)]
    return _draw(scenarios, seed, count - len(drawn)) + drawn


def _draw(scenarios: Sequence[str], seed: str, count: int) -> list[FaultCase]:
    dice = random.Random(seed)
    kinds = (kind for _ in iter(int, 1) for kind in dice.sample(KINDS, len(KINDS)))
    places = (one for _ in iter(int, 1) for one in dice.sample(scenarios, len(scenarios)))
    drawn = ((*next(kinds), dice.random()) for _ in range(count))
    return [
        FaultCase(next(places), kind, scope, round(place * (WATCHED if kind in WATCHES else 1), 3))
        for kind, scope, place in drawn
    ]


# --- what came of them ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    case: FaultCase
    complaints: tuple[str, ...]
    """Empty: it did what it should, if it was reached."""
    hits: int
    extra_writes: int
    """Writes that act, more than in an undisturbed run; below 0 there were fewer."""
    extra_evictions: int
    seconds: float
    reached: bool = True
    """The run came to the write of its case. Otherwise nothing was disturbed, and nothing is proven."""

    @property
    def passed(self) -> bool:
        return self.reached and not self.complaints


REACHED = 0.8
"""Of the cases of a full run, the share that has to come to its write: of two recordings 95 points in 100 are alike."""


class CaseResults:
    """A file of results. Its first line holds the cases of every depth: a play that was ended early can be told from a
    whole one, and a deeper play goes on from a shallower one."""

    def __init__(self, path: Path, stamp: str, depth: int = 1, commit: str = "") -> None:
        """`stamp`: names what is played; results of anything else are thrown away. `depth`: as in FULL=. `commit`: that of the operator (hack/figures/page.py, operator_commit), which a new file keeps for `figures`."""
        self._path, self._stamp, self._depth, self._commit = path, stamp, depth, commit
        self._cases: tuple[FaultCase, ...] = ()
        self._results: list[Result] = []
        lines = text_of(path).splitlines()
        head = json.loads(lines[0]) if lines else {}
        if head.get("stamp") == stamp:
            self._cases = _expected(head)
            self._results = _latest(lines[1:])

    @property
    def expected(self) -> tuple[FaultCase, ...]:
        """The cases to play at this depth; empty: nobody has said so yet."""
        return within(self._cases, self._depth)

    @property
    def done(self) -> list[Result]:
        return [one for one in self._results if one.case.depth <= self._depth]

    def expect(self, cases: Sequence[FaultCase]) -> None:
        """Keep the cases of every depth. Two undisturbed runs may differ in a write: the first list stays."""
        self._cases = tuple(cases)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        expected = [asdict(case) for case in cases]
        head = {"stamp": self._stamp, "commit": self._commit, "expected": expected}
        self._path.write_text("".join(f"{row}\n" for row in (json.dumps(head), *map(_line, self._results))))

    def left(self) -> list[FaultCase]:
        """Expected cases that have not passed: not played, failed, or not reached."""
        passed = {result.case for result in self.done if result.passed}
        return [case for case in self.expected if case not in passed]

    def add(self, result: Result) -> None:
        self._results = [one for one in self._results if one.case != result.case] + [result]
        with self._path.open("a") as file:
            file.write(f"{_line(result)}\n")


def share(folder: Path) -> None:
    """Let the scenarios that make a sort of write take turns with its faults: of each fault one of them has depth 1."""
    expected = expected_in(folder, depth=3)
    makers: dict[tuple[str, str], set[str]] = {}
    for case in (case for cases in expected.values() for case in cases if case.depth <= 2):
        makers.setdefault((case.aim, case.kind), set()).add(case.scenario)
    turns = {pair: sorted(makers[pair])[number % len(makers[pair])] for number, pair in enumerate(sorted(makers))}
    for path in _parts(folder):
        first, *results = path.read_text().splitlines()
        head = json.loads(first)
        for case in head["expected"]:
            if case["depth"] <= 2:
                case["depth"] = 1 if turns[case["aim"], case["kind"]] == case["scenario"] else 2
        path.write_text("".join(f"{line}\n" for line in (json.dumps(head), *results)))


def load(folder: Path, depth: int = 1) -> list[Result]:
    found = [result for path in _parts(folder) for result in _latest(path.read_text().splitlines()[1:])]
    return [result for result in found if result.case.depth <= depth]


def expected_in(folder: Path, depth: int = 1) -> Mapping[str, Sequence[FaultCase]]:
    return {path.stem: within(_expected(_head(path)), depth) for path in _parts(folder)}


def missing(results: Sequence[Result], expected: Mapping[str, Sequence[FaultCase]], workers: int = WORKERS) -> str:
    """How many cases have no result, and for how long the workers will be busy with them; empty: none."""
    total, played = sum(map(len, expected.values())), {result.case for result in results}
    left = sum(case not in played for cases in expected.values() for case in cases)
    if not left:
        return ""
    each = sum(result.seconds for result in results) / len(results) if results else 0.0
    time = f": about {left * each / workers / 60:.0f} minutes" if each else ""
    return f"incomplete: {left} of {total} cases have not been played{time}"


def summary(results: Sequence[Result]) -> str:
    reached = [result for result in results if result.reached]
    failed = sum(bool(result.complaints) for result in results)
    extra = max((result.extra_writes for result in reached), default=0)
    evictions = sum(max(0, result.extra_evictions) for result in reached)
    idle = sum(not result.hits for result in reached)
    return (
        f"faults: {len(results)} runs, {failed} failures, at most {extra} extra writes,"
        f" {evictions} extra evictions; {len(results) - len(reached)} not reached,"
        f" {idle} without anything to disturb; {sum(result.seconds for result in results):.0f} s"
    )


def figures(folder: Path, commit: str) -> dict[str, object]:
    """Return the counts of the results in a folder as one row of a table, with the day of the last one and what is missing. Exits with a message if there are no results, or if they are those of another operator than that of `commit`."""
    found = load(folder)
    if not found:
        sys.exit(f"{folder} has no results: run make test-faults, or make test-faults FULL=1 for the full matrix")
    parts = _parts(folder)
    if others := {_head(path).get("commit") or "unknown" for path in parts} - {commit}:
        sys.exit(
            f"{folder} has results of the operator of commit {', '.join(sorted(others))}, and not of {commit}:"
            " run make test-faults anew, with FULL=1 for the full matrix"
        )
    cases, reached = [result.case for result in found], [result for result in found if result.reached]
    row = [
        folder.name,
        len({case.scenario for case in cases}),
        len({case.kind for case in cases}),
        len({(case.scenario, case.number or case.place) for case in cases}),
        len(found),
        sum(bool(result.complaints) for result in found),
        len(found) - len(reached),
        max((result.extra_writes for result in reached), default=0),
        sum(max(0, result.extra_evictions) for result in reached),
    ]
    last = datetime.fromtimestamp(max(path.stat().st_mtime for path in parts), UTC).date()
    gap = missing(found, expected_in(folder)).partition(": about")[0]
    return {"rows": [row], "how": "; ".join(filter(None, (f"last run on {last}", gap)))}


def _parts(folder: Path) -> list[Path]:
    """The files of what was played last; a scenario that is gone may have left one of something else."""
    found = sorted(folder.glob("*.jsonl"))
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return [path for path in found if newest and _head(path).get("stamp") == _head(newest).get("stamp")]


def _head(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text().partition("\n")[0])
    return found


def _expected(head: Mapping[str, Any]) -> tuple[FaultCase, ...]:
    return tuple(FaultCase(**raw) for raw in head.get("expected", ()))


def _latest(lines: Iterable[str]) -> list[Result]:
    """The last result of each case: a case that did not pass is played again."""
    return list({result.case: result for result in map(_read, lines)}.values())


def _line(result: Result) -> str:
    return json.dumps(asdict(result))


def _read(line: str) -> Result:
    raw = json.loads(line)
    return Result(**{**raw, "case": FaultCase(**raw["case"]), "complaints": tuple(raw["complaints"])})


def tell(folder: Path, depth: int = 1) -> None:
    found = load(folder, depth)
    print(summary(found))
    for result in found:
        if not result.reached:
            print(f"not reached, so not passed: {result.case.title}")
    workers = FULL_WORKERS if folder.name == FULL else WORKERS
    if left := missing(found, expected_in(folder, depth), workers):
        print(left)


if __name__ == "__main__":
    if sys.argv[1:] == [f"--{FULL}"]:
        print(FULL_WORKERS)
    elif sys.argv[1:2] == ["--figures"]:
        print(json.dumps(figures(Path(sys.argv[2]), operator_commit())))
    elif sys.argv[1:]:
        tell(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    else:
        print(WORKERS)
