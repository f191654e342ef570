"""What modes need of NVIDIA's installation, compared with every switch of NVIDIA's ClusterPolicy, what its nodes lack, and what we may look at."""

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.build import SETTINGS, make_cluster_policy, make_node, make_policy, make_stack
from tests.chart.rbac import golden
from tests.planning.cases import MIXED, assessed_of, make_case
from tests.planning.test_installation import GOOD
from tests.seen import Seen
from tests.wording import lacks

from gpusharing.agent import nvml
from gpusharing.api.names import Mode
from gpusharing.kube.convert import cluster_policy_view
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView
from gpusharing.planning.stack import installationviews
from gpusharing.planning.stack.acceptance import find_objection
from gpusharing.planning.stack.installation import render
from gpusharing.planning.stack.installationviews import (
    ASKED_BY_PEOPLE,
    LOOKED_AT,
    Topic,
    find_unread_topics,
    join_unseen,
    kubectl_patch,
)
from gpusharing.planning.stack.nodesymptoms import find_node_symptoms
from gpusharing.planning.stack.requirements import (
    OPERANDS,
    READ,
    REQUIREMENTS,
    NeededProgram,
    find_absent,
    workload_of,
)
from gpusharing.planning.transition.gates import find_gate
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

TABLE = yaml.safe_load((Path(__file__).parent / "cluster-policy-switches.yaml").read_text())
SWITCHES: list[str] = TABLE["switches"]
IRRELEVANT: dict[str, str] = TABLE["irrelevant"]
HOSTED = [row for row in REQUIREMENTS if row.signs]


def view_with(path: str, value: object) -> ClusterPolicyView:
    """The product's view of a ClusterPolicy in which only this field of `spec` is set."""
    held: Any = value
    for step in reversed(path.split(".")):
        held = {step: held}
    return cluster_policy_view({"spec": held})


@pytest.mark.parametrize("path", SWITCHES)
def test_a_switch_of_nvidias_cluster_policy_is_read_or_does_not_matter_for_a_reason(path: str) -> None:
    nothing = cluster_policy_view({"spec": {}})
    is_read = any(view_with(path, value) != nothing for value in (True, False, "vm-passthrough"))
    assert is_read != any(fnmatchcase(path, pattern) for pattern in IRRELEVANT)


def test_every_field_that_the_table_reads_and_every_reason_is_about_one_of_nvidias_cluster_policy() -> None:
    assert [one for one in IRRELEVANT if not any(fnmatchcase(path, one) for path in SWITCHES)] == []
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


ALLOWED: dict[str, bool | str] = {"sandboxWorkloads.enabled": True}
DEFAULT: dict[str, bool | str] = {"sandboxWorkloads.defaultWorkload": "vm-vgpu"}
WORKLOADS: dict[str, tuple[dict[str, str], dict[str, bool | str], str]] = {
    "nothing is said": ({}, {}, "container"),
    "a default that is not in force": ({}, DEFAULT, "container"),
    "virtual machines are allowed": ({}, ALLOWED, "container"),
    "they are the default": ({}, ALLOWED | DEFAULT, "vm-vgpu"),
    "the label says container": ({LABEL: "container"}, ALLOWED | DEFAULT, "container"),
    "the label says otherwise": ({LABEL: "vm-passthrough"}, ALLOWED, "vm-passthrough"),
}


@pytest.mark.parametrize(("labels", "switches", "workload"), WORKLOADS.values(), ids=WORKLOADS)
def test_the_label_decides_what_gpus_are_for_and_then_the_default(
    labels: dict[str, str], switches: dict[str, bool | str], workload: str
) -> None:
    assert workload_of(labels, replace(make_cluster_policy(), switches=switches)) == workload
    assert workload_of(labels, None) == labels.get(LABEL, "container")


# --- why NVIDIA's programs do not run on a node (stack/nodeswitches.py) ------------------------------------------------

