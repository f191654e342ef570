"""hack/sidebyside.py: what stays together when workers play the tests side by side, and what is refused before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hack.generate import ROOT
from hack.sidebyside import APART, BY_SCENARIO, LONGEST, LOOK_BACK, LOOKED_BACK_AT, unit

CONFTEST = """
from hack.sidebyside import scheduler

def pytest_xdist_make_scheduler(config, log):
    return scheduler(config, log)
"""
MODULE = """
import os
import pytest

@pytest.mark.parametrize("number", range(6))
def test_some(number, pytestconfig):
    print(f"{number} on {os.environ['PYTEST_XDIST_WORKER']}")
"""
FILES = [f"test_{letter}.py" for letter in "abcdef"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two workers and six files of six tests: what pytest said of each test."""
    return played(tmp_path_factory.mktemp("checkout"), FILES)


def played(root: Path, files: list[str]) -> list[str]:
    """Return what pytest says of each test of these files, of six tests each, that two workers run in the folder."""
    (root / "conftest.py").write_text(CONFTEST)
    (root / "pytest.ini").write_text("[pytest]\n")  # else a file in a folder above decides how the tests are called
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(MODULE)
    command = [sys.executable, "-m", "pytest", "-n2", "-v", "-p", "no:cacheprovider"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f" {6 * len(files)} passed in " in done.stdout.splitlines()[-1]
    return [line for line in done.stdout.splitlines() if " PASSED " in line]


def test_a_file_is_played_by_one_worker_in_its_order(lines: list[str]) -> None:
    for name in FILES:
        mine = [line for line in lines if name in line]
        assert len({line.split()[0] for line in mine}) == 1
        assert [line.split("[")[-1][0] for line in mine] == list("012345")


def test_one_worker_begins_in_front_and_the_other_one_at_the_end(lines: list[str]) -> None:
    first = [next(line for line in lines if line.startswith(f"[{worker}]")) for worker in ("gw0", "gw1")]
    begun = [name for line in first for name in FILES if name in line]
    assert sorted(begun) == [FILES[0], FILES[-1]]


def test_a_file_of_few_long_tests_is_begun_first(tmp_path: Path) -> None:
    lines = played(tmp_path, [*FILES, *LONGEST, "tests/chart/test_z.py"])
    begun = [next(line for line in lines if line.startswith(f"[{worker}]")) for worker in ("gw0", "gw1")]
    assert any(LONGEST[0] in line for line in begun)


def test_who_looks_back_plays_with_those_it_looks_back_at() -> None:
    together = {unit(f"{path}::test_some[part::one]") for path in (*LOOKED_BACK_AT, LOOK_BACK)}
    assert together == {LOOK_BACK}


def test_long_tests_that_share_nothing_go_one_by_one() -> None:
    path = min(APART)
    assert unit(f"{path}::test_one") != unit(f"{path}::test_two")


def test_kills_go_by_scenario_because_each_is_compared_with_the_same_undisturbed_runs() -> None:
    names = ("without_a_kill[node-deleted]", "a_kill[node-deleted-0]", "a_kill[node-deleted-7]", "a_kill[idle-0]")
    units = [unit(f"{BY_SCENARIO}::test_{name}") for name in names]
    assert len(set(units[:3])) == 1
    assert len({*units, unit(f"{BY_SCENARIO}::test_a_kill_before_a_node_write")}) == 3


def test_the_files_that_are_named_are_there() -> None:
    assert [
        path for path in (*LOOKED_BACK_AT, LOOK_BACK, *APART, *LONGEST, BY_SCENARIO) if not Path(ROOT / path).is_file()
    ] == []


CHECKING = """
from hack.sidebyside import check_names, check_parameters

def pytest_generate_tests(metafunc):
    check_parameters(metafunc.definition)

def pytest_collection_modifyitems(items):
    check_names(items)
"""
PARAMETRIZED = """
import pytest

@pytest.mark.parametrize({parameters})
def test_some(one):
    pass
"""
REFUSED = {
    "a set that names the test": ("'one', [{'a', 'b'}], ids=str", "test_some"),
    "a frozen one": ("'one', [frozenset(['a', 'b'])], ids=str", "test_some"),
    "an object without a repr": ("'one', [object()], ids=str", "test_some[<object object at 0x"),
    "a set of parameters": ("'one', {'a', 'b'}", "has no order; sort it"),
    "a set of parameters by keyword": ("'one', argvalues={'a', 'b'}", "has no order; sort it"),
}
TAKEN = {
    "a set that is numbered": "'one', [{'a', 'b'}]",
    "a set of one": "'one', [{'a'}], ids=str",
    "text and numbers": "'one', ['0x10', 0x10, ('a', 'b')], ids=str",
}


def collect(root: Path, parameters: str) -> subprocess.CompletedProcess[str]:
    (root / "conftest.py").write_text(CHECKING)
    (root / "test_one.py").write_text(PARAMETRIZED.replace("{parameters}", parameters))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("parameters", "told"), REFUSED.values(), ids=REFUSED)
def test_a_name_that_differs_between_processes_is_refused(parameters: str, told: str, tmp_path: Path) -> None:
    done = collect(tmp_path, parameters)
    assert done.returncode in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    assert told in done.stdout + done.stderr


@pytest.mark.parametrize("parameters", TAKEN.values(), ids=TAKEN)
def test_others_are_collected(parameters: str, tmp_path: Path) -> None:
    done = collect(tmp_path, parameters)
    assert (done.returncode, "error" in done.stdout) == (0, False), done.stdout
