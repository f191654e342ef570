"""Plays tests in processes of their own, so that what a mutant has changed ends with it."""

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import pytest

from hack.mutants.watch import Failures

CPU_SECONDS = 60
"""Of one mutant: without its guard a loop may have no end."""
QUIET = ("-q", "-n", "0", "--assert=plain", "-p", "no:cacheprovider")


class Mutant(Protocol):
    """The product without one thing."""

    @property
    def look(self) -> tuple[str, ...]:
        """Files of tests where a killer is looked for."""

    def plant(self) -> None:
        """Remove it, permanently in this process."""


def in_child(work: Callable[[], object]) -> object:
    """What the work comes to in a forked process, which says nothing; None: it died."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end of the process
        try:
            answer = json.dumps(work())
            with os.fdopen(writer, "w") as pipe:
                pipe.write(answer)
        except BaseException:  # noqa: BLE001 - the parent's stack is none of the child's business
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return json.loads(told) if told else None


def find_failing(tests: Sequence[str], mutant: Mutant | None = None, *, first: bool = False) -> list[str]:
    """The tests that fail under a mutant. `first`: only the first of them.

    Raises:
        RuntimeError: the process died, so the result is unknown.
    """
    failed = in_child(partial(_play, tests, mutant, first=first))
    if not isinstance(failed, list):
        raise RuntimeError(f"the process that played {', '.join(tests)} died")
    return failed


def _play(tests: Sequence[str], mutant: Mutant | None, *, first: bool) -> list[str]:
    if mutant is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        mutant.plant()
    assert all([tests, *tests]), "without a name pytest plays everything"
    noted = Failures()
    code = pytest.main([*QUIET, *(["-x"] if first else []), *tests], plugins=[noted])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r}")
    return noted.failed


def is_killed(mutant: Mutant, killer: str) -> bool:
    """Whether the named test notices; a process that dies has not."""
    try:
        return killer in find_failing([killer], mutant)
    except RuntimeError:
        return False
