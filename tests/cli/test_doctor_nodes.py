"""What `doctor` says of labels that somebody else set, and of kubelets (stack/nodesymptoms.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.build import make_cluster_policy, make_node, make_policy
from tests.cli.asking import ME, Answered, ask, install, operated
from tests.embedded.scene import FULL, MIXED
from tests.fakes.virtualtime import virtually
from tests.kube.objects import observed
from tests.seen import Seen, make_map
from tests.wording import lacks

from gpusharing.api.names import LABEL_POLICY
from gpusharing.kube.client import CLUSTER_POLICIES, CONFIG_MAPS, GPUNODES, NODES, POLICIES, VERSION
from gpusharing.kube.errors import Forbidden
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.stack.installationviews import Installation, Symptom
from gpusharing.planning.stack.nodesymptoms import (
    MOST_BEHIND,
    OLDEST,
    find_kubelet_symptoms,
    find_minor,
    find_node_symptoms,
)
from kubectl_gpusharing.shell.troubles import FAILED

CHART = Path(__file__).parents[2] / "deploy/helm/gpu-sharing-operator/Chart.yaml"
CONFIG, STATE, CAPABLE = "nvidia.com/mig.config", "nvidia.com/mig.config.state", "nvidia.com/mig.capable"
WORKLOAD, DEPLOY = "nvidia.com/gpu.workload.config", "nvidia.com/gpu.deploy."
GPU = {"nvidia.com/gpu.present": "true"}
POOL = {"pool": "a"}
OURS = (make_policy(mode="Full", nodeSelector={"matchLabels": POOL}),)
ENTRIES = {"gpu-1": ("custom-mig-config", frozenset({"all-disabled", "halves"}))}


def found(labels: dict[str, str], *, policies: bool | None = None, **more: Any) -> list[Symptom]:
    """Of one node with a GPU; `policies`: whether one of them selects it, None: there are none."""
    all_labels = {**GPU, **labels, **(POOL if policies else {})}
    return told([labelled("gpu-1", all_labels, **more)], () if policies is None else OURS, ENTRIES)


def labelled(name: str, labels: dict[str, str], **more: Any) -> NodeView:
    return replace(make_node(name), labels=labels, **more)


def told(
    nodes: Sequence[NodeView],
    policies: tuple[PolicyView, ...] = OURS,
    entries: Mapping[str, tuple[str, frozenset[str]]] = MappingProxyType({}),
    **more: Any,
) -> list[Symptom]:
    view = Seen(nodes=tuple(nodes), policies=policies, **more)
    return list(find_node_symptoms(view.snapshot, entries))


# --- switches ---------------------------------------------------------------------------------------------------

VM = {WORKLOAD: "vm-passthrough"}
OFF = {f"{DEPLOY}device-plugin": "false"}


GFD = f"{DEPLOY}gpu-feature-discovery"
UNABLE: dict[str, tuple[dict[str, str], str, str]] = {
    "for virtual machines": (VM, "WorkloadConfig", f"--overwrite {WORKLOAD}=container"),
    "no device plugin": (OFF, "OperandsDisabled", f"--overwrite {DEPLOY}device-plugin=true"),
    "no operand at all": ({f"{DEPLOY}operands": "false"}, "OperandsDisabled", f"{DEPLOY}operands-"),
    "another word than true": ({GFD: "no"}, "OperandsDisabled", f"--overwrite {GFD}=true"),
}


@pytest.mark.parametrize(("labels", "reason", "change"), UNABLE.values(), ids=UNABLE)
def test_a_node_that_cannot_serve_its_policy_is_told_with_what_mends_it(
    labels: dict[str, str], reason: str, change: str
) -> None:
    (one,) = found(labels, policies=True)
    assert (one.reason, one.severity, str(one.command)) == (reason, "ERROR", f"kubectl label node gpu-1 {change}")
    (early,) = found(labels)
    assert (early.reason, early.severity) == (reason, "WARNING"), "there is no policy yet"
    assert str(early.command).startswith("kubectl get nodes -L nvidia.com/"), (
        "it may be meant so: nothing is to be changed"
    )
    assert found(labels, policies=False) == [], "somebody wants it so, and no policy is for this node"
    assert found(labels, policies=True, fence_error="damaged") == []


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({WORKLOAD: "container"}, id="for containers, as somebody says"),
        pytest.param({f"{DEPLOY}device-plugin": "true", f"{DEPLOY}operands": "true"}, id="on"),
        pytest.param({f"{DEPLOY}device-plugin": "", WORKLOAD: ""}, id="empty, which the GPU Operator fills"),
        pytest.param({f"{DEPLOY}dcgm-exporter": "false"}, id="an operand that no proof needs"),
        pytest.param({f"{DEPLOY}device-plugin": "paused-for-mig-change", STATE: "pending"}, id="mig-manager's pause"),
        pytest.param({f"{DEPLOY}device-plugin": "true_paused-for-driver-upgrade"}, id="a driver upgrade's pause"),
    ],
)
def test_of_a_node_that_serves_or_soon_will_nothing_is_said(labels: dict[str, str]) -> None:
    assert found(labels, policies=True) == []
    assert found(labels) == []


def test_a_node_that_another_device_plugin_serves_is_told_unless_gke_s_is_told_with_the_agents() -> None:
    (one,) = found({}, policies=True, other_plugin="HAMi's device plugin")
    assert (one.reason, one.severity) == ("ForeignDevicePlugin", "ERROR")
    assert str(one.command) == "kubectl describe node gpu-1"
    (early,) = found({}, other_plugin="HAMi's device plugin")
    assert early.severity == "WARNING"
    assert found({}, policies=False, other_plugin="HAMi's device plugin") == []
    assert found({}, policies=True, other_plugin="GKE's own device plugin") == []
    # HAMi's documentation has admins switch NVIDIA's off; with both, a node advertises each GPU twice.
    (off,) = found(OFF, policies=True, other_plugin="HAMi's device plugin")
    assert (off.reason, str(off.command)) == ("ForeignDevicePlugin", "kubectl describe node gpu-1")


def test_one_command_names_an_entry_only_for_nodes_with_the_same_wrong_entry() -> None:
    config = "nvidia.com/device-plugin.config"
    nodes = [labelled(f"gpu-{number}", {**GPU, **POOL, config: f"old-{number % 2}"}) for number in range(3)]
    held = {"plugins": make_map({"default": "version: v1"}, ours=False)}
    (one,) = told(nodes, cluster_policies=(make_cluster_policy("plugins"),), config_maps=held)
    assert "gpu-0, gpu-1, gpu-2 names an entry" in one.message
    assert str(one.command) == f"kubectl label node gpu-0 gpu-2 --overwrite {config}=NAME", "gpu-1 serves another"


def test_of_a_node_without_a_gpu_that_no_policy_selects_nothing_is_said() -> None:
    assert told([labelled("cpu-1", {f"{DEPLOY}operands": "false"})], ()) == []


def test_a_label_is_taken_off_only_where_it_is_wrong() -> None:
    """Where it is right the GPU Operator would restart the operand."""
    nodes = [
        labelled("gpu-1", {**GPU, **POOL, f"{DEPLOY}operands": "false", f"{DEPLOY}device-plugin": "true"}),
        labelled("gpu-2", {**GPU, **POOL, f"{DEPLOY}device-plugin": "false"}),
    ]
    commands = {str(one.command) for one in told(nodes)}
    assert commands == {
        f"kubectl label node gpu-1 {DEPLOY}operands-",
        f"kubectl label node gpu-2 --overwrite {DEPLOY}device-plugin=true",
    }


# --- labels of other controllers -------------------------------------------------------------------------------


def test_a_label_that_another_controller_keeps_is_told_once_for_all_nodes_that_a_policy_could_change() -> None:
    nfd = {CONFIG: "Node Feature Discovery sets it"}
    owned = [labelled(f"gpu-{number}", {**GPU, **POOL}, label_owners=nfd) for number in (1, 2)]
    capi = labelled("gpu-3", {**GPU, **POOL}, label_owners={CONFIG: "Cluster API sets it"})
    others = labelled("gpu-4", GPU, label_owners=nfd)
    symptoms = told([*owned, capi, others])
    assert {(one.reason, one.severity) for one in symptoms} == {("LabelOwnedElsewhere", "WARNING")}
    owners = [("gpu-1, gpu-2", "Node Feature Discovery", "gpu-1"), ("gpu-3", "Cluster API", "gpu-3")]
    for one, (nodes, owner, first) in zip(symptoms, owners, strict=True):
        assert not lacks(one.message, CONFIG, nodes, owner)
        assert str(one.command) == f"kubectl get node {first} -o yaml --show-managed-fields"


# --- mig.config -------------------------------------------------------------------------------------------------


def test_a_mig_configuration_that_nobody_has_is_told_with_those_that_there_are() -> None:
    (one,) = found({CONFIG: "quarters", STATE: "failed"})
    assert (one.reason, one.severity) == ("MigConfigUnknown", "WARNING"), "and not what failed besides"
    assert "gpu-1: quarters; ConfigMap custom-mig-config has all-disabled, halves" in one.message
    assert str(one.command) == f"kubectl label node gpu-1 --overwrite {CONFIG}=NAME"


def test_a_mig_configuration_of_nodes_that_differ_is_mended_by_name() -> None:
    nodes = [labelled(name, {CONFIG: value}) for name, value in (("gpu-1", "x"), ("gpu-2", "y"), ("gpu-3", "x"))]
    entries = {one.name: ENTRIES["gpu-1"] for one in nodes}
    (one,) = told(nodes, (), entries)
    assert "on gpu-1, gpu-2, gpu-3 names" in one.message
    assert str(one.command) == f"kubectl label node gpu-1 gpu-3 --overwrite {CONFIG}=NAME"


@pytest.mark.parametrize("policies", [None, True, False], ids=["no policy", "its policy", "another policy"])
def test_of_a_mig_configuration_that_is_there_nothing_is_said(policies: bool | None) -> None:
    assert found({CONFIG: "halves"}, policies=policies) == []


def test_what_the_operator_itself_writes_is_left_to_it() -> None:
    assert found({CONFIG: "quarters"}, policies=True) == []
    assert [one.reason for one in found({CONFIG: "quarters", STATE: "failed"}, policies=True)] == ["MigConfigFailed"]


# --- kubelets ----------------------------------------------------------------------------------------------------


def kubelets(api_server: str, *versions: str) -> list[tuple[str, str]]:
    found = find_kubelet_symptoms(running({f"gpu-{number}": one for number, one in enumerate(versions, 1)}), api_server)
    return [(one.reason, str(one.command).split(" -o")[0]) for one in found]


def running(versions: dict[str, str], labels: Mapping[str, str] = GPU) -> Installation:
    nodes = tuple(replace(make_node(name), labels=labels) for name in versions)
    return Seen(nodes=nodes, kubelets=versions).installation


def test_kubelets_that_nobody_stands_for_are_told_once_each() -> None:
    assert kubelets("v1.33.1-eks-1-33-5", "v1.29.9", "v1.30.0+k3s1", "v1.34.0", "v1.33.9", "v1.28.0") == [
        ("KubeletNewer", "kubectl get node gpu-3"),
        ("KubeletBehind", "kubectl get node gpu-1 gpu-5"),
    ]
    assert kubelets("v1.32.0", "v1.29.9", "v1.32.9") == [("KubeletOld", "kubectl get node gpu-1")]
    (one,) = find_kubelet_symptoms(running({"gpu-1": "v1.29.9"}), "v1.32.0")
    assert one.severity == "WARNING"
    assert not lacks(one.message, "gpu-1 (v1.29.9)", "1.30")


@pytest.mark.parametrize("server", ["", "v0.0.0-master+$Format:%H$", "odd"])
def test_without_a_version_of_the_server_kubelets_are_held_against_ours_alone(server: str) -> None:
    assert kubelets(server, "v1.99.0", "v1.29.0") == [("KubeletOld", "kubectl get node gpu-2")]


@pytest.mark.parametrize("version", ["", "v0.0.0-master+$Format:%H$", "odd"])
def test_of_a_kubelet_without_a_version_nothing_is_said(version: str) -> None:
    assert find_minor(version) is None
    assert kubelets("v1.36.3", version) == []


def test_of_kubelets_within_reach_and_of_those_without_a_gpu_nothing_is_said() -> None:
    assert kubelets("v1.36.3", "v1.36.9", "v1.36.0", "v1.33.0") == []
    assert [*find_kubelet_symptoms(running({"cpu-1": "v1.20.0"}, {}), "v1.36.3")] == []
    assert MOST_BEHIND == 3


def test_the_oldest_kubernetes_is_that_of_the_chart() -> None:
    asked = yaml.safe_load(CHART.read_text())["kubeVersion"]
    assert asked == f">={OLDEST[0]}.{OLDEST[1]}.0-0"


# --- what is read of a cluster ------------------------------------------------------------------------------------


def bare(spec: dict[str, Any] | None = None) -> FakeCluster:
    """A cluster of somebody else's with three GPU nodes, before the installation."""
    cluster = FakeCluster()
    mig = {**GPU, CAPABLE: "true"}
    cluster.add(CLUSTER_POLICIES, {"metadata": {"name": "cluster-policy"}, "spec": spec or {}})
    for name, labels in {"gpu-1": {**mig, CONFIG: "quarters"}, "gpu-2": {**mig, CONFIG: "halves"}}.items():
        info = {"nodeInfo": {"kubeletVersion": "v1.36.0"}}
        cluster.add(NODES, {"metadata": {"name": name, "labels": labels}, "status": info})
    info = {"nodeInfo": {"kubeletVersion": "v1.37.0"}}
    cluster.add(NODES, {"metadata": {"name": "gpu-3", "labels": {**GPU, **VM}}, "status": info})
    return cluster


