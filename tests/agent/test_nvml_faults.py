"""What goes wrong in NVML, through nvidia-ml-py on the SIMULATED library: faults, containers with fewer rights, and the modules agent/nvml_*.py."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hack.nvmlsim.simulator import EVENT_XID, RESULTS, Simulator
from tests.agent.nvml_machine import Agent, finish, in_process, needs_compiler, raise_during_a_reading, read, start
from tests.containers import own_pid_namespace, require_admin, without_capabilities

from gpusharing.api.gpunode import RecoveryAction

pytestmark = needs_compiler

OPTIONAL: dict[str, tuple[str, object]] = {
    "nvmlDeviceGetMigMode": ("mig_mode", "NotSupported"),
    "nvmlDeviceGetComputeMode": ("compute_mode", "NotSupported"),
    "nvmlDeviceGetTotalEccErrors": ("ecc_uncorrected", None),
    "nvmlDeviceGetFieldValues": ("recovery_action", None),
    "nvmlDeviceGetComputeRunningProcesses": ("processes", [{"pid": 0, "name": "", "device": ""}]),
    "nvmlDeviceGetMPSComputeRunningProcesses": ("processes", []),
    "nvmlEventSetCreate": ("xid", None),
    "nvmlDeviceRegisterEvents": ("xid", None),
    "nvmlEventSetWait": ("xid", None),
}


def test_rows_come_from_the_fields_where_the_call_is_not_supported(machine: Simulator) -> None:
    machine.set_gpu(0, remap_pending=1, remapped_uncorrected=2)
    machine.inject("nvmlDeviceGetRemappedRows", "NOT_SUPPORTED")
    rows = read(machine)["gpus"][0]["remapped_rows"]
    assert rows == [True, False]


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
    gone, healthy = read(machine)["gpus"]
    assert (gone["index"], gone["access"], gone["uuid"]) == (0, access, "")
    assert (healthy["index"], healthy["access"], healthy["mig_mode"]) == (1, "Ok", "Disabled")
    assert machine.show()["clients"] == []


def test_the_only_gpu_of_a_node_may_be_lost(tmp_path: Path) -> None:
    single = Simulator.create(tmp_path / "state", ["t4"])
    single.set_gpu(0, lost=1)
    reading = read(single)
    assert [gpu["access"] for gpu in reading["gpus"]] == ["Lost"]
    assert (reading["models"], reading["driver_version"]) == ([], "580.159.03")


SICK = ("UNKNOWN", "IRQ_ISSUE", "INSUFFICIENT_POWER", "IN_USE", "NO_PERMISSION", "TIMEOUT")


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName", "nvmlDeviceGetMigMode", "nvmlDeviceGetUUID"]
)
@pytest.mark.parametrize("sick", [0, 1], ids=["the first", "the last"])
def test_a_sick_gpu_spoils_only_its_own_reading(machine: Simulator, sick: int, function: str) -> None:
    with Agent(machine) as agent:
        for answer in SICK:
            machine.inject(function, answer, gpu=sick)
            gpus = agent.gpus()
            machine.clear_faults()
            failed, other = gpus[sick], gpus[1 - sick]
            assert (other["access"], other["mig_mode"], other["error"]) == ("Ok", "Disabled", ""), answer
            assert other["index"] == 1 - sick, answer
            assert (failed["access"], failed["index"], bool(failed["error"])) == ("Failed", sick, True), answer
        assert [gpu["access"] for gpu in agent.gpus()] == ["Ok", "Ok"]


def test_the_only_gpu_of_a_node_may_be_sick(tmp_path: Path) -> None:
    single = Simulator.create(tmp_path / "state", ["t4"])
    single.inject("nvmlDeviceGetHandleByIndex", "UNKNOWN")
    assert [gpu["access"] for gpu in read(single)["gpus"]] == ["Failed"]


REFUSED: dict[str, tuple[str, object]] = {
    "nvmlDeviceGetComputeMode": ("compute_mode", "Unknown"),
    "nvmlDeviceGetTotalEccErrors": ("ecc_uncorrected", None),
    "nvmlDeviceGetFieldValues": ("recovery_action", None),
    "nvmlDeviceGetComputeRunningProcesses": ("processes", [{"pid": 0, "name": "", "device": ""}]),
    "nvmlDeviceGetGpuInstanceProfileInfoV": ("instances", []),
    "nvmlSystemGetProcessName": ("processes", []),
    "nvmlEventSetCreate": ("xid", None),
    "nvmlDeviceRegisterEvents": ("xid", None),
}
REFUSED_OF_THE_MODEL: dict[str, tuple[str, object]] = {
    "nvmlDeviceGetFieldValues": ("mig_mode_change", "Unknown"),
    "nvmlDeviceGetVirtualizationMode": ("virtualization", "Unknown"),
    "nvmlDeviceGetGpuInstanceProfileInfoV": ("profiles", []),
}


@pytest.mark.parametrize(("answer", "values"), [("NOT_SUPPORTED", OPTIONAL), ("NO_PERMISSION", REFUSED)])
def test_what_is_not_supported_or_refused_costs_its_own_value_only(
    machine: Simulator, answer: str, values: dict[str, tuple[str, object]]
) -> None:
    with Agent(machine) as agent:
        for function, (field, value) in values.items():
            machine.inject(function, answer)
            gpus = agent.gpus()
            machine.clear_faults()
            assert [gpu[field] for gpu in gpus] == [value, value], function
            assert all(gpu["uuid"].startswith("GPU-") and gpu["access"] == "Ok" for gpu in gpus), function


@pytest.mark.parametrize("function", REFUSED_OF_THE_MODEL)
def test_what_is_refused_of_a_model_is_asked_again_until_it_is_known_and_then_no_more(
    machine: Simulator, function: str
) -> None:
    field, value = REFUSED_OF_THE_MODEL[function]
    with Agent(machine) as agent:

        def told() -> tuple[object, bool]:
            reading = agent.ask("read")
            (model,) = reading["models"]
            return model[field], reading["gpus"][0]["instances_withheld"]

        machine.inject(function, "NO_PERMISSION")
        assert told()[0] == value
        machine.clear_faults()
        known = told()
        assert known[0] != value
        machine.inject(function, "NO_PERMISSION")
        assert told() == known


def test_the_right_to_see_placements_is_asked_for_until_it_is_there(machine: Simulator) -> None:
    with Agent(machine) as agent:
        machine.inject("nvmlDeviceGetGpuInstancePossiblePlacements", "NO_PERMISSION")
        assert [gpu["instances_withheld"] for gpu in agent.gpus()] == [True, True]
        machine.clear_faults()
        assert [gpu["instances_withheld"] for gpu in agent.gpus()] == [False, False]


UNKNOWN_PROCESS = {"pid": 0, "name": "", "device": ""}


def test_instances_that_may_not_be_listed_count_as_busy(machine: Simulator) -> None:
    in_process(machine, "partition", "0")
    machine.inject("nvmlDeviceGetGpuInstances", "NO_PERMISSION")
    divided, whole = read(machine)["gpus"]
    assert (divided["instances_withheld"], divided["processes"]) == (True, [UNKNOWN_PROCESS])
    assert (whole["instances_withheld"], whole["processes"]) == (False, [])


def test_an_instance_whose_mig_device_cannot_be_seen_counts_as_busy(machine: Simulator) -> None:
    in_process(machine, "partition", "0", "3g.40gb", "3g.40gb")
    machine.inject("nvmlDeviceGetMigDeviceHandleByIndex", "NO_PERMISSION", gpu=0)
    assert read(machine)["gpus"][0]["processes"] == [UNKNOWN_PROCESS]
    machine.clear_faults()
    machine.inject("nvmlDeviceGetMigDeviceHandleByIndex", "NOT_FOUND", gpu=0, count=1)
    gpu = read(machine)["gpus"][0]
    assert (gpu["processes"], len(gpu["instances"])) == ([UNKNOWN_PROCESS], 2)
    machine.clear_faults()
    assert read(machine)["gpus"][0]["processes"] == []


@pytest.fixture
def busy(machine: Simulator) -> Simulator:
    """GPU 0 in two, with a trainer that is a client of MPS on the second half."""
    in_process(machine, "partition", "0", "3g.40gb", "3g.40gb")
    machine.add_process(0, 4_000_001, "python3", mps=True, gpu_instance=2, compute_instance=0)
    return machine


MIG_CALLS = (
    "nvmlDeviceGetGpuInstanceProfileInfoV",
    "nvmlDeviceGetGpuInstancePossiblePlacements",
    "nvmlDeviceGetGpuInstances",
    "nvmlGpuInstanceGetInfo",
    "nvmlGpuInstanceGetComputeInstanceProfileInfo",
    "nvmlGpuInstanceGetComputeInstances",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetAttributes",
)


def test_a_card_with_mig_on_that_lists_no_profiles_is_busy_and_its_instances_are_unknown(busy: Simulator) -> None:
    """NVIDIA's own mock of NVML answers so: it has MIG devices of no kind, and lists processes of the whole GPU."""
    for function in MIG_CALLS:
        busy.inject(function, "NOT_SUPPORTED")
    gpu, _ = read(busy)["gpus"]
    assert (gpu["mig_mode"], gpu["instances"], gpu["instances_withheld"]) == ("Enabled", [], True)
    assert [process["pid"] for process in gpu["processes"]] == [0, 4_000_001]


