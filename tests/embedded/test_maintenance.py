"""Somebody asks another operator to maintain a node: a NodeMaintenance comes and goes around our change."""

import asyncio
from datetime import timedelta

import pytest
from hack.embedded import CLUSTER_POLICY
from hack.sim.workloads import Workload
from tests.embedded.scene import FULL, HOUR, SLICED, Scene, at_once, nodes, pdb, scene
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    JSON,
    MEDIK8S_MAINTENANCES,
    NVIDIA_MAINTENANCES,
    PDBS,
    Resource,
)

KINDS: dict[str, tuple[Resource, JSON, str]] = {
    "medik8s": (
        MEDIK8S_MAINTENANCES,
        {"metadata": {"name": "nm"}, "spec": {"nodeName": "gpu-1", "reason": "new fan"}},
        "medik8s NodeMaintenance nm",
    ),
    "NVIDIA": (
        NVIDIA_MAINTENANCES,
        {
            "metadata": {"name": "nm", "namespace": "ops"},
            "spec": {"nodeName": "gpu-1", "requestorID": "fabric.example.com"},
        },
        "NVIDIA NodeMaintenance ops/nm for fabric.example.com",
    ),
}
kinds = pytest.mark.parametrize(("resource", "obj", "who"), KINDS.values(), ids=KINDS.keys())


def begin(stage: Scene, resource: Resource, obj: JSON) -> None:
    """Somebody creates it."""
    stage.e.cluster.add(resource, obj)


def end(stage: Scene, resource: Resource, obj: JSON) -> None:
    """Somebody deletes it, and its operator lifts the cordon that it finds."""
    stage.cordon("gpu-1", on=False)
    stage.e.cluster.delete(resource, obj["metadata"]["name"], obj["metadata"].get("namespace", ""))


@kinds
@virtually
async def test_before_the_start_the_node_is_blocked_naming_who_and_starts_when_it_is_gone(
    resource: Resource, obj: JSON, who: str
) -> None:
    async with scene(*nodes(2)) as stage:
        begin(stage, resource, obj)
        stage.apply(SLICED, rollout=at_once(2))
        transition = await stage.reason("gpu-1", "ForeignMaintenance")
        assert (transition["phase"], transition["message"]) == (
            "Blocked",
            f"{who} works on gpu-1; waiting until it is done",
        )
        await stage.phase("gpu-2", "Synced")
        assert stage.node_writes()["gpu-1"] == 0
        end(stage, resource, obj)
        begun = virtual_now()
        await stage.ready()
        assert virtual_now() - begun < timedelta(minutes=3), "noticed at once, and without a back-off"


@kinds
@virtually
async def test_a_node_that_is_to_be_maintained_uses_up_the_budget_before_anybody_cordons_it(
    resource: Resource, obj: JSON, who: str
) -> None:
    """One of NVIDIA's is chosen first: until then many may wait."""
    chosen = {"conditions": [{"type": "Ready", "status": "False", "reason": "Scheduled"}]}
    async with scene(*nodes(2)) as stage:
        begin(stage, resource, {**obj, "status": chosen})
        stage.apply(SLICED, rollout=at_once(1))
        await stage.reason("gpu-2", "BudgetFull")
        assert stage.node_writes() == {}, who
        end(stage, resource, obj)
        await stage.ready()


@virtually
async def test_one_that_waits_for_its_turn_takes_no_slot() -> None:
    resource, obj, _ = KINDS["NVIDIA"]
    async with scene(*nodes(2)) as stage:
        begin(stage, resource, obj)
        stage.apply(SLICED, rollout=at_once(1))
        await stage.phase("gpu-2", "Synced")
        await stage.reason("gpu-1", "ForeignMaintenance")


@kinds
@virtually
async def test_during_the_drain_the_node_is_left_alone_with_our_cordon_and_tried_again_afterwards(
    resource: Resource, obj: JSON, who: str
) -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(SLICED)
        await stage.fenced("gpu-1")
        begin(stage, resource, obj)
        await stage.fenced("gpu-1", "yielded", 10)
        assert stage.cordoned("gpu-1")
        transition = await stage.reason("gpu-1", "ForeignMaintenance")
        assert transition["message"].startswith(who)
        assert transition["cordon"]
        end(stage, resource, obj)
        await stage.released("gpu-1", 60)
        assert not stage.cordoned("gpu-1")
        await stage.ready(seconds=1800)


