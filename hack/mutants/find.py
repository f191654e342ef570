"""A search for killers (tests that fail with the mutant) of mutants that have none.

Its output can be copied into the files of tests/mutants, but a person must judge whether the test is the right one. A
pytest plugin records in which tests an operand decides a condition, because no other test can notice that the operand
is missing.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import pytest

from hack.mutants.plays import QUIET, Mutant, find_killers, in_child
from hack.mutants.slips import PROBE, Slip, add_probes
from hack.mutants.transplant import plant_source


class Deciding:
    """A pytest plugin that records, for each slip that drops an operand, the ids of the tests in which the operand
    decides its condition. It plants probes in the modules of the slips, where they stay until the process ends."""

    def __init__(self, slips: Iterable[Slip]) -> None:
        """Remember the modules of these slips. Each slip must drop an operand. Nothing is planted yet."""
        self._modules = {slip.module: slip.path for slip in slips}
        self._now = ""
        self.tests: defaultdict[str, list[str]] = defaultdict(list)

    def pytest_collection_finish(self) -> None:
        """Plant the probes. This happens after the collection, during which the tests have imported the modules."""
        for module, path in self._modules.items():
            plant_source(f"gpusharing.{module}", add_probes(module, path.read_text()), {PROBE: self._probe})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Remember which test is running."""
        self._now = nodeid

    def _probe(self, name: str, decides_if: bool | None, value: object) -> object:
        """Return `value`, the value of an operand, unchanged. If the operand decides its condition with that value
        (`decides_if` is None or the truth of the value), record the running test for the slip `name`, once. See
        `add_probes` for the arguments."""
        if decides_if in (None, bool(value)) and self._now not in self.tests[name][-1:]:
            self.tests[name].append(self._now)
        return value


TRIES = 40
"""The largest number of tests that are tried on a slip that drops an operand."""
RUNGS = ("-m", "not cluster and not nvidia and not e2e and not gpu")


def find(mutants: Mapping[str, Mutant]) -> None:
    """Print each mutant's name and the first test in its files (`look`) that fails with it, or an empty string if none
    of the tests that were tried fails. Only tests that RUNGS selects are tried; for a slip that drops an operand in a
    function, only the first TRIES tests in which the operand decides, in the order of `_in_order`. Prints nothing if
    there are no mutants. Raises RuntimeError if the tests cannot be collected, and AssertionError if the process that
    records deciding operands dies."""
    files = sorted({path for mutant in mutants.values() for path in mutant.look})
    slips = {name: mutant for name, mutant in mutants.items() if isinstance(mutant, Slip)}
    candidates = {name: mutant.look for name, mutant in mutants.items()} | _deciding(slips)
    for name, test in find_killers(mutants, candidates, [*RUNGS, *files]).items() if mutants else ():
        print(f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(test, ensure_ascii=False)}")


def _deciding(slips: Mapping[str, Slip]) -> dict[str, Sequence[str]]:
    """Return, by the name of each slip that drops an operand in a function, at most TRIES tests in which that operand
    decides, in the order of `_in_order`. The list of a slip is empty if there is no such test. Slips in code that
    is evaluated only once, such as a changed value, are left out. Raises AssertionError if the process that runs
    the tests dies."""
    operands = {name: slip for name, slip in slips.items() if not slip.mutation.is_default}
    if not operands:
        return {}
    tests = in_child(lambda: _watched(operands.values()))
    assert isinstance(tests, dict), "the files about the slips can be played"
    return {name: _in_order(slip, tests.get(name, [])) for name, slip in operands.items()}


def _watched(slips: Collection[Slip]) -> dict[str, list[str]]:
    """Run the tests of the slips' files in this process, and record which operands decide their conditions. Each slip
    drops one operand of a condition. Return, by the name of a slip, the ids of the tests in which the value of that
    operand decides the condition; a slip without such a test may be missing. The probes that record this stay in
    the slips' modules until the process ends."""
    watch = Deciding(slips)
    pytest.main([*QUIET, *RUNGS, *sorted({path for slip in slips for path in slip.look})], plugins=[watch])
    return watch.tests


def _in_order(slip: Slip, tests: Sequence[str]) -> list[str]:
    """Return the TRIES tests that are most likely to notice the slip, or all if there are fewer, the most likely
    first. Tests whose id contains the module's name come before all others. Within both groups the first case of
    every parametrized test comes before the second case of any."""
    cases: Counter[str] = Counter()
    rank = {}
    for test in tests:
        function = test.partition("[")[0]
        rank[test] = slip.stem not in test, cases[function]
        cases[function] += 1
    return sorted(rank, key=rank.__getitem__)[:TRIES]
