"""What `doctor` says of others that serve GPUs beside our device plugin (stack/nodesymptoms.py, kube/daemonsets.py), and of DeviceClasses of somebody else (stack/drastack.py)."""

from typing import Any

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.cli.asking import ME, ask
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, DEVICE_CLASSES, JSON, NODES
from gpusharing.kube.daemonsets import gpu_server
from gpusharing.kube.errors import Forbidden, NotFound

GPU = {"nvidia.com/gpu.present": "true"}
OWNER = {"kind": "ClusterPolicy", "name": "cluster-policy"}
PLUGIN: JSON = {"name": "nvidia-device-plugin"}
CHARTED: JSON = {"name": "nvidia-device-plugin-ctr", "command": ["nvidia-device-plugin"]}
DIVIDES: JSON = {"name": "nvidia-mig-manager"}
CLAIMS: JSON = {"name": "gpus", "command": ["bash", "-c"], "args": ["exec gpu-kubelet-plugin -v 4"]}
DOMAINS: JSON = {"name": "compute-domains", "args": ["compute-domain-kubelet-plugin -v 4"]}


def daemon_set(namespace: str, name: str, *containers: JSON, release: str = "", **more: Any) -> JSON:
    spec = {
        "containers": list(containers),
        "nodeSelector": more.get("selector", {}),
        "tolerations": [{"key": key, "operator": "Exists"} for key in more.get("tolerated", ())],
        "affinity": more.get("affinity", {}),
    }
    labels = {"app.kubernetes.io/managed-by": "Helm"} if release else {}
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {"meta.helm.sh/release-name": release} if release else {},
            "ownerReferences": more.get("owners", []),
        },
        "spec": {"template": {"spec": spec}},
        "status": {"desiredNumberScheduled": more.get("wanted", 2)},
    }


MAIN = daemon_set("gpu-operator", "nvidia-device-plugin-daemonset", PLUGIN, owners=[OWNER])
STATIC = daemon_set("kube-system", "nvidia-device-plugin-daemonset", CHARTED)
CHART = daemon_set("nvdp", "nvdp", CHARTED, release="nvdp")
HAMIS: JSON = {"name": "device-plugin", "image": "registry.example/projecthami/hami:v2.10.0"}
HAMI = daemon_set("hami", "hami-device-plugin", HAMIS, release="hami")
DRIVER = daemon_set("dra", "nvidia-dra-driver-gpu-kubelet-plugin", DOMAINS, CLAIMS, release="dra")
AGAIN = "kubectl -n gpu-operator rollout restart daemonset nvidia-device-plugin-daemonset"


def cluster_with(*sets: JSON) -> FakeCluster:
    cluster = FakeCluster()
    cluster.add(CLUSTER_POLICIES, {"metadata": {"name": "cluster-policy"}, "spec": {}})
    for name, labels in {"gpu-1": GPU, "gpu-2": {**GPU, "pool": "b"}, "cpu-1": {}}.items():
        cluster.add(NODES, {"metadata": {"name": name, "labels": labels}})
    for one in sets:
        cluster.add(DAEMON_SETS, one)
    return cluster


async def rivals(*sets: JSON, severity: str = "WARNING") -> dict[str, tuple[str, str]]:
    """Message and command of what is said of them, by reason; all of it has this severity."""
    told = await ask(cluster_with(*sets), "doctor", "-o", "json")
    reasons = {"TwoDevicePlugins", "TwoMigManagers", "DRADriverServesGPUs"}
    found = [one for one in told.data["symptoms"] if one["reason"] in reasons]
    assert {one["severity"] for one in found} <= {severity}
    return {one["reason"]: (one["message"], one["command"]) for one in found}


REMOVED: dict[str, tuple[JSON, str]] = {
    "the static manifest": (STATIC, "kubectl -n kube-system delete daemonset nvidia-device-plugin-daemonset"),
    "the chart": (CHART, "helm uninstall nvdp -n nvdp"),
    "HAMi's": (HAMI, "helm uninstall hami -n hami"),
}


@pytest.mark.parametrize(("other", "removal"), REMOVED.values(), ids=REMOVED)
@virtually
async def test_a_second_device_plugin_is_told_with_what_takes_it_away(other: JSON, removal: str) -> None:
    ((message, command),) = (await rivals(other, MAIN)).values()
    where = f"{other['metadata']['namespace']}/{other['metadata']['name']}"
    assert f"DaemonSet {where} runs a device plugin" in message
    assert "DaemonSet gpu-operator/nvidia-device-" in message
    assert "both select gpu-1, gpu-2:" in message
    assert command == f"{removal} && {AGAIN}", "a kubelet forgets the other plugin with the one that spoke last"


