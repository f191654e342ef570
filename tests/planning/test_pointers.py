"""ClusterPolicy's two pointers: which the operator sets itself, and what it says about those that it does not."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import (
    NO_MIG_MANAGER,
    NOW,
    SETTINGS,
    make_cluster_policy,
    make_effects,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_policy,
    make_snapshot,
    make_stack,
    make_start,
)
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import SetPointers, WriteConfig
from gpusharing.planning.snapshot.nvidia import (
    PLUGIN_SWITCH,
    ClusterPolicyView,
    DaemonSetState,
    DraView,
    PlainStackView,
    StackView,
)
from gpusharing.planning.snapshot.views import GpuView, PlanSettings, PolicyView
from gpusharing.planning.stack.acceptance import find_objection
from gpusharing.planning.stack.effects import (
    MIG_POINTER,
    PLUGIN_POINTER,
    UPSTREAM_MIG_CONFIG,
    find_effects,
    is_unresolved,
)
from gpusharing.planning.stack.pointers import mig_pointer, plan_pointers, plugin_pointer
from gpusharing.planning.vocabulary.commands import Effect
from gpusharing.planning.vocabulary.lengths import MAX_TEXT
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.migfile import parse

ASKED = replace(SETTINGS, configure_gpu_operator=True)
PLUGIN, MIG = SETTINGS.plugin_config_map, SETTINGS.mig_config_map
BARE = make_cluster_policy("", mig_config_name="")
BOTH = {PLUGIN_POINTER: PLUGIN, MIG_POINTER: MIG}
ROWS = "mig-configs: {parts: [{device-filter: '0x20B010DE', devices: all, mig-enabled: false}]}"


def stack(policy: ClusterPolicyView | None = BARE, **fields: Any) -> StackView:
    return make_stack(make_policy(), cluster_policy=policy, **fields)


def wanted(found: StackView, *, quiet: bool = True) -> dict[str, str]:
    action = plan_pointers(found, ASKED, quiet=quiet)
    return dict(action.wanted) if action is not None else {}


SET: dict[str, tuple[StackView, dict[str, str]]] = {
    "both where nothing is set": (stack(), BOTH),
    "mig-manager's over what the CRD makes of nothing": (
        stack(replace(BARE, mig_config_name=UPSTREAM_MIG_CONFIG)), BOTH),
    "only mig-manager's where the plugin's is ours": (
        stack(replace(BARE, plugin_config_name=PLUGIN)), {MIG_POINTER: MIG}),
    "only mig-manager's where the plugin's is somebody else's": (
        stack(replace(BARE, plugin_config_name="theirs")), {MIG_POINTER: MIG}),
    "only the plugin's where mig-manager's is somebody else's": (
        stack(replace(BARE, mig_config_name="theirs")), {PLUGIN_POINTER: PLUGIN}),
    "the plugin's beside a default that our ConfigMap holds": (
        stack(replace(BARE, plugin_default="default")), BOTH),
    "not the plugin's beside a default that our ConfigMap does not hold": (
        stack(replace(BARE, plugin_default="theirs")), {MIG_POINTER: MIG}),
    "not the plugin's while a Node names an entry that our ConfigMap does not hold": (
        stack(effects=make_effects(unplugged={"gpu-07": "theirs"})), {MIG_POINTER: MIG}),
    "not mig-manager's while a Node names an entry that our file does not hold": (
        stack(effects=make_effects(unresolved={"gpu-07": "theirs"})), {PLUGIN_POINTER: PLUGIN}),
    "not mig-manager's while its restart would change GPUs": (
        stack(effects=make_effects(starts=(make_start("gpu-07", "why", "all-1g.10gb"),))), {PLUGIN_POINTER: PLUGIN}),
    "not mig-manager's while nobody knows what its restart would change": (
        stack(effects=make_effects(starts=(make_start("gpu-07", "why", known=False),))), {PLUGIN_POINTER: PLUGIN}),
    "not the one that it has set before": (
        stack(replace(BARE, configured=frozenset({PLUGIN_POINTER}))), {MIG_POINTER: MIG}),
    "nothing where both are ours": (stack(make_cluster_policy()), {}),
    "nothing where there is no ClusterPolicy": (stack(None), {}),
    "nothing where NVIDIA's device-plugin chart stands alone": (
        stack(replace(BARE, plain=PlainStackView("plugin", "nvdp"))), {}),
    "nothing where the DRA stack serves the GPUs": (stack(gpu_cluster=True), {}),
    "nothing where NVIDIA's pods run in another namespace": (stack(replace(BARE, namespace="nvidia")), {}),
    "nothing before the plugin's ConfigMap is there": (stack(plugin_map_exists=False), {}),
    "nothing before the plugin's ConfigMap holds anything": (stack(plugin_configs={}), {}),
    "nothing before mig-manager's ConfigMap is written": (stack(mig_file=""), {}),
    "nothing where a ConfigMap of ours is somebody else's": (stack(foreign_maps=(PLUGIN,)), {}),
    "nothing where it has set both before": (stack(replace(BARE, configured=frozenset(BOTH))), {}),
    "nothing where both are somebody else's": (
        stack(replace(BARE, plugin_config_name="theirs", mig_config_name="theirs")), {}),
    "nothing where the plugin's is what only mig-manager's may be": (
        stack(replace(BARE, plugin_config_name=UPSTREAM_MIG_CONFIG, mig_config_name=MIG)), {}),
}  # fmt: skip


@pytest.mark.parametrize(("found", "pointers"), SET.values(), ids=SET.keys())
def test_it_sets(found: StackView, pointers: dict[str, str]) -> None:
    assert wanted(found) == pointers


def test_where_the_dra_driver_serves_the_gpus_only_mig_managers_is_set_once_nothing_is_missing() -> None:
    complete = stack(replace(BARE, switches={PLUGIN_SWITCH: False}), dra=DraView(DaemonSetState("driver")))
    assert wanted(complete) == {MIG_POINTER: MIG}
    assert wanted(replace(complete, dra=replace(complete.dra, doubles=("gpu-1",)))) == {}


def test_it_sets_nothing_unless_it_is_asked_to() -> None:
    assert plan_pointers(stack(), SETTINGS, quiet=True) is None


@pytest.mark.parametrize("fenced", [False, True], ids=["idle nodes", "a node in the middle of a change"])
def test_operands_are_not_restarted_under_a_change(fenced: bool) -> None:
    node = make_node(fence=make_fence()) if fenced else make_node()
    found = make_stack(cluster_policy=make_cluster_policy(mig_config_name=""))
    snapshot = make_snapshot([node], gpunodes=[make_gpunode()], stack=found, settings=ASKED)
    plan = plan_rollout(snapshot, NOW)
    assert [action for action in plan.shared if isinstance(action, SetPointers)] == (
        [] if fenced else [SetPointers(found.cluster_policy or BARE, {MIG_POINTER: MIG})]
    )


def test_operands_are_not_restarted_while_a_configmap_is_about_to_change() -> None:
    found = make_stack(cluster_policy=make_cluster_policy(mig_config_name=""))
    gpunodes = [make_gpunode(), make_gpunode("late", gpus=[make_gpu(product=A100)])]
    snapshot = make_snapshot([make_node(), make_node("late")], gpunodes=gpunodes, stack=found, settings=ASKED)
    (write,) = plan_rollout(snapshot, NOW).shared
    assert isinstance(write, WriteConfig)


A100 = "NVIDIA A100-SXM4-40GB"
H100 = make_gpu()
MANAGED = "nvidia.com/gpu.deploy.mig-manager"
UNRESOLVED: dict[str, tuple[str, GpuView | None, StackView, bool]] = {
    "a name that our file does not have yet": ("all-1g.10gb", H100, stack(models=[]), True),
    "a name that nobody knows": ("typo", H100, stack(), True),
    "a name that other cards have": ("all-1g.5gb", H100, stack(models=[H100, make_gpu(product=A100)]), True),
    "a name that means something else on other cards": (
        "all-balanced", H100, stack(models=[make_gpu(product=A100)]), True),
    "any name before the agent has reported": ("all-1g.10gb", None, stack(), True),
    "not a name of its card": ("all-1g.10gb", H100, stack(), False),
    "not an entry of the admin's": ("parts", None, stack(admin_mig_file=ROWS, mig_file=ROWS), False),
    "but an entry of the admin's that is not merged yet": (
        "parts", H100, stack(admin_mig_file=ROWS), True),
    "not all-disabled, which covers every card": ("all-disabled", None, stack(), False),
    "not a card without MIG": ("all-1g.10gb", make_gpu(product="Tesla T4"), stack(), False),
    "not a Node without the label": ("", H100, stack(models=[]), False),
}  # fmt: skip


@pytest.mark.parametrize(("name", "gpu", "found", "lost"), UNRESOLVED.values(), ids=UNRESOLVED.keys())
def test_mig_manager_would_not_find(name: str, gpu: GpuView | None, found: StackView, lost: bool) -> None:
    labels = {MANAGED: "true"} | ({names.LABEL_MIG_CONFIG: name} if name else {})
    node, gpunodes = make_node(labels=labels), [make_gpunode(gpus=[gpu])] if gpu is not None else []
    assert is_unresolved(node, make_snapshot([node], gpunodes=gpunodes, stack=found)) is lost


@pytest.mark.parametrize(
    ("switch", "reported", "lost"),
    [
        ({}, False, False),
        ({MANAGED: "false"}, False, False),
        ({MANAGED: "true"}, False, True),
        ({MANAGED: "paused-for-driver-upgrade"}, False, True),
        ({}, True, True),
    ],
    ids=["a node without GPUs", "switched off", "not reported yet", "paused", "a reported GPU"],
)
def test_a_node_counts_only_if_mig_manager_may_run_there(switch: dict[str, str], reported: bool, lost: bool) -> None:
    node = make_node("cpu-1", labels={names.LABEL_MIG_CONFIG: "typo", **switch})
    gpunodes = [make_gpunode("cpu-1", gpus=[H100])] if reported else []
    assert is_unresolved(node, make_snapshot([node], gpunodes=gpunodes, stack=stack())) is lost


def test_mig_manager_needs_no_entry_for_a_gpu_without_mig_beside_one_with_it() -> None:
    cards = [H100, make_gpu(1, product="Tesla T4")]
    found = stack(models=cards)
    assert all("device-filter" in row for row in parse(found.mig_file)["all-1g.10gb"])
    node = make_node(labels={names.LABEL_MIG_CONFIG: "all-1g.10gb"})
    assert not is_unresolved(node, make_snapshot([node], gpunodes=[make_gpunode(gpus=cards)], stack=found))


FULL = make_policy(mode="Full")


def objected(found: StackView, policy: PolicyView = FULL, settings: PlanSettings = SETTINGS) -> str:
    objection = find_objection(policy, found, settings)
    assert objection is not None
    return objection.message


SAID: dict[str, tuple[StackView, str]] = {
    "who set it": (
        stack(replace(BARE, plugin_config_name="theirs", plugin_config_setter="helm")),
        "devicePlugin.config.name is theirs (set by helm), so gpusharing-device-plugin is not read; the operator"
        " never overwrites what someone else has set"),
    "that somebody changed it back": (
        stack(replace(BARE, configured=frozenset({PLUGIN_POINTER}))),
        "is not set, so gpusharing-device-plugin is not read; the operator set it once"),
    "what has to be merged before the pointer moves": (
        stack(replace(BARE, plugin_config_name="theirs")),
        "; if Nodes use entries of theirs, first set chart value gpuOperator.adminPluginConfigMap=theirs"),
    "which default is in the way, and takes it away in the command": (
        stack(replace(BARE, plugin_default="theirs")),
        'devicePlugin.config.default is theirs, which gpusharing-device-plugin does not contain; run: kubectl patch'
        ' clusterpolicy cluster-policy --type merge -p \'{"spec":{"devicePlugin":{"config":'
        '{"name":"gpusharing-device-plugin","default":null}}}}\''),
    "why it could not": (stack(pointer_error="not allowed to patch"), "could not set it (chart value"
        " gpuOperator.configure): not allowed to patch; run: kubectl"),
    "who set it, although a write failed before": (
        stack(replace(BARE, plugin_config_name="theirs"), pointer_error="not allowed to patch"),
        "never overwrites what someone else has set"),
    "which default is in the way, although a write failed before": (
        stack(replace(BARE, plugin_default="theirs"), pointer_error="not allowed to patch"),
        "devicePlugin.config.default is theirs, which gpusharing-device-plugin does not contain"),
    "what it waits for": (stack(), "the operator will set it (chart value gpuOperator.configure) once both ConfigMaps"),
}  # fmt: skip


@pytest.mark.parametrize(("found", "words"), SAID.values(), ids=SAID.keys())
def test_the_condition_says(found: StackView, words: str) -> None:
    said = objected(found, settings=ASKED)
    assert words in said
    assert "run: kubectl patch clusterpolicy cluster-policy" in said


def test_the_condition_says_which_entry_of_a_node_is_in_the_way_and_gives_no_command() -> None:
    said = objected(stack(effects=make_effects(unplugged={"gpu-07": "theirs"})), settings=ASKED)
    assert not lacks(said, "gpuOperator.configure", "gpusharing-device-plugin", "theirs")
    assert "kubectl patch" not in said


def test_the_condition_about_layouts_says_the_same() -> None:
    found = stack(make_cluster_policy(mig_config_name="theirs"), serves_our_mig_file=False)
    said = objected(found, make_policy(), ASKED)
    assert not lacks(said, "theirs", "never overwrites")


MIG_SAID: dict[str, tuple[str, str, str]] = {
    "nothing is set": ("", "", "; Nodes use all-1g.10gb (gpu-07), which gpusharing-mig-parted does not contain for"
        " their GPUs, or their agent has not reported: wait until the agents have"
        " reported their GPUs, or correct the label nvidia.com/mig.config, or mig-manager will fail"),
    "the CRD's default is set": (UPSTREAM_MIG_CONFIG, "", "which gpusharing-mig-parted does not contain for"),
    "the admin's is set": ("theirs", "", "first set chart value gpuOperator.adminMigConfigMap=theirs, or mig-manager"),
    "the admin's is set and merged": (
        "theirs", ROWS, "which gpusharing-mig-parted and theirs do not contain for their GPUs"),
}  # fmt: skip


@pytest.mark.parametrize(("now", "admin", "words"), MIG_SAID.values(), ids=MIG_SAID.keys())
def test_a_command_after_which_mig_manager_would_fail_is_not_told(now: str, admin: str, words: str) -> None:
    cluster_policy = make_cluster_policy(mig_config_name=now)
    found = stack(cluster_policy, effects=make_effects(unresolved={"gpu-07": "all-1g.10gb"}), admin_mig_file=admin)
    said = objected(found, make_policy(), ASKED)
    assert words in said
    assert "; run:" not in said


def test_the_nodes_for_which_mig_manager_waits_are_named() -> None:
    found = stack(effects=make_effects(unresolved=dict.fromkeys(("gpu-08", "gpu-07"), "all-1g.10gb")))
    said = objected(found, make_policy(), ASKED)
    assert not lacks(said, "all-1g.10gb (gpu-07, gpu-08)", "gpusharing-mig-parted", "wait until the agents")


DIVIDED = make_start("gpu-1", "nvidia.com/mig.config is all-disabled, but its GPUs have 7x1g.10gb", "all-1g.10gb")
ODD = make_start("gpu-2", "nvidia.com/mig.config is all-disabled, but its GPUs have 3x1g.10gb")
SILENT = make_start("gpu-3", "no agent has read its GPUs", known=False)
LABEL = "kubectl label node gpu-1 --overwrite nvidia.com/mig.config=all-1g.10gb && "


def test_nodes_are_labeled_with_what_they_have_before_mig_manager_reads_our_file() -> None:
    found = stack(replace(BARE, plugin_config_name=PLUGIN), effects=make_effects(starts=(DIVIDED,)))
    said = objected(found, make_policy(), ASKED)
    assert not lacks(said, "nvidia.com/mig.config", "GPUs at its start on gpu-1")
    patch = """kubectl patch clusterpolicy cluster-policy --type merge -p '{"spec":{"migManager":"""
    assert f"; run: {LABEL}{patch}" in said


