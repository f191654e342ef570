"""Which faults are played where: every kind, at one object and at everything, in every scenario, at every write.

All of them with FULL=1; else a sample that is the same for the same seed, and holds every kind and every scenario.

`python -m tests.faults.cases FOLDER` tells in one line what the results in a folder come to; without a folder it tells
how many workers play side by side.
"""

import json
import os
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hack.cluster.process import text_of

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
SAMPLE = 150
WORKERS = min(4, 1 + (os.cpu_count() or 1))
"""Runs side by side (Makefile), one more than cores: a run waits for a third of its time. Each has a control plane."""
WATCHED = 0.6
"""In a sample, what befalls watches begins in this share of a run: later there is little left to tell."""


@dataclass(frozen=True, slots=True)
class FaultCase:
    """One run: a fault in a scenario."""

    scenario: str
    kind: str
    scope: Scope
    place: float
    """How far into the run, from 0 to 1: at which of the writes that an undisturbed run has."""

    def write(self, writes: int) -> int:
        """The number of the write, from 1, where an undisturbed run has so many."""
        return min(writes, 1 + int(self.place * writes))

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.scenario}: {self.kind} ({ROWS[self.kind]}) at {self.scope} from {self.place:.3f}"


def sample(
    scenarios: Sequence[str], seed: str, count: int = SAMPLE, *, later: Sequence[str] = ()
) -> list[FaultCase]:
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


def all_cases(scenario: str, writes: int) -> Iterator[FaultCase]:
    """Every kind at every write of a scenario."""
    for number in range(writes):
        for kind, scope in KINDS:
            yield FaultCase(scenario, kind, scope, round((number + 0.5) / writes, 4))


# --- what came of them ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one case."""

    case: FaultCase
    complaints: tuple[str, ...]
    """Empty: it did what it should."""
    hits: int
    """Calls, events or streams that the fault took; 0: the run never came to that write."""
    extra_writes: int
    """Writes that act, more than in an undisturbed run; below 0 there were fewer."""
    extra_evictions: int
    seconds: float


class Results:
    """The results of one part of the cases, in a file that is added to after each run."""

    def __init__(self, path: Path, stamp: str) -> None:
        """`stamp`: of what they are results; those of something else are thrown away."""
        self._path, self._stamp, self.done = path, stamp, list[Result]()
        self.cases = 0
        """How many are to be; 0: nobody has said so yet."""
        lines = text_of(path).splitlines()
        head = json.loads(lines[0]) if lines else {}
        if head.get("stamp") == stamp:
            self.cases = head["cases"]
            self.done = [_read(line) for line in lines[1:]]

    def expect(self, cases: int) -> None:
        """So many are to be. Two undisturbed runs may differ in a write: who goes on keeps to what was said first."""
        self.cases = cases
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = [json.dumps({"stamp": self._stamp, "cases": cases}), *map(_line, self.done)]
        self._path.write_text("".join(f"{row}\n" for row in rows))

    def left(self, cases: Iterable[FaultCase]) -> list[FaultCase]:
        """Those without a good result."""
        good = {result.case for result in self.done if not result.complaints}
        return [case for case in cases if case not in good]

    def add(self, result: Result) -> None:
        """It is kept from now on, in place of an earlier one of the case."""
        self.done = [one for one in self.done if one.case != result.case] + [result]
        with self._path.open("a") as file:
            file.write(f"{_line(result)}\n")


def load(folder: Path) -> list[Result]:
    """The last result of each case of all parts."""
    latest = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines()[1:]:
            result = _read(line)
            latest[result.case] = result
    return list(latest.values())


def cases_in(folder: Path) -> int:
    """How many cases the parts have that were begun."""
    heads = [path.read_text().partition("\n")[0] for path in folder.glob("*.jsonl")]
    return sum(int(json.loads(head).get("cases", 0)) for head in heads)


def outlook(results: Sequence[Result], cases: int) -> str:
    """What is left of so many cases, and for how long the workers have to do with it; empty: nothing."""
    left = cases - len(results)
    if left <= 0 or not results:
        return ""
    each = sum(result.seconds for result in results) / len(results)
    return f"{left} of {cases} cases are left: about {left * each / WORKERS / 60:.0f} minutes"


def summary(results: Sequence[Result]) -> str:
    """The numbers that are asked for, in one line."""
    played = [result for result in results if result.hits]
    failed = sum(bool(result.complaints) for result in results)
    extra = max((result.extra_writes for result in played), default=0)
    evictions = sum(max(0, result.extra_evictions) for result in played)
    return (
        f"faults: {len(results)} runs, {failed} failures, at most {extra} extra writes,"
        f" {evictions} extra evictions; {len(results) - len(played)} never came to their write;"
        f" {sum(result.seconds for result in results):.0f} s"
    )


def _line(result: Result) -> str:
    return json.dumps(asdict(result))


def _read(line: str) -> Result:
    raw = json.loads(line)
    return Result(**{**raw, "case": FaultCase(**raw["case"]), "complaints": tuple(raw["complaints"])})


def tell(folder: Path) -> None:
    """What the results in a folder come to."""
    found = load(folder)
    print(summary(found))
    if more := outlook(found, cases_in(folder)):
        print(f"{more}, of scenarios that were begun; the same command goes on there")


if __name__ == "__main__":
    if sys.argv[1:]:
        tell(Path(sys.argv[1]))
    else:
        print(WORKERS)
