"""Fixtures: a fresh simulated machine per test."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hack.nvmlsim.simulator import Simulator
from tests.nvmlsim.machine import SimMachine

MakeMachine = Callable[..., SimMachine]


@pytest.fixture
def make_machine(tmp_path: Path) -> MakeMachine:
    """Make a machine: `make_machine("h100-80gb", "t4")`."""

    def make(*models: str, driver: str = "580.95.05") -> SimMachine:
        return SimMachine(Simulator.create(tmp_path / "nvml.state", models, driver=driver, seed="test"))

    return make


@pytest.fixture
def h100(make_machine: MakeMachine) -> SimMachine:
    machine = make_machine("h100-80gb")
    machine.simulator.set_gpu(0, mig_current=1, mig_pending=1)
    return machine