@pytest.mark.parametrize(
    ("namespace", "severity"),
    [("nvdp", "WARNING"), ("gpu-operator", "ERROR")],
    ids=["where the operator does not look", "where the operator refuses policies for it"],
)
@virtually
async def test_a_second_mig_manager_is_told_with_what_takes_it_away(namespace: str, severity: str) -> None:
    first = daemon_set("gpu-operator", "nvidia-mig-manager-daemonset", DIVIDES, owners=[OWNER])
    second = daemon_set(namespace, "mm", DIVIDES, tolerated=["nvidia.com/gpu"])
    found = await rivals(MAIN, second, first, severity=severity)
    message, command = found.pop("TwoMigManagers")
    assert found == {}
    assert not lacks(
        message, f"{namespace}/mm", "mig-manager", "gpu-operator/nvidia-mig-manager-daemonset", "gpu-1, gpu-2"
    )
    assert command == f"kubectl -n {namespace} delete daemonset mm"


FEW = daemon_set("gpu-operator", "main", PLUGIN, owners=[OWNER], wanted=1, selector={"pool": "b"})
SHARED: dict[str, tuple[JSON, JSON]] = {
    "few pods that nothing can keep apart": (FEW, daemon_set("kube-system", "nvdp", CHARTED, wanted=1)),
    "one of them meant for few nodes": (MAIN, daemon_set("kube-system", "nvdp", CHARTED, selector={"pool": "b"})),
}


@pytest.mark.parametrize("sets", SHARED.values(), ids=SHARED)
@virtually
async def test_only_nodes_that_both_are_meant_for_are_named(sets: tuple[JSON, JSON]) -> None:
    ((message, _),) = (await rivals(*sets)).values()
    assert "both select gpu-2:" in message


@virtually
async def test_a_dra_driver_that_serves_gpus_is_told_with_the_claims_that_would_lose_them() -> None:
    found = await rivals(MAIN, DRIVER)
    message, command = found.pop("DRADriverServesGPUs")
    assert found == {}
    assert not lacks(message, "NVIDIA's DRA driver", "gpu-1, gpu-2", "device plugin")
    assert not lacks(message, "could not start again")
    assert command == "kubectl get resourceclaims -A", "nobody knows which pods hold claims"


@virtually
async def test_what_would_come_again_or_takes_more_along_is_only_shown() -> None:
    """A DaemonSet of somebody's operator, and a driver that serves compute domains too, both without Helm."""
    made = daemon_set("other", "nvdp", CHARTED, owners=[{"kind": "Fleet", "name": "f"}])
    driver = daemon_set("dra", "dra", DOMAINS, CLAIMS)
    found = await rivals(MAIN, made, driver)
    assert found["TwoDevicePlugins"][1] == "kubectl -n other get daemonset nvdp -o yaml"
    assert found["DRADriverServesGPUs"][1] == "kubectl get resourceclaims -A"


@virtually
async def test_the_gpu_operators_plugin_is_the_one_that_stays_beside_a_chart_in_its_namespace() -> None:
    beside = daemon_set("gpu-operator", "a-chart", CHARTED, release="early")
    ((_, command),) = (await rivals(beside, MAIN, severity="ERROR")).values()
    assert command == f"helm uninstall early -n gpu-operator && {AGAIN}"


ALONE: dict[str, tuple[JSON, ...]] = {
    "the GPU Operator's own": (MAIN, daemon_set("gpu-operator", "mps", {"name": "mps-control-daemon-ctr"})),
    "another plugin where the GPU Operator has none": (CHART,),
    "the DRA driver for compute domains alone": (MAIN, daemon_set("dra", "dra", DOMAINS)),
    "the DRA driver where no device plugin is": (DRIVER,),
    "one that wants no node": (MAIN, daemon_set("kube-system", "nvdp", CHARTED, wanted=0)),
    "as few as may well be parted by taints": (
        daemon_set("gpu-operator", "main", PLUGIN, owners=[OWNER], wanted=1, tolerated=["pool-a"]),
        daemon_set("kube-system", "nvdp", CHARTED, wanted=1, tolerated=["pool-b"]),
    ),
    "as few as may well be parted by affinity": (
        daemon_set("gpu-operator", "main", PLUGIN, owners=[OWNER], wanted=1, affinity={"nodeAffinity": 1}),
        daemon_set("kube-system", "nvdp", CHARTED, wanted=1, affinity={"nodeAffinity": 2}),
    ),
    "mig-managers for other nodes": (
        daemon_set("gpu-operator", "mm", DIVIDES, owners=[OWNER], selector={"pool": "a"}),
        daemon_set("nvdp", "mm", DIVIDES, selector={"pool": "b"}),
    ),
    "one for other nodes": (
        daemon_set("gpu-operator", "main", PLUGIN, owners=[OWNER], selector={"pool": "a"}),
        daemon_set("kube-system", "nvdp", CHARTED, selector={"pool": "b"}),
    ),
}


