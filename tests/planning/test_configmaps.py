"""What the two ConfigMaps hold: every policy's entries before any label, and none that a Node still names goes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import yaml
from tests.build import (
    H100,
    NOW,
    make_cluster_policy,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_policy,
    make_stack,
    wishes_of,
)
from tests.planning.cases import pair_of
from tests.wording import lacks

from gpusharing.planning.snapshot.actions import WriteConfig
from gpusharing.planning.snapshot.nvidia import PlainStackView, StackView
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, NodeView, PolicyView
from gpusharing.planning.wanted import migfile, objects
from gpusharing.planning.wanted.objects import referenced_entries
from gpusharing.planning.wanted.pluginconfig import NEUTRAL, NEUTRAL_KEY, PluginConfig, Sharing, key_for, parse, render

MODELS = {H100: make_gpu()}
OLD, NEW = make_policy(), make_policy(mode="TimeSlicing", generation=2)
WHOLE = [{"devices": "all", "mig-enabled": False}]
PLUGIN, MIG = "nvidia.com/device-plugin.config", "nvidia.com/mig.config"


def plan_config(
    policies: Iterable[PolicyView],
    nodes: Iterable[NodeView],
    models: Mapping[str, GpuView],
    plugins: Mapping[str, PluginConfig],
    stack: StackView,
    gpunodes: Mapping[str, GPUNodeView] | None = None,
) -> tuple[WriteConfig | None, bool]:
    return objects.plan_config(wishes_of(policies), models, plugins, stack, nodes=tuple(nodes), gpunodes=gpunodes or {})


def keys(policy: PolicyView) -> tuple[str, str]:
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
    assert kept(make_stack(OLD), make_node(verified=Verified("pool-b", entry, key, layout="1x full", gpus=1))) == (
        True,
        True,
    )


def test_entries_that_only_nodes_keep_are_looked_at_again() -> None:
    key, entry = keys(OLD)
    stack, nodes = make_stack(OLD, NEW), [make_node(labels={PLUGIN: key, MIG: entry})]
    change, retained = plan_config([NEW], nodes, MODELS, {}, stack)
    assert change is not None, "the stop between MPS and MIG, which nobody names"
    assert retained
    written = dict.fromkeys([*change.plugin_configs, *migfile.parse(change.mig_file)], NOW)
    stack = replace(stack, plugin_configs=change.plugin_configs, mig_file=change.mig_file, written=written)
    assert plan_config([NEW], nodes, MODELS, {}, stack) == (None, True)


def test_the_admins_entries_are_merged_and_win_over_generated_names() -> None:
    admin = (
        "mig-configs: {all-balanced: [{devices: all, mig-enabled: false}], mine: [{devices: [0], mig-enabled: false}]}"
    )
    entries = merged(admin)
    assert entries["mine"] == [{"devices": [0], "mig-enabled": False}]
    assert entries["all-balanced"] == WHOLE
    assert keys(OLD)[1] in entries


def merged(admin: str, *nodes: NodeView) -> Mapping[str, migfile.Entry]:
    stack = make_stack(OLD, admin_mig_file=admin)
    change, _ = plan_config([OLD], nodes, MODELS, {}, stack)
    return migfile.parse(change.mig_file if change else stack.mig_file)


def test_no_admin_gives_all_disabled_another_meaning() -> None:
    """Full, TimeSlicing and MPS mean it by this name."""
    halves = "[{devices: all, mig-enabled: true, mig-devices: {3g.40gb: 2}}]"
    assert merged(f"mig-configs: {{all-disabled: {halves}}}")["all-disabled"] == WHOLE


def test_an_entry_that_mig_parted_would_refuse_stays_out_and_the_others_are_merged() -> None:
    entries = merged(
        "mig-configs: {good: [{devices: all, mig-enabled: false}], bad: [{devices: all, mig-enabled: maybe}]}"
    )
    assert "good" in entries
    assert "bad" not in entries


@pytest.mark.parametrize("rows", ["[]", "[{devices: all, mig-enabled: true, mig-devices: {1g.10gb: 0}}]"])
def test_an_entry_that_mig_parted_refuses_leaves_our_file_although_a_node_names_it(rows: str) -> None:
    """An older operator merged it, and since then mig-parted has refused the file on every node."""
    stack = make_stack(OLD, admin_mig_file=f"mig-configs: {{spare: {rows}}}")
    entries = {**migfile.parse(stack.mig_file), "spare": yaml.safe_load(rows)}
    stack = replace(stack, mig_file=migfile.render(entries), written={**stack.written, "spare": NOW})
    change, _ = plan_config([OLD], [make_node(labels={MIG: "spare"})], MODELS, {}, stack)
    assert change is not None
    assert migfile.parse(change.mig_file).keys() == entries.keys() - {"spare"}
    assert not migfile.is_rendered(stack.mig_file), "so that the nodes wait until the corrected file has reached them"


def test_entries_merged_before_stay_while_the_admins_file_cannot_be_read() -> None:
    stack = make_stack(OLD, admin_mig_file="mig-configs: {mine: [{devices: all, mig-enabled: false}]}")
    change, _ = plan_config([OLD], [], MODELS, {}, stack)
    assert change is not None
    stack = replace(stack, mig_file=change.mig_file, written={**stack.written, "mine": NOW})
    for broken in ("{", "mig-configs: [", "mig-configs: 7", "mig-configs: {mine: [{devices: al}]}"):
        assert plan_config([OLD], [], MODELS, {}, replace(stack, admin_mig_file=broken)) == (None, True)
    change, _ = plan_config([OLD], [], MODELS, {}, replace(stack, admin_mig_file="mig-configs: {}"))
    assert change is not None
    assert "mine" not in migfile.parse(change.mig_file)


# --- the admin's own configurations of the device plugin ---------------------------------------------

TS_4 = "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}\n"


def test_the_admins_plugin_configurations_are_merged_as_they_are_before_any_policy_or_node_needs_them() -> None:
    stack = make_stack(admin_plugin_configs={"ts-4": TS_4, "odd": "{"})
    assert after(stack) == {"ts-4": TS_4, "odd": "{", NEUTRAL_KEY: NEUTRAL}


def test_an_admins_default_is_kept_in_the_place_of_the_neutral_entry() -> None:
    """NVIDIA's chart gives it to nodes without a label: they go on with what they had."""
    assert after(make_stack(admin_plugin_configs={NEUTRAL_KEY: TS_4})) == {NEUTRAL_KEY: TS_4}


