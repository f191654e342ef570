"""hack/report.py and hack/verify.py: what the end of a run says, and when it turns a run into a failure."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hack.generate import ROOT
from hack.report import LONG, SLOWEST, pace_of
from hack.verify import STEPS, Steps, without_tests
from hack.verify import main as verify
from tests.wording import lacks

CONFTEST = """
import pytest
from hack.report import Report, add_option

def pytest_addoption(parser):
    add_option(parser)

def pytest_configure(config):
    config.pluginmanager.register(Report())

@pytest.fixture
def control_plane():
    pytest.skip("left out on purpose: no go\\nand more")

@pytest.fixture
def helm(): ...
"""
TESTS = """
import pytest

def test_needs_a_control_plane(control_plane): ...
def test_needs_helm(helm): ...
def test_pure(record_property):
    record_property("what happened in the random world", {"a cordon": 3, "an eviction": 12})
async def test_embedded(): ...
"""
MARKED = {
    "embedded": ("test_long", "long"),
    "integration": ("test_kills", "crash"),
    "e2e": ("test_on_real_nodes", "e2e"),
    "nvidia": ("test_layouts", "nvidia"),
}
"""The name and the marker of the one test in each of these folders."""
INI = """
[pytest]
addopts = -rfE --tb=short --show-capture=no
asyncio_mode = auto
markers =
  cluster: rung 2
  nvidia: rung 3
  e2e: rung 4
  gpu: rung 5
  crash: kills on rung 2
  faults: faults on rung 2
  tools: built programs
  long: long
"""
MARKS = """
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker("cluster")
"""
LONG_MESSAGE = """
def test_of_a_scene():
    print("what the scene logged")
    assert not 1, "\\n".join(f"line {number} of a log" for number in range(100))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small test suite: one test of each verb; the control plane is left out."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("kube", "hack", *MARKED):
        (root / "tests" / folder).mkdir(parents=True)
    (root / "pytest.ini").write_text(INI)
    (root / "tests" / "conftest.py").write_text(CONFTEST)
    (root / "tests" / "kube" / "test_some.py").write_text(TESTS)
    for folder, (name, marker) in MARKED.items():
        text = f"import pytest\n@pytest.mark.{marker}\ndef {name}(): ..."
        (root / "tests" / folder / f"{name}.py").write_text(text)
    (root / "tests" / "hack" / "test_tool.py").write_text("def test_a_tool(): ...")
    return root


