"""What a program may do and see follows from the program: capabilities, namespaces, files that it can open."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hack.nvmlsim import build, rights
from hack.nvmlsim.simulator import CONFIG, MONITOR, give, of_device
from tests.containers import (
    WITHOUT_CAPABILITIES,
    WITHOUT_SYS_ADMIN,
    own_pid_namespace,
    require_admin,
    require_wrapper,
    without_capabilities,
)
from tests.nvmlsim.conftest import MakeMachine
from tests.nvmlsim.machine import SimMachine

pytestmark = pytest.mark.tools

NO_PERMISSION, NOT_FOUND, LIB_RM_VERSION_MISMATCH, UNKNOWN = 4, 6, 18, 999
README = Path(build.__file__).with_name("README.md")


@pytest.mark.parametrize(
    ("privilege", "function", "arguments", "refused"),
    [
        ("config", "set_mode", {"mode": 0}, True),
        ("config", "create", {"profile_ids": [19]}, False),
        ("monitor", "create", {"profile_ids": [19]}, True),
        ("monitor", "instances", {}, True),
        ("monitor", "placements", {"profile_id": 19}, True),
        ("none", "mig_devices", {}, False),
        ("none", "compute_profiles", {"gpu_instance": 2}, True),
        ("monitor", "compute_profiles", {"gpu_instance": 2}, False),
    ],
)
def test_rights_decide_what_a_program_may_do(
    privilege: str, function: str, arguments: dict[str, Any], refused: bool, h100: SimMachine
) -> None:
    h100.ask("create", gpu=0, profile_ids=[9])
    answer = h100.ask(function, gpu=0, privilege=privilege, **arguments)
    assert (answer == {"error": NO_PERMISSION}) == refused


def test_without_rights_a_whole_mig_gpu_hides_its_processes_and_its_memory(h100: SimMachine) -> None:
    h100.ask("create", gpu=0, profile_ids=[9])
    h100.simulator.add_process(0, 4711, gpu_instance=2, compute_instance=0)
    report = h100.ask("gpu_report", gpu=0, privilege="none")
    assert (report["processes"], report["memory_mib"]) == ({"error": NO_PERMISSION}, {"error": NO_PERMISSION})
    assert report["memory_v2"] == {"error": NO_PERMISSION}
    (device,) = h100.ask("mig_devices", gpu=0, privilege="none")
    assert (device["processes"], device["memory_mib"] > 0) == ([4711], True)
    assert h100.ask("gpu_report", gpu=0, privilege="monitor")["memory_mib"] == 81559


def test_without_mig_memory_and_processes_need_no_right(make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb")
    machine.simulator.add_process(0, 4711)
    report = machine.ask("gpu_report", gpu=0, privilege="none")
    assert (report["processes"], report["memory_mib"]) == ([4711], 81559)


@pytest.mark.parametrize("taken", [WITHOUT_SYS_ADMIN, WITHOUT_CAPABILITIES], ids=["SYS_ADMIN", "all"])
def test_root_without_the_capability_may_neither_change_nor_list(taken: tuple[str, ...], h100: SimMachine) -> None:
    require_admin()
    h100.ask("create", gpu=0, profile_ids=[9])
    for function, arguments in (
        ("set_mode", {"mode": 0}), ("create", {"profile_ids": [19]}), ("instances", {}), ("destroy_all", {}),
    ):  # fmt: skip
        client = h100.start(function, privilege=None, inside=taken, gpu=0, **arguments)
        assert client.result() == {"error": NO_PERMISSION}, function
    report = h100.start("gpu_report", privilege=None, inside=taken, gpu=0).result()
    assert report["memory_mib"] == report["processes"] == {"error": NO_PERMISSION}


def test_with_the_capability_a_program_may_everything(h100: SimMachine) -> None:
    require_admin()
    assert h100.ask("create", gpu=0, profile_ids=[9], privilege=None)
    assert h100.ask("instances", gpu=0, privilege=None)
    assert h100.ask("gpu_report", gpu=0, privilege=None)["memory_mib"] == 81559


def test_root_of_another_user_namespace_is_no_administrator(h100: SimMachine) -> None:
    command = ("unshare", "--user", "--map-root-user")
    require_admin()
    require_wrapper(command)
    answer = h100.start("set_mode", privilege=None, inside=command, gpu=0, mode=0).result()
    assert answer == {"error": NO_PERMISSION}


def test_processes_of_another_pid_namespace_are_left_out_not_unnamed(make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb")
    machine.simulator.add_process(0, 4711, "python3 train.py")
    machine.simulator.add_process(0, 4712, "Xorg", graphics=True)
    inside = own_pid_namespace()
    report = machine.start("gpu_report", inside=inside, gpu=0).result()
    assert (report["processes"], report["memory_v2"]) == ([], 1024 << 20), "memory tells what the list does not"
    assert machine.start("drawing", inside=inside, gpu=0).result() == []
    assert machine.start("process_name", inside=inside, pid=4711).result() == {"error": NOT_FOUND}
    assert machine.ask("gpu_report", gpu=0)["processes"] == [4711]
    assert machine.ask("drawing", gpu=0) == [4712]


def test_a_container_sees_its_own_processes(make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb")
    machine.simulator.add_process(0, 4711)
    machine.simulator.add_process(0, 12, pid_namespace=os.stat("/proc/self/ns/pid").st_ino)
    with machine.simulator.edit() as state:
        state.pid_namespace += 1  # the machine's own is another one: we are in a container
    assert machine.ask("gpu_report", gpu=0)["processes"] == [12]


def test_a_capability_file_that_can_be_opened_is_a_right(h100: SimMachine, tmp_path: Path) -> None:
    h100.ask("create", gpu=0, profile_ids=[9, 9])
    inside = without_capabilities()

    def ask(function: str, **arguments: Any) -> Any:
        return h100.start(function, privilege=None, inside=inside, gpu=0, **arguments).result()

    give(h100.simulator, tmp_path / "caps", MONITOR)
    assert ask("gpu_report")["memory_mib"] == 81559
    assert ask("compute_profiles", gpu_instance=1) != {"error": NO_PERMISSION}
    assert ask("instances") == {"error": NO_PERMISSION}
    give(h100.simulator, tmp_path / "caps", CONFIG)
    assert len(ask("instances")) == 2
    assert ask("set_mode", mode=0) == {"error": NO_PERMISSION}, "the mode is root's"
    (tmp_path / "caps" / CONFIG).chmod(0)
    assert ask("instances") == {"error": NO_PERMISSION}


def test_a_container_sees_the_mig_devices_whose_capability_files_it_has(h100: SimMachine, tmp_path: Path) -> None:
    h100.ask("create", gpu=0, profile_ids=[9, 9])
    first, second = h100.ask("mig_devices", gpu=0)
    give(h100.simulator, tmp_path / "caps", *of_device(0, second["gpu_instance"], 0))
    inside = without_capabilities()
    found = h100.start("mig_devices", privilege=None, inside=inside, gpu=0).result()
    assert [device["uuid"] for device in found] == [second["uuid"]]
    hidden = h100.start("by_uuid", privilege=None, inside=inside, uuid=first["uuid"])
    assert hidden.result() == {"error": NOT_FOUND}


def test_a_program_without_rights_sees_no_mig_device_that_came_after_it(h100: SimMachine) -> None:
    waiting = h100.start("after_a_line", privilege="none", gpu=0, then="mig_devices")
    waiting.wait_ready()
    h100.ask("create", gpu=0, profile_ids=[9])
    waiting.go_on()
    assert waiting.result() == []
    assert len(h100.ask("mig_devices", gpu=0, privilege="none")) == 1, "a container that starts now is given it"


def test_a_container_counts_the_gpus_that_it_was_given(make_machine: MakeMachine, tmp_path: Path) -> None:
    machine = make_machine("h100-80gb", "h100-80gb", "t4")
    everything = machine.ask("uuids")
    (tmp_path / "dev").mkdir()
    for minor in (1, 2):
        (tmp_path / "dev" / f"nvidia{minor}").touch()
    machine.simulator.set_machine(devices=str(tmp_path / "dev"))
    assert machine.ask("uuids") == everything[1:]
    assert machine.ask("by_uuid", uuid=everything[2]) == 1
    assert machine.ask("by_uuid", uuid=everything[0]) == {"error": NOT_FOUND}
    (tmp_path / "dev" / "nvidia2").chmod(0)
    inside = without_capabilities()
    assert machine.start("gpu_report", inside=inside, gpu=0).result()["name"] == "NVIDIA H100 80GB HBM3"
    assert machine.start("gpu_report", inside=inside, gpu=1).result() == {"error": NO_PERMISSION}


BROKEN: dict[str, tuple[Callable[[SimMachine], None], int]] = {
    "an upgrade of the driver": (
        lambda machine: machine.simulator.upgrade_driver("590.10.01"),
        LIB_RM_VERSION_MISMATCH,
    ),
    "a reload of systemd": (lambda machine: machine.simulator.take_devices_away(), UNKNOWN),
}


@pytest.mark.parametrize(("happen", "code"), BROKEN.values(), ids=BROKEN)
def test_a_program_that_ran_before_never_opens_nvml_again(
    happen: Callable[[SimMachine], None], code: int, h100: SimMachine
) -> None:
    running = h100.start("open_twice_more")
    running.wait_ready()
    happen(h100)
    running.go_on()
    assert running.result() == [{"error": code}, {"error": code}]
    assert h100.ask("gpu_report", gpu=0)["name"] == "NVIDIA H100 80GB HBM3", "one that starts now does"


def test_events_of_an_instance_are_for_those_who_may_monitor_it(h100: SimMachine) -> None:
    waiting = {
        privilege: h100.start("wait_events", privilege=privilege, gpu=0, types=0x8, count=count)
        for privilege, count in (("none", 1), ("monitor", 2))
    }
    for client in waiting.values():
        client.wait_ready()
    h100.simulator.post_event(0, 0x8, 31, gpu_instance=2)
    h100.simulator.post_event(0, 0x8, 79)
    assert waiting["none"].result() == [[0x8, 79, 0xFFFFFFFF]]
    assert [event[1] for event in waiting["monitor"].result()] == [31, 79]


def test_every_call_of_the_table_is_simulated_and_the_readme_shows_the_table() -> None:
    named = [right.function for right in rights.RIGHTS]
    assert len(named) == len(set(named))
    assert set(named) <= build.implemented_functions()
    assert rights.markdown_table() in README.read_text()
