"""hack/setup.py: what is said when .venv cannot be made, and that the next set-up does not believe it.
And what an operator under test may import: what the one in the image may (hack/inpod.py)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hack.bench.image import locked_names
from hack.inpod import ABSENT
from hack.launch import PYTHONPATH, ROOT, own_environment
from tests.wording import lacks

# Plays .venv's Python: it has our version, and its pip, where it has one, says what is in the variable and fails, or not.
PYTHON = """#!/bin/sh
case "$*" in *"-m pip "*) echo "$SAYS" >&2; [ -n "$INSTALLS" ]; exit ;; *pip*) [ -z "$WITHOUT_PIP" ] || exit 1 ;; esac
echo "$VERSION"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing but hack/setup.py, what it reads, and a .venv that somebody has begun."""
    (tmp_path / "hack").mkdir()
    shutil.copy(ROOT / "hack/setup.py", tmp_path / "hack")
    for name in ("requirements-dev.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def set_up(checkout: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / "hack/setup.py")]
    environ = {**os.environ, "VERSION": sys.version, **more}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_a_pip_that_fails_is_one_sentence_with_its_last_line_and_the_remedy(checkout: Path) -> None:
    done = set_up(checkout, SAYS="WARNING: retrying\nERROR: No matching distribution found for x")
    assert done.returncode == 1
    (problem,) = done.stderr.splitlines()[1:]
    assert not lacks(
        problem,
        "requirements-dev.lock",
        "ERROR: No matching distribution found for x",
        "build/setup.log",
        "PIP_INDEX_URL",
        "make setup",
    )
    assert (checkout / "build/setup.log").read_text().startswith("WARNING: retrying\n")
    assert not (checkout / ".venv/set-up.sha256").exists()


def test_a_venv_that_was_left_without_pip_is_made_anew(checkout: Path) -> None:
    (checkout / "venv.py").touch()  # plays the module of that name: it makes nothing
    done = set_up(checkout, WITHOUT_PIP="yes", PYTHONPATH=str(checkout))
    assert done.stderr.startswith("making .venv with Python ")


def test_the_venv_of_a_copied_checkout_is_set_up_for_the_copy(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It would run the code of the checkout that was copied."""
    copy = tmp_path_factory.mktemp("copied") / "checkout"
    assert "installing" in set_up(checkout, INSTALLS="yes").stderr
    assert set_up(checkout, INSTALLS="yes").stderr == ""
    shutil.copytree(checkout, copy)
    assert "installing" in set_up(copy, INSTALLS="yes").stderr
    assert set_up(copy, INSTALLS="yes").stderr == ""


def test_a_damaged_lock_of_debians_packages_is_told_in_a_sentence(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "hack", tmp_path / "hack", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/debian.lock").write_text("not a package\n")
    done = subprocess.run(
        [sys.executable, "-m", "hack.promtool"],
        cwd=tmp_path,
        env={"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{ROOT / 'operator'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert not lacks(done.stderr, "line 1", "'not a package'")


ASKED = """
import json, sys
from hack import inpod
inpod.hide()
import gpusharing.controller.leading, gpusharing.controller.main
there = {name for name, module in sys.modules.items() if module is not None}
print(json.dumps(sorted(there & set(inpod.ABSENT))))
try:
    import kubernetes
except ModuleNotFoundError as error:
    print(error.name)
"""


def test_the_operator_is_loaded_without_what_its_image_lacks() -> None:
    run = subprocess.run(
        [sys.executable, "-c", ASKED],
        cwd=ROOT,
        env={**own_environment(), "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == ["[]", "kubernetes"]


def test_nothing_that_the_image_has_is_hidden() -> None:
    assert not set(ABSENT) & set(locked_names((ROOT / "requirements.lock").read_text()))
