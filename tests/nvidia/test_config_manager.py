"""The real config-manager on a real API server: a known key, an unknown one, and an edit under the same key."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster.controlplane import ControlPlane
from hack.cluster.process import wait_until
from hack.nvidia import build
from hack.nvidia.kubelet import Mount, gfd_labels_in
from hack.nvidia.operands import GFD, PodPrograms
from hack.nvidia.tasks import SandboxTask
from tests.configs import make_shared
from tests.nvidia.configured import NODES, ConfiguredNode, HeldServer, held_server
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import SECONDS, ProgramEnded, served

from gpusharing.api.names import LABEL_GPU_REPLICAS, LABEL_PLUGIN_CONFIG
from gpusharing.planning.snapshot.nvidia import MpsDaemonView
from gpusharing.planning.wanted import pluginconfig
from gpusharing.planning.wanted.pluginconfig import NEUTRAL, NEUTRAL_KEY, PluginConfig, key_for
from gpusharing.planning.wanted.target import find_deafness

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

MODEL = "h100-80gb"
FULL = pluginconfig.render(PluginConfig())
SHARED = pluginconfig.render(make_shared(4))
KEY_FULL, KEY_SHARED = key_for("pool-a", FULL), key_for("pool-d", SHARED)


@pytest.fixture
def node(plane: ControlPlane, make_sandbox: MakeSandbox, request: pytest.FixtureRequest) -> Iterator[ConfiguredNode]:
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name)[-60:].strip("-")
    keys = {KEY_FULL: FULL, KEY_SHARED: SHARED}
    made = ConfiguredNode(plane, make_sandbox(MODEL, MODEL), name, keys, KEY_FULL)
    yield made
    made.program.stop()


@pytest.fixture
def held(plane: ControlPlane, tmp_path: Path) -> Iterator[HeldServer]:
    with held_server(plane, tmp_path) as made:
        yield made


def test_an_unknown_key_ends_config_manager_and_leaves_the_plugin_with_the_old_one(node: ConfiguredNode) -> None:
    node.label(KEY_SHARED)
    node.wait_for(KEY_SHARED)
    node.label("pool-x-0000000")
    with pytest.raises(ProgramEnded, match="specified config pool-x-0000000 does not exist"):
        node.program.wait(lambda: False)
    assert node.program.process.returncode == 1
    assert node.link.read_text() == SHARED


def test_nvidias_config_manager_does_not_notice_an_edit_under_the_same_key(node: ConfiguredNode) -> None:
    node.wait_for(KEY_FULL)
    before = node.changes()
    (node.source / KEY_FULL).write_text(SHARED)
    node.label(KEY_SHARED)
    node.wait_for(KEY_SHARED)
    assert node.changes() == before + 1, "the label; nothing for the edit"


def test_at_its_start_it_takes_the_fallback_before_it_has_read_the_label(
    node: ConfiguredNode, held: HeldServer
) -> None:
    node.wait_for(KEY_FULL)
    node.program.stop()
    node.program = node.start(kubeconfig=held.kubeconfig)
    node.wait_for("null")
    held.released.set()
    node.wait_for(KEY_FULL)
    first, second = node.program.log.read_text().split("Label change detected: ")[1:3]
    assert first.startswith(f"{LABEL_PLUGIN_CONFIG}=\n")
    assert "Updating to empty config" in first
    assert second.startswith(f"{LABEL_PLUGIN_CONFIG}={KEY_FULL}\n")


@pytest.mark.parametrize("label", [KEY_FULL, "pool-x-0000000"], ids=["a known key", "an unknown key"])
def test_the_init_container_ends_with_the_fallback_whatever_the_label_says(
    label: str, node: ConfiguredNode, held: HeldServer
) -> None:
    node.wait_for(KEY_FULL)
    node.program.stop()
    node.link.unlink()
    node.label(label)
    once = node.start("--oneshot", kubeconfig=held.kubeconfig)
    with pytest.raises(ProgramEnded):
        once.wait(lambda: False)
    assert once.process.returncode == 0
    assert node.link.readlink() == Path("/dev/null")
    assert served(node.sandbox, node.link.read_text(), 1) == {"nvidia.com/gpu": 2}, "whole GPUs, unshared"


def test_it_changes_the_configuration_before_it_finds_that_there_is_no_program_to_signal(
    node: ConfiguredNode, held: HeldServer
) -> None:
    node.wait_for(KEY_FULL)
    node.program.stop()
    node.program = node.start("--send-signal=true", "--process-to-signal", "/nowhere", kubeconfig=held.kubeconfig)
    with pytest.raises(ProgramEnded, match="no process found"):
        node.program.wait(lambda: False)
    assert node.program.process.returncode == 1
    assert node.link.readlink() == Path("/dev/null"), "the fallback, of which nobody was told"


def test_what_ends_in_another_pod_of_the_node_keeps_no_program_from_its_signal(
    plane: ControlPlane, make_sandbox: MakeSandbox, tmp_path: Path
) -> None:
    node, key = f"{NODES}/two-pods", LABEL_PLUGIN_CONFIG
    plane.api.create(NODES, {"metadata": {"name": "two-pods", "labels": {key: KEY_FULL}}})
    programs = PodPrograms(
        plane.api, "two-pods", plane.kubeconfig, make_sandbox(MODEL), Mount(tmp_path / "plugin"),
        Mount(tmp_path / "mig"), tmp_path / "podresources.sock", tmp_path / "pod-logs",
    )  # fmt: skip
    programs.plugin_configs.take({KEY_FULL: FULL, KEY_SHARED: SHARED})
    pod = programs.of({"metadata": {"name": GFD, "uid": "0123456789", "labels": {"app": GFD}}})
    assert pod is not None
    # Without arguments it ends at once. Many: in which order they are gone through is the file system's affair.
    others = [SandboxTask(programs.sandbox, "config-manager", log=tmp_path / "others.log") for _ in range(16)]

    def replicas(count: int) -> bool:
        pod.look()
        return gfd_labels_in(programs.labels).get(LABEL_GPU_REPLICAS) == str(count)

    try:
        wait_until(lambda: replicas(1), SECONDS, "the labels of whole GPUs")
        for other in others:
            other.start()
        plane.api.merge_patch(node, {"metadata": {"labels": {key: KEY_SHARED}}})
        wait_until(lambda: replicas(4), SECONDS, "the labels of shared GPUs")
    finally:
        pod.stop()
        for other in others:
            other.stop()


def test_beside_a_process_without_a_command_line_it_panics_as_the_mps_daemons_does_on_every_host(
    node: ConfiguredNode,
) -> None:
    """NVIDIA/k8s-device-plugin#1726: of a host it sees the kernel's threads, too; here a process that nobody has waited for stands for them."""
    node.wait_for(KEY_FULL)
    node.program.stop()
    with subprocess.Popen(["true"]) as over:
        os.waitid(os.P_PID, over.pid, os.WEXITED | os.WNOWAIT)
        node.sandbox.proc.show(over.pid)
        node.label(KEY_SHARED)
        node.program = node.start("--send-signal=true", "--process-to-signal", "/nowhere")
        with pytest.raises(ProgramEnded, match="index out of range"):
            node.program.wait(lambda: False)
        node.sandbox.proc.hide(over.pid)
    daemon = MpsDaemonView(build.DEVICE_PLUGIN.version, "/nowhere", "/nowhere", sees_host=True)
    assert "crashes" in find_deafness(daemon)


@pytest.mark.parametrize(("fallback", "linked"), [("empty", "null"), ("named,single", NEUTRAL_KEY)])
def test_without_any_entry_it_ends_and_with_our_neutral_one_it_starts(
    fallback: str, linked: str, plane: ControlPlane, make_sandbox: MakeSandbox
) -> None:
    """As a node without a label meets our ConfigMap before the first policy, in both of NVIDIA's installations."""
    name = f"neutral-{linked}"
    node = ConfiguredNode(plane, make_sandbox(MODEL, MODEL), name, {}, "")
    try:
        with pytest.raises(ProgramEnded, match="no configuration files available"):
            node.program.wait(lambda: False)
        (node.source / NEUTRAL_KEY).write_text(NEUTRAL)
        node.program = node.start(fallback=fallback)
        node.wait_for(linked)
        assert served(node.sandbox, node.link.read_text(), 1) == {"nvidia.com/gpu": 2}, "whole GPUs, unshared"
    finally:
        node.program.stop()
