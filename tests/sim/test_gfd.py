"""GFD's labels per mode (docs/design/nvidia.md#c)."""

import pytest
from hack.sim.gfd import changes, labels, owns
from hack.sim.gpu import SimulatedGPUs
from hack.sim.plugin import PluginError, SimPluginConfig
from tests.sim.build import H100, L40S, make_reading

from gpusharing.api.validation import is_rewritten

P = "NVIDIA-H100-80GB-HBM3"
SEVEN = ("1g.10gb",) * 7
MIXED = ("3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb")
FOUR = SimPluginConfig("none", "time-slicing", {"nvidia.com/gpu": 4})
FOUR_RENAMED = SimPluginConfig("none", "time-slicing", {"nvidia.com/gpu": 4}, rename=True)
FOUR_CLIENTS = SimPluginConfig("none", "mps", {"nvidia.com/gpu": 4})
TWO_ON_MIXED = SimPluginConfig(
    "mixed", "time-slicing", {"nvidia.com/gpu": 2, "nvidia.com/mig-1g.10gb": 2, "nvidia.com/mig-3g.40gb": 2}
)
TWO_ON_SINGLE = SimPluginConfig("single", "time-slicing", {"nvidia.com/gpu": 2})


@pytest.mark.parametrize(
    ("config", "layouts", "product", "count", "replicas", "sharing", "strategy"),
    [
        pytest.param(SimPluginConfig(), (None, None), P, 2, 1, "none", None, id="full"),
        pytest.param(FOUR, (None, None), f"{P}-SHARED", 2, 4, "time-slicing", None, id="time-slicing"),
        pytest.param(FOUR_RENAMED, (None, None), P, 2, 4, "time-slicing", None, id="time-slicing, renamed"),
        pytest.param(FOUR_CLIENTS, (None, None), f"{P}-SHARED", 2, 4, "mps", None, id="MPS"),
        pytest.param(SimPluginConfig(), (SEVEN, SEVEN), P, 2, 0, "none", None, id="MIG on with strategy none"),
        pytest.param(TWO_ON_MIXED, (MIXED, MIXED), P, 2, 0, "none", "mixed", id="MIG mixed + TS"),
        pytest.param(
            TWO_ON_MIXED,
            (MIXED, None),
            f"{P}-SHARED",
            2,
            2,
            "time-slicing",
            "mixed",
            id="MIG mixed + TS, one GPU whole",
        ),
        pytest.param(SimPluginConfig("mixed"), (SEVEN, None), P, 2, 1, "none", "mixed", id="mixed, one GPU whole"),
        pytest.param(
            SimPluginConfig("single"), (SEVEN, SEVEN), f"{P}-MIG-1g.10gb", 14, 1, "none", "single", id="MIG single"
        ),
        pytest.param(
            TWO_ON_SINGLE,
            (SEVEN, SEVEN),
            f"{P}-MIG-1g.10gb-SHARED",
            14,
            2,
            "time-slicing",
            "single",
            id="MIG single + TS",
        ),
        pytest.param(SimPluginConfig("mixed"), (MIXED, MIXED), P, 2, 0, "none", "mixed", id="MIG mixed"),
        pytest.param(SimPluginConfig("mixed"), (None, None), P, 2, 1, "none", "mixed", id="mixed without MIG"),
        pytest.param(
            SimPluginConfig("single"), (MIXED, SEVEN), f"{P}-MIG-INVALID", 0, 0, "", "single", id="MIG single, unequal"
        ),
    ],
)
def test_the_mode_shows_in_the_labels(
    config: SimPluginConfig,
    layouts: tuple[tuple[str, ...] | None, ...],
    product: str,
    count: int,
    replicas: int,
    sharing: str,
    strategy: str | None,
) -> None:
    found = labels(make_reading(*layouts), config, 1700000000)
    assert found["nvidia.com/gpu.product"] == product
    assert found["nvidia.com/gpu.count"] == str(count)
    assert found["nvidia.com/gpu.replicas"] == str(replicas)
    assert found["nvidia.com/gpu.sharing-strategy"] == sharing
    assert found.get("nvidia.com/mig.strategy") == strategy
    assert found["nvidia.com/gfd.timestamp"] == "1700000000"
    assert found["nvidia.com/mps.capable"] == ("true" if sharing == "mps" else "false")
    assert all(owns(key) for key in found)


def test_mixed_has_labels_per_profile() -> None:
    found = labels(make_reading(MIXED, None), SimPluginConfig("mixed"), 1)
    assert found["nvidia.com/mig-1g.10gb.count"] == "2"
    assert found["nvidia.com/mig-3g.40gb.product"] == f"{P}-MIG-3g.40gb"
    assert found["nvidia.com/mig-2g.20gb.slices.gi"] == "2"
    assert found["nvidia.com/mig-2g.20gb.replicas"] == "1"
    assert 19_000 < int(found["nvidia.com/mig-2g.20gb.memory"]) < 20_480


