"""What the reader makes of objects of FakeCluster; of those of an API server: tests/chart/test_checks.py."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.kube.objects import observed, observed_gpu
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.selectors import matches
from gpusharing.api.times import to_micro_time
from gpusharing.kube.client import (
    ACCESS_REVIEWS,
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DAEMON_SETS,
    DEPLOYMENTS,
    GPUNODES,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    POLICIES,
)
from gpusharing.kube.errors import Forbidden, KubeError, Unauthorized, Unavailable
from gpusharing.kube.installation import RUNTIME_CLASSES, gather_installation
from gpusharing.planning.stack.effects import has_driver
from gpusharing.planning.stack.installation import find_symptoms
from gpusharing.planning.stack.installationviews import Installation, Place, Severity
from gpusharing.planning.wanted.migfile import parse

READY = {"conditions": [{"type": "Ready", "status": "True"}]}
POINTERS = {
    "devicePlugin": {"config": {"name": "gpusharing-device-plugin"}},
    "migManager": {"config": {"name": "gpusharing-mig-parted"}},
}


def pod(name: str, app: str, namespace: str, node: str, status: Any = READY) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": app}}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": status}


@pytest.fixture
def cluster() -> FakeCluster:
    fake = FakeCluster()
    fake.uninstalled.add(ACCESS_REVIEWS)
    fake.add(NODES, {"metadata": {"name": "gpu-01", "labels": {"nvidia.com/gpu.present": "true"}}, "status": READY})
    fake.add(NODES, {"metadata": {"name": "cpu-01"}, "status": READY})
    fake.add(
        DEPLOYMENTS, {"metadata": {"name": "gpusharing-operator", "namespace": "gpusharing"}, "spec": {"replicas": 1}}
    )
    fake.add(PODS, pod("operator-0", "gpusharing-operator", "gpusharing", "cpu-01"))
    template = {"nodeSelector": {"nvidia.com/gpu.present": "true"}, "runtimeClassName": "nvidia"}
    fake.add(
        DAEMON_SETS,
        {
            "metadata": {"name": "gpusharing-agent", "namespace": "gpusharing-agent"},
            "spec": {"template": {"spec": template}},
        },
    )
    fake.add(PODS, pod("agent-0", "gpusharing-agent", "gpusharing-agent", "gpu-01"))
    fake.add(RUNTIME_CLASSES, {"metadata": {"name": "nvidia"}})
    enforce = {"pod-security.kubernetes.io/enforce": "privileged"}
    fake.add(NAMESPACES, {"metadata": {"name": "gpusharing-agent", "labels": enforce}})
    fake.add(CLUSTER_POLICIES, {"metadata": {"name": "cluster-policy"}, "spec": POINTERS})
    ours = {"app.kubernetes.io/managed-by": "gpusharing-operator"}
    for name in ("gpusharing-device-plugin", "gpusharing-mig-parted"):
        metadata = {"name": name, "namespace": "gpu-operator", "labels": ours}
        fake.add(CONFIG_MAPS, {"metadata": metadata, "data": {"config.yaml": "x"}})
    return fake


async def gathered(cluster: FakeCluster) -> Installation:
    return await gather_installation(cluster.client("checks"), Place())


def reasons(view: Installation) -> set[str]:
    return {one.reason for one in find_symptoms(view)}


async def test_a_good_installation_lacks_only_the_answers_about_rights(cluster: FakeCluster) -> None:
    view = await gathered(cluster)
    assert reasons(view) == {"RightsUnknown"}
    assert view.agents is not None
    assert [one.name for one in view.snapshot.nodes.values() if matches(one.labels, view.agents.selector)] == ["gpu-01"]
    assert view.unread == {}


@pytest.mark.parametrize("count", [7, 3], ids=["a layout with a name", "a layout without one"])
async def test_gpus_that_were_divided_by_hand_are_labeled_before_mig_manager_restarts(
    cluster: FakeCluster, count: int
) -> None:
    labels = {"nvidia.com/mig.config": "all-disabled", "nvidia.com/gpu.deploy.mig-manager": "true"}
    cluster.patch(NODES, "gpu-01", {"metadata": {"labels": labels}})
    file = {"config.yaml": "mig-configs: {all-disabled: [{devices: all, mig-enabled: false}]}"}
    cluster.patch(CONFIG_MAPS, "gpusharing-mig-parted", {"data": file}, "gpu-operator")
    bare = {"spec": {**POINTERS, "migManager": {"config": {"name": ""}}}}
    cluster.patch(CLUSTER_POLICIES, "cluster-policy", bare)

    async def found() -> tuple[str, str]:
        (one,) = (one for one in find_symptoms(await gathered(cluster)) if one.reason == "LayoutsNeedConfigMap")
        return one.message, str(one.command)

    message, command = await found()
    assert not lacks(message, "gpu-01", "no agent")
    assert command == "kubectl get nodes -L nvidia.com/mig.config"
    gpu = observed_gpu(mig=f"{count}x1g.10gb@0123456789abcdef")
    cluster.add(GPUNODES, {"metadata": {"name": "gpu-01"}, "status": {"observed": observed(gpu)}})
    message, command = await found()
    assert not lacks(message, "nvidia.com/mig.config", "all-disabled", f"{count}x1g.10gb")
    label = "kubectl label node gpu-01 --overwrite nvidia.com/mig.config=all-1g.10gb && kubectl patch"
    assert command.startswith(label if count == 7 else "kubectl get nodes -L nvidia.com/mig.config")


async def test_without_nodes_no_command_restarts_mig_manager(cluster: FakeCluster) -> None:
    bare = {"spec": {**POINTERS, "migManager": {"config": {"name": ""}}}}
    cluster.patch(CLUSTER_POLICIES, "cluster-policy", bare)
    cluster.faults.fail("list", NODES, Forbidden("no"), times=EVER)
    view = await gathered(cluster)
    (one,) = (one for one in find_symptoms(view) if one.reason == "LayoutsNeedConfigMap")
    assert str(one.command) == "kubectl get nodes -L nvidia.com/mig.config"


@pytest.mark.parametrize(
    ("holder", "age", "stopped"), [("me", 1, False), ("me", 60, True), ("me", None, True), ("", 1, True)]
)
async def test_an_operator_that_leads_from_outside_the_cluster_is_not_missed(
    cluster: FakeCluster, holder: str, age: int | None, stopped: bool
) -> None:
    """`make run` scales the Deployment to 0 and takes the Lease itself."""
    deployment = (DEPLOYMENTS, "gpusharing-operator")
    await cluster.client("me").patch(*deployment, {"spec": {"replicas": 0}}, namespace="gpusharing")
    assert "OperatorStopped" in reasons(await gathered(cluster)), "nobody has the Lease"
    renewed = None if age is None else to_micro_time(datetime.now(UTC) - timedelta(seconds=age))
    lease(cluster, holder, renewed)
    assert ("OperatorStopped" in reasons(await gathered(cluster))) == stopped


@pytest.mark.parametrize(("holder", "severity"), [
    ("operator-0-1f", "WARNING"), ("operator-1-1f", "ERROR"), ("", "ERROR")
], ids=["a standby", "the leader", "and nobody leads"])  # fmt: skip
async def test_a_pod_that_is_not_ready_is_an_error_unless_it_only_stands_by(
    cluster: FakeCluster, holder: str, severity: Severity
) -> None:
    two_pods(cluster)
    assert severity_of(await gathered(cluster)) == "ERROR", "there is no Lease"
    lease(cluster, holder, to_micro_time(datetime.now(UTC)))
    view = await gathered(cluster)
    assert (view.leader, severity_of(view)) == (holder.rpartition("-")[0], severity)


@pytest.mark.parametrize(
    "error", [Forbidden("not allowed to get leases"), Unavailable("the request took too long")], ids=str
)
async def test_a_lease_that_cannot_be_read_is_named_and_proves_nothing(cluster: FakeCluster, error: KubeError) -> None:
    two_pods(cluster)
    cluster.faults.fail("get", LEASES, error, times=1)
    view = await gathered(cluster)
    assert (view.leader, severity_of(view)) == (None, "WARNING")
    assert view.unread == {"leases.coordination.k8s.io": str(error)}


async def test_where_all_pods_are_ready_nobody_reads_the_lease(cluster: FakeCluster) -> None:
    lease(cluster, "", None)
    assert (await gathered(cluster)).leader is None


def two_pods(cluster: FakeCluster) -> None:
    cluster.add(PODS, pod("operator-1", "gpusharing-operator", "gpusharing", "gpu-01", {}))


def lease(cluster: FakeCluster, holder: str, renewed: str | None) -> None:
    spec = {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15}
    metadata = {"name": "gpusharing-operator", "namespace": "gpusharing"}
    cluster.add(LEASES, {"metadata": metadata, "spec": spec})


def severity_of(view: Installation) -> Severity:
    (severity,) = [one.severity for one in find_symptoms(view) if one.reason == "OperatorNotReady"]
    return severity


async def test_the_mps_daemon_of_the_gpu_operator_is_read_for_its_policy(cluster: FakeCluster) -> None:
    name = "mps-control-daemon"
    signalled = [{"name": "PROCESS_TO_SIGNAL", "value": f"/usr/bin/{name}"}]
    containers = [
        {"name": f"{name}-ctr", "image": "example.com/k8s-device-plugin:v0.20.0", "command": [name]},
        {"name": "config-manager", "env": signalled},
    ]
    owners = [{"kind": "ClusterPolicy", "name": "cluster-policy"}]
    metadata = {"name": "mps", "namespace": "gpu-operator", "ownerReferences": owners}
    spec = {"template": {"spec": {"hostPID": True, "containers": containers}}}
    cluster.add(DAEMON_SETS, {"metadata": metadata, "spec": spec})
    mps = {"nodeSelector": {"matchLabels": {"pool": "e"}}, "mode": "MPS", "mps": {"replicas": 4}}
    cluster.add(POLICIES, {"metadata": {"name": "pool-e"}, "spec": mps})
    view = await gathered(cluster)
    (found,) = [row for row in find_symptoms(view) if row.reason == "MPSNotSwitchable"]
    assert str(found.command).endswith("daemonset/mps -c config-manager PROCESS_TO_SIGNAL=mps-control-daemon")


async def test_reports_of_agents_and_our_entries_are_read(cluster: FakeCluster) -> None:
    entry = "version: v1\nflags: {migStrategy: mixed}\n"
    cluster.patch(CONFIG_MAPS, "gpusharing-device-plugin", {"data": {"own": entry}}, namespace="gpu-operator")
    cluster.add(GPUNODES, {"metadata": {"name": "gpu-9"}, "status": {"observed": observed(observed_gpu())}})
    view = await gathered(cluster)
    assert view.stack.plugin_configs["own"] == entry
    assert (report := view.snapshot.gpunodes["gpu-9"].observed) is not None
    assert len(report.gpus) == 1


@pytest.mark.parametrize("secure", [True, False])
async def test_the_reviews_of_an_agent_are_checked_where_it_makes_them(cluster: FakeCluster, secure: bool) -> None:
    env = [{"name": "METRICS_SECURE", "value": str(secure).lower()}]
    spec = {"template": {"spec": {"containers": [{"name": "agent", "env": env}]}}}
    cluster.patch(DAEMON_SETS, "gpusharing-agent", {"spec": spec}, namespace="gpusharing-agent")
    view = await gathered(cluster)
    assert view.agents is not None
    assert view.agents.secure_metrics is secure
    checked = {right.resource for right in view.rights["gpusharing-agent"]}
    assert checked == {"gpunodes", *(("tokenreviews", "subjectaccessreviews") if secure else ())}


async def test_nothing_is_written(cluster: FakeCluster) -> None:
    await gathered(cluster)
    assert {(verb, plural) for who, verb, plural in cluster.calls if verb not in ("get", "list")} <= {
        ("create", "subjectaccessreviews")
    }


async def test_an_empty_cluster_is_told_and_not_stumbled_over() -> None:
    empty = FakeCluster()
    empty.uninstalled |= {ACCESS_REVIEWS, POLICIES, GPUNODES, CLUSTER_POLICIES}
    view = await gathered(empty)
    assert not view.installed
    assert reasons(view) == {"ClusterPolicyMissing"}, "an installation brings the rest"


async def test_a_node_with_a_device_plugin_of_the_cloud_is_told_until_its_label_says_no(cluster: FakeCluster) -> None:
    labels = {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    cluster.patch(NODES, "gpu-01", {"metadata": {"labels": labels}})
    assert reasons(await gathered(cluster)) == {"RightsUnknown", "TwoDevicePlugins"}
    cluster.patch(NODES, "gpu-01", {"metadata": {"labels": {"gke-no-default-nvidia-gpu-device-plugin": "true"}}})
    assert reasons(await gathered(cluster)) == {"RightsUnknown"}


async def test_doctor_does_not_start_nvidias_plugin_beside_one_that_serves_a_node(cluster: FakeCluster) -> None:
    """HAMi's installation has admins set devicePlugin.enabled to false; both serve nvidia.com/gpu."""
    (policy,) = cluster.objects(CLUSTER_POLICIES)
    name = policy["metadata"]["name"]
    cluster.patch(CLUSTER_POLICIES, name, {"spec": {"devicePlugin": {"enabled": False}}})
    for annotations, command in (
        ({}, f"kubectl patch clusterpolicy {name}"),
        ({"hami.io/node-nvidia-register": "GPU-1"}, f"kubectl get clusterpolicy {name} -o yaml"),
    ):
        cluster.patch(NODES, "gpu-01", {"metadata": {"annotations": annotations}})
        found = find_symptoms(await gathered(cluster))
        (off,) = (one for one in found if one.reason == "PluginDisabled")
        assert str(off.command).startswith(command)


