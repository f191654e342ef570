"""A gang is one thing: its strictest member decides for all, and people are told which gang it is and where."""

import asyncio
from typing import Any

import pytest
from tests.embedded.scene import FULL, MIXED, SLICED, Scene, at_once, gpu_pod, node, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import JSON, NAMESPACES, PODS

LABEL = "jobset.sigs.k8s.io/jobset-name"
JOB = {"apiVersion": "batch/v1", "kind": "Job", "name": "train-0", "uid": "job", "controller": True}
STRANDED_OK: JSON = {"strandedPods": "Allow"}


def rank(number: int, node_name: str, *, managed: bool = True, **more: Any) -> JSON:
    owners = [JOB] if managed else []
    metadata = {"labels": {LABEL: "train"}, "ownerReferences": owners}
    return gpu_pod(f"rank-{number}", node_name, metadata=metadata, **more)


def plain(name: str, node_name: str, **metadata: Any) -> JSON:
    spec = {"nodeName": node_name, "containers": [{"name": "main"}]}
    return gpu_pod(name, node_name, metadata=metadata, spec=spec)


def shared(scene: Scene, *pods: JSON) -> None:
    for pod in pods:
        scene.e.cluster.add(PODS, pod)


@virtually
async def test_a_gang_starts_once_the_member_that_had_to_stay_is_gone() -> None:
    async with open_scene(*nodes(2), serving=FULL) as scene:
        shared(scene, rank(0, "gpu-1"), rank(1, "gpu-2", managed=False))
        since = scene.mark()
        blocked = await scene.reach(SLICED, drain=STRANDED_OK, rollout=at_once(2), reason="Unmanaged")
        await scene.reason("gpu-2", "Unmanaged")
        assert blocked["culprit"] == "default/rank-1"
        assert "Gang: JobSet default/train, 2 pods (1 on gpu-1, 1 on gpu-2)." in blocked["blockers"][0]
        assert not scene.node_writes(since), "neither node is cordoned"
        assert scene.evicted() == []
        scene.e.cluster.delete(PODS, "rank-1", "default")
        await scene.ready()
        assert scene.evicted() == ["rank-0"]


@virtually
async def test_nodes_of_one_gang_change_as_one_wave_and_come_back_together() -> None:
    async with open_scene(*nodes(3), serving=FULL) as scene:
        shared(scene, rank(0, "gpu-1"), rank(1, "gpu-3"))
        since = scene.mark()
        await scene.serve(MIXED, drain=STRANDED_OK, rollout=at_once(2))
        found = waves(scene, since)
        assert found["gpu-1"] == found["gpu-3"] != ""
        assert found["gpu-2"] == ""
        assert sorted(scene.evicted()) == ["rank-0", "rank-1"]
        order = [name for name, fence in scene.fences(since) if fence is None]
        assert abs(order.index("gpu-1") - order.index("gpu-3")) == 1, "nobody came back in between"


BESIDE: dict[str, tuple[JSON, ...]] = {
    "nothing else": (),
    "a pod without a GPU that comes first": (plain("api", "gpu-1"),),
    "a rank without a GPU": (plain("rank-9", "gpu-1", labels={LABEL: "train"}, ownerReferences=[JOB]),),
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE.keys())
@virtually
async def test_a_rule_for_another_namespace_keeps_no_gang_whatever_runs_beside_it(beside: tuple[JSON, ...]) -> None:
    async with open_scene(*nodes(2)) as scene:
        scene.e.cluster.add(NAMESPACES, {"metadata": {"name": "default", "labels": {"team": "a"}}})
        await scene.serve(FULL)
        shared(scene, *beside, rank(0, "gpu-1"), rank(1, "gpu-2"))
        since = scene.mark()
        rule = {"behavior": "Block", "namespaceSelector": {"matchLabels": {"team": "b"}}}
        await scene.serve(SLICED, drain={**STRANDED_OK, "rules": [rule]}, rollout=at_once(2))
        first, second = waves(scene, since).values()
        assert first == second != ""
        assert sorted(scene.evicted()) == ["rank-0", "rank-1"]
        assert not scene.events()["PodEvictionBlocked"]


