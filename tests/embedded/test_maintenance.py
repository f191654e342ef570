"""Somebody asks another operator to maintain a node: a NodeMaintenance comes and goes around our change."""

import asyncio
from datetime import timedelta

import pytest
from hack.embedded import CLUSTER_POLICY
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, HOUR, MIXED, SLICED, Scene, at_once, nodes, open_scene, pdb
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api import names
from gpusharing.kube.client import CLUSTER_POLICIES, JSON, MEDIK8S_MAINTENANCES, NVIDIA_MAINTENANCES, PDBS, Resource

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
CHOSEN: JSON = {"conditions": [{"type": "Ready", "status": "False", "reason": "Scheduled"}]}
"""Of NVIDIA's: until then many may wait. medik8s begins at once."""
kinds = pytest.mark.parametrize(("resource", "obj", "who"), KINDS.values(), ids=KINDS.keys())


def begin(scene: Scene, resource: Resource, obj: JSON) -> None:
    scene.e.cluster.add(resource, obj)


def end(scene: Scene, resource: Resource, obj: JSON) -> None:
    """Somebody deletes it, and its operator lifts the cordon that it finds."""
    scene.cordon("gpu-1", on=False)
    scene.e.cluster.delete(resource, obj["metadata"]["name"], obj["metadata"].get("namespace", ""))


@kinds
@virtually
async def test_before_the_start_the_node_is_blocked_naming_who_and_starts_when_it_is_gone(
    resource: Resource, obj: JSON, who: str
) -> None:
    async with open_scene(*nodes(2)) as scene:
        begin(scene, resource, obj)
        transition = await scene.reach(SLICED, rollout=at_once(2), reason="ForeignMaintenance")
        doing = "is waiting for" if resource is NVIDIA_MAINTENANCES else "is working on"
        assert (transition["phase"], transition["message"]) == (
            "Blocked",
            f"{who} {doing} gpu-1; waiting until it has finished",
        )
        await scene.phase("gpu-2", "Synced")
        assert scene.node_writes()["gpu-1"] == 0
        end(scene, resource, obj)
        begun = virtual_now()
        await scene.ready()
        assert virtual_now() - begun < timedelta(minutes=3), "noticed at once, and without a back-off"


@kinds
@virtually
async def test_a_node_that_is_to_be_maintained_uses_up_the_budget_before_anybody_cordons_it(
    resource: Resource, obj: JSON, who: str
) -> None:
    async with open_scene(*nodes(2)) as scene:
        begin(scene, resource, {**obj, "status": CHOSEN})
        scene.apply(SLICED, rollout=at_once(1))
        await scene.reason("gpu-2", "BudgetFull")
        assert scene.node_writes() == {}, who
        end(scene, resource, obj)
        await scene.ready()


@virtually
async def test_one_that_waits_for_its_turn_takes_no_slot() -> None:
    resource, obj, _ = KINDS["NVIDIA"]
    async with open_scene(*nodes(2)) as scene:
        begin(scene, resource, obj)
        scene.apply(SLICED, rollout=at_once(1))
        await scene.phase("gpu-2", "Synced")
        await scene.reason("gpu-1", "ForeignMaintenance")


@kinds
@virtually
async def test_during_the_drain_the_node_is_left_alone_with_our_cordon_and_tried_again_afterwards(
    resource: Resource, obj: JSON, who: str
) -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED)
        begin(scene, resource, {**obj, "status": CHOSEN})
        await scene.fenced("gpu-1", "yielded", 10)
        assert scene.cordoned("gpu-1")
        transition = await scene.reason("gpu-1", "ForeignMaintenance")
        assert transition["message"].startswith(who)
        assert transition["cordonedBy"] == "Operator"
        end(scene, resource, obj)
        await scene.released("gpu-1", 60)
        assert not scene.cordoned("gpu-1")
        await scene.ready(seconds=1800)


@kinds
@virtually
async def test_after_the_point_of_no_return_the_change_goes_on_and_its_cordon_is_lifted_with_the_maintenance(
    resource: Resource, obj: JSON, who: str
) -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED, stage="actuating")
        begin(scene, resource, {**obj, "status": CHOSEN})
        await scene.fenced("gpu-1", "yielded", 600)
        assert (await scene.reason("gpu-1", "ForeignMaintenance"))["message"].startswith(who)
        assert scene.cordoned("gpu-1")
        mark = scene.mark()
        end(scene, resource, obj)
        await scene.ready()
        assert not scene.cordoned("gpu-1")
        assert scene.node_writes(mark)["gpu-1"] <= 1, who


