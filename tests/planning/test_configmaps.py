"""What the two ConfigMaps hold: every policy's entries before any label, and none that a Node still names goes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from tests.build import (
    H100,
    NOW,
    at,
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
from gpusharing.planning.wanted.target import configured_since, known_times

MODELS = {H100: make_gpu()}
OLD, NEW = make_policy(), make_policy(mode="TimeSlicing", generation=2)
WHOLE = [{"devices": "all", "mig-enabled": False}]
PLUGIN, MIG = "nvidia.com/device-plugin.config", "nvidia.com/mig.config"
ENTRY, KEY = pair_of(OLD)


def planned(
    stack: StackView,
    *policies: PolicyView,
    nodes: Iterable[NodeView] = (),
    models: Mapping[str, GpuView] = MODELS,
    plugins: Mapping[str, PluginConfig] = MappingProxyType({}),
    gpunodes: Mapping[str, GPUNodeView] = MappingProxyType({}),
) -> tuple[WriteConfig | None, bool]:
    return objects.plan_config(wishes_of(policies), models, plugins, stack, nodes=tuple(nodes), gpunodes=gpunodes)


def written(stack: StackView, *policies: PolicyView, **more: Any) -> WriteConfig:
    change, _ = planned(stack, *policies, **more)
    assert change is not None
    return change


def kept(stack: StackView, *nodes: NodeView) -> tuple[bool, bool]:
    """Whether KEY and ENTRY are still there when the policy has become NEW."""
    change = written(stack, NEW, nodes=nodes)
    return KEY in change.plugin_configs, ENTRY in migfile.parse(change.mig_file)


def test_a_new_policy_gets_its_entries_before_any_label_names_them() -> None:
    stack = make_stack(OLD)
    assert "mixed" in stack.plugin_configs[KEY]
    assert migfile.parse(stack.mig_file)[ENTRY] == [
        {"devices": "all", "mig-enabled": True, "mig-devices": {"3g.40gb": 2}}
    ]


def test_what_is_there_is_not_written_again() -> None:
    assert planned(make_stack(OLD), OLD, nodes=[make_node()]) == (None, False)


NAMING: dict[str, tuple[NodeView, bool]] = {
    "nobody": (make_node(), False),
    "a label": (make_node(labels={PLUGIN: KEY, MIG: ENTRY}), True),
    "a fence": (make_node(fence=make_fence("actuating", target_plugin_config=KEY, target_mig_config=ENTRY)), True),
    "the last verified pair": (make_node(verified=Verified("pool-b", ENTRY, KEY, layout="1x full", gpus=1)), True),
}


@pytest.mark.parametrize(("node", "stays"), NAMING.values(), ids=NAMING)
def test_an_entry_stays_while_it_is_named_by(node: NodeView, stays: bool) -> None:
    assert kept(make_stack(OLD), node) == (stays, stays)


def test_entries_that_only_nodes_keep_are_looked_at_again() -> None:
    stack, nodes = make_stack(OLD, NEW), [make_node(labels={PLUGIN: KEY, MIG: ENTRY})]
    change, retained = planned(stack, NEW, nodes=nodes)
    assert change is not None, "the stop between MPS and MIG, which nobody names"
    assert retained
    written = dict.fromkeys([*change.plugin_configs, *migfile.parse(change.mig_file)], NOW)
    stack = replace(stack, plugin_configs=change.plugin_configs, mig_file=change.mig_file, written=written)
    assert planned(stack, NEW, nodes=nodes) == (None, True)


def test_the_admins_entries_are_merged_and_win_over_generated_names() -> None:
    admin = (
        "mig-configs: {all-balanced: [{devices: all, mig-enabled: false}], mine: [{devices: [0], mig-enabled: false}]}"
    )
    entries = merged(admin)
    assert entries["mine"] == [{"devices": [0], "mig-enabled": False}]
    assert entries["all-balanced"] == WHOLE
    assert ENTRY in entries


def merged(admin: str) -> Mapping[str, migfile.Entry]:
    stack = make_stack(OLD, admin_mig_file=admin)
    change, _ = planned(stack, OLD)
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
    change = written(stack, OLD, nodes=[make_node(labels={MIG: "spare"})])
    assert migfile.parse(change.mig_file).keys() == entries.keys() - {"spare"}
    assert not migfile.is_rendered(stack.mig_file), "so that the nodes wait until the corrected file has reached them"


def test_entries_merged_before_stay_while_the_admins_file_cannot_be_read() -> None:
    stack = make_stack(OLD, admin_mig_file="mig-configs: {mine: [{devices: all, mig-enabled: false}]}")
    stack = replace(stack, mig_file=written(stack, OLD).mig_file, written={**stack.written, "mine": NOW})
    for broken in ("{", "mig-configs: [", "mig-configs: 7", "mig-configs: {mine: [{devices: al}]}"):
        assert planned(replace(stack, admin_mig_file=broken), OLD) == (None, True)
    change = written(replace(stack, admin_mig_file="mig-configs: {}"), OLD)
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
    stack = make_stack(OLD, admin_plugin_configs={KEY: TS_4})
    assert after(stack, OLD)[KEY] == make_stack(OLD).plugin_configs[KEY]


def test_a_merged_configuration_stays_while_a_node_names_it_and_its_own_configmap_is_gone() -> None:
    stack = make_stack(plugin_configs={"ts-4": TS_4, "ts-8": TS_4, NEUTRAL_KEY: NEUTRAL})
    kept = after(stack, nodes=[make_node(labels={PLUGIN: "ts-4"})])
    assert kept == {"ts-4": TS_4, NEUTRAL_KEY: NEUTRAL}


# --- the neutral entry ------------------------------------------------------------------------------


def after(stack: StackView, *policies: PolicyView, nodes: Sequence[NodeView] = ()) -> Mapping[str, str]:
    change, _ = planned(stack, *policies, nodes=nodes)
    return stack.plugin_configs if change is None else change.plugin_configs


def test_without_a_policy_the_plugins_configmap_holds_the_neutral_entry_and_no_other() -> None:
    """config-manager ends when there is no entry at all: the device plugin's and GFD's pods would not start."""
    assert after(make_stack()) == {NEUTRAL_KEY: NEUTRAL}
    assert after(make_stack(OLD)) == {NEUTRAL_KEY: NEUTRAL}, "also after the last policy"


def test_the_neutral_entry_shares_nothing_and_is_the_one_that_the_fallback_named_takes() -> None:
    assert (NEUTRAL_KEY, parse(NEUTRAL)) == ("default", PluginConfig())


def test_the_neutral_entry_is_no_entry_that_only_nodes_keep() -> None:
    assert planned(make_stack()) == (None, False)


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
    change = written(replace(stack, plugin_configs=behind), OLD, nodes=[make_node()])
    assert change.plugin_configs == stack.plugin_configs
    assert key not in behind


def test_a_foreign_key_stays_while_a_label_or_cluster_policys_default_names_it() -> None:
    default = make_cluster_policy(plugin_default="for-all")
    stack = make_stack(OLD, cluster_policy=default)
    stack = replace(stack, plugin_configs={**stack.plugin_configs, "for-all": "a", "theirs": "b", "x": "c"})
    change = written(stack, OLD, nodes=[make_node(labels={PLUGIN: "theirs"})])
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
    assert written(replace(stack, mig_file=damage(stack.mig_file)), OLD).mig_file == stack.mig_file


def test_what_a_node_still_names_comes_back_when_somebody_edits_or_deletes_it() -> None:
    old, node = make_stack(OLD), make_node(labels={PLUGIN: KEY, MIG: ENTRY})
    seen: dict[str, Any] = {
        "seen_plugin_configs": {KEY: old.plugin_configs[KEY]},
        "seen_mig_entries": {ENTRY: migfile.parse(old.mig_file)[ENTRY]},
    }
    for left in ({}, {KEY: "version: v9"}):
        stack = replace(make_stack(NEW), plugin_configs=left, **seen)
        change = written(stack, NEW, nodes=[node])
        assert change.plugin_configs[KEY] == old.plugin_configs[KEY]
        assert migfile.parse(change.mig_file)[ENTRY] == migfile.parse(old.mig_file)[ENTRY]
        assert KEY not in written(stack, NEW, nodes=[make_node()]).plugin_configs


def test_what_a_node_still_names_stays_when_somebody_edits_the_version_of_the_file() -> None:
    edited = make_stack(OLD).mig_file.replace("version: v1", "version: v2")
    assert kept(replace(make_stack(OLD), mig_file=edited), make_node(labels={MIG: ENTRY}))[1]


@pytest.mark.parametrize("lost", [{"marked": False}, {"written": {}}], ids=["label", "times"])
def test_marks_of_ours_that_somebody_took_off_are_put_on_again(lost: dict[str, Any]) -> None:
    stack = replace(make_stack(OLD), **lost)
    assert written(stack, OLD) == WriteConfig(stack.plugin_configs, stack.mig_file)


def test_a_config_map_of_somebody_else_is_not_written() -> None:
    stack = replace(make_stack(), plugin_configs={"theirs": "x"}, foreign_maps=("gpusharing-device-plugin",))
    assert planned(stack, OLD, nodes=[make_node()]) == (None, False)


def test_a_second_card_model_adds_its_names() -> None:
    models = {**MODELS, "NVIDIA H200": make_gpu(product="NVIDIA H200")}
    change = written(make_stack(OLD), OLD, models=models)
    assert {"all-1g.10gb", "all-1g.18gb"} <= migfile.parse(change.mig_file).keys()


def test_a_missing_config_map_is_written_even_when_no_policy_needs_it() -> None:
    stack = make_stack(cluster_policy=make_cluster_policy(), plugin_map_exists=False)
    assert written(stack).plugin_configs == {NEUTRAL_KEY: NEUTRAL}


def test_a_policy_that_cannot_be_read_adds_nothing_and_one_under_deletion_keeps_its_entries_until_it_is_gone() -> None:
    broken = PolicyView("x", "uid-x", 1, "", False, False, False, None)
    going = make_policy(deleting=True, finalizer=True)
    assert planned(make_stack(OLD), OLD, broken) == planned(make_stack(OLD), going) == (None, False)


def test_every_place_where_a_node_names_an_entry_counts() -> None:
    node = make_node(
        labels={PLUGIN: "a", MIG: "b"},
        fence=make_fence(target_plugin_config="c", target_mig_config="d"),
        verified=Verified("pool-b", "e", "f", layout="1x full", gpus=1),
    )
    assert {"a", "b", "c", "d", "e", "f"} <= referenced_entries([node])


def texts(policy: PolicyView, *products: str) -> list[str]:
    stack = make_stack(policy, models=[make_gpu(product=product) for product in products])
    return [stack.plugin_configs[pair_of(policy, make_gpu(product=product))[1]] for product in products]


def test_mps_and_mig_bring_the_configuration_of_the_stop_between_them() -> None:
    for policy in (make_policy(mode="MPS"), OLD, make_policy(timeSlicing={"replicas": 2})):
        change = written(make_stack(), policy)
        stop = key_for("pool-b", render(PluginConfig()))
        assert change.plugin_configs[stop] == render(PluginConfig())
        assert pair_of(policy)[1] in change.plugin_configs


def test_a_policy_without_mps_and_mig_needs_no_stop() -> None:
    assert set(written(make_stack(), NEW).plugin_configs) == {pair_of(NEW)[1], NEUTRAL_KEY}


def test_the_stop_stays_for_a_node_on_its_way_whose_policy_changed_its_mind() -> None:
    stop = key_for("pool-b", render(PluginConfig()))
    fence = make_fence("actuating", steps=2, target_plugin_config=stop, target_mig_config="all-disabled")
    assert stop in written(make_stack(OLD), NEW, nodes=[make_node(fence=fence)]).plugin_configs
    assert stop not in written(make_stack(OLD), NEW, nodes=[make_node()]).plugin_configs


def test_time_slicing_of_a_named_configuration_lists_the_profiles_of_each_card() -> None:
    policy = make_policy(mig={"config": "all-balanced"}, timeSlicing={"replicas": 2})
    h100, a30 = texts(policy, H100, "NVIDIA A30")
    assert "nvidia.com/mig-1g.10gb" in h100
    assert "nvidia.com/mig-1g.6gb" in a30
    assert "nvidia.com/mig-1g.6gb" not in h100


def test_a_configuration_that_only_a_node_tells_is_written_when_the_node_is_there() -> None:
    policy = make_policy(mig={"config": "all-balanced"}, timeSlicing={"replicas": 2})
    key = pair_of(policy)[1]
    assert key not in written(make_stack(), policy).plugin_configs
    wanted = {key: PluginConfig("mixed", Sharing((("nvidia.com/mig-1g.10gb", 2),)))}
    assert key in written(make_stack(), policy, plugins=wanted).plugin_configs


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
    change, retained = planned(stack, nodes=[named], models=models, gpunodes=gpunodes)
    assert change is not None
    assert retained, "so the next pass asks again"
    gpus = (UNLISTED,)
    kept = migfile.resolve(migfile.parse(change.mig_file)["all-balanced"], gpus)
    assert kept == migfile.well_known(gpus, "all-balanced")
    for free in (make_node(labels={MIG: "all-disabled"}), make_node(labels={MIG: "all-balanced"})):
        reports = {} if free.labels[MIG] == "all-balanced" else gpunodes
        change = written(stack, nodes=[free], models=models, gpunodes=reports)
        said = migfile.resolve(migfile.parse(change.mig_file)["all-balanced"], gpus)
        assert not lacks(said, "GPU 0", "NVIDIA H20-3e", "spec.mig.layouts")


def test_an_entry_of_the_admins_replaces_a_well_known_name_under_a_node() -> None:
    stack = replace(
        make_stack(),
        admin_mig_file=f"mig-configs: {{all-balanced: {WHOLE}}}".replace("'", '"').replace("False", "false"),
    )
    change = written(stack, nodes=[make_node(labels={MIG: "all-balanced"})], gpunodes={"gpu-07": make_gpunode()})
    assert migfile.parse(change.mig_file)["all-balanced"] == WHOLE


# --- since when they hold just what a node needs: the content counts, not the name ------------------------------------

STACK = make_stack(OLD, written_at=at(-100))
TEXT = STACK.plugin_configs[KEY]
FILE = STACK.mig_file


def since(stack: StackView) -> datetime | None:
    return configured_since((KEY, TEXT), ENTRY, [(("3g.40gb", 2),)], [make_gpu()], stack)


def test_it_is_the_later_one_of_the_two_times_of_writing() -> None:
    assert since(STACK) == at(-100)
    assert since(replace(STACK, written={**STACK.written, ENTRY: at(-7)})) == at(-7)
    assert since(replace(STACK, written={**STACK.written, KEY: at(-5)})) == at(-5)


def test_a_time_that_is_yet_to_come_says_nothing() -> None:
    times = {"earlier": at(-1), "now": at(0), "later": at(3)}
    assert known_times(times, at(0)) == {"earlier": at(-1), "now": at(0)}


def test_the_time_of_an_operator_before_counts_though_its_clock_was_a_little_ahead() -> None:
    """Otherwise who starts just after a write would write both ConfigMaps again, with nothing new in them."""
    assert known_times({"by the one before": at(1)}, at(0)) == {"by the one before": at(1)}


MISSING: dict[str, dict[str, Any]] = {
    "no key": {"plugin_configs": {}},
    "an edited key": {"plugin_configs": {KEY: "version: v1\n"}},
    "no file": {"mig_file": ""},
    "another meaning of the entry": {"mig_file": FILE.replace("3g.40gb: 2", "3g.40gb: 1")},
    "a file that mig-parted refuses": {"mig_file": FILE + "mine: 1\n"},
    "no time of the key": {"written": {ENTRY: at(-9)}},
    "no time of the entry": {"written": {KEY: at(-9)}},
}


@pytest.mark.parametrize("fields", MISSING.values(), ids=MISSING.keys())
def test_it_does_not_hold_with(fields: dict[str, Any]) -> None:
    assert since(replace(STACK, **fields)) is None


def test_where_mig_manager_reads_another_file_ours_does_not_matter() -> None:
    theirs = make_cluster_policy(mig_config_name="theirs")
    elsewhere = replace(STACK, cluster_policy=theirs, serves_our_mig_file=False, mig_file="")
    assert since(elsewhere) == at(-100)
