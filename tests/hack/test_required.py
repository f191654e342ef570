"""hack/required.py: what cannot run here fails the run, once, unless LEAVE_OUT names it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hack.generate import ROOT
from hack.required import PARTS
from tests.test_repo import PYTHON

CONFTEST = """
import pytest
from hack.cache import UnavailableError
from hack.required import Required

def pytest_configure(config):
    config.pluginmanager.register(Required())

@pytest.fixture(scope="session")
def node():
    raise UnavailableError("a node needs runc: apt-get install --yes runc")

@pytest.fixture
def browser():
    raise UnavailableError("there is no browser: install one")
"""
TESTS = """
import pytest
from hack.cache import UnavailableError
from hack.required import require

@pytest.mark.e2e
@pytest.mark.parametrize("number", range(5))
def test_on_a_node(node, number): ...
@pytest.mark.tools
def test_page(browser): ...
@pytest.mark.tools
def test_helm(): raise UnavailableError("helm must be built with Go")
def test_unmarked(): raise UnavailableError("kubectl must be built with Go")
def test_rights(): require("root", "only root can: use sudo")
def test_pure(): ...
"""
INI = """
[pytest]
markers =
  e2e: rung 4
  tools: built programs
"""
SKIPPED_FOR_ANOTHER_REASON = {
    "tests/agent/test_gpu.py": "there is a GPU, but no card that the table has",
    "tests/agent/test_nvml.py": "is about a machine without NVML",
    "tests/hack/test_realnode_runtime.py": "is about Linux",
    "tests/hack/test_run.py": "is about Linux",
    "tests/integration/test_faults.py": "the verb only counts the runs",
    "tests/minors.py": "is about what newer minors of Kubernetes have",
    "tests/integration/test_rights.py": "looks back at files that were not selected",
}


def play(folder: Path, *arguments: str, leave_out: str = "") -> subprocess.CompletedProcess[str]:
    for name, text in (("conftest.py", CONFTEST), ("test_some.py", TESTS), ("pytest.ini", INI)):
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "LEAVE_OUT": leave_out, "CI": ""}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def test_what_cannot_run_fails_once_with_one_sentence_and_how_to_leave_it_out(tmp_path: Path) -> None:
    done = play(tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("apt-get install --yes runc\n") == 1
    assert re.search(
        r"SKIPPED \[4\].*: see the failure of test_some.py::test_on_a_node\[0\]$", done.stdout, re.MULTILINE
    )
    assert re.findall(r"LEAVE_OUT=(\w+)$", done.stdout, re.MULTILINE) == ["rung4", "browser", "tools", "root"]
    unmarked = "kubectl must be built with Go\nTo make LEAVE_OUT skip this test, mark it with `tools`."
    assert unmarked in done.stdout
    assert "Traceback" not in done.stdout
    assert "1 passed, 4 skipped" in done.stdout


def test_what_is_left_out_on_purpose_is_skipped_with_that_reason(tmp_path: Path) -> None:
    done = play(tmp_path, "--deselect=test_some.py::test_unmarked", leave_out="rung4 browser,tools root")
    assert done.returncode == 0, done.stdout
    assert re.search(r"SKIPPED \[5\].*: left out on purpose by LEAVE_OUT=rung4$", done.stdout, re.MULTILINE)
    assert "1 passed, 8 skipped" in done.stdout


def test_a_name_that_nothing_has_is_refused_with_those_there_are(tmp_path: Path) -> None:
    done = play(tmp_path, leave_out="rung4 rung9")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"LEAVE_OUT names 'rung9': choose from {', '.join(PARTS)}" in done.stderr


def test_no_test_is_skipped_for_want_of_something_but_by_leave_out() -> None:
    skips = re.compile(r"pytest\.skip\(|mark\.skip|importorskip")
    found = {name for name, text in PYTHON.items() if name.startswith("tests/") and skips.search(text)}
    about_skips = {"tests/hack/test_report.py", "tests/hack/test_required.py"}
    assert found - about_skips == SKIPPED_FOR_ANOTHER_REASON.keys()
