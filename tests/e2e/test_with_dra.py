"""NVIDIA's DRA driver in place of the device plugin, on real kubelets: NVIDIA's chart, its kubelet plugin, and containerd with CDI.
SIMULATED as in the other files: GPUs, driver, Node Feature Discovery, and the processes on the GPUs. The scheduler, the claims, the kubelet's calls of the plugin and the CDI devices in the containers are real."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hack.cluster import install
from hack.cluster.api import MERGE_PATCH, Object
from hack.nvidia.installations import CLUSTER_POLICY, WITHOUT_PLUGIN
from hack.nvmlsim.simulator import machine_devices
from hack.realnode.dra import CDI, install_dra
from hack.realnode.images import PAUSE_IMAGE
from hack.realnode.site import Site
from hack.sim.dra import KUBELET_PLUGIN, LABEL_DRA
from tests.e2e.pool import (
    DEPLOYMENTS,
    FASTER,
    HALVES,
    MIG,
    NODES,
    PODS,
    POLICY,
    SLICE,
    Walk,
    can_work,
    clear,
    deployment,
    holding,
    policy_of,
)

from gpusharing.api import names
from gpusharing.planning.wanted.target import is_plugin_resource

pytestmark = pytest.mark.e2e
NODE, OTHER = NODES
POLICIES = POLICY.rpartition("/")[0]
DRIVER_NAMESPACE = "gpu-operator"
RESOURCES = "/apis/resource.k8s.io/v1"
SLICES = f"{RESOURCES}/resourceslices"
EVENTS = "/apis/events.k8s.io/v1/events"
IN_DEFAULT = f"{RESOURCES}/namespaces/default"
HALVED = replace(MIG, spec={"mode": "MIG", "mig": {**HALVES, "strategy": "mixed"}}, offered={})
WHOLE, PARTITIONS = {"gpu": 2}, {"3g.40gb": 4}
WHOLE_CLASS, PARTITION_CLASS = "gpu.nvidia.com", "gpusharing-mig-3g.40gb"
CLAIMANT = "claimant"


@pytest.fixture(scope="module")
def dra(site: Site, notes: str) -> Iterator[Walk]:
    """The nodes with NVIDIA's DRA driver, whole GPUs and no policy; in the end without the driver and what it wrote."""
    walk = Walk(site)
    clear(walk)
    for node in NODES:
        whole: Object = {"metadata": {"labels": {names.LABEL_MIG_CONFIG: "all-disabled"}}}
        by_hand = {"fieldManager": "kubectl-label"}  # another name would be a program that overwrites
        site.api.request("PATCH", f"/api/v1/nodes/{node}", whole, MERGE_PATCH, **by_hand)
    site.api.merge_patch(CLUSTER_POLICY, {"spec": WITHOUT_PLUGIN})
    site.helm_install("--set", FASTER)
    site.install_operands(plugin=False)
    manifests = install_dra(list(site.nodes.values()))
    walk.wait(lambda: [published(walk, node) for node in NODES] == [WHOLE] * 2, "whole GPUs to be published")
    walk.wait(lambda: not any(by_plugin(walk, node) for node in NODES), "kubelets to count no device of a plugin")
    yield walk
    for path in (POLICY, f"{DEPLOYMENTS}/{CLAIMANT}", PODS):
        site.api.delete(path, {"propagationPolicy": "Foreground"})
    walk.wait(lambda: not site.api.list(PODS), "the driver to take the devices back, and the pods to be gone")
    for manifest in reversed(manifests):
        site.api.delete(install.object_path(site.api, manifest), {"propagationPolicy": "Foreground"})
    walk.wait(lambda: plugins(walk) == {}, "the driver to be gone")
    site.api.delete(SLICES)  # the kubelets would do it half a minute later


def published(walk: Walk, node: str) -> Counter[str]:
    return devices_in(walk.site.api.list(SLICES, fieldSelector=f"spec.nodeName={node}"))


def devices_in(slices: list[Object]) -> Counter[str]:
    """How many devices of each kind are in the ResourceSlices: MIG profiles, and `gpu` for whole GPUs."""
    devices = [device for one in slices for device in one["spec"].get("devices", ())]
    return Counter(device["attributes"].get("profile", {"string": "gpu"})["string"] for device in devices)


def by_plugin(walk: Walk, node: str) -> list[str]:
    """The GPU resources of a device plugin that the kubelet counts. It notices late that the plugin is gone, and as long as it does not, two programs seem to manage the GPUs."""
    counts = walk.site.api.get(f"/api/v1/nodes/{node}")["status"]["allocatable"]
    return [name for name, count in counts.items() if is_plugin_resource(name) and count != "0"]


def plugins(walk: Walk) -> dict[str, str]:
    where = {"labelSelector": f"{LABEL_DRA}={KUBELET_PLUGIN}"}
    pods = walk.site.api.list(f"/api/v1/namespaces/{DRIVER_NAMESPACE}/pods", **where)
    return {pod["spec"]["nodeName"]: pod["metadata"]["uid"] for pod in pods}


def claiming(walk: Walk, device_class: str) -> Object:
    """The spec of a pod that claims one device of the class. Its template for claims is created under the same name."""
    request = {"name": "gpu", "exactly": {"deviceClassName": device_class}}
    spec = {"spec": {"devices": {"requests": [request]}}}
    walk.site.api.create(f"{IN_DEFAULT}/resourceclaimtemplates", {"metadata": {"name": device_class}, "spec": spec})
    container = {"name": "main", "image": PAUSE_IMAGE, "resources": {"claims": [{"name": "gpu"}]}}
    claim = {"name": "gpu", "resourceClaimTemplateName": device_class}
    return {**holding(SLICE), "containers": [container], "resourceClaims": [claim]}


