"""The device plugin's names and counts (docs/design/nvidia.md#b6, docs/design/nvidia.md#served)."""

import pytest
from hack.sim.plugin import PluginError, SimPluginConfig, advertised, choose_key, find_refusal, parse_config
from hack.sim.settings import PluginVersion
from tests.sim.build import make_reading

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
