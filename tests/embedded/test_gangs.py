"""A gang is one thing: its strictest member decides for all, and people are told which gang it is and where."""

from typing import Any

from tests.embedded.scene import FULL, MIXED, SLICED, Scene, at_once, gpu_pod, node, nodes, scene
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import JSON, PODS
from gpusharing.kube.fence import parse_fence

LABEL = "jobset.sigs.k8s.io/jobset-name"
JOB = {"apiVersion": "batch/v1", "kind": "Job", "name": "train-0", "uid": "job", "controller": True}
STRANDED_OK: JSON = {"strandedPods": "Allow"}


def rank(number: int, node_name: str, *, managed: bool = True, **more: Any) -> JSON:
    """A pod of the JobSet train."""
    owners = [JOB] if managed else []
    metadata = {"labels": {LABEL: "train"}, "ownerReferences": owners}
    return gpu_pod(f"rank-{number}", node_name, metadata=metadata, **more)


def shared(stage: Scene, *pods: JSON) -> None:
    """These pods run."""
    for pod in pods:
        stage.e.cluster.add(PODS, pod)


@virtually
async def test_a_member_that_must_stay_keeps_every_node_of_its_gang_from_starting() -> None:
    async with scene(*nodes(2)) as stage:
        stage.apply(FULL)
        await stage.ready()
        shared(stage, rank(0, "gpu-1"), rank(1, "gpu-2", managed=False))
        since = stage.mark()
        stage.apply(SLICED, drain=STRANDED_OK, rollout=at_once(2))
        blocked = await stage.reason("gpu-1", "Unmanaged")
        await stage.reason("gpu-2", "Unmanaged")
        assert blocked["culprit"] == "default/rank-1"
        assert "Gang: JobSet default/train, 2 pods (1 on gpu-1, 1 on gpu-2)." in blocked["blockers"][0]
        assert not stage.node_writes(since), "neither node is cordoned"
        assert stage.evicted() == []
        stage.e.cluster.delete(PODS, "rank-1", "default")
        await stage.ready()
        assert stage.evicted() == ["rank-0"]


@virtually
async def test_nodes_of_one_gang_change_as_one_wave_and_come_back_together() -> None:
    async with scene(*nodes(3)) as stage:
        stage.apply(FULL)
        await stage.ready()
        shared(stage, rank(0, "gpu-1"), rank(1, "gpu-3"))
        since = stage.mark()
        stage.apply(MIXED, drain=STRANDED_OK, rollout=at_once(2))
        await stage.ready()
        waves = dict(fenced_in_order(stage, since))
        assert waves["gpu-1"] == waves["gpu-3"] != ""
        assert waves["gpu-2"] == ""
        assert sorted(stage.evicted()) == ["rank-0", "rank-1"]
        order = releases(stage, since)
        assert abs(order.index("gpu-1") - order.index("gpu-3")) == 1, "nobody came back in between"


@virtually
async def test_a_gang_over_two_policies_makes_no_wave_and_its_strictest_member_decides_for_both() -> None:
    """docs/adr/0039-a-wave-stays-within-its-policy.md"""
    async with scene(node("gpu-1"), node("gpu-2", pool="c")) as stage:
        for name, pool in (("pool-b", "b"), ("pool-c", "c")):
            stage.apply(FULL, name, pool)
        await stage.ready("pool-b", "pool-c")
        shared(stage, rank(0, "gpu-1"), rank(1, "gpu-2"), rank(2, "gpu-2", managed=False))
        since = stage.mark()
        for name, pool in (("pool-b", "b"), ("pool-c", "c")):
            stage.apply(SLICED, name, pool, drain=STRANDED_OK)
        for name in ("gpu-1", "gpu-2"):
            assert (await stage.reason(name, "Unmanaged"))["culprit"] == "default/rank-2"
        assert not stage.node_writes(since)
        stage.e.cluster.delete(PODS, "rank-2", "default")
        await stage.ready("pool-b", "pool-c")
        assert dict(fenced_in_order(stage, since)) == {"gpu-1": "", "gpu-2": ""}
        assert sorted(stage.evicted()) == ["rank-0", "rank-1"]


def fenced_in_order(stage: Scene, since: int) -> list[tuple[str, str]]:
    """The nodes that were fenced, and the wave of each."""
    found: dict[str, str] = {}
    for write in stage.writes(since, "nodes"):
        body = write.call.body or {}
        text = (body.get("metadata", {}).get("annotations") or {}).get(names.ANNOTATION_FENCE)
        fence = parse_fence(text)[0] if text else None
        if fence is not None and fence.stage == "fenced" and write.error is None:
            found.setdefault(write.call.name, fence.wave)
    return list(found.items())


def releases(stage: Scene, since: int) -> list[str]:
    """The nodes in the order in which their fence was taken away."""
    found = []
    for write in stage.writes(since, "nodes"):
        annotations = ((write.call.body or {}).get("metadata", {}).get("annotations")) or {}
        if names.ANNOTATION_FENCE in annotations and annotations[names.ANNOTATION_FENCE] is None:
            found.append(write.call.name)
    return found