@pytest.mark.parametrize("sets", ALONE.values(), ids=ALONE)
@virtually
async def test_of_those_who_share_no_node_nothing_is_said(sets: tuple[JSON, ...]) -> None:
    assert await rivals(*sets) == {}


@virtually
async def test_who_may_not_list_them_is_told_what_would_not_be_seen() -> None:
    cluster = cluster_with(MAIN, STATIC)
    refusal = Forbidden('User "me" cannot list resource "daemonsets" at the cluster scope')
    cluster.faults.fail("list", DAEMON_SETS, refusal, times=EVER, identity=ME, namespace="")
    told = await ask(cluster, "doctor", "-o", "json")
    assert "a second device plugin would go unnoticed" in told.data["unknown"]["labels of Nodes"]


@pytest.mark.parametrize("raw", [{}, {"metadata": 3, "spec": []}, {"spec": {"template": {"spec": {"containers": 1}}}}])
def test_what_is_malformed_serves_nothing(raw: JSON) -> None:
    assert gpu_server(raw) is None


@virtually
async def test_no_release_is_uninstalled_that_also_installs_the_plugin_that_stays() -> None:
    both = (daemon_set("gpu", name, CHARTED, release="infra") for name in ("plugin-a", "plugin-b"))
    _, command = (await rivals(*both))["TwoDevicePlugins"]
    assert command == "helm get manifest infra -n gpu"


@virtually
async def test_a_second_mig_manager_that_alone_serves_nodes_is_only_shown() -> None:
    main = daemon_set("gpu-operator", "nvidia-mig-manager", DIVIDES, selector={"pool": "b"}, owners=[OWNER])
    other = daemon_set("gpu", "mig-manager", DIVIDES)
    message, command = (await rivals(main, other))["TwoMigManagers"]
    assert command == "kubectl -n gpu get daemonset mig-manager -o yaml"
    assert "gpu-1" in message


# --- DeviceClasses ----------------------------------------------------------------------------------------------

HALF = "nvidia.com/mig-3g.40gb"


def with_classes(profile: str, *, plugin: bool = False) -> FakeCluster:
    """NVIDIA's DRA driver, perhaps beside a device plugin, and a class for halves that selects this profile."""
    cluster = FakeCluster()
    spec = {"devicePlugin": {"enabled": plugin}}
    cluster.add(CLUSTER_POLICIES, {"metadata": {"name": "cluster-policy"}, "spec": spec})
    cluster.add(DAEMON_SETS, daemon_set("gpu-operator", "dra", DOMAINS, CLAIMS))
    selectors = [{"cel": {"expression": f"device.attributes['gpu.nvidia.com'].profile == '{profile}'"}}]
    halves = {"extendedResourceName": HALF, "selectors": selectors}
    cluster.add(DEVICE_CLASSES, {"metadata": {"name": "halves"}, "spec": halves})
    cluster.add(DEVICE_CLASSES, {"metadata": {"name": "any"}, "spec": {}})
    return cluster


async def classes(cluster: FakeCluster) -> tuple[list[dict[str, Any]], dict[str, str]]:
    answer = await ask(cluster, "doctor", "-o", "json")
    found = [one for one in answer.data["symptoms"] if one["reason"] == "DeviceClassDoubtful"]
    return found, answer.data["unknown"]


@virtually
async def test_a_class_that_selects_another_profile_than_its_resource_names_is_told() -> None:
    ((row,), unknown) = await classes(with_classes("7g.80gb"))
    assert (row["severity"], row["topic"]) == ("WARNING", "ClusterPolicy")
    assert not lacks(row["message"], "DeviceClass halves", "spec.extendedResourceName", HALF)
    assert row["command"] == "kubectl get deviceclass halves -o yaml"
    assert "DeviceClasses" not in unknown.get("ClusterPolicy", "")


@virtually
async def test_a_class_that_selects_its_profile_is_not_told_and_neither_is_any_where_a_device_plugin_serves() -> None:
    assert (await classes(with_classes("3g.40gb")))[0] == []
    assert (await classes(with_classes("7g.80gb", plugin=True)))[0] == []


@pytest.mark.parametrize("error", [Forbidden("not allowed"), NotFound("no such kind")], ids=str)
@virtually
async def test_where_classes_cannot_be_read_that_is_told(error: Exception) -> None:
    cluster = with_classes("7g.80gb")
    cluster.faults.fail("list", DEVICE_CLASSES, error, times=EVER, identity=ME)
    found, unknown = await classes(cluster)
    assert found == []
    assert "DeviceClasses cannot be read" in unknown["ClusterPolicy"]