@pytest.mark.parametrize(
    "shown",
    [
        {"status": {"allocatable": {"nvidia.com/gpu": "8"}}},
        {"metadata": {"labels": {"nvidia.com/gpu.deploy.driver": "pre-installed"}}},
    ],
    ids=["it offers GPUs", "NVIDIA's driver manager found the driver"],
)
async def test_a_node_shows_that_it_has_a_driver(cluster: FakeCluster, shown: dict[str, Any]) -> None:
    (before,) = (one for one in (await gathered(cluster)).snapshot.nodes.values() if one.name == "gpu-01")
    assert not has_driver(before)
    cluster.patch(NODES, "gpu-01", shown, subresource="status" if "status" in shown else None)
    (after,) = (one for one in (await gathered(cluster)).snapshot.nodes.values() if one.name == "gpu-01")
    assert has_driver(after)


@pytest.mark.parametrize(
    ("os_image", "told"),
    [
        ("Bottlerocket OS 1.14.0 (aws-k8s-1.24-nvidia)", {"TwoDevicePlugins"}),
        ("Bottlerocket OS 1.66.0 (aws-k8s-1.37-nvidia-fips)", {"TwoDevicePlugins"}),
        ("Bottlerocket OS 1.66.0 (aws-k8s-1.37)", set()),
        ("Amazon Linux 2023.9.20251014", set()),
        ("", set()),
    ],
)
async def test_a_node_whose_system_brings_a_device_plugin_is_told(
    cluster: FakeCluster, os_image: str, told: set[str]
) -> None:
    cluster.patch(NODES, "gpu-01", {"status": {"nodeInfo": {"osImage": os_image}}}, subresource="status")
    assert reasons(await gathered(cluster)) == {"RightsUnknown"} | told


IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
PLACES = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/2 nodes are available",
}


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (
            {"containerStatuses": [{"name": "agent", "state": IMAGE}]},
            "gpu-01: its pod does not start: image  cannot be pulled (not found)",
        ),
        (
            {"conditions": [{"type": "Initialized", "status": "False", "reason": "X"}, PLACES]},
            "gpu-01: its pod does not start: it has not been scheduled",
        ),
    ],
    ids=["for its image", "for a node"],
)
async def test_a_pod_says_why_it_waits(cluster: FakeCluster, status: Any, why: str) -> None:
    cluster.delete(PODS, "agent-0", "gpusharing-agent")
    cluster.finish_terminations()
    cluster.add(PODS, pod("agent-1", "gpusharing-agent", "gpusharing-agent", "gpu-01", status))
    (found,) = (one for one in find_symptoms(await gathered(cluster)) if one.reason == "AgentNotReady")
    assert why in found.message


async def test_a_pod_that_is_being_deleted_is_not_ready_any_more(cluster: FakeCluster) -> None:
    cluster.delete(PODS, "agent-0", "gpusharing-agent")
    assert (await gathered(cluster)).snapshot.agents == frozenset()


async def test_a_configmap_is_ours_by_its_label_or_by_its_times_of_writing(cluster: FakeCluster) -> None:
    label, no_label = names.LABEL_MANAGED_BY, {"labels": {names.LABEL_MANAGED_BY: None}}
    times = {"annotations": {names.ANNOTATION_WRITTEN: "{}"}}
    found = []
    for metadata in ({"labels": {label: names.MANAGED_BY}}, no_label, no_label | times):
        cluster.patch(CONFIG_MAPS, "gpusharing-mig-parted", {"metadata": metadata}, "gpu-operator")
        found.append((await gathered(cluster)).stack.foreign_maps)
    assert found == [(), ("gpusharing-mig-parted",), ()]


async def test_the_names_in_our_mig_file_are_read(cluster: FakeCluster) -> None:
    data = {"config.yaml": "mig-configs: {all-1g.10gb: [{devices: all, mig-enabled: false}]}"}
    cluster.patch(CONFIG_MAPS, "gpusharing-mig-parted", {"data": data}, "gpu-operator")
    assert parse((await gathered(cluster)).stack.mig_file).keys() == {"all-1g.10gb"}


async def test_what_may_not_be_read_is_named(cluster: FakeCluster) -> None:
    cluster.faults.fail("list", NODES, Forbidden("no nodes for you"), times=EVER)
    cluster.faults.fail("get", CONFIG_MAPS, Forbidden("no maps for you"), times=EVER)
    view = await gathered(cluster)
    assert view.unread == {"nodes": "no nodes for you", "configmaps": "no maps for you"}
    assert reasons(view) == {"NotReadable", "RightsUnknown"}


async def test_without_credentials_nothing_is_claimed(cluster: FakeCluster) -> None:
    cluster.faults.fail("list", POLICIES, Unauthorized("who are you"))
    with pytest.raises(Unauthorized):
        await gathered(cluster)
