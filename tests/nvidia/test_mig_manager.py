"""The real mig-manager on a real API server: label protocol, what it retries, its traps, both wedges, reboots."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hack.cluster.controlplane import ControlPlane
from hack.nvidia.migmanager import MigManager
from hack.nvidia.sandbox import Sandbox
from hack.nvmlsim.simulator import Simulator
from hack.results import Asked
from tests.nvidia.conftest import Count
from tests.nvidia.programs import entry_for
from tests.nvidia.undeletable import create_pod, undeletable

from gpusharing.api.names import LABEL_DEPLOY_PREFIX, LABEL_MIG_CONFIG, LABEL_MIG_STATE
from gpusharing.planning import migfile

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

SECONDS = 40.0
NODES = "/api/v1/nodes"
OPERANDS = ("dcgm", "dcgm-exporter", "device-plugin", "gpu-feature-discovery", "nvsm")
ENTRIES = {
    "all-disabled": entry_for(None),
    "seven": entry_for((("1g.10gb", 7),)),
    "halves": entry_for((("3g.40gb", 2),)),
    "does-not-fit": entry_for((("3g.40gb", 2), ("1g.10gb", 1))),
    "another-cards": entry_for((("1g.5gb", 7),)),
    "a100": entry_for((("3g.20gb", 2),)),
}


class Node:
    """A node of the API server with a mig-manager on a simulated machine."""

    def __init__(self, plane: ControlPlane, folder: Path, model: str, count: Count) -> None:
        self.api, self.name = plane.api, folder.name
        self._model, self._count = model, count
        self.simulator = Simulator.create(folder / "nvml.state", [model] * 2, seed=folder.name)
        sandbox = Sandbox(self.simulator, folder / "box")
        config = sandbox.folder / "mig.yaml"
        config.write_text(migfile.render(ENTRIES))
        self.manager = MigManager(sandbox, self.name, plane.kubeconfig, config)
        self.api.create(NODES, {"metadata": {"name": self.name}})

    def label(self, **labels: str | None) -> None:
        names = {"config": LABEL_MIG_CONFIG, "state": LABEL_MIG_STATE}
        patch = {names[name]: value for name, value in labels.items()}
        self.api.merge_patch(f"{NODES}/{self.name}", {"metadata": {"labels": patch}})

    def deploy(self, operand: str, value: str) -> None:
        """Set the label by which an operand is switched."""
        labels = {LABEL_DEPLOY_PREFIX + operand: value}
        self.api.merge_patch(f"{NODES}/{self.name}", {"metadata": {"labels": labels}})

    def labels(self) -> dict[str, str]:
        found: dict[str, str] = self.api.get(f"{NODES}/{self.name}")["metadata"].get("labels", {})
        return found

    def operands(self) -> set[str]:
        """The values of the labels by which mig-manager pauses NVIDIA's operands."""
        return {self.labels().get(LABEL_DEPLOY_PREFIX + operand, "") for operand in OPERANDS}

    def states_until(self, *last: str) -> list[str]:
        """The states that are seen until one of `last` is."""
        seen: list[str] = []
        deadline = time.monotonic() + SECONDS
        while not seen or seen[-1] not in last:
            state = self.labels().get(LABEL_MIG_STATE, "")
            if state and (not seen or seen[-1] != state):
                seen.append(state)
            assert time.monotonic() < deadline, (seen, self.manager.log.read_text()[-3000:])
            time.sleep(0.02)
        self._count(self._model, Asked.MIG_MANAGER)
        return seen

    def wait_for_log(self, *texts: str) -> None:
        """Wait until its log has these texts, in this order."""
        deadline = time.monotonic() + SECONDS
        while not re.search(".*".join(map(re.escape, texts)), self.manager.log.read_text(), re.DOTALL):
            assert time.monotonic() < deadline, self.manager.log.read_text()[-3000:]
            time.sleep(0.02)

    def profiles(self) -> list[list[str]]:
        """The profiles of the instances per GPU."""
        return [[i["profile"] for i in gpu["instances"]] for gpu in self.simulator.show()["gpus"]]


