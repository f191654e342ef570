"""Budgets that the server has not listed yet are waited for; budgets that it refuses to list are a trouble."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER, SILENCE, Silence
from tests.build import at, empty_since
from tests.fakes.slow import SlowClient
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.objects import node, pdb, pod
from tests.wording import lacks

from gpusharing.kube.client import NODES, PDBS, PODS
from gpusharing.kube.errors import HeldBack, KubeError, Throttled, Unavailable
from gpusharing.kube.fanout import Workers
from gpusharing.kube.nodepods import PATIENCE, Budgets
from gpusharing.planning.snapshot.podviews import PdbView


@asynccontextmanager
async def budgets(seconds: float = 0.0) -> AsyncIterator[tuple[Budgets, FakeCluster]]:
    cluster, workers = FakeCluster(), Workers(2)
    cluster.add(PDBS, pdb())
    yield Budgets(SlowClient(cluster.client("operator"), seconds), workers), cluster
    await workers.close()


async def each_second(stage: Budgets, count: int) -> list[tuple[PdbView, ...] | str | None]:
    found = []
    for _ in range(count):
        found.append(await stage.find())
        await asyncio.sleep(1)
    return found


@virtually
async def test_an_answer_on_its_way_is_no_trouble_and_counts_when_it_is_there() -> None:
    async with budgets(5.0) as (stage, _):
        found = await each_second(stage, 8)
        assert set(found[:4]) == {None}
        assert isinstance(found[-1], tuple)
        assert [row.name for row in found[-1]] == ["llm"]


@virtually
async def test_an_old_list_counts_no_more() -> None:
    async with budgets() as (stage, cluster):
        assert isinstance(await stage.find(), tuple)
        cluster.faults.fail("list", PDBS, SILENCE, times=EVER)
        await asyncio.sleep(15.0)
        assert isinstance(await stage.find(), tuple)
        await asyncio.sleep(0.1)
        assert await stage.find() is None


@virtually
async def test_a_list_counts_for_two_minutes_while_the_server_asks_us_to_wait_for_the_next() -> None:
    async with budgets() as (stage, cluster):
        assert isinstance(await stage.find(), tuple)
        cluster.faults.fail("list", PDBS, Throttled("slow down", 30.0))
        await asyncio.sleep(60)
        assert isinstance(await stage.find(), tuple)
        cluster.faults.fail("list", PDBS, HeldBack("not sent", 30.0))
        await asyncio.sleep(60)
        assert isinstance(await stage.find(), tuple)
        cluster.faults.fail("list", PDBS, Throttled("slow down", 30.0))
        await asyncio.sleep(1)
        assert await stage.find() == "the PodDisruptionBudgets cannot be listed: slow down"
        assert isinstance(await stage.find(), tuple)
        cluster.faults.fail("list", PDBS, Unavailable("502"))
        await asyncio.sleep(16)
        assert await stage.find() == "the PodDisruptionBudgets cannot be listed: 502"


@virtually
async def test_what_the_server_said_stands_while_it_is_asked_again() -> None:
    async with budgets(5.0) as (stage, cluster):
        sick = cluster.faults.fail("list", PDBS, Unavailable("502"), times=EVER)
        said = await each_second(stage, 30)
        first = next(number for number, words in enumerate(said) if words is not None)
        assert set(said[first:]) == {"the PodDisruptionBudgets cannot be listed: 502"}
        sick.lift()
        assert isinstance((await each_second(stage, 12))[-1], tuple)


@virtually
async def test_an_error_of_long_ago_is_not_told_again() -> None:
    async with budgets() as (stage, cluster):
        cluster.faults.fail("list", PDBS, Unavailable("502"))
        assert isinstance(await stage.find(), str)
        cluster.faults.fail("list", PDBS, SILENCE)
        await asyncio.sleep(PATIENCE + 1)
        assert await stage.find() is None


@virtually
async def test_a_list_that_may_not_be_sent_is_waited_for_half_a_minute() -> None:
    async with budgets() as (stage, cluster):
        cluster.faults.fail("list", PDBS, HeldBack("not sent", 60.0), times=EVER)
        assert await stage.find() is None
        await asyncio.sleep(PATIENCE)
        assert await stage.find() is None
        await asyncio.sleep(1)
        assert not lacks(await stage.find(), "PodDisruptionBudgets", "30 s")


@virtually
async def test_a_refusal_stands_while_nothing_may_be_sent() -> None:
    async with budgets() as (stage, cluster):
        cluster.faults.fail("list", PDBS, Unavailable("502"))
        await stage.find()
        cluster.faults.fail("list", PDBS, HeldBack("not sent", 60.0), times=EVER)
        for _ in range(5):
            await asyncio.sleep(PATIENCE / 2)
            assert await stage.find() == "the PodDisruptionBudgets cannot be listed: 502"


@virtually
async def test_a_node_keeps_what_was_seen_of_it_until_its_budgets_are_known() -> None:
    async with gathering((PDBS, pdb())) as stage:
        empty = await stage.work(0)
        stage.cluster.add(PODS, pod())
        sick = stage.cluster.faults.fail("list", PDBS, SILENCE, times=EVER)
        assert await stage.work(3) == empty
        lists = stage.lists("pods")
        assert await stage.work(6) == empty
        assert stage.lists("pods") == lists, "its pods are known already"
        sick.lift()
        stage.gatherer.pods.forget()
        await asyncio.sleep(11)
        later = await stage.work(12)
        assert ([row.name for row in later.pdbs], later.error) == (["llm"], "")


NO_BUDGETS = {
    "refused": (Unavailable("502"), {"gpu-07": "the PodDisruptionBudgets cannot be listed: 502", "gpu-08": ""}),
    "silent": (SILENCE, {"gpu-08": ""}),
}


@pytest.mark.parametrize(("fault", "told"), NO_BUDGETS.values(), ids=NO_BUDGETS.keys())
@virtually
async def test_budgets_that_cannot_be_listed_keep_only_pods_that_they_may_guard(
    fault: KubeError | Silence, told: Mapping[str, str]
) -> None:
    bare = pod("bare", "gpu-08", spec={"containers": []})
    async with gathering((NODES, node("gpu-08")), (PODS, pod()), (PODS, bare)) as stage:
        stage.cluster.faults.fail("list", PDBS, fault, times=EVER)
        work = (await stage.snapshot(0, frozenset({"gpu-07", "gpu-08"}))).work
        assert {name: one.error for name, one in work.items()} == told
        assert (empty_since(work["gpu-08"]), work["gpu-08"].pdbs) == (at(0), ())
        await stage.gatherer.shared.close()
