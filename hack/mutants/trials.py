"""Plays tests against many mutants in one session of pytest: tests are collected once, and each trial is a fork."""

import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from hack.mutants.plays import CPU_SECONDS, QUIET, Mutant, in_child

CLOCK_SECONDS = 120.0
"""Most seconds that one trial may take, for a test that waits for something that never happens."""
Items = Mapping[str, pytest.Item]


class _Trials:
    """A pytest plugin that calls `play` with the collected tests by id, instead of running them."""

    def __init__(self, play: Callable[[Items], object]) -> None:
        self._play = play
        self.answer: object = None

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Store the result of `play` in `answer`. True keeps pytest from running the tests itself."""
        self.answer = self._play({item.nodeid: item for item in session.items})
        return True


def find_killers(
    mutants: Mapping[str, Mutant], candidates: Mapping[str, Sequence[str]], collected: Sequence[str] = ()
) -> dict[str, str]:
    """Return, by mutant, the id of the first candidate test that fails with it, or an empty text if none does.

    A candidate is the id of a test, or the path of a file or folder, which stands for all tests in it. A test whose
    setup fails, or whose process dies or does not end in time, does not count as failed.
    `collected` are the arguments with which pytest collects tests; without any it collects the files of all candidates.

    Raises:
        RuntimeError: the tests cannot be collected.
    """

    def play(items: Items) -> dict[str, str]:
        """Return the first test that notices each mutant, or an empty text, by the mutant's name."""
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
    """Let pytest collect tests, and return what `play` makes of them, or None if the collection failed."""
    assert all([arguments, *arguments]), "without a name pytest collects everything"
    trials = _Trials(play)
    pytest.main([*QUIET, *arguments], plugins=[trials])
    return trials.answer


def _expand(candidates: Sequence[str], items: Items) -> Iterator[str]:
    """Yield the ids of the collected tests that are candidates, or are in a file or folder that is one."""
    for candidate in candidates:
        yield from (test for test in items if test == candidate or _is_in(test.partition("::")[0], candidate))


def _is_in(file: str, place: str) -> bool:
    """Return whether the path of a test file is `place`, or is below the folder `place`."""
    return Path(file).is_relative_to(place)


def _notices(item: pytest.Item, mutant: Mutant) -> bool:
    """Return whether the test fails with the mutant, in a forked process. False if that dies or takes too long."""
    return in_child(partial(_fails, item, mutant), seconds=CLOCK_SECONDS) is True


def _fails(item: pytest.Item, mutant: Mutant) -> bool:
    """Plant the mutant in this process, which must be a forked one, and return whether the test itself fails then.

    A failure of its setup or teardown does not count.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    mutant.plant()
    reports = runtestprotocol(item, log=False, nextitem=None)
    return any(report.failed and report.when == "call" for report in reports)
