"""What stands around NVIDIA's programs: rights of a pod (hack/nvidia/operands.py), restarts (tasks.py), the sandbox, and the table of differences, which is held by tests. All but the sandbox's tests run without the programs."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hack.cache import UnavailableError
from hack.nvidia import build
from hack.nvidia.differences import DIFFERENCES, Difference
from hack.nvidia.operands import command_around
from hack.nvidia.sandbox import SandboxError
from hack.nvidia.tasks import RestartedTask
from hack.nvmlsim.simulator import Simulator
from tests.agent.nvml_machine import in_process, needs_compiler, start
from tests.containers import require_admin, require_wrapper
from tests.nvidia.conftest import MakeSandbox


def pod(context: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {"spec": {"hostPID": True, "containers": [{"securityContext": context}], **spec}}


POWERLESS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
ADDED = {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}
RIGHTS = {
    "privileged": ({"privileged": True}, True),
    "SYS_ADMIN": (ADDED, True),
    "nothing said": (None, False),
    "everything dropped": (POWERLESS, False),
}


@needs_compiler
@pytest.mark.parametrize(("context", "told"), RIGHTS.values(), ids=RIGHTS)
def test_a_divided_gpu_shows_its_instances_to_pods_with_the_capability_only(
    context: dict[str, Any] | None, told: bool, tmp_path: Path
) -> None:
    require_admin()
    machine = Simulator.create(tmp_path / "state", ["h100-80gb"], seed="test")
    in_process(machine, "partition", "0", "3g.40gb")
    around = command_around(pod(context))
    require_wrapper(around)
    process = start(machine, "read", privilege=None, inside=around)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert ('"instances_withheld": false' in out) is told


@pytest.mark.tools
def test_without_host_pid_a_pod_has_a_pid_namespace_of_its_own() -> None:
    around = command_around(pod(hostPID=False))
    require_wrapper(around)
    inside = subprocess.run([*around, "readlink", "/proc/self/ns/pid"], capture_output=True, text=True, check=True)
    assert inside.stdout.strip() != os.readlink("/proc/self/ns/pid")
    assert command_around(pod({"privileged": True})) == ()


@dataclass
class Ending:
    """A program that ends when it is told to; until somebody cleans up after it, it is seen in /proc."""

    starts: int = 0
    running: bool = False
    seen: bool = False

    def start(self) -> None:
        self.starts += 1
        self.running = self.seen = True

    def alive(self) -> bool:
        return self.running

    def end(self) -> None:
        self.running = False

    def stop(self) -> None:
        self.running = self.seen = False

    kill = stop


def test_a_program_that_has_ended_is_not_seen_while_it_waits_for_its_next_start() -> None:
    """config-manager gives up at a process that it cannot read, and two that wait in turns would never come up."""
    program = Ending()
    container = RestartedTask(program)
    container.look()
    program.end()
    container.look()
    assert program.starts == 1, "not before the pause is over"
    assert not program.seen


PINNED = {"device-plugin": (build.DEVICE_PLUGIN.version,), "mig-parted": tuple(build.MIG_PARTED_PINS)}
"""The versions that rung 3 can play, by our folder."""


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.observed)
def test_a_difference_names_a_pinned_program_and_a_test_that_proves_it(difference: Difference) -> None:
    here = Path(__file__).parent
    tests = {name for path in here.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    pins = {program: PINNED[release.folder] for release in build.RELEASES for program in release.programs}
    assert difference.proven_by in tests
    assert difference.versions
    assert set(difference.versions) <= set(pins[difference.program])


def test_the_file_of_pins_that_stands_under_a_version_pins_that_version() -> None:
    assert [build.mig_parted(version).version for version in build.MIG_PARTED_PINS] == [*build.MIG_PARTED_PINS]
    with pytest.raises(UnavailableError, match="is not pinned"):
        build.mig_parted("v0.14.0")


def test_two_releases_of_one_folder_share_no_pins_and_our_own_program() -> None:
    new, old = (build.mig_parted(version).inputs() for version in build.MIG_PARTED_PINS)
    assert {path.name for path in {*new} & {*old}} == {"main.go"}
    assert {path.name for path in {*new} ^ {*old}} == {"go.mod", "go.sum", "go-v0.13.1.mod", "go-v0.13.1.sum"}


@pytest.mark.nvidia
@pytest.mark.parametrize("host_root", [None, "/", "/tmp/.."])
def test_mig_manager_never_gets_the_real_root(host_root: str | None, make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    extra = {} if host_root is None else {"HOST_ROOT_MOUNT": host_root}
    with pytest.raises(SandboxError, match="HOST_ROOT_MOUNT"):
        sandbox.run("nvidia-mig-manager", extra=extra)


@pytest.mark.nvidia
def test_mig_manager_takes_no_arguments_that_could_name_another_root(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    with pytest.raises(SandboxError, match="no arguments"):
        sandbox.run("nvidia-mig-manager", "-m", "/", extra={"HOST_ROOT_MOUNT": str(sandbox.folder)})


@pytest.mark.nvidia
def test_nothing_is_mounted_or_written_outside(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    assert sandbox.run("nvidia-mig-parted", "export").returncode == 0
    # Whatever it mounts is of its folder, or lies there; others may mount something meanwhile.
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    assert [mount for mount in mounts if sandbox.folder.parent.name in mount] == []
    assert list((sandbox.folder / "real-proc").iterdir()) == []
