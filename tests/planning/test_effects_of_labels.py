"""What a change of deploy labels or of an entry takes from a node, as NVIDIA's programs do (tests/nvidia)."""

from dataclasses import replace

import pytest
from tests.build import make_cluster_policy, make_gpu, make_gpunode, make_node, make_snapshot, make_stack

from gpusharing.api.names import LABEL_PLUGIN_CONFIG
from gpusharing.planning.snapshot.nvidia import PlainStackView
from gpusharing.planning.stack.effects import (
    MIG_MANAGER,
    OPERANDS,
    PLUGIN,
    PLUGIN_POINTER,
    RESTART_PLUGIN,
    START_MIG_MANAGER,
    find_effects,
    tell_strategy_users,
)
from gpusharing.planning.vocabulary.commands import Change, Effect, Loss

SEVENTHS = (("1g.10gb", 7),)
GONE = {LABEL_PLUGIN_CONFIG: "gone"}
SLICED = "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}"
DIVIDED = {"nvidia.com/mig-1g.10gb": 7}


def effects(
    change: Change,
    labels: dict[str, str],
    *,
    resources: dict[str, int] | None = None,
    divided: bool = False,
    strategy: str = "",
) -> list[Effect]:
    node = make_node(labels={MIG_MANAGER: "true", PLUGIN: "true", **labels}, resources=resources)
    gpunode = make_gpunode(gpus=[make_gpu(layout=SEVENTHS if divided else None)])
    stack = make_stack(cluster_policy=make_cluster_policy(mig_strategy=strategy), plugin_configs={"own": "version: v1"})
    return [*find_effects(change, make_snapshot([node], gpunodes=[gpunode], stack=stack))]


def relabel(**labels: str) -> Change:
    return Change(labels=tuple(labels.items()), nodes=("gpu-07",))


@pytest.mark.parametrize("label", [MIG_MANAGER, OPERANDS])
def test_mig_manager_changes_nothing_where_a_label_keeps_it_off(label: str) -> None:
    assert effects(START_MIG_MANAGER, {label: "false"}, resources=DIVIDED, divided=True) == []
    found = effects(relabel(**{label: "false"}), {}, resources=DIVIDED, divided=True)
    assert Loss.GPUS not in {effect.loss for effect in found}
    assert effects(START_MIG_MANAGER, {}, resources=DIVIDED, divided=True) != []


@pytest.mark.parametrize("label", [PLUGIN, OPERANDS])
def test_a_node_loses_its_devices_with_the_label_of_its_device_plugin(label: str) -> None:
    (effect,) = effects(relabel(**{label: "false"}), {})
    assert (effect.loss, effect.why, effect.known) == (Loss.DEVICES, "1 nvidia.com/gpu", True)
    assert effects(relabel(**{label: "true"}), {label: "false"}, resources={}) == []
    assert effects(RESTART_PLUGIN, {label: "false", **GONE}, resources={}) == []


@pytest.mark.parametrize("label", [PLUGIN, OPERANDS])
def test_no_deploy_label_keeps_the_device_plugin_of_nvidias_chart_off(label: str) -> None:
    policy = replace(make_cluster_policy(), plain=PlainStackView("nvdp", "nvdp"))
    sliced = {"nvidia.com/gpu": 4}
    stack = make_stack(cluster_policy=policy, plugin_configs={})
    node = make_node(labels={label: "false", **GONE}, resources=sliced)
    (effect,) = find_effects(RESTART_PLUGIN, make_snapshot([node], stack=stack))
    assert (effect.missing, effect.known) == ("gone", True)


MISSING = {
    "whole GPUs stay": ({}, False, "", False),
    "shares go": ({"nvidia.com/gpu": 4}, False, "", True),
    "instances go": (DIVIDED, True, "", True),
    "ClusterPolicy names instances": (DIVIDED, True, "mixed", False),
}


@pytest.mark.parametrize(("resources", "divided", "strategy", "known"), MISSING.values(), ids=MISSING.keys())
def test_a_plugin_without_its_entry_takes_the_fallback(
    resources: dict[str, int], divided: bool, strategy: str, known: bool
) -> None:
    (effect,) = effects(RESTART_PLUGIN, GONE, resources=resources or None, divided=divided, strategy=strategy)
    assert (effect.loss, effect.missing, effect.known) == (Loss.DEVICES, "gone", known)


def test_a_running_plugin_takes_the_fallback_too_when_its_label_names_no_entry() -> None:
    own = {LABEL_PLUGIN_CONFIG: "own"}
    assert [one.known for one in effects(relabel(**GONE), own, resources={"nvidia.com/gpu": 4})] == [True]
    assert [one.known for one in effects(relabel(**GONE), own)] == [False]


def test_the_fallback_is_the_default_entry() -> None:
    policy = make_cluster_policy(plugin_default="sliced")
    stack = make_stack(cluster_policy=policy, plugin_configs={"sliced": SLICED})
    snapshot = make_snapshot([make_node(labels=GONE, resources={"nvidia.com/gpu": 4})], stack=stack)
    assert [one.known for one in find_effects(RESTART_PLUGIN, snapshot)] == [False]


def test_a_node_loses_all_devices_by_an_entry_that_its_device_plugin_refuses() -> None:
    stack = make_stack(plugin_configs={"refused": SLICED.replace("4", "1")})
    change = relabel(**{LABEL_PLUGIN_CONFIG: "refused"})
    assert [one.why for one in find_effects(change, make_snapshot([make_node()], stack=stack))] == ["1 nvidia.com/gpu"]


def test_it_is_unknown_what_a_node_loses_by_a_config_map_that_nobody_has_read() -> None:
    change = Change(fields=((PLUGIN_POINTER, "theirs"),))
    (effect,) = effects(change, {LABEL_PLUGIN_CONFIG: "own"})
    assert (effect.loss, effect.known) == (Loss.DEVICES, False)
    assert effects(change, {}) == []


def test_nobody_waits_for_an_agent_because_of_a_missing_entry() -> None:
    assert "wait until" not in tell_strategy_users(effects(RESTART_PLUGIN, GONE), "mixed")
