"""The list of policies is the truth; an event only says that it may have changed; and what a snapshot holds of them and of ClusterPolicy."""

import asyncio

import pytest
from hack.sim.fakecluster import FakeClient, FakeCluster
from hack.sim.fakefaults import EVER, SILENCE
from tests.build import at
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.objects import pod

from gpusharing.api import names
from gpusharing.kube.client import JSON, PODS, POLICIES, ApiRequest
from gpusharing.kube.errors import Invalid, Unavailable
from gpusharing.kube.policycache import PolicyCache
from gpusharing.planning.snapshot.memory import CLUSTER_POLICY, LASTING, CallFailure

SELECTOR = {"matchLabels": {"gpusharing.dev/pool": "b"}}
FULL: JSON = {"mode": "Full", "nodeSelector": SELECTOR}


def cluster_with(*policies: str) -> tuple[FakeCluster, PolicyCache]:
    cluster = FakeCluster()
    for name in policies:
        cluster.add(POLICIES, {"metadata": {"name": name}, "spec": FULL})
    return cluster, PolicyCache(cluster.client("operator"))


def lists(cluster: FakeCluster) -> int:
    return cluster.calls["operator", "list", "gpusharingpolicies"]


async def test_policies_are_listed_once_and_again_only_when_something_was_touched() -> None:
    cluster, cache = cluster_with("pool-b", "pool-a")
    assert [view.name for view in await cache.refresh()] == ["pool-a", "pool-b"]
    await cache.refresh()
    assert (lists(cluster), cache.dirty) == (1, False)
    assert cache.touch()
    await cache.refresh()
    assert lists(cluster) == 2


async def test_the_echo_of_what_we_hold_touches_nothing() -> None:
    cluster, cache = cluster_with("pool-b")
    await cache.refresh()
    held = cluster.get(POLICIES, "pool-b")["metadata"]["resourceVersion"]
    assert not cache.touch("pool-b", held)
    assert cache.touch("pool-b", str(int(held) + 1))
    assert cache.touch("pool-new", held)
    assert cache.touch("pool-new"), "without a version it is no echo"


async def test_news_that_are_being_listed_are_not_listed_yet() -> None:
    cluster, cache = cluster_with("pool-b")
    silent = cluster.faults.fail("list", POLICIES, SILENCE)
    listing = asyncio.create_task(cache.refresh())
    await asyncio.sleep(0)
    assert (cache.dirty, cache.stale) == (False, True)
    silent.lift()
    listing.cancel()
    await asyncio.wait([listing])
    await cache.refresh()
    assert (cache.dirty, cache.stale) == (False, False)


async def test_what_did_not_change_keeps_its_identity() -> None:
    cluster, cache = cluster_with("pool-a", "pool-b")
    before = await cache.refresh()
    cluster.patch(POLICIES, "pool-a", {"status": {"summary": {"status": "Synced"}}}, subresource="status")
    cache.touch()
    assert await cache.refresh() is before, "status is no input"
    cluster.patch(POLICIES, "pool-a", {"spec": {"priority": 3}})
    cache.touch()
    after = await cache.refresh()
    assert after is not before
    assert after[1] is before[1]
    assert (after[0].generation, after[0].spec and after[0].spec.priority) == (2, 3)


async def test_a_list_that_failed_is_tried_again() -> None:
    cluster, cache = cluster_with("pool-b")
    cluster.faults.fail("list", POLICIES, Unavailable("no leader"))
    with pytest.raises(Unavailable):
        await cache.refresh()
    assert cache.dirty
    assert len(await cache.refresh()) == 1


async def test_an_answer_to_our_write_is_taken_without_a_list() -> None:
    cluster, cache = cluster_with("pool-b")
    await cache.refresh()
    patch = {"metadata": {"finalizers": [names.FINALIZER]}}
    cache.accept(cluster.patch(POLICIES, "pool-b", patch))
    version = cluster.get(POLICIES, "pool-b")["metadata"]["resourceVersion"]
    assert cache.finalizers("pool-b") == (version, (names.FINALIZER,))
    assert (await cache.refresh())[0].finalizer
    assert lists(cluster) == 1


