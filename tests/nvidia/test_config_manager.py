"""The real config-manager on a real API server: a known key, an unknown one, and an edit under the same key."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster.controlplane import ControlPlane
from tests.configs import make_shared
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import Program, ProgramEnded, served

from gpusharing.api.names import LABEL_PLUGIN_CONFIG
from gpusharing.planning import pluginconfig
from gpusharing.planning.pluginconfig import PluginConfig, key_for

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

NODES = "/api/v1/nodes"
FULL = pluginconfig.render(PluginConfig())
SHARED = pluginconfig.render(make_shared(4))
KEY_FULL, KEY_SHARED = key_for("pool-a", FULL), key_for("pool-d", SHARED)


class Node:
    """A node with config-manager, which links the chosen configuration to where the device plugin reads it."""

    def __init__(self, plane: ControlPlane, make_sandbox: MakeSandbox, name: str) -> None:
        self.api, self.name = plane.api, name
        self.sandbox = make_sandbox("h100-80gb", "h100-80gb")
        self.source, self.link = self.sandbox.folder / "available", self.sandbox.folder / "config"
        self.source.mkdir()
        (self.source / KEY_FULL).write_text(FULL)
        (self.source / KEY_SHARED).write_text(SHARED)
        self.api.create(NODES, {"metadata": {"name": name, "labels": {LABEL_PLUGIN_CONFIG: KEY_FULL}}})
        self.kubeconfig = str(plane.kubeconfig)
        self.program = self.start()

    def start(self, *flags: str) -> Program:
        return Program(
            self.sandbox, "config-manager", "--node-name", self.name, "--kubeconfig", self.kubeconfig,
            "--config-file-srcdir", str(self.source), "--config-file-dst", str(self.link), "--send-signal=false",
            "--fallback-strategies", "empty", *flags,
        )  # fmt: skip

    def label(self, value: str) -> None:
        self.api.merge_patch(f"{NODES}/{self.name}", {"metadata": {"labels": {LABEL_PLUGIN_CONFIG: value}}})

    def wait_for(self, key: str) -> None:
        self.program.wait(lambda: self.link.is_symlink() and Path(self.link.readlink()).name == key)

    def changes(self) -> int:
        return self.program.log.read_text().count("Label change detected")


@pytest.fixture
def node(plane: ControlPlane, make_sandbox: MakeSandbox, request: pytest.FixtureRequest) -> Iterator[Node]:
    made = Node(plane, make_sandbox, request.node.name.replace("_", "-")[:50].rstrip("-"))
    yield made
    made.program.stop()


def test_a_key_of_ours_reaches_the_plugin(node: Node) -> None:
    node.wait_for(KEY_FULL)
    assert served(node.sandbox, node.link.read_text(), 1) == {"nvidia.com/gpu": 2}
    node.label(KEY_SHARED)
    node.wait_for(KEY_SHARED)
    assert served(node.sandbox, node.link.read_text(), 1) == {"nvidia.com/gpu": 8}


def test_an_unknown_key_ends_config_manager(node: Node) -> None:
    node.wait_for(KEY_FULL)
    node.label("pool-x-0000000")
    with pytest.raises(ProgramEnded, match="specified config pool-x-0000000 does not exist"):
        node.program.wait(lambda: False)


def test_an_edit_under_the_same_key_is_not_noticed(node: Node) -> None:
    node.wait_for(KEY_FULL)
    (node.source / KEY_FULL).write_text(SHARED)
    node.label(KEY_SHARED)
    node.wait_for(KEY_SHARED)
    assert node.changes() == 3, "the empty one at its start, the first label, this one; nothing for the edit"


def test_at_its_start_it_takes_the_fallback_before_it_has_read_the_label(node: Node) -> None:
    node.wait_for(KEY_FULL)
    first, second = node.program.log.read_text().split("Label change detected: ")[1:3]
    assert first.startswith(f"{LABEL_PLUGIN_CONFIG}=\n")
    assert "Updating to empty config" in first
    assert second.startswith(f"{LABEL_PLUGIN_CONFIG}={KEY_FULL}\n")


def test_the_init_container_ends_with_the_fallback_whatever_the_label_says(node: Node) -> None:
    node.wait_for(KEY_FULL)
    node.program.stop()
    node.link.unlink()
    once = node.start("--oneshot")
    with pytest.raises(ProgramEnded):
        once.wait(lambda: False)
    assert once.process.returncode == 0
    assert node.link.readlink() == Path("/dev/null")
