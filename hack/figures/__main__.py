"""Measure the figures of docs/explanation/performance.md, save each in hack/figures/measured.json, and write the page.
What is not measured, or fails, keeps its earlier figures."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hack.bench.machine import facts, pace_ms
from hack.figures import fleet, page, slowapi
from hack.figures.page import MEASURED, NAMES, ROOT, Figures

LONGEST = 3600.0
"""Seconds after which a measurement in a process of its own is ended."""
Taken = Iterator[tuple[str, Figures]]


def in_process(name: str, *arguments: str) -> Taken:
    """Run `python -m ARGUMENTS`, which must print the figures of the measurement `name` as its last line, and yield
    them. Raises CalledProcessError if it fails and TimeoutExpired after LONGEST seconds."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=LONGEST,
    )
    yield name, Figures(**json.loads(done.stdout.splitlines()[-1]))


MEASUREMENTS: tuple[tuple[tuple[str, ...], Callable[[frozenset[str]], Taken]], ...] = (
    (fleet.NAMES, fleet.measure),
    (("faulty",), slowapi.measure),
    (("day",), lambda _: in_process("day", "tests.embedded.fleetday")),
    (("sample",), lambda _: in_process("sample", "tests.faults.cases", "--figures", "build/faults/sample")),
    (("full",), lambda _: in_process("full", "tests.faults.cases", "--figures", "build/faults/full")),
)
"""The measurements that are taken together, and the function that takes those of them that are wanted."""


def taken_by(wanted: frozenset[str], measure: Callable[[frozenset[str]], Taken]) -> Taken:
    """Yield the wanted figures with day, commit, machine and pace added."""
    machine = facts()
    words = f"{machine['cores']} cores ({machine['cpu']}), Python {machine['python']}"
    command = ["git", "log", "-1", "--format=%h", "--", "operator", "deploy"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    before = pace_ms()
    for name, figures in measure(wanted):
        after, today = pace_ms(), datetime.now(UTC).date().isoformat()
        yield (
            name,
            replace(figures, date=today, commit=commit, machine=words, pace_ms=round((before + after) / 2)),
        )
        before = after


def main(arguments: list[str] | None = None) -> int:
    """Measure, save and write the page. Returns the exit status: 0, 1 if a measurement failed, which is printed to
    stderr while the others go on, or 2 if a name is unknown."""
    parser = argparse.ArgumentParser(prog="python -m hack.figures", description=__doc__)
    parser.add_argument("--only", default=",".join(NAMES), help=f"some of {','.join(NAMES)}")
    parser.add_argument("--file", type=Path, default=MEASURED, help="the file with the figures")
    options = parser.parse_args(arguments)
    wanted = frozenset(options.only.split(","))
    if unknown := sorted(wanted - set(NAMES)):
        print(
            f"hack.figures: there is no measurement {unknown[0]}; choose from {', '.join(NAMES)}",
            file=sys.stderr,
        )
        return 2
    failed = False
    for names, measure in MEASUREMENTS:
        missing = wanted & set(names)
        try:
            for name, figures in taken_by(missing, measure) if missing else ():
                page.merge(name, figures, options.file)
                missing -= {name}
                print(f"{name}: {figures.rows}", file=sys.stderr, flush=True)
        except Exception as error:  # noqa: BLE001 - any error: the other measurements can still be taken
            failed = True
            print(
                f"hack.figures: {', '.join(sorted(missing))} could not be measured, and the earlier figures stay:"
                f" {type(error).__name__}: {error}",
                file=sys.stderr,
            )
    for path, text in page.performance().items():
        (ROOT / path).write_text(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
