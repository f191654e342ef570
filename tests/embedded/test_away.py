"""What people and NVIDIA's software do while no operator runs: the next one finds it, and goes by what is there.
The rows of docs/design/drain.md#races-and-crashes in which the cluster changes between a crash and the restart; those in which it does not are the golden scenarios of the crash matrix. And two operators at once: one acts, the other one waits, and takes over with the claims of the first."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hack.embedded import Embedded
from hack.sim.mortal import MortalClient
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, HOUR, MIXED, SINGLE, SLICED, Scene, at_once, node, nodes, open_scene, pdb
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_people import claims
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api import names
from gpusharing.kube.client import CONFIG_MAPS, GPUNODES, JSON, LEASES, NODES, PDBS, PODS, POLICIES, Resource
from gpusharing.kube.errors import Unavailable
from gpusharing.kube.lease import Timing

FOREIGN = {"weave.works/kured-reboot-in-progress": "1"}


async def away(scene: Scene, seconds: float = 60) -> None:
    """The operator dies here; `seconds` later nothing runs yet."""
    await scene.e.kill_operator()
    await asyncio.sleep(seconds)


async def killed_before_the_fence(scene: Scene, spec: JSON) -> None:
    """The claim of gpu-1 and the finalizer are written, and its fence is not."""
    client: MortalClient | None = scene.e.client
    assert client is not None
    client.interfere(lambda body: names.ANNOTATION_FENCE in json.dumps(body), client.die)
    scene.apply(spec)
    await asyncio.wait_for(client.died.wait(), HOUR)
    await away(scene)
    assert claims(scene) == {"gpu-1"}
    assert scene.fence("gpu-1") is None


# --- before the fence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"spec": {"unschedulable": True}}, "AlreadyCordoned"),
        ({"metadata": {"annotations": FOREIGN}}, "ForeignMaintenance"),
    ],
    ids=["cordoned", "taken by others"],
)
@virtually
async def test_a_claimed_node_that_is_somebody_elses_by_now_is_left_alone_and_its_slot_given_back(
    body: JSON, reason: str
) -> None:
    async with open_scene(*nodes(1)) as scene:
        await killed_before_the_fence(scene, SLICED)
        scene.person("gpu-1", body)
        scene.e.start_operator()
        await scene.reason("gpu-1", reason)
        await scene.e.until(lambda: not claims(scene), "the slot given back", 60)
        assert scene.node_writes()["gpu-1"] == 0
        assert not scene.e.policy("pool-b")["metadata"].get("finalizers")


@virtually
async def test_a_claim_of_a_node_that_was_made_anew_is_not_the_new_ones() -> None:
    async with open_scene(*nodes(1)) as scene:
        await killed_before_the_fence(scene, SLICED)
        scene.e.cluster.delete(NODES, "gpu-1")
        await asyncio.sleep(5)
        scene.e.cluster.add(NODES, node("gpu-1"))
        scene.e.start_operator()
        await scene.ready(seconds=HOUR)
        assert claims(scene) == set()
        assert_as_wanted(scene, SLICED, "gpu-1")


@virtually
async def test_claims_that_were_lost_with_the_lease_are_taken_from_the_fences() -> None:
    async with open_scene(*nodes(3)) as scene:
        fenced = await scene.begin_any(MIXED, stage="actuating")
        await away(scene, 0)
        scene.e.cluster.delete(LEASES, "gpusharing-operator", "gpusharing")
        scene.e.start_operator()
        await scene.e.until(lambda: claims_or_none(scene) == {fenced}, "the claim again", HOUR)
        await scene.ready(seconds=HOUR)
        assert scene.guard.largest["pool-b"] == 1


def claims_or_none(scene: Scene) -> set[str] | None:
    """Claimed nodes; None without a Lease that tells."""
    leases = scene.e.cluster.objects(LEASES)
    told = leases and names.ANNOTATION_CLAIMS in (leases[0]["metadata"].get("annotations") or {})
    return claims(scene) if told else None


# --- during the drain ---------------------------------------------------------------------------------------


async def draining(scene: Scene, **more: Any) -> None:
    """A budget holds the pods of gpu-1 in the middle of its drain, and the operator is away."""
    await scene.running("kept", 2)
    await scene.begin(SLICED, drain={"strandedPods": "Allow", **more})
    scene.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 2}}, "default")
    await asyncio.sleep(30)
    assert len(scene.pods("kept")) == 2
    await away(scene)


def held() -> dict[str, Any]:
    """Two pods, and a budget that lets one go until somebody tightens it."""
    return {"workloads": [SimWorkload("kept", 2)], "budgets": [pdb("keep", "kept", minAvailable=1)]}


def let_go(scene: Scene) -> None:
    scene.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 0}}, "default")


@virtually
async def test_a_cordon_that_was_lifted_meanwhile_gives_the_change_up_and_no_pod_is_evicted() -> None:
    async with open_scene(*nodes(1, gpus=4), **held()) as scene:
        await draining(scene)
        scene.cordon("gpu-1", on=False)
        let_go(scene)
        scene.e.start_operator()
        await scene.released("gpu-1")
        transition = await scene.reason("gpu-1", "Deferred")
        assert "UncordonedExternally" in transition["message"]
        assert scene.evicted() == []
        await scene.ready(seconds=HOUR)


@virtually
async def test_a_drain_whose_time_ran_out_meanwhile_is_given_up_and_not_hurried() -> None:
    async with open_scene(*nodes(1, gpus=4), **held()) as scene:
        await draining(scene, timeout="10m")
        await asyncio.sleep(HOUR)
        scene.e.start_operator()
        await scene.released("gpu-1", 60)
        assert (scene.cordoned("gpu-1"), scene.evicted()) == (False, [])
        transition = await scene.reason("gpu-1", "Deferred")
        assert "DrainTimeout" in transition["message"]
        let_go(scene)
        await scene.ready(seconds=HOUR)


@virtually
async def test_a_marker_that_came_during_a_drain_is_left_alone_until_it_goes() -> None:
    async with open_scene(*nodes(1, gpus=4), **held()) as scene:
        await draining(scene)
        scene.person("gpu-1", {"metadata": {"annotations": FOREIGN}})
        let_go(scene)
        scene.e.start_operator()
        await scene.reason("gpu-1", "ForeignMaintenance")
        await asyncio.sleep(600)
        assert scene.evicted() == []
        scene.person("gpu-1", {"metadata": {"annotations": dict.fromkeys(FOREIGN)}})
        await scene.ready(seconds=HOUR)


@virtually
async def test_pods_that_left_meanwhile_are_not_waited_for() -> None:
    async with open_scene(*nodes(1, gpus=4), **held()) as scene:
        await draining(scene)
        for pod in scene.pods("kept"):
            scene.e.cluster.delete(PODS, pod["metadata"]["name"], "default")
        await asyncio.sleep(120)
        scene.e.start_operator()
        await scene.ready(seconds=HOUR)
        assert scene.evicted() == []


@pytest.mark.parametrize("deed", ["deletes it", "strips its finalizer, too"])
@virtually
async def test_the_policy_that_a_person_deletes_during_a_drain_gives_its_node_back(deed: str) -> None:
    async with open_scene(*nodes(1, gpus=4), **held()) as scene:
        await draining(scene)
        delete_policy(scene, strip="strips" in deed)
        scene.e.start_operator()
        await scene.released("gpu-1")
        await gone(scene)
        assert (scene.cordoned("gpu-1"), scene.evicted()) == (False, [])


async def gone(scene: Scene) -> None:
    await scene.e.until(lambda: not scene.e.cluster.objects(POLICIES), "the policy gone", HOUR)
    await scene.e.until(lambda: not claims(scene), "the slot given back", 60)


def delete_policy(scene: Scene, *, strip: bool) -> None:
    """kubectl delete; `strip`: and the finalizer is taken off by hand."""
    scene.e.cluster.delete(POLICIES, "pool-b")
    if strip:
        scene.e.cluster.patch(POLICIES, "pool-b", {"metadata": {"finalizers": None}})


# --- after the point of no return ----------------------------------------------------------------------------


@virtually
async def test_a_change_that_came_to_its_end_meanwhile_is_judged_by_its_result_and_not_by_the_clock() -> None:
    async with open_scene(*nodes(1)) as scene:
        fence = await scene.begin(MIXED, stage="actuating")
        await away(scene, 24 * HOUR)
        assert virtual_now() > fence.deadline + timedelta(hours=1)
        begun = scene.mark()
        scene.e.start_operator()
        await scene.ready(seconds=60)
        assert [write.call.verb for write in scene.writes(begun, "nodes")] == ["patch"], "given back at once"
        assert scene.writes(begun, "pods") == [], "nothing is restarted"
        assert_as_wanted(scene, MIXED, "gpu-1")


@virtually
async def test_a_cordon_that_was_lifted_meanwhile_is_put_back_before_anything_else() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED, stage="actuating")
        await away(scene, 0)
        scene.cordon("gpu-1", on=False)
        begun = scene.mark()
        scene.e.start_operator()
        await scene.ready(seconds=HOUR)
        first = next(write.call.body or {} for write in scene.writes(begun, "nodes"))
        assert first["spec"] == {"unschedulable": True}
        assert not scene.cordoned("gpu-1")


@pytest.mark.parametrize("moment", ["fenced", "actuating"])
@pytest.mark.parametrize("kind", [GPUNODES, CONFIG_MAPS, LEASES], ids=["the GPUNodes", "our ConfigMaps", "the Lease"])
@virtually
async def test_the_fence_alone_is_enough_to_go_on_when_all_else_was_deleted(kind: Resource, moment: str) -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED, stage=moment)
        await away(scene, 0)
        for raw in scene.e.cluster.objects(kind):
            scene.e.cluster.delete(kind, raw["metadata"]["name"], raw["metadata"].get("namespace"))
        scene.e.start_operator()
        await scene.ready(seconds=HOUR)
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert claims(scene) == set()


@virtually
async def test_another_layout_that_was_wanted_meanwhile_is_reached_in_the_same_slot() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED, stage="actuating")
        await away(scene)
        scene.apply(SINGLE)
        begun = scene.mark()
        scene.e.start_operator()
        await scene.ready(seconds=HOUR)
        assert_as_wanted(scene, SINGLE, "gpu-1")
        patches = [write.call.body or {} for write in scene.writes(begun, "nodes")]
        assert all("unschedulable" not in (body.get("spec") or {}) for body in patches[:-1])


@virtually
async def test_a_policy_that_a_person_deleted_meanwhile_goes_when_its_node_is_proven() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED, stage="actuating")
        await away(scene)
        delete_policy(scene, strip=False)
        scene.e.start_operator()
        await gone(scene)
        assert scene.fence("gpu-1") is None
        assert not scene.cordoned("gpu-1")


@virtually
async def test_a_node_whose_policy_is_gone_finalizer_and_all_stays_cordoned_until_another_one_owns_it() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED, stage="actuating")
        await away(scene)
        delete_policy(scene, strip=True)
        scene.e.start_operator()
        await scene.reason("gpu-1", "OrphanFence")
        assert (scene.cordoned("gpu-1"), claims(scene)) == (True, {"gpu-1"})
        await scene.serve(FULL, "pool-x", seconds=HOUR)
        assert_as_wanted(scene, FULL, "gpu-1", owner="pool-x")


@virtually
async def test_whoever_gives_up_a_node_whose_policy_is_gone_is_told_what_else_to_remove() -> None:
    """Only the fence lists the marks for neighbors and knows whose cordon it is, so both would stay for ever."""
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED, stage="actuating")
        delete_policy(scene, strip=True)
        shown = await scene.reason("gpu-1", "OrphanFence")
        _, _, commands = shown["message"].rpartition(": ")
        *unmark, uncordon = commands.split(" && ")
        for command in unmark:
            _, verb, _, name, *keys = command.split()
            removed = {key.removesuffix("-"): None for key in keys}
            scene.person(name, {"metadata": {{"label": "labels", "annotate": "annotations"}[verb]: removed}})
        assert uncordon == "kubectl uncordon gpu-1"
        scene.cordon("gpu-1", False)
        await asyncio.sleep(60)
        assert scene.fence("gpu-1") is None
        assert not scene.cordoned("gpu-1")
        assert not scene.labels("gpu-1").keys() & names.NEIGHBOR_LABELS.keys()
        assert not scene.annotations("gpu-1").keys() & set(names.NEIGHBOR_ANNOTATIONS)


# --- when it is done -----------------------------------------------------------------------------------------


@virtually
async def test_a_cordon_that_a_person_set_after_ours_was_lifted_stays() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED, stage="actuating")
        await scene.released("gpu-1")
        await away(scene, 0)
        assert claims(scene) == {"gpu-1"}, "nobody has given the slot back yet"
        scene.cordon("gpu-1")
        scene.e.start_operator()
        await scene.ready(seconds=HOUR)
        await scene.e.until(lambda: not claims(scene), "the slot given back", 60)
        assert scene.cordoned("gpu-1")


@asynccontextmanager
async def second_operator(scene: Scene) -> AsyncIterator[Embedded]:
    other = replace(scene.e, operators=100, loop=None, client=None, lease=None, _operator=None)
    other.start_operator()
    try:
        yield other
    finally:
        await other.kill_operator()


def acting(scene: Embedded) -> int:
    assert scene.client is not None
    return scene.client.writes


@virtually
async def test_only_the_holder_of_the_lease_writes() -> None:
    async with open_scene(*nodes(2), lease=Timing()) as scene:
        await asyncio.sleep(5)
        async with second_operator(scene) as other:
            await scene.serve(SLICED)
            assert acting(scene.e) > 0
            assert acting(other) == 0


@virtually
async def test_the_waiting_operator_goes_on_where_the_killed_one_was_and_keeps_to_the_budget() -> None:
    async with open_scene(*nodes(4), workloads=[SimWorkload("llm", 2)], lease=Timing()) as scene:
        await scene.running("llm", 2)
        async with second_operator(scene) as other:
            scene.apply(SLICED, rollout=at_once(2))
            await scene.any_fenced("fenced")
            await scene.e.kill_operator()
            begun = virtual_now()
            await other.ready("pool-b", seconds=3600)
            assert acting(other) > 0
            assert (virtual_now() - begun).total_seconds() > 15
            assert scene.guard.largest["pool-b"] == 2
            assert_as_wanted(scene, SLICED, "gpu-1", "gpu-2", "gpu-3", "gpu-4")


@virtually
async def test_an_operator_that_cannot_renew_ends_before_the_other_one_begins() -> None:
    async with open_scene(*nodes(2), lease=Timing()) as scene:
        scene.apply(SLICED)
        await scene.any_fenced("fenced")
        first = scene.e.client
        assert first is not None
        async with second_operator(scene) as other:
            # The second one shares the identity at the server, so the renewals of the first are cut at its client.
            first.cut(LEASES, Unavailable("no route to the API server"))
            await asyncio.wait_for(first.died.wait(), 11)
            assert acting(other) == 0
            ended = first.writes
            await scene.e.kill_operator()
            await other.ready("pool-b", seconds=3600)
            assert first.writes == ended