def holding(cluster: FakeCluster, name: str, *entries: str) -> None:
    off = [{"devices": "all", "mig-enabled": False}]
    text = yaml.safe_dump({"version": "v1", "mig-configs": dict.fromkeys(entries, off)})
    metadata = {"name": name, "namespace": "gpu-operator"}
    cluster.add(CONFIG_MAPS, {"metadata": metadata, "data": {"config.yaml": text}})


def nodes_of(told: Answered) -> dict[str, str]:
    topics = ("kubelets", "labels of Nodes")
    return {one["reason"]: one["severity"] for one in told.data["symptoms"] if one["topic"] in topics}


EARLY = {"KubeletNewer": "WARNING", "WorkloadConfig": "WARNING"}


@virtually
async def test_before_the_installation_nodes_are_held_against_the_map_that_is_pointed_at() -> None:
    cluster = bare({"migManager": {"config": {"name": "custom-mig-config"}}})
    holding(cluster, "custom-mig-config", "all-disabled", "halves")
    told = await ask(cluster, "doctor", "-o", "json")
    assert nodes_of(told) == {**EARLY, "MigConfigUnknown": "WARNING"}
    assert told.data["notes"] == []


@virtually
async def test_where_none_is_pointed_at_each_node_is_held_against_what_its_mig_manager_generated() -> None:
    cluster = bare()
    holding(cluster, "gpu-1-mig-config", "all-disabled", "all-balanced")
    told = await ask(cluster, "doctor", "-o", "json")
    (one,) = (one for one in told.data["symptoms"] if one["reason"] == "MigConfigUnknown")
    assert "on gpu-1 names" in one["message"], "gpu-2's has published nothing yet"
    holding(cluster, "gpu-2-mig-config", "halves")
    cluster.patch(NODES, "gpu-1", {"metadata": {"labels": {CONFIG: "all-balanced"}}})
    assert nodes_of(await ask(cluster, "doctor", "-o", "json")) == EARLY


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"migManager": {"config": {"name": "gone"}}}, id="a ConfigMap that is not there"),
        pytest.param({"migManager": {"config": {"name": "damaged"}}}, id="a file that nobody can read"),
        pytest.param({"migManager": {"enabled": False, "config": {"name": "one"}}}, id="no mig-manager"),
    ],
)
@virtually
async def test_where_nobody_can_tell_what_mig_manager_has_nothing_is_said(spec: dict[str, Any]) -> None:
    cluster = bare(spec)
    holding(cluster, "one", "other")
    metadata = {"name": "damaged", "namespace": "gpu-operator"}
    cluster.add(CONFIG_MAPS, {"metadata": metadata, "data": {"config.yaml": "a: ["}})
    assert nodes_of(await ask(cluster, "doctor", "-o", "json")) == EARLY


