"""The device plugin's names and counts, and GFD's labels per mode (docs/design/nvidia.md#b6, docs/design/nvidia.md#c, docs/design/nvidia.md#served)."""

import pytest
from hack.sim.gfd import changes, labels, owns
from hack.sim.gpu import SimulatedGPUs
from hack.sim.plugin import PluginError, SimPluginConfig, advertised, choose_key, find_refusal, parse_config
from hack.sim.settings import PluginVersion
from tests.sim.build import H100, L40S, make_reading

from gpusharing.api.validation import is_rewritten

SEVEN = ("1g.10gb",) * 7
MIXED = ("3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb")
GPU = "nvidia.com/gpu"
MIG = "nvidia.com/mig-"


def slicing(replicas: int, *resources: str, rename: bool = False, strategy: str = "none") -> str:
    listed = "".join(f"\n    - {{name: {name}, replicas: {replicas}}}" for name in resources)
    return (
        f"version: v1\nflags: {{migStrategy: {strategy}}}\nsharing:\n  timeSlicing:\n"
        f"    renameByDefault: {str(rename).lower()}\n    resources:{listed}\n"
    )


@pytest.mark.parametrize(
    ("config", "layouts", "counts"),
    [
        pytest.param("", (None, None), {GPU: 2}, id="an empty configuration advertises whole GPUs"),
        pytest.param(slicing(4, GPU), (None, None), {GPU: 8}, id="time-slicing multiplies"),
        pytest.param(slicing(4, "gpu"), (None, None), {GPU: 8}, id="the prefix may be left out"),
        pytest.param(slicing(4, GPU, rename=True), (None, None), {f"{GPU}.shared": 8}, id="renamed to .shared"),
        pytest.param("", (SEVEN, SEVEN), {GPU: 2}, id="strategy none advertises MIG GPUs as whole ones"),
        pytest.param("flags: {migStrategy: single}", (None, None), {GPU: 2}, id="single without MIG is whole"),
        pytest.param("flags: {migStrategy: single}", (SEVEN, SEVEN), {GPU: 14}, id="single counts instances"),
        pytest.param(
            slicing(2, GPU, strategy="single"), (SEVEN,), {GPU: 14}, id="seven instances twice with time-slicing"
        ),
        pytest.param(
            "flags: {migStrategy: mixed}",
            (MIXED, MIXED),
            {f"{MIG}1g.10gb": 4, f"{MIG}2g.20gb": 2, f"{MIG}3g.40gb": 2},
            id="mixed names each profile",
        ),
        pytest.param(
            slicing(2, f"{MIG}1g.10gb", f"{MIG}3g.40gb", strategy="mixed"),
            (MIXED, MIXED),
            {f"{MIG}1g.10gb": 8, f"{MIG}2g.20gb": 2, f"{MIG}3g.40gb": 4},
            id="mixed shares only the resources listed",
        ),
        pytest.param(
            "flags: {migStrategy: mixed}", (None, SEVEN), {GPU: 1, f"{MIG}1g.10gb": 7}, id="mixed serves both kinds"
        ),
        pytest.param("flags: {migStrategy: mixed}", ((), None), {GPU: 1}, id="an empty MIG GPU is skipped"),
    ],
)
def test_a_layout_is_advertised_as_nvidia_does(
    config: str, layouts: tuple[tuple[str, ...] | None, ...], counts: dict[str, int]
) -> None:
    assert advertised(make_reading(*layouts).gpus, parse_config(config)) == counts


def test_media_instances_are_told_apart_since_0_20_only() -> None:
    gpus = make_reading(("1g.10gb+me", "1g.10gb")).gpus
    mixed = SimPluginConfig("mixed")
    assert advertised(gpus, mixed, "0.20.0") == {f"{MIG}1g.10gb": 1, f"{MIG}1g.10gb.me": 1}
    assert advertised(gpus, mixed, "0.19.3") == {f"{MIG}1g.10gb": 2}


@pytest.mark.parametrize(
    ("layouts", "why"),
    [
        pytest.param((MIXED, MIXED), "more than one MIG device type", id="several profiles on one GPU"),
        pytest.param((SEVEN, ("7g.80gb",)), "more than one MIG device type", id="different profiles per GPU"),
        pytest.param((SEVEN, None), "same migEnabled value", id="MIG on some GPUs only"),
        pytest.param((SEVEN, ()), "no MIG devices", id="MIG on and empty"),
    ],
)
def test_strategy_single_exits_on_unequal_layouts(layouts: tuple[tuple[str, ...] | None, ...], why: str) -> None:
    with pytest.raises(PluginError, match=why):
        advertised(make_reading(*layouts).gpus, SimPluginConfig("single"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("version: v2", "unknown version", id="another version"),
        pytest.param("flags: {migStrategy: both}", "invalid migStrategy", id="an unknown strategy"),
        pytest.param(slicing(1, GPU), ">= 2", id="one replica"),
        pytest.param(slicing(2), "no resources specified", id="no resources to share"),
        pytest.param("sharing: {mps: {resources: []}, x: [", "unmarshal error", id="not YAML"),
    ],
)
def test_a_bad_configuration_ends_the_plugin(text: str, why: str) -> None:
    with pytest.raises(PluginError, match=why):
        parse_config(text)


