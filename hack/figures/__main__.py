"""Measure the figures of docs/explanation/performance.md, save each in hack/figures/measured.json, and write the page.
A measurement that is not wanted, or fails, keeps its earlier figures."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from hack.bench.machine import facts, pace_ms
from hack.figures import blocked, faulty, fleet, page
from hack.figures.page import NAMES, Figures
from hack.launch import ROOT

LAST = 5
"""How many lines of a process that failed are shown."""
LONGEST = 3600.0
"""Seconds after which a measurement in a process of its own is ended."""
FLEET = page.TABLES["fleet"][0]


class MeasurementError(Exception):
    """A process did not print figures."""


def in_process(*arguments: str) -> Figures:
    """Run `python -m ARGUMENTS` and return the figures that it prints as JSON in its last line."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False, text=True, timeout=LONGEST)
    lines = done.stdout.splitlines()
    try:
        done.check_returncode()
        return Figures(**json.loads(lines[-1]))
    except (subprocess.CalledProcessError, IndexError, ValueError, TypeError) as error:
        printed = "\n".join(lines[-LAST:]) or "no line"
        what = f"python -m {' '.join(arguments)} ended with exit status {done.returncode}, without figures"
        raise MeasurementError(f"{what}. Its errors are above, and it printed {printed}") from error


MEASUREMENTS: Mapping[str, Callable[[], Figures]] = {
    **{name: partial(fleet.measure, name) for name in FLEET},
    "blocked": blocked.measure,
    "day": partial(in_process, "tests.embedded.fleetday"),
    "faulty": faulty.measure,
    "sample": partial(in_process, "tests.faults.cases", "--figures", "build/faults/sample"),
    "full": partial(in_process, "tests.faults.cases", "--figures", "build/faults/full"),
}
"""The function that takes each measurement; `sample` and `full` sum up what `make test-faults` has left."""


def measure(name: str) -> Figures:
    """Take one measurement, and return its figures with the conditions under which it was taken."""
    machine, before = facts(), pace_ms()
    figures = MEASUREMENTS[name]()
    conditions = (
        f"{datetime.now(UTC).date()}, operator of commit {page.operator_commit()},"
        f" {machine['cores']} cores ({machine['cpu']}), Python {machine['python']},"
        f" pace {(before + pace_ms()) / 2:.0f} ms, load {os.getloadavg()[2]:.0f}"
    )
    return replace(figures, conditions=conditions)


def main(arguments: list[str] | None = None, measurement: Callable[[str], Figures] = measure) -> int:
    """Take the measurements, save the figures of each in --file, and write the page even after failures."""
    parser = argparse.ArgumentParser(prog="python -m hack.figures", description=__doc__)
    parser.add_argument("--only", default=",".join(NAMES), help=f"some of {','.join(NAMES)}")
    parser.add_argument("--file", type=Path, default=page.MEASURED, help="the file with the figures")
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    if unknown := [name for name in wanted if name not in NAMES]:
        print(f"hack.figures: there is no measurement {unknown[0]!r}; choose from {', '.join(NAMES)}")
        return 2
    try:
        if set(wanted) & set(FLEET):
            fleet.pool_size()
    except ValueError as error:
        print(f"hack.figures: {error}", file=sys.stderr)
        return 2
    status = 0
    for name in wanted:
        try:
            page.merge(name, measurement(name), options.file)
            print(f"{name}: measured", flush=True)
        except Exception as error:  # noqa: BLE001 - any error: the other measurements can still be taken
            status = 1
            print(f"{name}: failed, so earlier figures stay: {type(error).__name__}: {error}")
            print(f"Try again: make report ONLY={name}", flush=True)
    for path, text in page.performance().items() if options.file == page.MEASURED else ():
        (ROOT / path).write_text(text)
    return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that control planes end with us
    sys.exit(main())