def test_nodes_are_labeled_with_what_they_have_before_mig_manager_is_switched_on() -> None:
    off = make_cluster_policy(switches=NO_MIG_MANAGER)
    objection = find_objection(make_policy(), stack(off, effects=make_effects(starts=(DIVIDED,))), SETTINGS)
    assert objection is not None
    assert objection.reason is Reason.MIG_MANAGER_DISABLED
    assert f"; run: {LABEL}kubectl patch clusterpolicy cluster-policy" in objection.message
    assert '"migManager":{"enabled":true}' in objection.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (ODD, "no configuration has the layout of gpu-2: put an entry with it into a ConfigMap of your own"),
        (
            SILENT,
            "it is unknown what mig-manager would change at its start on gpu-3 (no agent has read its GPUs)",
        ),
    ],
    ids=["a layout without a name", "a node without a report"],
)
def test_no_command_starts_mig_manager_where_no_label_can_protect_a_node(change: Effect, words: str) -> None:
    bare = stack(effects=make_effects(starts=(DIVIDED, change)))
    off = stack(make_cluster_policy(switches=NO_MIG_MANAGER), effects=make_effects(starts=(DIVIDED, change)))
    for found in (bare, off):
        said = objected(found, make_policy())
        assert words in said
        assert 'migManager":' not in said
    assert (
        """; run: kubectl patch clusterpolicy cluster-policy --type merge -p '{"spec":{"devicePlugin\""""
        in objected(bare, make_policy())
    )


