"""Device-plugin configurations: what we render, what we understand of others, and keys that never change meaning."""

import pytest
import yaml
from tests.configs import make_shared

from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing, key_for, parse, render

SHARED = make_shared(4, fails=True)

BOTH_WAYS = {
    "whole GPUs": PluginConfig(),
    "MIG instances under their own names": PluginConfig("mixed"),
    "MIG instances under the name of a GPU": PluginConfig("single"),
    "four shares of each GPU that refuse requests for two": SHARED,
    "clients of MPS": make_shared(4, fails=True, mps=True),
    "two shares of each small instance": PluginConfig("mixed", Sharing((("nvidia.com/mig-1g.10gb", 2),))),
    "shares under the name nvidia.com/gpu.shared": make_shared(2, rename=True),
}


@pytest.mark.parametrize("config", BOTH_WAYS.values(), ids=BOTH_WAYS.keys())
def test_what_we_render_we_read_back(config: PluginConfig) -> None:
    assert parse(render(config)) == config


def test_the_text_is_nvidias_format_version_1() -> None:
    assert yaml.safe_load(render(SHARED)) == {
        "version": "v1",
        "flags": {"migStrategy": "none"},
        "sharing": {
            "timeSlicing": {
                "renameByDefault": False,
                "failRequestsGreaterThanOne": True,
                "resources": [{"name": "nvidia.com/gpu", "replicas": 4}],
            }
        },
    }


FOREIGN: dict[str, tuple[str, PluginConfig | None]] = {
    "an empty map means whole GPUs": ("{}", PluginConfig()),
    "so does an empty text": ("", PluginConfig()),
    "a resource name without a domain is nvidia.com": (
        "sharing: {timeSlicing: {resources: [{name: gpu, replicas: 3}]}}",
        PluginConfig("none", Sharing((("nvidia.com/gpu", 3),))),
    ),
    "time-slicing of nothing is refused by the plugin": ("sharing: {timeSlicing: {resources: []}}", None),
    "null blocks count as absent": ("{flags: null, sharing: null}", PluginConfig()),
    "MPS refuses requests for two unless told otherwise": (
        "sharing: {mps: {resources: [{name: gpu, replicas: 3}]}}",
        make_shared(3, fails=True, mps=True),
    ),
    "with MPS and time-slicing the plugin takes MPS": (
        "sharing: {timeSlicing: {resources: [{name: gpu, replicas: 2}]},"
        " mps: {failRequestsGreaterThanOne: false, resources: [{name: gpu, replicas: 3}]}}",
        make_shared(3, mps=True),
    ),
    "an unknown strategy is not understood": ("flags: {migStrategy: both}", None),
    "broken YAML is not understood": ("flags: [", None),
    "a list is not understood": ("[]", None),
    "flags that are no map are not understood": ("flags: [mixed]", None),
}


@pytest.mark.parametrize(("text", "config"), FOREIGN.values(), ids=FOREIGN.keys())
def test_reading_somebody_elses_configuration(text: str, config: PluginConfig | None) -> None:
    assert parse(text) == config


EFFECT = {
    "the strategy makes no difference without MIG instances": (
        PluginConfig("single"),
        PluginConfig("none"),
        False,
        True,
    ),
    "the strategy makes a difference with them": (PluginConfig("single"), PluginConfig("mixed"), True, False),
    "the number of shares always does": (SHARED, make_shared(5, fails=True), False, False),
    "so does refusing requests for two": (SHARED, make_shared(4), False, False),
}


ROWS = Sharing(tuple((f"nvidia.com/{name}", count) for name, count in (("gpu", 8), ("mig-1g.5gb", 2))))
"""As in NVIDIA's documentation: one configuration for whole GPUs and for instances."""


@pytest.mark.parametrize(("name", "count"), ROWS.replicas)
def test_rows_for_resources_that_a_node_lacks_do_nothing_there(name: str, count: int) -> None:
    found = PluginConfig("mixed", ROWS).on({name, "nvidia.com/mig-7g.40gb"})
    assert found == PluginConfig("mixed", Sharing(((name, count),)))


def test_a_configuration_without_a_row_for_a_node_shares_nothing_there() -> None:
    assert PluginConfig("mixed", ROWS).on({"nvidia.com/mig-7g.40gb"}) == PluginConfig("mixed")


@pytest.mark.parametrize(("one", "other", "with_mig", "same"), EFFECT.values(), ids=EFFECT.keys())
def test_two_configurations_serve_the_same(one: PluginConfig, other: PluginConfig, with_mig: bool, same: bool) -> None:
    assert one.same_effect(other, with_mig=with_mig) is same
    assert other.same_effect(one, with_mig=with_mig) is same


def test_a_key_follows_the_content_and_fits_a_label_value() -> None:
    assert key_for("pool-b", "x") == key_for("pool-b", "x")
    assert key_for("pool-b", "x") != key_for("pool-b", "y")
    long = key_for("p" * 54 + "." + "q" * 200, "x")
    assert len(long) <= 63
    assert long.startswith("p" * 54 + "-")
