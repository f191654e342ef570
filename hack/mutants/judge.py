"""Judges whether a reduced set of tests still notices what an earlier set noticed.

Plants mutants (mistakes in the product, `hack.mutants.mutator`), drawn at random from a seed, one at a time. Each is
first played against the tests of the present tree (`--now`). If they pass, it is played against the tests as they were
at `--rev` (`--before`), with the present product. A mutant that only the earlier tests notice is printed with the test
that notices it, and the exit status is 1.

    python -m hack.mutants.judge --covered --rev 50c17db6 --before tests/embedded/test_sick.py \\
        --now "tests/embedded/test_sick.py tests/planning/test_health.py"
"""

import argparse
import inspect
import os
import random
import resource
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from hack.mutants.mutator import Mutation, find_mutations
from hack.mutants.plays import LIBRARIES, QUIET, Failures, in_child

PRODUCT = "operator"
KILLED, LIVED, LOST = "killed now", "lived before too", "died before and live now"
PATIENCE = 5
"""A mutant may use this many times the processor seconds that the tests use without it, and ALLOWED more. One that uses
more counts as killed."""
ALLOWED = 60
TRACED = 500
"""The number of calls of a function whose lines are recorded. More would slow the tests and show little more."""
STALLED = 10
"""A mutant may wait this many times its processor seconds by the clock. The machine may be busy with other work."""


