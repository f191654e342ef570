"""hack/mutants/judge.py notices when tests go that saw what no other test sees."""

import subprocess
import sys
from pathlib import Path

import pytest
from hack.generate import ROOT
from hack.mutants.mutator import find_mutations

PRODUCT = '''"""A docstring that says 3."""
LIMIT: int = 3

def is_old(age: int, *, strict: bool = False) -> bool:
    """Whether age > 3."""
    log.info("asked for 4")
    if not strict and age == 0:
        return False
    return age > LIMIT
'''
BEFORE = """from gpusharing.ages import is_old

def test_far():
    assert is_old(100) and not is_old(1) and not is_old(0) and not is_old(0, strict=True)

def test_limit():
    assert is_old(4) and not is_old(3)
"""


def test_conditions_numbers_and_results_are_changed_and_texts_are_not() -> None:
    assert [(mutation.line, mutation.was, mutation.becomes) for mutation in find_mutations(PRODUCT)] == [
        (2, "3", "4"),
        (4, "False", "True"),
        (7, "not strict and age == 0", "True"),
        (7, "not strict and age == 0", "False"),
        (7, "not strict and age == 0", "(not strict or age == 0)"),
        (7, "not strict and age == 0", "(age == 0)"),
        (7, "not strict and age == 0", "(not strict)"),
        (7, "not strict", "(strict)"),
        (7, "age == 0", "(age != 0)"),
        (7, "0", "1"),
        (8, "False", "True"),
        (9, "age > LIMIT", "None"),
        (9, "age > LIMIT", "(age <= LIMIT)"),
        (9, "age > LIMIT", "(age >= LIMIT)"),
    ]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project as small as ours is large, with its tests committed."""
    (tmp_path / "operator" / "gpusharing").mkdir(parents=True)
    (tmp_path / "operator" / "gpusharing" / "__init__.py").touch()
    (tmp_path / "operator" / "gpusharing" / "ages.py").write_text(PRODUCT.replace("    log.info", "    str"))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_ages.py").write_text(BEFORE)
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["operator"]\nasyncio_default_fixture_loop_scope = "function"\n'
    )
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.com"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "Start"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def judged(project: Path) -> subprocess.CompletedProcess[str]:
    words = ["--covered", "--now", "tests/test_ages.py", "--before", "tests/test_ages.py", "--count", "9"]
    command = [sys.executable, "-m", "hack.mutants.judge", *words]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def test_a_mutant_that_only_a_removed_test_saw_is_printed_with_that_test(project: Path) -> None:
    kept = judged(project)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert "0 died before and live now" in kept.stdout

    (project / "tests" / "test_ages.py").write_text(BEFORE.partition("def test_limit")[0])
    lost = judged(project)
    assert lost.returncode == 1, lost.stdout + lost.stderr
    assert "tests/test_ages.py::test_limit" in lost.stdout


def test_mutants_of_a_lambda_at_the_top_of_a_module_are_drawn(project: Path) -> None:
    ages = project / "operator" / "gpusharing" / "ages.py"
    ages.write_text('RULES = {\n    "old": lambda age: (\n        age > 3\n    )\n}\n')
    (project / "tests" / "test_ages.py").write_text(
        'from gpusharing.ages import RULES\n\ndef test_old():\n    assert RULES["old"](4)\n'
    )
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.com"]
    subprocess.run(["git", *identity, "commit", "-qam", "Rules"], cwd=project, check=True)
    done = judged(project)
    assert "1 mutants: " in done.stdout, done.stdout + done.stderr


def test_tests_that_fail_anyway_judge_nothing(project: Path) -> None:
    (project / "tests" / "test_ages.py").write_text("def test_wrong():\n    assert False\n")
    failed = judged(project)
    assert failed.returncode == 1
    assert "without a mutant pytest ends with 1: tests/test_ages.py::test_wrong" in failed.stderr
