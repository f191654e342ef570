"""Plays tests against many mutants in one session of pytest: tests are collected once, and each trial is a fork."""

import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import pytest
from _pytest.runner import runtestprotocol

from hack.mutants.plays import CPU_SECONDS, QUIET, Mutant, in_child

CLOCK_SECONDS = 120.0
"""Of one trial, for a test that waits for what never comes."""
Items = Mapping[str, pytest.Item]


class _Trials:
    """The plugin that plays trials in place of the tests."""

    def __init__(self, play: Callable[[Items], object]) -> None:
        self._play = play
        self.answer: object = None

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """See pytest."""
        self.answer = self._play({item.nodeid: item for item in session.items})
        return True


def find_killers(
    mutants: Mapping[str, Mutant], candidates: Mapping[str, Sequence[str]], collected: Sequence[str] = ()
) -> dict[str, str]:
    """Return the first candidate that fails for each mutant, or an empty text if none does.

    A candidate is a test, or a file of tests. One that cannot be set up, or whose process dies, has not failed.
    `collected` are the arguments of pytest; without them the files of the candidates are collected.

    Raises:
        RuntimeError: the tests cannot be collected.
    """

    def play(items: Items) -> dict[str, str]:
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
    assert all([arguments, *arguments]), "without a name pytest collects everything"
    trials = _Trials(play)
    pytest.main([*QUIET, *arguments], plugins=[trials])
    return trials.answer


def _expand(candidates: Sequence[str], items: Items) -> Iterator[str]:
    """Yield the tests among the candidates and those of the files among them, as far as they were collected."""
    for candidate in candidates:
        yield from (test for test in items if candidate in (test, test.partition("::")[0]))


def _notices(item: pytest.Item, mutant: Mutant) -> bool:
    return in_child(partial(_fails, item, mutant), seconds=CLOCK_SECONDS) is True


def _fails(item: pytest.Item, mutant: Mutant) -> bool:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    mutant.plant()
    reports = runtestprotocol(item, log=False, nextitem=None)
    return any(report.failed and report.when == "call" for report in reports)