def test_no_admin_gives_a_policys_key_another_meaning() -> None:
    key, _ = keys(OLD)
    stack = make_stack(OLD, admin_plugin_configs={key: TS_4})
    assert after(stack, OLD)[key] == make_stack(OLD).plugin_configs[key]


def test_a_merged_configuration_stays_while_a_node_names_it_and_its_own_configmap_is_gone() -> None:
    stack = make_stack(plugin_configs={"ts-4": TS_4, "ts-8": TS_4, NEUTRAL_KEY: NEUTRAL})
    kept = after(stack, nodes=[make_node(labels={PLUGIN: "ts-4"})])
    assert kept == {"ts-4": TS_4, NEUTRAL_KEY: NEUTRAL}


# --- the neutral entry ------------------------------------------------------------------------------


def after(stack: StackView, *policies: PolicyView, nodes: Sequence[NodeView] = ()) -> Mapping[str, str]:
    change, _ = plan_config(policies, nodes, MODELS, {}, stack)
    return stack.plugin_configs if change is None else change.plugin_configs


def test_without_a_policy_the_plugins_configmap_holds_the_neutral_entry_and_no_other() -> None:
    """config-manager ends when there is no entry at all: the device plugin's and GFD's pods would not start."""
    assert after(make_stack()) == {NEUTRAL_KEY: NEUTRAL}
    assert after(make_stack(OLD)) == {NEUTRAL_KEY: NEUTRAL}, "also after the last policy"


def test_the_neutral_entry_shares_nothing_and_is_the_one_that_the_fallback_named_takes() -> None:
    assert (NEUTRAL_KEY, parse(NEUTRAL)) == ("default", PluginConfig())


def test_the_neutral_entry_is_no_entry_that_only_nodes_keep() -> None:
    assert plan_config([], [], MODELS, {}, make_stack()) == (None, False)


