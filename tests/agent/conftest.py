"""A simulated machine per test."""

from pathlib import Path

import pytest
from hack.nvmlsim.simulator import Simulator


@pytest.fixture
def machine(tmp_path: Path) -> Simulator:
    return Simulator.create(tmp_path / "state", ["h100-80gb", "h100-80gb"], seed="test")
