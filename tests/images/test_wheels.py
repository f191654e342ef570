"""Wheels in a tree: bytecode without times, and programs that the tree's own Python starts."""

import os
import py_compile
import sys
from pathlib import Path

import pytest
from hack.images.debian import PYTHON
from hack.images.wheels import UNCHECKED, WheelError, compile_all, entry_points, scripts, target


def modules(folder: Path, moment: int) -> Path:
    """Two modules written at a time; one was imported already, which left bytecode with that time behind."""
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.py").write_text(f"NAME = '{name}'\n")
        os.utime(folder / f"{name}.py", (moment, moment))
    py_compile.compile(str(folder / "a.py"), doraise=True)
    return folder


def compiled(folder: Path) -> dict[str, bytes]:
    assert compile_all([sys.executable], dict(os.environ), folder, "usr/lib/x") == 2
    return {path.name: path.read_bytes() for path in folder.rglob("*.pyc")}


def test_bytecode_holds_no_time_and_no_path_of_this_machine_whatever_was_there_before(tmp_path: Path) -> None:
    first, second = compiled(modules(tmp_path / "x", 1)), compiled(modules(tmp_path / "y", 2))
    assert first == second
    assert all(data[4:8] == UNCHECKED for data in first.values())
    assert all(b"/usr/lib/x" in data and bytes(tmp_path) not in data for data in first.values())


def test_a_module_that_cannot_be_compiled_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def\n")
    with pytest.raises(WheelError, match=r"broken\.py"):
        compile_all([sys.executable], dict(os.environ), tmp_path, "usr/lib/x")


def test_our_programs_are_started_by_the_trees_python(tmp_path: Path) -> None:
    entry_points(tmp_path)
    folder = tmp_path / "usr/local/bin"
    assert (
        {path.name for path in folder.iterdir()}
        == set(scripts())
        == {"gpusharing-operator", "gpusharing-agent", "gpusharing-checks"}
    )
    for path in folder.iterdir():
        assert path.read_text().startswith(f"#!/usr/bin/python{PYTHON}\n")
        assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(("architecture", "machine"), [("amd64", "x86_64"), ("arm64", "aarch64")])
def test_wheels_are_asked_for_another_machine(architecture: str, machine: str) -> None:
    options = target(architecture)
    assert f"--platform=manylinux_2_28_{machine}" in options
    assert "--only-binary=:all:" in options