DRIVER_LABEL, WORKLOAD = "nvidia.com/gpu.deploy.driver", "nvidia.com/gpu.workload.config"
NO_DRIVER = "NVMLNotLoaded: the NVIDIA driver is not loaded on this node; check the driver pod of the GPU Operator"
NO_TOOLKIT = Finding(Reason.AGENT_NOT_STARTED, 'its pod does not start: no runtime for "nvidia" is configured')
ON_THE_HOST: dict[str, bool | str] = {"driver.enabled": False, "toolkit.enabled": False}
VIRTUAL: dict[str, bool | str] = {
    "sandboxWorkloads.enabled": True,
    "sandboxWorkloads.defaultWorkload": "vm-passthrough",
}


def at_rest(switches: dict[str, bool | str], **labels: str) -> NodeCase:
    """A node that serves GPUs and is to be divided, under a ClusterPolicy with these switches."""
    stack = make_stack(MIXED, cluster_policy=make_cluster_policy(switches=switches))
    return make_case(MIXED, stack=stack, labels=labels)


def bare(error: str, switches: dict[str, bool | str], *, serves: bool = False, driver: str = "true") -> NodeCase:
    """A node whose agent reports this error; `serves`: it offers a GPU; `driver`: its deploy label of the driver."""
    known = make_case(MIXED).gpunode
    assert known is not None
    assert known.observed is not None
    report = replace(known, observed=replace(known.observed, error=error))
    stack = make_stack(MIXED, cluster_policy=make_cluster_policy(switches=switches))
    node: dict[str, Any] = {} if serves else {"resources": {}}
    return make_case(MIXED, gpunode=report, stack=stack, node=node, labels={DRIVER_LABEL: driver})


NOT_MOUNTED = "NVMLNotLoaded: libnvidia-ml.so.1 is not in the agent's container"
BY_CRD: dict[str, bool | str] = {"driver.enabled": False, "driver.useNvidiaDriverCRD": True}
GATES: dict[str, tuple[NodeCase, Reason | None]] = {
    "the GPU Operator gives nodes without the label to virtual machines": (at_rest(VIRTUAL), Reason.WORKLOAD_CONFIG),
    "virtual machines have other nodes, and this one is labelled for containers": (
        at_rest(VIRTUAL, **{WORKLOAD: "container"}), None),
    "the host brings driver and toolkit": (at_rest(ON_THE_HOST), None),
    "the host has no driver, and the GPU Operator installs none": (
        bare(NO_DRIVER, ON_THE_HOST), Reason.DRIVER_DISABLED),
    "the host has no toolkit, and the GPU Operator installs none": (
        replace(bare("", ON_THE_HOST), agent_ready=False, agent_trouble=NO_TOOLKIT), Reason.TOOLKIT_DISABLED),
    "the host has a driver: the node serves GPUs": (bare(NO_DRIVER, ON_THE_HOST, serves=True), Reason.AGENT_ERROR),
    "the GPU Operator installs the driver": (bare(NO_DRIVER, {}), Reason.AGENT_ERROR),
    "an NVIDIADriver installs it": (bare(NO_DRIVER, BY_CRD), Reason.AGENT_ERROR),
    "NVIDIA's driver manager found one on the host": (
        bare(NO_DRIVER, ON_THE_HOST, driver="pre-installed"), Reason.AGENT_ERROR),
    "only the agent's container lacks the library": (bare(NOT_MOUNTED, ON_THE_HOST), Reason.AGENT_ERROR),
}  # fmt: skip


@pytest.mark.parametrize(("case", "reason"), GATES.values(), ids=GATES.keys())
def test_a_change_begins_or_is_kept_from_it_where(case: NodeCase, reason: Reason | None) -> None:
    gate = find_gate(case, assessed_of(case))
    assert (gate.reason if gate is not None else None) is reason


def test_what_a_host_lacks_is_told_with_the_agents_words_and_the_command_but_other_hosts_may_bring_it() -> None:
    case = bare(NO_DRIVER, ON_THE_HOST)
    gate = find_gate(case, assessed_of(case))
    assert gate is not None
    assert not lacks(gate.message, "gpu-07", "NVMLNotLoaded")
    assert "install it on the host" in gate.message
    assert " run: kubectl patch" in gate.message
    assert gate.message.endswith("""-p '{"spec":{"driver":{"enabled":true}}}'""")


