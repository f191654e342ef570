"""The tutorial, command by command, on the cluster that its first command makes; nodes are SIMULATED."""

import os
from collections.abc import Iterator

import pytest
from tests.docs.commands import Block, Shell, page
from tests.docs.pages import TUTORIAL, own_path

pytestmark = pytest.mark.cluster

*PLAYED, END = [block for block in page(TUTORIAL) if block.where == "tutorial"]
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
    tutorial.run(block, 240)
