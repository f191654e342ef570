"""etcd is restored from a backup: what was shown since never happened, and every cache goes back. A server that only lags never makes a cache go back. In virtual time."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hack.sim.fakecluster import FakeClient
from hack.sim.fakefaults import EVER, SILENCE
from tests.fakes.cluster import FakeCluster
from tests.fakes.virtualtime import virtually
from tests.kube.test_lease import Contender, contenders
from tests.kube.test_policies import FULL
from tests.kube.test_reflector import Watched, node, watched

from gpusharing.kube import errors
from gpusharing.kube.client import JSON, LEASES, NODES, POLICIES, ApiRequest, WatchEvent
from gpusharing.kube.policycache import PolicyCache


class Lagging(FakeClient):
    """A client behind a load balancer: its lists may come from an API server that stands still."""

    past: FakeCluster | None = None
    """What that API server shows; None: it is not asked."""
    lists = math.inf

    watches = False

    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        lags = self.past if self.watches else None
        return super().stream(request) if lags is None else lags.client("operator").stream(request)

    async def call(self, request: ApiRequest) -> JSON:
        if request.verb != "list":
            return await super().call(request)
        if self.past is not None and "continue" not in request.query:
            self.lists -= 1
            self.past = None if self.lists < 0 else self.past
        if self.past is None:
            return await super().call(request)
        return await self.past.client("operator").call(request)


def copy_of(cluster: FakeCluster) -> FakeCluster:
    """An API server that shows for ever what the cluster holds now."""
    past = FakeCluster()
    past.restore(cluster.backup())
    return past


@asynccontextmanager
async def followed(cluster: FakeCluster, client: FakeClient | None = None) -> AsyncIterator[Watched]:
    """A cache of nodes beside the leader's Lease on the same cluster."""
    async with contenders("a", cluster=cluster) as (_, [leader]):
        restores = lambda: leader.lease.restores  # noqa: E731 - it is passed on
        async with watched(cluster, client=client, restores=restores, page_size=1) as seen:
            yield seen


def labels(seen: Watched) -> dict[str, dict[str, str]]:
    return {name: dict(view[1]) for name, view in seen.reflector.items.items()}


def change(cluster: FakeCluster) -> None:
    """What happens after the backup: one node goes, one comes, one changes, one is created anew; and a lot elsewhere, so that the versions do not come back to where they were."""
    cluster.store.version += 10_000
    cluster.delete(NODES, "goes")
    cluster.add(NODES, node("comes"))
    cluster.patch(NODES, "changes", {"metadata": {"labels": {"x": "new"}}})
    cluster.delete(NODES, "anew")
    cluster.add(NODES, node("anew", x="new"))


BEFORE = {"goes": {}, "changes": {"x": "old"}, "anew": {"x": "old"}, "stays": {}}
AFTER = {"comes": {}, "changes": {"x": "new"}, "anew": {"x": "new"}, "stays": {}}


def a_cluster() -> FakeCluster:
    cluster = FakeCluster()
    for name, pairs in BEFORE.items():
        cluster.add(NODES, node(name, **pairs))
    return cluster


@virtually
async def test_a_cache_goes_back_with_a_store_that_was_restored_and_goes_on_from_there() -> None:
    cluster = a_cluster()
    async with followed(cluster) as seen:
        await asyncio.sleep(5)
        backup = cluster.backup()
        change(cluster)
        await asyncio.sleep(600)
        assert labels(seen) == AFTER
        cluster.restore(backup)
        await asyncio.sleep(120)
        assert labels(seen) == BEFORE
        cluster.patch(NODES, "stays", {"metadata": {"labels": {"x": "1"}}})
        cluster.delete(NODES, "changes")
        await asyncio.sleep(1)
        assert labels(seen) == {"goes": {}, "anew": {"x": "old"}, "stays": {"x": "1"}}
        assert seen.reflector.error is None
        assert seen.reflector.age < 2


@virtually
async def test_a_cache_is_what_a_store_holds_that_was_restored_under_higher_versions() -> None:
    """As etcdutl --bump-revision does it: no version goes back, but objects have versions older than those shown."""
    cluster = a_cluster()
    async with followed(cluster) as seen:
        backup = cluster.backup()
        change(cluster)
        await asyncio.sleep(600)
        cluster.restore(backup, bump=1_000_000)
        await asyncio.sleep(120)
        assert labels(seen) == BEFORE


@virtually
async def test_a_server_that_lags_never_turns_a_cache_back_however_often_it_is_asked() -> None:
    cluster = a_cluster()
    client = Lagging(cluster, "operator")
    async with followed(cluster, client) as seen:
        past = copy_of(cluster)
        change(cluster)
        await asyncio.sleep(5)
        client.past = past
        for _ in range(5):
            cluster.expire()
            await asyncio.sleep(700)
            assert labels(seen) == AFTER
        assert cluster.calls["operator", "list", "nodes"] == 4
        assert past.calls["operator", "list", "nodes"] >= 5 * 4, "it was believed to be complete, and to be old"


@virtually
async def test_a_server_that_lags_is_asked_again_each_half_minute_and_does_not_make_a_cache_current() -> None:
    cluster = a_cluster()
    client = Lagging(cluster, "operator")
    client.watches = True
    async with followed(cluster, client) as seen:
        past = client.past = copy_of(cluster)
        change(cluster)
        await asyncio.sleep(5)
        cluster.expire()
        for _ in range(42):
            await asyncio.sleep(5)
            seen.reflector.check_restored()  # as every pass does
        assert seen.reflector.age > 200
        assert 5 <= past.calls["operator", "list", "nodes"] / 4 <= 7
        client.past = None
        past.close_watches()
        await asyncio.sleep(60)
        assert seen.reflector.age < 60
        assert labels(seen) == AFTER