def test_more_labels_than_a_message_can_have_are_left_to_import() -> None:
    many = tuple(replace(DIVIDED, node=f"gpu-{number:040}") for number in range(20))
    said = objected(stack(effects=make_effects(starts=many)), make_policy())
    assert len(said) <= MAX_TEXT
    assert not lacks(said, "17 more", "kubectl gpusharing doctor", "run: kubectl patch")
    assert 'migManager":' not in said


def test_a_policy_without_mig_does_not_speak_of_mig_manager() -> None:
    assert "mig-manager" not in objected(stack(effects=make_effects(starts=(DIVIDED,))))


def test_without_being_asked_the_command_stays_alone() -> None:
    said = objected(stack())
    assert not lacks(said, "is not set", "gpusharing-device-plugin", "run: kubectl patch")
    assert "gpuOperator.configure" not in said


def test_what_is_merged_already_is_not_asked_for() -> None:
    found = stack(replace(BARE, plugin_config_name="theirs"), admin_plugin_configs={"ts-4": "version: v1"})
    assert "adminPluginConfigMap" not in objected(found)


THEIRS, OTHER = replace(BARE, plugin_config_name="theirs"), {"other": "version: v1"}
MERGE = "first set chart value gpuOperator.adminPluginConfigMap=theirs, or their device plugins will not start"
STOPPING: dict[str, tuple[StackView, str]] = {
    "an entry that a label names and another merged ConfigMap does not hold": (
        stack(THEIRS, admin_plugin_configs=OTHER, effects=make_effects(unplugged={"gpu-07": "old-entry"})),
        f"; Nodes use old-entry, which gpusharing-device-plugin does not contain: {MERGE}"),
    "the default of nodes without a label": (
        stack(replace(THEIRS, plugin_default="usual"), admin_plugin_configs=OTHER), "; Nodes use usual, which"),
    "entries, of which three are named": (
        stack(THEIRS, effects=make_effects(unplugged={one: one for one in "abcd"})), "; Nodes use a, b, c and 1 more, which"),
    "an entry that nothing holds": (
        stack(effects=make_effects(unplugged={"gpu-07": "old-entry"})), "first remove the label nvidia.com/device-plugin.config"),
    "an entry under NVIDIA's own chart": (
        stack(replace(THEIRS, plain=PlainStackView("plugin", "nvdp")), effects=make_effects(unplugged={"gpu-07": "old"})),
        MERGE),
}  # fmt: skip


