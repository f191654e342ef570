"""Every guard, every row of the planner's ladders and every slip has a named test that notices it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hack.generate import ROOT
from hack.mutants.__main__ import read_mutants
from hack.mutants.guards import Guard, read_guards
from hack.mutants.killers import Killers, read_killers
from hack.mutants.ladders import LADDERS, find_strays
from hack.mutants.plays import find_killers
from hack.mutants.slips import find_slips, read_slips
from hack.mutants.transplant import plant_source


def test_each_mutant_has_a_killer_or_a_reason() -> None:
    """A new condition or default in kube/ or agent/ needs a line in tests/mutants/slips.yaml: `make mutants FIND=1`."""
    assert read_killers().find_gaps(read_mutants()) == []


def test_a_row_without_a_killer_and_a_killer_without_a_row_are_found() -> None:
    killers = Killers({"old": "tests/test_a.py::test_a", "both": "tests/test_a.py::test_b"}, {"both": " "})
    assert killers.find_gaps(["both", "new"]) == [
        "tests/mutants/killers.yaml names no killer: new",
        "no such mutant: old",
        "has a killer, so is not equivalent: both",
        "no reason is given: both",
    ]


SOURCE = """
import dataclasses, functools, typing

MOST = 60
NAME = "x"

@dataclasses.dataclass(slots=True)
class Limits:
    most: float = 2.5
    tries: int = 0
    strict: bool = False
    name: str = ""

class Mark(typing.NamedTuple):
    waits: bool = False

class Reader:
    def __init__(self, *, size: int = 25) -> None:
        self.size = size

    @property
    def full(self) -> bool:
        return self.size > MOST or self.size < 0 and self.size != -5

RULES = {"big": lambda size: size > 3 and size < MOST}

@functools.cache
def is_big(size: int, least: int = 7) -> bool:
    return size > least and (size < MOST) or size == -1
"""


def test_slips_are_found_by_what_they_are_and_not_by_their_lines() -> None:
    assert {name: slip.mutation.becomes for name, slip in find_slips("kube.x", SOURCE)} == {
        "kube.x Reader.full: or self.size < 0 and self.size != -5": "(self.size > MOST)",
        "kube.x Reader.full: and self.size != -5": "(self.size < 0)",
        "kube.x and size < MOST": "(size > 3)",
        "kube.x is_big: or size == -1": "(size > least and size < MOST)",
        "kube.x is_big: and size < MOST": "(size > least)",
        "kube.x MOST": "(2 * (60))",
        "kube.x Limits.most": "(2 * (2.5))",
        "kube.x Limits.tries": "1",
        "kube.x Limits.strict": "True",
        "kube.x Mark.waits": "True",
        "kube.x Reader.__init__(size)": "(2 * (25))",
        "kube.x is_big(least)": "(2 * (7))",
    }


def test_each_slip_takes_effect_in_a_module_that_is_imported_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slipping.py").write_text(SOURCE)
    module = importlib.import_module("slipping")
    made = module.Limits(), module.Reader().size
    known = module.RULES["big"], module.is_big.__wrapped__
    sizes = (-5, -1, 0, 4, 8, 70)

    def behavior() -> list[object]:
        reader = [module.Reader(size=size).full for size in sizes]
        rules = [ask(size) for ask in known for size in sizes]
        plain = [module.MOST, module.Limits() == made[0], module.Mark(), module.Reader().size == made[1]]
        return [*plain, reader, rules]

    plain = behavior()
    for name, slip in find_slips("kube.x", SOURCE):
        plant_source("slipping", slip.mutation.apply(SOURCE))
        assert behavior() != plain, name
        plant_source("slipping", SOURCE)
        assert behavior() == plain, name


@pytest.mark.parametrize("new", ["size=2, least=3", "size=2, *, least=3, most=4"])
def test_a_function_whose_new_defaults_do_not_fit_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"unfit_{len(new)}"
    (tmp_path / f"{name}.py").write_text("def count(size=1, *, least=0):\n    return 10\n")
    module = importlib.import_module(name)
    with pytest.raises((ValueError, KeyError)):
        plant_source(name, f"def count({new}):\n    return 20\n")
    assert (module.count(), module.count.__defaults__, module.count.__kwdefaults__) == (
        10,
        (1,),
        {"least": 0},
    )


def test_a_test_that_fails_under_a_mutant_is_its_killer_and_one_that_passes_is_not() -> None:
    doubled = Guard(
        "gpusharing.kube.backoff", "self._next * 2", "self._next * 3", ("tests/kube/test_backoff.py",)
    )
    harmless = Guard(
        "gpusharing.kube.backoff", "self._next * 2", "2 * self._next", ("tests/kube/test_backoff.py",)
    )
    mutants = {"doubled": doubled, "harmless": harmless}
    killers = find_killers(mutants, {name: guard.look for name, guard in mutants.items()})
    assert killers["doubled"].startswith("tests/kube/test_backoff.py::test_")
    assert killers["harmless"] == ""


def test_a_folder_stands_for_the_tests_of_all_its_files() -> None:
    slip = read_slips()["agent.probes MOST_CONNECTIONS"]
    killers = find_killers(
        {"slip": slip}, {"slip": slip.look}, ["tests/agent/test_main.py", "tests/agent/test_probes.py"]
    )
    assert killers["slip"].startswith("tests/agent/test_probes.py::test_")


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
        Guard("gpusharing.planning.transition.idle", "if nobody_wrote_this:", "if False:", ()).blind()


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
