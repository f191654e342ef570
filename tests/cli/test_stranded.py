"""Pods that could not run after a change: `plan` tells of them, and the operator leaves their nodes alone."""

from pathlib import Path
from typing import Any

import pytest
from hack.sim.workloads import SimWorkload
from tests.cli.asking import Answered, ask, install, operated, written
from tests.embedded.scene import FULL, L40S, MIXED, SLICED, Scene, gpu_pod, node, nodes, open_scene, policy
from tests.fakes.virtualtime import virtually

from gpusharing.api.names import LABEL_GPU_PRODUCT
from gpusharing.kube.client import PODS

MPS: dict[str, Any] = {"mode": "MPS", "mps": {"replicas": 4}}
STRICT: dict[str, Any] = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4, "failRequestsGreaterThanOne": True}}
REPLICA_SET = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "vision", "uid": "rs-vision", "controller": True}


async def planned(scene: Scene, tmp_path: Path, spec: dict[str, Any]) -> Answered:
    """What `plan` says of an edit of pool-b, on one line."""
    told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(spec)))
    return Answered(told.status, " ".join(told.out.split()))


@virtually
async def test_a_pod_that_selects_its_node_by_product_keeps_the_node_whole_and_plan_says_why(tmp_path: Path) -> None:
    async with open_scene(*nodes(1, L40S)) as scene:
        install(scene.e.cluster)
        await scene.serve(FULL)
        product = scene.labels("gpu-1")[LABEL_GPU_PRODUCT]
        pod = gpu_pod("vision-1", "gpu-1", metadata={"ownerReferences": [REPLICA_SET]})
        pod["spec"]["nodeSelector"] = {LABEL_GPU_PRODUCT: product}
        scene.e.cluster.add(PODS, pod)
        told = await planned(scene, tmp_path, SLICED)
        scene.apply(SLICED)
        transition = await scene.reason("gpu-1", "StrandedPods")
        assert not scene.cordoned("gpu-1")
        assert scene.evicted() == []
    why = f"The pod requires {LABEL_GPU_PRODUCT}={product}, but this label will be {product}-SHARED."
    assert f"! StrandedPods: Pod default/vision-1. {why}" in told.out
    assert "operator In" in told.out, "the remedy"
    assert why in transition["message"]


@virtually
async def test_plan_and_status_say_how_many_pods_will_wait_and_nobody_is_evicted_for_that(tmp_path: Path) -> None:
    async with open_scene(*nodes(2), node("gpu-9", pool="c"), workloads=[SimWorkload("llm", 7)]) as scene:
        install(scene.e.cluster)
        await scene.serve(FULL)
        await scene.running("llm", 6)
        await scene.e.until(
            lambda: scene.e.policy("pool-b")["status"]["summary"].get("pendingPods") == 1, "a pod waits", 200
        )
        told = await planned(scene, tmp_path, MIXED)
        scene.apply(MIXED)
        await scene.reason("gpu-1", "StrandedPods")
        plan = scene.e.policy("pool-b")["status"]["plan"]
        assert scene.evicted() == []
    said = "pods request 7, but only 2 will remain"
    assert f"1 pod is waiting for it; {said}" in told.out
    assert plan["shortages"] == [f"nvidia.com/gpu: {said}"]
    assert any(said in line for line in plan["blockers"])


@pytest.mark.parametrize(
    ("spec", "how"),
    [
        (MPS, "policy pool-b has mode MPS, which implies failRequestsGreaterThanOne"),
        (STRICT, "policy pool-b sets failRequestsGreaterThanOne"),
    ],
    ids=["MPS", "time-slicing"],
)
@virtually
async def test_a_pod_with_two_gpus_in_one_container_is_held_where_one_share_is_the_most(
    spec: dict[str, Any], how: str, tmp_path: Path
) -> None:
    """NVIDIA/k8s-device-plugin#1695, #1762, #929, #1208: the kubelet ends each successor, without end."""
    async with operated(2, workloads=[SimWorkload("train", 1, count=2)], serving=FULL) as scene:
        await scene.running("train", 1)
        told = await planned(scene, tmp_path, spec)
        scene.apply(spec)
        await scene.reason("gpu-1", "StrandedPods")
        why = await ask(scene.e.cluster, "why", f"default/{scene.pods('train')[0]['metadata']['name']}")
        assert scene.evicted() == []
    said = f"ontainer requests 2 nvidia.com/gpu, but {how}; request 1 in each container"
    assert "StrandedPods: Pod default/train-" in told.out
    assert f"A c{said}" in told.out
    assert said in " ".join(why.out.split())


@virtually
async def test_a_pod_that_is_evicted_nonetheless_is_refused_by_the_simulated_kubelet_again_and_again() -> None:
    async with open_scene(*nodes(1), workloads=[SimWorkload("train", 1, count=2)], serving=FULL) as scene:
        await scene.running("train", 1)
        scene.apply({**STRICT, "drain": {"strandedPods": "Allow"}})
        await scene.ready()
        await scene.e.until(
            lambda: sum(pod["status"].get("reason") == "UnexpectedAdmissionError" for pod in scene.pods("train")) > 1,
            "two refused pods",
            60,
        )
        refused = next(pod for pod in scene.pods("train") if pod["status"]["phase"] == "Failed")
    assert "maximum request size for shared resources is 1; found 2" in refused["status"]["message"]


@virtually
async def test_plan_says_that_other_nodes_have_a_resource_only_if_a_node_outside_the_pool_does(tmp_path: Path) -> None:
    half = {
        "mode": "MIG",
        "mig": {"layouts": [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}]},
    }
    for more, said in (([], "1 will remain"), ([node("gpu-9", pool="c")], "other nodes still advertise it")):
        async with open_scene(*nodes(1), *more, workloads=[SimWorkload("llm", 1)]) as scene:
            install(scene.e.cluster)
            await scene.serve(FULL)
            await scene.running("llm", 1)
            told = await planned(scene, tmp_path, half)
        assert f"1 pod here requests it ({scene.pods('llm')[0]['metadata']['namespace']}/" in told.out
        assert f"); {said} +" in told.out
