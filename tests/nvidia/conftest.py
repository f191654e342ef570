"""Rung 3: NVIDIA's unmodified programs on the simulated library."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hack.cluster import toolchain
from hack.cluster.controlplane import ControlPlane, Options
from hack.nvidia import build
from hack.nvidia.loop import NvidiaLoop, running_loop
from hack.nvidia.sandbox import Sandbox, why_not
from hack.nvmlsim.simulator import Simulator
from hack.required import require
from tests.nvidia.mignode import MigNode, create_pod

MakeSandbox = Callable[..., Sandbox]


@contextmanager
def short_loop(*nodes: str, **more: Any) -> Iterator[NvidiaLoop]:
    """`running_loop` in a folder with a short name, because the path of a Unix socket has at most 107 bytes."""
    with (
        tempfile.TemporaryDirectory(prefix="gpusharing-") as folder,
        running_loop(Path(folder), *nodes, **more) as loop,
    ):
        yield loop


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that builds NVIDIA's programs belongs to rung 3: without the mark, `make test` would build them."""
    builds = [item for item in items if "nvidia_programs" in getattr(item, "fixturenames", ())]
    if unmarked := [item.nodeid for item in builds if item.get_closest_marker("nvidia") is None]:
        raise pytest.UsageError(f"these tests build NVIDIA's programs: mark them `nvidia`: {', '.join(unmarked)}")


@pytest.fixture(scope="session")
def nvidia_programs() -> None:
    require("rung3", why_not())
    for release in build.RELEASES:
        build.ensure(release)


def build_control_plane() -> None:
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
    if "stuck" in asked:
        request.getfixturevalue("stuck")


@pytest.fixture
def make_sandbox(nvidia_programs: None, tmp_path: Path) -> MakeSandbox:
    """A sandbox around a machine with these GPUs: `make_sandbox("h100-80gb", "h100-80gb")`."""

    def make(*models: str) -> Sandbox:
        simulator = Simulator.create(tmp_path / "nvml.state", models, seed="test")
        return Sandbox(simulator, tmp_path / "sandbox")

    return make
