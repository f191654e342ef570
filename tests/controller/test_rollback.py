"""The check that Helm runs before it rolls back, as a process without its variables; the rest: tests/chart."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpusharing.controller.rollback import REFUSED

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {},
            "GPUSHARING_RELEASE and GPUSHARING_NAMESPACE must be set, for example: GPUSHARING_RELEASE=gpusharing",
        ),
        ({"GPUSHARING_RELEASE": "big", "GPUSHARING_NAMESPACE": ""}, "GPUSHARING_NAMESPACE must be set"),
    ],
    ids=["neither is set", "one is empty"],
)
def test_without_the_name_of_the_release_the_rollback_is_refused_in_a_sentence(
    environment: dict[str, str], message: str
) -> None:
    program = subprocess.run(
        [sys.executable, "-m", "gpusharing.controller.rollback"],
        env={"PYTHONPATH": str(ROOT / "operator"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (program.returncode, program.stdout) == (REFUSED, "")
    assert program.stderr.startswith(f"gpusharing-rollback-check: {message}")
    assert len(program.stderr.splitlines()) == 1
