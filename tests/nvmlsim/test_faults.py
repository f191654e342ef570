"""Faults on demand, health, processes, events, and six processes at once."""

import re
import time
from typing import Any

import pytest
from hack.nvmlsim.simulator import EVENT_XID, Simulator, SimulatorError
from tests.nvmlsim.conftest import MakeMachine
from tests.nvmlsim.machine import SimMachine

pytestmark = pytest.mark.tools

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, DRIVER_NOT_LOADED, GPU_IS_LOST = 3, 4, 6, 9, 15
IN_USE, INSUFFICIENT_RESOURCES, UNKNOWN = 19, 23, 999
CHURNERS, CHURN_TURNS = 6, 2000


def test_a_call_hangs_until_the_fault_is_taken_back(h100: SimMachine) -> None:
    h100.simulator.inject("nvmlDeviceGetTotalEccErrors", "hang")
    stuck = h100.start("gpu_report", gpu=0)
    deadline = time.monotonic() + 60
    while h100.simulator.show()["faults"][0]["hits"] == 0:
        assert time.monotonic() < deadline, "the call was never made"
        time.sleep(0.01)
    assert h100.ask("process_name", pid=1) == {"error": NOT_FOUND}, "others are not held up"
    assert stuck.process.poll() is None
    h100.simulator.clear_faults()
    assert stuck.result()["ecc"] == 0