@pytest.mark.parametrize("label", ["", "container"], ids=["without the label", "labelled for containers"])
def test_doctor_names_nodes_that_cluster_policy_gives_to_virtual_machines(label: str) -> None:
    labels = {"nvidia.com/gpu.present": "true", "pool": "a", WORKLOAD: label}
    view = Seen(
        nodes=(replace(make_node("gpu-1"), labels=labels),),
        policies=(make_policy(mode="Full", nodeSelector={"matchLabels": {"pool": "a"}}),),
        cluster_policies=(make_cluster_policy(switches=VIRTUAL),),
    )
    found = [(one.reason, str(one.command)) for one in find_node_symptoms(view.snapshot, {})]
    told = [("WorkloadConfig", f"kubectl label node gpu-1 --overwrite {WORKLOAD}=container")]
    assert found == ([] if label else told)


# --- rights, and what could not be looked at (stack/installationviews.py) ----------------------------------------------

NAMED = {
    "{lease}": "gpusharing-operator",
    "{plugin_config_map}": "gpusharing-device-plugin",
    "{mig_config_map}": "gpusharing-mig-parted",
}


@pytest.mark.parametrize(
    ("subject", "table", "values"),
    [
        ("operator", installationviews.OPERATOR_RIGHTS, ()),
        ("operator", installationviews.OPERATOR_RIGHTS + installationviews.CONFIGURE, ("gpuOperator.configure",)),
        ("operator", installationviews.OPERATOR_RIGHTS + installationviews.REPAIR_MPS, ("gpuOperator.repairMps",)),
        ("operator", installationviews.OPERATOR_RIGHTS + installationviews.FORCE_DELETE, ("forceDelete",)),
        ("operator", installationviews.OPERATOR_RIGHTS + installationviews.DEVICE_TAINTS, ("dra.deviceTaints",)),
        ("agent", installationviews.AGENT_RIGHTS + installationviews.SECURE_METRICS, ()),
    ],
)
def test_the_table_is_the_golden_one(
    subject: str, table: tuple[installationviews.Right, ...], values: tuple[str, ...]
) -> None:
    known = {
        (one.verb, one.group, one.resource, one.subresource, one.scope, NAMED.get(one.name, one.name)) for one in table
    }
    wanted = {
        (grant.verb, grant.group, grant.resource, grant.subresource, grant.scope, name)
        for grant in golden(*values)
        if grant.subject == subject
        for name in grant.names or ("",)
    }
    assert known == wanted


def test_a_right_reads_as_kubectl_takes_it() -> None:
    texts = {right.text for right in installationviews.OPERATOR_RIGHTS}
    assert {"patch nodes", "create pods/eviction", "patch gpunodes.gpusharing.dev/status"} <= texts


# --- what could not be looked at is never called ok --------------------------------------------------------------------

EVERY_KIND = sorted({kind for kinds in LOOKED_AT.values() for kind in kinds})


def test_where_everything_could_be_read_nothing_is_unknown() -> None:
    assert find_unread_topics(GOOD.installation) == {}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_no_topic_is_ok_that_is_judged_by(kind: str) -> None:
    blind = replace(GOOD, unread={kind: "forbidden"})
    unseen = find_unread_topics(blind.installation)
    assert {topic for topic, kinds in LOOKED_AT.items() if kind in kinds} == unseen.keys()
    lines = render(blind.symptoms, unseen)
    told = {topic for topic in unseen if topic not in ASKED_BY_PEOPLE}
    assert [topic for topic in told if f"ok       {topic}" in lines] == []
    assert [topic for topic in told if f"UNKNOWN  {topic}: {kind} cannot be read" not in lines] == []
    assert not lacks(lines[-1], "As far as could be checked", "errors 0", "warnings 1")


def test_every_topic_has_its_kinds_but_rights_of_which_symptoms_speak() -> None:
    assert set(Topic) - LOOKED_AT.keys() == {Topic.RIGHTS}


def test_what_several_say_of_a_topic_is_told_in_one_sentence() -> None:
    one, other = {Topic.NODES: "a"}, {Topic.NODES: "b", Topic.API: "c"}
    assert join_unseen(one, {}, other) == {Topic.API: "c", Topic.NODES: "a; b"}
