"""`make verify`: all checks of the checkout that need no control plane. Every step runs, then a table shows the
results. `--without-tests` leaves out the steps that are tests, since .ci/run runs all tests anyway. SIGTERM also
ends the running step.

A step is a program of .venv with its arguments, which are printed so that you can repeat it.
"""

import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

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


@dataclass
class Steps:
    """Runs steps, one at a time, and ends the running step on SIGTERM. The signal handler must not raise: an exception
    while a step is being started would leave that step running."""

    process: subprocess.Popen[bytes] | None = None
    """The process of the step that is running or ran last, or None before the first step."""
    ended: bool = False
    """Whether SIGTERM has come."""

    def end(self, number: int, frame: FrameType | None) -> None:
        """Note that SIGTERM arrived, and send it to the running step, if there is one. This is a signal handler;
        neither argument is used. A step that has ended meanwhile is left alone."""
        self.ended = True
        if self.process is not None:
            self.process.terminate()

    def run(self, name: str) -> tuple[int, float]:
        """Print the command of one step, run it in the root of the checkout, and return its exit status, which is
        negative if a signal ended it, and its duration in seconds. If SIGTERM has come already, the step is ended at
        once. Raises KeyError for an unknown step."""
        print(f"== {name}: {STEPS[name]}", flush=True)
        program, *arguments = shlex.split(STEPS[name])
        begin = time.monotonic()
        self.process = subprocess.Popen([Path(sys.executable).parent / program, *arguments], cwd=ROOT)
        if self.ended:
            self.process.terminate()
        return self.process.wait(), time.monotonic() - begin


def main(arguments: list[str], steps: Steps) -> int:
    """Run the named steps in the order given, or all if none is named, and print a table. A step that fails does not
    keep the others from running. `--without-tests` as the only argument names all steps that do not run pytest. Returns
    the exit status: 0 if all steps passed, 1 if one failed, 2 if a name is unknown, and 143 after SIGTERM, when no
    table is printed."""
    if arguments == ["--without-tests"]:
        arguments = without_tests()
    unknown = sorted(set(arguments) - set(STEPS))
    if unknown:
        print(f"unknown step {unknown[0]!r}: choose from {', '.join(STEPS)}", file=sys.stderr)
        return 2
    results: list[tuple[str, int, float]] = []
    for name in arguments or STEPS:
        results.append((name, *steps.run(name)))
        if steps.ended:
            return 128 + signal.SIGTERM
    print("\nverify")
    for name, status, seconds in results:
        print(f"  {name:10} {'ok' if status == 0 else 'FAILED':6} {seconds:6.1f} s")
    return 1 if any(status for _, status, _ in results) else 0


def without_tests() -> list[str]:
    """Return the names of the steps that do not run pytest."""
    return [name for name, command in STEPS.items() if not command.startswith("pytest ")]


if __name__ == "__main__":
    started = Steps()
    signal.signal(signal.SIGTERM, started.end)
    sys.exit(main(sys.argv[1:], started))
