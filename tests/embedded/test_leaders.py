"""Two operators at once: one acts, the other one waits, and takes over with the claims of the first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from hack.embedded import Embedded
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import SLICED, Scene, at_once, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.kube.client import LEASES
from gpusharing.kube.errors import Unavailable
from gpusharing.kube.lease import Timing


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
