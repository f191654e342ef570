"""`make verify`: everything about the checkout that needs no control plane. Every step runs, then a table shows the
results. `--without-tests` leaves out those that are tests: .ci/run plays all tests. SIGTERM ends the running step, too.

A step is a program of .venv with its arguments, so that what you see is what you can repeat.
"""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from hack.generate import ROOT

STEPS = {
    "format": "ruff format --check .",
    "lint": "ruff check .",
    "types": "mypy",
    "imports": "lint-imports",
    "generated": "python -m hack.generate --check",
    "chart": "pytest --quiet --verb=test tests/chart",
    "workflows": "pytest --quiet --verb=test-hack tests/hack/test_workflows.py",
    "guards": "pytest --quiet tests/hack/test_mutants.py",
    "house": "pytest --quiet -o verbosity_assertions=2 tests/test_repo.py tests/test_luck.py tests/test_citations.py",
}


def main(arguments: list[str]) -> int:
    """Run the named steps, all without a name; the exit status is 0 when all of them passed."""
    if arguments == ["--without-tests"]:
        arguments = without_tests()
    unknown = sorted(set(arguments) - set(STEPS))
    if unknown:
        print(f"unknown step {unknown[0]!r}: choose from {', '.join(STEPS)}", file=sys.stderr)
        return 2
    # subprocess.run kills its program only where an exception ends it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    results = [(name, *run(name)) for name in arguments or STEPS]
    print("\nverify")
    for name, status, seconds in results:
        print(f"  {name:10} {'ok' if status == 0 else 'FAILED':6} {seconds:6.1f} s")
    return 1 if any(status for _, status, _ in results) else 0


def without_tests() -> list[str]:
    """The steps whose program is not pytest."""
    return [name for name, command in STEPS.items() if not command.startswith("pytest ")]


def run(name: str) -> tuple[int, float]:
    """Exit status and seconds of one step."""
    print(f"== {name}: {STEPS[name]}", flush=True)
    program, *arguments = shlex.split(STEPS[name])
    begin = time.monotonic()
    status = subprocess.run(
        [Path(sys.executable).parent / program, *arguments], cwd=ROOT, check=False
    ).returncode
    return status, time.monotonic() - begin


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