def test_the_neutral_entry_is_put_right_and_put_back() -> None:
    edited = {**make_stack(OLD).plugin_configs, NEUTRAL_KEY: "version: v2\n"}
    gone = {key: text for key, text in edited.items() if key != NEUTRAL_KEY}
    for found in (edited, gone):
        assert after(make_stack(OLD, plugin_configs=found), OLD)[NEUTRAL_KEY] == NEUTRAL


def test_an_entry_of_an_admin_under_the_neutral_name_stays_while_the_clusterpolicy_or_a_node_names_it() -> None:
    """Nodes without a label run with it: it must not change its meaning under them."""
    theirs = render(PluginConfig("mixed"))
    named = make_stack(
        plugin_configs={NEUTRAL_KEY: theirs}, cluster_policy=make_cluster_policy(plugin_default=NEUTRAL_KEY)
    )
    labelled = make_node(labels={PLUGIN: NEUTRAL_KEY})
    assert after(named)[NEUTRAL_KEY] == theirs
    assert after(make_stack(plugin_configs={NEUTRAL_KEY: theirs}), nodes=[labelled])[NEUTRAL_KEY] == theirs


@pytest.mark.parametrize("theirs", [TS_4, "version: v1\nflags: {migStrategy: single}\n"])
def test_a_merged_default_outlives_its_own_configmap_where_nvidias_chart_gives_it_to_nodes_without_a_label(
    theirs: str,
) -> None:
    plain = replace(make_cluster_policy(), plain=PlainStackView("nvdp", "nvdp"))
    stack = make_stack(plugin_configs={NEUTRAL_KEY: theirs}, cluster_policy=plain)
    assert after(stack)[NEUTRAL_KEY] == theirs
    named = replace(stack, cluster_policy=replace(plain, plugin_default="usual"))
    assert after(named)[NEUTRAL_KEY] == NEUTRAL, "nodes without a label live by another one"


# --- behind the operator's back --------------------------------------------------------------------


def test_an_edited_and_a_deleted_key_of_a_policy_are_written_again_and_a_foreign_one_goes() -> None:
    stack = make_stack(OLD)
    key, *others = stack.plugin_configs
    behind = {**dict.fromkeys(others, "version: v9"), "foreign": "version: v1"}
    change, _ = plan_config([OLD], [make_node()], MODELS, {}, replace(stack, plugin_configs=behind))
    assert change is not None
    assert change.plugin_configs == stack.plugin_configs
    assert key not in behind


def test_a_foreign_key_stays_while_a_label_or_cluster_policys_default_names_it() -> None:
    default = make_cluster_policy(plugin_default="for-all")
    stack = make_stack(OLD, cluster_policy=default)
    stack = replace(stack, plugin_configs={**stack.plugin_configs, "for-all": "a", "theirs": "b", "x": "c"})
    change, _ = plan_config([OLD], [make_node(labels={PLUGIN: "theirs"})], MODELS, {}, stack)
    assert change is not None
    assert change.plugin_configs.keys() - make_stack(OLD).plugin_configs.keys() == {"for-all", "theirs"}


