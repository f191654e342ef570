"""The ConfigMap gpusharing-stop stops the operator, whoever owns its other objects (docs/adr/0095-a-stop-that-no-tool-owns.md)."""

import asyncio

import pytest
from hack.sim.fakefaults import EVER
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, MIXED, SLICED, Scene, at_once, gpu_pod, node, nodes, open_scene, pdb
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.kube.client import CONFIG_MAPS, JSON, LEASES, PDBS, PODS, ApiRequest, PassingClient
from gpusharing.kube.errors import Forbidden, Unavailable
from gpusharing.kube.lease import Timing

LEASE = Timing()
STOP = {"metadata": {"name": names.STOP, "namespace": "gpusharing"}}
EXISTS = "ConfigMap gpusharing/gpusharing-stop exists, which stops the operator"
ONE_RENEWAL = LEASE.retry + 0.5


def stop(scene: Scene) -> None:
    scene.e.cluster.add(CONFIG_MAPS, STOP)


def go_on(scene: Scene) -> None:
    scene.e.cluster.delete(CONFIG_MAPS, names.STOP, "gpusharing")


@virtually
async def test_no_node_starts_while_it_exists_and_all_start_once_it_is_deleted() -> None:
    async with open_scene(*nodes(2), serving=FULL, lease=LEASE) as scene:
        stop(scene)
        await asyncio.sleep(ONE_RENEWAL)
        scene.apply(MIXED)
        shown = await scene.reason("gpu-1", "Paused")
        assert shown["message"] == f"{EXISTS}, so no more nodes start a change"
        await asyncio.sleep(300)
        assert not scene.cordoned("gpu-1")
        go_on(scene)
        await scene.ready()


@virtually
async def test_a_policy_with_nothing_to_change_says_that_it_is_stopped() -> None:
    async with open_scene(*nodes(1), serving=FULL, lease=LEASE) as scene:
        assert scene.e.policy("pool-b")["status"]["summary"]["pausedBy"] == ""
        stop(scene)
        await scene.e.until(
            lambda: scene.e.policy("pool-b")["status"]["summary"]["pausedBy"] == EXISTS, "the stop to be shown", 15
        )
        assert scene.e.loop is not None
        assert scene.e.loop.metrics.registry.get_sample_value("gpusharing_stopped") == 1
        accepted = await scene.until_condition("Accepted", "True", "Valid")
        assert accepted["message"].endswith(f"{EXISTS}, so no node starts a change")


@virtually
async def test_a_drain_ends_at_once_and_its_node_is_given_back() -> None:
    workload, budget = SimWorkload("llm", 2), pdb("keep", "llm", minAvailable=1)
    async with open_scene(node("gpu-1"), workloads=[workload], budgets=[budget], serving=FULL, lease=LEASE) as scene:
        await scene.running("llm", 2)
        scene.apply(MIXED, drain={"strandedPods": "Allow"})
        await scene.reason("gpu-1", "PDBInUse")
        before = scene.evicted()
        stop(scene)
        await asyncio.sleep(ONE_RENEWAL)
        scene.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 0}}, "default")
        await scene.released("gpu-1", seconds=15)
        await asyncio.sleep(300)
        assert scene.evicted() == before
        assert not scene.cordoned("gpu-1")


@virtually
async def test_a_policy_that_would_hold_or_finish_its_nodes_gives_them_back_too() -> None:
    async with open_scene(*nodes(1), lease=LEASE) as scene:
        scene.e.cluster.add(PODS, gpu_pod("bare", "gpu-1"))
        evict = {"unmanagedPods": "Evict"}
        await scene.begin(SLICED, drain=evict)
        scene.apply(SLICED, drain=evict, rollout=at_once(1, paused=True, whenPaused="Hold"))
        await scene.reason("gpu-1", "Paused")
        assert scene.cordoned("gpu-1")
        stop(scene)
        await scene.released("gpu-1", seconds=15)
        assert not scene.cordoned("gpu-1")