def rather_on(node: str) -> Object:
    """The affinity of a pod that runs elsewhere only if it cannot run on the node."""
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    rule = {"weight": 100, "preference": {"matchExpressions": [here]}}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [rule]}}


def allocated(walk: Walk, pod: str) -> str:
    status = walk.site.api.get(f"{PODS}/{pod}")["status"]
    (claim,) = status.get("resourceClaimStatuses") or [status["extendedResourceClaimStatus"]]
    allocation = walk.site.api.get(f"{IN_DEFAULT}/resourceclaims/{claim['resourceClaimName']}")["status"]["allocation"]
    (result,) = allocation["devices"]["results"]
    slices = walk.site.api.list(SLICES, fieldSelector=f"spec.nodeName={result['pool']}")
    devices = {device["name"]: device for one in slices for device in one["spec"]["devices"]}
    return str(devices[result["device"]]["attributes"]["uuid"]["string"])


def used(walk: Walk, node: str) -> dict[str, str]:
    """UUID of the device on which each pod's process computes, by the pod's name. The process is SIMULATED, on the device of which its container has the files."""
    shown = walk.shown(node)
    uuids = {(one.gpu, *(one.instance or (-1, -1))): one.uuid for one in machine_devices(shown)}
    return {
        one["name"].removeprefix("SIMULATED-"): uuids[one["gpu"], one["gpu_instance"], one["compute_instance"]]
        for one in shown["processes"]
    }


def wait_claimant(walk: Walk, node: str) -> str:
    walk.wait(lambda: list(walk.running(CLAIMANT).values()) == [node], f"the claimant to run on {node}")
    (pod,) = walk.running(CLAIMANT)
    return pod


def first_write(walk: Walk, collection: str, since: str, holds: Callable[[Object], bool]) -> int:
    """The version of the whole cluster in which an object of the collection was first written so that it holds."""
    written = (one for one in walk.site.api.changes(collection, since, 2) if holds(one))
    return int(next(written)["metadata"]["resourceVersion"])


def told(walk: Walk, since: str) -> list[str]:
    """The notes of the Events of policies since this version, one after the other."""
    events = walk.site.api.changes(EVENTS, since, 1)
    return [one["note"] for one in events if one["regarding"]["kind"] == "GPUSharingPolicy"]


def is_synced(policy: Object) -> bool:
    rows = policy.get("status", {}).get("conditions", ())
    return any((row["type"], row["status"]) == ("Ready", "True") for row in rows)


def test_a_node_goes_from_whole_gpus_to_mig_and_its_pod_gets_a_gpu_of_the_other_node(dra: Walk) -> None:
    api = dra.site.api
    pod = {**claiming(dra, WHOLE_CLASS), "affinity": rather_on(NODE)}
    api.create(DEPLOYMENTS, deployment(CLAIMANT, 1, pod))
    before = wait_claimant(dra, NODE)
    assert used(dra, NODE) == {before: allocated(dra, before)}
    since, restarted, version = dra.mark(), plugins(dra), api.get(POLICIES)["metadata"]["resourceVersion"]
    policy = policy_of(HALVED)
    policy["spec"]["nodeSelector"] = {"matchLabels": {"kubernetes.io/hostname": NODE}}
    api.apply(POLICY, policy)
    dra.wait(dra.is_ready, f"{HALVED.text} to be Ready")

    assert (published(dra, NODE), published(dra, OTHER)) == (PARTITIONS, WHOLE)
    of_node = first_write(dra, SLICES, version, lambda one: devices_in([one]) == PARTITIONS)
    assert of_node < first_write(dra, POLICIES, version, is_synced), "the slices are the proof"
    now = plugins(dra)
    assert (now[NODE] != restarted[NODE], now[OTHER]) == (True, restarted[OTHER])
    assert dra.evicted(since) == [before]
    proven = f"{NODE}: 2x3g.40gb proven"
    dra.wait(lambda: proven in told(dra, version), "the Event about the end of the change")
    assert told(dra, version) == [
        f"{NODE}: 1 GPU pod will be evicted before the change to 2x3g.40gb",
        f"{NODE}: 1x full -> 2x3g.40gb (class Reset)",
        proven,
    ]
    after = wait_claimant(dra, OTHER)
    assert used(dra, OTHER) == {after: allocated(dra, after)}


def test_pods_get_the_partitions_by_the_old_resource_and_by_a_claim(dra: Walk) -> None:
    specs = {"part": holding(SLICE), "claimed": claiming(dra, PARTITION_CLASS)}
    for name, spec in specs.items():
        dra.site.api.create(PODS, {"metadata": {"name": name}, "spec": spec})
    dra.wait(lambda: dra.computing(NODE) == sorted(specs), "both pods to run and compute")
    devices = used(dra, NODE)
    assert devices == {pod: allocated(dra, pod) for pod in specs}
    assert len(set(devices.values())) == len(specs)
    assert not dra.site.api.get(f"/api/v1/nodes/{NODE}")["spec"].get("unschedulable")


def test_helm_test_says_that_this_installation_can_work(dra: Walk) -> None:
    can_work(dra.site)


def test_a_device_is_taken_back_from_a_pod_that_ends(dra: Walk) -> None:
    specifications = dra.site.nodes[NODE].machine.path(CDI)
    assert len(list(specifications.iterdir())) == 2, "one for each claim"
    for name in ("part", "claimed"):
        dra.site.api.delete(f"{PODS}/{name}")
    dra.wait(lambda: list(specifications.iterdir()) == [], "the driver to unprepare both claims")