@dataclass(frozen=True, slots=True)
class Side:
    """A copy of the tree in which a set of tests is run."""

    root: Path
    tests: tuple[str, ...]
    cpu_seconds: float = 600
    """The CPU time that one run of the tests may use."""

    def play(self) -> tuple[int | None, list[str]]:
        """Run the tests in a child process until one fails. Return pytest's exit code and the ids of the failed tests.
        If the child crashed, or was killed because it took too long, the code is None and the list is empty."""
        answer = in_child(self._play, seconds=self.cpu_seconds * STALLED)
        return (answer[0], answer[1]) if isinstance(answer, list) else (None, [])

    def covered(self) -> set[tuple[str, str, int]]:
        """Return the lines of the product that these tests run in their own process, each as (path, function, line
        number). A file of which only the top level ran, when it was imported, is left out. Lines that a function
        runs only after its first TRACED calls are missing. Raises AssertionError if the process that runs the tests
        dies."""
        answer = in_child(self._watch)
        assert isinstance(answer, list), "the tests of the earlier set can be played"
        return {(path, function, line) for path, function, line in answer}

    def _enter(self) -> None:
        """Change to the folder of the copy, and unload our modules, so that this forked process imports those of the
        copy. Set PYTHONPATH to the copy for the processes that the tests start."""
        for name in [
            name for name in sys.modules if name.partition(".")[0] in ("hack", "tests", "gpusharing")
        ]:
            del sys.modules[name]
        os.chdir(self.root)
        os.environ["PYTHONPATH"] = f"{self.root / PRODUCT}:{self.root}"

    def _play(self) -> tuple[int, list[str]]:
        """Run pytest in the copy, in this process, which must be a forked one because its modules, folder and limit of
        CPU time are changed. It stops at the first failure. Returns pytest's exit code and the ids of the failed tests,
        including those whose setup or teardown failed."""
        limit = int(self.cpu_seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        noted = Failures(every_phase=True)
        self._enter()
        return int(pytest.main([*QUIET, "-x", *self.tests], plugins=[noted])), noted.failed

    def _watch(self) -> list[tuple[str, str, int]]:
        """Run pytest in this process with tracing. The process must be a forked one. Returns the lines of the product
        that ran, each as (path, function, line number), sorted and with the gaps that `covered` describes."""
        calls: Counter[CodeType] = Counter()
        lines: set[tuple[CodeType, int]] = set()
        product = f"{self.root / PRODUCT}/"

        def note_line(frame: FrameType, event: str, _: Any) -> Any:
            """Record each line that a traced call runs, ignore other events, and return this function, so that the next
            line is traced too (a trace function)."""
            if event == "line":
                lines.add((frame.f_code, frame.f_lineno))
            return note_line

        def note_call(frame: FrameType, event: str, _: Any) -> Any:
            """Count the call, whether or not it is one of the product's (a trace function). Return the function that
            traces its lines if its code is the product's and this is one of the first TRACED calls of that code.
            Otherwise return None."""
            code = frame.f_code
            calls[code] += 1
            return note_line if calls[code] <= TRACED and code.co_filename.startswith(product) else None

        self._enter()
        threading.settrace(note_call)
        sys.settrace(note_call)
        pytest.main([*QUIET, *self.tests])
        sys.settrace(None)
        used = {code.co_filename for code, _ in lines if code.co_flags & inspect.CO_OPTIMIZED}
        # Files in which a function ran, and not only the body of the module or of a class.
        return sorted(
            (str(Path(code.co_filename).relative_to(self.root)), _scope_of(code.co_qualname), line)
            for code, line in lines
            if code.co_filename in used
        )


def _scope_of(qualified: str) -> str:
    """Return the `Mutation.scope` of code whose `co_qualname` is `qualified`. For a lambda or a comprehension that is
    the enclosing function or class. It is empty for the module itself, and for a lambda or a comprehension at the
    module's top level."""
    return "" if qualified.startswith("<") else qualified.replace(".<locals>", "").partition(".<")[0]


def copy_present(root: Path) -> None:
    """Copy the working tree to `root`, with uncommitted changes and untracked files, but without ignored ones. Links
    are followed, and files that were deleted are left out. The working directory must be the root of the checkout."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and Path(name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, root / name)


def copy_revision(root: Path, revision: str) -> None:
    """Unpack the git revision `revision` to `root`, but with the working tree's product (the folder PRODUCT) in place
    of its own. Raises CalledProcessError if there is no such revision, and FileNotFoundError if it has no such
    folder."""
    packed = subprocess.run(["git", "archive", revision], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(root, filter="data")
    shutil.rmtree(root / PRODUCT)
    shutil.copytree(PRODUCT, root / PRODUCT, ignore=shutil.ignore_patterns("__pycache__"))


def choose(
    paths: Iterable[str], covered: set[tuple[str, str, int]] | None, count: int, seed: int
) -> list[tuple[str, Mutation]]:
    """Draw at most `count` mutants from these files, at most one for each line of a file, and return each with its
    path. The draw is random, but the same for the same files and `seed`. `covered`, if given, limits the mutants to
    these lines and to the defaults of functions that have such a line."""
    functions = {(path, function) for path, function, _ in covered or ()}
    mutants = [
        (path, mutation)
        for path in sorted(paths)
        for mutation in find_mutations(Path(path).read_text())
        if covered is None
        or (path, mutation.scope, mutation.line) in covered
        or (mutation.is_default and (path, mutation.scope) in functions)
    ]
    random.Random(seed).shuffle(mutants)
    drawn: dict[tuple[str, int], tuple[str, Mutation]] = {}
    for path, mutation in mutants:
        drawn.setdefault((path, mutation.line), (path, mutation))
    return list(drawn.values())[:count]


def judge(path: str, mutation: Mutation, now: Side, before: Side) -> tuple[str, str]:
    """Plant the mutant in both copies, run the present tests and, if they pass, the earlier ones, and restore the
    files.

    The first part of the result is KILLED if the present tests do not pass: one fails, they do not end in time, or
    pytest cannot run them. It is LIVED if both sets pass, and LOST if only the earlier set does not. The second part is
    empty unless the first is LOST: then it names the earlier test that fails. If there is none, it says that the
    earlier tests did not end in time, even if pytest could not run them.
    """
    text = Path(path).read_text()
    try:
        for side in (now, before):
            _write(side.root / path, mutation.apply(text))
        if now.play()[0] != 0:
            return KILLED, ""
        code, failed = before.play()
        return (LIVED, "") if code == 0 else (LOST, ", ".join(failed) or "it did not end in time")
    finally:
        for side in (now, before):
            _write(side.root / path, text)


def _write(path: Path, text: str) -> None:
    """Write a source file and delete its cached bytecode."""
    path.write_text(text)
    for cached in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        cached.unlink()  # Python compares times in whole seconds, and would miss this change


def unhurt(side: Side) -> Side:
    """Run the tests without a mutant and print the CPU time that they took. Returns a copy of the side whose limit is
    PATIENCE times that time plus ALLOWED. Raises SystemExit if the tests do not pass, because then nothing can be
    judged."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, failed = side.play()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code != 0:
        raise SystemExit(f"without a mutant pytest ends with {code}: {' '.join(failed or side.tests)}")
    took = ended.ru_utime - began.ru_utime + ended.ru_stime - began.ru_stime
    print(f"{took:6.1f} s of CPU without a mutant: {' '.join(side.tests)}", flush=True)
    return Side(side.root, side.tests, took * PATIENCE + ALLOWED)


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line and return its options; `--help` explains them. One of --modules and --covered, --now and
    --before are required. Exits with status 2 if the line cannot be parsed."""
    parser = argparse.ArgumentParser(
        prog="python -m hack.mutants.judge", description=__doc__.partition("\n")[0]
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--modules",
        help="modules or packages in which mutants are planted, by commas: gpusharing.planning.drain",
    )
    where.add_argument(
        "--covered",
        action="store_true",
        help="plant them in the lines that the earlier tests run in their process",
    )
    parser.add_argument(
        "--now",
        type=shlex.split,
        required=True,
        help="the tests that are kept: files or ids, quoted together",
    )
    parser.add_argument("--before", type=shlex.split, required=True, help="the tests as they were")
    parser.add_argument("--rev", default="HEAD", help="the revision that --before is taken from")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Judge at most --count mutants that --seed draws (`choose`), in copies of the present tree and of --rev in a
    temporary folder. Prints a line for each mutant that the present tests do not kill, and then the counts. Returns the
    exit status: 1 if an earlier test kills one of these mutants, or if there was no mutant to judge; otherwise 0.
    Raises SystemExit if the tests fail without a mutant or the product has no such module, and CalledProcessError if
    there is no such revision."""
    options = read_arguments(arguments)
    for library in LIBRARIES:
        import_module(library)
    with tempfile.TemporaryDirectory(prefix="judge-") as folder:
        roots = [Path(folder) / "now", Path(folder) / "before"]
        copy_present(roots[0])
        copy_revision(roots[1], options.rev)
        now, before = (
            unhurt(Side(roots[0], tuple(options.now))),
            unhurt(Side(roots[1], tuple(options.before))),
        )
        covered = before.covered() if options.covered else None
        paths = (
            {path for path, _, _ in covered} if covered is not None else modules(options.modules.split(","))
        )
        came: Counter[str] = Counter()
        for path, mutation in choose(paths, covered, options.count, options.seed):
            verdict, test = judge(path, mutation, now, before)
            came[verdict] += 1
            if verdict != KILLED:
                print(f"{verdict}: {path}:{mutation.line} {mutation}   {test}".rstrip(), flush=True)
    print(f"{came.total()} mutants: " + ", ".join(f"{came[what]} {what}" for what in (KILLED, LIVED, LOST)))
    return 1 if came[LOST] or not came else 0


def modules(names: Sequence[str]) -> set[str]:
    """Return the paths of these modules and, for packages, of all modules below them. The names have dots. Raises
    SystemExit if the product has no module or package with one of the names."""
    paths = set()
    for name in names:
        plain = Path(PRODUCT, *name.split("."))
        below = [str(path) for path in [plain.with_suffix(".py"), *plain.glob("**/*.py")] if path.is_file()]
        if not below:
            raise SystemExit(f"the product has no module {name}")
        paths.update(below)
    return paths


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
