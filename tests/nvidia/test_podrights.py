"""A pod's securityContext decides what its program may ask of NVML: hack/nvidia/operands.py."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hack.nvidia.operands import command_around
from hack.nvmlsim.simulator import Simulator
from tests.agent.nvml_machine import in_process, needs_compiler, start
from tests.containers import require_admin, require_wrapper


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
