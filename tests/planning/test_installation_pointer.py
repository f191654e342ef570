"""What comes before the device plugin's pointer moves: the entries that Nodes name must be in our ConfigMap."""

from dataclasses import replace

import pytest
from tests.planning.test_installation import plain, pointers

from gpusharing.planning.stack.installation import find_symptoms
from gpusharing.planning.stack.installationviews import InstallationView

SET = "--set gpuOperator.adminPluginConfigMap=theirs"
MERGE = f"helm upgrade gpusharing CHART -n gpusharing --reset-then-reuse-values {SET}"
THEIRS = pointers(plugin_config_name="theirs")
FIRST: dict[str, tuple[InstallationView, str]] = {
    "they are in somebody else's": (THEIRS, MERGE),
    "the device plugin stands alone": (plain("theirs"), MERGE),
    "we are not installed": (
        replace(THEIRS, operator_replicas=None),
        f"helm install gpusharing CHART -n gpusharing {SET}",
    ),
    "nobody holds them": (
        pointers(plugin_config_name=""),
        "kubectl get nodes -L nvidia.com/device-plugin.config",
    ),
}


@pytest.mark.parametrize(("view", "command"), FIRST.values(), ids=FIRST)
def test_no_command_takes_the_gpus_of_nodes_that_name_what_ours_lacks(
    view: InstallationView, command: str
) -> None:
    found = find_symptoms(replace(view, named=frozenset({"old-entry"})))
    (said,) = (one for one in found if one.reason == "PluginConfigNotOurs")
    assert "Nodes use old-entry, which gpusharing-device-plugin does not hold: " in said.message
    assert said.command == command


def test_entries_that_ours_holds_keep_nobody() -> None:
    (held,) = (set(state.keys) for name, state in THEIRS.config_maps.items() if "device-plugin" in name)
    (said,) = (
        one
        for one in find_symptoms(replace(THEIRS, named=frozenset(held)))
        if one.reason == "PluginConfigNotOurs"
    )
    assert said.command.startswith("kubectl patch clusterpolicy gpus ")
