"""Pods that share GPUs through KAI-Scheduler are drained like others, and KAI's reservation pods go by themselves; `why` reads the fraction (kubectl_gpusharing/diagnosis/pod.py).
Reports: NVIDIA/KAI-Scheduler#848, #464, #65."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hack.sim.fakecluster import FakeClient, FakeCluster
from hack.sim.kai import FRACTION, GROUP, NAMESPACE, SCHEDULER, Kai
from hack.sim.settings import SimSettings
from hack.sim.workloads import SimWorkload
from tests.cli.asking import ask, install, written
from tests.embedded.scene import FULL, MIXED, SINGLE, SLICED, Scene, gpu_pod, nodes, open_scene, policy
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import JSON, NODES, PODS, ApiRequest

HALVES = SimWorkload("llm", 2, resource="", annotations={FRACTION: "0.5"}, scheduler=SCHEDULER)
STRANDED_OK: JSON = {"strandedPods": "Allow"}


@asynccontextmanager
async def shared(count: int, **more: Any) -> AsyncIterator[Scene]:
    """A pool of whole GPUs with KAI, on which the pods of HALVES share one GPU of gpu-1."""
    async with open_scene(*nodes(count), workloads=[HALVES], **more) as scene:
        install(scene.e.cluster)
        kai = asyncio.create_task(Kai(scene.e.cluster.client("kai"), SimSettings()).run())
        await scene.serve(FULL)
        await scene.running("llm", 2)
        try:
            yield scene
        finally:
            kai.cancel()
            with suppress(asyncio.CancelledError):
                await kai


def reservations(scene: Scene) -> list[str]:
    return [pod["spec"]["nodeName"] for pod in scene.pods(NAMESPACE)]


@virtually
async def test_pods_that_share_a_gpu_leave_before_the_change_and_share_one_of_another_node() -> None:
    async with shared(2) as scene:
        assert reservations(scene) == ["gpu-1"]
        first = {pod["metadata"]["name"] for pod in scene.pods("llm")}
        await scene.begin(SLICED, stage="actuating")
        assert set(scene.evicted()) == first
        assert reservations(scene) == ["gpu-2"]
        await scene.ready()
        assert not [name for name in scene.evicted() if name.startswith("gpu-reservation")]


@virtually
async def test_a_reservation_pod_that_kai_has_forgotten_does_not_hold_up_the_drain() -> None:
    """KAI v0.17.0 misses the end of pods with fractions of several GPUs, and keeps the reservation pods."""
    async with open_scene(*nodes(1), serving=FULL) as scene:
        for raw in (kept("group-1"), kept("group-2"), sharing("group-1", "group-2")):
            scene.e.cluster.add(PODS, raw)
        await scene.serve(SLICED)
        assert scene.evicted() == ["llm-1", "gpu-reservation-group-1", "gpu-reservation-group-2"]


@virtually
async def test_plan_and_why_name_the_pods_that_share_a_gpu_and_not_the_one_that_keeps_it(tmp_path: Path) -> None:
    async with shared(1) as scene:
        name = scene.pods("llm")[0]["metadata"]["name"]
        cluster = scene.e.cluster
        plan = await ask(cluster, "plan", "-f", written(tmp_path, policy(MIXED)))
        why = await ask(cluster, "why", f"default/{name}")
        await scene.reach(MIXED, reason="StrandedPods")
        node = await ask(cluster, "why", "gpu-1")
    for told in (plan, node):
        text = " ".join(told.out.split())
        assert f"default/{name}" in text
        assert "gpu-reservation" not in text
        assert "nvidia.com/gpu, a fraction of which KAI-Scheduler assigns to the pod" in text
    assert "requests 0.5 of a GPU from KAI-Scheduler" in why.out
    assert "This pod is on node gpu-1, which the operator is not changing now." in why.out


PARTLY: JSON = {
    "mode": "MIG",
    "mig": {
        "strategy": "mixed",
        "layouts": [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}],
    },
}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (SINGLE, "KAI-Scheduler gives no fractions of the MIG devices of a node with MIG strategy single"),
        (PARTLY, "KAI-Scheduler places only pods that request MIG devices on a node that has some"),
    ],
    ids=["strategy single", "a GPU stays whole"],
)
@virtually
async def test_pods_that_kai_would_not_place_on_mig_are_held_although_the_name_of_their_gpu_stays(
    spec: JSON, said: str, tmp_path: Path
) -> None:
    """kai-scheduler/KAI-Scheduler#506, #1876."""
    async with shared(1) as scene:
        plan = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(spec)))
        transition = await scene.reach(spec, reason="StrandedPods")
        assert scene.evicted() == []
    assert said in " ".join(plan.out.split())
    assert said in transition["message"]
    assert "other nodes still advertise it" not in plan.out