@pytest.fixture(scope="module")
def told(checkout: Path) -> tuple[list[str], list[str]]:
    """The lines of `make test` on it, and of the file that it names."""
    done = run(checkout, "--verb=test", "-v")
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines(), (checkout / "build" / "report-test.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def said(told: tuple[list[str], list[str]]) -> list[str]:
    return told[0]


def run(checkout: Path, *arguments: str, ci: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CI": ci}
    return subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False)


def played(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.split("::")[1].split()[0] for line in done.stdout.splitlines() if "%]" in line]


@pytest.mark.parametrize(
    ("verb", "tests"),
    [
        ("test", ["test_pure", "test_embedded"]),
        ("test-long", ["test_long"]),
        ("test-hack", ["test_a_tool"]),
        ("test-cluster", ["test_needs_helm", "test_needs_a_control_plane"]),
        ("test-crash", ["test_kills"]),
        ("test-nvidia", ["test_layouts"]),
        ("e2e", ["test_on_real_nodes"]),
    ],
)
def test_a_verb_plays_its_own_tests_with_the_low_rungs_first(checkout: Path, verb: str, tests: list[str]) -> None:
    assert played(run(checkout, f"--verb={verb}", "-v")) == tests


def test_a_green_run_ends_in_ten_lines_at_most(said: list[str]) -> None:
    end = said[said.index("rung 0 (pure): 1 passed; rung 1 (embedded): 1 passed") :]
    assert len(end) <= 10 - SLOWEST + 2, "two tests, so two slowest ones"
    assert [line for line in end if line.endswith("::test_pure")]
    assert not lacks(end[-3], "make test-cluster", "make test-hack", "make test-all")
    assert end[-2] == "more: build/report-test.txt"
    assert "2 passed, 4 deselected in" in end[-1]


def test_the_file_says_where_the_time_went_and_what_happened_in_the_random_world(
    told: tuple[list[str], list[str]],
) -> None:
    said, filed = told
    assert not lacks(" ".join(filed), "3 x a cordon", "12 x an eviction")
    assert any(line.endswith("s  tests/kube (2 tests)") for line in filed)
    assert any(line.endswith("s  collecting") for line in filed)
    assert not any("3 x a cordon" in line for line in said)


def test_a_selection_of_another_verbs_tests_names_that_verb(checkout: Path) -> None:
    done = run(checkout, "--verb=test", "tests/nvidia")
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    told = [line for line in done.stdout.splitlines() if "belong" in line]
    (elsewhere,) = told
    assert not lacks(elsewhere, "1 of these tests", "make test-nvidia")


def test_a_folder_that_marks_its_tests_is_played_by_their_verb_when_it_is_named_too(checkout: Path) -> None:
    folder = checkout / "tests" / "cli"
    folder.mkdir()
    (folder / "conftest.py").write_text(MARKS)
    (folder / "test_marked.py").write_text("def test_marked(): ...")
    done = run(checkout, "--verb=test-cluster", "tests/cli", "-v")
    shutil.rmtree(folder)
    assert played(done) == ["test_marked"]


def test_a_test_that_no_verb_would_play_is_refused(checkout: Path) -> None:
    file = checkout / "tests" / "e2e" / "test_unmarked.py"
    file.write_text("def test_unmarked(): ...")
    done = run(checkout, "--verb=e2e")
    file.unlink()
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert not lacks(done.stderr, "tests/e2e/test_unmarked.py::test_unmarked", "marker")


def test_workers_side_by_side_report_the_same(checkout: Path, said: list[str]) -> None:
    def ends(lines: list[str]) -> list[str]:
        return [line for line in lines if line.startswith(("rung ", "next: "))]

    side_by_side = run(checkout, "--verb=test", "-n2")
    assert len(ends(said)) == 2
    assert ends(side_by_side.stdout.splitlines()) == ends(said)
    assert "2 passed in" in side_by_side.stdout.splitlines()[-1]


def test_a_skip_is_reported_once_with_its_reason(checkout: Path) -> None:
    done = run(checkout, "--verb=test-cluster")
    assert "rung 0 (pure): 1 passed; rung 2 (control plane): 1 skipped" in done.stdout
    assert done.stdout.count("left out on purpose") == 1
    assert "SKIPPED 1 x left out on purpose: no go" in done.stdout.splitlines()


def test_a_run_that_is_long_enough_to_be_compared_reports_its_pace() -> None:
    assert list(pace_of(LONG, lambda: 140.4)) == [
        "   140 ms  pace; the aims hold at 70 (docs/adr/0051-aims-at-a-pace.md)"
    ]
    assert list(pace_of(LONG - 1, lambda: 140.4)) == [], "nobody waits for it after one test"


@pytest.mark.parametrize(("workers", "ci"), [("-n0", ""), ("-n2", ""), ("-n0", "true")])
def test_a_failure_shows_its_assertion_and_the_file_has_the_log(checkout: Path, workers: str, ci: str) -> None:
    failing = checkout / "tests" / "kube" / "test_failing.py"
    failing.write_text(LONG_MESSAGE)
    try:
        done = run(checkout, str(failing), workers, ci=ci)
    finally:
        failing.unlink()
    assert done.returncode == 1
    assert "rung 0 (pure): 1 failed" in done.stdout
    assert "line 1 of a log" in done.stdout
    assert "and 7" in done.stdout, "more lines"
    assert "line 99 of a log" not in done.stdout
    assert "what the scene logged" not in done.stdout
    log = (checkout / "build" / "report.txt").read_text()
    assert "line 99 of a log" in log
    assert "what the scene logged" in log


def test_an_unknown_step_of_verify_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(["speling"], Steps()) == 2
    assert not lacks(capsys.readouterr().err, "'speling'", "format, lint, types")


def test_verify_runs_what_is_asked_and_tells_how_it_went(capfd: pytest.CaptureFixture[str]) -> None:
    assert verify(["imports"], Steps()) == 0
    said = capfd.readouterr().out
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken\.", said)
    assert "  imports    ok " in said


def test_ci_leaves_out_the_steps_that_are_tests_and_nothing_else() -> None:
    assert without_tests() == ["format", "lint", "types", "imports", "generated"]
    assert {STEPS[name].split()[0] for name in set(STEPS) - set(without_tests())} == {"pytest"}


def test_a_step_ends_with_the_program_that_is_told_to_end() -> None:
    command = [sys.executable, "-m", "hack.verify", "types"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "== types: mypy\n"
        running.terminate()
        rest = running.stdout.read()
    assert rest == "", "whoever is left writes on, and keeps this open until then"
    assert running.returncode == 128 + signal.SIGTERM
