"""`make mutants`: the product without each of its guards, one at a time; the named test fails, or the mutant survives.

Each mutant lives in a process of its own, forked from this one, and plays the one test that
tests/mutants/killers.yaml names for it. MUTANTS=regex plays some. FIND=1 looks for killers of those that have none,
in the files about them.
"""

import os
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from typing import TypeVar

from hack.mutants.find import find_for_guards, find_for_rows
from hack.mutants.guards import read_guards
from hack.mutants.killers import Killers, read_killers
from hack.mutants.ladders import read_rows
from hack.mutants.plays import Mutant, find_failing, is_killed

Kind = TypeVar("Kind")
LIBRARIES = ("aiohttp", "hypothesis", "pydantic", "pytest_asyncio", "structlog", "syrupy", "xdist")
"""What every test needs: imported once, before the processes of the mutants are forked."""


def asked_for(mutants: Mapping[str, Kind], said: Collection[str]) -> dict[str, Kind]:
    """Those whose names MUTANTS, a regular expression, finds, but for these of which everything is said."""
    pattern = os.environ.get("MUTANTS", "")
    return {name: one for name, one in mutants.items() if re.search(pattern, name) and name not in said}


def survivors(killers: Killers, mutants: Mapping[str, Mutant]) -> Iterator[str]:
    """Those that their killers do not notice."""
    for name, mutant in mutants.items():
        killer = killers.tests.get(name)
        if killer is None or not is_killed(mutant, killer):
            print(f"survives   {name}   ({killer or 'no test is named'})", flush=True)
            yield name


def main() -> int:
    """A line for each mutant that survives and for each killer that fails anyway, and a count."""
    began, killers = time.monotonic(), read_killers()
    for library in LIBRARIES:
        import_module(library)
    if os.environ.get("FIND"):
        said = killers.tests.keys() | killers.equivalent.keys()
        find_for_guards(asked_for(read_guards(), said))
        find_for_rows(asked_for(read_rows(), said))
        return 0
    # A guard is taken away when its module is imported: these come before the product is.
    guards = asked_for(read_guards(), killers.equivalent)
    alive = list(survivors(killers, guards))
    rows = asked_for(read_rows(), killers.equivalent)
    import_module("gpusharing.planning.rollout")
    alive += survivors(killers, rows)
    played = [*guards, *rows]
    if not played:
        print(f"no mutant has a name that {os.environ.get('MUTANTS')} finds; such as: MUTANTS=GATES")
        return 1
    failing = find_failing(sorted({killers.tests[name] for name in played if name in killers.tests}))
    for test in failing:
        print(f"fails without a mutant   {test}")
    seconds = time.monotonic() - began
    print(f"{len(played) - len(alive)} of {len(played)} mutants killed in {seconds:.0f} s")
    return 1 if alive or failing else 0


if __name__ == "__main__":
    sys.exit(main())