@virtually
async def test_a_server_that_lags_after_a_restore_does_not_turn_the_cache_back_once_more() -> None:
    cluster = a_cluster()
    client = Lagging(cluster, "operator")
    async with followed(cluster, client) as seen:
        backup = cluster.backup()
        cluster.store.version += 10_000
        cluster.add(NODES, node("never was"))
        await asyncio.sleep(60)
        cluster.restore(backup)
        await asyncio.sleep(120)
        assert labels(seen) == BEFORE
        client.past = copy_of(cluster)
        change(cluster)
        for _ in range(5):
            cluster.close_watches()
            await asyncio.sleep(700)
            assert labels(seen) == AFTER


@virtually
async def test_one_old_list_is_not_enough_to_turn_a_cache_back() -> None:
    """It may come from a server that lags beside the one that was restored."""
    cluster = a_cluster()
    client = Lagging(cluster, "operator")
    async with followed(cluster, client) as seen:
        past = copy_of(cluster)
        cluster.patch(NODES, "anew", {"metadata": {"labels": {"x": "of the backup"}}})
        backup = cluster.backup()
        change(cluster)
        await asyncio.sleep(60)
        known: list[dict[str, dict[str, str]]] = []
        seen.listener = lambda _: known.append(labels(seen))
        cluster.restore(backup)
        client.past, client.lists = past, 1
        await asyncio.sleep(120)
        assert past.calls["operator", "list", "nodes"] == 4
        assert labels(seen) == {**BEFORE, "anew": {"x": "of the backup"}}
        assert all(state["anew"]["x"] in ("new", "of the backup") for state in known)


@virtually
async def test_while_a_cache_goes_back_no_write_succeeds_on_what_it_knew() -> None:
    cluster = a_cluster()
    async with followed(cluster) as seen:
        backup = cluster.backup()
        change(cluster)
        await asyncio.sleep(60)
        cluster.restore(backup)
        tried: list[str] = []

        def write(_: str) -> None:
            for name in set(seen.reflector.items) & set(BEFORE):
                version = seen.reflector.version(name)
                if cluster.get(NODES, name)["metadata"]["resourceVersion"] == version:
                    continue
                tried.append(name)
                with pytest.raises(errors.Conflict):
                    cluster.patch(NODES, name, {"metadata": {"resourceVersion": version, "labels": {"y": "1"}}})

        seen.listener = write
        await asyncio.sleep(120)
        assert tried
        assert labels(seen) == BEFORE


@virtually
async def test_policies_go_back_too_and_only_when_the_lease_went_back() -> None:
    cluster = FakeCluster()
    cluster.add(POLICIES, {"metadata": {"name": "stays"}, "spec": FULL})
    async with contenders("a", cluster=cluster) as (_, [leader]):
        cache = PolicyCache(cluster.client("operator"), lambda: leader.lease.restores)
        backup = cluster.backup()
        gone = cluster.add(POLICIES, {"metadata": {"name": "never was"}, "spec": FULL})
        assert len(await cache.refresh()) == 2
        cluster.restore(backup)
        cache.touch()
        for _ in range(3):
            with pytest.raises(errors.Unavailable, match="an older state"):
                await cache.refresh()
        await asyncio.sleep(10)
        assert [view.name for view in await cache.refresh()] == ["stays"]
        cache.accept(gone)
        assert [view.name for view in await cache.refresh()] == ["stays"]


@virtually
async def test_policies_are_listed_anew_after_a_restore_though_nobody_told_of_a_change() -> None:
    async with contenders("a") as (cluster, [leader]):
        cache = PolicyCache(cluster.client("operator"), lambda: leader.lease.restores)
        backup = cluster.backup()
        cluster.add(POLICIES, {"metadata": {"name": "never was"}, "spec": FULL})
        await cache.refresh()
        await asyncio.sleep(60)
        assert (cache.dirty, cache.stale) == (False, False)
        cluster.restore(backup)
        await asyncio.sleep(5)
        assert (cache.dirty, cache.stale) == (True, True)


@virtually
async def test_who_takes_over_after_a_restore_goes_back_although_it_had_written_nothing_before() -> None:
    """A restore takes longer than a leader lives without the API server, so mostly another process is the leader" " after it, with what it read while it stood by."""
    cluster = a_cluster()
    leader = Contender(cluster, "a")
    await leader.lease.acquired.wait()
    second = Contender(cluster, "b")
    async with watched(cluster, restores=lambda: second.lease.restores) as seen:
        backup = cluster.backup()
        change(cluster)
        await asyncio.sleep(60)
        away = [cluster.faults.fail(verb, LEASES, SILENCE, times=EVER) for verb in ("get", "patch")]
        await leader.lost.wait()
        cluster.restore(backup)
        for each in away:
            each.lift()
        await asyncio.sleep(120)
        assert second.lease.is_leader
        assert labels(seen) == BEFORE
    await second.stop()


@virtually
async def test_the_leader_notices_a_restore_by_the_versions_of_its_own_writes() -> None:
    async with contenders("a") as (cluster, [leader]):
        await asyncio.sleep(60)
        backup = cluster.backup()
        await asyncio.sleep(60)
        await leader.lease.set_claims({}, {})
        assert leader.lease.restores == 0
        for number in range(1, 3):
            cluster.restore(backup)
            await asyncio.sleep(10)
            assert leader.lease.restores == number
            assert leader.lease.is_leader
        await asyncio.sleep(60)
        assert leader.lease.restores == 2
