"""Plays tests in processes of their own, so that the changes of a mutant end with its process."""

import json
import os
import select
import signal
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import pytest

from hack.mutants.watch import Failures

CPU_SECONDS = 60
"""Most seconds of CPU time of one mutant, because a loop without its guard may have no end."""
LIBRARIES = ("aiohttp", "hypothesis", "pydantic", "pytest_asyncio", "structlog", "xdist")
"""What every test needs: imported once, before the processes of the mutants are forked."""
QUIET = ("-q", "-n", "0", "--assert=plain", "-p", "no:cacheprovider")


class Mutant(Protocol):
    """A change that takes one thing away from the product or makes one value wrong. A test should notice it."""

    @property
    def look(self) -> tuple[str, ...]:
        """The paths of the test files, or of folders for a Slip, where `find` looks for a killer."""

    def plant(self) -> None:
        """Make the change in the modules of this process. It cannot be undone."""


def in_child(work: Callable[[], object], *, seconds: float | None = None) -> object:
    """Call `work` in a forked process whose stdout is dropped. Its stderr is ours.

    Returns the result of `work`, as JSON transports it (a tuple becomes a list). Returns None if `work` raised, if the
    process died, or if it was killed because it had not answered within `seconds`.
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
        except BaseException:  # noqa: BLE001 - the parent's stack is none of the child's business
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    if seconds is not None:
        _end_late(child, reader, seconds)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return json.loads(told) if told else None


def _end_late(child: int, reader: int, seconds: float) -> None:
    """Wait until the child answers or dies. After `seconds`, or when interrupted, kill it and its process group."""
    answered: list[int] = []
    try:
        answered = select.select([reader], [], [], seconds)[0]
    finally:
        if not answered:
            os.killpg(child, signal.SIGKILL)


def find_failing(tests: Sequence[str]) -> list[str]:
    """Play the tests without a mutant, in a forked process, and return the ids of those that fail.

    Raises:
        RuntimeError: the process died or pytest could not play the tests, so the result is unknown.
    """
    failed = in_child(partial(_play, tests))
    if not isinstance(failed, list):
        raise RuntimeError(f"the process that played {', '.join(tests)} died")
    return failed


def _play(tests: Sequence[str]) -> list[str]:
    """Play the tests in this process and return the ids of those that fail in the test itself.

    Raises:
        RuntimeError: pytest could not play them.
    """
    assert all([tests, *tests]), "without a name pytest plays everything"
    noted = Failures()
    code = pytest.main([*QUIET, *tests], plugins=[noted])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r}")
    return noted.failed
