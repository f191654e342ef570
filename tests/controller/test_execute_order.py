"""Which nodes are written to first, and how long a plan is carried out."""

import asyncio
from dataclasses import replace

import pytest
from hack.sim.fakefaults import EVER, SILENCE
from tests.build import make_claim, make_fence, make_snapshot
from tests.controller.executing import Claims, Executing, plan_of
from tests.fakes.virtualtime import virtually
from tests.kube.objects import pod

from gpusharing.api.names import Phase
from gpusharing.controller.execute import PLAN_VALID, SHARED_AT_ONCE, SHARED_PATIENCE
from gpusharing.kube.client import (
    CONFIG_MAPS,
    GPUNODES,
    JSON,
    NODES,
    PODS,
    POLICIES,
    ApiRequest,
    KubeClient,
    PassingClient,
)
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import Conflict
from gpusharing.kube.fanout import Fanout
from gpusharing.kube.http import Limits
from gpusharing.planning.snapshot.actions import Actuate, EnsureGPUNode, Evict, SetClaims, SetFinalizer, WriteConfig


async def test_nodes_in_flight_are_written_to_before_others() -> None:
    """Their proofs grow old while a server that asks us to wait admits few calls."""
    stage = Executing()
    stage.add_node("gpu-08")
    plan = plan_of({name: (stage.fence(name),) for name in ("gpu-07", "gpu-08")})
    waiting = replace(plan.verdicts["gpu-07"], phase=Phase.PENDING)
    plan = replace(plan, verdicts={**plan.verdicts, "gpu-07": waiting})
    await stage.executor.execute(plan, make_snapshot([stage.view(), stage.view("gpu-08")]))
    assert [write.call.name for write in stage.cluster.writes] == ["gpu-08", "gpu-07"]


def sent(stage: Executing) -> list[str]:
    """The verbs of the writes about gpu-07 and its pods that have reached the server."""
    return [write.call.verb for write in stage.cluster.writes if write.call.resource in (NODES, PODS)]


def slow_evictions(stage: Executing) -> tuple[Evict, Evict]:
    """Two evictions, each of which the server carries out and answers too late."""
    stage.cluster.faults.fail("evict", PODS, SILENCE, times=EVER, after=True)
    other = stage.cluster.add(PODS, pod("llm-1"))["metadata"]["uid"]
    return stage.eviction, Evict("gpu-07", "team-a", "llm-1", other)


@virtually
async def test_what_goes_on_in_the_background_ends_with_the_next_plan() -> None:
    stage = Executing()
    await stage.run(*slow_evictions(stage))
    await stage.run()
    await asyncio.sleep(60)
    assert sent(stage) == ["evict"]


@virtually
async def test_what_goes_on_in_the_background_ends_with_the_time_of_its_plan_if_no_other_is_made() -> None:
    stage = Executing()
    stage.cluster.faults.limits = Limits(total=PLAN_VALID + 1)
    await stage.run(*slow_evictions(stage))
    await asyncio.sleep(60)
    assert sent(stage) == ["evict"]


def one_slot(client: KubeClient) -> KubeClient:
    return Fanout(client, parallel=1)


@virtually
async def test_an_eviction_that_waited_for_its_slot_is_not_sent_once_there_is_a_newer_plan() -> None:
    stage = Executing(through=one_slot)
    stage.add_node("gpu-08")
    first, other = slow_evictions(stage)
    last = replace(other, node="gpu-08")
    await stage.run_all({"gpu-07": (first,), "gpu-08": (last,)})
    await stage.run_all({"gpu-07": (), "gpu-08": (last,)})
    await asyncio.sleep(Limits().total)
    assert sent(stage) == ["evict"]
    assert stage.executor.workers.busy == set()
    assert (stage.failures(), list(stage.executor.calls.evictions)) == ({}, ["gpu-07"])
    assert stage.told == [("Evict", "EvictionError")]
    await stage.run_all({"gpu-08": (last,)})
    assert sent(stage) == ["evict", "evict"], "the next plan begins it anew"


@pytest.mark.parametrize("wanted", [True, False])
@virtually
async def test_what_takes_nothing_away_may_wait_for_its_slot_as_long_as_the_newest_plan_wants_it(wanted: bool) -> None:
    stage = Executing(through=one_slot)
    stage.add_node("gpu-08")
    first, _ = slow_evictions(stage)
    request = EnsureGPUNode("gpu-08", stage.view("gpu-08").uid, "op-1:quiet:1", quiet=True)
    await stage.run_all({"gpu-07": (first,), "gpu-08": (request,)})
    await stage.run_all({"gpu-07": (), "gpu-08": (request,) if wanted else ()})
    await asyncio.sleep(Limits().total)
    assert bool(stage.cluster.objects(GPUNODES)) == wanted


