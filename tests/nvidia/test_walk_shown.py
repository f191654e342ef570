"""`make demo DRIVER=nvidia` as people run it. It runs beside the other tests from the first one on (conftest.py)."""

import pytest
from hack.demo.screen import WIDTH
from tests.nvidia.conftest import Demo

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

CHECKS = 44
"""A story that lost a check would still end well."""
SECONDS = 600.0


def test_the_demo_with_nvidias_programs_holds(demo: Demo) -> None:
    process, said = demo
    status = process.wait(SECONDS)
    text = said.read_text()
    assert status == 0, text
    lines = [line.rstrip() for line in text.splitlines()]
    assert "SIMULATED" in lines[1]
    assert sum(line.startswith("  ✓ ") for line in lines) == CHECKS
    assert [line for line in lines if len(line) > WIDTH] == []