async def test_the_status_of_a_policy_is_the_one_last_read_or_written() -> None:
    cluster, cache = cluster_with("pool-b", "pool-new")
    first, second = {"observedGeneration": 1}, {"observedGeneration": 2}
    cluster.patch(POLICIES, "pool-b", {"status": first}, subresource="status")
    await cache.refresh()
    assert (cache.status("pool-b"), cache.status("pool-new"), cache.status("gone")) == (first, {}, {})
    cache.accept(cluster.patch(POLICIES, "pool-b", {"status": second}, subresource="status"))
    assert cache.status("pool-b") == second


async def test_a_late_answer_does_not_bring_back_the_spec_of_before_an_edit() -> None:
    cluster, cache = cluster_with("pool-b")
    late = cluster.patch(POLICIES, "pool-b", {"status": {"observedGeneration": 1}}, subresource="status")
    cluster.patch(POLICIES, "pool-b", {"spec": {"priority": 9}})
    await cache.refresh()
    cache.accept(late)
    spec = (await cache.refresh())[0].spec
    assert spec is not None
    assert spec.priority == 9


class Answering(FakeClient):
    """The answer to a write of ours arrives between the moment of each list and its end."""

    cache: PolicyCache

    async def call(self, request: ApiRequest) -> JSON:
        page = await super().call(request)
        body = {"status": {"hash": str(self.cluster.store.version)}}
        self.cache.accept(self.cluster.patch(POLICIES, "pool-b", body, subresource="status"))
        return page


async def test_an_answer_that_is_newer_than_the_list_under_way_stays() -> None:
    cluster, _ = cluster_with("pool-b")
    client = Answering(cluster, "operator")
    cache = client.cache = PolicyCache(client)
    await cache.refresh()
    assert cache.status("pool-b") == {}, "it was not known yet"
    cache.touch()
    await cache.refresh()
    written = cluster.get(POLICIES, "pool-b")
    assert cache.status("pool-b") == written["status"]
    assert cache.finalizers("pool-b")[0] == written["metadata"]["resourceVersion"]


async def test_a_policy_that_is_gone_does_not_come_back_by_an_answer() -> None:
    cluster, cache = cluster_with("pool-b")
    late = cluster.get(POLICIES, "pool-b")
    cluster.delete(POLICIES, "pool-b")
    await cache.refresh()
    cache.accept(late)
    assert await cache.refresh() == ()


async def test_what_was_never_read_has_neither_status_nor_finalizers() -> None:
    _, cache = cluster_with()
    assert (cache.status("pool-x"), cache.finalizers("pool-x")) == ({}, ("", ()))


class Lagging(FakeClient):
    """Of an API server that lags: its lists are those of before, while it does."""

    before: JSON | None = None

    async def call(self, request: ApiRequest) -> JSON:
        return self.before or await super().call(request)


async def lagging(cluster: FakeCluster) -> Lagging:
    """A client whose lists show for ever what the cluster holds now."""
    client = Lagging(cluster, "operator")
    client.before = await client.call(ApiRequest("list", POLICIES))
    return client


async def test_a_deleted_policy_does_not_come_back_by_a_list_from_before() -> None:
    cluster, _ = cluster_with("pool-b")
    client = await lagging(cluster)
    cache = PolicyCache(client)
    assert [view.name for view in await cache.refresh()] == ["pool-b"]
    cluster.delete(POLICIES, "pool-b")
    cache.touch("pool-b", str(cluster.store.version))
    with pytest.raises(Unavailable, match=r"an older state .* than before"):
        await cache.refresh()
    assert cache.dirty, "it is listed again"
    client.before = None
    assert await cache.refresh() == ()


@pytest.mark.parametrize("heard", ["event", "answer", "list"])
async def test_a_list_from_before_what_was_heard_is_refused(heard: str) -> None:
    cluster, _ = cluster_with("pool-b")
    client = await lagging(cluster)
    then, client.before = client.before, None
    cache = PolicyCache(client)
    await cache.refresh()
    changed = cluster.patch(POLICIES, "pool-b", {"spec": {"priority": 9}})
    if heard == "event":
        cache.touch("pool-b", changed["metadata"]["resourceVersion"])
    elif heard == "answer":
        cache.accept(changed)
        cache.touch()
    else:
        cache.touch()
        await cache.refresh()
        cache.touch()
    client.before = then
    known = cache.views
    with pytest.raises(Unavailable):
        await cache.refresh()
    assert cache.views is known, "what was known stays"


