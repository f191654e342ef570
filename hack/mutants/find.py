"""Looks for killers of mutants that have none: a line each for the files of tests/mutants.

A person reads whether that test is the right one.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import pytest

from hack.mutants.deciding import Deciding
from hack.mutants.plays import QUIET, Mutant, in_child
from hack.mutants.slips import Slip
from hack.mutants.trials import find_killers

TRIES = 40
"""Tests that are tried on one slip."""
RUNGS = ("-m", "not cluster and not nvidia and not e2e and not gpu")


def find(mutants: Mapping[str, Mutant]) -> None:
    """Print the first test of the files about each mutant that notices it."""
    files = sorted({path for mutant in mutants.values() for path in mutant.look})
    slips = {name: mutant for name, mutant in mutants.items() if isinstance(mutant, Slip)}
    candidates = {name: mutant.look for name, mutant in mutants.items()} | _deciding(slips)
    for name, test in find_killers(mutants, candidates, [*RUNGS, *files]).items() if mutants else ():
        print(f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(test, ensure_ascii=False)}")


def _deciding(slips: Mapping[str, Slip]) -> dict[str, Sequence[str]]:
    """Return the tests in which each operand decides, those in the files about its module first."""
    operands = {name: slip for name, slip in slips.items() if not slip.mutation.is_default}
    if not operands:
        return {}
    tests = in_child(lambda: _watched(operands.values()))
    assert isinstance(tests, dict), "the files about the slips can be played"
    return {name: _in_order(slip, tests.get(name, [])) for name, slip in operands.items()}


def _watched(slips: Collection[Slip]) -> dict[str, list[str]]:
    watch = Deciding(slips)
    pytest.main([*QUIET, *RUNGS, *sorted({path for slip in slips for path in slip.look})], plugins=[watch])
    return watch.tests


def _in_order(slip: Slip, tests: Sequence[str]) -> list[str]:
    """Return these tests, first one case of each, and first those of the module's own file."""
    cases: Counter[str] = Counter()
    rank = {}
    for test in tests:
        function = test.partition("[")[0]
        rank[test] = slip.stem not in test, cases[function]
        cases[function] += 1
    return sorted(rank, key=rank.__getitem__)[:TRIES]