@virtually
async def test_a_gang_over_two_policies_makes_no_wave_and_its_strictest_member_decides_for_both() -> None:
    """docs/adr/0039-a-wave-stays-within-its-policy.md"""
    async with open_scene(node("gpu-1"), node("gpu-2", pool="c")) as scene:
        for name, pool in (("pool-b", "b"), ("pool-c", "c")):
            scene.apply(FULL, name, pool)
        await scene.ready("pool-b", "pool-c")
        shared(scene, rank(0, "gpu-1"), rank(1, "gpu-2"), rank(2, "gpu-2", managed=False))
        since = scene.mark()
        for name, pool in (("pool-b", "b"), ("pool-c", "c")):
            scene.apply(SLICED, name, pool, drain=STRANDED_OK)
        for name in ("gpu-1", "gpu-2"):
            assert (await scene.reason(name, "Unmanaged"))["culprit"] == "default/rank-2"
        assert not scene.node_writes(since)
        scene.e.cluster.delete(PODS, "rank-2", "default")
        await scene.ready("pool-b", "pool-c")
        assert waves(scene, since) == {"gpu-1": "", "gpu-2": ""}
        assert sorted(scene.evicted()) == ["rank-0", "rank-1"]


@virtually
async def test_the_workers_of_a_gang_stay_while_its_leader_on_another_node_may_end_by_itself() -> None:
    async with open_scene(*nodes(2), serving=FULL) as scene:
        leader = rank(0, "gpu-1")
        leader["metadata"]["labels"]["role"] = "lead"
        shared(scene, leader, rank(1, "gpu-2"))
        waits = {"behavior": "WaitCompleted", "timeout": "8h", "podSelector": {"matchLabels": {"role": "lead"}}}
        rules = [waits, {"behavior": "Evict"}]
        scene.apply(SLICED, drain={**STRANDED_OK, "rules": rules, "timeout": "10m"}, rollout=at_once(2))
        for name in ("gpu-1", "gpu-2"):
            await scene.reason(name, "JobsRunning")
        said = scene.transition("gpu-2")["blockers"][0]
        assert (
            "evicting the pod would end JobSet default/train, whose member default/rank-0 on gpu-1 may still complete"
            in said
        )
        await asyncio.sleep(1200)
        assert scene.evicted() == [], "drain.timeout is long over, and the leader still works"
        ended = {"status": {"phase": "Succeeded"}}
        scene.e.cluster.patch(PODS, "rank-0", ended, "default", subresource="status")
        await scene.ready()
        assert scene.evicted() == ["rank-1"]


@virtually
async def test_a_member_that_its_owner_protects_while_jobs_have_their_time_keeps_all_of_its_gang() -> None:
    async with open_scene(*nodes(2), serving=FULL) as scene:
        ends: dict[str, Any] = {"spec": {"restartPolicy": "Never"}}
        shared(scene, rank(0, "gpu-1", **ends), rank(1, "gpu-2", **ends))
        jobs = {"timeout": "10m", "onTimeout": "Evict"}
        scene.apply(SLICED, drain={**STRANDED_OK, "jobs": jobs}, rollout=at_once(2))
        for name in ("gpu-1", "gpu-2"):
            await scene.reason(name, "JobsRunning")
        marked = {"metadata": {"annotations": {names.ANNOTATION_DO_NOT_DISRUPT: "true"}}}
        scene.e.cluster.patch(PODS, "rank-0", marked, "default")
        await asyncio.sleep(12 * 60)
        for name in ("gpu-1", "gpu-2"):
            assert (await scene.reason(name, "DoNotDisrupt"))["culprit"] == "default/rank-0"
        said = scene.transition("gpu-2")["blockers"][0]
        assert "Gang: JobSet default/train, 2 pods (1 on gpu-1, 1 on gpu-2). Runs on gpu-1. Annotation" in said
        assert scene.evicted() == [], "the time of the jobs is over, and the mark keeps both"
        free = {"metadata": {"annotations": {names.ANNOTATION_DO_NOT_DISRUPT: None}}}
        scene.e.cluster.patch(PODS, "rank-0", free, "default")
        await scene.ready()
        assert sorted(scene.evicted()) == ["rank-0", "rank-1"]


def waves(scene: Scene, since: int) -> dict[str, str]:
    """The wave with which each node was fenced first."""
    fences = [(name, fence) for name, fence in scene.fences(since) if fence is not None and fence.stage == "fenced"]
    return {name: fence.wave for name, fence in reversed(fences)}
