"""Nodes fenced by DeviceTaintRules in place of cordons, with a SIMULATED scheduler that obeys them only with its feature gate (docs/adr/0079-a-device-taint-rule-for-a-cordon.md)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hack.sim.fakefaults import EVER
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import DRA_POLICY, FULL, MIXED, Scene, open_scene, pdb
from tests.embedded.test_dra_stack import bare, published
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import DEVICE_TAINT_RULES, JSON, PDBS, PODS, REPLICA_SETS
from gpusharing.kube.errors import Forbidden, KubeError, NotFound, Unavailable

RULE = "gpusharing-node-gpu-1"


@asynccontextmanager
async def tainted(*machines: JSON, gate: bool = True, **more: Any) -> AsyncIterator[Scene]:
    """These nodes on the DRA stack, with the chart's value dra.deviceTaints on; `gate` is that of the scheduler."""
    sim = {"dra": True, "device_taints": gate}
    async with open_scene(*machines, cluster_policy=DRA_POLICY, sim=sim, **{"device_taints": True, **more}) as scene:
        yield scene


def rules(scene: Scene) -> list[str]:
    return [raw["metadata"]["name"] for raw in scene.e.cluster.objects(DEVICE_TAINT_RULES)]


async def find_tested(scene: Scene, *, works: bool) -> None:
    """Until the operator has tested the scheduler, with this result, and has cleaned up."""
    loop = scene.e.loop
    assert loop is not None
    proof = loop.executor.calls
    wanted = lambda: proof.taint_proof[0] if works else bool(proof.taint_proof[1])  # noqa: E731 - a condition
    await scene.e.until(wanted, "a test", 300)
    assert rules(scene) == []
    (test,) = scene.e.cluster.objects(REPLICA_SETS)
    assert test["spec"]["replicas"] == 0


def cpu(name: str = "cpu") -> SimWorkload:
    return SimWorkload(name, 1, resource="", node_selector={"kubernetes.io/hostname": "gpu-1"})


@virtually
async def test_a_cpu_pod_starts_on_a_node_that_is_drained_and_gpu_pods_wait_and_leave_within_their_budgets() -> None:
    workloads = (SimWorkload("old", 1), SimWorkload("claimed", 2, resource="", device_class="gpu.nvidia.com"))
    budget = pdb("claimed", "claimed", minAvailable=1)
    async with tainted(bare("gpu-1", gpus=4), workloads=workloads, budgets=[budget]) as scene:
        for workload in workloads:
            await scene.running(workload.name, workload.replicas)
        await find_tested(scene, works=True)
        await scene.begin(MIXED, drain={"strandedPods": "Allow"})
        await scene.e.until(lambda: len(scene.evicted()) == 2, "one pod of each to leave", 300)
        assert rules(scene) == [RULE]
        assert not scene.cordoned("gpu-1")
        scene.e.workloads.apply(cpu())
        await scene.running("cpu", 1)
        late = SimWorkload("late", 1, resource="", device_class="gpu.nvidia.com")
        scene.e.workloads.apply(late)
        await asyncio.sleep(60)
        assert [pod["spec"].get("nodeName") for name in ("old", "late") for pod in scene.pods(name)] == [None] * 2
        assert sorted(name.split("-")[0] for name in scene.evicted()) == ["claimed", "old"]
        scene.e.cluster.patch(PDBS, "claimed", {"spec": {"minAvailable": 0}}, "default")
        await scene.ready(seconds=1800)
        assert sorted(name.split("-")[0] for name in scene.evicted()) == ["claimed", "claimed", "old"]
        assert published(scene, "gpu-1") == {"3g.40gb": 8}
        await scene.e.until(lambda: rules(scene) == [], "the rule to be removed", 60)


@virtually
async def test_without_the_feature_gate_the_node_is_cordoned_and_the_policy_says_why() -> None:
    async with tainted(bare("gpu-1"), gate=False) as scene:
        await find_tested(scene, works=False)
        await scene.begin(MIXED)
        assert scene.cordoned("gpu-1")
        await scene.ready(seconds=1800)
        row = scene.condition("Accepted")
        assert "nodes are cordoned while they change, because kube-scheduler ignores DeviceTaintRules" in row["message"]
        assert rules(scene) == []