def test_a_mig_device_of_an_instance_that_is_not_listed_leaves_the_layout_unknown(busy: Simulator) -> None:
    in_process(busy, "partition", "1", "7g.80gb")
    busy.inject("nvmlDeviceGetGpuInstances", "NOT_SUPPORTED", gpu=1)
    listed, unlisted = read(busy)["gpus"]
    assert (len(listed["instances"]), listed["instances_withheld"]) == (2, False)
    assert ([i["profile"] for i in unlisted["instances"]], unlisted["instances_withheld"]) == (["7g.80gb"], True)
    assert unlisted["processes"] == [UNKNOWN_PROCESS]


def test_no_combination_of_errors_makes_a_busy_gpu_look_idle(busy: Simulator) -> None:
    dice = random.Random(33)
    errors = ("NOT_SUPPORTED", "NO_PERMISSION", "NOT_FOUND", "FUNCTION_NOT_FOUND", "INVALID_ARGUMENT", "UNKNOWN")
    with Agent(busy) as agent:
        for _ in range(150):
            rounds = [
                (function, dice.choice(errors), dice.choice((0, 0, 1, 2)), dice.choice((1, 2, 1000)))
                for function in dice.sample(MIG_CALLS, dice.choice((1, 2, 3, 4, 6)))
            ]
            for function, error, skip, count in rounds:
                busy.inject(function, error, skip=skip, count=count)
            reading = agent.ask(dice.choice(("read", "read-anew")))
            busy.clear_faults()
            unread = "error" in reading or reading["gpus"][0]["access"] != "Ok"
            assert unread or reading["gpus"][0]["processes"], rounds
        assert [process["pid"] for process in agent.gpus()[0]["processes"]] == [4_000_001]


