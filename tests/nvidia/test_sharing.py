"""Device plugin and GFD: each configuration we render loads, and serves and labels exactly what we predict."""

import pytest
from hack.nvmlsim.models import find_model
from hack.nvmlsim.simulator import EVENT_XID
from hack.sim.plugin import PluginError
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import DevicePluginProgram, ProgramEnded, gfd_labels, served, set_layouts
from tests.nvidia.standins import check_gfd, check_plugin
from tests.nvidia.targets import Setting, labels_as_predicted, mig, plan, refusal, slices, slicing

from gpusharing.api.names import LABEL_GPU_PRODUCT
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted import pluginconfig
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing
from gpusharing.planning.wanted.target import counts_without_suffixes, predict_resources

pytestmark = pytest.mark.nvidia

XID_FALLEN_OFF_THE_BUS = 79


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
)  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.text)
def test_a_mode_is_served_and_labelled_exactly_as_predicted(setting: Setting, make_sandbox: MakeSandbox) -> None:
    target, config, case = plan(setting)
    sandbox = make_sandbox(setting.model, setting.model)
    set_layouts(sandbox, *target.layouts)
    assert counts_without_suffixes(target.resources) == setting.resources
    assert served(sandbox, config, len(setting.resources)) == setting.resources
    check_plugin(setting.model, target.layouts, config, setting.resources)
    labels = gfd_labels(sandbox, config)
    labels_as_predicted(labels, case)
    check_gfd(setting.model, target.layouts, config, labels)
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
    set_layouts(sandbox, (("1g.10gb", 7),), (("1g.10gb", 7),))
    config = pluginconfig.render(PluginConfig())
    assert served(sandbox, config, 1) == {"nvidia.com/gpu": 2}
    labels = gfd_labels(sandbox, config)
    assert (labels["nvidia.com/gpu.count"], labels["nvidia.com/gpu.replicas"]) == ("2", "0")
    assert "nvidia.com/mig.strategy" not in labels
    check_gfd("h100-80gb", [(("1g.10gb", 7),)] * 2, config, labels)


def test_with_mixed_gfd_counts_gpus_that_have_mig_on_too(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb", "h100-80gb")
    set_layouts(sandbox, (("1g.10gb", 7),), None)
    labels = gfd_labels(sandbox, pluginconfig.render(PluginConfig("mixed")))
    assert (labels["nvidia.com/gpu.count"], labels["nvidia.com/gpu.replicas"]) == ("2", "1")
    assert labels["nvidia.com/mig-1g.10gb.count"] == "7"
    check_gfd("h100-80gb", [(("1g.10gb", 7),), None], pluginconfig.render(PluginConfig("mixed")), labels)


SEVEN: Layout = (("1g.10gb", 7),)
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
    check_gfd("h100-80gb", layouts, config, labels)
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