DAMAGED: dict[str, Callable[[str], str]] = {
    "the version": lambda text: text.replace("version: v1", "version: v2"),
    "another top-level field": lambda text: text + "mine: 1\n",
    "an entry that is none": lambda text: text + "  mine: 7\n",
    "the meaning of an entry": lambda text: text.replace("3g.40gb: 2", "3g.40gb: 1"),
    "nothing left": lambda text: "",
    "no YAML": lambda text: "{",
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_mig_file_that_somebody_edited_is_rendered_anew(damage: Callable[[str], str]) -> None:
    stack = make_stack(OLD)
    change, _ = plan_config([OLD], [], MODELS, {}, replace(stack, mig_file=damage(stack.mig_file)))
    assert change is not None
    assert change.mig_file == stack.mig_file


def test_what_a_node_still_names_comes_back_when_somebody_edits_or_deletes_it() -> None:
    key, entry = keys(OLD)
    old, node = make_stack(OLD), make_node(labels={PLUGIN: key, MIG: entry})
    seen: dict[str, Any] = {
        "seen_plugin_configs": {key: old.plugin_configs[key]},
        "seen_mig_entries": {entry: migfile.parse(old.mig_file)[entry]},
    }
    for left in ({}, {key: "version: v9"}):
        stack = replace(make_stack(NEW), plugin_configs=left, **seen)
        change, _ = plan_config([NEW], [node], MODELS, {}, stack)
        assert change is not None
        assert change.plugin_configs[key] == old.plugin_configs[key]
        assert migfile.parse(change.mig_file)[entry] == migfile.parse(old.mig_file)[entry]
        change, _ = plan_config([NEW], [make_node()], MODELS, {}, stack)
        assert change is not None
        assert key not in change.plugin_configs


def test_what_a_node_still_names_stays_when_somebody_edits_the_version_of_the_file() -> None:
    edited = make_stack(OLD).mig_file.replace("version: v1", "version: v2")
    assert kept(replace(make_stack(OLD), mig_file=edited), make_node(labels={MIG: keys(OLD)[1]}))[1]


@pytest.mark.parametrize("lost", [{"marked": False}, {"written": {}}], ids=["label", "times"])
def test_marks_of_ours_that_somebody_took_off_are_put_on_again(lost: dict[str, Any]) -> None:
    stack = replace(make_stack(OLD), **lost)
    change, _ = plan_config([OLD], [], MODELS, {}, stack)
    assert change == WriteConfig(stack.plugin_configs, stack.mig_file)


def test_a_config_map_of_somebody_else_is_not_written() -> None:
    stack = replace(make_stack(), plugin_configs={"theirs": "x"}, foreign_maps=("gpusharing-device-plugin",))
    assert plan_config([OLD], [make_node()], MODELS, {}, stack) == (None, False)


def test_a_second_card_model_adds_its_names() -> None:
    models = {**MODELS, "NVIDIA H200": make_gpu(product="NVIDIA H200")}
    change, _ = plan_config([OLD], [], models, {}, make_stack(OLD))
    assert change is not None
    assert {"all-1g.10gb", "all-1g.18gb"} <= migfile.parse(change.mig_file).keys()


def test_a_missing_config_map_is_written_even_when_no_policy_needs_it() -> None:
    stack = make_stack(cluster_policy=make_cluster_policy(), plugin_map_exists=False)
    change, _ = plan_config([], [], MODELS, {}, stack)
    assert change is not None
    assert change.plugin_configs == {NEUTRAL_KEY: NEUTRAL}


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
        verified=Verified("pool-b", "e", "f", layout="1x full", gpus=1),
    )
    assert {"a", "b", "c", "d", "e", "f"} <= referenced_entries([node])


def texts(policy: PolicyView, *products: str) -> list[str]:
    """The device-plugin configurations of a policy's target on each of these cards."""
    stack = make_stack(policy, models=[make_gpu(product=product) for product in products])
    return [stack.plugin_configs[pair_of(policy, make_gpu(product=product))[1]] for product in products]


def test_mps_and_mig_bring_the_configuration_of_the_stop_between_them() -> None:
    for policy in (make_policy(mode="MPS"), OLD, make_policy(timeSlicing={"replicas": 2})):
        change, _ = plan_config([policy], [], MODELS, {}, make_stack())
        assert change is not None
        stop = key_for("pool-b", render(PluginConfig()))
        assert change.plugin_configs[stop] == render(PluginConfig())
        assert pair_of(policy)[1] in change.plugin_configs


def test_a_policy_without_mps_and_mig_needs_no_stop() -> None:
    change, _ = plan_config([NEW], [], MODELS, {}, make_stack())
    assert change is not None
    assert set(change.plugin_configs) == {pair_of(NEW)[1], NEUTRAL_KEY}


def test_the_stop_stays_for_a_node_on_its_way_whose_policy_changed_its_mind() -> None:
    stop = key_for("pool-b", render(PluginConfig()))
    fence = make_fence("actuating", steps=2, target_plugin_config=stop, target_mig_config="all-disabled")
    change, _ = plan_config([NEW], [make_node(fence=fence)], MODELS, {}, make_stack(OLD))
    assert change is not None
    assert stop in change.plugin_configs
    change, _ = plan_config([NEW], [make_node()], MODELS, {}, make_stack(OLD))
    assert change is not None
    assert stop not in change.plugin_configs


