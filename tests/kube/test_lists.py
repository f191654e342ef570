"""A list survives its pages, and the cache follows the server meanwhile (docs/adr/0061). In virtual time."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hack.sim.fakecluster import FakeClient
from hack.sim.fakefaults import EVER, SILENCE
from tests.fakes.cluster import FakeCluster
from tests.fakes.running import running
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.objects import pdb, pod
from tests.kube.test_reflector import node, project, watched

from gpusharing.kube import errors
from gpusharing.kube.client import JSON, NODES, PDBS, PODS, ApiRequest, WatchEvent
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import Expired, Forbidden, HeldBack, KubeError, ServerAway, Throttled, Unavailable
from gpusharing.kube.fanout import Fanout
from gpusharing.kube.gather import count_pending
from gpusharing.kube.lists import list_of, pages_of
from gpusharing.kube.reflector import Reflector
from gpusharing.planning.snapshot.views import OLD_VIEW

FLEET = 5000


class Slow(FakeClient):
    def __init__(
        self, cluster: FakeCluster, seconds: Callable[[int], float] = lambda _: 0.05, fails: float = 0.0
    ) -> None:
        """`seconds`: for a page of so many objects. `fails`: the share of pages that fail."""
        super().__init__(cluster, "operator")
        self.seconds, self.share, self.random = seconds, fails, Random(7)
        self.sizes: list[int] = []

    async def call(self, request: ApiRequest) -> JSON:
        page = await super().call(request)
        if request.verb == "list":
            self.sizes.append(len(page["items"]))
            await asyncio.sleep(self.seconds(len(page["items"])))
            if self.random.random() < self.share:
                raise errors.Unavailable("503")
        return page


def fleet(count: int = FLEET) -> FakeCluster:
    cluster = FakeCluster()
    for number in range(count):
        cluster.add(NODES, node(f"gpu-{number:04}"))
    return cluster


async def seconds_to_start(cache: Reflector[Any]) -> float:
    """How long it takes until the first list is complete, an hour at most."""
    began = asyncio.get_running_loop().time()
    async with running(cache.run()), asyncio.timeout(3600):
        await cache.synced.wait()
    return asyncio.get_running_loop().time() - began


def assert_equal(cache: Reflector[Any], cluster: FakeCluster) -> None:
    assert dict(cache.items) == {raw["metadata"]["name"]: project(raw) for raw in cluster.objects(NODES)}


@virtually
async def test_5000_nodes_are_listed_in_minutes_when_one_page_in_twenty_fails() -> None:
    cluster = fleet()
    client = Slow(cluster, fails=0.05)
    cache = Reflector(client, NODES, project)
    assert await seconds_to_start(cache) < 120
    assert 200 < len(client.sizes) < 230, "a page that failed is asked for again, and no other"
    assert_equal(cache, cluster)


@virtually
async def test_a_cache_is_never_blind_while_one_page_in_fifty_fails() -> None:
    cluster = fleet()
    late = []
    async with watched(cluster, client=Slow(cluster, fails=0.02)) as seen:
        for number in range(720):
            labels = {"number": str(number)}
            cluster.patch(NODES, "gpu-0007", {"metadata": {"labels": labels}})
            await asyncio.sleep(5)
            if dict(seen.reflector.items["gpu-0007"][1]) != labels:
                late.append(number)
            assert seen.reflector.age < 10
    assert not late
    assert cluster.calls["operator", "list", "nodes"] > 5 * 200, "it listed again every ten minutes"


@virtually
async def test_pages_that_are_slow_to_come_become_larger() -> None:
    client = Slow(fleet(), lambda _: 1.6)
    assert await seconds_to_start(Reflector(client, NODES, project)) < 100
    assert client.sizes[:4] == [25, 50, 100, 100]
    assert max(client.sizes) == 100


@pytest.mark.parametrize("seconds", [0.9, 4.1], ids=["quick", "nearly too slow"])
@virtually
async def test_other_pages_keep_their_size(seconds: float) -> None:
    client = Slow(fleet(100), lambda _: seconds)
    await seconds_to_start(Reflector(client, NODES, project))
    assert client.sizes == [25] * 4


@virtually
async def test_after_a_page_that_failed_they_are_small_again() -> None:
    cluster = fleet(400)
    client = Slow(cluster, lambda size: 1.6 if size < 100 else 2.0)
    cache = Reflector(client, NODES, project)

    def fail_once(size: int) -> float:
        if size == 100 and client.sizes.count(100) == 1:
            raise errors.Unavailable("no answer within 10 s")
        return 1.6

    client.seconds = fail_once
    await seconds_to_start(cache)
    assert client.sizes[:5] == [25, 50, 100, 25, 50]
    assert_equal(cache, cluster)


@pytest.mark.parametrize("gives_rest", [True, False], ids=["with a token for the rest", "without one"])
@virtually
async def test_a_list_that_takes_longer_than_its_tokens_live_is_complete_in_the_end(gives_rest: bool) -> None:
    cluster = fleet(1000)
    cluster.lists.gives_rest = gives_rest
    client = Slow(cluster, lambda size: min(size, 100) * 0.4)
    cache = Reflector(client, NODES, project)

    async def change() -> None:
        for number in range(10, 900, 10):
            await asyncio.sleep(4)
            cluster.delete(NODES, f"gpu-{number:04}")
            cluster.delete(NODES, f"gpu-{999 - number:04}")
            cluster.patch(NODES, f"gpu-{number + 1:04}", {"metadata": {"labels": {"x": "1"}}})
            cluster.add(NODES, node(f"gpu-{number:04}-new"))
            if number % 50 == 0:
                cluster.add(NODES, node(f"gpu-{number:04}"))

    async with running(change()):
        assert 300 < await seconds_to_start(cache) < 450
    assert_equal(cache, cluster)
    assert max(client.sizes) <= 25 if gives_rest else sum(size > 25 for size in client.sizes) == 1


@virtually
async def test_a_list_that_is_refused_with_410_at_its_first_page_begins_anew_in_small_pages() -> None:
    cluster = fleet(100)
    cluster.faults.fail("list", NODES, errors.Expired("too old"))
    client = Slow(cluster)
    await seconds_to_start(Reflector(client, NODES, project))
    assert client.sizes == [25] * 4


@virtually
async def test_a_server_that_forgets_every_list_is_not_asked_in_a_hot_loop() -> None:
    class Forgetful(FakeClient):
        async def call(self, request: ApiRequest) -> JSON:
            if "continue" in request.query:
                self.cluster.calls["operator", "list", "nodes"] += 1
                raise errors.Expired("too old", rest="another")
            return await super().call(request)

    cluster = fleet(100)
    async with running(Reflector(Forgetful(cluster, "operator"), NODES, project).run()):
        await asyncio.sleep(60)
        assert 3 <= cluster.calls["operator", "list", "nodes"] <= 30


@virtually
async def test_a_list_begins_anew_when_the_watch_beside_it_has_missed_something() -> None:
    cluster = fleet(200)
    cache = Reflector(Slow(cluster, lambda _: 5.0), NODES, project)

    async def forget() -> None:
        await asyncio.sleep(12)
        cluster.swallow(NODES, 2)
        cluster.delete(NODES, "gpu-0003")
        cluster.patch(NODES, "gpu-0004", {"metadata": {"labels": {"x": "1"}}})
        cluster.store.compact()

    forgetting = asyncio.create_task(forget())
    assert await seconds_to_start(cache) > 50, "8 pages of 5 s, and three of the first list"
    assert_equal(cache, cluster)
    await forgetting


@virtually
async def test_while_a_later_list_fails_the_old_cache_is_kept_and_followed() -> None:
    cluster = fleet(100)
    told: list[str] = []
    async with watched(cluster, client=Slow(cluster), on_error=told.append) as seen:
        cluster.faults.fail("list", NODES, errors.Unavailable("503"), times=EVER)
        await asyncio.sleep(3600)
        cluster.delete(NODES, "gpu-0003")
        cluster.patch(NODES, "gpu-0004", {"metadata": {"labels": {"x": "1"}}})
        await asyncio.sleep(1)
        assert_equal(seen.reflector, cluster)
        assert seen.reflector.error is None
        assert seen.reflector.age < 75
    assert set(told) == {""}


@virtually
async def test_why_the_first_list_does_not_go_on_is_told_whatever_the_watch_brings() -> None:
    cluster = fleet(100)
    told: list[str] = []
    cache = Reflector(Slow(cluster), NODES, project, on_error=told.append)
    async with running(cache.run()):
        await asyncio.sleep(0.08)
        failing = cluster.faults.fail("list", NODES, errors.Unavailable("503"), times=EVER)
        await asyncio.sleep(600)
        assert str(cache.error) == "503"
        failing.lift()
        await asyncio.sleep(60)
        assert cache.synced.is_set()
        assert told == ["", "503", ""]


@virtually
async def test_more_deletions_than_are_remembered_do_not_come_back_by_a_page_that_is_under_way() -> None:
    cluster = fleet(100)
    cache = Reflector(Slow(cluster, lambda _: 10.0), NODES, project, remembered=8)

    async def delete() -> None:
        await asyncio.sleep(25)
        for number in range(40, 100):
            cluster.delete(NODES, f"gpu-{number:04}")

    deleting = asyncio.create_task(delete())
    await seconds_to_start(cache)
    await deleting
    assert_equal(cache, cluster)


@virtually
async def test_a_cache_is_as_old_as_the_last_sign_that_it_is_up_to_date() -> None:
    cluster = fleet(10)
    cache = Reflector(cluster.client("operator"), NODES, project)
    assert cache.age == float("inf")
    async with watched(cluster) as seen:
        await asyncio.sleep(59)
        assert 58 < seen.reflector.age < 60
        await asyncio.sleep(2)
        assert seen.reflector.age < 2, "a bookmark came"
        cluster.faults.fail("watch", NODES, SILENCE, times=EVER)
        failing = cluster.faults.fail("list", NODES, SILENCE, times=EVER)
        cluster.close_watches()
        await asyncio.sleep(500)
        assert seen.reflector.age > 500
        failing.lift()
        await asyncio.sleep(60)
        assert seen.reflector.age < 60, "a list is as good, for the moment when it was asked for"


@virtually
async def test_a_cache_that_hears_nothing_is_listed_again_after_two_minutes() -> None:
    cluster = fleet(10)
    async with watched(cluster, client=Slow(cluster)):
        cluster.faults.fail("watch", NODES, SILENCE, times=EVER)
        cluster.close_watches()
        await asyncio.sleep(115)
        assert cluster.calls["operator", "list", "nodes"] == 1
        await asyncio.sleep(185)
        assert cluster.calls["operator", "list", "nodes"] == 2


class Future(FakeClient):
    """The store was restored from a backup after the first page: its token names a version that is yet to come, which etcd refuses as a future revision and kube-apiserver then answers with 500."""

    firsts = 0

    async def call(self, request: ApiRequest) -> JSON:
        later = "continue" in request.query
        self.firsts += request.verb == "list" and not later
        if later and self.firsts == 1:
            raise errors.Unavailable("etcdserver: mvcc: required revision is a future revision")
        return await super().call(request)


@virtually
async def test_a_list_begins_anew_when_its_token_has_been_refused_for_longer_than_tokens_live() -> None:
    cluster = fleet(60)
    client = Future(cluster, "operator")
    cache = Reflector(client, NODES, project)
    assert 300 < await seconds_to_start(cache) < 400
    assert client.firsts == 2
    assert_equal(cache, cluster)


class Uninformed(FakeClient):
    """An API server that etcd tells nothing but changes of the kind, as where no --experimental-watch-progress-notify-interval is set: bookmarks of a quiet kind stay behind its lists."""

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        async for event in super().stream(request):
            if event.type == "BOOKMARK":
                event.object["metadata"]["resourceVersion"] = request.query["resourceVersion"]
            yield event


@virtually
async def test_a_quiet_kind_whose_bookmarks_stay_behind_is_listed_before_its_view_counts_as_old() -> None:
    cluster, ages = fleet(3), []
    async with watched(cluster, client=Uninformed(cluster, "operator")) as seen:
        for _ in range(720):
            cluster.store.version += 100
            await asyncio.sleep(5)
            seen.reflector.check_restored()  # as every pass does
            ages.append(seen.reflector.age)
    assert max(ages) < OLD_VIEW
    assert cluster.calls["operator", "list", "nodes"] <= 30


@virtually
async def test_an_old_event_that_an_object_left_the_selection_does_not_take_away_one_that_came_back() -> None:
    """A watch of a server that lags tells late what a list has already passed."""
    cluster = FakeCluster()
    came = cluster.add(NODES, node("a", pool="b"))
    async with watched(cluster, label_selector="pool=b") as seen:
        left = cluster.patch(NODES, "a", {"metadata": {"labels": {"pool": "a"}}})
        await seen.until()
        cluster.patch(NODES, "a", {"metadata": {"labels": {"pool": "b"}}})
        await seen.until("a")
        seen.reflector.deleted({**came, "metadata": left["metadata"]})
        assert set(seen.reflector.items) == {"a"}


@virtually
async def test_a_long_list_is_complete_although_the_right_to_watch_is_missing() -> None:
    """The kind is followed by lists alone then."""
    cluster = fleet(200)
    cluster.faults.fail("watch", NODES, errors.Forbidden("may not watch nodes"), times=EVER)
    cache = Reflector(Slow(cluster, lambda _: 15.0), NODES, project)
    assert 120 <= await seconds_to_start(cache) < 125, "8 pages of 15 s, and none twice"
    assert_equal(cache, cluster)


@virtually
async def test_where_the_right_to_watch_is_missing_lists_bring_what_changed() -> None:
    cluster = fleet(60)
    cluster.faults.fail("watch", NODES, errors.Forbidden("may not watch nodes"), times=EVER)
    async with watched(cluster, client=Slow(cluster)) as seen:
        cluster.delete(NODES, "gpu-0003")
        cluster.patch(NODES, "gpu-0004", {"metadata": {"labels": {"x": "1"}}})
        await asyncio.sleep(60)
        assert_equal(seen.reflector, cluster)
        calls = cluster.calls["operator", "list", "nodes"]
        await asyncio.sleep(600)
        assert calls < cluster.calls["operator", "list", "nodes"] <= calls + 3 * 40, "and not in a hot loop"


@virtually
async def test_the_right_to_watch_that_is_missing_stays_known_while_lists_go_on() -> None:
    cluster = fleet(60)
    fault = cluster.faults.fail("watch", NODES, errors.Forbidden("may not watch nodes"), times=EVER)
    async with watched(cluster, client=Slow(cluster)) as seen:
        await asyncio.sleep(60)
        for _ in range(2000):
            await asyncio.sleep(0.1)
            assert isinstance(seen.reflector.error, errors.Forbidden)
        fault.lift()
        await asyncio.sleep(40)
        assert seen.reflector.error is None, "although nothing happens that a watch could show"


GANG = {"labels": {"jobset.sigs.k8s.io/jobset-name": "train"}}


class Shaky(FakeClient):
    """A client whose pages have two objects, and that loses one later page in three."""

    def __init__(self, cluster: FakeCluster, identity: str) -> None:
        super().__init__(cluster, identity)
        self.random, self.lost = Random(7), 0
        self.begun: Counter[str] = Counter()

    async def call(self, request: ApiRequest) -> JSON:
        if request.verb != "list":
            return await super().call(request)
        first = "continue" not in request.query
        self.begun[request.resource.plural] += first
        page = await super().call(replace(request, query={**request.query, "limit": "2"}))
        if not first and self.random.random() < 1 / 3:
            self.lost += 1
            raise Unavailable("503")
        return page


def pods(count: int) -> FakeCluster:
    cluster = FakeCluster()
    for number in range(count):
        cluster.add(PODS, pod(f"job-{number:03}"))
    return cluster


@virtually
async def test_pods_gangs_and_budgets_of_a_node_are_known_although_one_page_in_three_fails() -> None:
    ranks = [(PODS, pod(f"rank-{n:03}", f"gpu-{7 + n % 2:02}", metadata=GANG)) for n in range(80)]
    budgets = [(PDBS, pdb(f"budget-{n:03}")) for n in range(40)]
    async with gathering(*ranks, *budgets, client=Shaky) as stage:
        began = loop_time()
        work = None
        for _ in range(120):
            if work is None:
                work = (await stage.snapshot(loop_time() - began)).work.get("gpu-07")
            await asyncio.sleep(1)
        assert work is not None
        assert work.error == ""
        assert len(work.pods) == 40
        (gang,) = work.gangs
        assert (gang.error, len(gang.members)) == ("", 80)
        assert len(work.pdbs) == 40
        client = stage.gatherer.client
        assert isinstance(client, Shaky)
        assert client.lost > 10
        assert max(client.begun.values()) <= 6, "of the node, of the gang and of the budgets, twice or thrice at most"


@virtually
async def test_pods_that_wait_for_a_gpu_are_counted_although_one_page_in_three_fails() -> None:
    cluster = FakeCluster()
    for number in range(40):
        cluster.add(PODS, pod(f"job-{number:03}", "", status={"phase": "Pending"}))
    found, devices = await count_pending(Shaky(cluster, "operator"))
    assert found == devices == {"nvidia.com/gpu": 40}


@virtually
async def test_a_pod_that_is_deleted_before_it_got_a_node_waits_for_no_gpu() -> None:
    """A finalizer, such as that of Jobs, keeps it for a while, and one whose controller is gone for ever."""
    cluster = FakeCluster()
    cluster.add(PODS, pod("new", "", status={"phase": "Pending"}))
    old = pod("old", "", status={"phase": "Pending"})
    old["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    cluster.add(PODS, old)
    found, devices = await count_pending(cluster.client("operator"))
    assert found == devices == {"nvidia.com/gpu": 1}


@virtually
async def test_a_hold_on_the_door_is_obeyed_between_two_pages() -> None:
    cluster = pods(3)
    fanout = Fanout(cluster.client("operator"))
    names, moments, sent = [], [], 0
    async for page in pages_of(fanout, PODS, 1):
        names += [raw["metadata"]["name"] for raw in page.items]
        moments.append(loop_time())
        if len(names) == 1:
            busy = cluster.faults.fail("list", PODS, Throttled("slow down", 30.0), times=EVER)
            for selector in "abc":
                with pytest.raises(Throttled):
                    await fanout.list_page(PODS, label_selector=selector)
            busy.lift()
            sent = cluster.calls["operator", "list", "pods"]
    assert names == ["job-000", "job-001", "job-002"]
    assert 30 <= moments[1] - moments[0] < 35
    assert cluster.calls["operator", "list", "pods"] == sent + 2, "nothing was sent meanwhile"


@pytest.mark.parametrize(
    "error", [Unavailable("503"), Throttled("slow down", 1.0), HeldBack("not sent", 1.0)], ids=["503", "429", "a hold"]
)
@virtually
async def test_a_first_page_that_fails_is_asked_for_once(error: KubeError) -> None:
    cluster = pods(3)
    cluster.faults.fail("list", PODS, error)
    with pytest.raises(type(error)):
        await list_of(cluster.client("operator"), PODS)
    assert cluster.calls["operator", "list", "pods"] == 1


@pytest.mark.parametrize(
    ("error", "least", "most"),
    [
        (Unavailable("503"), 30.0, 90.0),
        (Throttled("slow down", 60.0), 60.0, 90.0),
        (Throttled("slow down", 3600.0), 0.0, 0.0),
        (Throttled("slow down"), 30.0, 90.0),
        (ServerAway("away"), 0.0, 0.0),
        (Forbidden("no right"), 0.0, 0.0),
        (Expired("too old", rest="the rest"), 0.0, 0.0),
    ],
    ids=["503", "429", "429 for an hour", "429 for no stated time", "server away", "403", "410"],
)
@virtually
async def test_a_later_page_ends_the_list_when_it_fails_for_too_long(
    error: KubeError, least: float, most: float
) -> None:
    cluster = pods(3)
    pages = pages_of(cluster.client("operator"), PODS, 1)
    assert [raw["metadata"]["name"] for raw in (await anext(pages)).items] == ["job-000"]
    cluster.faults.fail("list", PODS, error, times=EVER)
    began = loop_time()
    async with asyncio.timeout(1000):
        with pytest.raises(type(error)):
            await anext(pages)
    assert least <= loop_time() - began <= most


@virtually
async def test_the_patience_of_a_list_begins_anew_with_each_page() -> None:
    cluster = pods(3)
    began, names = loop_time(), []
    async for page in pages_of(cluster.client("operator"), PODS, 1):
        names += [raw["metadata"]["name"] for raw in page.items]
        cluster.faults.fail("list", PODS, Throttled("slow down", 60.0))
    assert names == ["job-000", "job-001", "job-002"]
    assert loop_time() - began >= 120


async def test_a_list_is_asked_for_in_pages_of_500_objects() -> None:
    cluster = pods(501)
    assert len(await list_of(cluster.client("operator"), PODS)) == 501
    assert cluster.calls["operator", "list", "pods"] == 2


class Heavy(FakeClient):
    """An API server that does not manage to send more than a few of these objects in the time that a call has."""

    async def call(self, request: ApiRequest) -> JSON:
        if int(request.query.get("limit", "0")) > 50:
            await asyncio.sleep(10)
            raise Unavailable("no response in time")
        return await super().call(request)


@virtually
async def test_after_a_page_that_failed_slowly_pages_have_few_objects_and_no_page_fails_for_that_again() -> None:
    cluster = pods(300)
    began = loop_time()
    sizes = [len(page.items) async for page in pages_of(Heavy(cluster, "operator"), PODS)]
    assert (sum(sizes), sizes[0]) == (300, 10)
    assert max(sizes) <= 50
    assert loop_time() - began <= 60, "the limit is found by halves, of 500 objects"


@virtually
async def test_a_server_that_answers_nothing_in_time_is_asked_twice() -> None:
    class Away(FakeClient):
        asked = 0

        async def call(self, request: ApiRequest) -> JSON:
            self.asked += 1
            await asyncio.sleep(10)
            raise Unavailable("no response in time")

    away = Away(pods(3), "operator")
    with pytest.raises(Unavailable):
        await list_of(away, PODS)
    assert away.asked == 2