def test_with_mps_and_time_slicing_the_plugin_takes_mps() -> None:
    shares = "{resources: [{name: gpu, replicas: %d}]}"
    config = parse_config(f"sharing: {{timeSlicing: {shares % 2}, mps: {shares % 3}}}")
    assert (config.sharing, config.clients) == ("mps", 3)
    assert advertised(make_reading(None, None).gpus, config) == {GPU: 6}


@pytest.mark.parametrize(
    ("strategy", "layout", "why"),
    [
        pytest.param("mixed", None, "mixed is not supported with MPS", id="strategy mixed, even without MIG"),
        pytest.param("single", SEVEN, "not supported for MIG devices", id="a GPU with MIG"),
    ],
)
def test_mps_with_mig_ends_the_plugin(strategy: str, layout: tuple[str, ...] | None, why: str) -> None:
    config = parse_config(
        f"flags: {{migStrategy: {strategy}}}\nsharing: {{mps: {{resources: [{{name: gpu, replicas: 4}}]}}}}"
    )
    with pytest.raises(PluginError, match=why):
        advertised(make_reading(layout).gpus, config)


def test_unknown_fields_are_ignored_and_cluster_policy_beats_the_file() -> None:
    assert parse_config("flgs: {migStrategy: mixed}").mig_strategy == "none"
    assert parse_config("flags: {migStrategy: mixed}", "single").mig_strategy == "single"


@pytest.mark.parametrize(
    ("label", "default", "key"),
    [
        pytest.param("b", "a", "b", id="the label's key"),
        pytest.param(None, "a", "a", id="no label: the default"),
        pytest.param(None, "", "", id="no label, no default: empty"),
        pytest.param("x", "a", None, id="an unknown label is an error, default or not"),
        pytest.param(None, "x", None, id="an unknown default is an error"),
    ],
)
def test_config_manager_chooses_the_key(label: str | None, default: str, key: str | None) -> None:
    assert choose_key(label, ("a", "b"), default) == key


def test_config_manager_ends_when_there_is_no_configuration_at_all() -> None:
    assert choose_key(None, (), "") is None


REFUSALS: dict[str, tuple[str, str, dict[str, int], PluginVersion, int]] = {
    "two time slices": ("timeSlicing", "", {GPU: 2}, "0.20.0", 0),
    "two time slices that are forbidden": ("timeSlicing", "failRequestsGreaterThanOne: true, ", {GPU: 2}, "0.20.0", 2),
    "one time slice": ("timeSlicing", "failRequestsGreaterThanOne: true, ", {GPU: 1}, "0.20.0", 0),
    "three renamed shares": (
        "timeSlicing",
        "failRequestsGreaterThanOne: true, renameByDefault: true, ",
        {f"{GPU}.shared": 3},
        "0.20.0",
        3,
    ),
    "two of a resource that is not shared": (
        "timeSlicing",
        "failRequestsGreaterThanOne: true, ",
        {f"{MIG}3g.40gb": 2},
        "0.20.0",
        0,
    ),
    "two clients of MPS": ("mps", "", {GPU: 2}, "0.20.0", 2),
    "two clients of MPS, with null": ("mps", "failRequestsGreaterThanOne: null, ", {GPU: 2}, "0.20.0", 2),
    "two clients of MPS that are allowed": ("mps", "failRequestsGreaterThanOne: false, ", {GPU: 2}, "0.20.0", 0),
    "the same before v0.20": ("mps", "failRequestsGreaterThanOne: false, ", {GPU: 2}, "0.19.3", 2),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_allocate_refuses_as_validate_request_of_nvidia_does(case: str) -> None:
    """k8s-device-plugin v0.20.0, internal/rm/rm.go, and api/config/v1 for the default of MPS."""
    kind, flags, requests, version, found = REFUSALS[case]
    config = parse_config(f"sharing: {{{kind}: {{{flags}resources: [{{name: gpu, replicas: 4}}]}}}}")
    error = f"invalid request: maximum request size for shared resources is 1; found {found}" if found else ""
    assert find_refusal(config, requests, version) == error


P = "NVIDIA-H100-80GB-HBM3"
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
