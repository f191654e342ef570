"""Device plugin and GFD: each configuration we render loads, and serves and labels exactly what we predict."""

import signal
from collections.abc import Mapping
from typing import Any

import pytest
from hack.nvidia.sandbox import Sandbox
from hack.nvmlsim.models import find_model
from hack.nvmlsim.simulator import EVENT_XID
from hack.sim.plugin import PluginError
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import (
    MPS_FOLDER,
    DevicePluginProgram,
    ProgramEnded,
    gfd_labels,
    running_mps_daemon,
    served,
    served_in,
    set_layouts,
    start_mps_daemon,
    start_mps_plugin,
)
from tests.nvidia.standins import (
    Setting,
    check_gfd,
    check_plugin,
    labels_as_predicted,
    mig,
    mps,
    plan,
    refusal,
    slices,
    slicing,
)

from gpusharing.api.names import LABEL_GPU_COUNT, LABEL_GPU_PRODUCT
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted import pluginconfig
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing
from gpusharing.planning.wanted.target import counts_without_suffixes, predict_resources

pytestmark = pytest.mark.nvidia

XID_FALLEN_OFF_THE_BUS = 79
SEVEN: Layout = (("1g.10gb", 7),)


SETTINGS = (
    Setting("time-slicing renamed", "h100-80gb", slicing(4, rename=True), {"nvidia.com/gpu.shared": 8}),
    Setting("time-slicing without MIG", "v100-16gb", slicing(2), {"nvidia.com/gpu": 4}),
    Setting("single on A30", "a30", mig("single", {"2g.12gb": 2}), {"nvidia.com/gpu": 4}),
    Setting("mixed, one profile", "a100-40gb", mig("mixed", {"3g.20gb": 2}), {"nvidia.com/mig-3g.20gb": 4}),
    Setting(
        "mixed, one GPU whole",
        "h100-80gb",
        mig("mixed", {"1g.20gb": 4}, {}),
        {"nvidia.com/mig-1g.20gb": 4, "nvidia.com/gpu": 1},
    ),
    Setting(
        "mixed, media engines", "h100-80gb", mig("mixed", {"1g.10gb": 6, "1g.10gb+me": 1}),
        {"nvidia.com/mig-1g.10gb": 14},
    ),
    Setting(
        "mixed, all kinds of RTX PRO",
        "rtx-pro-6000-blackwell",
        mig("mixed", {"2g.48gb+gfx": 1, "1g.24gb+gfx": 1, "1g.24gb-me": 1}),
        {"nvidia.com/mig-2g.48gb": 2, "nvidia.com/mig-1g.24gb": 4},
    ),
    Setting("single and time-slicing", "h100-80gb", mig("single", {"1g.10gb": 7}) | slices(2), {"nvidia.com/gpu": 28}),
    Setting(
        "single and time-slicing, renamed", "a30", mig("single", {"1g.6gb": 4}) | slices(2, rename=True),
        {"nvidia.com/gpu.shared": 16},
    ),
    Setting(
        "mixed and time-slicing, renamed", "a100-80gb", mig("mixed", {"3g.40gb": 2}) | slices(2, rename=True),
        {"nvidia.com/mig-3g.40gb.shared": 8},
    ),
    Setting(
        "mixed and time-slicing, the last GPU whole", "h100-80gb", mig("mixed", {"1g.20gb": 4}, {}) | slices(2),
        {"nvidia.com/mig-1g.20gb": 8, "nvidia.com/gpu": 2},
    ),
    Setting(
        "mixed and time-slicing, the first GPU whole", "h100-80gb", mig("mixed", {}, {"1g.20gb": 4}) | slices(2),
        {"nvidia.com/mig-1g.20gb": 8, "nvidia.com/gpu": 2},
    ),
    Setting("MPS renamed", "a30", mps(3, rename=True), {"nvidia.com/gpu.shared": 6}),
    Setting("MPS for as many as Volta takes", "v100-16gb", mps(16), {"nvidia.com/gpu": 32}),
    Setting("MPS for as many as Turing takes", "t4", mps(48), {"nvidia.com/gpu": 96}),
)  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.text)
def test_a_mode_is_served_and_labelled_exactly_as_predicted(setting: Setting, make_sandbox: MakeSandbox) -> None:
    target, config, case = plan(setting)
    sandbox = make_sandbox(setting.model, setting.model)
    set_layouts(sandbox, *target.layouts)
    assert counts_without_suffixes(target.resources) == setting.resources
    assert served_in(sandbox, target.mode, config, len(setting.resources)) == setting.resources
    check_plugin(setting.model, target.layouts, config, setting.resources)
    labels = gfd_labels(sandbox, config)
    labels_as_predicted(labels, case)
    check_gfd([setting.model] * 2, target.layouts, config, [labels])
    assert labels["nvidia.com/mig.capable"] == str(bool(find_model(setting.model).profiles)).lower()


