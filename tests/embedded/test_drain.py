"""Pods leave before anything changes: budgets, blockers, time-outs, and everything that must not be evicted."""

import asyncio
from datetime import timedelta

import pytest
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, HOUR, MIXED, SLICED, Scene, at_once, gpu_pod, nodes, open_scene, pdb
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api import names
from gpusharing.api.times import to_rfc3339
from gpusharing.kube.client import DAEMON_SETS, JSON, PDBS, PODS, POLICIES, RESOURCE_CLAIMS
from gpusharing.kube.errors import Conflict
from gpusharing.planning.snapshot.records import Fence

LLM = SimWorkload("llm", 2)
"""Two pods of one GPU each; both fit on one node."""
OWNER = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "monitor", "uid": "ds", "controller": True}
STRANDED_OK: JSON = {"strandedPods": "Allow"}
GUARDED = SimWorkload("llm", 2, labels={"guard": "yes"})
FULL_UP = {**pdb("keep", ""), "spec": {"selector": {"matchLabels": {"guard": "yes"}}, "minAvailable": 2}}
"""It allows nothing while the two pods run."""


async def busy(scene: Scene, replicas: int = 2) -> str:
    """Adopt the pool as Full with a running workload; returns the node that the workload is on."""
    await scene.running("llm", replicas)
    await scene.serve(FULL)
    return str(scene.pods("llm")[0]["spec"]["nodeName"])


@virtually
async def test_evictable_pods_leave_before_the_change_and_run_again_on_the_other_node() -> None:
    async with open_scene(*nodes(2), workloads=[LLM]) as scene:
        await busy(scene)
        first = {pod["metadata"]["name"] for pod in scene.pods("llm")}
        await scene.serve(SLICED)
        await scene.running("llm", 2)
        assert first <= set(scene.evicted())
        assert not first & {pod["metadata"]["name"] for pod in scene.pods("llm")}


@virtually
async def test_evictions_that_lost_the_race_over_their_budget_are_made_at_the_next_look() -> None:
    async with open_scene(*nodes(2), workloads=[LLM]) as scene:
        await busy(scene)
        lost = Conflict("the object has been modified; please apply your changes to the latest version")
        scene.e.cluster.faults.fail("evict", PODS, lost, times=3, identity="operator")
        await scene.serve(SLICED)
        assert scene.e.cluster.calls["operator", "evict", "pods"] == len(scene.evicted()) + 3
        assert len(set(scene.evicted())) == len(scene.evicted()) >= 2


@virtually
async def test_a_pod_keeps_its_own_grace_period_and_the_node_waits_for_it() -> None:
    async with open_scene(*nodes(2), workloads=[LLM]) as scene:
        name = await busy(scene)
        scene.apply(SLICED)
        await scene.e.until(lambda: len(scene.evicted()) == 2, "evictions", 1000)
        begun = virtual_now()
        await scene.fenced(name, "actuating")
        assert virtual_now() - begun >= timedelta(seconds=30)


@virtually
async def test_a_budget_whose_evicted_pod_is_not_replaced_is_named_with_its_pods_and_the_drain_goes_on_when_it_allows() -> (
    None
):
    budget = pdb("keep", "llm", minAvailable=2)
    async with open_scene(*nodes(1), workloads=[SimWorkload("llm", 2)]) as scene:
        name = await busy(scene)
        scene.apply(SLICED, drain=STRANDED_OK)
        await scene.fenced(name)
        scene.e.cluster.add(PDBS, budget | {"spec": {**budget["spec"], "minAvailable": 1}})
        waits = await scene.reason(name, "PDBInUse")
        assert "the operator evicted from " + name in waits["message"]
        assert not scene.events()["PodEvictionBlocked"]
        transition = await scene.reason(name, "PDB", seconds=700)
        assert scene.events()["PodEvictionBlocked"] == 1
        assert "default/keep" in transition["blockers"][0]
        assert "default/llm-" in transition["blockers"][0]
        assert transition["culprit"].startswith("default/llm-")
        assert "disruption budget" in transition["blockers"][0]
        assert transition["phase"] == "Draining"
        scene.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 0}}, "default")
        await scene.ready()


@virtually
async def test_a_budget_that_can_never_allow_is_named_and_the_node_is_not_even_cordoned() -> None:
    async with open_scene(*nodes(1), workloads=[LLM], budgets=[pdb("keep", "llm", minAvailable=2)]) as scene:
        name = await busy(scene)
        scene.apply(SLICED)
        transition = await scene.reason(name, "PDBNeverAllows")
        assert transition["phase"] == "Blocked"
        assert not scene.cordoned(name)
        assert scene.fence(name) is None
        row = await scene.until_condition("Stalled", "True", "Blocked")
        assert "default/keep" in row["message"]
        scene.e.cluster.delete(PDBS, "keep", "default")
        await scene.ready()


