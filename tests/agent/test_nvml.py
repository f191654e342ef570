"""The NVML adapter on the SIMULATED libnvidia-ml.so.1 of hack/nvmlsim, in processes of their own."""

from ctypes.util import find_library
from pathlib import Path

import pytest
from hack.cards import mig_mode_needs_reset
from hack.nvmlsim.simulator import Simulator
from tests.agent.nvml_machine import Agent, in_process, needs_compiler, read
from tests.wording import lacks

from gpusharing.agent.library import LibraryError
from gpusharing.agent.nvml import NVML
from gpusharing.planning.gpus.cards import find_card

pytestmark = needs_compiler

H100, A100, T4 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "Tesla T4"


def test_a_divided_h100_is_read_with_placements_and_mig_uuids(machine: Simulator) -> None:
    in_process(machine, "partition", "0", "3g.40gb", "2g.20gb", "1g.10gb+me")
    reading = read(machine)
    divided, whole = reading["gpus"]
    assert {(i["profile"], i["size"]) for i in divided["instances"]} == {
        ("3g.40gb", 4),
        ("2g.20gb", 2),
        ("1g.10gb+me", 1),
    }
    taken = [unit for i in divided["instances"] for unit in range(i["start"], i["start"] + i["size"])]
    assert len(taken) == len(set(taken))
    assert len({i["uuid"] for i in divided["instances"] if i["uuid"].startswith("MIG-")}) == 3
    assert (divided["mig_mode"], whole["mig_mode"], whole["instances"]) == ("Enabled", "Disabled", [])
    assert reading["driver_version"] == "580.159.03"


@pytest.mark.parametrize(("model", "product"), [("h100-80gb", H100), ("a100-40gb", A100)], ids=["an H100", "an A100"])
def test_the_profiles_read_are_those_of_the_card_table(tmp_path: Path, model: str, product: str) -> None:
    (observed,) = read(Simulator.create(tmp_path / "state", [model]))["models"]
    card = find_card(product)
    assert card is not None
    assert {
        (p["name"], p["profile_id"], tuple(p["starts"]), p["size"], p["max_count"], p["slices"], p["memory_gb"])
        for p in observed["profiles"]
    } == {(p.name, p.profile_id, p.starts, p.size, p.max_count, p.slices, p.memory_gb) for p in card.profiles}
    assert observed["product"] == product
    assert observed["mig_mode_change"] == ("Reset" if mig_mode_needs_reset(card) else "Live")
    assert observed["virtualization"] == "None"


def test_a_card_without_mig_is_a_value_and_not_an_error(tmp_path: Path) -> None:
    reading = read(Simulator.create(tmp_path / "state", ["t4", "h100-80gb"]))
    t4, h100 = reading["gpus"]
    assert (t4["product"], t4["mig_mode"], t4["mig_mode_pending"]) == (T4, "NotSupported", "NotSupported")
    assert (t4["instances"], t4["remapped_rows"], t4["compute_mode"]) == ([], None, "Default")
    assert [(m["mig_capable"], bool(m["profiles"])) for m in reading["models"]] == [(False, False), (True, True)]
    assert h100["remapped_rows"] == [False, False]


def test_without_the_right_to_list_instances_the_mig_devices_tell(machine: Simulator) -> None:
    in_process(machine, "partition", "0", "3g.40gb", "1g.20gb")
    privileged = {i["id"]: i for i in read(machine)["gpus"][0]["instances"]}
    instances = read(machine, privilege="monitor")["gpus"][0]["instances"]
    assert [(i["start"], i["id"]) for i in instances] == [(-1, number) for number in sorted(privileged)]
    assert {(i["profile"], i["uuid"]) for i in instances} == {(i["profile"], i["uuid"]) for i in privileged.values()}
    assert {i["size"] for i in instances} == {0}  # placements may not be listed either


def test_processes_are_read_per_gpu_and_per_mig_device(machine: Simulator) -> None:
    in_process(machine, "partition", "1", "3g.40gb")
    (instance,) = read(machine)["gpus"][1]["instances"]
    machine.add_process(0, 4_000_001, "/usr/bin/python3 train.py")
    machine.add_process(0, 4_000_002, "nvidia-cuda-mps-server", mps=True)
    machine.add_process(0, 4_000_003)
    machine.add_process(1, 4_000_004, "worker", gpu_instance=instance["id"], compute_instance=0)
    whole, divided = read(machine)["gpus"]
    assert [(p["pid"], p["name"], p["device"]) for p in whole["processes"]] == [
        (4_000_001, "python3", ""),
        (4_000_002, "nvidia-cuda-mps-server (program unknown, started by an unknown process)", ""),
        (4_000_003, "", ""),
    ]
    assert [(p["pid"], p["name"], p["device"]) for p in divided["processes"]] == [
        (4_000_004, "worker", instance["uuid"])
    ]


@pytest.mark.parametrize("answer", ["NO_PERMISSION", "NOT_SUPPORTED"])
def test_a_list_of_compute_processes_that_is_not_given_counts_as_busy(machine: Simulator, answer: str) -> None:
    machine.inject("nvmlDeviceGetComputeRunningProcesses", answer, gpu=0)
    unknown, told = read(machine)["gpus"]
    assert (unknown["processes"], told["processes"]) == ([{"pid": 0, "name": "", "device": ""}], [])