@pytest.mark.parametrize(("fault", "code"), [("NOT_SUPPORTED", NOT_SUPPORTED), ("UNKNOWN", UNKNOWN)])
def test_a_named_call_fails_on_the_named_gpu_only(fault: str, code: int, make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb", "h100-80gb")
    machine.simulator.inject("nvmlDeviceGetUtilizationRates", fault, gpu=1)
    assert machine.ask("gpu_report", gpu=0)["utilization"] == 0
    assert machine.ask("gpu_report", gpu=1)["utilization"] == {"error": code}


def test_a_fault_of_a_function_is_one_of_all_its_versions(h100: SimMachine) -> None:
    h100.simulator.inject("nvmlDeviceGetCount", "UNKNOWN", count=1)
    h100.simulator.inject("nvmlDeviceGetHandleByIndex_v2", "UNKNOWN", skip=1, count=1)
    assert h100.ask("gpu_report", gpu=0)["name"] == "NVIDIA H100 80GB HBM3"
    assert h100.ask("gpu_report", gpu=0) == {"error": UNKNOWN}
    assert h100.ask("gpu_report", gpu=0)["name"] == "NVIDIA H100 80GB HBM3"


def test_a_create_fails_midway_and_leaves_what_was_made_before(h100: SimMachine) -> None:
    h100.simulator.inject("nvmlGpuInstanceCreateComputeInstance", "INSUFFICIENT_RESOURCES", skip=2, count=1)
    assert h100.ask("create", gpu=0, profile_ids=[19] * 7) == {"error": INSUFFICIENT_RESOURCES}
    left = h100.simulator.show()["gpus"][0]["instances"]
    assert [len(instance["compute"]) for instance in left] == [1, 0, 1]


def test_an_unknown_function_or_fault_is_refused_with_the_choice(h100: SimMachine) -> None:
    with pytest.raises(SimulatorError, match=re.escape("nvmlDeviceGetFanSpeed is not simulated")):
        h100.simulator.inject("nvmlDeviceGetFanSpeed", "hang")
    with pytest.raises(SimulatorError, match="no fault 'SLOW': choose hang"):
        h100.simulator.inject("nvmlInit", "SLOW")


def test_a_lost_gpu_answers_nothing_and_the_other_goes_on(make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb", "h100-80gb")
    machine.simulator.set_gpu(0, lost=1)
    assert machine.ask("gpu_report", gpu=0) == {"error": GPU_IS_LOST}
    assert machine.ask("gpu_report", gpu=1)["mig_mode"] == [0, 0]


def test_without_a_driver_nothing_starts(h100: SimMachine) -> None:
    h100.simulator.set_machine(driver_loaded=0)
    assert h100.ask("gpu_report", gpu=0) == {"error": DRIVER_NOT_LOADED}


def test_a_file_of_another_version_is_refused(h100: SimMachine) -> None:
    h100.simulator.path.write_bytes(b"not a state file")
    assert h100.ask("gpu_report", gpu=0) == {"error": DRIVER_NOT_LOADED}
    with pytest.raises(SimulatorError, match="create it again"):
        h100.simulator.show()


def test_a_function_that_is_not_simulated_exists_and_is_not_supported(h100: SimMachine) -> None:
    assert h100.ask("call_by_name", name="nvmlDeviceGetFanSpeed") == NOT_SUPPORTED


def test_destroying_what_a_process_uses_is_refused_and_its_neighbor_goes(h100: SimMachine) -> None:
    h100.ask("create", gpu=0, profile_ids=[9, 9])
    h100.simulator.add_process(0, 4711, "python3", gpu_instance=2, compute_instance=0)
    assert h100.ask("destroy_all", gpu=0) == {"error": IN_USE}
    h100.ask("destroy_compute", gpu=0, gpu_instance=1, compute_instance=0)
    h100.ask("destroy_gpu_instance", gpu=0, gpu_instance=1)
    assert [instance[0] for instance in h100.ask("instances", gpu=0)] == [2]
    h100.simulator.remove_process(4711)
    assert h100.ask("destroy_all", gpu=0) is None


def test_processes_are_listed_where_they_run_and_named_where_nvml_knows_them(h100: SimMachine) -> None:
    h100.ask("create", gpu=0, profile_ids=[9, 9])
    h100.simulator.add_process(0, 4711, "python3 train.py", gpu_instance=1, compute_instance=0, memory_mib=100)
    h100.simulator.add_process(0, 4712, gpu_instance=2, compute_instance=0)
    assert [device["processes"] for device in h100.ask("mig_devices", gpu=0)] == [[4712], [4711]]
    assert h100.ask("gpu_report", gpu=0)["processes"] == [4711, 4712]
    assert h100.ask("process_name", pid=4711) == "python3 train.py"
    assert h100.ask("process_name", pid=4712) == {"error": NOT_FOUND}
    assert h100.ask("gpu_report", gpu=0)["memory_v2"] == (100 + 512) << 20


def test_health_is_what_was_set_and_some_answers_vanish_with_mig(make_machine: MakeMachine) -> None:
    machine = make_machine("a100-80gb")
    machine.simulator.set_gpu(
        0, ecc_volatile_uncorrected=3, remapped_uncorrected=1, remap_pending=1, recovery_action=1, compute_mode=3
    )
    report = machine.ask("gpu_report", gpu=0)
    assert (report["ecc"], report["remapped"], report["compute_mode"]) == (3, [0, 1, 1, 0], 3)
    assert report["fields"] == [[0, 0], [0, 1], [0, 1], [0, 0], [0, 0], [0, 1], [0, 1]]
    machine.simulator.set_gpu(0, mig_current=1, mig_pending=1, compute_mode=0)
    machine.ask("create", gpu=0, profile_ids=[19])
    report = machine.ask("gpu_report", gpu=0)
    assert report["remapped"] == {"error": NOT_SUPPORTED}
    assert report["utilization"] == {"error": NOT_SUPPORTED}
    assert report["fields"][2] == [0, 1]
    machine.simulator.reset()
    report = machine.ask("gpu_report", gpu=0)
    assert (report["ecc"], report["remapped"], report["fields"][6]) == (0, [0, 1, 0, 0], [0, 0])


def test_an_old_driver_does_not_know_the_newest_field(make_machine: MakeMachine) -> None:
    report = make_machine("h100-80gb", driver="550.54.15").ask("gpu_report", gpu=0)
    assert report["fields"][6] == [NOT_SUPPORTED, 0]


def test_compute_mode_can_be_set_by_root_and_not_with_mig(make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb")
    assert machine.ask("set_compute_mode", gpu=0, mode=3, privilege="config") == {"error": NO_PERMISSION}
    machine.ask("set_compute_mode", gpu=0, mode=3)
    assert machine.ask("gpu_report", gpu=0)["compute_mode"] == 3
    machine.simulator.set_gpu(0, mig_current=1)
    assert machine.ask("set_compute_mode", gpu=0, mode=3) == {"error": NOT_SUPPORTED}


def test_a_card_can_contradict_the_table(h100: SimMachine) -> None:
    h100.simulator.set_profile(0, "1g.10gb", id=99, instance_count=6)
    first = h100.ask("profiles", gpu=0)[0]
    assert (first["id"], first["max"]) == (99, 6)
    assert len(h100.ask("create", gpu=0, profile_ids=[99] * 6)) == 6
    assert h100.ask("create", gpu=0, profile_ids=[99]) == {"error": INSUFFICIENT_RESOURCES}


def test_events_reach_who_registered_before_and_only_for_what_he_wants(h100: SimMachine) -> None:
    h100.simulator.post_event(0, EVENT_XID, 13)
    waiting = h100.start("wait_events", gpu=0, types=EVENT_XID | 0x100, count=2)
    waiting.wait_ready()
    h100.simulator.post_event(0, 0x2)
    h100.simulator.post_event(0, EVENT_XID, 79, gpu_instance=2)
    h100.ask("create", gpu=0, profile_ids=[19], starts=[0])
    assert waiting.result() == [[EVENT_XID, 79, 2], [0x100, 0, 7]]


def test_a_wait_without_events_times_out(h100: SimMachine) -> None:
    assert 0.2 <= h100.ask("wait_in_vain", milliseconds=200) < 20


def test_six_processes_create_and_destroy_at_once_without_an_overlap(h100: SimMachine) -> None:
    orders = ([19, 14, 9], [14, 19], [9, 19, 15], [19], [15, 14, 19], [5, 19, 14])
    churners = [h100.start("churn", gpu=0, profile_ids=ids, turns=CHURN_TURNS) for ids in orders]
    for churner in churners:
        churner.wait_ready()
    for churner in churners:
        churner.go_on()
    looks = sum(1 for _ in _looks_while_running(h100.simulator, churners))
    counts = [churner.result() for churner in churners]
    assert looks > 0
    assert all(count["created"] > 0 for count in counts)
    assert sum(count["refused"] for count in counts) > 0, "they never got in each other's way"
    assert sum(sum(count.values()) for count in counts) >= CHURNERS * CHURN_TURNS
    assert h100.simulator.show()["gpus"][0]["instances"] == []


def _looks_while_running(simulator: Simulator, churners: list[Any]) -> Any:
    """Look at the machine until all have ended; fail when two instances share a memory unit."""
    while any(churner.process.poll() is None for churner in churners):
        instances = simulator.show()["gpus"][0]["instances"]
        taken = [unit for i in instances for unit in range(i["start"], i["start"] + i["size"])]
        assert len(taken) == len(set(taken)), instances
        yield instances
