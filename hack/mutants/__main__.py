"""`make mutants`: the product without each of its guards, one at a time; the named test fails, or the mutant survives.

Guards are the lines of hack/mutants/guards.yaml and the rows of the planner's ladders. Beside them stand the slips,
which are easily made in the modules that talk to the API server and to NVML. The tests are collected once. Each mutant
lives in a process of its own, forked after that, and plays the one test that the files of tests/mutants name for it.
MUTANTS=regex plays some. FIND=1 looks for killers of those that have none, in the files about them.
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
    """Return all of them by their names."""
    return {**read_guards(), **read_rows(), **read_slips()}


def asked_for(mutants: Mapping[str, Mutant], said: Collection[str]) -> dict[str, Mutant]:
    """Return the mutants whose names match MUTANTS, a regular expression, except for those that `said` names."""
    pattern = os.environ.get("MUTANTS", "")
    return {name: one for name, one in mutants.items() if re.search(pattern, name) and name not in said}


def main() -> int:
    """A line for each mutant that survives and for each killer that fails anyway, and a count."""
    killers = read_killers()
    if os.environ.get("FIND"):
        find(asked_for(read_mutants(), killers.tests.keys() | killers.equivalent.keys()))
        return 0
    played = asked_for(read_mutants(), killers.equivalent)
    if not played:
        print(f"no mutant has a name that {os.environ.get('MUTANTS')} finds; such as: MUTANTS=GATES")
        return 1
    named = {name: killers.tests[name] for name in played if name in killers.tests}
    noticed = find_killers(played, {name: [test] for name, test in named.items()})
    alive = [name for name in played if not noticed[name]]
    for name in alive:
        print(f"survives   {name}   ({named.get(name, 'no test is named')})")
    failing = find_failing(sorted(set(named.values())))
    for test in failing:
        print(f"fails without a mutant   {test}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    print(f"{len(played) - len(alive)} of {len(played)} mutants killed in {seconds:.0f} s of CPU")
    return 1 if alive or failing else 0


if __name__ == "__main__":
    sys.exit(main())
