"""mig-parted where it is not about geometry: several GPUs, what is in use, pending modes, failures midway."""

import pytest
from hack.nvidia import build
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import MigParted, entry_for

from gpusharing.kube.actuatorlogs import failure_in

pytestmark = pytest.mark.nvidia


def test_nvidias_mig_parted_stops_at_an_instance_in_use_after_its_neighbor_is_gone(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    parted = MigParted(sandbox, {"halves": entry_for((("3g.40gb", 2),)), "seven": entry_for((("1g.10gb", 7),))})
    parted.apply("halves")
    created_last = 1  # the id of the lower half: the driver takes the upper one first
    sandbox.simulator.add_process(0, 4711, "python3", gpu_instance=created_last, compute_instance=0)
    refused = parted.apply("seven")
    assert refused.status == 1
    assert "all orderings failed" in refused.last_line, "the sum, not the cause"
    assert "ERROR_IN_USE" in refused.output
    assert [instance["id"] for instance in sandbox.simulator.show()["gpus"][0]["instances"]] == [created_last]
    sandbox.simulator.remove_process(4711)
    assert parted.apply("seven").status == 0


def test_amperes_pending_mode_is_applied_by_resetting_all_gpus(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("a100-40gb", "a100-40gb")
    sandbox.simulator.set_gpu(None, explicit_reset=1)
    parted = MigParted(sandbox, {"all-balanced": entry_for((("3g.20gb", 1), ("2g.10gb", 1), ("1g.5gb", 2)))})
    assert parted.apply("all-balanced").status == 0
    assert parted.check("all-balanced").status == 0
    sandbox.simulator.set_gpu(None, explicit_reset=0, mig_current=0, mig_pending=0)
    for gpu in (0, 1):
        sandbox.simulator.set_gpu(gpu, passthrough=1)
    failed = parted.apply("all-balanced")
    assert failed.status == 1
    assert "error resetting all GPUs" in failed.last_line


def test_a_held_hopper_is_not_changed_and_the_failure_is_told(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    sandbox.simulator.set_gpu(0, busy=1)
    parted = MigParted(sandbox, {"seven": entry_for((("1g.10gb", 7),))})
    failed = parted.apply("seven")
    assert failed.status == 1
    assert "unable to apply MIG config with MIG mode disabled" in failed.last_line
    assert sandbox.simulator.show()["gpus"][0]["mig"] == {"current": False, "pending": False}


def test_nvidias_mig_parted_leaves_the_gpu_on_and_empty_when_a_create_fails_midway(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    sandbox.simulator.inject("nvmlDeviceCreateGpuInstance", "UNKNOWN", skip=3)
    parted = MigParted(sandbox, {"seven": entry_for((("1g.10gb", 7),))})
    assert parted.apply("seven").status == 1
    gpu = sandbox.simulator.show()["gpus"][0]
    assert (gpu["mig"]["current"], gpu["instances"]) == (True, [])


def test_go_nvlib_warns_of_each_gpu_from_v0_15_on_and_the_reason_of_a_failure_is_found_all_the_same(
    make_sandbox: MakeSandbox,
) -> None:
    parted = MigParted(make_sandbox("h100-80gb"), {"too-full": entry_for((("3g.40gb", 2), ("1g.10gb", 1)))})
    failed = parted.apply("too-full")
    warnings = [line for line in failed.output.splitlines() if "WARNING" in line]
    assert {"unable to detect IOMMU FD" in line for line in warnings} == (
        set() if build.MIG_PARTED.version == "v0.13.1" else {True}
    )
    assert "ERROR_INSUFFICIENT_RESOURCES; Error applying" in failure_in(failed.output)
