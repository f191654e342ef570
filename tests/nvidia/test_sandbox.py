"""What the sandbox refuses, and that nothing outside it changes."""

from pathlib import Path

import pytest
from hack.nvidia.sandbox import SandboxError
from tests.nvidia.conftest import MakeSandbox

pytestmark = pytest.mark.nvidia


@pytest.mark.parametrize("host_root", [None, "/", "/tmp/.."])
def test_mig_manager_never_gets_the_real_root(host_root: str | None, make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    extra = {} if host_root is None else {"HOST_ROOT_MOUNT": host_root}
    with pytest.raises(SandboxError, match="HOST_ROOT_MOUNT"):
        sandbox.run("nvidia-mig-manager", extra=extra)


def test_mig_manager_takes_no_arguments_that_could_name_another_root(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    with pytest.raises(SandboxError, match="no arguments"):
        sandbox.run("nvidia-mig-manager", "-m", "/", extra={"HOST_ROOT_MOUNT": str(sandbox.folder)})


def test_nothing_is_mounted_or_written_outside(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    assert sandbox.run("nvidia-mig-parted", "export").returncode == 0
    # Whatever it mounts is of its folder, or lies there; others may mount something meanwhile.
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    assert [mount for mount in mounts if sandbox.folder.parent.name in mount] == []
    assert list((sandbox.folder / "real-proc").iterdir()) == []