@virtually
async def test_strategy_single_is_no_hint_for_pods_with_a_fraction(tmp_path: Path) -> None:
    async with shared(1) as scene:
        plan = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(MIXED)))
    assert "no node would advertise it any more" in plan.out
    assert "Hint" not in plan.out


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            SINGLE,
            (
                "This pod cannot start: KAI-Scheduler gives no fractions of the MIG devices of a node",
                "node-role.kubernetes.io/mig-enabled=true",
            ),
        ),
        (
            MIXED,
            (
                "No node advertises nvidia.com/gpu, and none will",
                "KAI-Scheduler allocates this fraction from a whole GPU",
            ),
        ),
    ],
    ids=["that KAI gives none on a MIG node", "which whole GPUs there will be"],
)
@virtually
async def test_a_pod_that_waits_for_a_fraction_is_told(spec: JSON, said: tuple[str, str]) -> None:
    async with open_scene(*nodes(1)) as scene:
        install(scene.e.cluster)
        await scene.serve(spec)
        waiting = {**sharing(), "status": {"phase": "Pending"}}
        del waiting["spec"]["nodeName"]
        scene.e.cluster.add(PODS, waiting)
        told = await ask(scene.e.cluster, "why", "default/llm-1")
    assert all(text in " ".join(told.out.split()) for text in said), told.out


class HastyClient(FakeClient):
    """KAI's client, on a cluster in which a pod is gone, and seen to be gone, before the answer to its binding arrives."""

    async def call(self, request: ApiRequest) -> JSON:
        answer = await super().call(request)
        if (request.verb, request.name, request.subresource) == ("patch", "llm", None):
            self.cluster.delete_key(PODS, ("default", "llm"), None, at_once=True)
            await asyncio.sleep(1)
        return answer


@virtually
async def test_the_simulated_kai_keeps_no_gpu_for_a_pod_that_is_gone_before_its_binding_is_answered() -> None:
    cluster = FakeCluster()
    cluster.add(NODES, {"metadata": {"name": "n1"}, "status": {"allocatable": {"nvidia.com/gpu": "1"}}})
    cluster.add(
        PODS,
        {
            "metadata": {"name": "llm", "namespace": "default", "annotations": {FRACTION: "0.5"}},
            "spec": {"schedulerName": SCHEDULER, "containers": []},
        },
    )
    kai = asyncio.create_task(Kai(HastyClient(cluster, "kai"), SimSettings()).run())
    await asyncio.sleep(10)
    assert len([write for write in cluster.writes if write.call.verb == "create"]) == 1, "a GPU was kept"
    assert cluster.objects(PODS) == []
    kai.cancel()
    with suppress(asyncio.CancelledError):
        await kai


def sharing(*groups: str) -> JSON:
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "llm", "uid": "rs", "controller": True}
    metadata = {
        "labels": {f"{GROUP}/{group}": group for group in groups},
        "annotations": {FRACTION: "0.5"},
        "ownerReferences": [owner],
    }
    spec = {"schedulerName": SCHEDULER, "containers": [{"name": "main"}]}
    return gpu_pod("llm-1", "gpu-1", metadata=metadata, spec=spec)


def kept(group: str) -> JSON:
    metadata = {
        "namespace": NAMESPACE,
        "labels": {"app": NAMESPACE, GROUP: group},
        "annotations": {"karpenter.sh/do-not-disrupt": "true"},
    }
    return gpu_pod(f"gpu-reservation-{group}", "gpu-1", metadata=metadata)