@pytest.fixture
def make_node(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory, count: Count) -> Iterator[Any]:
    nodes: list[Node] = []

    def make(model: str = "h100-80gb", **labels: str) -> Node:
        node = Node(plane, tmp_path_factory.mktemp("n"), model, count)
        nodes.append(node)
        node.label(**labels)
        return node

    yield make
    for node in nodes:
        node.manager.stop()


def test_a_change_goes_from_pending_with_paused_operands_to_success(make_node: Any) -> None:
    node = make_node(config="seven")
    node.manager.start()
    assert node.states_until("pending") == ["pending"]
    assert node.operands() <= {"paused-for-mig-change", ""}
    assert node.states_until("success")[-1] == "success"
    assert node.profiles() == [["1g.10gb"] * 7] * 2
    assert node.operands() == {"true"}
    node.label(config="halves", state=None)
    assert node.states_until("success") == ["pending", "success"]
    assert node.profiles() == [["3g.40gb"] * 2] * 2


def test_the_same_value_is_no_reason_to_run_again_but_a_restart_is(make_node: Any) -> None:
    node = make_node(config="seven")
    node.manager.start()
    node.states_until("success")
    runs = node.manager.log.read_text().count("Updating to MIG config")
    node.label(state=None)
    node.label(config="seven")
    node.manager.restart()
    assert node.states_until("success") == ["success"], "already applied: no pending"
    assert node.manager.log.read_text().count("Updating to MIG config") == runs + 1


def test_a_removed_label_is_no_reason_to_run_and_an_operand_that_is_off_stays_off(make_node: Any) -> None:
    node = make_node(config="halves")
    node.deploy("nvsm", "false")
    node.manager.start()
    node.states_until("success")
    assert node.labels()[LABEL_DEPLOY_PREFIX + "nvsm"] == "false"
    runs = node.manager.log.read_text().count("Updating to MIG config")
    node.label(config=None)
    node.label(config="halves")
    node.wait_for_log("Updating to MIG config", "Updating to MIG config", "already applied")
    assert node.manager.log.read_text().count("Updating to MIG config") == runs + 1, (
        "the label's return alone"
    )
    assert node.profiles() == [["3g.40gb"] * 2] * 2


def test_an_unknown_name_fails_at_once_and_touches_nothing(make_node: Any) -> None:
    node = make_node(config="no-such-entry")
    node.manager.start()
    assert node.states_until("failed") == ["failed"]
    assert node.profiles() == [[], []]
    assert node.simulator.show()["gpus"][0]["mig"]["current"] is False


def test_a_profile_of_another_card_ends_in_success_on_empty_gpus(make_node: Any) -> None:
    node = make_node(config="another-cards")
    node.manager.start()
    assert node.states_until("success", "failed")[-1] == "success", "the trap that we must catch before"
    assert node.profiles() == [[], []]
    assert node.simulator.show()["gpus"][0]["mig"]["current"] is True


def test_a_failure_after_a_success_leaves_the_operands_paused_until_a_restart(make_node: Any) -> None:
    node = make_node(config="seven")
    node.manager.start()
    node.states_until("success")
    node.label(config="does-not-fit", state=None)
    assert node.states_until("failed") == ["pending", "failed"]
    assert node.operands() == {"paused-for-mig-change"}, "wedge 2"
    assert node.profiles() == [[], ["1g.10gb"] * 7], "the first GPU is empty, the second untouched"
    node.manager.kill()
    node.label(config="seven", state=None)
    node.manager.start()
    assert node.states_until("success")[-1] == "success"
    assert node.operands() == {"true"}


