"""What people and NVIDIA's software do while no operator runs: the next one finds it, and goes by what is there.

The rows of docs/design/drain.md#races-and-crashes in which the cluster changes between a crash and the restart;
those in which it does not are the golden scenarios of the crash matrix.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hack.sim.mortal import MortalClient
from hack.sim.workloads import Workload
from tests.embedded.scene import FULL, HOUR, MIXED, SINGLE, SLICED, Scene, node, nodes, pdb, scene
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_people import claims
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api import names
from gpusharing.kube.client import CONFIG_MAPS, GPUNODES, JSON, LEASES, NODES, PDBS, PODS, POLICIES

FOREIGN = {"weave.works/kured-reboot-in-progress": "1"}


async def away(stage: Scene, seconds: float = 60) -> None:
    """The operator dies here; `seconds` later nothing runs yet."""
    await stage.e.kill_operator()
    await asyncio.sleep(seconds)


async def killed_before_the_fence(stage: Scene, spec: JSON) -> None:
    """The claim of gpu-1 and the finalizer are written, and its fence is not."""
    client: MortalClient | None = stage.e.client
    assert client is not None
    client.interfere(lambda body: names.ANNOTATION_FENCE in json.dumps(body), client.die)
    stage.apply(spec)
    await asyncio.wait_for(client.died.wait(), HOUR)
    await away(stage)
    assert claims(stage) == {"gpu-1"}
    assert stage.fence("gpu-1") is None


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
    async with scene(*nodes(1)) as stage:
        await killed_before_the_fence(stage, SLICED)
        stage.person("gpu-1", body)
        stage.e.start_operator()
        await stage.reason("gpu-1", reason)
        await stage.e.until(lambda: not claims(stage), "the slot given back", 60)
        assert stage.node_writes()["gpu-1"] == 0
        assert not stage.e.policy("pool-b")["metadata"].get("finalizers")


@virtually
async def test_a_claim_of_a_node_that_was_made_anew_is_not_the_new_ones() -> None:
    async with scene(*nodes(1)) as stage:
        await killed_before_the_fence(stage, SLICED)
        stage.e.cluster.delete(NODES, "gpu-1")
        await asyncio.sleep(5)
        stage.e.cluster.add(NODES, node("gpu-1"))
        stage.e.start_operator()
        await stage.ready(seconds=HOUR)
        assert claims(stage) == set()
        assert_as_wanted(stage, SLICED, "gpu-1")


@virtually
async def test_claims_that_were_lost_with_the_lease_are_taken_from_the_fences() -> None:
    async with scene(*nodes(3)) as stage:
        stage.apply(MIXED)
        fenced = await stage.any_fenced("actuating")
        await away(stage, 0)
        stage.e.cluster.delete(LEASES, "gpusharing-operator", "gpusharing")
        stage.e.start_operator()
        await stage.e.until(lambda: claims_or_none(stage) == {fenced}, "the claim again", HOUR)
        await stage.ready(seconds=HOUR)
        assert stage.guard.largest["pool-b"] == 1


def claims_or_none(stage: Scene) -> set[str] | None:
    """Claimed nodes; None without a Lease that tells."""
    leases = stage.e.cluster.objects(LEASES)
    told = leases and names.ANNOTATION_CLAIMS in (leases[0]["metadata"].get("annotations") or {})
    return claims(stage) if told else None


# --- during the drain ---------------------------------------------------------------------------------------


async def draining(stage: Scene, **more: Any) -> None:
    """A budget holds the pods of gpu-1 in the middle of its drain, and the operator is away."""
    await stage.running("kept", 2)
    stage.apply(SLICED, drain={"strandedPods": "Allow", **more})
    await stage.fenced("gpu-1")
    stage.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 2}}, "default")
    await asyncio.sleep(30)
    assert len(stage.pods("kept")) == 2
    await away(stage)


def held() -> dict[str, Any]:
    """Two pods, and a budget that lets one go until somebody tightens it."""
    return {"workloads": [Workload("kept", 2)], "budgets": [pdb("keep", "kept", minAvailable=1)]}


def let_go(stage: Scene) -> None:
    """A person relaxes the budget."""
    stage.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 0}}, "default")


@virtually
async def test_a_cordon_that_was_lifted_meanwhile_gives_the_change_up_and_no_pod_is_evicted() -> None:
    async with scene(*nodes(1, gpus=4), **held()) as stage:
        await draining(stage)
        stage.cordon("gpu-1", on=False)
        let_go(stage)
        stage.e.start_operator()
        await stage.released("gpu-1")
        transition = await stage.reason("gpu-1", "Deferred")
        assert "UncordonedExternally" in transition["message"]
        assert stage.evicted() == []
        await stage.ready(seconds=HOUR)


@virtually
async def test_a_drain_whose_time_ran_out_meanwhile_is_given_up_and_not_hurried() -> None:
    async with scene(*nodes(1, gpus=4), **held()) as stage:
        await draining(stage, timeout="10m")
        await asyncio.sleep(HOUR)
        stage.e.start_operator()
        await stage.released("gpu-1", 60)
        assert (stage.cordoned("gpu-1"), stage.evicted()) == (False, [])
        transition = await stage.reason("gpu-1", "Deferred")
        assert "DrainTimeout" in transition["message"]
        let_go(stage)
        await stage.ready(seconds=HOUR)


@virtually
async def test_a_marker_that_came_during_a_drain_is_left_alone_until_it_goes() -> None:
    async with scene(*nodes(1, gpus=4), **held()) as stage:
        await draining(stage)
        stage.person("gpu-1", {"metadata": {"annotations": FOREIGN}})
        let_go(stage)
        stage.e.start_operator()
        await stage.reason("gpu-1", "ForeignMaintenance")
        await asyncio.sleep(600)
        assert stage.evicted() == []
        stage.person("gpu-1", {"metadata": {"annotations": dict.fromkeys(FOREIGN)}})
        await stage.ready(seconds=HOUR)


@virtually
async def test_pods_that_left_meanwhile_are_not_waited_for() -> None:
    async with scene(*nodes(1, gpus=4), **held()) as stage:
        await draining(stage)
        for pod in stage.pods("kept"):
            stage.e.cluster.delete(PODS, pod["metadata"]["name"], "default")
        await asyncio.sleep(120)
        stage.e.start_operator()
        await stage.ready(seconds=HOUR)
        assert stage.evicted() == []


@pytest.mark.parametrize("deed", ["deletes it", "strips its finalizer, too"])
@virtually
async def test_the_policy_that_a_person_deletes_during_a_drain_gives_its_node_back(deed: str) -> None:
    async with scene(*nodes(1, gpus=4), **held()) as stage:
        await draining(stage)
        delete_policy(stage, strip="strips" in deed)
        stage.e.start_operator()
        await stage.released("gpu-1")
        await gone(stage)
        assert (stage.cordoned("gpu-1"), stage.evicted()) == (False, [])


async def gone(stage: Scene) -> None:
    """Until there is no policy any more, and no slot is held."""
    await stage.e.until(lambda: not stage.e.cluster.objects(POLICIES), "the policy gone", HOUR)
    await stage.e.until(lambda: not claims(stage), "the slot given back", 60)


def delete_policy(stage: Scene, *, strip: bool) -> None:
    """kubectl delete; `strip`: and the finalizer is taken off by hand."""
    stage.e.cluster.delete(POLICIES, "pool-b")
    if strip:
        stage.e.cluster.patch(POLICIES, "pool-b", {"metadata": {"finalizers": None}})


# --- after the point of no return ----------------------------------------------------------------------------


@virtually
async def test_a_change_that_came_to_its_end_meanwhile_is_judged_by_its_result_and_not_by_the_clock() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED)
        fence = await stage.fenced("gpu-1", "actuating")
        await away(stage, 24 * HOUR)
        assert virtual_now() > fence.deadline + timedelta(hours=1)
        begun = stage.mark()
        stage.e.start_operator()
        await stage.ready(seconds=60)
        assert [write.call.verb for write in stage.writes(begun, "nodes")] == ["patch"], "given back at once"
        assert stage.writes(begun, "pods") == [], "nothing is restarted"
        assert_as_wanted(stage, MIXED, "gpu-1")


@virtually
async def test_a_cordon_that_was_lifted_meanwhile_is_put_back_before_anything_else() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED)
        await stage.fenced("gpu-1", "actuating")
        await away(stage, 0)
        stage.cordon("gpu-1", on=False)
        begun = stage.mark()
        stage.e.start_operator()
        await stage.ready(seconds=HOUR)
        first = next(write.call.body or {} for write in stage.writes(begun, "nodes"))
        assert first["spec"] == {"unschedulable": True}
        assert not stage.cordoned("gpu-1")


DAMAGE: dict[str, Callable[[Scene], None]] = {
    "the GPUNodes": lambda stage: delete_all(stage, GPUNODES),
    "our ConfigMaps": lambda stage: delete_all(stage, CONFIG_MAPS),
    "the Lease": lambda stage: delete_all(stage, LEASES),
}


def delete_all(stage: Scene, kind: Any) -> None:
    """Every object of a kind, as after a restore from an old backup."""
    for raw in stage.e.cluster.objects(kind):
        metadata = raw["metadata"]
        stage.e.cluster.delete(kind, metadata["name"], metadata.get("namespace"))


@pytest.mark.parametrize("moment", ["fenced", "actuating"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@virtually
async def test_the_fence_alone_is_enough_to_go_on_when_all_else_was_deleted(
    damage: Callable[[Scene], None], moment: str
) -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED)
        await stage.fenced("gpu-1", moment)
        await away(stage, 0)
        damage(stage)
        stage.e.start_operator()
        await stage.ready(seconds=HOUR)
        assert_as_wanted(stage, MIXED, "gpu-1")
        assert claims(stage) == set()


@virtually
async def test_another_layout_that_was_wanted_meanwhile_is_reached_in_the_same_slot() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED)
        await stage.fenced("gpu-1", "actuating")
        await away(stage)
        stage.apply(SINGLE)
        begun = stage.mark()
        stage.e.start_operator()
        await stage.ready(seconds=HOUR)
        assert_as_wanted(stage, SINGLE, "gpu-1")
        patches = [write.call.body or {} for write in stage.writes(begun, "nodes")]
        assert all("unschedulable" not in (body.get("spec") or {}) for body in patches[:-1])


@virtually
async def test_a_policy_that_a_person_deleted_meanwhile_goes_when_its_node_is_proven() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED)
        await stage.fenced("gpu-1", "actuating")
        await away(stage)
        delete_policy(stage, strip=False)
        stage.e.start_operator()
        await gone(stage)
        assert stage.fence("gpu-1") is None
        assert not stage.cordoned("gpu-1")


@virtually
async def test_a_node_whose_policy_is_gone_finalizer_and_all_stays_cordoned_until_another_one_owns_it() -> (
    None
):
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED)
        await stage.fenced("gpu-1", "actuating")
        await away(stage)
        delete_policy(stage, strip=True)
        stage.e.start_operator()
        await stage.reason("gpu-1", "OrphanFence")
        assert (stage.cordoned("gpu-1"), claims(stage)) == (True, {"gpu-1"})
        stage.apply(FULL, "pool-x")
        await stage.ready("pool-x", seconds=HOUR)
        assert_as_wanted(stage, FULL, "gpu-1", owner="pool-x")


# --- when it is done -----------------------------------------------------------------------------------------


@virtually
async def test_a_cordon_that_a_person_set_after_ours_was_lifted_stays() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(SLICED)
        await stage.fenced("gpu-1", "actuating")
        await stage.released("gpu-1")
        await away(stage, 0)
        assert claims(stage) == {"gpu-1"}, "nobody has given the slot back yet"
        stage.cordon("gpu-1")
        stage.e.start_operator()
        await stage.ready(seconds=HOUR)
        await stage.e.until(lambda: not claims(stage), "the slot given back", 60)
        assert stage.cordoned("gpu-1")