def test_mixed_with_time_slicing_says_so_of_each_profile_that_is_shared() -> None:
    found = labels(make_reading(MIXED, MIXED), TWO_ON_MIXED, 1)
    assert found["nvidia.com/mig-1g.10gb.replicas"] == "2"
    assert found["nvidia.com/mig-1g.10gb.sharing-strategy"] == "time-slicing"
    assert found["nvidia.com/mig-1g.10gb.product"] == f"{P}-MIG-1g.10gb-SHARED"
    assert found["nvidia.com/mig-2g.20gb.replicas"] == "1"
    assert found["nvidia.com/mig-2g.20gb.product"] == f"{P}-MIG-2g.20gb"


def test_mps_on_a_gpu_with_mig_ends_it() -> None:
    with pytest.raises(PluginError, match="MPS sharing is not supported for mig devices"):
        labels(make_reading(SEVEN, None), FOUR_CLIENTS, 1)


def test_a_media_instance_has_a_dot_in_its_label() -> None:
    found = labels(make_reading(("1g.10gb+me",)), SimPluginConfig("mixed"), 1)
    assert found["nvidia.com/mig-1g.10gb.me.product"] == f"{P}-MIG-1g.10gb.me"


@pytest.mark.parametrize(
    ("product", "family"), [(L40S, "ada-lovelace"), ("Tesla T4", "turing"), ("Tesla V100-SXM2-16GB", "volta")]
)
def test_a_card_without_mig_says_so_and_of_which_family_it_is(product: str, family: str) -> None:
    found = labels(make_reading(None, product=product), SimPluginConfig(), 1)
    assert found["nvidia.com/mig.capable"] == "false"
    assert found["nvidia.com/gpu.family"] == family


def test_only_its_own_labels_are_taken_away() -> None:
    present = {
        "nvidia.com/gpu.product": "X-SHARED",
        "nvidia.com/gpu.count": "2",
        "nvidia.com/mig-1g.10gb.count": "7",
        "nvidia.com/gpu.deploy.device-plugin": "true",
        "nvidia.com/gpu.present": "true",
        "nvidia.com/mig.config": "all-disabled",
        "nvidia.com/mig.config.state": "success",
        "nvidia.com/device-plugin.config": "a",
        "gpusharing.dev/pool": "b",
    }
    wanted = {"nvidia.com/gpu.product": "X", "nvidia.com/gpu.count": "2"}
    assert changes(present, wanted) == {"nvidia.com/gpu.product": "X", "nvidia.com/mig-1g.10gb.count": None}
    assert set(changes(present, {})) == {
        "nvidia.com/gpu.product",
        "nvidia.com/gpu.count",
        "nvidia.com/mig-1g.10gb.count",
    }


def test_no_label_whose_value_depends_on_the_mode_may_select_the_nodes_of_a_pool() -> None:
    modes = [
        (SimPluginConfig(), (None, None)),
        (FOUR, (None, None)),
        (FOUR_CLIENTS, (None, None)),
        (SimPluginConfig("single"), (SEVEN, SEVEN)),
        (SimPluginConfig("mixed"), (MIXED, MIXED)),
    ]
    seen = [labels(make_reading(*layouts), config, 1) for config, layouts in modes]
    depends = {label for found in seen for label in found if len({other.get(label) for other in seen}) > 1}
    assert "nvidia.com/gpu.slices.gi" in depends
    assert {label for label in depends if not is_rewritten(label)} == set()


A30 = "NVIDIA A30"


def test_of_two_card_models_one_is_counted_and_which_may_change_at_each_run() -> None:
    reading = SimulatedGPUs("gpu-01", [H100, A30, H100]).read()
    seen = [labels(reading, FOUR, 0, turn) for turn in (0, 1)]
    shown = [(one["nvidia.com/gpu.product"], one["nvidia.com/gpu.count"]) for one in seen]
    assert sorted(shown) == [("NVIDIA-A30-SHARED", "1"), (f"{P}-SHARED", "2")]
    assert {one["nvidia.com/mig.capable"] for one in seen} == {"true"}


def test_a_model_with_a_whole_gpu_comes_after_those_that_are_divided() -> None:
    gpus = SimulatedGPUs("gpu-01", [H100, A30])
    gpus.set_mig_mode(0, True)
    gpus.create(0, "3g.40gb")
    for turn in (0, 1):
        found = labels(gpus.read(), SimPluginConfig("mixed"), 0, turn)
        assert (found["nvidia.com/gpu.product"], found["nvidia.com/gpu.replicas"]) == ("NVIDIA-A30", "1")
        assert found["nvidia.com/mig-3g.40gb.product"] == f"{P}-MIG-3g.40gb"