@pytest.mark.parametrize("error", [Forbidden("not allowed"), Unavailable("a webhook hangs")], ids=["403", "503"])
@virtually
async def test_a_node_is_not_proven_while_its_rule_cannot_be_removed(error: KubeError) -> None:
    async with tainted(bare("gpu-1"), start=False) as scene:
        scene.e.start_operator()
        await find_tested(scene, works=True)
        sick = scene.e.cluster.faults.fail("delete", DEVICE_TAINT_RULES, error, times=EVER)
        scene.apply(MIXED)
        await scene.e.until(lambda: sick.hits >= 2, "the removal to fail", 1800)
        await asyncio.sleep(300)
        assert rules(scene) == [RULE]
        shown = scene.transition("gpu-1")
        assert (shown["phase"], shown["reason"]) == ("Uncordoning", "CallFailed")
        assert f"the node's DeviceTaintRule still keeps GPU pods off it: WriteRules failed: {error}" in shown["message"]
        assert scene.condition("Ready")["status"] == "False"
        assert scene.condition("Stalled")["status"] == "True"
        assert str(error) in scene.condition("Stalled")["message"]
        assert scene.events()["CallFailed"] >= 1
        sick.lift()
        await scene.ready(seconds=300)
        assert rules(scene) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [(NotFound("no such kind"), "could not be tested"), (Forbidden("not allowed"), "not allowed")],
    ids=["not served", "refused"],
)
@virtually
async def test_where_a_rule_cannot_be_created_the_node_is_cordoned_and_the_policy_says_why(
    error: KubeError, words: str
) -> None:
    async with tainted(bare("gpu-1"), start=False) as scene:
        scene.e.cluster.faults.fail("create", DEVICE_TAINT_RULES, error, times=EVER)
        scene.e.start_operator()
        await find_tested(scene, works=False)
        await scene.begin(MIXED)
        assert scene.cordoned("gpu-1")
        await scene.ready(seconds=1800)
        assert words in scene.condition("Accepted")["message"]


@virtually
async def test_a_rule_that_can_no_longer_be_written_is_replaced_by_a_cordon_before_any_pod_leaves() -> None:
    workload = SimWorkload("old", 1)
    async with tainted(bare("gpu-1"), workloads=[workload]) as scene:
        await scene.running("old", 1)
        await find_tested(scene, works=True)
        scene.e.cluster.faults.fail("create", DEVICE_TAINT_RULES, Forbidden("not allowed"), times=EVER)
        await scene.begin(MIXED, drain={"strandedPods": "Allow"})
        assert not scene.cordoned("gpu-1")
        await scene.e.until(lambda: scene.cordoned("gpu-1"), "the cordon", 300)
        assert scene.evicted() == []
        await scene.ready(seconds=1800)
        assert not scene.cordoned("gpu-1")


@virtually
async def test_a_rule_that_somebody_deletes_in_the_middle_is_written_again() -> None:
    workload, budget = SimWorkload("old", 2), pdb("old", "old", minAvailable=1)
    async with tainted(bare("gpu-1"), workloads=[workload], budgets=[budget]) as scene:
        await scene.running("old", 2)
        await find_tested(scene, works=True)
        scene.apply(MIXED, drain={"strandedPods": "Allow"})
        await scene.e.until(lambda: rules(scene) == [RULE], "the rule", 300)
        (before,) = scene.e.cluster.objects(DEVICE_TAINT_RULES)
        scene.e.cluster.delete(DEVICE_TAINT_RULES, RULE)
        await scene.e.until(lambda: rules(scene) == [RULE], "the next rule", 60)
        (after,) = scene.e.cluster.objects(DEVICE_TAINT_RULES)
        assert before["metadata"]["uid"] != after["metadata"]["uid"]
        scene.e.cluster.patch(PDBS, "old", {"spec": {"minAvailable": 0}}, "default")
        await scene.ready(seconds=1800)
        assert not scene.cordoned("gpu-1")


@virtually
async def test_the_value_may_be_switched_off_in_the_middle_of_a_change() -> None:
    workload, budget = SimWorkload("old", 2), pdb("old", "old", minAvailable=1)
    async with tainted(bare("gpu-1"), workloads=[workload], budgets=[budget]) as scene:
        await scene.running("old", 2)
        await find_tested(scene, works=True)
        scene.apply(MIXED, drain={"strandedPods": "Allow"})
        await scene.e.until(lambda: rules(scene) == [RULE], "the rule", 300)
        await scene.e.kill_operator()
        settings = scene.e.settings
        scene.e.settings = replace(settings, device_taints=False)
        scene.e.start_operator()
        scene.e.cluster.patch(PDBS, "old", {"spec": {"minAvailable": 0}}, "default")
        await scene.ready(seconds=1800)
        assert not scene.cordoned("gpu-1")
        await scene.e.until(lambda: rules(scene) == [], "the rule to be removed", 60)
        await scene.begin(FULL, drain={"strandedPods": "Allow"})
        assert scene.cordoned("gpu-1")
        await scene.ready(seconds=1800)
        assert [raw for raw in scene.e.cluster.objects(PODS) if "taint-test" in raw["metadata"]["name"]] == []
