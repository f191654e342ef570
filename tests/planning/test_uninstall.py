"""Uninstalling leaves nobody in the middle of a change, and says what stays behind."""

from dataclasses import replace
from typing import Literal

import pytest
from tests.build import make_fence, make_node, make_policy

from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.stack.hooks import SHOWN, find_farewell

SETTINGS = PlanSettings(
    gpu_operator_namespace="nvidia", plugin_config_map="plugin-map", mig_config_map="mig-map"
)


@pytest.mark.parametrize("stage", ["fenced", "yielded", "actuating"])
def test_a_fenced_node_refuses_and_is_named_with_its_change(
    stage: Literal["fenced", "yielded", "actuating"],
) -> None:
    nodes = [
        make_node("gpu-07", fence=replace(make_fence(policy="pool-b"), stage=stage)),
        make_node("gpu-08"),
    ]
    farewell = find_farewell(nodes, SETTINGS)
    assert not farewell.allowed
    assert f"gpu-07: policy pool-b, 1x full to 2x3g.40gb, {stage} since " in farewell.text
    assert "kubectl gpusharing pause --all" in farewell.text
    assert "--no-hooks" in farewell.text
    assert "gpu-08" not in farewell.text


def test_a_fence_that_cannot_be_read_refuses_too() -> None:
    farewell = find_farewell(
        [make_node("gpu-07", fence_error="annotation gpusharing.dev/fence: not JSON")], SETTINGS
    )
    assert not farewell.allowed
    assert "gpu-07: annotation gpusharing.dev/fence: not JSON" in farewell.text


def test_of_many_fenced_nodes_the_rest_is_counted() -> None:
    nodes = [make_node(f"gpu-{number:03}", fence=make_fence()) for number in range(SHOWN + 5)]
    text = find_farewell(nodes, SETTINGS).text
    assert text.count("policy pool-b") == SHOWN
    assert "and 5 more" in text


def test_with_nothing_in_flight_it_goes_and_says_what_stays_and_how_to_take_it_away() -> None:
    named = make_node("gpu-07", labels={"nvidia.com/device-plugin.config": "pool-b-3f9c2a1"})
    farewell = find_farewell([named, make_node("cpu-01", labels={})], SETTINGS)
    assert farewell.allowed
    assert "1 node needs an entry of these ConfigMaps (gpu-07)" in farewell.text
    assert "kubectl -n nvidia delete configmap plugin-map mig-map" in farewell.text


def test_nodes_without_our_configuration_are_not_mentioned() -> None:
    farewell = find_farewell([make_node("cpu-01", labels={})], SETTINGS)
    assert farewell.allowed
    assert "an entry of these ConfigMaps" not in farewell.text


@pytest.mark.parametrize(("names", "told"), [(["gpu-cluster-policy"], "gpu-cluster-policy"), ([], "NAME")])
def test_the_command_names_the_clusterpolicy_that_is_there(names: list[str], told: str) -> None:
    farewell = find_farewell([], SETTINGS, names)
    assert f"kubectl patch clusterpolicy {told} --type merge" in farewell.text


@pytest.mark.parametrize("count", [SHOWN - 1, SHOWN, SHOWN + 1])
def test_no_rest_is_counted_where_every_node_is_shown(count: int) -> None:
    fenced = [make_node(f"gpu-{number:03}", fence=make_fence()) for number in range(count)]
    assert (" more" in find_farewell(fenced, SETTINGS).text) is (count > SHOWN)
    label = {"nvidia.com/device-plugin.config": "pool-b-3f9c2a1"}
    naming = [make_node(f"gpu-{number:03}", labels=label) for number in range(count)]
    text = find_farewell(naming, SETTINGS).text
    assert (" more" in text) is (count > SHOWN)
    assert f"{count} nodes need an entry" in text
    assert ("and 1 more" in text) is (count == SHOWN + 1)


def test_nodes_are_named_in_their_order_whatever_the_order_of_the_cluster() -> None:
    fenced = [make_node(f"gpu-{name}", fence=make_fence(policy=f"pool-{name}")) for name in ("c", "a", "b")]
    text = find_farewell(fenced, SETTINGS).text
    shown = [text.index(f"  gpu-{name}: policy") for name in "abc"]
    assert shown == sorted(shown)
    label = {"nvidia.com/device-plugin.config": "pool-b-3f9c2a1"}
    naming = [make_node(f"gpu-{name}", labels=label) for name in ("c", "a", "b")]
    assert "(gpu-a, gpu-b, gpu-c)" in find_farewell(naming, SETTINGS).text


def test_a_policy_that_holds_our_finalizer_refuses_and_both_ways_out_are_told() -> None:
    """It could not be deleted without the operator, and neither could its CRD."""
    policies = [make_policy(f"pool-{name}", finalizer=name != "c") for name in "bac"]
    farewell = find_farewell([], SETTINGS, (), policies)
    assert not farewell.allowed
    assert farewell.text.startswith(
        "NOT UNINSTALLED: 2 policies carry the finalizer gpusharing.dev/in-flight"
    )
    assert "  kubectl delete gsp pool-a pool-b --wait=false\n" in farewell.text
    for name in ("pool-a", "pool-b"):
        assert (
            f'kubectl patch gsp {name} --type merge -p \'{{"spec":{{"deletionPolicy":"Retain"}}}}\''
            in farewell.text
        )
    assert "pool-c" not in farewell.text
    assert "--no-hooks" in farewell.text
    assert find_farewell([], SETTINGS, (), policies[2:]).allowed


def test_a_node_in_the_middle_of_a_change_is_told_before_the_policy_that_it_holds() -> None:
    farewell = find_farewell(
        [make_node("gpu-07", fence=make_fence())], SETTINGS, (), [make_policy(finalizer=True)]
    )
    assert "1 node is in the middle of a change" in farewell.text


@pytest.mark.parametrize("count", [SHOWN, SHOWN + 1])
def test_of_many_policies_the_rest_is_counted(count: int) -> None:
    text = find_farewell(
        [], SETTINGS, (), [make_policy(f"pool-{n}", finalizer=True) for n in range(count)]
    ).text
    assert ("and 1 more" in text) is (count > SHOWN)