@pytest.mark.parametrize(("found", "words"), STOPPING.values(), ids=STOPPING.keys())
def test_a_command_after_which_device_plugins_would_not_start_is_not_told_for(found: StackView, words: str) -> None:
    said = objected(found)
    assert words in said
    assert "; run:" not in said


def test_an_admins_configmap_that_is_not_there_is_named() -> None:
    assert not lacks(objected(stack(THEIRS, missing_maps=("thiers",))), "ConfigMap thiers", "does not exist")


@pytest.mark.parametrize("entries", [{}, {"default": "version: v1\n"}], ids=["missing", "written"])
def test_nobody_is_told_to_point_the_device_plugin_at_a_configmap_without_entries(entries: dict[str, str]) -> None:
    """config-manager exits there (docs/design/nvidia.md#b4)."""
    nodes = [make_node(resources={"nvidia.com/gpu": 8}), make_node("idle", resources={"nvidia.com/gpu": 0})]
    snapshot = make_snapshot(nodes, gpunodes=(), stack=stack(plugin_configs=entries))
    effects = find_effects(plugin_pointer(BARE, SETTINGS, entries).change, snapshot)
    why = f"its device plugin could not start while {PLUGIN} has no entry"
    assert [(one.node, one.why) for one in effects] == ([] if entries else [(nodes[0].name, why)])
    pointed = {plugin_pointer(BARE, SETTINGS, entries).change: effects, mig_pointer(BARE, SETTINGS).change: ()}
    found = stack(plugin_configs=entries, effects=pointed)
    said = objected(found, make_policy())
    assert ('"devicePlugin"' in said) == bool(entries)


