"""kopf as we run it, against an API server on loopback: it follows the policies and leaves everything else alone.
The handler (controller/policywatch.py) is tested through its containment."""

import asyncio
import gc
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import kopf
import pytest
from tests.fakes.apiserver import FakeServer, fake_server
from tests.fakes.login import AnonymousLogin
from tests.fakes.tls import Identity

from gpusharing.controller.policywatch import PolicyWatch
from gpusharing.kube.client import JSON, POLICIES
from gpusharing.kube.errors import Unauthorized
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import Access, Login
from gpusharing.kube.policycache import PolicyCache

PATIENCE = 60.0
"""Seconds after which a test gives up; nothing here takes one."""
AGAIN = ("", "")
"""Touched without a name: list everything."""


@dataclass
class Watching:
    server: FakeServer
    client: HttpClient
    watch: PolicyWatch
    task: asyncio.Task[None]
    touched: asyncio.Queue[tuple[str, str]] = field(default_factory=asyncio.Queue)

    async def told(self, name: str) -> str:
        while (seen := await self.touched.get())[0] != name:
            assert seen == AGAIN, "nothing else happens"
        return seen[1]

    async def begun(self, *policies: str) -> None:
        """Wait until kopf has listed these and begun to watch, which is told without a name."""
        missing = {*policies, AGAIN[0]}
        while missing:
            missing.discard((await self.touched.get())[0])

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@asynccontextmanager
async def watching(server: FakeServer, login: Login | None = None) -> AsyncIterator[Watching]:
    login = login or AnonymousLogin(server.url)
    queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    async with asyncio.timeout(PATIENCE), HttpClient(login) as client:
        watch = PolicyWatch(client, login, lambda *seen: queue.put_nowait(seen), again_after=0.01)
        running = Watching(server, client, watch, asyncio.create_task(watch.run()), queue)
        try:
            yield running
        finally:
            await running.stop()


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    """A cluster with the policy `pool-a`."""
    async with fake_server() as fake:
        fake.cluster.add(POLICIES, policy("pool-a"))
        yield fake


def policy(name: str) -> JSON:
    return {"metadata": {"name": name}, "spec": {"mode": "Full"}}


async def test_every_change_of_a_policy_is_told_with_its_version(server: FakeServer) -> None:
    async with watching(server) as running:
        assert await running.told("pool-a") == server.cluster.get(POLICIES, "pool-a")["metadata"]["resourceVersion"]
        assert running.watch.running.is_set()
        changed = server.cluster.patch(POLICIES, "pool-a", {"spec": {"mode": "MIG"}})
        assert await running.told("pool-a") == changed["metadata"]["resourceVersion"]
        added = server.cluster.add(POLICIES, policy("pool-b"))
        assert await running.told("pool-b") == added["metadata"]["resourceVersion"]
        server.cluster.delete(POLICIES, "pool-b")
        assert await running.told("pool-b")


async def test_kopf_writes_nothing_and_stores_nothing(server: FakeServer) -> None:
    before = server.cluster.get(POLICIES, "pool-a")
    async with watching(server) as running:
        await running.told("pool-a")
        changed = server.cluster.patch(POLICIES, "pool-a", {"metadata": {"labels": {"a": "b"}}})
        await running.told("pool-a")
    assert server.writes == []
    assert any(agent.startswith("kopf/") for _, _, agent in server.asked)
    assert server.cluster.get(POLICIES, "pool-a") == changed
    assert before["metadata"].keys() | {"labels"} == changed["metadata"].keys()


def kept_by_kopf() -> int:
    gc.collect()
    return sum(type(one) is kopf.Body for one in gc.get_objects())


async def test_kopf_keeps_no_policy_once_it_has_told_of_it(server: FakeServer) -> None:
    """The cache of the policies is ours alone; an index, a daemon or a timer of kopf would be another one."""
    async with watching(server) as running:
        await running.begun("pool-a")
        while kept_by_kopf():  # noqa: ASYNC110 - kopf does not tell when a worker of its own ends
            await asyncio.sleep(0.01)
        assert running.watch.running.is_set()


async def test_the_echo_of_our_own_write_does_not_make_the_cache_list_again(server: FakeServer) -> None:
    async with watching(server) as running:
        await running.told("pool-a")
        cache = PolicyCache(running.client)
        await cache.refresh()
        cache.accept(await running.client.patch(POLICIES, "pool-a", {"status": {}}, subresource="status"))
        assert not cache.touch("pool-a", await running.told("pool-a"))
        assert not cache.dirty
        server.cluster.patch(POLICIES, "pool-a", {"spec": {"mode": "MIG"}})
        assert cache.touch("pool-a", await running.told("pool-a"))
        assert cache.dirty


@pytest.mark.parametrize("code", [500, 403, 429])
async def test_kopf_is_started_again_after_an_error_on_its_watch(server: FakeServer, code: int) -> None:
    async with watching(server) as running:
        await running.begun("pool-a")
        assert await server.break_watches(POLICIES, code) == 1
        assert await running.touched.get() == AGAIN, "what was missed meanwhile is listed"
        assert running.watch.restarts == 1
        assert "etcd has no leader" in running.watch.error
        await running.told("pool-a")
        assert running.watch.running.is_set()
        server.cluster.add(POLICIES, policy("pool-b"))
        await running.told("pool-b")