@kinds
@virtually
async def test_after_the_point_of_no_return_the_change_goes_on_and_leaves_the_cordon(
    resource: Resource, obj: JSON, who: str
) -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(SLICED)
        await stage.fenced("gpu-1", "actuating")
        begin(stage, resource, obj)
        await stage.ready()
        assert stage.cordoned("gpu-1")
        assert stage.transition("gpu-1")["cordon"] == "foreign"
        mark = stage.mark()
        end(stage, resource, obj)
        await stage.e.until(lambda: not stage.transition("gpu-1")["cordon"], "no cordon of anybody", 60)
        assert stage.node_writes(mark)["gpu-1"] == 0, who


@virtually
async def test_one_for_another_node_holds_nobody_up() -> None:
    async with scene(*nodes(1)) as stage:
        resource, obj, _ = KINDS["medik8s"]
        begin(stage, resource, {**obj, "spec": {"nodeName": "gpu-9"}})
        stage.apply(SLICED)
        await stage.ready()
        assert not stage.cordoned("gpu-1")


@virtually
async def test_one_that_comes_in_the_moment_of_a_conflict_is_seen_before_the_write_is_tried_again() -> None:
    """Our PATCH loses against another one; what was decided without the NodeMaintenance does not hold any more."""
    async with scene(*nodes(1)) as stage:
        resource, obj, _ = KINDS["medik8s"]

        def meanwhile() -> None:
            begin(stage, resource, obj)
            stage.person("gpu-1", {"metadata": {"annotations": {"example.com/read-by-no-plan": "1"}}})

        stage.apply(SLICED)
        await stage.fenced("gpu-1")
        client = stage.e.client
        assert client is not None
        client.interfere(lambda body: "actuating" in str(body), meanwhile)
        await stage.fenced("gpu-1", "yielded", 60)
        await stage.reason("gpu-1", "ForeignMaintenance")
        assert stage.cordoned("gpu-1")
        assert "nvidia.com/device-plugin.config" not in stage.labels("gpu-1")


@kinds
@virtually
async def test_an_operator_that_is_uninstalled_with_its_kind_maintains_nothing_any_more(
    resource: Resource, obj: JSON, who: str
) -> None:
    async with scene(*nodes(1)) as stage:
        begin(stage, resource, obj)
        stage.apply(SLICED)
        await stage.reason("gpu-1", "ForeignMaintenance")
        stage.e.cluster.uninstall(resource)
        await stage.ready(seconds=180)


@virtually
async def test_a_cluster_policy_that_is_gone_for_a_while_gives_no_node_in_flight_up() -> None:
    async with scene(*nodes(1), workloads=[Workload("llm", 2)]) as stage:
        await stage.running("llm", 2)
        stage.apply(FULL)
        await stage.ready()
        stage.apply(SLICED, drain={"strandedPods": "Allow", "timeout": "1h"})
        await stage.fenced("gpu-1")
        stage.e.cluster.add(PDBS, pdb("keep", "llm", minAvailable=1))
        await stage.reason("gpu-1", "PDB")
        before = stage.mark()
        stage.e.cluster.uninstall(CLUSTER_POLICIES)
        await stage.reason("gpu-1", "ClusterPolicyMissing", seconds=300)
        await asyncio.sleep(600)
        assert stage.node_writes(before) == {}, "it holds"
        assert stage.cordoned("gpu-1")
        stage.e.cluster.uninstalled.clear()
        stage.e.cluster.add(CLUSTER_POLICIES, CLUSTER_POLICY)
        stage.e.cluster.delete(PDBS, "keep", "default")
        await stage.ready(seconds=HOUR)
        assert stage.node_writes(before)["gpu-1"] == 2, "the point of no return and the release"