@virtually
async def test_once_there_are_policies_only_nodes_that_they_select_are_told() -> None:
    async with operated(2, serving=FULL) as scene:
        cluster = scene.e.cluster
        cluster.add(NODES, {"metadata": {"name": "vm-1", "labels": {**GPU, **VM}}})
        assert nodes_of(await ask(cluster, "doctor", "-o", "json")) == {}
        cluster.patch(NODES, "gpu-1", {"metadata": {"labels": VM}})
        assert nodes_of(await ask(cluster, "doctor", "-o", "json")) == {"WorkloadConfig": "ERROR"}


@virtually
async def test_who_may_not_see_policies_is_told_nothing_of_nodes_that_serve_others() -> None:
    cluster = bare()
    install(cluster)
    refusal = Forbidden('User "me" cannot list resource "gpusharingpolicies"')
    cluster.faults.fail("list", POLICIES, refusal, times=EVER, identity=ME)
    assert nodes_of(await ask(cluster, "doctor", "-o", "json")) == {"KubeletNewer": "WARNING"}


@virtually
async def test_a_layout_that_the_operator_made_is_known_also_when_its_policy_is_gone() -> None:
    async with operated(2, serving=MIXED) as scene:
        cluster = scene.e.cluster
        assert nodes_of(await ask(cluster, "doctor", "-o", "json")) == {}
        (policy,) = cluster.objects(POLICIES)
        cluster.delete(POLICIES, policy["metadata"]["name"])
        while any(LABEL_POLICY in node["metadata"]["labels"] for node in cluster.objects(NODES)):
            await cluster.changed()
        labels = cluster.get(NODES, "gpu-1")["metadata"]["labels"]
        assert labels[CONFIG].startswith("pool-b-"), "nobody takes the layout away"
        assert nodes_of(await ask(cluster, "doctor", "-o", "json")) == {}
        cluster.patch(NODES, "gpu-1", {"metadata": {"labels": {CONFIG: "quarters"}}})
        told = await ask(cluster, "doctor", "-o", "json")
        (one,) = (one for one in told.data["symptoms"] if one["reason"] == "MigConfigDiffers")
        assert one["command"] == f"kubectl label node gpu-1 --overwrite {CONFIG}=all-3g.40gb"


