"""make verify: which of its steps are left to the tests."""

import signal
import subprocess
import sys

from hack.generate import ROOT
from hack.verify import STEPS, without_tests


def test_ci_leaves_out_the_steps_that_are_tests_and_nothing_else() -> None:
    assert without_tests() == ["format", "lint", "types", "imports", "generated"]
    assert {STEPS[name].split()[0] for name in set(STEPS) - set(without_tests())} == {"pytest"}


def test_a_step_ends_with_the_program_that_is_told_to_end() -> None:
    command = [sys.executable, "-m", "hack.verify", "types"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as verify:
        assert verify.stdout is not None
        assert verify.stdout.readline() == "== types: mypy\n"
        verify.terminate()
        rest = verify.stdout.read()
    assert rest == "", "whoever is left writes on, and keeps this open until then"
    assert verify.returncode == 128 + signal.SIGTERM