@virtually
async def test_a_budget_of_one_lets_the_pods_go_one_after_the_other() -> None:
    async with open_scene(*nodes(2), workloads=[LLM], budgets=[pdb("slow", "llm", maxUnavailable=1)]) as scene:
        await busy(scene)
        await scene.serve(SLICED)
        assert len(set(scene.evicted())) == len(scene.evicted()) >= 2


async def fail_to_drain(scene: Scene, name: str) -> Fence:
    """A budget begins to block when the drain has begun and goes after the abort; returns the fence of that try."""
    fence = await scene.fenced(name, seconds=2 * HOUR)
    scene.e.cluster.add(PDBS, FULL_UP)
    await scene.released(name)
    scene.e.cluster.delete(PDBS, "keep", "default")
    return fence


@virtually
async def test_a_drain_that_runs_out_of_time_restores_the_node_and_waits_twice_as_long_each_time() -> None:
    async with open_scene(*nodes(1), workloads=[GUARDED]) as scene:
        name = await busy(scene)
        scene.apply(SLICED, drain={"timeout": "5m", **STRANDED_OK})
        fence = await scene.fenced(name)
        assert names.LABEL_MODE not in scene.labels(name)
        whole = timedelta(minutes=5, seconds=5)  # pods that were being bound get five seconds to appear first
        assert fence.deadline - fence.since == whole
        await fail_to_drain(scene, name)
        first = virtual_now()
        assert first - fence.since == pytest.approx(whole, abs=timedelta(seconds=2))
        assert not scene.cordoned(name)
        assert scene.labels(name)[names.LABEL_MODE] == "full"
        assert names.LABEL_UPGRADE_SKIP not in scene.labels(name)
        transition = await scene.reason(name, "Deferred")
        assert "DrainTimeout" in transition["message"]
        fence = await fail_to_drain(scene, name)
        assert fence.since - first == pytest.approx(timedelta(minutes=5), abs=timedelta(seconds=10))
        second = virtual_now()
        fence = await fail_to_drain(scene, name)
        assert fence.since - second == pytest.approx(timedelta(minutes=10), abs=timedelta(seconds=10))
        await scene.e.until(lambda: scene.events()["ChangeGivenUp"] == 3, "three events", 10)
        assert scene.evicted() == []


@virtually
async def test_the_retry_annotation_ends_the_wait_after_an_abort() -> None:
    async with open_scene(*nodes(1), workloads=[GUARDED]) as scene:
        name = await busy(scene)
        scene.apply(SLICED, drain={"timeout": "1m"})
        await fail_to_drain(scene, name)
        await scene.reason(name, "Deferred")
        begun = virtual_now()
        scene.annotate(name, retry="now")
        fence = await scene.fenced(name)
        assert fence.since - begun < timedelta(seconds=2)
        await scene.ready()


UNEVICTABLE: dict[str, tuple[JSON, JSON, str]] = {
    "an unmanaged pod": ({}, {}, "Unmanaged"),
    "a pod of somebody's DaemonSet": ({"ownerReferences": [OWNER]}, {}, "GPUDaemonSet"),
    "a pod with a DRA claim": ({}, {"resourceClaims": [{"name": "g", "resourceClaimName": "c"}]}, "DRAClaim"),
}
CLAIM: JSON = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "ResourceClaim",
    "metadata": {"name": "c", "namespace": "default"},
    "status": {"allocation": {"devices": {"results": [{"driver": "gpu.nvidia.com", "device": "gpu-0"}]}}},
}


@pytest.mark.parametrize(("metadata", "spec", "reason"), UNEVICTABLE.values(), ids=UNEVICTABLE.keys())
@virtually
async def test_what_may_not_be_evicted_blocks_before_the_cordon_and_is_named(
    metadata: JSON, spec: JSON, reason: str
) -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(RESOURCE_CLAIMS, CLAIM)
        daemon_set = {"metadata": {"name": "monitor", "namespace": "default"}}
        uid = scene.e.cluster.add(DAEMON_SETS, daemon_set)["metadata"]["uid"]
        if metadata == {"ownerReferences": [OWNER]}:
            metadata = {"ownerReferences": [OWNER | {"uid": uid}]}
        scene.e.cluster.add(PODS, gpu_pod("odd", "gpu-1", metadata=metadata, spec=spec))
        transition = await scene.reach(SLICED, reason=reason)
        assert transition["culprit"] == "default/odd"
        assert "Remedy" in transition["blockers"][0]
        assert not scene.cordoned("gpu-1")
        scene.e.cluster.delete(PODS, "odd", "default")
        await scene.ready()
        assert scene.evicted() == []