READ_CALLS = (
    *MIG_CALLS,
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetComputeMode",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetTotalEccErrors",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetFieldValues",
    "nvmlSystemGetProcessName",
    "nvmlEventSetCreate",
    "nvmlDeviceRegisterEvents",
    "nvmlEventSetWait",
)
EVERY_ERROR = [name for name, code in RESULTS.items() if code]


@pytest.mark.parametrize("function", READ_CALLS)
def test_each_error_of_a_call_about_a_busy_mig_device_leaves_it_busy_and_names_no_other_device(
    busy: Simulator, function: str
) -> None:
    with Agent(busy) as agent:
        before, other = agent.gpus()
        devices = {instance["uuid"] for instance in before["instances"]}
        for error in EVERY_ERROR:
            for skip in (
                (0, 1) if function in MIG_CALLS or "Processes" in function else (0,)
            ):  # the first MIG device, or the second
                busy.inject(function, error, gpu=0, skip=skip)
                reading = agent.ask("read")
                busy.clear_faults()
                if "error" in reading:
                    continue
                gpu, healthy = reading["gpus"]
                assert healthy == other, error
                if gpu["access"] != "Ok":
                    assert (gpu["uuid"], gpu["processes"], gpu["instances"]) == ("", [], []), error
                    continue
                assert gpu["uuid"] == before["uuid"], error
                assert {each["pid"] for each in gpu["processes"]} & {0, 4_000_001}, error
                assert {each["device"] for each in gpu["processes"]} <= {"", *devices}, error
                found = {each["uuid"] for each in gpu["instances"]} - {""}
                assert found == devices or (gpu["instances_withheld"] or found < devices), error
        assert agent.gpus() == [before, other]


