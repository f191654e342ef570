"""MPS with the real device plugin and the real MPS control daemon (its control program is SIMULATED)."""

import signal

import pytest
from hack.nvidia.sandbox import Sandbox
from hack.nvmlsim.models import find_model
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import (
    MPS_FOLDER,
    ProgramEnded,
    gfd_labels,
    running_mps_daemon,
    set_layouts,
    start_mps_daemon,
    start_mps_plugin,
)
from tests.nvidia.targets import Setting, labels_as_predicted, mps, plan, refusal

from gpusharing.api.names import LABEL_GPU_PRODUCT
from gpusharing.planning.vocabulary.reasons import Reason

pytestmark = pytest.mark.nvidia

DEFAULT, EXCLUSIVE_PROCESS = 0, 3

SETTINGS = (
    Setting("renamed", "a30", mps(3, rename=True), {"nvidia.com/gpu.shared": 6}),
    Setting("as many as Volta takes", "v100-16gb", mps(16), {"nvidia.com/gpu": 32}),
    Setting("as many as Turing takes", "t4", mps(48), {"nvidia.com/gpu": 96}),
)


def config(replicas: int, strategy: str = "none") -> str:
    return (
        f"version: v1\nflags: {{migStrategy: {strategy}}}\n"
        f"sharing: {{mps: {{resources: [{{name: nvidia.com/gpu, replicas: {replicas}}}]}}}}\n"
    )


def compute_modes(sandbox: Sandbox) -> list[int]:
    return [gpu["compute_mode"] for gpu in sandbox.simulator.show()["gpus"]]


def test_mps_offers_equal_shares_and_makes_the_gpus_exclusive_until_it_stops(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb", "h100-80gb")
    with running_mps_daemon(sandbox, config(4)):
        assert compute_modes(sandbox) == [EXCLUSIVE_PROCESS, EXCLUSIVE_PROCESS]
        assert start_mps_plugin(sandbox, config(4)).resources(1) == {"nvidia.com/gpu": 8}
        pipe = sandbox.folder / "added" / MPS_FOLDER / "nvidia.com" / "gpu" / "pipe"
        told = (pipe / "control").read_text()
    assert "set_default_device_pinned_mem_limit 0 20389M" in told
    assert "set_default_active_thread_percentage 25" in told
    assert compute_modes(sandbox) == [DEFAULT, DEFAULT]
    labels = gfd_labels(sandbox, config(4))
    assert labels["nvidia.com/mps.capable"] == "true"
    assert labels["nvidia.com/gpu.sharing-strategy"] == "mps"
    assert labels["nvidia.com/gpu.replicas"] == "4"
    assert labels[LABEL_GPU_PRODUCT] == "NVIDIA-H100-80GB-HBM3-SHARED"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.text)
def test_mps_is_served_and_labelled_exactly_as_predicted(setting: Setting, make_sandbox: MakeSandbox) -> None:
    target, text, case = plan(setting)
    sandbox = make_sandbox(setting.model, setting.model)
    with running_mps_daemon(sandbox, text):
        assert target.resources == setting.resources
        assert start_mps_plugin(sandbox, text).resources(1) == setting.resources
    labels = gfd_labels(sandbox, text)
    labels_as_predicted(labels, case)


def test_nvidias_mps_daemon_leaves_the_gpus_exclusive_when_it_is_killed(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    with running_mps_daemon(sandbox, config(4)) as daemon:
        daemon.stop(signal.SIGKILL)
        assert compute_modes(sandbox) == [EXCLUSIVE_PROCESS]


def test_without_its_daemon_nvidias_plugin_waits_and_serves_nothing(make_sandbox: MakeSandbox) -> None:
    plugin = start_mps_plugin(make_sandbox("h100-80gb"), config(4))
    plugin.plugin.wait_for_log("Failed to start plugin")
    assert plugin.counts() == {}
    plugin.stop()


@pytest.mark.parametrize("model", ["h100-80gb", "t4", "v100-16gb"])
def test_nvidias_mps_daemon_takes_as_many_replicas_as_we_say_and_not_one_more(
    model: str, make_sandbox: MakeSandbox
) -> None:
    sandbox, most = make_sandbox(model), find_model(model).mps_max_clients
    assert plan(Setting("most", model, mps(most)))[0].resources == {"nvidia.com/gpu": 2 * most}
    assert refusal(Setting("one more", model, mps(most + 1))).reason is Reason.MPS_TOO_MANY_CLIENTS
    with running_mps_daemon(sandbox, config(most)):
        assert compute_modes(sandbox) == [EXCLUSIVE_PROCESS]
    refused = start_mps_daemon(sandbox, config(most + 1))
    with pytest.raises(ProgramEnded, match=f"maximum allowed replicas exceeded: {most + 1} > {most}"):
        refused.wait(lambda: False)


def test_nvidias_plugin_refuses_mps_with_mig(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    set_layouts(sandbox, (("1g.10gb", 7),))
    with pytest.raises(ProgramEnded, match="mixed is not supported with MPS"):
        start_mps_plugin(sandbox, config(4, "mixed")).resources(1)
    with pytest.raises(ProgramEnded, match="sharing using MPS is not supported for MIG devices"):
        start_mps_plugin(sandbox, config(4, "single")).resources(1)


def test_gfd_ends_without_labels_when_mps_meets_a_gpu_with_mig(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb", "h100-80gb")
    set_layouts(sandbox, (("1g.10gb", 7),), None)
    with pytest.raises(ProgramEnded, match="MPS sharing is not supported for mig devices"):
        gfd_labels(sandbox, config(4))
    assert not (sandbox.folder / "labels").exists()