def test_time_slicing_of_a_named_configuration_lists_the_profiles_of_each_card() -> None:
    policy = make_policy(mig={"config": "all-balanced"}, timeSlicing={"replicas": 2})
    h100, a30 = texts(policy, H100, "NVIDIA A30")
    assert "nvidia.com/mig-1g.10gb" in h100
    assert "nvidia.com/mig-1g.6gb" in a30
    assert "nvidia.com/mig-1g.6gb" not in h100


def test_a_configuration_that_only_a_node_tells_is_written_when_the_node_is_there() -> None:
    policy = make_policy(mig={"config": "all-balanced"}, timeSlicing={"replicas": 2})
    key = pair_of(policy)[1]
    change, _ = plan_config([policy], [], MODELS, {}, make_stack())
    assert change is not None
    assert key not in change.plugin_configs
    wanted = {key: PluginConfig("mixed", Sharing((("nvidia.com/mig-1g.10gb", 2),)))}
    change, _ = plan_config([policy], [], MODELS, wanted, make_stack())
    assert change is not None
    assert key in change.plugin_configs


# --- NVIDIA's names on cards whose PCI device ids we do not know ------------------------------------

PRO, T4, A100 = "NVIDIA RTX PRO 5000 Blackwell", "Tesla T4", "NVIDIA A100-SXM4-40GB"
UNLISTED = replace(make_gpu(product="NVIDIA H200"), product="NVIDIA H20-3e")


@pytest.mark.parametrize("other", [T4, ""], ids=["a card without MIG", "a GPU that never answered"])
def test_a_card_without_known_ids_keeps_its_names_beside(other: str) -> None:
    beside = replace(make_gpu(product=T4), product=other)
    file = migfile.parse(make_stack(models=[make_gpu(product=PRO), beside]).mig_file)
    assert file["all-1g.24gb"] == [{"devices": "all", "mig-enabled": True, "mig-devices": {"1g.24gb": 2}}]


def test_a_gpu_that_never_answered_changes_no_entry() -> None:
    silent = replace(make_gpu(product=T4), product="")
    assert make_stack(models=[make_gpu(), silent]).mig_file == make_stack(models=[make_gpu()]).mig_file


def test_a_node_keeps_the_entry_that_it_names_when_a_card_joins_that_gives_the_name_another_meaning() -> None:
    stack, models = (make_stack(models=[UNLISTED]), {one.product: one for one in (UNLISTED, make_gpu(product=A100))})
    named, gpunodes = make_node(labels={MIG: "all-balanced"}), {"gpu-07": make_gpunode(gpus=[UNLISTED])}
    change, retained = plan_config([], [named], models, {}, stack, gpunodes)
    assert change is not None
    assert retained, "so the next pass asks again"
    gpus = (UNLISTED,)
    kept = migfile.resolve(migfile.parse(change.mig_file)["all-balanced"], gpus)
    assert kept == migfile.well_known(gpus, "all-balanced")
    for free in (make_node(labels={MIG: "all-disabled"}), make_node(labels={MIG: "all-balanced"})):
        reports = {} if free.labels[MIG] == "all-balanced" else gpunodes
        change, _ = plan_config([], [free], models, {}, stack, reports)
        assert change is not None
        assert not lacks(
            migfile.resolve(migfile.parse(change.mig_file)["all-balanced"], gpus),
            "GPU 0",
            "NVIDIA H20-3e",
            "spec.mig.layouts",
        )


def test_an_entry_of_the_admins_replaces_a_well_known_name_under_a_node() -> None:
    stack = replace(
        make_stack(),
        admin_mig_file=f"mig-configs: {{all-balanced: {WHOLE}}}".replace("'", '"').replace("False", "false"),
    )
    change, _ = plan_config(
        [], [make_node(labels={MIG: "all-balanced"})], MODELS, {}, stack, {"gpu-07": make_gpunode()}
    )
    assert change is not None
    assert migfile.parse(change.mig_file)["all-balanced"] == WHOLE
