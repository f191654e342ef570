"""Rung 3: NVIDIA's unmodified programs on the simulated library. Skipped with the reason where they cannot run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hack.nvidia import build
from hack.nvidia.sandbox import Sandbox, why_not
from hack.nvmlsim.simulator import Simulator

MakeSandbox = Callable[..., Sandbox]


@pytest.fixture(scope="session")
def nvidia_programs() -> None:
    """Build the pinned programs once; skip the test where they cannot run."""
    if why := why_not():
        pytest.skip(why)
    for release in build.RELEASES:
        build.ensure(release)


@pytest.fixture
def make_sandbox(nvidia_programs: None, tmp_path: Path) -> MakeSandbox:
    """A sandbox around a machine with these GPUs: `make_sandbox("h100-80gb", "h100-80gb")`."""

    def make(*models: str) -> Sandbox:
        simulator = Simulator.create(tmp_path / "nvml.state", models, seed="test")
        return Sandbox(simulator, tmp_path / "sandbox")

    return make
