"""The commands of the pages, as they stand there, on a real API server with kubectl and helm; nodes are SIMULATED."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster import install, nodes, toolchain
from hack.cluster.controlplane import ControlPlane
from tests.conftest import build_or_skip
from tests.docs.commands import Block, Shell, page
from tests.docs.pages import ON_CLUSTER, TUTORIAL

from hack import launch

pytestmark = pytest.mark.cluster


def own_path() -> str:
    """A PATH with our kubectl and helm in front."""
    build_or_skip(toolchain.control_plane_programs)
    build_or_skip(lambda: toolchain.program("kwok"))
    build_or_skip(lambda: toolchain.program("helm"))
    ours = (toolchain.control_plane_programs().kubectl.parent, toolchain.program("helm").parent)
    return ":".join([*map(str, ours), os.environ["PATH"]])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster as before the installation: GPU nodes, NVIDIA's GPU Operator (its stand-ins), nothing of ours."""
    path = own_path()
    home = tmp_path_factory.mktemp("home")
    with ControlPlane() as plane:
        install.install_gpu_operator(plane.api)
        launch.runtime_class(plane.api)
        created = nodes.create_nodes(plane.api, nodes.fleet(12))
        nodes.wait_nodes_ready(plane.api, created)
        yield {**os.environ, "PATH": path, "HOME": str(home), "KUBECONFIG": str(plane.kubeconfig)}


@pytest.mark.parametrize("name", ON_CLUSTER)
def test_the_commands_of_the_page_work(environment: dict[str, str], name: str, tmp_path: Path) -> None:
    """In this order: the last page uninstalls what the first installed."""
    shell = Shell(environment, tmp_path)
    for block in page(name):
        if block.where == "cluster":
            shell.run(block, 180)


PLAYED = [block for block in page(TUTORIAL) if block.where == "tutorial"]
END = PLAYED[-1]
assert "cluster-down" in END.text


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """On a cluster that it makes itself, apart from one that you may have; faster, which changes no command."""
    folder = tmp_path_factory.mktemp("tutorial")
    state = {"GPUSHARING_STATE": str(folder / "state"), "FACTOR": "60"}
    shell = Shell({**os.environ, "PATH": own_path(), **state}, folder)
    try:
        yield shell
    finally:
        shell.end()
        shell.run(END, 180)


@pytest.mark.parametrize("block", PLAYED, ids=lambda block: f"line {block.line}")
def test_the_tutorial_can_be_played_to_its_end(tutorial: Shell, block: Block) -> None:
    """One block after the other: those before it were played."""
    if block is END:
        tutorial.end()
    tutorial.run(block, 240)
