"""How fast a cache asks a server again that ends its watches."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hack.sim.fakecluster import FakeClient
from tests.fakes.cluster import FakeCluster
from tests.fakes.virtualtime import virtually
from tests.kube.test_reflector import node, project, turns, watched

from gpusharing.kube import errors
from gpusharing.kube.client import NODES, WatchEvent
from gpusharing.kube.reflector import BACKOFF_FIRST, Reflector


async def test_watches_that_end_at_once_are_not_repeated_in_a_hot_loop() -> None:
    cluster = FakeCluster()
    cluster.faults.fail("watch", NODES, errors.Expired("too old"), times=1000)
    async with watched(cluster):
        await turns(200)
    assert cluster.calls["operator", "watch", "nodes"] <= 3


@virtually
async def test_a_server_that_forgets_our_place_again_and_again_is_listed_at_a_slow_pace() -> None:
    """Each watch brings an event first: it must not count as progress."""
    cluster = FakeCluster()
    cluster.add(NODES, node("a"))

    class Forgetful(FakeClient):
        async def watch(self, *_: Any, **__: Any) -> AsyncIterator[WatchEvent]:
            yield WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "2"}})
            raise errors.Expired("too old resource version")

    task = asyncio.create_task(Reflector(Forgetful(cluster, "operator"), NODES, project).run())
    await asyncio.sleep(60)
    assert 3 <= cluster.calls["operator", "list", "nodes"] <= 12
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
        async def watch(self, *_: Any, **__: Any) -> AsyncIterator[WatchEvent]:
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
