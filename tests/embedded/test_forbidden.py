"""Pods that are never evicted whatever a change needs, and drivers under which nothing is repartitioned."""

from typing import Any

import pytest
from hack.embedded import CLUSTER_POLICY
from hack.sim.gpu import SimulatedGPUs
from tests.embedded.scene import H100, MIXED, SLICED, gpu_pod, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import EVENTS, JSON, PODS

OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "rs", "controller": True}
REBOOTING: JSON = {
    **CLUSTER_POLICY,
    "spec": {
        **CLUSTER_POLICY["spec"],
        "migManager": {**CLUSTER_POLICY["spec"]["migManager"], "env": [{"name": "WITH_REBOOT", "value": "true"}]},
    },
}


def pod(namespace: str, name: str, *, gpu: bool) -> JSON:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "ownerReferences": [OWNER]}
    return gpu_pod(name, "gpu-1", metadata=metadata, spec={} if gpu else {"containers": [{"name": "main"}]})


@virtually
async def test_a_gpu_pod_in_a_protected_namespace_is_known_before_the_node_would_be_cordoned() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, pod("kube-system", "profiler", gpu=True))
        transition = await scene.reach(SLICED, reason="ProtectedNamespace")
        assert (transition["phase"], transition["culprit"]) == ("Blocked", "kube-system/profiler")
        assert "operator.protectedNamespaces" in transition["blockers"][0]
        assert not scene.cordoned("gpu-1")
        assert scene.node_writes()["gpu-1"] == 0
        scene.e.cluster.delete(PODS, "profiler", "kube-system")
        await scene.ready()
        assert scene.evicted() == []


@pytest.mark.parametrize(
    ("namespace", "name", "reason"),
    [("kube-system", "dns", "ProtectedNamespace"), ("gpusharing", "gpusharing-operator-1", "OwnPod")],
)
@virtually
async def test_before_a_reboot_a_pod_that_must_stay_keeps_the_node_from_being_cordoned(
    namespace: str, name: str, reason: str
) -> None:
    async with open_scene(*nodes(1), cluster_policy=REBOOTING, pod_name="gpusharing-operator-1") as scene:
        scene.e.cluster.add(PODS, pod(namespace, name, gpu=False))
        transition = await scene.reach(MIXED, reason=reason)
        assert (transition["phase"], transition["culprit"]) == ("Blocked", f"{namespace}/{name}")
        assert not scene.cordoned("gpu-1")
        assert scene.fence("gpu-1") is None
        scene.e.cluster.delete(PODS, name, namespace)
        await scene.ready(seconds=3600)
        assert scene.evicted() == []


@virtually
async def test_before_a_reboot_every_pod_leaves_and_the_change_is_announced_as_a_reboot() -> None:
    async with open_scene(*nodes(1), cluster_policy=REBOOTING) as scene:
        scene.e.cluster.add(PODS, pod("default", "web", gpu=False))
        await scene.serve(MIXED, seconds=3600)
        assert scene.evicted() == ["web"]
        notes = [event["note"] for event in scene.e.cluster.objects(EVENTS) if event["reason"] == "Reconfiguring"]
        assert [note.endswith("(class Reboot)") for note in notes] == [True, True], "of the policy and of the GPUNode"


@virtually
async def test_a_change_that_needs_no_reboot_does_not_mind_the_operators_own_pod() -> None:
    async with open_scene(*nodes(1), pod_name="gpusharing-operator-1") as scene:
        scene.e.cluster.add(PODS, pod("gpusharing", "gpusharing-operator-1", gpu=False))
        scene.e.cluster.add(PODS, pod("kube-system", "dns", gpu=False))
        await scene.serve(MIXED)
        assert scene.evicted() == []


@virtually
async def test_nothing_is_repartitioned_under_an_unsafe_driver_and_what_is_not_mig_goes_on() -> None:
    old = SimulatedGPUs("gpu-1", (H100, H100), driver_version="580.95.05")
    async with open_scene(*nodes(1), hardware={"gpu-1": old}, serving=SLICED) as scene:
        since = scene.mark()
        transition = await scene.reach(MIXED, reason="UnsafeDriver")
        assert transition["phase"] == "Blocked"
        assert "580.159.03" in transition["message"]
        assert not scene.cordoned("gpu-1")
        assert scene.node_writes(since)["gpu-1"] == 0


@virtually
async def test_a_driver_that_hangs_pods_beside_instances_gets_every_layout_but_such_a_one() -> None:
    """NVIDIA/gpu-operator#1361: such a node was Synced, and new pods stayed Pending there."""
    hanging = SimulatedGPUs("gpu-1", (H100, H100), driver_version="570.148.08")
    beside = [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}]
    async with open_scene(*nodes(1), hardware={"gpu-1": hanging}) as scene:
        transition = await scene.reach({"mode": "MIG", "mig": {"layouts": beside}}, reason="UnsafeDriver")
        assert transition["phase"] == "Blocked"
        assert "570.172.08" in transition["message"]
        assert not scene.cordoned("gpu-1")
        assert scene.fence("gpu-1") is None
        await scene.serve(MIXED)