@pytest.mark.parametrize("kind", ["MPSCompute", "Graphics"])
def test_lists_of_mps_and_graphics_clients_are_empty_where_there_are_none(machine: Simulator, kind: str) -> None:
    machine.inject(f"nvmlDeviceGet{kind}RunningProcesses", "NOT_SUPPORTED")
    assert [gpu["processes"] for gpu in read(machine)["gpus"]] == [[], []]
    machine.clear_faults()
    machine.inject(f"nvmlDeviceGet{kind}RunningProcesses", "NO_PERMISSION")
    assert [len(gpu["processes"]) for gpu in read(machine)["gpus"]] == [1, 1]


def test_health_and_compute_mode_are_read(machine: Simulator) -> None:
    machine.set_gpu(1, compute_mode=3, ecc_volatile_uncorrected=2, remap_pending=1)
    gpu = read(machine)["gpus"][1]
    assert (gpu["compute_mode"], gpu["ecc_uncorrected"]) == ("ExclusiveProcess", 2)
    assert gpu["remapped_rows"] == [True, False]


@pytest.mark.parametrize(
    ("function", "fault", "told"),
    [
        (
            "nvmlDeviceGetCount",
            "UNKNOWN",
            "NVMLAccessLost: NVML: Unknown Error; this usually happens after systemd was reloaded",
        ),
        ("nvmlDeviceGetCount", "NO_PERMISSION", "NVMLAccessLost: NVML: Insufficient Permissions; the agent's"),
        ("nvmlDeviceGetHandleByIndex", "NO_PERMISSION", "NVMLAccessLost: NVML: Insufficient Permissions; the agent's"),
        ("nvmlDeviceGetHandleByIndex", "UNKNOWN", "NVMLAccessLost: NVML: Unknown Error"),
        ("nvmlDeviceGetCount", "LIB_RM_VERSION_MISMATCH", "NVMLReplaced: the driver was replaced"),
        ("nvmlDeviceGetName", "LIB_RM_VERSION_MISMATCH", "NVMLReplaced: the driver was replaced"),
        ("nvmlDeviceGetCount", "IN_USE", "NVMLFailed: NVML: In use by another client; see `dmesg"),
    ],
)
def test_an_error_says_what_to_do(machine: Simulator, function: str, fault: str, told: str) -> None:
    machine.inject(function, fault)
    assert read(machine)["error"].startswith(told)


def test_after_a_driver_upgrade_only_a_new_process_reads_again(machine: Simulator) -> None:
    with Agent(machine) as agent:
        agent.gpus()
        machine.upgrade_driver("590.10.01")
        for _ in range(2):
            assert agent.ask("read")["error"].startswith("NVMLReplaced: ")
    assert read(machine)["driver_version"] == "590.10.01"


def test_after_a_reload_of_systemd_only_a_new_process_reads_again(machine: Simulator) -> None:
    with Agent(machine) as agent:
        agent.gpus()
        machine.take_devices_away()
        for _ in range(2):
            assert agent.ask("read")["error"].startswith("NVMLAccessLost: NVML: Unknown Error; ")
    assert len(read(machine)["gpus"]) == 2


def test_a_client_that_draws_is_a_process_of_the_gpu(machine: Simulator) -> None:
    machine.add_process(0, 4_000_001, "/usr/lib/xorg/Xorg", graphics=True)
    assert [p["name"] for p in read(machine)["gpus"][0]["processes"]] == ["Xorg"]


def test_a_driver_that_is_not_loaded_says_where_to_look(machine: Simulator) -> None:
    machine.set_machine(driver_loaded=0)
    assert not lacks(read(machine)["error"], "NVMLNotLoaded", "driver pod")


@pytest.mark.skipif(find_library("nvidia-ml") is not None, reason="this machine has NVML")
def test_a_library_that_is_not_there_says_how_to_get_it() -> None:
    with pytest.raises(LibraryError, match="run the agent with the runtime class `nvidia`"):
        NVML().read()


def test_a_driver_too_old_for_a_call_lacks_that_value_only(machine: Simulator) -> None:
    for function in (
        "nvmlDeviceGetTotalEccErrors",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetComputeMode",
        "nvmlDeviceGetVirtualizationMode",
    ):
        machine.inject(function, "FUNCTION_NOT_FOUND")
    reading = read(machine)
    assert reading["gpus"][0]["ecc_uncorrected"] is None
    assert reading["gpus"][0]["compute_mode"] == "NotSupported"
    assert reading["models"][0]["mig_mode_change"] == "Unknown"
    assert reading["models"][0]["virtualization"] == "Unknown"


def test_nvml_is_closed_after_a_reading_and_after_a_failed_one(machine: Simulator) -> None:
    machine.inject("nvmlDeviceGetCount", "UNKNOWN", count=1)
    assert "error" in read(machine)
    assert "gpus" in read(machine)
    in_process(machine, "partition", "0")  # refused by the simulated driver while another client is open
    assert machine.show()["clients"] == []


def test_a_hung_nvml_call_holds_up_neither_the_report_nor_the_exit(machine: Simulator) -> None:
    machine.inject("nvmlDeviceGetName", "hang")
    answers = in_process(machine, "hang")
    assert [answer.partition(":")[0] for answer in answers] == ["NVMLHung", "NVMLHung"]


def test_the_adapter_is_not_simulated() -> None:
    assert NVML.simulated is False
