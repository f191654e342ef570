"""`make mutants` removes each of the product's guards, one at a time. The test that is named for the guard must then
fail; otherwise the mutant survives.

Guards are the lines of hack/mutants/guards.yaml and the rows of the planner's ladders. Slips are mistakes that are
easily made in the modules that talk to the API server and to NVML. Tests are collected once. Each mutant then lives in
a forked process of its own and plays the one test that the files of tests/mutants name for it. MUTANTS=regex selects
mutants. FIND=1 looks for a killer of each mutant that has none, in the test files about its module.
"""

import os
import re
import resource
import sys
from collections.abc import Collection, Mapping

from hack.mutants.find import find
from hack.mutants.guards import read_guards
from hack.mutants.killers import read_killers
from hack.mutants.ladders import read_rows
from hack.mutants.plays import Mutant, find_failing, find_killers
from hack.mutants.slips import read_slips


def read_mutants() -> dict[str, Mutant]:
    """Return all guards, ladder rows and slips, by name."""
    return {**read_guards(), **read_rows(), **read_slips()}


def selected(mutants: Mapping[str, Mutant], excluded: Collection[str]) -> dict[str, Mutant]:
    """Return the mutants whose names contain a match of the regular expression in MUTANTS, or all mutants if MUTANTS
    is unset. Mutants in `excluded` are left out in both cases."""
    pattern = os.environ.get("MUTANTS", "")
    return {
        name: mutant for name, mutant in mutants.items() if re.search(pattern, name) and name not in excluded
    }


def main() -> int:
    """Play the mutants. Prints a line for each mutant that survives and for each killer that fails even without a
    mutant, and then the counts. Returns the exit status: 1 if there is such a line or no mutant was selected,
    otherwise 0. Raises RuntimeError if the tests cannot be collected or played.

    With FIND set, looks for killers of the mutants that have none instead, and returns 0.
    """
    killers = read_killers()
    if os.environ.get("FIND"):
        find(selected(read_mutants(), killers.tests.keys() | killers.equivalent.keys()))
        return 0
    played = selected(read_mutants(), killers.equivalent)
    if not played:
        print(f"no mutant has a name that matches MUTANTS={os.environ.get('MUTANTS')}; try MUTANTS=GATES")
        return 1
    named = {name: killers.tests[name] for name in played if name in killers.tests}
    noticed = find_killers(played, {name: [test] for name, test in named.items()})
    alive = [name for name in played if not noticed[name]]
    for name in alive:
        print(f"survives   {name}   ({named.get(name, 'no test is named for it')})")
    failing = find_failing(sorted(set(named.values())))
    for test in failing:
        print(f"fails without a mutant   {test}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    print(f"{len(played) - len(alive)} of {len(played)} mutants killed in {seconds:.0f} s of CPU")
    return 1 if alive or failing else 0


if __name__ == "__main__":
    sys.exit(main())