@virtually
async def test_a_run_that_began_is_finished_proven_and_its_node_uncordoned() -> None:
    async with open_scene(*nodes(2), serving=FULL, lease=LEASE) as scene:
        first = await scene.begin_any(MIXED, stage="actuating", rollout=at_once(1))
        (other,) = {"gpu-1", "gpu-2"} - {first}
        stop(scene)
        await scene.released(first)
        assert scene.labels(first)[names.LABEL_MODE] == "mig"
        assert not scene.cordoned(first)
        assert (await scene.reason(other, "Paused"))["phase"] == "Pending"


@virtually
async def test_it_survives_a_deleted_lease_and_another_leader() -> None:
    async with open_scene(*nodes(1), serving=FULL, lease=LEASE) as scene:
        stop(scene)
        await asyncio.sleep(ONE_RENEWAL)
        scene.e.cluster.delete(LEASES, "gpusharing-operator", "gpusharing")
        scene.apply(MIXED)
        await scene.reason("gpu-1", "Paused")
        await scene.e.kill_operator()
        scene.e.start_operator()
        await asyncio.sleep(300)
        assert not scene.cordoned("gpu-1")
        assert scene.transition("gpu-1")["reason"] == "Paused"


@virtually
async def test_an_operator_that_may_not_read_it_starts_nothing_and_stays_the_leader() -> None:
    async with open_scene(*nodes(1), serving=FULL, lease=LEASE) as scene:
        scene.e.cluster.faults.fail("get", CONFIG_MAPS, Forbidden("no"), times=EVER, identity="operator")
        await asyncio.sleep(ONE_RENEWAL)
        scene.apply(MIXED)
        shown = await scene.reason("gpu-1", "Paused")
        assert not lacks(shown["message"], "may not read whether ConfigMap gpusharing/gpusharing-stop stops it", "no")
        await asyncio.sleep(60)
        assert scene.e.lease is not None
        assert scene.e.lease.is_leader


@pytest.mark.parametrize("seconds", [5, 60])
@virtually
async def test_who_cannot_read_it_for_a_while_goes_by_the_last_answer_and_keeps_the_lease(seconds: int) -> None:
    async with open_scene(*nodes(1), serving=FULL, lease=LEASE) as scene:
        scene.e.cluster.faults.fail("get", CONFIG_MAPS, Unavailable("away"), times=EVER, identity="operator")
        await asyncio.sleep(seconds)
        lease = scene.e.lease
        assert lease is not None
        assert lease.is_leader
        assert lease.stop == ""
        await scene.e.kill_operator()


class Hanging(PassingClient):
    """Never answers whether the stop is there, once `hangs` is set."""

    hangs = False

    async def call(self, request: ApiRequest) -> JSON:
        if self.hangs and request.resource == CONFIG_MAPS and request.name == names.STOP:
            await asyncio.sleep(3600)
        return await self.client.call(request)


@virtually
async def test_a_reading_that_hangs_holds_up_neither_renewals_nor_claims() -> None:
    async with open_scene(*nodes(2), lease=LEASE, start=False) as scene:
        client = Hanging(scene.e.cluster.client("operator"))
        scene.e.start_operator(client)
        await scene.e.until(lambda: scene.e.lease is not None and scene.e.lease.is_leader, "a leader", 60)
        client.hangs = True
        scene.apply(MIXED)
        await scene.ready()
        assert scene.e.lease is not None
        assert scene.e.lease.is_leader


@virtually
async def test_who_cannot_read_it_at_all_leads_as_if_stopped() -> None:
    async with open_scene(*nodes(1), lease=LEASE, start=False) as scene:
        client = Hanging(scene.e.cluster.client("operator"))
        client.hangs = True
        scene.e.start_operator(client)
        await scene.e.until(lambda: scene.e.lease is not None and scene.e.lease.is_leader, "a leader", 120)
        assert scene.e.lease is not None
        assert scene.e.lease.stop == "the operator cannot read whether ConfigMap gpusharing/gpusharing-stop stops it"
