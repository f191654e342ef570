"""What modes need of NVIDIA's installation, compared with every switch of NVIDIA's ClusterPolicy."""

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.build import SETTINGS, make_cluster_policy, make_policy, make_stack
from tests.seen import Seen

from gpusharing.agent import nvml
from gpusharing.api.names import Mode
from gpusharing.kube.convert import cluster_policy_view
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView
from gpusharing.planning.stack.acceptance import find_objection
from gpusharing.planning.stack.installationviews import kubectl_patch
from gpusharing.planning.stack.requirements import (
    OPERANDS,
    READ,
    REQUIREMENTS,
    NeededProgram,
    find_absent,
    workload_of,
)

TABLE = yaml.safe_load((Path(__file__).parent / "cluster-policy-switches.yaml").read_text())
SWITCHES: list[str] = TABLE["switches"]
IRRELEVANT: dict[str, str] = TABLE["irrelevant"]
HOSTED = [row for row in REQUIREMENTS if row.signs]
VALUES = (True, False, "vm-passthrough")


def view_with(path: str, value: object) -> ClusterPolicyView:
    """The product's view of a ClusterPolicy in which only this field of `spec` is set."""
    held: Any = value
    for step in reversed(path.split(".")):
        held = {step: held}
    return cluster_policy_view({"spec": held})


def is_read(path: str) -> bool:
    nothing = cluster_policy_view({"spec": {}})
    return any(view_with(path, value) != nothing for value in VALUES)


def reasons_against(path: str) -> list[str]:
    return [pattern for pattern in IRRELEVANT if fnmatchcase(path, pattern)]


@pytest.mark.parametrize("path", SWITCHES)
def test_a_switch_of_nvidias_cluster_policy_is_read_or_does_not_matter_for_a_reason(path: str) -> None:
    assert is_read(path) != bool(reasons_against(path))


def test_every_reason_is_about_a_switch_that_there_is() -> None:
    assert [one for one in IRRELEVANT if not any(fnmatchcase(path, one) for path in SWITCHES)] == []


def test_every_field_that_the_table_reads_is_one_of_nvidias_cluster_policy() -> None:
    assert set(READ) <= set(SWITCHES)
    assert set(READ) >= {path for row in REQUIREMENTS for path in (row.switch, row.elsewhere) if path}


@pytest.mark.parametrize("row", OPERANDS, ids=lambda row: row.operand)
@pytest.mark.parametrize("mode", list(Mode))
def test_a_program_that_is_off_refuses_the_modes_that_need_it_and_no_other(row: NeededProgram, mode: Mode) -> None:
    off = make_cluster_policy(switches={row.switch: False})
    objection = find_objection(make_policy(mode=mode), make_stack(cluster_policy=off), SETTINGS)
    assert (objection.reason if objection else None) == (row.disabled if mode in row.modes else None)


def test_who_leaves_gpus_to_another_device_plugin_on_purpose_is_not_told_to_start_a_second_one() -> None:
    """HAMi's guide for the GPU Operator, and GKE's default, set devicePlugin.enabled=false (Project-HAMi/website#874): a second plugin there takes the GPUs from under the pods of the first."""
    off = make_cluster_policy(switches={"devicePlugin.enabled": False})
    objection = find_objection(make_policy(), make_stack(cluster_policy=off), SETTINGS)
    assert objection is not None
    symptoms = Seen(cluster_policies=(off,)).symptoms
    (symptom,) = (one for one in symptoms if one.reason == objection.reason)
    for told in (objection.message, symptom.message):
        assert "(if another one serves them on purpose, leave the setting as it is)" in told


@pytest.mark.parametrize("row", REQUIREMENTS, ids=lambda row: row.operand)
def test_the_command_turns_on_what_the_field_turned_off(row: NeededProgram) -> None:
    command = kubectl_patch("gpus", row.change.fields, effects=())
    assert command is not None
    assert not row.is_off(cluster_policy_view(json.loads(command.args[-1])))
    assert row.is_off(view_with(row.switch, False))
    assert not row.is_off(cluster_policy_view({"spec": {}})), "the GPU Operator runs it unless told otherwise"


@pytest.mark.parametrize("row", HOSTED, ids=lambda row: row.operand)
def test_what_a_host_may_bring_is_missed_only_where_somebody_says_so(row: NeededProgram) -> None:
    off = view_with(row.switch, False)
    assert find_absent("", off) is None
    for sign in row.signs:
        assert find_absent(f"its pod does not start: {sign}", off) == row
        assert find_absent(sign, cluster_policy_view({"spec": {}})) is None
        assert find_absent(sign, None) is None


def test_the_agents_own_words_for_a_missing_driver_are_among_the_signs() -> None:
    import pynvml

    words = nvml._NOT_LOADED[pynvml.NVML_ERROR_DRIVER_NOT_LOADED]
    (row,) = [row for row in HOSTED if any(sign in words for sign in row.signs)]
    assert row.switch == "driver.enabled"


LABEL = "nvidia.com/gpu.workload.config"


@pytest.mark.parametrize(
    ("labels", "switches", "workload"),
    [
        ({}, {}, "container"),
        ({}, {"sandboxWorkloads.defaultWorkload": "vm-vgpu"}, "container"),
        ({}, {"sandboxWorkloads.enabled": True}, "container"),
        ({}, {"sandboxWorkloads.enabled": True, "sandboxWorkloads.defaultWorkload": "vm-vgpu"}, "vm-vgpu"),
        (
            {LABEL: "container"},
            {"sandboxWorkloads.enabled": True, "sandboxWorkloads.defaultWorkload": "vm-vgpu"},
            "container",
        ),
        ({LABEL: "vm-passthrough"}, {"sandboxWorkloads.enabled": True}, "vm-passthrough"),
    ],
    ids=[
        "nothing is said",
        "a default that is not in force",
        "virtual machines are allowed",
        "they are the default",
        "the label says container",
        "the label says otherwise",
    ],
)
def test_the_label_decides_what_gpus_are_for_and_then_the_default(
    labels: dict[str, str], switches: dict[str, bool | str], workload: str
) -> None:
    assert workload_of(labels, replace(make_cluster_policy(), switches=switches)) == workload
    assert workload_of(labels, None) == labels.get(LABEL, "container")
