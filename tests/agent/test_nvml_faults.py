"""What goes wrong in NVML, through nvidia-ml-py on the SIMULATED library: faults, and agent/nvml_health.py."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from hack.nvmlsim.simulator import EVENT_XID, Simulator
from tests.agent.nvml_machine import Agent, in_process, needs_compiler, read

from gpusharing.agent.library import RecoveryAction

pytestmark = needs_compiler

OPTIONAL: dict[str, tuple[str, object]] = {
    "nvmlDeviceGetMigMode": ("mig_mode", "NotSupported"),
    "nvmlDeviceGetComputeMode": ("compute_mode", "NotSupported"),
    "nvmlDeviceGetTotalEccErrors": ("ecc_uncorrected", None),
    "nvmlDeviceGetFieldValues": ("recovery_action", None),
    "nvmlDeviceGetComputeRunningProcesses": ("processes", []),
    "nvmlDeviceGetMPSComputeRunningProcesses": ("processes", []),
    "nvmlEventSetCreate": ("xid", None),
    "nvmlDeviceRegisterEvents": ("xid", None),
    "nvmlEventSetWait": ("xid", None),
}


def test_what_is_not_supported_costs_its_own_value_only(machine: Simulator) -> None:
    with Agent(machine) as agent:
        for function, (field, value) in OPTIONAL.items():
            machine.inject(function, "NOT_SUPPORTED")
            gpus = agent.gpus()
            machine.clear_faults()
            assert [gpu[field] for gpu in gpus] == [value, value], function
            assert all(gpu["uuid"].startswith("GPU-") and gpu["access"] == "Ok" for gpu in gpus), function


def test_rows_come_from_the_fields_where_the_call_is_not_supported(machine: Simulator) -> None:
    machine.set_gpu(0, remap_pending=1, remapped_uncorrected=2)
    machine.inject("nvmlDeviceGetRemappedRows", "NOT_SUPPORTED")
    rows = read(machine)["gpus"][0]["remapped_rows"]
    assert rows == {"correctable": 0, "uncorrectable": 2, "pending": True, "failed": False}


LOSE: dict[str, tuple[Callable[[Simulator], None], str]] = {
    "it fell off the bus": (lambda machine: machine.set_gpu(0, lost=1), "Lost"),
    "it is lost in the middle of the reading": (
        lambda machine: machine.inject("nvmlDeviceGetComputeMode", "GPU_IS_LOST", gpu=0),
        "Lost",
    ),
    "it needs a reset first": (
        lambda machine: machine.inject("nvmlDeviceGetUUID", "RESET_REQUIRED", gpu=0),
        "ResetRequired",
    ),
}


@pytest.mark.parametrize(("lose", "access"), LOSE.values(), ids=LOSE.keys())
def test_a_gpu_that_does_not_answer_is_told_and_the_other_is_read(
    machine: Simulator, lose: Callable[[Simulator], None], access: str
) -> None:
    lose(machine)
    gone, well = read(machine)["gpus"]
    assert (gone["index"], gone["access"], gone["uuid"]) == (0, access, "")
    assert (well["index"], well["access"], well["mig_mode"]) == (1, "Ok", "Disabled")
    assert machine.show()["clients"] == []


def test_the_only_gpu_of_a_node_may_be_lost(tmp_path: Path) -> None:
    single = Simulator.create(tmp_path / "state", ["t4"])
    single.set_gpu(0, lost=1)
    reading = read(single)
    assert [gpu["access"] for gpu in reading["gpus"]] == ["Lost"]
    assert (reading["models"], reading["driver_version"]) == ([], "580.95.05")


def test_a_call_that_is_in_use_is_an_error_with_the_gpu_named(machine: Simulator) -> None:
    machine.inject("nvmlDeviceGetComputeMode", "IN_USE", gpu=1)
    with Agent(machine) as agent:
        assert agent.ask("read")["error"].startswith("NVMLFailed: GPU 1: ")
        machine.clear_faults()
        assert len(agent.gpus()) == 2


def test_a_create_that_failed_midway_shows_an_instance_without_a_device(machine: Simulator) -> None:
    fault = ("nvmlGpuInstanceCreateComputeInstance", "INSUFFICIENT_RESOURCES")
    machine.inject(*fault, skip=1, count=1)
    with pytest.raises(AssertionError, match="Insufficient"):
        in_process(machine, "partition", "0", "3g.40gb", "2g.20gb", "1g.10gb")
    instances = read(machine)["gpus"][0]["instances"]
    assert [(i["profile"], bool(i["uuid"])) for i in sorted(instances, key=lambda i: -i["size"])] == [
        ("3g.40gb", True),
        ("2g.20gb", False),
    ]


def test_an_instance_that_could_not_be_destroyed_is_shown_with_its_user(machine: Simulator) -> None:
    with Agent(machine) as agent:
        agent.ask("partition", "0", "3g.40gb")
        (instance,) = agent.gpus()[0]["instances"]
        machine.add_process(0, 4_000_001, "python3", gpu_instance=instance["id"], compute_instance=0)
        assert agent.ask("destroy", "0") == "NVMLError_InUse"
        gpu, _ = agent.gpus()
    assert [i["id"] for i in gpu["instances"]] == [instance["id"]]
    assert [p["device"] for p in gpu["processes"]] == [instance["uuid"]]


ACTIONS = list(get_args(RecoveryAction))


def test_the_drivers_recovery_action_is_read(tmp_path: Path) -> None:
    many = Simulator.create(tmp_path / "state", ["t4"] * len(ACTIONS))
    for number in range(len(ACTIONS)):
        many.set_gpu(number, recovery_action=number)
    assert [gpu["recovery_action"] for gpu in read(many)["gpus"]] == ACTIONS


def test_a_driver_before_r565_names_no_recovery_action(tmp_path: Path) -> None:
    old = Simulator.create(tmp_path / "state", ["h100-80gb"], driver="550.54.15")
    assert read(old)["gpus"][0]["recovery_action"] is None


def test_a_critical_xid_that_is_raised_during_a_reading_is_heard_and_kept(machine: Simulator) -> None:
    machine.post_event(1, EVENT_XID, 95)  # before it listens: nobody can hear that
    machine.inject("nvmlDeviceGetComputeMode", "hang", gpu=1)
    with Agent(machine) as agent:
        agent.tell("read")
        deadline = time.monotonic() + 30
        while machine.show()["faults"][0]["hits"] == 0:
            assert time.monotonic() < deadline, "the reading never came that far"
            time.sleep(0.01)
        machine.post_event(0, EVENT_XID, 13)  # an application's own fault
        machine.post_event(1, EVENT_XID, 119)
        machine.post_event(1, EVENT_XID, 79)
        machine.clear_faults()
        assert [gpu["xid"] for gpu in agent.answer()["gpus"]] == [None, 119]
        assert [gpu["xid"] for gpu in agent.gpus()] == [None, 119]
    assert machine.show()["clients"] == []