@pytest.mark.parametrize(
    ("config", "agents", "lost"),
    [("all-1g.10gb", (), True), ("all-1g.10gb", None, False), ("all-disabled", (), False), ("", (), False)],
    ids=["unread and contradictory", "an agent has read it", "as it says", "unlabeled"],
)
def test_a_node_whose_label_and_offers_contradict_each_other_is_unknown_until_an_agent_reads_it(
    config: str, agents: tuple[str, ...] | None, lost: bool
) -> None:
    """Its plugin may be older than its MIG instances, or mig-manager has failed halfway (docs/design/nvidia.md#a6)."""
    node = make_node(labels={names.LABEL_MIG_CONFIG: config}, resources={"nvidia.com/gpu": 2})
    entries = {"default": "version: v1\nflags: {migStrategy: mixed}\n"}
    policy = make_cluster_policy("", mig_strategy="mixed")
    gpunode = make_gpunode(node.name, gpus=(make_gpu(0), make_gpu(1)))
    snapshot = make_snapshot([node], gpunodes=[gpunode], agents=agents, stack=stack(policy, plugin_configs=entries))
    effects = find_effects(plugin_pointer(policy, SETTINGS, entries).change, snapshot)
    assert [(one.node, one.known) for one in effects] == ([(node.name, False)] if lost else [])
