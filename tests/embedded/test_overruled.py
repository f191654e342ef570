"""A plan that a newer one has overruled, or that has grown old, sends no further call, however slow the server is."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hack.sim.fakefaults import EVER, SILENCE
from tests.embedded.scene import FULL, SLICED, Scene, at_once, gpu_pod, nodes, open_scene, pdb
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.controller.execute import PLAN_VALID
from gpusharing.kube.client import JSON, PDBS, PODS, POLICIES
from gpusharing.kube.http import Limits
from gpusharing.kube.lease import Timing

OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "w", "uid": "w", "controller": True}


def add_pods(scene: Scene) -> None:
    for number in range(8):
        about = {"labels": {"app": "w"}, "ownerReferences": [OWNER]}
        scene.e.cluster.add(PODS, gpu_pod(f"w{number}", "gpu-1", metadata=about))


async def first_of(pods: Callable[[], list[str]], scene: Scene) -> None:
    await scene.e.until(lambda: len(pods()) == 1, "the first pod leaves", 600)


def change(scene: Scene, drain: JSON, **rollout: Any) -> None:
    spec = scene.e.policy("pool-b")["spec"]
    rollout = {**spec.get("rollout", {}), **rollout}
    scene.apply(SLICED, drain={**spec["drain"], **drain}, rollout=rollout)


def block(scene: Scene) -> None:
    change(scene, {"rules": [{"behavior": "Block", "podSelector": {"matchLabels": {"app": "w"}}}]})


def hold(scene: Scene) -> None:
    change(scene, {}, paused=True, whenPaused="Hold")


def protect(scene: Scene) -> None:
    marked = {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}}
    for pod in scene.pods("w"):
        if pod["metadata"]["name"] not in scene.evicted():
            scene.e.cluster.patch(PODS, pod["metadata"]["name"], marked, namespace="default")


def delete(scene: Scene) -> None:
    scene.e.cluster.delete(POLICIES, "pool-b")


@pytest.mark.parametrize("overrule", [block, hold, protect, delete], ids=lambda change: change.__name__)
@virtually
async def test_no_pod_is_evicted_that_the_newest_plan_keeps_where_each_eviction_takes_ten_seconds(
    overrule: Callable[[Scene], None],
) -> None:
    async with open_scene(*nodes(1, gpus=8), lease=Timing()) as scene:
        add_pods(scene)
        scene.e.cluster.faults.fail("evict", PODS, SILENCE, times=EVER, after=True)
        scene.apply(SLICED, drain={"timeout": "30m"})
        await first_of(scene.evicted, scene)
        overrule(scene)
        await asyncio.sleep(90)
        assert scene.evicted() == ["w0"]


@pytest.mark.parametrize("overrule", [block, hold, protect, delete], ids=lambda change: change.__name__)
@virtually
async def test_an_eviction_that_waits_behind_eight_slow_ones_is_not_sent_once_the_newest_plan_keeps_its_pod(
    overrule: Callable[[Scene], None],
) -> None:
    async with open_scene(*nodes(16), lease=Timing()) as scene:
        for number in range(16):
            about = {"labels": {"app": "w"}, "ownerReferences": [OWNER]}
            scene.e.cluster.add(PODS, gpu_pod(f"w{number}", f"gpu-{number + 1}", metadata=about))
        scene.e.cluster.faults.fail("evict", PODS, SILENCE, times=EVER, after=True)
        scene.apply(SLICED, rollout=at_once(16), drain={"timeout": "30m", "strandedPods": "Allow"})
        await scene.e.until(lambda: len(scene.evicted()) == Limits().parallel, "all slots are in use", 600)
        first = scene.evicted()
        await asyncio.sleep(1)
        overrule(scene)
        await asyncio.sleep(90)
        assert scene.evicted() == first


@virtually
async def test_a_drain_goes_on_as_fast_as_a_server_that_takes_ten_seconds_for_each_eviction() -> None:
    async with open_scene(*nodes(1, gpus=8), lease=Timing()) as scene:
        add_pods(scene)
        scene.e.cluster.faults.fail("evict", PODS, SILENCE, times=EVER, after=True)
        scene.apply(SLICED, drain={"timeout": "30m"})
        await first_of(scene.evicted, scene)
        begun = virtual_now()
        await scene.e.until(lambda: len(scene.evicted()) == 8, "all pods leave", 600)
        assert (virtual_now() - begun).total_seconds() < 80
        await scene.ready()


@virtually
async def test_no_pod_is_evicted_after_the_deadline_of_its_drain_where_each_eviction_takes_ten_seconds() -> None:
    async with open_scene(*nodes(1, gpus=8), lease=Timing()) as scene:
        add_pods(scene)
        scene.e.cluster.faults.fail("evict", PODS, SILENCE, times=EVER, after=True)
        deadline = (await scene.begin(SLICED, drain={"timeout": "1m"})).deadline
        await scene.e.until(lambda: virtual_now() >= deadline, "the deadline", 600)
        left = scene.evicted()
        assert 0 < len(left) < 8
        await asyncio.sleep(90)
        assert scene.evicted() == left


@virtually
async def test_no_further_pod_is_deleted_by_force_once_the_policy_gives_up_instead() -> None:
    async with open_scene(*nodes(1, gpus=8), lease=Timing(), force_delete=True) as scene:
        add_pods(scene)
        scene.e.cluster.add(PDBS, pdb("w", "w", maxUnavailable=0))
        scene.e.cluster.faults.fail("delete", PODS, SILENCE, times=EVER, after=True)
        scene.apply(SLICED, drain={"timeout": "5m", "onTimeout": "ForceDelete"})
        await first_of(scene.deleted, scene)
        scene.apply(SLICED, drain={"timeout": "5m", "onTimeout": "Abort"})
        await asyncio.sleep(120)
        assert scene.deleted() == ["w0"]


@virtually
async def test_a_proof_that_a_node_is_idle_does_not_grow_old_behind_writes_of_policies_that_hang() -> None:
    async with open_scene(*nodes(1), lease=Timing()) as scene:
        await scene.begin(SLICED)
        scene.e.cluster.faults.fail("patch", POLICIES, SILENCE, times=EVER, subresource="")
        await asyncio.sleep(11.5)
        for number in range(10):
            scene.apply(FULL, f"pool-{number}", f"x{number}", deletionPolicy="Reset")
        await asyncio.sleep(5)
        assert (await scene.fenced("gpu-1")).stage == "fenced", "the pass waits for the finalizers"
        await asyncio.sleep(PLAN_VALID - 5)
        await scene.fenced("gpu-1", "actuating", seconds=1)
