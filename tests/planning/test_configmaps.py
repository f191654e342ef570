"""What the two ConfigMaps hold: every policy's entries before any label, and none that a Node still names goes."""

from dataclasses import replace

from tests.build import (
    H100,
    make_cluster_policy,
    make_fence,
    make_gpu,
    make_node,
    make_policy,
    make_stack,
    pair_of,
)

from gpusharing.planning import migfile
from gpusharing.planning.configmaps import plan_config, referenced
from gpusharing.planning.views import NodeView, PolicyView, StackView, Verified

MODELS = {H100: make_gpu()}
OLD, NEW = make_policy(), make_policy(mode="TimeSlicing", generation=2)
PLUGIN, MIG = "nvidia.com/device-plugin.config", "nvidia.com/mig.config"


def keys(policy: PolicyView) -> tuple[str, str]:
    """The plugin key and the mig-parted entry of a policy."""
    entry, key = pair_of(policy)
    return key, entry


def kept(stack: StackView, *nodes: NodeView) -> tuple[bool, bool]:
    """Whether plugin key and entry of OLD are still there when the policy has become NEW."""
    change, _ = plan_config([NEW], nodes, MODELS, {}, stack)
    assert change is not None
    key, entry = keys(OLD)
    return key in change.plugin_configs, entry in migfile.parse(change.mig_file)


def test_a_new_policy_gets_its_entries_before_any_label_names_them() -> None:
    stack = make_stack(OLD)
    key, entry = keys(OLD)
    assert "mixed" in stack.plugin_configs[key]
    assert migfile.parse(stack.mig_file)[entry] == [
        {"devices": "all", "mig-enabled": True, "mig-devices": {"3g.40gb": 2}}
    ]


def test_what_is_there_is_not_written_again() -> None:
    assert plan_config([OLD], [make_node()], MODELS, {}, make_stack(OLD)) == (None, False)


def test_an_entry_that_nobody_names_goes() -> None:
    assert kept(make_stack(OLD), make_node()) == (False, False)


def test_an_entry_stays_while_a_label_names_it() -> None:
    key, entry = keys(OLD)
    assert kept(make_stack(OLD), make_node(labels={PLUGIN: key, MIG: entry})) == (True, True)


def test_an_entry_stays_while_a_fence_names_it() -> None:
    key, entry = keys(OLD)
    fence = make_fence("actuating", target_plugin_config=key, target_mig_config=entry)
    assert kept(make_stack(OLD), make_node(fence=fence)) == (True, True)


def test_an_entry_stays_while_the_last_verified_pair_names_it() -> None:
    key, entry = keys(OLD)
    assert kept(make_stack(OLD), make_node(verified=Verified("pool-b", entry, key))) == (True, True)


def test_entries_that_only_nodes_keep_are_looked_at_again() -> None:
    key, entry = keys(OLD)
    stack, nodes = make_stack(OLD, NEW), [make_node(labels={PLUGIN: key, MIG: entry})]
    change, retained = plan_config([NEW], nodes, MODELS, {}, stack)
    assert change is not None, "the stop between MPS and MIG, which nobody names"
    assert retained
    stack = replace(stack, plugin_configs=change.plugin_configs, mig_file=change.mig_file)
    assert plan_config([NEW], nodes, MODELS, {}, stack) == (None, True)


def test_the_admins_entries_are_merged_and_win_over_generated_names() -> None:
    admin = "mig-configs: {all-balanced: [{devices: all, mig-enabled: false}], mine: [{devices: all}]}"
    stack = make_stack(OLD, admin_mig_file=admin)
    change, _ = plan_config([OLD], [], MODELS, {}, stack)
    assert change is not None
    entries = migfile.parse(change.mig_file)
    assert entries["mine"] == [{"devices": "all"}]
    assert entries["all-balanced"] == [{"devices": "all", "mig-enabled": False}]
    assert keys(OLD)[1] in entries


def test_a_second_card_model_adds_its_names() -> None:
    models = {**MODELS, "NVIDIA H200": make_gpu(product="NVIDIA H200")}
    change, _ = plan_config([OLD], [], models, {}, make_stack(OLD))
    assert change is not None
    assert {"all-1g.10gb", "all-1g.18gb"} <= migfile.parse(change.mig_file).keys()


def test_a_missing_config_map_is_written_even_when_no_policy_needs_it() -> None:
    stack = make_stack(cluster_policy=make_cluster_policy(), plugin_map_exists=False)
    change, _ = plan_config([], [], MODELS, {}, stack)
    assert change is not None
    assert change.plugin_configs == {}


def test_a_policy_that_cannot_be_read_adds_nothing() -> None:
    broken = PolicyView("x", "uid-x", 1, "", False, False, False, None)
    assert plan_config([OLD, broken], [], MODELS, {}, make_stack(OLD)) == (None, False)


def test_a_policy_under_deletion_keeps_its_entries_until_it_is_gone() -> None:
    going = make_policy(deleting=True, finalizer=True)
    assert plan_config([going], [], MODELS, {}, make_stack(OLD)) == (None, False)


def test_every_place_where_a_node_names_an_entry_counts() -> None:
    node = make_node(
        labels={PLUGIN: "a", MIG: "b"},
        fence=make_fence(target_plugin_config="c", target_mig_config="d"),
        verified=Verified("pool-b", "e", "f"),
    )
    assert {"a", "b", "c", "d", "e", "f"} <= referenced([node])
