"""How fast a cache asks a server again that ends its watches."""

import asyncio
from collections.abc import AsyncGenerator
from itertools import pairwise

import pytest
from hack.sim.fakecluster import FakeClient
from hack.sim.fakefaults import EVER
from tests.fakes.cluster import FakeCluster
from tests.fakes.virtualtime import virtually
from tests.kube.test_reflector import kind_of_error, node, project, turns, watched

from gpusharing.kube import errors
from gpusharing.kube.client import EVENTS, JSON, NODES, ApiRequest, WatchEvent
from gpusharing.kube.lists import BACKOFF_FIRST
from gpusharing.kube.reflector import Reflector


async def test_watches_that_end_at_once_are_not_repeated_in_a_hot_loop() -> None:
    cluster = FakeCluster()
    cluster.faults.fail("watch", NODES, errors.Expired("too old"), times=1000)
    async with watched(cluster):
        await turns(200)
    assert cluster.calls["operator", "watch", "nodes"] <= 3


@virtually
async def test_a_server_that_ends_every_watch_at_once_is_asked_at_a_slow_pace() -> None:
    cluster = FakeCluster()
    begun: list[float] = []

    class Ending(FakeClient):
        async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
            begun.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.01)
            no_events: tuple[WatchEvent, ...] = ()
            for event in no_events:
                yield event

    task = asyncio.create_task(Reflector(Ending(cluster, "operator"), NODES, project).run())
    await asyncio.sleep(60)
    assert 3 <= len(begun) <= 12
    task.cancel()


@virtually
async def test_a_server_that_forgets_our_place_again_and_again_is_listed_at_a_slow_pace() -> None:
    """Each watch brings an event first: it must not count as progress."""
    cluster = FakeCluster()
    cluster.add(NODES, node("a"))

    class Forgetful(FakeClient):
        async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
            yield WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "2"}})
            raise errors.Expired("too old resource version")

    task = asyncio.create_task(Reflector(Forgetful(cluster, "operator"), NODES, project).run())
    await asyncio.sleep(60)
    assert 3 <= cluster.calls["operator", "list", "nodes"] <= 12
    task.cancel()


@virtually
async def test_a_server_that_is_away_is_asked_after_half_a_second_and_then_at_least_every_half_minute() -> None:
    cluster = FakeCluster()
    cluster.faults.fail("list", NODES, errors.Unavailable("502"), times=EVER)
    asked: list[list[float]] = []

    class Timed(FakeClient):
        times: list[float]

        async def call(self, request: ApiRequest) -> JSON:
            self.times.append(asyncio.get_running_loop().time())
            return await super().call(request)

    tasks = []
    for _ in range(20):
        client = Timed(cluster, "operator")
        client.times = []
        asked.append(client.times)
        tasks.append(asyncio.create_task(Reflector(client, NODES, project).run()))
    await asyncio.sleep(200)
    pauses = [[later - earlier for earlier, later in pairwise(times)] for times in asked]
    assert 0.25 <= min(first for first, *_ in pauses) < max(first for first, *_ in pauses) <= 0.75
    assert 30.0 < max(map(max, pauses)) <= 45.0
    for task in tasks:
        task.cancel()


@virtually
async def test_a_machine_that_slept_past_the_time_of_the_next_list_lists_at_once() -> None:
    cluster, now = FakeCluster(), [0.0]
    async with watched(cluster, clock=lambda: now[0]):
        await asyncio.sleep(1)
        now[0] += 1000.0
        cluster.close_watches()
        await asyncio.sleep(0.1)
        assert [cluster.calls["operator", verb, "nodes"] for verb in ("list", "watch")] == [2, 2]


@virtually
async def test_a_watch_of_more_than_a_second_that_brought_something_is_followed_by_the_next_at_once() -> None:
    cluster = FakeCluster()

    class Brief(FakeClient):
        async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
            begun.append(asyncio.get_running_loop().time())
            yield WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "2"}})
            await asyncio.sleep(1.5)

    begun: list[float] = []
    task = asyncio.create_task(Reflector(Brief(cluster, "operator"), NODES, project).run())
    await asyncio.sleep(10)
    assert [later - earlier for earlier, later in pairwise(begun)] == pytest.approx([1.5] * 6)
    task.cancel()


@pytest.mark.parametrize("error", [errors.Expired("too old"), errors.Unavailable("502")], ids=["410", "502"])
@virtually
async def test_a_server_that_fails_after_each_long_watch_is_asked_again_after_a_growing_pause(
    error: errors.KubeError,
) -> None:
    """A 410 comes to all caches at once, after a watch as long as any: their lists must not come at once, too."""
    cluster = FakeCluster()
    begun: list[float] = []

    class Forgetful(FakeClient):
        async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
            begun.append(asyncio.get_running_loop().time())
            yield WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "2"}})
            await asyncio.sleep(60)
            raise error

    task = asyncio.create_task(Reflector(Forgetful(cluster, "operator"), NODES, project).run())
    await asyncio.sleep(5 * 60 + 45)
    first, *_, last = [later - earlier - 60 for earlier, later in pairwise(begun)]
    assert BACKOFF_FIRST / 2 <= first <= BACKOFF_FIRST * 3 / 2
    assert last >= BACKOFF_FIRST * 8 / 2, "after the fourth or fifth"
    task.cancel()


@virtually
async def test_a_place_that_the_server_has_forgotten_is_no_error_to_tell() -> None:
    told: list[str] = []
    cluster = FakeCluster()
    async with watched(cluster, on_error=told.append):
        for _ in range(3):
            cluster.expire()
            await asyncio.sleep(60)
        assert cluster.calls["operator", "list", "nodes"] == 4
    assert told == [""]


@virtually
async def test_a_list_that_fails_after_the_server_has_forgotten_our_place_is_an_error() -> None:
    cluster = FakeCluster()
    async with watched(cluster) as seen:
        cluster.faults.fail("list", NODES, errors.Unavailable("503"), times=EVER)
        cluster.expire()
        await asyncio.sleep(60)
        assert kind_of_error(seen.reflector) is errors.Unavailable


@virtually
async def test_a_watch_without_bookmarks_that_goes_on_ends_the_error_of_the_one_that_broke() -> None:
    cluster, told = FakeCluster(), list[str]()
    async with watched(cluster, EVENTS, namespace="x", on_error=told.append) as seen:
        cluster.faults.fail("watch", EVENTS, errors.Unavailable("503"))
        await asyncio.sleep(1)
        assert kind_of_error(seen.reflector) is errors.Unavailable
        await asyncio.sleep(3600)
        assert seen.reflector.error is None
    assert told == ["", "503", ""]
