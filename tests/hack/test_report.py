"""hack/report.py and hack/verify.py: what the end of a run says, and when it turns a run into a failure."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hack.generate import ROOT
from hack.report import LONG, pace_of
from hack.verify import main as verify

CONFTEST = """
import pytest
from hack.report import Report

def pytest_configure(config):
    config.pluginmanager.register(Report())

@pytest.fixture
def control_plane():
    pytest.skip("RUNG 2 NOT RUN: no go\\nand more")
"""
TESTS = """
import pytest
from hack.results import PROPERTY, Asked

def test_needs_a_control_plane(control_plane): ...
def test_pure(record_property):
    record_property("what happened in the random world", {"a cordon": 3, "an eviction": 12})
async def test_embedded(): ...
@pytest.mark.cluster
@pytest.mark.crash
def test_kills(): ...
@pytest.mark.nvidia
def test_with_nvidia(): pytest.skip("no root")
@pytest.mark.e2e
def test_on_real_nodes(): pytest.skip("no root")

def ask(request, number):
    request.node.user_properties.append((PROPERTY, ("h100-80gb", Asked.LAYOUTS, number)))

@pytest.mark.nvidia
def test_layouts(request): ask(request, 40)
@pytest.mark.nvidia
def test_more_layouts(request): ask(request, 2)
@pytest.mark.nvidia
def test_that_fails(request):
    ask(request, 1000)
    assert not 1
"""
INI = """
[pytest]
asyncio_mode = auto
markers =
  cluster: rung 2
  nvidia: rung 3
  e2e: rung 4
  gpu: rung 5
  crash: kills on rung 2
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small test suite: one test of each rung; the control plane cannot be had."""
    root = tmp_path_factory.mktemp("checkout")
    folder = root / "tests" / "planning"
    folder.mkdir(parents=True)
    (root / "pytest.ini").write_text(INI)
    (root / "tests" / "conftest.py").write_text(CONFTEST)
    (folder / "test_some.py").write_text(TESTS)
    return root


@pytest.fixture(scope="module")
def said(checkout: Path) -> list[str]:
    """The lines of a run outside CI."""
    done = run(checkout, "-v")
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def said_side_by_side(checkout: Path) -> list[str]:
    """The lines of the same run with two workers."""
    done = run(checkout, "-n2")
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def run(
    checkout: Path, *arguments: str, marked: str = "not nvidia and not e2e and not crash", ci: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-m", marked, "-p", "no:cacheprovider", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CI": ci}
    return subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False)


def test_what_happened_in_the_random_world_is_told_with_its_counts(said: list[str]) -> None:
    assert "3 x a cordon; 12 x an eviction" in said


def test_each_rung_is_counted_and_a_skip_is_told_with_its_reason(said: list[str]) -> None:
    assert "rung 0  pure               1 passed" in said
    assert "rung 1  embedded           1 passed" in said
    assert "rung 2  control plane      1 skipped, 1 not selected (make test-crash)" in said
    assert "rung 3  NVIDIA's programs  4 not selected (make test-nvidia)" in said
    assert "rung 5  real GPU           none" in said
    assert "SKIPPED on rung 2: 1 x RUNG 2 NOT RUN: no go" in said
    assert any(line.endswith("s  tests/planning (3 tests)") for line in said)


def test_the_last_line_is_pytest_s_own(said: list[str], said_side_by_side: list[str]) -> None:
    assert "2 passed, 1 skipped, 6 deselected in" in said[-1]
    assert "2 passed, 1 skipped in" in said_side_by_side[-1]


def test_workers_side_by_side_tell_the_same(said: list[str], said_side_by_side: list[str]) -> None:
    def told(lines: list[str]) -> list[str]:
        return [line for line in lines if line.startswith(("rung ", "SKIPPED on", "3 x a cordon"))]

    assert len(told(said)) == 8
    assert told(said_side_by_side) == told(said)
    assert any(line.endswith("s  tests/planning (3 tests)") for line in said_side_by_side)
    assert any(line.endswith("test_some.py::test_needs_a_control_plane") for line in said_side_by_side)


def test_a_run_that_is_long_enough_to_be_compared_tells_its_pace(said: list[str]) -> None:
    assert list(pace_of(LONG, lambda: 140.4)) == [
        "   140 ms  pace; the aims hold at 70 (docs/adr/0051-aims-at-a-pace.md)"
    ]
    assert list(pace_of(LONG - 1, lambda: 140.4)) == []
    assert [line for line in said if "  pace; " in line] == [], "nobody waits for it after a test of his own"


def test_low_rungs_run_first(checkout: Path) -> None:
    order = [
        line.split("::")[1].split()[0] for line in run(checkout, "-v").stdout.splitlines() if "%]" in line
    ]
    assert order == ["test_pure", "test_embedded", "test_needs_a_control_plane"]


def test_in_ci_a_skipped_rung_2_fails_the_run(checkout: Path) -> None:
    in_ci = run(checkout, ci="true")
    assert in_ci.returncode == 1
    assert "rung 2 was skipped, which CI does not allow" in in_ci.stdout
    assert run(checkout, "-k", "pure", ci="true").returncode == 0
    assert run(checkout, "-n2", ci="true").returncode == 1


def test_in_ci_a_skipped_rung_4_fails_the_run(checkout: Path) -> None:
    in_ci = run(checkout, marked="e2e", ci="true")
    assert in_ci.returncode == 1
    assert "rung 4 was skipped, which CI does not allow" in in_ci.stdout
    assert run(checkout, marked="e2e").returncode == 0


def test_in_ci_a_skipped_rung_3_fails_the_run(checkout: Path) -> None:
    in_ci = run(checkout, "-k", "with_nvidia", marked="nvidia", ci="true")
    assert in_ci.returncode == 1
    assert "rung 3 was skipped, which CI does not allow" in in_ci.stdout
    assert run(checkout, "-k", "with_nvidia", marked="nvidia").returncode == 0


def test_what_passing_tests_counted_is_one_table_by_model(checkout: Path, said: list[str]) -> None:
    lines = run(checkout, marked="nvidia").stdout.splitlines()
    head = lines.index(next(line for line in lines if line.startswith("model")))
    assert lines[head].split()[1] == "layouts"
    assert lines[head + 1].split()[:3] == ["h100-80gb", "42", "-"], "1000 of the failed test are not in it"
    assert lines[head + 2].split()[:3] == ["in", "all", "42"]
    assert not any(line.startswith("model") for line in said), "no table where nothing was counted"


def test_a_failure_is_counted_on_its_rung(checkout: Path) -> None:
    failing = checkout / "tests" / "planning" / "test_failing.py"
    failing.write_text("def test_pure(): assert not 1\n")
    try:
        done = run(checkout, str(failing))
    finally:
        failing.unlink()
    assert done.returncode == 1
    assert "rung 0  pure               1 failed" in done.stdout.splitlines()


def test_an_unknown_step_of_verify_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(["speling"]) == 2
    assert "unknown step 'speling': choose from format, lint, types" in capsys.readouterr().err


def test_verify_runs_what_is_asked_and_tells_how_it_went(capfd: pytest.CaptureFixture[str]) -> None:
    assert verify(["imports"]) == 0
    said = capfd.readouterr().out
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken\.", said)
    assert "  imports    ok " in said
