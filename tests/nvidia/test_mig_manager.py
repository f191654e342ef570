"""The real mig-manager on a real API server: label protocol, what it retries, its traps, both wedges, reboots."""

from collections.abc import Iterator
from typing import Any

import pytest
from hack.cluster.controlplane import ControlPlane
from tests.nvidia.mignode import GIVEN_UP, OPERANDS_WHEN_GIVEN_UP, SAYS_FAILED, MigNode, create_pod, undeletable

from gpusharing.api.names import LABEL_DEPLOY_PREFIX
from gpusharing.kube.actuatorlogs import failure_in
from gpusharing.planning.wanted.actuators import GAVE_UP

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]


@pytest.fixture
def make_node(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    nodes: list[MigNode] = []

    def make(model: str = "h100-80gb", **labels: str) -> MigNode:
        node = MigNode(plane, tmp_path_factory.mktemp("n"), model)
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
    assert node.operands_then() <= {"paused-for-mig-change", ""}
    assert node.states_until("success")[-1] == "success"
    assert node.profiles() == [["1g.10gb"] * 7] * 2
    assert node.operands() == {"true"}
    node.label(config="halves", state=None)
    assert node.states_until("success") == ["pending", "success"]
    assert node.profiles() == [["3g.40gb"] * 2] * 2


def test_nvidias_mig_manager_runs_again_after_a_restart_and_not_for_the_same_value(make_node: Any) -> None:
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
    # It writes the state before it waits for the label: what is gone and back by then is no change to it.
    node.wait_for_log("Updating to MIG config", "Waiting for change to")
    node.label(config=None)
    node.label(config="halves")
    node.wait_for_log("Updating to MIG config", "Updating to MIG config", "already applied")
    assert node.manager.log.read_text().count("Updating to MIG config") == runs + 1, "the label's return alone"
    assert node.profiles() == [["3g.40gb"] * 2] * 2


def test_nvidias_mig_manager_fails_at_once_on_an_unknown_name_and_touches_nothing(make_node: Any) -> None:
    node = make_node(config="no-such-entry")
    node.manager.start()
    assert node.states_until("failed") == ["failed"]
    assert node.profiles() == [[], []]
    assert node.simulator.show()["gpus"][0]["mig"]["current"] is False


def test_nvidias_mig_manager_reports_success_on_empty_gpus_for_a_profile_of_another_card(make_node: Any) -> None:
    node = make_node(config="another-cards")
    node.manager.start()
    assert node.states_until("success", "failed")[-1] == "success", "the trap that we must catch before"
    assert node.profiles() == [[], []]
    assert node.simulator.show()["gpus"][0]["mig"]["current"] is True


def test_nvidias_mig_manager_leaves_the_operands_paused_when_it_fails_after_a_success_until_a_restart(
    make_node: Any,
) -> None:
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


WHOLE: list[list[str]] = [[], []]
DIVIDED = [["1g.10gb"] * 7] * 2


@pytest.mark.parametrize(
    ("app", "said", "profiles"),
    [
        ("nvidia-operator-validator", "failed to restart validator pod", DIVIDED),
        ("nvidia-cuda-validator", "failed to delete cuda-validator pod", WHOLE),
    ],
    ids=["after the change", "before it, so that nothing was touched yet"],
)
def test_a_pod_that_cannot_be_deleted_is_given_up_as_this_version_does(
    make_node: Any, app: str, said: str, profiles: list[list[str]]
) -> None:
    node = make_node(config="seven")
    with undeletable(node.api, create_pod(node.api, node.name, app)):
        node.manager.start()
        node.wait_for_log(said, "Waiting for change to")
    given_up = node.states_until(GIVEN_UP[-1])
    assert (given_up, node.state()) == (GIVEN_UP, GIVEN_UP[-1])
    assert node.operands() == OPERANDS_WHEN_GIVEN_UP
    assert node.profiles() == profiles
    if profiles == WHOLE:
        assert (GAVE_UP in failure_in(node.manager.log.read_text())) == SAYS_FAILED
    node.manager.restart()
    again = [] if SAYS_FAILED and profiles == DIVIDED else ["pending"]
    assert node.states_until("success") == [*given_up[1:], *again, "success"]
    assert node.profiles() == DIVIDED
    assert node.operands() == {"true"}


def test_nvidias_mig_manager_takes_up_again_when_it_is_started_after_a_kill(make_node: Any) -> None:
    node = make_node(config="halves")
    node.simulator.inject("nvmlDeviceCreateGpuInstance", "hang")  # so that it is in the middle
    node.manager.start()
    node.states_until("pending")
    node.manager.kill()
    assert node.state() == "pending"
    node.simulator.clear_faults()
    node.manager.start()
    assert node.states_until("success")[-1] == "success"
    assert node.profiles() == [["3g.40gb"] * 2] * 2
    assert node.operands() == {"true"}


def start_pending(make_node: Any, *, with_reboot: bool) -> MigNode:
    """A mig-manager on Ampere cards whose MIG mode stays pending until a reboot."""
    node: MigNode = make_node("a100-40gb", config="a100")
    node.simulator.set_gpu(None, passthrough=1)
    node.manager.with_reboot = with_reboot
    node.manager.start()
    return node


def test_with_reboot_a_mode_that_needs_one_goes_through_rebooting(make_node: Any) -> None:
    node = start_pending(make_node, with_reboot=True)
    assert node.states_until("rebooting") == ["pending", "rebooting"]
    node.manager.kill()
    node.simulator.reboot()
    node.manager.start()
    assert node.states_until("success") == ["rebooting", "pending", "success"]
    assert node.profiles() == [["3g.20gb"] * 2] * 2


def test_a_reboot_that_did_not_bring_the_mode_ends_in_failed(make_node: Any) -> None:
    node = start_pending(make_node, with_reboot=True)
    node.states_until("rebooting")
    node.manager.restart()  # of the pod alone: the mode is pending as before
    assert node.states_until("failed") == ["rebooting", "failed"]
    node.wait_for_log("MIG mode change did not take effect after rebooting")
    assert node.operands() == {"true"}


def test_a_held_hopper_loses_the_mode_in_the_reboot_and_needs_a_restart_of_mig_manager(make_node: Any) -> None:
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
    node = start_pending(make_node, with_reboot=False)
    assert node.states_until("failed") == ["pending", "failed"]
    assert [gpu["mig"] for gpu in node.simulator.show()["gpus"]] == [{"current": False, "pending": True}] * 2