def test_a_gpu_without_instances_after_a_failed_apply_is_idle(machine: Simulator) -> None:
    in_process(machine, "partition", "0")
    gpu = read(machine)["gpus"][0]
    assert (gpu["mig_mode"], gpu["instances"], gpu["processes"]) == ("Enabled", [], [])


def test_where_processes_are_hidden_each_device_of_a_gpu_may_have_one(machine: Simulator) -> None:
    in_process(machine, "partition", "0", "3g.40gb")
    blind = in_process(machine, "read-blind")
    assert [gpu["processes"] for gpu in blind["gpus"]] == [
        [UNKNOWN_PROCESS, {"pid": 0, "name": "", "device": blind["gpus"][0]["instances"][0]["uuid"]}],
        [UNKNOWN_PROCESS],
    ]


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
    assert read(machine)["gpus"][0]["processes"] == []  # nobody can compute on an instance without compute instances


def test_an_instance_that_could_not_be_destroyed_is_shown_with_its_user(machine: Simulator) -> None:
    with Agent(machine) as agent:
        agent.ask("partition", "0", "3g.40gb")
        (instance,) = agent.gpus()[0]["instances"]
        machine.add_process(0, 4_000_001, "python3", gpu_instance=instance["id"], compute_instance=0)
        assert agent.ask("destroy", "0") == "NVMLError_InUse"
        gpu, _ = agent.gpus()
    assert [i["id"] for i in gpu["instances"]] == [instance["id"]]
    assert [p["device"] for p in gpu["processes"]] == [instance["uuid"]]


ACTIONS = ["None", *get_args(RecoveryAction)]


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
    with Agent(machine) as agent:
        told = raise_during_a_reading(machine, agent, (0, 13), (1, 119), (1, 79))  # 13 is an application's own fault
        assert [gpu["xid"] for gpu in told["gpus"]] == [None, 119]
        assert [gpu["xid"] for gpu in agent.gpus()] == [None, 119]
    assert machine.show()["clients"] == []


def test_an_xid_stays_with_its_gpu_when_indices_shift(machine: Simulator) -> None:
    first, second = (gpu["uuid"] for gpu in machine.show()["gpus"])
    with Agent(machine) as agent:
        told = raise_during_a_reading(machine, agent, (1, 79))
        assert [gpu["xid"] for gpu in told["gpus"]] == [None, 79]
        machine.set_gpu(0, uuid=second)
        machine.set_gpu(1, uuid=first)
        assert [(gpu["uuid"], gpu["xid"]) for gpu in agent.gpus()] == [(second, 79), (first, None)]
        machine.set_gpu(0, uuid="GPU-another")
        assert [gpu["xid"] for gpu in agent.gpus()] == [None, None]


def test_a_card_whose_mig_mode_is_not_supported_for_a_moment_has_mig_in_the_next_reading(machine: Simulator) -> None:
    with Agent(machine) as agent:
        machine.inject("nvmlDeviceGetMigMode", "NOT_SUPPORTED")
        (model,) = agent.ask("read")["models"]
        assert (model["mig_capable"], model["profiles"]) == (False, [])
        machine.clear_faults()
        reading = agent.ask("read")
        (model,) = reading["models"]
        assert model["mig_capable"]
        assert model["mig_mode_change"] != "Unknown"
        assert "3g.40gb" in {profile["name"] for profile in model["profiles"]}
        assert {gpu["mig_mode"] for gpu in reading["gpus"]} == {"Disabled"}


