"""hack/realnode/runtime.py: a container's process computes on its GPUs as long as it lives, and no longer."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster.process import wait_until
from hack.nvmlsim.simulator import Simulator
from hack.realnode import runtime

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers of a real node are Linux processes")
SECONDS = 120.0


@pytest.fixture
def simulator(tmp_path: Path) -> Simulator:
    """A machine with two GPUs, in the folder of a node; a bundle lies beside it."""
    (tmp_path / "bundle").mkdir()
    return Simulator.create(runtime.state_file(tmp_path), ["h100-80gb", "h100-80gb"])


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "600"]) as started:
        yield started
        started.kill()


def begin(tmp_path: Path, pid: int, computes_on: list[tuple[int, tuple[int, int] | None]], *, mps: bool = False) -> int:
    (tmp_path / "bundle" / runtime.COMPUTES_ON).write_text(json.dumps({"on": computes_on, "mps": mps}))
    state = {"pid": pid, "bundle": str(tmp_path / "bundle"), "annotations": {runtime.POD_ANNOTATION: "pod"}}
    hook = [sys.executable, "-m", "hack.realnode.runtime", "began", str(tmp_path)]
    return subprocess.run(hook, input=json.dumps(state), text=True, check=False, capture_output=True).returncode


def pids(simulator: Simulator) -> list[int]:
    return [int(one["pid"]) for one in simulator.show()["processes"]]


@pytest.mark.parametrize("arguments", [["create"], ["create", "--bundle"]])
def test_a_call_without_a_bundle_is_refused_in_words(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="called without a value of --bundle"):
        runtime.main(["prepare", str(tmp_path), *arguments])


def test_the_driver_lets_go_when_the_process_ends_though_no_hook_tells_it(
    simulator: Simulator, tmp_path: Path, process: "subprocess.Popen[bytes]"
) -> None:
    assert begin(tmp_path, process.pid, [(0, None), (1, (2, 0))]) == 0
    assert pids(simulator) == [process.pid] * 2
    process.kill()
    wait_until(lambda: not pids(simulator), SECONDS, "the records to go")


def test_a_process_that_has_ended_before_computes_on_nothing(
    simulator: Simulator, tmp_path: Path, process: "subprocess.Popen[bytes]"
) -> None:
    process.kill()
    process.wait()
    assert begin(tmp_path, process.pid, [(0, None)]) != 0
    assert pids(simulator) == []


def test_a_container_is_not_made_when_the_driver_knows_no_such_gpu(
    simulator: Simulator, tmp_path: Path, process: "subprocess.Popen[bytes]"
) -> None:
    assert begin(tmp_path, process.pid, [(0, None), (7, None)]) != 0
    assert pids(simulator) == []


def test_a_container_without_a_named_device_computes_on_nothing(
    simulator: Simulator, tmp_path: Path, process: "subprocess.Popen[bytes]"
) -> None:
    assert begin(tmp_path, process.pid, []) == 0
    assert pids(simulator) == []


def test_a_gpu_in_exclusive_mode_takes_a_second_process_by_mps_alone(
    simulator: Simulator, tmp_path: Path, process: "subprocess.Popen[bytes]"
) -> None:
    simulator.set_gpu(0, compute_mode=runtime.EXCLUSIVE_PROCESS)
    simulator.add_process(0, 1)
    assert begin(tmp_path, process.pid, [(0, None), (1, None)]) == 0
    assert [(one["gpu"], one["pid"], one["mps"]) for one in simulator.show()["processes"]] == [
        (0, 1, False),
        (1, process.pid, False),
    ]
    assert begin(tmp_path, process.pid, [(0, None)], mps=True) == 0
    assert (0, process.pid, True) in [(one["gpu"], one["pid"], one["mps"]) for one in simulator.show()["processes"]]