@pytest.mark.parametrize("wanted", [True, False])
@virtually
async def test_a_shared_write_may_wait_for_its_slot_as_long_as_the_newest_plan_wants_it(wanted: bool) -> None:
    stage = Executing(through=one_slot)
    first, _ = slow_evictions(stage)
    config = WriteConfig({"k": "version: v1"}, "")
    await stage.run(first)
    await stage.run(shared=(config,))
    await stage.run(shared=(config,) if wanted else ())
    await asyncio.sleep(Limits().total)
    assert bool(stage.cluster.objects(CONFIG_MAPS)) == wanted
    assert (stage.failures(), stage.executor.calls.write_error) == ({}, "")


class SlowNode(PassingClient):
    """A client that takes two seconds to read a Node."""

    async def call(self, request: ApiRequest) -> JSON:
        if (request.verb, request.resource) == ("get", NODES):
            await asyncio.sleep(2)
        return await self.client.call(request)


@virtually
async def test_a_node_is_not_actuated_after_a_409_once_there_is_a_newer_plan() -> None:
    stage = Executing(through=SlowNode)
    actuate = Actuate(stage.view(), make_fence(stage="actuating"), {"nvidia.com/mig.config": "all-balanced"})
    stage.cluster.patch(NODES, "gpu-07", {"metadata": {"annotations": {"example.com/x": "1"}}})
    await stage.run(actuate)
    assert sent(stage) == ["patch"], "the server answered 409, and the Node is being read"
    await stage.run()
    await asyncio.sleep(5)
    assert sent(stage) == ["patch"]
    assert (stage.view().fence, stage.failures()) == (None, {})


async def hanging_policies(stage: Executing) -> tuple[SetFinalizer, ...]:
    for number in range(10):
        stage.cluster.add(POLICIES, {"metadata": {"name": f"pool-{number}"}, "spec": {}})
    await stage.read_policies()
    stage.cluster.faults.fail("patch", POLICIES, SILENCE, times=EVER)
    return tuple(SetFinalizer(f"pool-{number}", present=True) for number in range(10))


@virtually
async def test_finalizers_that_hang_are_waited_for_together_and_leave_room_for_the_nodes() -> None:
    stage = Executing()
    finalizers = await hanging_policies(stage)
    actuate = Actuate(stage.view(), make_fence(stage="actuating"), {"nvidia.com/mig.config": "all-balanced"})
    for age in (SHARED_PATIENCE, 0):
        begun = loop_time()
        await stage.run(actuate, shared=finalizers)
        assert loop_time() - begun == age
        assert len(stage.executor.workers.busy) == SHARED_AT_ONCE
    assert sent(stage) == ["patch", "patch"]


@virtually
async def test_a_plan_that_has_grown_old_behind_shared_writes_goes_to_no_node_and_is_made_again_at_once() -> None:
    stage = Executing()
    stage.claims.seconds = 5
    finalizers = await hanging_policies(stage)
    outcome = await stage.run(stage.eviction, shared=(SetClaims({}), *finalizers))
    assert sent(stage) == []
    assert outcome.again == stage.executor.now()
    assert (await stage.run(stage.eviction, shared=finalizers)).done == 1


@pytest.mark.parametrize(("error", "writes"), [(Conflict("changed too often"), 0), (None, 1)])
async def test_without_its_claim_no_node_goes_past_its_point_of_no_return(error: Conflict | None, writes: int) -> None:
    stage = Executing()
    stage.claims.error = error
    actuate = Actuate(stage.view(), make_fence(stage="actuating"), {"nvidia.com/mig.config": "all-balanced"})
    await stage.run(actuate, shared=(SetClaims({"gpu-07": make_claim()}),))
    assert stage.patches() == writes


class SlowPolicies(PassingClient):
    """A client whose writes of policies take longer than a pass waits for them."""

    async def call(self, request: ApiRequest) -> JSON:
        if request.resource == POLICIES and request.verb == "patch":
            await asyncio.sleep(SHARED_PATIENCE + 1)
        return await self.client.call(request)


@virtually
async def test_a_slow_shared_write_that_ends_meanwhile_does_not_stand_for_refused_claims() -> None:
    stage = Executing(through=SlowPolicies, claims=Claims(Conflict("changed too often"), seconds=2))
    stage.cluster.add(POLICIES, {"metadata": {"name": "pool-b"}, "spec": {}})
    await stage.read_policies()
    actuate = Actuate(stage.view(), make_fence(stage="actuating"), {"nvidia.com/mig.config": "all-balanced"})
    shared = (SetFinalizer("pool-b", True), SetClaims({"gpu-07": make_claim()}))
    await stage.run(actuate, shared=shared)
    assert [write.call.resource for write in stage.cluster.writes] == [POLICIES]
