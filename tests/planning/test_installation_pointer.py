"""What comes before the device plugin's pointer moves: the entries that Nodes name must be in our ConfigMap."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import make_gpu, make_gpunode, make_node, make_stack
from tests.planning.test_installation import MIG, PLUGIN, plain, pointers
from tests.seen import Seen, make_agent_pod, make_map
from tests.wording import lacks

from gpusharing.api.names import LABEL_MIG_CONFIG, LABEL_PLUGIN_CONFIG
from gpusharing.planning.wanted.migfile import MIG_KEY

SET = "--set gpuOperator.adminPluginConfigMap=theirs"
MERGE = f"helm upgrade gpusharing CHART -n gpusharing --reset-then-reuse-values {SET}"
THEIRS = pointers(plugin_config_name="theirs")
FIRST: dict[str, tuple[Seen, str]] = {
    "they are in somebody else's": (THEIRS, MERGE),
    "the device plugin stands alone": (plain("theirs"), MERGE),
    "we are not installed": (
        replace(THEIRS, operator_replicas=None),
        f"helm install gpusharing CHART -n gpusharing --create-namespace {SET}",
    ),
    "nobody holds them": (pointers(plugin_config_name=""), "kubectl get nodes -L nvidia.com/device-plugin.config"),
}


def naming(view: Seen, *entries: str) -> Seen:
    """Its Nodes, and one more for each entry of the device plugin's ConfigMap, which names it."""
    more = (make_node(entry, labels={LABEL_PLUGIN_CONFIG: entry}) for entry in entries)
    return replace(view, nodes=(*view.nodes, *more))


@pytest.mark.parametrize(("view", "command"), FIRST.values(), ids=FIRST)
def test_no_command_takes_the_gpus_of_nodes_that_name_what_ours_lacks(view: Seen, command: str) -> None:
    found = naming(view, "old-entry").symptoms
    (said,) = (one for one in found if one.reason == "PluginConfigNotOurs")
    assert not lacks(said.message, "old-entry", "gpusharing-device-plugin")
    assert str(said.command) == command


def test_entries_that_ours_holds_keep_nobody() -> None:
    (held,) = (set(state.data) for name, state in THEIRS.config_maps.items() if "device-plugin" in name)
    (said,) = (one for one in naming(THEIRS, *held).symptoms if one.reason == "PluginConfigNotOurs")
    assert str(said.command).startswith("kubectl patch clusterpolicy gpus ")


VOID = make_map({}, ours=False)
STOPPED = {"operator_replicas": 0, "operator_pods": {}}
POINT = "kubectl patch clusterpolicy gpus "
STAGES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"operator_replicas": None, "not_served": frozenset({"a kind"}), "config_maps": {}}, "helm install "),
    "nothing, with what a removed release left": ({"operator_replicas": None}, "helm install "),
    "a Deployment that may not be read": (
        {"operator_replicas": None, "unread": {"deployments.apps": "no"}, "config_maps": {}},
        "kubectl -n gpusharing rollout restart ",
    ),
    "an operator that is scaled to 0": ({**STOPPED, "config_maps": {}}, "helm upgrade "),
    "an operator that does not start": (
        {"operator_pods": {}, "config_maps": {}},
        "kubectl -n gpusharing describe pods ",
    ),
    "an operator that has written nothing": (
        {"config_maps": dict.fromkeys((PLUGIN, MIG), VOID)},
        "kubectl -n gpusharing rollout restart ",
    ),
    "everything": ({}, POINT),
    "an operator that was stopped when it had written all": (STOPPED, POINT),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("reason", ["PluginConfigNotOurs", "LayoutsNeedConfigMap"])
def test_a_pointer_moves_when_there_is_what_it_then_names(stage: str, reason: str) -> None:
    fields, command = STAGES[stage]
    view = replace(pointers(plugin_config_name="", mig_config_name=""), **fields)
    (said,) = (one for one in view.symptoms if one.reason == reason)
    assert str(said.command).startswith(command)


@pytest.mark.parametrize("reason", ["PluginConfigNotOurs", "LayoutsNeedConfigMap"])
def test_a_configmap_that_does_not_exist_is_neither_merged_nor_kept(reason: str) -> None:
    view = pointers(plugin_config_name="gone", mig_config_name="gone")
    view = replace(view, config_maps={**view.config_maps, "gone": VOID})
    (said,) = (one for one in view.symptoms if one.reason == reason)
    assert said.severity == "ERROR"
    assert not lacks(said.message, "gone", "namespace gpu-operator")
    assert "if Nodes use entries" not in said.message
    assert str(said.command).startswith(POINT)


def test_no_pointer_moves_to_a_namespace_where_nobody_mounts_from() -> None:
    view = pointers(plugin_config_name="", mig_config_name="", namespace="nvidia")
    assert {str(one.command).rpartition(" ")[2] for one in view.symptoms} == {"gpuOperator.namespace=nvidia"}


def test_what_mig_manager_uses_is_merged_once() -> None:
    view = pointers(mig_config_name="theirs")
    merged = replace(view, place=replace(view.place, admin_mig_config_map="theirs"))
    commands = [str(one.command) for each in (view, merged) for one in each.symptoms]
    assert [command.partition(" -")[0] for command in commands] == [
        "helm upgrade gpusharing CHART",
        "kubectl patch clusterpolicy gpus",
    ]


def test_no_command_moves_mig_manager_to_a_file_without_what_nodes_name() -> None:
    view = pointers(mig_config_name="")
    named = make_node("named", labels={LABEL_MIG_CONFIG: "all-1g.10gb"})
    gpunodes = {"named": make_gpunode("named", gpus=[make_gpu(layout=(("1g.10gb", 7),))])}
    pods = (*view.agent_pods, make_agent_pod("named"))
    lacking = replace(view, nodes=(*view.nodes, named), gpunodes=gpunodes, agent_pods=pods)
    (said,) = (one for one in lacking.symptoms if one.reason == "LayoutsNeedConfigMap")
    assert not lacks(said.message, "all-1g.10gb (named)", "gpusharing-mig-parted")
    assert str(said.command) == "kubectl get nodes -L nvidia.com/mig.config"
    held = replace(view.config_maps[MIG], data={MIG_KEY: make_stack().mig_file})
    holding = replace(lacking, config_maps={**view.config_maps, MIG: held})
    (said,) = (one for one in holding.symptoms if one.reason == "LayoutsNeedConfigMap")
    assert str(said.command).startswith(POINT)
