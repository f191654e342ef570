"""Rung 3: NVIDIA's unmodified programs on the simulated library. Skipped with the reason where they cannot run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hack.cluster import toolchain
from hack.cluster.controlplane import ControlPlane, Options
from hack.nvidia import build
from hack.nvidia.sandbox import Sandbox, why_not
from hack.nvmlsim.simulator import Simulator
from hack.results import PROPERTY, Asked

MakeSandbox = Callable[..., Sandbox]
Count = Callable[..., None]


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Count:
    """Add to the table at the end of the run, if the test passes: `count("h100-80gb", Asked.LAYOUTS, 54)`."""

    def add(model: str, asked: Asked, number: int = 1) -> None:
        request.node.user_properties.append((PROPERTY, (model, asked, number)))

    return add


@pytest.fixture(scope="session")
def nvidia_programs() -> None:
    """Build the pinned programs once; skip the test where they cannot run, fail it in CI."""
    if why := why_not():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    for release in build.RELEASES:
        build.ensure(release)


@pytest.fixture(scope="session")
def plane(nvidia_programs: None) -> Iterator[ControlPlane]:
    """A real API server, shared by the tests; each has nodes of its own."""
    try:
        toolchain.control_plane_programs()
    except toolchain.ToolchainError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with ControlPlane(options=Options()) as running:
        yield running


@pytest.fixture
def make_sandbox(nvidia_programs: None, tmp_path: Path) -> MakeSandbox:
    """A sandbox around a machine with these GPUs: `make_sandbox("h100-80gb", "h100-80gb")`."""

    def make(*models: str) -> Sandbox:
        simulator = Simulator.create(tmp_path / "nvml.state", models, seed="test")
        return Sandbox(simulator, tmp_path / "sandbox")

    return make