async def test_a_list_of_the_very_version_that_was_heard_of_is_believed() -> None:
    cluster, cache = cluster_with("pool-b")
    changed = cluster.patch(POLICIES, "pool-b", {"spec": {"priority": 9}})
    cache.touch("pool-b", changed["metadata"]["resourceVersion"])
    assert [view.generation for view in await cache.refresh()] == [2]


async def test_versions_that_are_no_numbers_are_believed_as_they_come() -> None:
    _, cache = cluster_with("pool-b")
    cache.touch("pool-b", "yesterday")
    assert len(await cache.refresh()) == 1


@virtually
async def test_policies_that_cannot_be_read_are_part_of_the_answer() -> None:
    broken = {"metadata": {"name": "pool-b"}, "spec": {"mode": "Nonsense"}}
    async with gathering((POLICIES, broken)) as stage:
        policy = (await stage.snapshot()).policies[0]
        assert policy.spec is None
        assert policy.problems


@virtually
async def test_the_labels_of_namespaces_are_not_read_where_no_policy_asks_for_them() -> None:
    spec = {"nodeSelector": {"matchLabels": {"pool": "b"}}, "mode": "Full"}
    policy = {"metadata": {"name": "pool-b", "uid": "policy", "generation": 1}, "spec": spec}
    async with gathering((POLICIES, policy), (PODS, pod())) as stage:
        snapshot = await stage.snapshot()
        assert (snapshot.policies[0].problems, len(snapshot.work["gpu-07"].pods)) == ((), 1)
        assert stage.cluster.calls["operator", "get", "namespaces"] == 0


@virtually
async def test_a_failed_write_of_cluster_policy_is_part_of_the_answer_once_it_lasts() -> None:
    async with gathering() as stage:
        told = []
        for tries in (1, LASTING):
            stage.calls.failures = {CLUSTER_POLICY: CallFailure("no right", at(9), tries)}
            told.append((await stage.snapshot()).stack.pointer_error)
    assert told == ["", "no right"]


@virtually
async def test_without_a_first_list_of_the_policies_nothing_is_decided() -> None:
    async with gathering() as stage:
        stage.cluster.faults.fail("list", POLICIES, Invalid("bad continue token"), identity="sources")
        with pytest.raises(Unavailable, match="policies cannot be listed: bad continue token"):
            await stage.snapshot()


@virtually
async def test_policies_that_cannot_be_listed_again_are_known_to_be_old() -> None:
    async with gathering() as stage:
        assert (await stage.snapshot()).policies_error == ""
        sick = stage.cluster.faults.fail("list", POLICIES, SILENCE, identity="sources", times=EVER)
        stage.gatherer.sources.policies.touch()
        assert "has not responded yet" in (await stage.snapshot()).policies_error
        sick.lift()
        await asyncio.sleep(11)
        assert (await stage.snapshot()).policies_error == ""


class Edited(FakeClient):
    """Somebody writes to the policies while each LIST of them is on its way, and a watch tells of it."""

    cache: PolicyCache

    async def call(self, request: ApiRequest) -> JSON:
        page = await super().call(request)
        edited = self.cluster.patch(POLICIES, "pool-b", {"spec": {"priority": self.cluster.store.version}})
        assert self.cache.touch("pool-b", edited["metadata"]["resourceVersion"])
        return page


@virtually
async def test_an_edit_during_the_list_of_the_policies_is_for_the_next_pass() -> None:
    async with gathering((POLICIES, {"metadata": {"name": "pool-b"}, "spec": {}})) as stage:
        sources = stage.gatherer.sources
        client = Edited(stage.cluster, "operator")
        sources.policies = client.cache = PolicyCache(client)
        for count in (1, 2):
            assert (await stage.snapshot()).policies_error == "", "this pass listed them"
            assert sources.policies.dirty, "and the next one lists them again"
            assert stage.lists("gpusharingpolicies") == count
