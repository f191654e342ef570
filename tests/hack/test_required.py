"""hack/required.py: what cannot run here fails the run, once, unless LEAVE_OUT names it; hack/timelimits.py: a test that waits for what
never comes fails, says where it stood, and the others are played."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hack.generate import ROOT
from hack.required import PARTS
from hack.timelimits import ENDLESS, LIMITS
from hack.verbs import RUNGS
from tests.test_repo import PYTHON

REQUIRING = """
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


def play(
    folder: Path, *arguments: str, conftest: str = REQUIRING, tests: str = TESTS, leave_out: str = ""
) -> subprocess.CompletedProcess[str]:
    for name, text in (("conftest.py", conftest), ("test_some.py", tests), ("pytest.ini", INI)):
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "LEAVE_OUT": leave_out, "CI": ""}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=60)


def test_what_cannot_run_fails_once_with_one_sentence_and_how_to_leave_it_out(tmp_path: Path) -> None:
    done = play(tmp_path, "-ra")
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
    done = play(tmp_path, "-ra", "--deselect=test_some.py::test_unmarked", leave_out="rung4 browser,tools root")
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


LIMITING = """
import hack.timelimits

hack.timelimits.LIMITS = dict.fromkeys(range(6), 1)
hack.timelimits.AGAIN = 1

def pytest_configure(config):
    config.pluginmanager.register(hack.timelimits.TimeLimits())
"""
HANGS = {
    "a child that does not end": """
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            child.wait()  # here
        finally:
            child.kill()
""",
    "a thread that does not end": """
    told = threading.Event()
    thread = threading.Thread(target=told.wait, daemon=True)
    thread.start()
    thread.join()  # here
""",
    "a pipe that stays empty": """
    os.read(os.pipe()[0], 1)  # here
""",
    "a coroutine": """
    asyncio.run(asyncio.Event().wait())  # here
""",
    "a coroutine that will not be cancelled": """
    async def stubborn():
        while True:
            try:
                await asyncio.Event().wait()  # here
            except asyncio.CancelledError:
                pass
    with asyncio.Runner() as runner:
        runner.run(stubborn())
""",
}
MODULE = """
import asyncio, os, subprocess, threading

def test_hangs():
{body}

def test_after_it():
    pass
"""


@pytest.mark.parametrize("body", HANGS.values(), ids=HANGS)
def test_what_hangs_fails_where_it_stood_and_the_next_test_is_played(body: str, tmp_path: Path) -> None:
    done = play(tmp_path, "-v", conftest=LIMITING, tests=MODULE.format(body=body))
    assert "test_hangs FAILED" in done.stdout
    assert "Timeout (>1.0s)" in done.stdout
    assert "# here" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_a_fixture_that_hangs_fails_too(tmp_path: Path) -> None:
    fixture = "import asyncio, pytest\n@pytest.fixture\ndef late():\n    asyncio.run(asyncio.Event().wait())\n"
    done = play(tmp_path, conftest=LIMITING, tests=fixture + "def test_it(late): ...\ndef test_after_it(): ...\n")
    assert "1 passed, 1 error" in done.stdout


def test_pytest_may_take_its_time_to_write_down_how_a_test_ended(tmp_path: Path) -> None:
    """A traceback takes longer than the signal's pause on a machine that does much else."""
    slow = "import pytest, time\n@pytest.hookimpl(wrapper=True)\ndef pytest_runtest_{}():\n    time.sleep(1.2)\n"
    hooks = ("makereport", "logreport")
    (tmp_path / "slow.py").write_text("".join(slow.format(one) + "    return (yield)\n" for one in hooks))
    done = play(tmp_path, "-p", "slow", conftest=LIMITING, tests=MODULE.format(body=HANGS["a coroutine"]))
    assert "1 failed, 1 passed" in done.stdout


def test_one_that_names_its_limit_keeps_it(tmp_path: Path) -> None:
    module = "import pytest, time\n@pytest.mark.timeout(30)\ndef test_slow():\n    time.sleep(1.5)\n"
    assert "1 passed" in play(tmp_path, conftest=LIMITING, tests=module).stdout


def limit_of(item: pytest.Item) -> object:
    mark = item.get_closest_marker("timeout")
    return mark.args[0] if mark else None


def test_every_rung_has_a_limit(request: pytest.FixtureRequest) -> None:
    assert LIMITS.keys() == RUNGS.keys()
    items = request.session.items
    assert {limit_of(item) for item in items} <= {*LIMITS.values(), 0}
    assert all(limit_of(item) == 0 for item in items if item.get_closest_marker(ENDLESS) is not None)