@virtually
async def test_of_a_server_that_keeps_its_version_kubelets_are_not_called_ok() -> None:
    cluster = bare()
    cluster.uninstalled |= {VERSION, POLICIES}
    told = await ask(cluster, "doctor", "-o", "json")
    assert nodes_of(told) == {"WorkloadConfig": "WARNING"}
    said = "the API server does not report its version, so kubelet versions were not compared with it"
    assert told.data["unknown"] == {"kubelets": said}
    shown = " ".join((await ask(cluster, "doctor")).out.split())
    assert f"UNKNOWN kubelets: {said}" in shown
    assert "ok kubelets" not in shown


@virtually
async def test_what_nobody_could_look_at_is_unknown_beside_an_error() -> None:
    """Without an error there is one sentence, and no list (tests/cli/test_bad_input.py)."""
    cluster = bare({"devicePlugin": {"config": {"name": "ts"}}})
    cluster.uninstalled |= {POLICIES}
    refusal = Forbidden('User "me" cannot list resource "nodes"')
    cluster.faults.fail("list", NODES, refusal, times=EVER, identity=ME)
    told = await ask(cluster, "doctor")
    assert told.status == FAILED
    shown = " ".join(told.out.split())
    for topic in ("ClusterPolicy", "kubelets", "labels of Nodes"):
        assert f"UNKNOWN {topic}: nodes cannot be read" in shown
        assert f"ok {topic}" not in shown
    assert "ERROR ClusterPolicy: ClusterPolicy devicePlugin.config.name is ts" in shown
    data = (await ask(cluster, "doctor", "-o", "json")).data
    assert data["unknown"].keys() >= {"kubelets", "labels of Nodes"}