@pytest.mark.parametrize("code", [410, 500])
async def test_a_policy_that_went_while_nobody_watched_is_missed(server: FakeServer, code: int) -> None:
    """kopf's next list says nothing of it, and an entry of the ConfigMaps would stay for it."""
    server.cluster.add(POLICIES, policy("pool-b"))
    async with watching(server) as running:
        await running.begun("pool-a", "pool-b")
        assert await server.break_watches(POLICIES, code) == 1
        if code != 410:
            assert await running.touched.get() == AGAIN, "kopf has stopped"
        server.cluster.delete(POLICIES, "pool-b")
        await running.begun("pool-a")


async def test_no_task_of_ours_ends_with_kopf(server: FakeServer) -> None:
    """In our own event loop kopf would cancel every task that is younger than itself: reflectors, writes, all."""
    async with watching(server) as running:
        await running.begun("pool-a")
        bystander = asyncio.create_task(asyncio.Event().wait())
        await server.break_watches(POLICIES, 500)
        assert await running.touched.get() == AGAIN
        await running.told("pool-a")
        await running.stop()
        assert not bystander.done()
        bystander.cancel()


async def test_it_waits_for_the_crd_and_says_what_is_missing(server: FakeServer) -> None:
    server.absent.add(POLICIES)
    async with watching(server) as running:
        assert await running.touched.get() == AGAIN
        assert not running.watch.running.is_set()
        assert "gpusharingpolicies" in running.watch.error
        server.absent.clear()
        await running.told("pool-a")


@dataclass
class RefusedOnce(AnonymousLogin):
    refused: int = 0

    async def token(self) -> str | None:
        assert threading.current_thread() is threading.main_thread()
        return await super().token()

    async def access(self) -> Access:
        self.refused += 1
        if self.refused == 2:
            raise Unauthorized("no credentials from kubeconfig")
        return await super().access()


async def test_kopf_logs_in_through_our_login_and_again_when_that_fails(server: FakeServer) -> None:
    login = RefusedOnce(server.url)
    async with watching(server, login) as running:
        await running.told("pool-a")
        assert login.refused > 2


async def test_what_cannot_be_followed_is_tried_again_at_a_slower_and_slower_pace(server: FakeServer) -> None:
    server.absent.add(POLICIES)
    async with HttpClient(AnonymousLogin(server.url)) as client:
        clock = asyncio.get_running_loop().time
        tries: asyncio.Queue[float] = asyncio.Queue()
        watch = PolicyWatch(client, AnonymousLogin(server.url), lambda *_: tries.put_nowait(clock()), again_after=0.02)
        task = asyncio.create_task(watch.run())
        begun = clock()
        async with asyncio.timeout(PATIENCE):
            times = [await tries.get() for _ in range(6)]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert times[-1] - begun > 0.5 * sum(0.02 * 2**number for number in range(5)), "0.02 s, 0.04 s, 0.08 s ..."


@dataclass
class NamedLogin(AnonymousLogin):
    tls: ssl.SSLContext | None = None

    async def access(self) -> Access:
        return Access(self.server, self.tls, tls_server_name="kubernetes")


@asynccontextmanager
async def watching_over_tls(identity: Identity) -> AsyncIterator[Watching]:
    """kopf has told of the policy `pool-a`."""
    async with fake_server(identity.context()) as server:
        server.cluster.add(POLICIES, policy("pool-a"))
        login = NamedLogin(server.url, ssl.create_default_context(cadata=identity.authority))
        async with watching(server, login) as running:
            await running.told("pool-a")
            yield running


async def test_kopf_calls_the_server_by_the_name_that_the_kubeconfig_gives(tmp_path: Path) -> None:
    identity = Identity(tmp_path / "pki")
    async with watching_over_tls(identity) as running:
        assert any(agent.startswith("kopf/") for _, _, agent in running.server.asked)
    assert set(identity.called) == {"kubernetes"}


async def test_a_stopped_watch_waits_for_no_answer_of_the_server_and_leaves_no_connection_over_tls(
    tmp_path: Path,
) -> None:
    """asyncio complains about a connection that nobody ended when it is collected."""
    async with watching_over_tls(Identity(tmp_path / "pki")) as running:
        kopf = next(thread for thread in threading.enumerate() if thread.name == "kopf")
        running.task.cancel()
        await asyncio.sleep(0)  # it passes the word on to kopf's thread, which may end at once
        await asyncio.sleep(0)
        kopf.join(PATIENCE)  # this thread is the server, too: it answers nothing meanwhile
        assert not kopf.is_alive()
    gc.collect()


async def test_a_stopped_watch_leaves_no_thread_and_no_connection(server: FakeServer) -> None:
    async with watching(server) as running:
        await running.told("pool-a")
        await running.stop()
        assert not running.watch.running.is_set()
        for thread in threading.enumerate():
            if thread.name == "kopf":
                await asyncio.to_thread(thread.join)


async def test_a_watch_that_is_stopped_while_it_starts_leaves_nothing_either(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio complains about tasks and sessions that nobody ended when they are collected."""
    for turns in range(0, 60, 3):
        async with watching(server) as running:
            for _ in range(turns):
                await asyncio.sleep(0)
            await running.stop()
    for thread in threading.enumerate():
        if thread.name == "kopf":
            await asyncio.to_thread(thread.join)
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []
