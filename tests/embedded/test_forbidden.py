"""Pods that are never evicted whatever a change needs, and drivers under which nothing is repartitioned."""

from typing import Any

import pytest
from hack.embedded import CLUSTER_POLICY
from hack.sim.gpu import SimulatedGPUs
from tests.embedded.scene import H100, MIXED, SLICED, gpu_pod, nodes, scene
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import JSON, PODS

OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "rs", "controller": True}
REBOOTING: JSON = {
    **CLUSTER_POLICY,
    "spec": {
        **CLUSTER_POLICY["spec"],
        "migManager": {
            **CLUSTER_POLICY["spec"]["migManager"],
            "env": [{"name": "WITH_REBOOT", "value": "true"}],
        },
    },
}


def pod(namespace: str, name: str, *, gpu: bool) -> JSON:
    """A pod of a ReplicaSet on gpu-1."""
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "ownerReferences": [OWNER]}
    return gpu_pod(name, "gpu-1", metadata=metadata, spec={} if gpu else {"containers": [{"name": "main"}]})


@virtually
async def test_a_gpu_pod_in_a_protected_namespace_is_known_before_the_node_would_be_cordoned() -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.add(PODS, pod("kube-system", "profiler", gpu=True))
        stage.apply(SLICED)
        transition = await stage.reason("gpu-1", "ProtectedNamespace")
        assert (transition["phase"], transition["culprit"]) == ("Blocked", "kube-system/profiler")
        assert "operator.protectedNamespaces" in transition["blockers"][0]
        assert not stage.cordoned("gpu-1")
        assert stage.node_writes()["gpu-1"] == 0
        stage.e.cluster.delete(PODS, "profiler", "kube-system")
        await stage.ready()
        assert stage.evicted() == []


@pytest.mark.parametrize(
    ("namespace", "name", "reason"),
    [
        ("kube-system", "dns", "ProtectedNamespace"),
        ("gpusharing", "gpusharing-operator-1", "OwnPod"),
    ],
)
@virtually
async def test_before_a_reboot_a_pod_that_must_stay_keeps_the_node_from_being_cordoned(
    namespace: str, name: str, reason: str
) -> None:
    async with scene(*nodes(1), cluster_policy=REBOOTING, pod_name="gpusharing-operator-1") as stage:
        stage.e.cluster.add(PODS, pod(namespace, name, gpu=False))
        stage.apply(MIXED)
        transition = await stage.reason("gpu-1", reason)
        assert (transition["phase"], transition["culprit"]) == ("Blocked", f"{namespace}/{name}")
        assert not stage.cordoned("gpu-1")
        assert stage.fence("gpu-1") is None
        stage.e.cluster.delete(PODS, name, namespace)
        await stage.ready(seconds=3600)
        assert stage.evicted() == []


@virtually
async def test_a_change_that_needs_no_reboot_does_not_mind_the_operators_own_pod() -> None:
    async with scene(*nodes(1), pod_name="gpusharing-operator-1") as stage:
        stage.e.cluster.add(PODS, pod("gpusharing", "gpusharing-operator-1", gpu=False))
        stage.e.cluster.add(PODS, pod("kube-system", "dns", gpu=False))
        stage.apply(MIXED)
        await stage.ready()
        assert stage.evicted() == []


@virtually
async def test_nothing_is_repartitioned_under_an_unsafe_driver_and_what_is_not_mig_goes_on() -> None:
    old = SimulatedGPUs("gpu-1", (H100, H100), driver_version="580.95.05")
    async with scene(*nodes(1), hardware={"gpu-1": old}) as stage:
        stage.apply(SLICED)
        await stage.ready()
        since = stage.mark()
        stage.apply(MIXED)
        transition = await stage.reason("gpu-1", "UnsafeDriver")
        assert transition["phase"] == "Blocked"
        assert "580.159.03" in transition["message"]
        assert not stage.cordoned("gpu-1")
        assert stage.node_writes(since)["gpu-1"] == 0
