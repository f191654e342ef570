"""What the GPUs are used for, read through the adapter from the SIMULATED library."""

from pathlib import Path
from typing import Any

import pytest
from hack.cluster.process import wait_until
from hack.nvmlsim.simulator import EVENT_XID, Simulator
from tests.agent.nvml_machine import Agent, in_process, needs_compiler, read

pytestmark = needs_compiler
MIB = 1024 * 1024
FIRST, SECOND = 4_000_001, 4_000_002


def use(machine: Simulator, privilege: str = "root") -> Any:
    return read(machine, privilege)["use"]


def taken(told: Any) -> dict[int, tuple[int | None, int | None]]:
    """Memory in MiB and share of SM time of each process."""
    return {p["pid"]: (None if p["memory"] is None else p["memory"] // MIB, p["sm_percent"]) for p in told["processes"]}


def test_a_whole_gpu_tells_memory_and_sm_time_of_each_process(machine: Simulator) -> None:
    machine.add_process(0, FIRST, "python3", memory_mib=20_000, sm_percent=60)
    machine.add_process(0, SECOND, "python3", memory_mib=1_000)
    told = use(machine)
    assert taken(told) == {FIRST: (20_000, 60), SECOND: (1_000, 0)}
    busy, idle = told["devices"]
    assert (busy["gpu"], busy["memory_used"] // MIB, busy["instance"]) == (0, 21_000, None)
    assert busy["memory"] // MIB == 81_559
    assert (idle["gpu"], idle["memory_used"], idle["reports_sm"]) == (1, 0, True)
    assert {each["device"] for each in told["processes"]} == {busy["uuid"]}


def test_of_a_mig_device_memory_is_told_and_sm_time_is_not(machine: Simulator) -> None:
    in_process(machine, "partition", "0", "3g.40gb", "1g.10gb")
    (large, small) = sorted(read(machine)["gpus"][0]["instances"], key=lambda instance: -instance["size"])
    machine.add_process(0, FIRST, memory_mib=9_000, sm_percent=80, gpu_instance=large["id"], compute_instance=0)
    told = use(machine)
    assert taken(told) == {FIRST: (9_000, None)}
    devices = {device["uuid"]: device for device in told["devices"] if device["gpu"] == 0}
    assert devices.keys() == {large["uuid"], small["uuid"]}
    assert devices[large["uuid"]]["instance"] == large
    assert (devices[large["uuid"]]["memory_used"], devices[small["uuid"]]["memory_used"]) == (9_000 * MIB, 0)
    assert devices[small["uuid"]]["memory"] < 10 * 1024 * MIB
    assert {device["reports_sm"] for device in devices.values()} == {False}


def test_a_client_of_mps_counts_once_though_it_is_on_two_lists(machine: Simulator) -> None:
    machine.add_process(0, FIRST, "nvidia-cuda-mps-server", memory_mib=30)
    machine.add_process(0, SECOND, "python3", memory_mib=4_000, sm_percent=25, mps=True)
    told = use(machine)
    assert taken(told) == {FIRST: (30, 0), SECOND: (4_000, 25)}
    assert [process["pid"] for process in read(machine)["gpus"][0]["processes"]] == [FIRST, SECOND]


def test_memory_that_the_driver_does_not_tell_is_unknown_and_not_nothing(machine: Simulator) -> None:
    machine.add_process(0, FIRST, memory_mib=None)
    assert taken(use(machine)) == {FIRST: (None, 0)}


@pytest.mark.parametrize("fault", ["NOT_SUPPORTED", "UNKNOWN", "NO_PERMISSION"])
def test_what_cannot_be_told_of_the_use_is_left_out_and_fails_no_reading(machine: Simulator, fault: str) -> None:
    machine.add_process(0, FIRST, memory_mib=100, sm_percent=60)
    machine.inject("nvmlDeviceGetProcessUtilization", fault)
    with Agent(machine) as agent:
        agent.ask("read")
        machine.inject("nvmlDeviceGetMemoryInfo", fault)
        told = agent.ask("read")
    assert [gpu["access"] for gpu in told["gpus"]] == ["Ok", "Ok"]
    assert taken(told["use"]) == {FIRST: (100, None)}
    assert {(d["memory"], d["memory_used"], d["reports_sm"]) for d in told["use"]["devices"]} == {(None, None, False)}


def test_without_rights_on_a_divided_gpu_the_sums_over_its_processes_are_not_whole(machine: Simulator) -> None:
    in_process(machine, "partition", "0", "3g.40gb")
    divided, whole = use(machine, "none")["devices"]
    assert (divided["all_listed"], whole["all_listed"]) == (False, True)
    assert divided["memory_used"] == 0, "of a MIG device memory takes no right"


def test_a_driver_before_r510_counts_what_it_reserves_as_used(machine: Simulator) -> None:
    machine.inject("nvmlDeviceGetMemoryInfo", "FUNCTION_NOT_FOUND", count=1)
    told = use(machine)
    assert [device["memory_used"] // MIB for device in told["devices"]] == [600, 0]


def test_every_xid_is_counted_and_only_a_critical_one_is_held_against_the_gpu(machine: Simulator) -> None:
    with Agent(machine) as agent:
        agent.ask("read")
        for xids in ((31, 31), (79,)):
            machine.inject("nvmlDeviceGetComputeMode", "hang", gpu=1)
            agent.tell("read")
            wait_until(lambda: machine.show()["faults"][0]["hits"] > 0, 30, "the reading to come that far", poll=0.01)
            for xid in xids:
                machine.post_event(1, EVENT_XID, xid)
            machine.clear_faults()
            told = agent.answer()
    assert told["use"]["xids"] == [[1, 31, 2], [1, 79, 1]]
    assert [gpu["xid"] for gpu in told["gpus"]] == [None, 79]


def test_who_holds_a_gpu_and_where_it_is_placed_survive_a_lost_neighbor(tmp_path: Path) -> None:
    machine = Simulator.create(tmp_path / "state", ["h100-80gb", "h100-80gb"], seed="test")
    machine.add_process(1, FIRST, memory_mib=7)
    machine.set_gpu(0, lost=1)
    told = use(machine)
    assert [device["gpu"] for device in told["devices"]] == [1]
    assert taken(told) == {FIRST: (7, 0)}
