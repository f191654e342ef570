"""The state file may hold anything, and the library neither crashes on it nor believes it; with ASan and UBSan."""

import ctypes
import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hack.compiler import need_compiler
from hack.nvmlsim import build, layout
from hack.nvmlsim.simulator import SimulatorError
from hack.required import require
from tests.nvmlsim.conftest import MakeMachine
from tests.nvmlsim.machine import SimMachine

pytestmark = pytest.mark.tools

DRIVER_NOT_LOADED, UNKNOWN = 9, 999
ALL_ONES = 0xFFFFFFFF


def why_no_sanitizers() -> str:
    """Empty when the compiler can build, and this Python can load, a library with ASan and UBSan."""
    program = need_compiler("the checked NVML simulator")
    runtimes = build.sanitizer_runtimes()
    if not runtimes:
        return f"{program} has no {' or '.join(build.SANITIZER_RUNTIMES)}: install libasan and libubsan"
    preload = os.pathsep.join(map(str, runtimes))
    environ = {**os.environ, "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([sys.executable, "-c", ""], env=environ, capture_output=True, text=True, check=False)
    return f"Python does not start with {preload}: {done.stderr.strip()}" if done.returncode else ""


@pytest.fixture(scope="session")
def sanitizers() -> None:
    """A compiler and a Python that can check the C simulator with ASan and UBSan."""
    require("sanitizers", why_no_sanitizers())


def checked(machine: SimMachine, function: str, **arguments: Any) -> Any:
    """Call a function of client.py on the sanitized library, which ends the program at the first bad access."""
    return machine.start(function, sanitized=True, **arguments).result()


def test_a_life_cycle_is_clean(sanitizers: None, make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb", "a30", "t4")
    for gpu, filling in ((0, {"profile_ids": [9, 9]}), (1, {"profile_ids": [14, 14]})):
        machine.simulator.set_gpu(gpu, mig_current=1, mig_pending=1)
        checked(machine, "create", gpu=gpu, **filling)
        assert len(checked(machine, "mig_devices", gpu=gpu)) == 2
        assert checked(machine, "compute_profiles", gpu=gpu, gpu_instance=checked(machine, "instances", gpu=gpu)[0][0])
    machine.simulator.add_process(0, 4711, "python3")
    machine.simulator.post_event(2, 8, 79)
    for gpu in range(3):
        assert checked(machine, "gpu_report", gpu=gpu)["name"]
    checked(machine, "destroy_all", gpu=0)
    machine.simulator.remove_process(4711)
    assert checked(machine, "set_mode", gpu=0, mode=0)["current"] == 0
    assert checked(machine, "wait_in_vain", milliseconds=50) < 20


def test_the_sanitizers_see_an_access_beyond_the_end(sanitizers: None, make_machine: MakeMachine) -> None:
    """Else the tests above could not fail."""
    client = make_machine("t4").start("read_beyond_the_end", sanitized=True)
    _, errors = client.process.communicate(timeout=60)
    assert client.process.returncode != 0
    assert "AddressSanitizer" in errors


def wild_gpu(gpu: layout.SimGpu) -> None:
    for profile in gpu.profiles:
        profile.slices = profile.size = profile.start_count = profile.instance_count = ALL_ONES
        profile.name = b"x" * layout.NAME
    gpu.units = 3


def wild_instances(gpu: layout.SimGpu) -> None:
    for instance in gpu.instances:
        instance.used, instance.profile, instance.start = 1, 17, ALL_ONES
        for compute in instance.compute:
            compute.used, compute.slices, compute.mig_index = 1, 5, ALL_ONES


def wild_compute(gpu: layout.SimGpu) -> None:
    instance = gpu.instances[0]
    instance.used, instance.profile, instance.start = 1, 0, 0
    for number, compute in enumerate(instance.compute):
        compute.used, compute.slices, compute.start = 1, number, ALL_ONES
        compute.uuid = b"y" * layout.TEXT


def wild_names(gpu: layout.SimGpu) -> None:
    gpu.name, gpu.uuid = b"n" * layout.NAME, b"u" * layout.TEXT


def wild_counts(state: layout.SimState) -> None:
    state.gpu_count = state.fault_count = state.gpus[0].profile_count = ALL_ONES
    state.gpus[0].max_mig_devices = ALL_ONES


def no_sizes(gpu: layout.SimGpu) -> None:
    gpu.units = 0
    for profile in gpu.profiles:
        profile.slices = profile.size = 0


def wild_texts(state: layout.SimState) -> None:
    state.driver_version = b"5" * layout.TEXT
    state.capabilities = state.devices = b"/" * layout.PATH
    for process in state.processes:
        process.used, process.pid, process.name = 1, 1, b"p" * layout.NAME
    for fault in state.faults:
        fault.kind, fault.function = 1, b"nvmlDeviceGetX" * 5


DAMAGE: dict[str, Callable[[layout.SimState], None]] = {
    "counts beyond every bound": wild_counts,
    "profiles without an end": lambda state: wild_gpu(state.gpus[0]),
    "profiles without a size": lambda state: no_sizes(state.gpus[0]),
    "instances of no profile": lambda state: wild_instances(state.gpus[0]),
    "compute instances that fit nowhere": lambda state: wild_compute(state.gpus[0]),
    "names without an end": lambda state: wild_names(state.gpus[0]),
    "texts without an end": wild_texts,
}
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gpu_report", {}), ("profiles", {}), ("instances", {}), ("mig_devices", {}), ("create", {"profile_ids": [19, 9]}),
    ("destroy_all", {}), ("set_mode", {"mode": 0}),
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_clamped_and_not_believed(
    sanitizers: None, damage: Callable[[layout.SimState], None], h100: SimMachine
) -> None:
    with h100.simulator.edit() as state:
        damage(state)
    asked = [checked(h100, "all_of", calls=CALLS)]
    assert len(asked[0]) == len(CALLS)
    with h100.simulator.edit() as state:
        assert state.gpu_count <= layout.MAX_GPUS
        assert all(profile.start_count <= layout.MAX_STARTS for profile in state.gpus[0].profiles[:1])


def test_noise_in_the_file_ends_no_program(sanitizers: None, h100: SimMachine) -> None:
    noise = random.Random("nvmlsim")
    begin = layout.SimState.driver_version.offset
    for _ in range(6):
        with h100.simulator.edit() as state:
            size = ctypes.sizeof(state) - begin
            ctypes.memmove(ctypes.addressof(state) + begin, noise.randbytes(size), size)
            state.driver_loaded, state.fault_count = 1, 0
            state.capabilities = state.devices = b""
        assert len(checked(h100, "all_of", calls=CALLS)) == len(CALLS)


def test_a_lock_that_fails_is_an_error(h100: SimMachine) -> None:
    answers = h100.ask("without_files", gpu=0)
    assert answers == {"name": {"error": UNKNOWN}, "end": {"error": UNKNOWN}}


def test_a_file_that_was_cut_short_is_an_error_and_ends_no_program(h100: SimMachine) -> None:
    waiting = h100.start("after_a_line", gpu=0)
    waiting.wait_ready()
    os.truncate(h100.simulator.path, 4096)
    waiting.go_on()
    assert waiting.result() == {"error": UNKNOWN}


def test_a_file_of_the_same_size_and_another_layout_is_refused(h100: SimMachine) -> None:
    with h100.simulator.edit() as state:
        state.layout_hash ^= 1
    assert h100.ask("gpu_report", gpu=0) == {"error": DRIVER_NOT_LOADED}
    with pytest.raises(SimulatorError, match="create it"):
        h100.simulator.show()


def test_the_hash_covers_every_field_and_every_bound() -> None:
    lines = "\n".join(layout.declarations())
    for _, kind in layout.STRUCTURES:
        assert all(f" {field[0]}" in lines for field in kind._fields_), kind
    assert all(f"SIM_{name} " in lines for name in layout.CONSTANTS)
    assert f"0x{layout.layout_hash():016X}" in layout.c_header()


def test_the_library_counts_its_calls_and_its_own_cpu_time(make_machine: MakeMachine) -> None:
    machine = make_machine("h100-80gb")
    assert machine.simulator.library_calls()[0] == 0
    machine.ask("gpu_report", gpu=0)
    calls, milliseconds = machine.simulator.library_calls()
    assert calls > 10
    assert 0 < milliseconds / calls < 1, "some microseconds each"