@virtually
async def test_a_mark_with_a_duration_is_waited_for_without_a_cordon_and_names_its_end() -> None:
    async with open_scene(*nodes(1)) as scene:
        begun = virtual_now()
        marked = gpu_pod("marked", "gpu-1", metadata={"annotations": {"karpenter.sh/do-not-disrupt": "20m"}})
        marked["status"]["startTime"] = to_rfc3339(begun)
        scene.e.cluster.add(PODS, marked)
        transition = await scene.reach(SLICED, drain={"unmanagedPods": "Evict"}, reason="DoNotDisrupt")
        end = begun + timedelta(minutes=20)
        assert transition["culprit"] == "default/marked"
        assert (transition["waitingFor"], transition["deadline"]) == ("Clock", to_rfc3339(end))
        assert to_rfc3339(end) in transition["blockers"][0]
        assert scene.fence("gpu-1") is None
        fence = await scene.fenced("gpu-1", seconds=HOUR)
        assert timedelta(minutes=20) <= fence.since - begun < timedelta(minutes=20, seconds=15)
        await scene.ready()
        assert scene.evicted() == ["marked"]


@virtually
async def test_a_node_is_not_cordoned_for_stranded_pods_before_they_are_allowed() -> None:
    async with open_scene(*nodes(2), workloads=[LLM]) as scene:
        name = await busy(scene)
        scene.apply(MIXED)
        transition = await scene.reason(name, "StrandedPods")
        assert "nvidia.com/gpu" in transition["blockers"][0]
        assert not scene.cordoned(name)
        await scene.serve(MIXED, drain=STRANDED_OK)


@virtually
async def test_pods_that_were_let_go_though_no_node_can_run_them_are_counted_as_pending() -> None:
    async with open_scene(*nodes(2), workloads=[LLM]) as scene:
        await busy(scene)
        await scene.serve(MIXED, drain=STRANDED_OK, rollout=at_once(2))
        await scene.e.until(lambda: summary(scene)["pendingPods"] == LLM.replicas, "the pods to be counted", 180)


def stuck(name: str) -> JSON:
    owner = OWNER | {"kind": "ReplicaSet", "name": name}
    return gpu_pod(name, "gpu-1", metadata={"finalizers": ["example.com/hold"], "ownerReferences": [owner]})


@virtually
async def test_used_follows_a_drain_within_seconds() -> None:
    async with open_scene(*nodes(1), workloads=[SimWorkload("llm", 1)]) as scene:
        scene.e.cluster.add(PODS, stuck("stuck"))
        await busy(scene, 1)
        await scene.e.until(lambda: summary(scene)["used"] == "2/2", "both to be counted", 120)
        scene.apply(SLICED)
        here = {"namespace": "default", "field_selector": "spec.nodeName=gpu-1"}
        await scene.e.until(lambda: len(scene.e.cluster.objects(PODS, **here)) == 1, "one of the two to leave", 300)
        await scene.e.until(lambda: summary(scene)["used"] == "1/2", "USED to follow", 10)


def summary(scene: Scene) -> JSON:
    found: JSON = scene.e.cluster.get(POLICIES, "pool-b")["status"]["summary"]
    return found


@virtually
async def test_a_pod_that_never_ends_is_called_stuck_with_its_finalizers() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, stuck("llm-1"))
        await scene.begin(SLICED)
        transition = await scene.reason("gpu-1", "TerminatingStuck")
        assert "example.com/hold" in transition["blockers"][0]
        scene.e.cluster.patch(PODS, "llm-1", {"metadata": {"finalizers": None}}, "default")
        scene.e.cluster.finish_terminations()
        await scene.ready()
        assert scene.evicted() == ["llm-1"]


@virtually
async def test_a_process_that_no_pod_owns_keeps_the_node_from_the_point_of_no_return() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        scene.e.software.inject("gpu-1", "stray-process")
        transition = await scene.reach(MIXED, reason="GPUStillBusy")
        assert "python3" in transition["message"]
        assert scene.fence("gpu-1") is not None
        scene.e.software.inject("gpu-1", "no-stray-process")
        await scene.ready()
        assert scene.events()["GPUStillBusy"] == 1


@virtually
async def test_a_pod_that_slips_in_after_the_cordon_is_evicted_before_the_point_of_no_return() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED, drain={"unmanagedPods": "Evict"})
        await asyncio.sleep(6)
        scene.e.cluster.add(PODS, gpu_pod("late", "gpu-1"))
        await scene.ready()
        assert scene.evicted() == ["late"]


@virtually
async def test_two_nodes_are_drained_side_by_side_and_one_that_blocks_does_not_hold_up_the_other() -> None:
    async with open_scene(*nodes(2), workloads=[SimWorkload("llm", 4)]) as scene:
        await busy(scene, 4)
        await scene.begin(SLICED, rollout=at_once(2), drain=STRANDED_OK)
        await scene.fenced("gpu-2")
        guarded = [pod for pod in scene.pods("llm") if pod["spec"]["nodeName"] == "gpu-1"]
        for pod in guarded:
            name = pod["metadata"]["name"]
            scene.e.cluster.patch(PODS, name, {"metadata": {"labels": {"guard": "yes"}}}, "default")
        scene.e.cluster.add(PDBS, FULL_UP)
        await scene.phase("gpu-2", "Synced")
        assert scene.transition("gpu-1")["phase"] == "Draining"
        scene.e.cluster.delete(PDBS, "keep", "default")
        await scene.ready()
