"""The probes over HTTP: what only a restart mends, and what keeps a healthy process from deciding."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiohttp import ClientSession
from tests.fakes.cluster import FakeCluster
from tests.fakes.login import AnonymousLogin
from tests.fakes.serving import serving
from tests.wording import lacks

from gpusharing.controller.leading import SILENT, STUCK, Health
from gpusharing.controller.loop import Loop
from gpusharing.controller.metrics import Metrics
from gpusharing.controller.policywatch import PolicyWatch
from gpusharing.controller.role import Role, application
from gpusharing.controller.settings import Settings
from gpusharing.kube.client import LEASES, NODES, ApiRequest
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import Forbidden, Unavailable
from gpusharing.kube.lease import LeaderLease

OK = (200, "ok\n")


@dataclass
class Probed:
    """The parts of an operator that leads and follows everything, and its probes."""

    cluster: FakeCluster
    health: Health
    url: str
    tasks: list[asyncio.Task[None]]

    async def get(self, path: str) -> tuple[int, str]:
        async with ClientSession() as session, session.get(self.url + path) as answer:
            return answer.status, await answer.text()

    def later(self, seconds: float) -> None:
        """Let so much time pass without anything happening, since all was well; then time stands still."""
        loop, well = self.health.loop, time.monotonic()
        loop.last_progress = well
        for source in (*loop.sources.required.values(), *loop.sources.optional.values()):
            source.last_contact = well
        self.health.clock = lambda: well + seconds


@pytest.fixture
async def probed() -> AsyncIterator[Probed]:
    """All is well; the loop itself stands still, so that a test decides when it came round."""
    cluster = FakeCluster()
    client = cluster.client("operator")
    lease = LeaderLease(client, "gpusharing", "gpusharing-operator", "us", on_lost=lambda: None)
    loop = Loop(client, lease, Settings(), Metrics())
    watch = PolicyWatch(client, AnonymousLogin("http://127.0.0.1:1"), lambda *_: None)
    watch.running.set()
    health = Health(loop, lease, watch)
    tasks = [asyncio.create_task(lease.run()), asyncio.create_task(loop.sources.run())]
    async with (
        asyncio.timeout(60),
        serving(application(Role(lease, (health.dead, health.unready)))) as url,
    ):
        await lease.acquired.wait()
        for source in (*loop.sources.required.values(), *loop.sources.optional.values()):
            await source.synced.wait()
        yield Probed(cluster, health, url, tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_operator_that_leads_and_follows_everything_is_healthy_and_ready(probed: Probed) -> None:
    assert await probed.get("/healthz") == await probed.get("/readyz") == OK
    assert (await probed.get("/"))[0] == 404


async def test_a_loop_that_does_not_come_round_is_dead(probed: Probed) -> None:
    probed.later(STUCK - 10)
    assert await probed.get("/healthz") == OK
    probed.later(STUCK + 1)
    assert (answer := await probed.get("/healthz")) == await probed.get("/readyz")
    assert answer[0] == 503
    assert not lacks(answer[1], "loop", "121 s")
    probed.health.loop.last_progress = probed.health.clock()
    assert await probed.get("/healthz") == OK


async def test_a_pass_that_takes_long_and_gets_answers_is_alive_and_other_calls_do_not_count(probed: Probed) -> None:
    loop = probed.health.loop
    loop.last_progress = loop_time() - STUCK - 1
    loop.called(ApiRequest("watch", NODES), 200)
    assert (await probed.get("/healthz"))[0] == 503, "a watch goes on beside a loop that hangs"
    with loop.of_a_pass():
        loop.called(ApiRequest("create", NODES), 0)
        assert (await probed.get("/healthz"))[0] == 503, "no answer is no progress"
        await asyncio.create_task(_create(loop))
    assert await probed.get("/healthz") == OK


async def _create(loop: Loop) -> None:
    loop.called(ApiRequest("create", NODES), 409)


async def test_a_watch_that_is_silent_for_too_long_is_dead(probed: Probed) -> None:
    probed.later(SILENT + 1)
    probed.health.loop.last_progress = probed.health.clock()
    status, text = await probed.get("/healthz")
    assert status == 503
    sources = ("agent pods", "configmaps", "device-plugin chart pods", "gpunodes", "nodes", "operand pods")
    assert [line.partition(": ")[0] for line in text.splitlines()] == [*sources]
    assert not any(lacks(line, "201 s") for line in text.splitlines())


async def test_a_watch_that_knows_its_trouble_is_unready_and_not_dead(probed: Probed) -> None:
    """The API server is away: a restart would not bring it back."""
    nodes = probed.health.loop.sources.nodes
    probed.later(SILENT + 1)
    for source in probed.health.loop.sources.required.values():
        source.last_contact = probed.health.loop.last_progress = probed.health.clock()
    nodes.last_contact = float("-inf")
    nodes.error = Unavailable("cannot list nodes: connection refused")
    assert await probed.get("/healthz") == OK
    assert await probed.get("/readyz") == (503, "nodes: cannot list nodes: connection refused\n")


async def test_readyz_names_a_kind_of_others_that_may_no_longer_be_read(probed: Probed) -> None:
    probed.health.loop.sources.optional["medik8s nodemaintenances"].error = Forbidden("no right")
    assert await probed.get("/healthz") == OK
    assert await probed.get("/readyz") == (503, "medik8s nodemaintenances: no right\n")


async def test_readyz_names_what_was_never_listed_and_why() -> None:
    cluster = FakeCluster()
    cluster.faults.fail("list", NODES, Forbidden("not allowed to list nodes"), times=1000)
    client = cluster.client("operator")
    lease = LeaderLease(client, "gpusharing", "gpusharing-operator", "us", on_lost=lambda: None)
    loop = Loop(client, lease, Settings(), Metrics())
    health = Health(loop, lease, PolicyWatch(client, AnonymousLogin(""), lambda *_: None))
    assert health.dead() == {}
    assert health.unready() == {
        **dict.fromkeys(loop.sources.required, "not listed yet"),
        **dict.fromkeys(loop.sources.optional, "not listed yet"),
        "policies": "kopf is not watching the policies",
        "lease": "another process is the leader",
    }
    task = asyncio.create_task(loop.sources.run())
    async with asyncio.timeout(60):
        for source in loop.sources.required.values():
            if source is not loop.sources.nodes:
                await source.synced.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert health.unready()["nodes"] == "not allowed to list nodes"
    assert "gpunodes" not in health.unready()


async def test_kopf_that_does_not_follow_the_policies_is_told_with_its_reason(probed: Probed) -> None:
    probed.health.watch.running.clear()
    assert await probed.get("/readyz") == (503, "policies: kopf is not watching the policies\n")
    probed.health.watch.error = "no CRD"
    assert await probed.get("/readyz") == (503, "policies: no CRD\n")
    assert await probed.get("/healthz") == OK


async def test_a_lease_that_another_process_holds_is_told(probed: Probed) -> None:
    probed.cluster.patch(LEASES, "gpusharing-operator", {"spec": {"holderIdentity": "them"}}, "gpusharing")
    await probed.tasks[0]
    status, text = await probed.get("/readyz")
    assert status == 503
    assert text.startswith("lease: ")
    assert await probed.get("/healthz") == OK
