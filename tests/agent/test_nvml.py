"""The NVML adapter on the SIMULATED libnvidia-ml.so.1 of hack/nvmlsim, with every card model, and what the GPUs are used for."""

from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest
from hack.cards import mig_mode_needs_reset
from hack.cluster.process import wait_until
from hack.nvmlsim.models import simulated_cards
from hack.nvmlsim.simulator import EVENT_XID, Simulator
from tests.agent.nvml_machine import SECONDS, Agent, in_process, needs_compiler, raise_during_a_reading, read
from tests.wording import lacks

from gpusharing.agent.library import LibraryError
from gpusharing.agent.nvml import NVML
from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.gpus.geometry import maximal_layouts

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


@pytest.mark.parametrize("kind", ["Compute", "MPSCompute", "Graphics"])
def test_a_list_of_processes_that_is_not_given_counts_as_busy_where_there_is_one(machine: Simulator, kind: str) -> None:
    with Agent(machine) as agent:
        for answer in ("NO_PERMISSION", "FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH", "NOT_SUPPORTED"):
            machine.inject(f"nvmlDeviceGet{kind}RunningProcesses", answer, gpu=0)
            unknown, told = agent.gpus()
            machine.clear_faults()
            busy = kind == "Compute" or answer != "NOT_SUPPORTED"
            assert unknown["processes"] == [{"pid": 0, "name": "", "device": ""}] * busy, answer
            assert (unknown["access"], told["access"], told["processes"]) == ("Ok", "Ok", []), answer


@pytest.mark.parametrize("answer", ["NOT_SUPPORTED", "ARGUMENT_VERSION_MISMATCH"])
def test_a_mig_device_without_a_list_of_processes_is_busy_and_the_list_of_all_is_not_needed(
    machine: Simulator, answer: str
) -> None:
    in_process(machine, "partition", "0", "3g.40gb")
    with Agent(machine) as agent:
        machine.inject("nvmlDeviceGetComputeRunningProcesses", answer, gpu=0, count=1)
        of_the_device, _ = agent.gpus()
        machine.clear_faults()
        machine.inject("nvmlDeviceGetComputeRunningProcesses", answer, gpu=0, skip=1)
        of_all, _ = agent.gpus()
    assert of_the_device["processes"], "a program may compute on it"
    assert bool(of_all["processes"]) == (answer != "NOT_SUPPORTED")


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


def test_a_client_that_draws_is_a_process_of_the_gpu(machine: Simulator) -> None:
    machine.add_process(0, 4_000_001, "/usr/lib/xorg/Xorg", graphics=True)
    busy, idle = read(machine)["gpus"]
    assert ([(p["pid"], p["name"]) for p in busy["processes"]], idle["processes"]) == ([(4_000_001, "Xorg")], [])


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


CARDS = simulated_cards()


def largest(card: Card) -> list[str]:
    """Profiles of a layout that fills the card, the largest first, so that the driver finds a place for each."""
    plain = tuple(profile for profile in card.profiles if not any(sign in profile.name for sign in "+-"))
    sizes = {profile.name: profile.size for profile in plain}
    layouts = [[name for name, count in layout for _ in range(count)] for layout in maximal_layouts(plain)]
    most_kinds = max(layouts, key=lambda names: (len(set(names)), names))
    return sorted(most_kinds, key=lambda name: -sizes[name])


def test_the_models_that_the_issue_names_are_among_the_simulated_ones() -> None:
    keys = [card.key for card in CARDS]
    for named in ("a30", "a100-40gb", "a100-80gb", "h100-80gb", "h200", "b200", "rtx-pro-6000", "v100", "t4", "l40s"):
        assert any(key.startswith(named) for key in keys), named