@pytest.mark.parametrize("stage", ["fenced", "actuating"])
@virtually
async def test_one_that_is_not_chosen_yet_waits_for_the_change_and_keeps_no_cordon(stage: str) -> None:
    """There is one for every node of an upgrade, and most wait for days."""
    resource, obj, _ = KINDS["NVIDIA"]
    async with open_scene(*nodes(1)) as scene:
        scene.apply(SLICED)
        await scene.fenced("gpu-1", stage)
        begin(scene, resource, obj)
        await scene.ready()
        assert not scene.cordoned("gpu-1")


@virtually
async def test_one_that_comes_in_the_moment_of_a_conflict_is_seen_before_the_write_is_tried_again() -> None:
    async with open_scene(*nodes(1)) as scene:
        resource, obj, _ = KINDS["medik8s"]

        def meanwhile() -> None:
            begin(scene, resource, obj)
            scene.person("gpu-1", {"metadata": {"annotations": {"example.com/read-by-no-plan": "1"}}})

        await scene.begin(SLICED)
        client = scene.e.client
        assert client is not None
        client.interfere(lambda body: "actuating" in str(body), meanwhile)
        await scene.fenced("gpu-1", "yielded", 60)
        await scene.reason("gpu-1", "ForeignMaintenance")
        assert scene.cordoned("gpu-1")
        assert "nvidia.com/device-plugin.config" not in scene.labels("gpu-1")


@kinds
@virtually
async def test_an_operator_that_is_uninstalled_with_its_kind_maintains_nothing_any_more(
    resource: Resource, obj: JSON, who: str
) -> None:
    async with open_scene(*nodes(1)) as scene:
        begin(scene, resource, obj)
        await scene.reach(SLICED, reason="ForeignMaintenance")
        scene.e.cluster.uninstall(resource)
        await scene.ready(seconds=180)


@virtually
async def test_a_cluster_policy_that_is_gone_for_a_while_gives_no_node_in_flight_up() -> None:
    async with open_scene(*nodes(1), workloads=[SimWorkload("llm", 2)]) as scene:
        await scene.running("llm", 2)
        await scene.serve(FULL)
        await scene.begin(SLICED, drain={"strandedPods": "Allow", "timeout": "1h"})
        scene.e.cluster.add(PDBS, pdb("keep", "llm", minAvailable=1))
        await scene.reason("gpu-1", "PDBInUse")
        before = scene.mark()
        scene.e.cluster.uninstall(CLUSTER_POLICIES)
        await scene.reason("gpu-1", "ClusterPolicyMissing", seconds=300)
        await asyncio.sleep(600)
        assert scene.node_writes(before) == {}, "it holds"
        assert scene.cordoned("gpu-1")
        scene.e.cluster.uninstalled.clear()
        scene.e.cluster.add(CLUSTER_POLICIES, CLUSTER_POLICY)
        scene.e.cluster.delete(PDBS, "keep", "default")
        await scene.ready(seconds=HOUR)
        assert scene.node_writes(before)["gpu-1"] == 2, "the point of no return and the release"


@virtually
async def test_a_cluster_policy_that_is_gone_for_a_moment_fails_no_node_past_the_point_of_no_return() -> None:
    async with open_scene(*nodes(2)) as scene:
        name = await scene.begin_any(MIXED, rollout=at_once(1), stage="actuating")
        state = names.LABEL_MIG_STATE
        await scene.e.until(lambda: scene.labels(name).get(state) == "success", "mig-manager's success", HOUR)
        scene.e.cluster.delete(CLUSTER_POLICIES, CLUSTER_POLICY["metadata"]["name"])
        await scene.reason(name, "ClusterPolicyMissing", seconds=5)
        await asyncio.sleep(5)
        assert scene.transition(name)["phase"] == "Verifying"
        scene.e.cluster.add(CLUSTER_POLICIES, CLUSTER_POLICY)
        await scene.ready(seconds=HOUR)
        shown = scene.transition(name)["history"]
        assert ("Failed", "ClusterPolicyMissing") not in [tuple(one.split()[1:]) for one in shown]
