"""Rung 3: NVIDIA's unmodified programs on the simulated library."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hack.cluster import toolchain
from hack.cluster.controlplane import ControlPlane, Options
from hack.demo.stage import ROOT
from hack.nvidia import build
from hack.nvidia.sandbox import Sandbox, why_not
from hack.nvmlsim.simulator import Simulator
from hack.required import require
from hack.results import PROPERTY, Asked
from tests.nvidia.mignode import MigNode
from tests.nvidia.undeletable import create_pod

MakeSandbox = Callable[..., Sandbox]
Count = Callable[..., None]
STOP_SECONDS = 60.0
Demo = tuple[subprocess.Popen[str], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that builds NVIDIA's programs belongs to rung 3: without the mark, `make test` would build them."""
    builds = [item for item in items if "nvidia_programs" in getattr(item, "fixturenames", ())]
    if unmarked := [item.nodeid for item in builds if item.get_closest_marker("nvidia") is None]:
        raise pytest.UsageError(f"these tests build NVIDIA's programs: mark them `nvidia`: {', '.join(unmarked)}")


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Count:
    """Add to the table at the end of the run, if the test passes: `count("h100-80gb", Asked.LAYOUTS, 54)`."""

    def add(model: str, asked: Asked, number: int = 1) -> None:
        request.node.user_properties.append((PROPERTY, (model, asked, number)))

    return add


@pytest.fixture(scope="session")
def nvidia_programs() -> None:
    """Build the pinned programs once."""
    require("rung3", why_not())
    for release in build.RELEASES:
        build.ensure(release)


def build_control_plane() -> None:
    """Build it once."""
    toolchain.control_plane_programs()
    for name in ("kwok", "helm"):
        toolchain.program(name)


@pytest.fixture(scope="session")
def plane(nvidia_programs: None) -> Iterator[ControlPlane]:
    """A real API server, shared by the tests; each has nodes of its own."""
    build_control_plane()
    with ControlPlane(options=Options(audit=True)) as running:
        yield running


@pytest.fixture(scope="session")
def demo(nvidia_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """`make demo DRIVER=nvidia` as a process that is under way, and what it says."""
    build_control_plane()
    said = tmp_path_factory.mktemp("demo") / "output"
    environ = {key: value for key, value in os.environ.items() if key not in ("DRIVER", "KUBECONFIG")}
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hack.demo", "--driver", "nvidia"],
            cwd=ROOT,
            env=environ | {"PYTHONIOENCODING": "utf-8"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    yield process, said
    if process.poll() is None:  # the run ends early: it ends what it has started, as with Ctrl-C
        process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)


@pytest.fixture(scope="session")
def stuck(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MigNode, str]]:
    """A node whose mig-manager waits for a device plugin that does not go, and the name of that pod."""
    node = MigNode(plane, tmp_path_factory.mktemp("n"), "h100-80gb")
    pod = create_pod(plane.api, node.name, "nvidia-device-plugin-daemonset")
    node.label(config="seven")
    node.manager.start()
    yield node, pod
    node.manager.stop()


@pytest.fixture(scope="session", autouse=True)
def beside(request: pytest.FixtureRequest) -> None:
    """Start before the first test what waits for most of its time, where its test is asked for too."""
    asked = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    for name in ("demo", "stuck"):
        if name in asked:
            request.getfixturevalue(name)


@pytest.fixture
def make_sandbox(nvidia_programs: None, tmp_path: Path) -> MakeSandbox:
    """A sandbox around a machine with these GPUs: `make_sandbox("h100-80gb", "h100-80gb")`."""

    def make(*models: str) -> Sandbox:
        simulator = Simulator.create(tmp_path / "nvml.state", models, seed="test")
        return Sandbox(simulator, tmp_path / "sandbox")

    return make
