"""Every guard of the product and every row of the planner's ladders has a named test that misses it."""

import os
import subprocess
import sys

import pytest
from hack.generate import ROOT
from hack.mutants.guards import Guard, read_guards
from hack.mutants.killers import Killers, read_killers
from hack.mutants.ladders import LADDERS, find_strays, read_rows


def test_each_row_and_each_guard_has_a_killer_or_a_reason() -> None:
    assert read_killers().find_gaps([*read_guards(), *read_rows()]) == []


def test_a_row_without_a_killer_and_a_killer_without_a_row_are_found() -> None:
    killers = Killers({"old": "tests/test_a.py::test_a", "both": "tests/test_a.py::test_b"}, {"both": " "})
    assert killers.find_gaps(["both", "new"]) == [
        "no killer is named: new",
        "no such mutant: old",
        "has a killer, so is not equivalent: both",
        "no reason is given: both",
    ]


def test_each_tuple_of_the_planner_that_is_a_ladder_is_known_as_one() -> None:
    """A new ladder goes into LADDERS of hack/mutants/ladders.py."""
    assert find_strays() == []
    forgotten = [ladder for ladder in LADDERS if ladder.name != "HOLDS"]
    assert find_strays(forgotten) == ["gpusharing.planning.pools.holds.HOLDS"]


def test_the_guards_are_still_there_as_they_are_taken_away() -> None:
    """A guard that was moved or put otherwise goes on being taken away: mend hack/mutants/guards.yaml."""
    for guard in read_guards().values():
        compile(guard.blind(), str(guard.path), "exec")


def test_a_guard_that_is_put_otherwise_is_found_out() -> None:
    with pytest.raises(
        ValueError,
        match="does not contain this line exactly once, or the guard changes nothing: if nobody_wrote_this:",
    ):
        Guard("gpusharing.planning.way.idle", "if nobody_wrote_this:", "if False:", ()).blind()


def test_the_killers_exist_on_rungs_0_and_1(request: pytest.FixtureRequest) -> None:
    """The whole suite knows all tests already; a selection has to look for them."""
    killers = set(read_killers().tests.values())
    missing = sorted(killers - {item.nodeid for item in request.session.items})
    assert not [
        name for name in killers if name.startswith(("tests/integration/", "tests/e2e/", "tests/nvidia/"))
    ]
    if missing:
        asked = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "--collect-only",
                "-q",
                "-n",
                "0",
                "-p",
                "no:cacheprovider",
                *missing,
            ],
            cwd=ROOT,
            env=os.environ | {"PYTEST_ADDOPTS": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert asked.returncode == 0, asked.stdout + asked.stderr
