"""Plays tests in processes of their own, so that what a mutant has changed ends with it."""

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
"""Of one mutant: without its guard a loop may have no end."""
LIBRARIES = ("aiohttp", "hypothesis", "pydantic", "pytest_asyncio", "structlog", "xdist")
"""What every test needs: imported once, before the processes of the mutants are forked."""
QUIET = ("-q", "-n", "0", "--assert=plain", "-p", "no:cacheprovider")


class Mutant(Protocol):
    """The product without one thing."""

    @property
    def look(self) -> tuple[str, ...]:
        """Files of tests where a killer is looked for."""

    def plant(self) -> None:
        """Remove it, permanently in this process."""


def in_child(work: Callable[[], object], *, seconds: float | None = None) -> object:
    """Do the work in a forked process whose output is dropped.

    Returns what the work returns, as JSON brings it back, or None if the process died or did not answer in time.
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
    """Kill the child and what it started, unless it answers in time."""
    answered: list[int] = []
    try:
        answered = select.select([reader], [], [], seconds)[0]
    finally:
        if not answered:
            os.killpg(child, signal.SIGKILL)


def find_failing(tests: Sequence[str]) -> list[str]:
    """Return those of the tests that fail without a mutant.

    Raises:
        RuntimeError: the process died, so the result is unknown.
    """
    failed = in_child(partial(_play, tests))
    if not isinstance(failed, list):
        raise RuntimeError(f"the process that played {', '.join(tests)} died")
    return failed


def _play(tests: Sequence[str]) -> list[str]:
    assert all([tests, *tests]), "without a name pytest plays everything"
    noted = Failures()
    code = pytest.main([*QUIET, *tests], plugins=[noted])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r}")
    return noted.failed