@virtually
async def test_gpus_that_are_simulated_are_said_to_be() -> None:
    cluster = bare()
    for name, told in {"gpu-1": True, "gpu-2": False}.items():
        cluster.add(GPUNODES, {"metadata": {"name": name}, "status": {"observed": observed(simulated=told)}})
    assert (await ask(cluster, "doctor")).out.startswith("SIMULATED: gpu-1 has no real GPUs")
    assert (await ask(cluster, "doctor", "-o", "json")).data["simulated"] == ["gpu-1"]


@virtually
async def test_before_the_installation_nobody_needs_a_right_to_kinds_that_are_not_there() -> None:
    """The API server refuses before it looks whether it serves a kind: 403, where others are told 404."""
    cluster = bare()
    cluster.uninstalled |= {POLICIES, GPUNODES}
    for resource in (POLICIES, GPUNODES):
        refusal = Forbidden(f'User "me" cannot list resource "{resource.plural}"')
        cluster.faults.fail("list", resource, refusal, times=EVER, identity=ME)
    told = await ask(cluster, "doctor", "-o", "json")
    assert nodes_of(told) == EARLY, "as to whom it is told that they are not served"
    assert (told.data["installed"], told.data["unknown"]) == (False, {})
    assert {one["reason"] for one in told.data["symptoms"]}.isdisjoint({"NotReadable", "OperatorMissing"})
    cluster.uninstalled -= {POLICIES, GPUNODES}
    told = await ask(cluster, "doctor", "-o", "json")
    assert "NotReadable" in {one["reason"] for one in told.data["symptoms"]}, "an uninstalled operator left them behind"
