"""The cache (kube/reflector.py) follows the server through gaps, restarts and stale news, and asks it at a fair pace (docs/design/faults.md#esr, F9-F12)."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hack.sim.fakecluster import FakeClient
from hack.sim.fakefaults import EVER
from tests.fakes.cluster import FakeCluster
from tests.fakes.running import running
from tests.fakes.virtualtime import virtually

from gpusharing.kube import errors
from gpusharing.kube.client import EVENTS, GPUNODES, JSON, NODES, PODS, ApiRequest, Resource, WatchEvent
from gpusharing.kube.lists import BACKOFF_FIRST
from gpusharing.kube.reflector import Reflector


def node(name: str, **labels: str) -> JSON:
    return {"metadata": {"name": name, "labels": labels}}


def project(raw: JSON) -> tuple[str, tuple[tuple[str, str], ...]]:
    """uid and labels: what a real projection keeps besides other things."""
    return raw["metadata"]["uid"], tuple(sorted((raw["metadata"].get("labels") or {}).items()))


@dataclass
class Watched:
    cluster: FakeCluster
    reflector: Reflector[Any]
    changes: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    listener: Callable[[str], object] = len
    """Called with the name after each change, before the next one is made."""

    async def until(self, *names: str) -> None:
        async with asyncio.timeout(60):
            while set(self.reflector.items) != set(names):
                self.changed.clear()
                await self.changed.wait()

    async def until_labels(self, name: str, **labels: str) -> None:
        async with asyncio.timeout(60):
            while dict(self.reflector.items[name][1]) != labels:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def watched(
    cluster: FakeCluster, resource: Resource = NODES, *, client: FakeClient | None = None, **options: Any
) -> AsyncIterator[Watched]:
    def on_change(name: str) -> None:
        seen.changes.append(name)
        seen.changed.set()
        seen.listener(name)

    client = client or cluster.client("operator")
    reflector = Reflector(client, resource, project, on_change=on_change, **options)
    seen = Watched(cluster, reflector)
    async with running(reflector.run()):
        async with asyncio.timeout(60):
            await reflector.synced.wait()
        yield seen


def kind_of_error(reflector: Reflector[Any]) -> type[object]:
    """NoneType while the cache follows the server."""
    return type(reflector.error)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


async def test_objects_come_change_and_go(cluster: FakeCluster) -> None:
    cluster.add(NODES, node("a"))
    async with watched(cluster) as seen:
        await seen.until("a")
        cluster.add(NODES, node("b"))
        await seen.until("a", "b")
        cluster.patch(NODES, "b", {"metadata": {"labels": {"x": "1"}}})
        await seen.until_labels("b", x="1")
        cluster.delete(NODES, "a")
        await seen.until("b")
    assert seen.changes == ["a", "b", "b", "a"]


@pytest.mark.parametrize(("settings", "pages"), [({"page_size": 10}, 3), ({}, 2)], ids=["10", "not told"])
async def test_a_list_of_many_pages_is_complete(cluster: FakeCluster, settings: dict[str, Any], pages: int) -> None:
    names = [f"n{number}" for number in range(30)]
    for name in names:
        cluster.add(NODES, node(name))
    async with watched(cluster, **settings) as seen:
        assert set(seen.reflector.items) == set(names)
    assert cluster.calls["operator", "list", "nodes"] == pages


async def test_a_change_outside_the_projection_keeps_the_view_and_tells_nobody(cluster: FakeCluster) -> None:
    cluster.add(NODES, node("a"))
    async with watched(cluster) as seen:
        view, changes = seen.reflector.items["a"], list(seen.changes)
        beaten = cluster.patch(NODES, "a", {"status": {"heartbeat": "1"}}, subresource="status")
        await turns()
        assert seen.reflector.version("a") == beaten["metadata"]["resourceVersion"]
        assert seen.reflector.items["a"] is view
        assert seen.changes == changes


async def test_deletions_in_a_410_gap_are_found_by_the_list_that_follows(cluster: FakeCluster) -> None:
    for name in "abc":
        cluster.add(NODES, node(name))
    async with watched(cluster) as seen:
        await turns()
        cluster.swallow(NODES, 2)
        cluster.delete(NODES, "a")
        cluster.delete(NODES, "b")
        cluster.expire()
        await seen.until("c")
    assert sorted(seen.changes[3:]) == ["a", "b"]


async def test_delete_and_recreate_in_a_gap_gives_the_new_object(cluster: FakeCluster) -> None:
    cluster.add(NODES, node("a", x="old"))
    async with watched(cluster) as seen:
        await turns()
        cluster.swallow(NODES, 2)
        cluster.delete(NODES, "a")
        new = cluster.add(NODES, node("a", x="new"))
        cluster.expire()
        await seen.until_labels("a", x="new")
        assert seen.reflector.items["a"][0] == new["metadata"]["uid"]


async def test_a_late_word_of_an_older_objects_end_does_not_remove_the_new_one_of_its_name(
    cluster: FakeCluster,
) -> None:
    cluster.add(NODES, node("a", x="old"))
    async with watched(cluster) as seen:
        await turns()
        cluster.delete(NODES, "a")
        seen.reflector.accept(cluster.add(NODES, node("a", x="new")))
        seen.changes.clear()
        await turns()
        assert dict(seen.reflector.items["a"][1]) == {"x": "new"}
        assert seen.changes == [], "nor is it told as gone and come again"


async def test_swallowed_events_are_healed_by_the_next_list(cluster: FakeCluster) -> None:
    cluster.add(NODES, node("a"))
    cluster.add(NODES, node("b"))
    async with watched(cluster, relist_after=0.05) as seen:
        cluster.swallow(NODES, 3)
        cluster.patch(NODES, "a", {"metadata": {"labels": {"x": "1"}}})
        cluster.delete(NODES, "b")
        cluster.add(NODES, node("c"))
        await seen.until("a", "c")
        await seen.until_labels("a", x="1")


async def test_a_list_from_the_past_does_not_turn_the_cache_back(cluster: FakeCluster) -> None:
    old = cluster.add(NODES, node("a"))
    async with watched(cluster) as seen:
        cluster.patch(NODES, "a", {"metadata": {"labels": {"x": "1"}}})
        await seen.until_labels("a", x="1")
        seen.reflector.accept(old)
        assert dict(seen.reflector.items["a"][1]) == {"x": "1"}


async def test_the_answer_to_our_write_is_in_the_cache_at_once(cluster: FakeCluster) -> None:
    cluster.add(NODES, node("a"))
    async with watched(cluster) as seen:
        answer = cluster.patch(NODES, "a", {"metadata": {"labels": {"x": "1"}}})
        seen.reflector.accept(answer)
        assert seen.reflector.version("a") == answer["metadata"]["resourceVersion"]
        assert dict(seen.reflector.items["a"][1]) == {"x": "1"}
        await turns()
        assert seen.changes.count("a") == 2


async def test_a_late_answer_does_not_bring_a_deleted_object_back(cluster: FakeCluster) -> None:
    cluster.add(NODES, node("a"))
    async with watched(cluster) as seen:
        answer = cluster.patch(NODES, "a", {"metadata": {"labels": {"x": "1"}}})
        cluster.delete(NODES, "a")
        await seen.until()
        seen.reflector.accept(answer)
        assert not seen.reflector.items


def test_late_answers_are_told_by_the_last_1024_objects_that_were_deleted(cluster: FakeCluster) -> None:
    reflector = Reflector(cluster.client("operator"), NODES, project)
    late = [{"metadata": {"name": f"n{i}", "uid": f"u{i}", "resourceVersion": "5"}} for i in range(1025)]
    for answer in late:
        reflector.accept(answer)
        reflector.drop(answer["metadata"]["name"])
    for answer in late:
        reflector.accept(answer)
    assert set(reflector.items) == {"n0"}, "the first one is forgotten by now"


async def test_what_we_created_after_the_moment_of_a_list_survives_that_list(cluster: FakeCluster) -> None:
    cluster.add(NODES, node("a"))
    cluster.add(NODES, node("b"))
    reflector = Reflector(cluster.client("operator"), NODES, project, page_size=1)
    created: list[JSON] = []

    def create_meanwhile(_: JSON) -> Any:
        if not created:
            created.append(cluster.add(NODES, node("c")))
            reflector.accept(created[0])
        return project(_)

    reflector._project = create_meanwhile
    async with running(reflector.run()):
        await reflector.synced.wait()
        assert set(reflector.items) == {"a", "b", "c"}


async def test_an_object_may_leave_the_selection_and_come_back(cluster: FakeCluster) -> None:
    cluster.add(NODES, node("a", pool="b"))
    async with watched(cluster, label_selector="pool=b") as seen:
        await seen.until("a")
        cluster.patch(NODES, "a", {"metadata": {"labels": {"pool": "c"}}})
        await seen.until()
        cluster.patch(NODES, "a", {"metadata": {"labels": {"pool": "b"}}})
        await seen.until("a")


async def test_pods_of_all_namespaces_are_told_apart(cluster: FakeCluster) -> None:
    for namespace in ("x", "y"):
        cluster.add(PODS, {"metadata": {"name": "p", "namespace": namespace}})
    async with watched(cluster, PODS) as seen:
        await seen.until("x/p", "y/p")
        cluster.delete(PODS, "p", "x")
        await seen.until("y/p")
    async with watched(cluster, PODS, namespace="y") as seen:
        await seen.until("p")


async def test_a_server_that_was_away_is_followed_again(cluster: FakeCluster) -> None:
    cluster.add(NODES, node("a"))
    async with watched(cluster) as seen:
        cluster.faults.fail("watch", NODES, errors.Unavailable("connection refused"), times=2)
        cluster.close_watches()
        await turns()
        assert kind_of_error(seen.reflector) is errors.Unavailable
        cluster.add(NODES, node("b"))
        await seen.until("a", "b")
        assert kind_of_error(seen.reflector) is type(None)
    assert cluster.calls["operator", "list", "nodes"] == 1


async def test_a_missing_right_is_shown_and_the_list_tried_again(cluster: FakeCluster) -> None:
    cluster.faults.fail("list", NODES, errors.Forbidden("not allowed to list nodes"))
    cluster.add(NODES, node("a"))
    reflector = Reflector(cluster.client("operator"), NODES, project)
    async with running(reflector.run()):
        await turns()
        assert kind_of_error(reflector) is errors.Forbidden
        assert not reflector.synced.is_set()
        async with asyncio.timeout(60):
            await reflector.synced.wait()
        assert kind_of_error(reflector) is type(None)


async def test_an_error_without_words_is_told_by_its_name(cluster: FakeCluster) -> None:
    errors_told: list[str] = []
    cluster.faults.fail("list", NODES, errors.Unavailable(""))
    reflector = Reflector(cluster.client("operator"), NODES, project, on_error=errors_told.append)
    async with running(reflector.run()):
        await turns()
        assert errors_told == ["Unavailable('')"]


async def test_events_and_bookmarks_are_signs_of_life(cluster: FakeCluster) -> None:
    now = [100.0]
    async with watched(cluster, clock=lambda: now[0]) as seen:
        await turns()
        assert seen.reflector.last_contact == 100.0
        now[0] = 150.0
        cluster.send_bookmarks()
        await turns()
        assert seen.reflector.last_contact == 150.0
        now[0] = 160.0
        cluster.add(NODES, node("a"))
        await seen.until("a")
        assert seen.reflector.last_contact == 160.0


async def test_cancelling_closes_the_watch(cluster: FakeCluster) -> None:
    async with watched(cluster):
        await turns()
        assert len(cluster.store.watching[NODES]) == 1
    assert not cluster.store.watching[NODES]


@virtually
async def test_caches_that_begin_together_do_not_list_again_together() -> None:
    cluster = FakeCluster()
    listed: list[float] = []

    class Timed(FakeClient):
        async def call(self, request: ApiRequest) -> JSON:
            listed.append(asyncio.get_running_loop().time())
            return await super().call(request)

    caches = [Reflector(Timed(cluster, "operator"), NODES, project) for _ in range(10)]
    tasks = [asyncio.create_task(cache.run()) for cache in caches]
    await asyncio.sleep(800)
    again = sorted(listed)[10:20]
    assert again[0] >= 1600.0
    assert again[-1] - again[0] > 30.0, "over two minutes"
    for task in tasks:
        task.cancel()


@virtually
async def test_a_kind_that_is_uninstalled_leaves_nothing_behind() -> None:
    cluster = FakeCluster()
    cluster.add(GPUNODES, node("a"))
    told: list[str] = []
    now = [0.0]
    client = cluster.client("operator")
    reflector = Reflector(client, GPUNODES, project, on_change=told.append, clock=lambda: now[0])
    async with running(reflector.run()):
        await reflector.synced.wait()
        cluster.uninstall(GPUNODES)
        for now[0], known in ((0.0, {"a"}), (29.9, {"a"}), (30.0, set())):
            await asyncio.sleep(100)  # it asks again meanwhile, by the same time
            assert set(reflector.items) == known
        assert told == ["a", "a"]
        cluster.uninstalled.clear()
        cluster.add(GPUNODES, node("b"))
        await asyncio.sleep(60)
        assert set(reflector.items) == {"b"}


@virtually
async def test_a_404_without_a_word_from_discovery_is_not_believed() -> None:
    """An API server that has just started does not know its custom resources yet."""
    cluster = FakeCluster()
    cluster.add(NODES, node("a"))
    reflector = Reflector(cluster.client("operator"), NODES, project)
    async with running(reflector.run()):
        await reflector.synced.wait()
        cluster.faults.fail("list", NODES, errors.NotFound("404 page not found"), times=5)
        cluster.faults.fail("watch", NODES, errors.NotFound("404 page not found"), times=5)
        cluster.close_watches()
        await asyncio.sleep(100)
        assert set(reflector.items) == {"a"}


@virtually
async def test_a_quiet_kind_without_bookmarks_is_followed_without_an_error_and_without_a_gap() -> None:
    cluster = FakeCluster()
    errors_told: list[str] = []
    reflector = Reflector(
        cluster.client("operator"), EVENTS, project, on_error=errors_told.append, relist_after=86_400.0
    )
    async with running(reflector.run()):
        await asyncio.sleep(3600)
        assert errors_told == [""], "told once that it can be followed, and of no error since"
        assert 55 <= cluster.calls["operator", "watch", "events"] <= 65, "one watch ends and the next one begins"
        assert cluster.calls["operator", "list", "events"] == 1


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

    async with running(Reflector(Ending(cluster, "operator"), NODES, project).run()):
        await asyncio.sleep(60)
        assert 3 <= len(begun) <= 12


@virtually
async def test_a_server_that_forgets_our_place_again_and_again_is_listed_at_a_slow_pace() -> None:
    """Each watch brings an event first: it must not count as progress."""
    cluster = FakeCluster()
    cluster.add(NODES, node("a"))

    class Forgetful(FakeClient):
        async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
            yield WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "2"}})
            raise errors.Expired("too old resource version")

    async with running(Reflector(Forgetful(cluster, "operator"), NODES, project).run()):
        await asyncio.sleep(60)
        assert 3 <= cluster.calls["operator", "list", "nodes"] <= 12


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
    async with running(Reflector(Brief(cluster, "operator"), NODES, project).run()):
        await asyncio.sleep(10)
        assert [later - earlier for earlier, later in pairwise(begun)] == pytest.approx([1.5] * 6)


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

    async with running(Reflector(Forgetful(cluster, "operator"), NODES, project).run()):
        await asyncio.sleep(5 * 60 + 45)
        first, *_, last = [later - earlier - 60 for earlier, later in pairwise(begun)]
        assert BACKOFF_FIRST / 2 <= first <= BACKOFF_FIRST * 3 / 2
        assert last >= BACKOFF_FIRST * 8 / 2, "after the fourth or fifth"


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
