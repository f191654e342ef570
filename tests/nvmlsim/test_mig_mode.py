"""MIG mode: Hopper changes it at once, Ampere after a reset; a held GPU refuses; what a reset and a reboot keep."""

from typing import Any

import pytest
from hack.nvmlsim.simulator import SimulatorError
from tests.nvmlsim.conftest import MakeMachine
from tests.nvmlsim.machine import SimMachine

pytestmark = pytest.mark.tools

SUCCESS, NOT_SUPPORTED, RESET_REQUIRED, IN_USE = 0, 3, 16, 19


def modes(machine: SimMachine) -> list[dict[str, Any]]:
    return [gpu["mig"] for gpu in machine.simulator.show()["gpus"]]


@pytest.mark.parametrize("model", ["a100-40gb", "h100-80gb"])
def test_an_idle_gpu_changes_its_mode_at_once_and_back(model: str, make_machine: MakeMachine) -> None:
    machine = make_machine(model)
    assert machine.ask("set_mode", gpu=0, mode=1) == {"activation": SUCCESS, "current": 1, "pending": 1}
    assert machine.ask("set_mode", gpu=0, mode=0) == {"activation": SUCCESS, "current": 0, "pending": 0}


def test_a_held_ampere_keeps_the_mode_pending_until_a_reset(make_machine: MakeMachine) -> None:
    machine = make_machine("a100-40gb")
    machine.simulator.set_gpu(0, busy=1)
    assert machine.ask("set_mode", gpu=0, mode=1) == {"activation": IN_USE, "current": 0, "pending": 1}
    assert machine.ask("create", gpu=0, profile_ids=[19]) == {"error": NOT_SUPPORTED}
    with pytest.raises(SimulatorError, match="in use"):
        machine.simulator.reset()
    machine.simulator.set_gpu(0, busy=0)
    machine.simulator.reset([0])
    assert modes(machine) == [{"current": True, "pending": True}]


def test_an_ampere_that_waits_for_its_reset_gets_it_from_nvidia_smi(make_machine: MakeMachine) -> None:
    machine = make_machine("a100-40gb", "a100-40gb")
    machine.simulator.set_gpu(None, explicit_reset=1)
    assert machine.ask("set_mode", gpu=1, mode=1) == {"activation": RESET_REQUIRED, "current": 0, "pending": 1}
    machine.simulator.reset(machine.simulator.find_gpus(["0000:17:00.0"]))
    assert modes(machine)[1] == {"current": False, "pending": True}
    machine.simulator.reset(machine.simulator.find_gpus(["0000:1B:00.0"]))
    assert modes(machine)[1] == {"current": True, "pending": True}


def test_an_ampere_in_a_vm_needs_a_reset_that_the_vm_cannot_do_but_a_reboot_can(make_machine: MakeMachine) -> None:
    machine = make_machine("a100-80gb")
    machine.simulator.set_gpu(0, passthrough=1)
    assert machine.ask("set_mode", gpu=0, mode=1) == {"activation": RESET_REQUIRED, "current": 0, "pending": 1}
    with pytest.raises(SimulatorError, match="VM"):
        machine.simulator.reset()
    machine.simulator.reboot()
    assert modes(machine) == [{"current": True, "pending": True}]


def test_a_held_hopper_refuses_and_keeps_nothing_pending(make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb")
    machine.simulator.add_process(0, 4711, "python")
    assert machine.ask("set_mode", gpu=0, mode=1) == {"activation": IN_USE, "current": 0, "pending": 0}
    machine.simulator.remove_process(4711)
    assert machine.ask("set_mode", gpu=0, mode=1)["current"] == 1


def test_another_nvml_client_holds_the_gpu_until_it_has_closed_nvml(make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb")
    holder = machine.start("hold", gpu=0)
    holder.wait_ready()
    assert machine.simulator.show()["clients"] == [holder.process.pid]
    assert machine.ask("set_mode", gpu=0, mode=1)["activation"] == IN_USE
    assert holder.result() is None
    assert machine.simulator.show()["clients"] == []
    assert machine.ask("set_mode", gpu=0, mode=1)["activation"] == SUCCESS


def test_a_killed_client_holds_nothing(make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb")
    holder = machine.start("hold", gpu=0)
    holder.wait_ready()
    holder.process.kill()
    holder.process.communicate()
    assert machine.ask("set_mode", gpu=0, mode=1)["activation"] == SUCCESS


def test_a_client_of_another_pid_namespace_holds_the_gpu_and_when_killed_no_more(make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb")
    inside = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    holder = machine.start("hold", gpu=0, inside=inside)
    holder.wait_ready()
    assert machine.simulator.show()["clients"] == [1]
    assert machine.ask("set_mode", gpu=0, mode=1)["activation"] == IN_USE
    with pytest.raises(SimulatorError, match="held by NVML clients: 1"):
        machine.simulator.reset()
    holder.process.kill()
    holder.process.communicate()
    assert machine.ask("set_mode", gpu=0, mode=1)["activation"] == SUCCESS


def test_the_mode_cannot_be_switched_off_over_instances(h100: SimMachine) -> None:
    h100.ask("create", gpu=0, profile_ids=[19])
    assert h100.ask("set_mode", gpu=0, mode=0) == {"activation": IN_USE, "current": 1, "pending": 1}
    h100.ask("destroy_all", gpu=0)
    assert h100.ask("set_mode", gpu=0, mode=0)["current"] == 0


@pytest.mark.parametrize(("model", "kept"), [("a100-80gb", True), ("h100-80gb", False)])
def test_a_reboot_takes_all_instances_and_on_hopper_the_mode(model: str, kept: bool, make_machine: MakeMachine) -> None:
    machine = make_machine(model)
    machine.ask("set_mode", gpu=0, mode=1)
    machine.ask("create", gpu=0, profile_ids=[19, 19])
    machine.simulator.reboot()
    assert modes(machine) == [{"current": kept, "pending": kept}]
    assert machine.simulator.show()["gpus"][0]["instances"] == []


def test_profiles_are_told_with_mig_off_unless_the_driver_is_old(make_machine: MakeMachine) -> None:
    assert len(make_machine("h100-80gb").ask("profiles", gpu=0)) == 7
    old = make_machine("h100-80gb", driver="535.183.01")
    assert old.ask("profiles", gpu=0) == []
    old.ask("set_mode", gpu=0, mode=1)
    assert len(old.ask("profiles", gpu=0)) == 7


def test_two_models_in_one_machine_keep_to_themselves(make_machine: MakeMachine) -> None:
    machine = make_machine("a100-40gb", "t4", "h100-80gb")
    machine.simulator.set_gpu(0, busy=1)
    machine.ask("set_mode", gpu=0, mode=1)
    machine.ask("set_mode", gpu=2, mode=1)
    assert modes(machine) == [{"current": False, "pending": True}, None, {"current": True, "pending": True}]
    names = [machine.ask("gpu_report", gpu=gpu)["name"] for gpu in range(3)]
    assert names == ["NVIDIA A100-SXM4-40GB", "Tesla T4", "NVIDIA H100 80GB HBM3"]