def test_time_slicing_on_top_of_mig_multiplies_the_named_profiles(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb", "h100-80gb")
    layout = (("3g.40gb", 1), ("2g.20gb", 1), ("1g.10gb", 2))
    set_layouts(sandbox, layout, layout)
    replicas = (("nvidia.com/mig-1g.10gb", 2), ("nvidia.com/mig-3g.40gb", 3))
    plugin = PluginConfig("mixed", Sharing(replicas))
    expected = {"nvidia.com/mig-3g.40gb": 6, "nvidia.com/mig-2g.20gb": 2, "nvidia.com/mig-1g.10gb": 8}
    assert predict_resources([layout, layout], plugin) == expected
    assert served(sandbox, pluginconfig.render(plugin), 3) == expected
    labels = gfd_labels(sandbox, pluginconfig.render(plugin))
    assert labels["nvidia.com/mig-1g.10gb.replicas"] == "2"
    assert labels["nvidia.com/mig-1g.10gb.sharing-strategy"] == "time-slicing"
    assert labels["nvidia.com/mig-1g.10gb.product"] == "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb-SHARED"
    assert labels["nvidia.com/mig-2g.20gb.replicas"] == "1"


def test_mig_on_with_strategy_none_still_offers_the_whole_gpus(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb", "h100-80gb")
    set_layouts(sandbox, SEVEN, SEVEN)
    config = pluginconfig.render(PluginConfig())
    assert served(sandbox, config, 1) == {"nvidia.com/gpu": 2}
    labels = gfd_labels(sandbox, config)
    assert (labels["nvidia.com/gpu.count"], labels["nvidia.com/gpu.replicas"]) == ("2", "0")
    assert "nvidia.com/mig.strategy" not in labels
    check_gfd(["h100-80gb"] * 2, [SEVEN] * 2, config, [labels])


def test_with_mixed_gfd_counts_gpus_that_have_mig_on_too(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb", "h100-80gb")
    set_layouts(sandbox, SEVEN, None)
    labels = gfd_labels(sandbox, pluginconfig.render(PluginConfig("mixed")))
    assert (labels["nvidia.com/gpu.count"], labels["nvidia.com/gpu.replicas"]) == ("2", "1")
    assert labels["nvidia.com/mig-1g.10gb.count"] == "7"
    check_gfd(["h100-80gb"] * 2, [SEVEN, None], pluginconfig.render(PluginConfig("mixed")), [labels])


INVALID_FOR_SINGLE = (
    pytest.param(((("3g.40gb", 1), ("1g.10gb", 4)), SEVEN), "more than one MIG device type", id="unequal instances"),
    pytest.param((SEVEN, None), "same migEnabled value", id="one GPU whole"),
    pytest.param((SEVEN, ()), "device 1 has no MIG devices configured", id="one GPU with MIG on and empty"),
)  # fmt: skip


@pytest.mark.parametrize(("layouts", "said"), INVALID_FOR_SINGLE)
def test_single_on_what_is_not_one_kind_ends_the_plugin_and_gfd_says_invalid_so_we_refuse_it(
    layouts: tuple[Layout | None, ...], said: str, make_sandbox: MakeSandbox
) -> None:
    spec = mig("single", *(dict(layout or ()) for layout in layouts))
    assert refusal(Setting("single", "h100-80gb", spec)).reason is Reason.LAYOUT_NOT_UNIFORM
    sandbox = make_sandbox("h100-80gb", "h100-80gb")
    set_layouts(sandbox, *layouts)
    config = pluginconfig.render(PluginConfig("single"))
    with pytest.raises(ProgramEnded, match=said):
        served(sandbox, config, 1)
    with pytest.raises(PluginError, match=said):
        check_plugin("h100-80gb", layouts, config, {})
    labels = gfd_labels(sandbox, config)
    check_gfd(["h100-80gb"] * 2, layouts, config, [labels])
    assert labels[LABEL_GPU_PRODUCT] == "NVIDIA-H100-80GB-HBM3-MIG-INVALID"
    assert (labels["nvidia.com/gpu.count"], labels["nvidia.com/gpu.replicas"]) == ("0", "0")


def test_a_gpu_that_fell_off_the_bus_is_no_longer_healthy(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb", "h100-80gb")
    plugin = DevicePluginProgram(sandbox, pluginconfig.render(PluginConfig()))
    plugin.wait_for("nvidia.com/gpu", 2)
    plugin.plugin.wait_for_log("Registered device plugin")

    def noticed() -> bool:  # the plugin listens a moment after it has registered: an event before that is nobody's
        sandbox.simulator.post_event(1, EVENT_XID, XID_FALLEN_OFF_THE_BUS)
        return plugin.counts().get("nvidia.com/gpu") == 1

    plugin.plugin.wait(noticed)
    plugin.stop()


# --- two card models: GFD writes the labels of one of them, and any of its answers is proof to us --------------

MODELS = ("h100-80gb", "a30", "h100-80gb")
RUNS = 300
"""Go walks a small map from any of its eight slots on (1.24, internal/runtime/maps/table.go, Iter.Init), so the second of two models comes first once in eight times: both have come up after so many, but for once in 10^17."""


def all_answers(sandbox: Sandbox, config: str, kinds: int) -> list[Mapping[str, str]]:
    found: dict[str, Mapping[str, str]] = {}
    for _ in range(RUNS):
        if len(found) < kinds:
            labels = gfd_labels(sandbox, config)
            found[labels[LABEL_GPU_PRODUCT]] = labels
    return list(found.values())


MODES: dict[str, tuple[dict[str, Any], dict[str, int], set[tuple[str, str]]]] = {
    "whole": ({"mode": "Full"}, {"nvidia.com/gpu": 3}, {("NVIDIA-H100-80GB-HBM3", "2"), ("NVIDIA-A30", "1")}),
    "time-slicing": (
        slicing(2),
        {"nvidia.com/gpu": 6},
        {("NVIDIA-H100-80GB-HBM3-SHARED", "2"), ("NVIDIA-A30-SHARED", "1")},
    ),
    "mixed, one model divided": (
        mig("mixed", {"3g.40gb": 2}, {}, {"3g.40gb": 2}),
        {"nvidia.com/gpu": 1, "nvidia.com/mig-3g.40gb": 4},
        {("NVIDIA-A30", "1")},
    ),
}


@pytest.mark.parametrize(("spec", "resources", "shown"), MODES.values(), ids=MODES)
def test_gfd_counts_per_model_and_whichever_it_shows_is_accepted(
    spec: dict[str, Any], resources: dict[str, int], shown: set[tuple[str, str]], make_sandbox: MakeSandbox
) -> None:
    target, config, case = plan(Setting("", "", spec, models=MODELS))
    sandbox = make_sandbox(*MODELS)
    set_layouts(sandbox, *target.layouts)
    assert served(sandbox, config, len(resources)) == resources == target.resources
    answers = all_answers(sandbox, config, len(shown))
    assert {(labels[LABEL_GPU_PRODUCT], labels[LABEL_GPU_COUNT]) for labels in answers} == shown
    for labels in answers:
        labels_as_predicted(labels, case)
    check_gfd(MODELS, target.layouts, config, answers)


# --- MPS, whose control program is SIMULATED ------------------------------------------------------------------

DEFAULT, EXCLUSIVE_PROCESS = 0, 3


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
    set_layouts(sandbox, SEVEN)
    with pytest.raises(ProgramEnded, match="mixed is not supported with MPS"):
        start_mps_plugin(sandbox, config(4, "mixed")).resources(1)
    with pytest.raises(ProgramEnded, match="sharing using MPS is not supported for MIG devices"):
        start_mps_plugin(sandbox, config(4, "single")).resources(1)


def test_gfd_ends_without_labels_when_mps_meets_a_gpu_with_mig(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb", "h100-80gb")
    set_layouts(sandbox, SEVEN, None)
    with pytest.raises(ProgramEnded, match="MPS sharing is not supported for mig devices"):
        gfd_labels(sandbox, config(4))
    assert not (sandbox.folder / "labels").exists()
