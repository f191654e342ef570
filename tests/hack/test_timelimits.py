"""hack/timelimits.py: a test that waits for what never comes fails, says where it stood, and the others are played."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hack.generate import ROOT
from hack.timelimits import ENDLESS, LIMITS
from hack.verbs import RUNGS

CONFTEST = """
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


def play(root: Path, module: str, *flags: str) -> subprocess.CompletedProcess[str]:
    (root / "conftest.py").write_text(CONFTEST)
    (root / "test_one.py").write_text(module)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *flags]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(root)))}
    return subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("body", HANGS.values(), ids=HANGS)
def test_what_hangs_fails_where_it_stood_and_the_next_test_is_played(body: str, tmp_path: Path) -> None:
    done = play(tmp_path, MODULE.format(body=body))
    assert "test_hangs FAILED" in done.stdout
    assert "Timeout (>1.0s)" in done.stdout
    assert "# here" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_a_fixture_that_hangs_fails_too(tmp_path: Path) -> None:
    fixture = "import asyncio, pytest\n@pytest.fixture\ndef late():\n    asyncio.run(asyncio.Event().wait())\n"
    done = play(tmp_path, fixture + "def test_it(late):\n    pass\ndef test_after_it():\n    pass\n")
    assert "1 passed, 1 error" in done.stdout


def test_pytest_may_take_its_time_to_write_down_how_a_test_ended(tmp_path: Path) -> None:
    """A traceback takes longer than the signal's pause on a machine that does much else."""
    slow = "import pytest, time\n@pytest.hookimpl(wrapper=True)\ndef pytest_runtest_{}():\n    time.sleep(1.2)\n"
    hooks = ("makereport", "logreport")
    (tmp_path / "slow.py").write_text("".join(slow.format(one) + "    return (yield)\n" for one in hooks))
    done = play(tmp_path, MODULE.format(body=HANGS["a coroutine"]), "-p", "slow")
    assert "1 failed, 1 passed" in done.stdout


def test_one_that_names_its_limit_keeps_it(tmp_path: Path) -> None:
    module = "import pytest, time\n@pytest.mark.timeout(30)\ndef test_slow():\n    time.sleep(1.5)\n"
    assert "1 passed" in play(tmp_path, module).stdout


def limit_of(item: pytest.Item) -> object:
    mark = item.get_closest_marker("timeout")
    return mark.args[0] if mark else None


def test_every_rung_has_a_limit(request: pytest.FixtureRequest) -> None:
    assert LIMITS.keys() == RUNGS.keys()
    items = request.session.items
    assert {limit_of(item) for item in items} <= {*LIMITS.values(), 0}
    assert all(limit_of(item) == 0 for item in items if item.get_closest_marker(ENDLESS) is not None)