@pytest.mark.parametrize("card", CARDS, ids=[f"a {card.key}" for card in CARDS])
def test_it_is_read_as_the_card_table_has_it_whole_and_divided(tmp_path: Path, card: Card) -> None:
    machine = Simulator.create(tmp_path / "state", [card.key], seed="test")
    with Agent(machine) as agent:
        reading = agent.ask("read")
        (model,), (gpu,) = reading["models"], reading["gpus"]
        assert model["product"] == card.products[0]
        assert {
            (p["name"], p["profile_id"], tuple(p["starts"]), p["size"], p["max_count"], p["slices"], p["memory_gb"])
            for p in model["profiles"]
        } == {(p.name, p.profile_id, p.starts, p.size, p.max_count, p.slices, p.memory_gb) for p in card.profiles}
        assert model["virtualization"] == "None"
        assert (gpu["access"], gpu["recovery_action"], gpu["xid"]) == ("Ok", "None", None)
        if not card.profiles:
            assert (gpu["mig_mode"], model["mig_mode_change"]) == ("NotSupported", "Unknown")
            return
        assert model["mig_mode_change"] == ("Reset" if mig_mode_needs_reset(card) else "Live")
        wanted = largest(card)
        agent.ask("partition", "0", *wanted)
        (divided,) = agent.gpus()
        assert divided["mig_mode"] == "Enabled"
        assert sorted(i["profile"] for i in divided["instances"]) == sorted(wanted)
        assert all(i["uuid"].startswith("MIG-") for i in divided["instances"])
        units = [unit for i in divided["instances"] for unit in range(i["start"], i["start"] + i["size"])]
        assert len(units) == len(set(units))


def test_an_observation_names_who_uses_a_divided_gpu(machine: Simulator) -> None:
    """A trainer, an MPS client, and a nameless process, each on a part of its own."""
    in_process(machine, "partition", "0", "3g.40gb", "1g.10gb", "1g.10gb")
    instances = sorted(read(machine)["gpus"][0]["instances"], key=lambda one: -one["size"])
    large, first, second = (one["id"] for one in instances)
    machine.add_process(0, 4_000_001, "/usr/bin/python3 train.py", gpu_instance=large, compute_instance=0)
    machine.add_process(0, 4_000_002, "tritonserver", mps=True, gpu_instance=first, compute_instance=0)
    machine.add_process(0, 4_000_003, gpu_instance=second, compute_instance=0)
    observed = in_process(machine, "report")
    divided, whole = observed["gpus"]
    assert divided["mig"].startswith("1x3g.40gb+2x1g.10gb@")
    assert whole["mig"] == "Disabled"
    assert observed["programs"] == "0 python3; 0 tritonserver; 0"
    assert (observed["requestID"], observed["error"], observed["simulated"]) == ("r1", "", False)


def test_what_a_gpu_is_called_is_asked_once(machine: Simulator) -> None:
    with Agent(machine) as agent:
        named = [gpu["product"] for gpu in agent.gpus()]
        machine.inject("nvmlDeviceGetName", "GPU_IS_LOST")
        assert [gpu["product"] for gpu in agent.gpus()] == named
    with Agent(machine) as another:
        assert {gpu["access"] for gpu in another.gpus()} == {"Lost"}


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
            told = raise_during_a_reading(machine, agent, *((1, xid) for xid in xids))
    assert told["use"]["xids"] == [[1, 31, 2], [1, 79, 1]]
    assert [gpu["xid"] for gpu in told["gpus"]] == [None, 79]


def test_a_gpu_that_is_left_alone_can_be_divided_anew_during_a_reading_and_the_others_are_read(
    machine: Simulator,
) -> None:
    for gpu in "01":
        in_process(machine, "partition", gpu, "3g.40gb")
    with Agent(machine) as agent:
        agent.ask("read")
        # When all instances are destroyed, none is found.
        for command, end in ((["read"], "NVMLError_InUse"), (["read-without", "0"], "NVMLError_NotFound")):
            machine.inject("nvmlDeviceGetComputeMode", "hang", gpu=1)
            agent.tell(*command)
            wait_until(lambda: machine.show()["faults"][0]["hits"] > 0, SECONDS, "the reading to come that far")
            refusal = in_process(machine, "destroy", "0")
            machine.post_event(1, EVENT_XID, 31)
            machine.clear_faults()
            reading = agent.answer()
            assert refusal == end
    assert [(gpu["access"], gpu["error"]) for gpu in reading["gpus"]] == [
        ("Failed", "left alone for the present change"),
        ("Ok", ""),
    ]
    assert [device["gpu"] for device in reading["use"]["devices"]] == [1]
    assert reading["use"]["xids"] == [[1, 31, 2]]


def test_who_holds_a_gpu_and_where_it_is_placed_survive_a_lost_neighbor(tmp_path: Path) -> None:
    machine = Simulator.create(tmp_path / "state", ["h100-80gb", "h100-80gb"], seed="test")
    machine.add_process(1, FIRST, memory_mib=7)
    machine.set_gpu(0, lost=1)
    told = use(machine)
    assert [device["gpu"] for device in told["devices"]] == [1]
    assert taken(told) == {FIRST: (7, 0)}