def test_one_gpu_of_a_model_is_enough_to_know_that_the_model_has_mig(machine: Simulator) -> None:
    machine.inject("nvmlDeviceGetMigMode", "NOT_SUPPORTED", gpu=0)
    reading = read(machine)
    assert [gpu["mig_mode"] for gpu in reading["gpus"]] == ["NotSupported", "Disabled"]
    assert [model["mig_capable"] for model in reading["models"]] == [True]


def seen(machine: Simulator, inside: Sequence[str]) -> Any:
    return finish(start(machine, "read", privilege=None, inside=inside))


@pytest.fixture
def divided(machine: Simulator) -> Simulator:
    """GPU 0 in two, with a trainer on one half; GPU 1 whole and idle."""
    in_process(machine, "partition", "0", "3g.40gb", "3g.40gb")
    machine.add_process(0, 4_000_001, "python3", gpu_instance=1, compute_instance=0)
    return machine


def test_with_the_charts_default_rights_nothing_is_hidden(divided: Simulator) -> None:
    require_admin()
    assert seen(divided, ()) == read(divided)
    gpu, _ = seen(divided, ())["gpus"]
    assert ([p["pid"] for p in gpu["processes"]], gpu["instances_withheld"]) == ([4_000_001], False)


def test_an_agent_that_is_not_privileged_reads_the_rest_and_calls_no_divided_gpu_idle(divided: Simulator) -> None:
    divided.remove_process(4_000_001)
    reading = seen(divided, without_capabilities())
    gpu, whole = reading["gpus"]
    assert (gpu["access"], gpu["mig_mode"], gpu["instances_withheld"]) == ("Ok", "Enabled", True)
    assert gpu["processes"] == [UNKNOWN_PROCESS]
    assert (whole["access"], whole["processes"]) == ("Ok", [])


def test_an_agent_that_is_not_privileged_sees_no_instance_that_came_after_it(machine: Simulator) -> None:
    with Agent(machine, privilege=None, inside=without_capabilities()) as agent:
        assert [gpu["mig_mode"] for gpu in agent.gpus()] == ["Disabled", "Disabled"]
        machine.set_machine(clients_block=0)
        in_process(machine, "partition", "0", "3g.40gb", "3g.40gb")
        gpu, _ = agent.gpus()
    assert (gpu["mig_mode"], gpu["instances"], gpu["processes"]) == ("Enabled", [], [UNKNOWN_PROCESS])


def test_in_a_pid_namespace_of_its_own_the_agent_calls_no_gpu_idle(machine: Simulator) -> None:
    machine.add_process(0, 4_000_001, "python3")
    busy, idle = seen(machine, own_pid_namespace())["gpus"]
    assert (busy["processes"], idle["processes"]) == ([UNKNOWN_PROCESS], [UNKNOWN_PROCESS])
    assert [p["pid"] for p in read(machine)["gpus"][0]["processes"]] == [4_000_001]


GONE: dict[str, tuple[Callable[[Simulator], None], str, str]] = {
    "an upgrade of the driver": (lambda machine: machine.upgrade_driver("590.10.01"), "NVMLReplaced: ", "590.10.01"),
    "a reload of systemd": (
        lambda machine: machine.take_devices_away(),
        "NVMLAccessLost: NVML: Unknown Error; ",
        "580.159.03",
    ),
}


@pytest.mark.parametrize(("happen", "error", "driver"), GONE.values(), ids=GONE)
def test_only_a_new_agent_reads_after(
    happen: Callable[[Simulator], None], error: str, driver: str, machine: Simulator
) -> None:
    with Agent(machine) as old:
        assert len(old.gpus()) == 2
        happen(machine)
        for _ in range(3):
            assert old.ask("read")["error"].startswith(error)
        reading = read(machine)
    assert (len(reading["gpus"]), reading["driver_version"]) == (2, driver)
