"""Pods that could not run after a change: `plan` tells of them, and the operator leaves their nodes alone."""

from pathlib import Path
from typing import Any

from hack.sim.workloads import SimWorkload
from tests.cli.asking import Answered, ask, install, written
from tests.embedded.scene import FULL, L40S, MIXED, SLICED, Scene, gpu_pod, node, nodes, open_scene, policy
from tests.fakes.virtualtime import virtually

from gpusharing.api.names import LABEL_GPU_PRODUCT
from gpusharing.kube.client import PODS

REPLICA_SET = {
    "apiVersion": "apps/v1",
    "kind": "ReplicaSet",
    "name": "vision",
    "uid": "rs-vision",
    "controller": True,
}


async def planned(scene: Scene, tmp_path: Path, spec: dict[str, Any]) -> Answered:
    """What `plan` says of an edit of pool-b, on one line."""
    told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(spec)))
    return Answered(told.status, " ".join(told.out.split()))


@virtually
async def test_a_pod_that_selects_its_node_by_product_keeps_the_node_whole_and_plan_says_why(
    tmp_path: Path,
) -> None:
    async with open_scene(*nodes(1, L40S)) as scene:
        install(scene.e.cluster)
        scene.apply(FULL)
        await scene.ready()
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
async def test_plan_and_status_say_how_many_pods_will_wait_and_nobody_is_evicted_for_that(
    tmp_path: Path,
) -> None:
    async with open_scene(*nodes(2), node("gpu-9", pool="c"), workloads=[SimWorkload("llm", 7)]) as scene:
        install(scene.e.cluster)
        scene.apply(FULL)
        await scene.ready()
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
