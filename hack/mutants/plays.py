"""Runs tests in processes of their own, so that the changes of a mutant end with its process.

Tests are collected once, in one session of pytest. Each trial of a test on a mutant is a fork of that session.
"""

import json
import os
import resource
import select
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
from _pytest.runner import runtestprotocol


class Failures:
    """A pytest plugin that records which tests failed: in the test itself or, with `every_phase`, also in their setup
    or teardown."""

    def __init__(self, *, every_phase: bool = False) -> None:
        """Start without failed tests. With `every_phase`, failures in setup and teardown count as well."""
        self.failed: list[str] = []
        self._every_phase = every_phase

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the test of a failed report to `failed`, unless it is there already. Failures in setup or teardown count
        only with `every_phase`."""
        counts = self._every_phase or report.when == "call"
        if report.failed and counts and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)


CPU_SECONDS = 60
"""The limit of CPU time for one mutant, because a loop without its guard may be endless."""
LIBRARIES = ("aiohttp", "hypothesis", "pydantic", "pytest_asyncio", "structlog", "xdist")
"""The libraries that most tests need. They are imported once, before the processes of the mutants are forked."""
QUIET = ("-q", "-n", "0", "--assert=plain", "-p", "no:cacheprovider")


class Mutant(Protocol):
    """A change that removes one thing from the product or makes one value wrong. A test should notice it."""

    @property
    def look(self) -> tuple[str, ...]:
        """The paths of the test files, or of folders for a Slip, where `find` looks for a killer."""

    def plant(self) -> None:
        """Make the change in the modules of this process. This cannot be undone."""


def in_child(work: Callable[[], object], *, seconds: float | None = None) -> object:
    """Call `work` in a forked process whose stdout is discarded; its stderr is ours.

    Returns the result of `work` after a round trip through JSON, in which a tuple becomes a list. Returns None if
    `work` raised or its result cannot be written as JSON, if the process died, or if it was killed because it had not
    answered within `seconds`.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        if seconds is not None:
            os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            answer = json.dumps(work())
            with os.fdopen(writer, "w") as pipe:
                pipe.write(answer)
        except BaseException:  # noqa: BLE001 - the child must not return into the parent's code
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    if seconds is not None:
        _end_late(child, reader, seconds)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else None


def _end_late(child: int, reader: int, seconds: float) -> None:
    """Wait until the child answers or dies. If that takes longer than `seconds`, or if we are interrupted, kill the
    process group that the child leads."""
    answered: list[int] = []
    try:
        answered = select.select([reader], [], [], seconds)[0]
    finally:
        if not answered:
            os.killpg(child, signal.SIGKILL)


def find_failing(tests: Sequence[str]) -> list[str]:
    """Run the tests, at least one, without a mutant in a forked process, and return the ids of those that fail. A
    failure of setup or teardown does not count. Raises RuntimeError if the process died or pytest could not run the
    tests, because the result is then unknown."""
    failed = in_child(partial(_play, tests))
    if not isinstance(failed, list):
        raise RuntimeError(f"the process that played {', '.join(tests)} died")
    return failed


def _play(tests: Sequence[str]) -> list[str]:
    """Run the tests, at least one, in this process, and return the ids of those that fail in the test itself. Raises
    RuntimeError if pytest could not run them."""
    assert all([tests, *tests]), "without a name pytest plays everything"
    noted = Failures()
    code = pytest.main([*QUIET, *tests], plugins=[noted])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r}")
    return noted.failed


CLOCK_SECONDS = 120.0
"""The limit of elapsed time for one trial, in case a test waits for something that never happens."""
Items = Mapping[str, pytest.Item]


class _Trials:
    """A pytest plugin that passes the collected tests, by id, to `play` instead of running them."""

    def __init__(self, play: Callable[[Items], object]) -> None:
        """Store `play`, which is called with the collected tests by id. Until then `answer` is None."""
        self._play = play
        self.answer: object = None

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Call `play` and store its result in `answer`. Returns True, so that pytest does not run the tests itself."""
        self.answer = self._play({item.nodeid: item for item in session.items})
        return True


def find_killers(
    mutants: Mapping[str, Mutant], candidates: Mapping[str, Sequence[str]], collected: Sequence[str] = ()
) -> dict[str, str]:
    """Return, by the name of each mutant, the id of the first candidate test that fails with it, or an empty string if
    none does.

    A candidate is the id of a test, or the path of a file or folder, which stands for all tests in it. One that matches
    no collected test is ignored. A test whose setup fails, or whose process dies or does not end in time, does not
    count as failed. `collected` are the arguments with which pytest collects tests; if there are none, it collects the
    files of all candidates. Raises RuntimeError if the tests cannot be collected.
    """

    def play(items: Items) -> dict[str, str]:
        """Return, by the mutant's name, the first of its candidate tests that notices it, or an empty string if none
        does."""
        return {
            name: next(
                (test for test in _expand(candidates.get(name, ()), items) if _notices(items[test], mutant)),
                "",
            )
            for name, mutant in mutants.items()
        }

    files = sorted({test.partition("::")[0] for tests in candidates.values() for test in tests})
    killers = in_child(partial(_collect, [*(collected or files)], play))
    if not isinstance(killers, dict):
        raise RuntimeError(f"these tests cannot be collected: {' '.join(collected or files)}")
    return killers


def _collect(arguments: Sequence[str], play: Callable[[Items], object]) -> object:
    """Let pytest collect tests with these arguments, at least one, and return the result of `play` for them, or None
    if the collection failed."""
    assert all([arguments, *arguments]), "without a name pytest collects everything"
    trials = _Trials(play)
    pytest.main([*QUIET, *arguments], plugins=[trials])
    return trials.answer


def _expand(candidates: Sequence[str], items: Items) -> Iterator[str]:
    """Yield, candidate by candidate, the ids of the collected tests that are the candidate itself or are in it, if it
    is a file or folder. A test that several candidates contain is yielded once for each of them."""
    for candidate in candidates:
        yield from (
            test
            for test in items
            if test == candidate or Path(test.partition("::")[0]).is_relative_to(candidate)
        )


def _notices(item: pytest.Item, mutant: Mutant) -> bool:
    """Whether the test fails with the mutant, in a forked process. False if only its setup or teardown fails, if the
    process dies, if planting raises, or if it takes longer than CLOCK_SECONDS."""
    return in_child(partial(_fails, item, mutant), seconds=CLOCK_SECONDS) is True


def _fails(item: pytest.Item, mutant: Mutant) -> bool:
    """Limit this process, which must be a forked one, to CPU_SECONDS of CPU time, plant the mutant in it, and run the
    test with its setup and teardown. Return whether the test itself fails. A failure of its setup or teardown does not
    count."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    mutant.plant()
    reports = runtestprotocol(item, log=False, nextitem=None)
    return any(report.failed and report.when == "call" for report in reports)
