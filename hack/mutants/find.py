"""Looks for killers of mutants that have none: a line each for tests/mutants/killers.yaml.

A person reads whether that test is the right one.
"""

import json
from collections.abc import Mapping, Sequence

import pytest

from hack.mutants.guards import Guard
from hack.mutants.ladders import LADDERS, LadderRow
from hack.mutants.plays import QUIET, Mutant, find_failing, in_child, is_killed
from hack.mutants.watch import Watch

TRIES = 4
"""Tests that are tried on one row."""


def find_for_guards(guards: Mapping[str, Guard]) -> None:
    """The first test of the files about each guard that fails without it."""
    for name, guard in guards.items():
        _suggest(name, _first(guard))


def find_for_rows(rows: Mapping[str, LadderRow]) -> None:
    """Play the files about these rows once, to see in which tests each row decides; then try those."""
    if not rows:
        return
    files = sorted({path for row in rows.values() for path in row.look})
    decided = in_child(lambda: _watched(files))
    assert isinstance(decided, dict), "the files about the ladders can be played"
    for name, row in rows.items():
        if not row.ladder.part:
            _suggest(name, _first(row))
            continue
        tests = sorted(decided.get(name, []), key=lambda test: row.name.strip("_") not in test)[:TRIES]
        _suggest(name, next((test for test in tests if is_killed(row, test)), ""))


def _first(mutant: Mutant) -> str:
    try:
        return next(iter(find_failing(mutant.look, mutant, first=True)), "")
    except RuntimeError:
        return ""


def _watched(files: Sequence[str]) -> dict[str, list[str]]:
    assert all([files, *files]), "without a name pytest plays everything"
    watch = Watch()
    for ladder in LADDERS:
        watch.follow(ladder)
    pytest.main([*QUIET, *files], plugins=[watch])
    return watch.decided


def _suggest(name: str, test: str) -> None:
    print(f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(test, ensure_ascii=False)}", flush=True)
