"""hack/sidebyside.py: tests whose names or order would differ from worker to worker are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hack.generate import ROOT

CONFTEST = """
from hack.sidebyside import check_names, check_parameters

def pytest_generate_tests(metafunc):
    check_parameters(metafunc.definition)

def pytest_collection_modifyitems(items):
    check_names(items)
"""
MODULE = """
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
    (root / "conftest.py").write_text(CONFTEST)
    (root / "test_one.py").write_text(MODULE.replace("{parameters}", parameters))
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
