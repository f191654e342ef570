"""What the simulated machine refuses, with the choice that there is. And which of its C files call which."""

import re
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from hack.nvmlsim import build
from hack.nvmlsim.models import UnknownModelError
from hack.nvmlsim.simulator import Simulator, SimulatorError

Attempt = Callable[[Simulator], object]


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda machine: Simulator.create(machine.path, ["b100"]), "'b100' names no card: choose from a30, "),
        (lambda machine: Simulator.create(machine.path, ["a100"]), "several cards: choose from a100-40gb, a100-80gb"),
        (lambda machine: Simulator.create(machine.path, ["t4"] * 17), "has 1 to 16 GPUs, not 17"),
        (lambda machine: Simulator.create(machine.path, ["t4"], driver="5" * 80), "has 80 bytes, .* room for 79"),
        (lambda machine: machine.set_gpu(None, lots=1), "there is no field 'lots' to set: choose from"),
        (lambda machine: machine.set_profile(None, "1g.99gb", id=3), "NVIDIA H100 80GB HBM3 has no profile 1g.99gb"),
        (lambda machine: machine.find_gpus(["0000:ff:00.0"]), "no GPU 0000:ff:00.0: the machine has 0, 0000:17:00.0"),
        (lambda machine: machine.add_process(3, 1), "there is no GPU 3: the machine has 1 GPU, from 0 on"),
        (lambda machine: machine.add_process(0, 1, "n" * 96), "n… has 96 bytes, the file has room for 95"),
        (lambda machine: machine.set_machine(devices="/" * 256), "has 256 bytes, the file has room for 255"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_choice(attempt: Attempt, message: str, tmp_path: Path) -> None:
    machine = Simulator.create(tmp_path / "machine", ["h100-80gb"])
    with pytest.raises((SimulatorError, UnknownModelError), match=message):
        attempt(machine)


def test_fields_faults_processes_and_a_reboot_reach_the_machine(tmp_path: Path) -> None:
    machine = Simulator.create(tmp_path / "machine", ["a100-40gb", "t4"])
    machine.set_gpu(0, lost=1, mig_pending=1)
    machine.inject("nvmlDeviceGetHandleByIndex", "IRQ_ISSUE", gpu=0)
    machine.add_process(1, 7, "python", graphics=True, pid_namespace=4026531836)
    shown = machine.show()
    assert [gpu["name"] for gpu in shown["gpus"]] == ["NVIDIA A100-SXM4-40GB", "Tesla T4"]
    assert [gpu["lost"] for gpu in shown["gpus"]] == [True, False]
    assert shown["faults"][0]["fault"] == "IRQ_ISSUE"
    assert shown["processes"][0].items() >= {"pid": 7, "graphics": True, "pid_namespace": 4026531836}.items()
    with pytest.raises(SimulatorError, match="GPU 1 is in use"):
        machine.reset([0, 1])
    machine.remove_process(7)
    machine.clear_faults()
    machine.reboot()
    shown = machine.show()
    assert shown["gpus"][0]["mig"] == {"current": True, "pending": True}
    assert (shown["faults"], shown["processes"]) == ([], [])


SHARED = re.compile(r"^(?!typedef|struct \w+ \{).*?\b(\w+)(?:\[.*\])?(?:\(.*\))?;", re.M)


def test_no_c_file_needs_a_file_that_needs_it() -> None:
    names = {m[1] for m in SHARED.finditer((build.SOURCE / "sim.h").read_text()) if not m[0].startswith(" ")}
    texts = {path.name: re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S) for path in build.SOURCE.glob("*.c")}
    home = {
        name: file
        for name in names
        for file, text in texts.items()
        if re.search(rf"^(?!static)\w.*\b{name}(\(.*\)\n\{{|\[.*\] =)", text, re.M)
    }
    needs = {file: {home[n] for n in home if re.search(rf"\b{n}\b", text)} - {file} for file, text in texts.items()}
    order = list(TopologicalSorter(needs).static_order())
    assert order.index("machine.c") < order.index("bounds.c") < order.index("state.c") < order.index("call.c")
    assert set(home) == names - {"call"}
