"""The agent's reader in containers with more and fewer rights, as real ones of the process; NVML is SIMULATED."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hack.nvmlsim.simulator import Simulator
from tests.agent.nvml_machine import Agent, finish, in_process, needs_compiler, read, start
from tests.containers import own_pid_namespace, require_admin, without_capabilities

pytestmark = needs_compiler

UNKNOWN_PROCESS = {"pid": 0, "name": "", "device": ""}


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


GONE: dict[str, tuple[Callable[[Simulator], None], str]] = {
    "an upgrade of the driver": (lambda machine: machine.upgrade_driver("590.10.01"), "NVMLReplaced: "),
    "a reload of systemd": (lambda machine: machine.take_devices_away(), "NVMLAccessLost: "),
}


@pytest.mark.parametrize(("happen", "error"), GONE.values(), ids=GONE)
def test_only_a_new_agent_reads_after(happen: Callable[[Simulator], None], error: str, machine: Simulator) -> None:
    with Agent(machine) as old:
        assert len(old.gpus()) == 2
        happen(machine)
        for _ in range(3):
            assert old.ask("read")["error"].startswith(error)
        assert len(read(machine)["gpus"]) == 2


@pytest.mark.parametrize("error", ["UNKNOWN", "IRQ_ISSUE", "INSUFFICIENT_POWER"])
def test_a_gpu_whose_handle_is_refused_is_told_and_the_other_is_read(error: str, machine: Simulator) -> None:
    machine.inject("nvmlDeviceGetHandleByIndex", error, gpu=0)
    failed, healthy = read(machine)["gpus"]
    assert (failed["index"], failed["access"]) == (0, "Failed")
    assert (healthy["index"], healthy["access"], healthy["mig_mode"]) == (1, "Ok", "Disabled")


def test_clients_that_draw_hold_a_gpu(machine: Simulator) -> None:
    machine.add_process(1, 4_000_002, "Xorg", graphics=True)
    idle, busy = read(machine)["gpus"]
    assert (idle["processes"], [p["pid"] for p in busy["processes"]]) == ([], [4_000_002])