def test_a_pod_that_cannot_be_deleted_after_the_change_leaves_it_pending_for_ever(make_node: Any) -> None:
    node = make_node(config="seven")
    with undeletable(node.api, create_pod(node.api, node.name, "nvidia-operator-validator")):
        node.manager.start()
        node.wait_for_log("failed to restart validator pod", "Waiting for change to")
    assert node.states_until("pending") == ["pending"], "wedge 1: it has given up and says nothing"
    assert node.operands() == {"paused-for-mig-change"}
    assert node.profiles() == [["1g.10gb"] * 7] * 2
    node.manager.restart()
    assert node.states_until("success") == ["pending", "success"]
    assert node.operands() == {"true"}


def test_a_pod_that_cannot_be_deleted_before_the_change_leaves_it_pending_for_ever(make_node: Any) -> None:
    node = make_node(config="seven")
    with undeletable(node.api, create_pod(node.api, node.name, "nvidia-cuda-validator")):
        node.manager.start()
        node.wait_for_log("failed to delete cuda-validator pod", "Waiting for change to")
    assert node.states_until("pending") == ["pending"]
    assert node.operands() == {"paused-for-mig-change"}
    assert node.profiles() == [[], []], "nothing was touched yet"
    node.manager.restart()
    assert node.states_until("success") == ["pending", "success"]
    assert node.profiles() == [["1g.10gb"] * 7] * 2
    assert node.operands() == {"true"}


def test_killed_in_the_middle_it_takes_up_again_when_started(make_node: Any) -> None:
    node = make_node(config="halves")
    node.manager.start()
    node.states_until("pending")
    node.manager.kill()
    assert node.labels()[LABEL_MIG_STATE] == "pending"
    node.manager.start()
    assert node.states_until("success")[-1] == "success"
    assert node.profiles() == [["3g.40gb"] * 2] * 2
    assert node.operands() == {"true"}


def test_with_reboot_a_mode_that_needs_one_goes_through_rebooting(make_node: Any) -> None:
    node = make_node("a100-40gb", config="a100")
    node.simulator.set_gpu(None, passthrough=1)
    node.manager.with_reboot = True
    node.manager.start()
    assert node.states_until("rebooting") == ["pending", "rebooting"]
    node.manager.kill()
    node.simulator.reboot()
    node.manager.start()
    assert node.states_until("success") == ["rebooting", "pending", "success"]
    assert node.profiles() == [["3g.20gb"] * 2] * 2


def test_a_reboot_that_did_not_bring_the_mode_ends_in_failed(make_node: Any) -> None:
    node = make_node("a100-40gb", config="a100")
    node.simulator.set_gpu(None, passthrough=1)
    node.manager.with_reboot = True
    node.manager.start()
    node.states_until("rebooting")
    node.manager.restart()  # of the pod alone: the mode is pending as before
    assert node.states_until("failed") == ["rebooting", "failed"]
    node.wait_for_log("MIG mode change did not take effect after rebooting")
    assert node.operands() == {"true"}


def test_a_held_hopper_loses_the_mode_in_the_reboot_and_needs_a_restart_of_mig_manager(
    make_node: Any,
) -> None:
    node = make_node(config="seven")
    node.simulator.set_gpu(None, busy=1)
    node.manager.with_reboot = True
    node.manager.start()
    node.states_until("rebooting")
    node.manager.kill()
    node.simulator.reboot()  # which also ends whoever held the GPU
    node.manager.start()
    assert node.states_until("failed") == ["rebooting", "failed"]
    node.manager.restart()
    assert node.states_until("success")[-2:] == ["pending", "success"]
    assert node.profiles() == [["1g.10gb"] * 7] * 2


def test_without_reboot_the_same_ends_in_failed(make_node: Any) -> None:
    node = make_node("a100-40gb", config="a100")
    node.simulator.set_gpu(None, passthrough=1)
    node.manager.start()
    assert node.states_until("failed") == ["pending", "failed"]
    assert [gpu["mig"] for gpu in node.simulator.show()["gpus"]] == [{"current": False, "pending": True}] * 2
