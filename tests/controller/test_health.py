"""The probes over HTTP of a leader, what only a restart mends, and a process that stands by."""

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from structlog.testing import capture_logs
from tests.fakes.login import AnonymousLogin
from tests.fakes.virtualtime import virtual_now, virtually
from tests.wording import lacks

from gpusharing.controller.leading import SILENT, STUCK, Health
from gpusharing.controller.loop import Loop
from gpusharing.controller.metrics import Metrics
from gpusharing.controller.policywatch import PolicyWatch
from gpusharing.controller.role import LOOP_ANSWERS_S, START, Role, probe_pages
from gpusharing.controller.settings import Settings
from gpusharing.kube.client import LEASES, NODES, ApiRequest
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import Forbidden, Unavailable
from gpusharing.kube.lease import LeaderLease
from gpusharing.kube.pageserver import Page

OK = (200, "ok\n")


@dataclass
class Probed:
    """The parts of an operator that leads and follows everything, and its probes."""

    cluster: FakeCluster
    health: Health
    tasks: list[asyncio.Task[None]]

    pages: Mapping[str, Page]

    async def get(self, path: str) -> tuple[int, str]:
        status, body, _ = await asyncio.to_thread(self.pages[path], "")
        return status, body.decode()

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
    # A second goes by with each answer, so that none is given twice.
    pages = probe_pages(Role(lease, (health.dead, health.unready)), itertools.count().__next__)
    async with asyncio.timeout(60):
        await lease.acquired.wait()
        for source in (*loop.sources.required.values(), *loop.sources.optional.values()):
            await source.synced.wait()
        yield Probed(cluster, health, tasks, pages)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_operator_that_leads_and_follows_everything_is_healthy_and_ready(probed: Probed) -> None:
    assert await probed.get("/healthz") == await probed.get("/readyz") == OK


async def test_an_event_loop_that_does_not_answer_is_dead() -> None:
    lease = LeaderLease(
        FakeCluster().client("operator"), "gpusharing", "gpusharing-operator", "us", on_lost=lambda: None
    )
    pages = probe_pages(Role(lease))
    status, body, _ = pages["/healthz"]("")  # here, in the event loop, which can answer nothing meanwhile
    assert (status, lacks(body.decode(), "event loop", f"{LOOP_ANSWERS_S:.0f} s")) == (503, [])


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


MODULES = """
import sys
import gpusharing.controller.main
print(*sys.modules)
"""
OF_A_LEADER = ("kopf", "gpusharing.controller.loop", "gpusharing.kube.reflector", "gpusharing.kube.sources")


@asynccontextmanager
async def standing_by(cluster: FakeCluster) -> AsyncIterator[Role]:
    lease = LeaderLease(
        cluster.client("operator"), "gpusharing", "gpusharing-operator", "us", on_lost=lambda: None, now=virtual_now
    )
    role = Role(lease)
    tasks = [asyncio.create_task(lease.run()), asyncio.create_task(role.wait_to_lead(1.0))]
    try:
        yield role
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def held_by(cluster: FakeCluster, holder: str) -> None:
    """Another process, which renews nothing, holds the Lease for an hour."""
    metadata = {"name": "gpusharing-operator", "namespace": "gpusharing"}
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 3600}
    cluster.add(LEASES, {"metadata": metadata, "spec": spec})


@virtually
async def test_a_standby_works_once_it_knows_who_leads_and_says_so() -> None:
    cluster = FakeCluster(now=virtual_now)
    held_by(cluster, "operator-1")
    with capture_logs() as logged:
        async with standing_by(cluster) as role:
            assert not lacks(role.unready()["lease"], "nobody is known")
            await asyncio.sleep(60)
            assert (role.dead(), role.unready()) == ({}, {})
            assert role.summary() == "ok: standby, operator-1 leads"
            cluster.patch(LEASES, "gpusharing-operator", {"spec": {"holderIdentity": "operator-2"}}, "gpusharing")
            await asyncio.sleep(60)
            assert role.summary() == "ok: standby, operator-2 leads"
    assert [line["leader"] for line in logged] == ["operator-1", "operator-2"]
    assert {line["log_level"] for line in logged} == {"info"}


@virtually
async def test_a_standby_that_may_not_read_the_lease_is_unready_and_says_so_once() -> None:
    cluster = FakeCluster(now=virtual_now)
    refusal = cluster.faults.fail("get", LEASES, Forbidden("not allowed to get leases"), times=EVER)
    with capture_logs() as logged:
        async with standing_by(cluster) as role:
            await asyncio.sleep(3600)
            assert role.unready() == {"lease": "not allowed to get leases"}
            assert role.dead() == {}, "a restart would not help"
            refusal.lift()
            await asyncio.sleep(60)
            assert not lacks(role.unready()["loop"], "just become the leader")
            assert role.summary() == "ok"
    waiting, resolved, leading = [line["event"] for line in logged]
    assert resolved == f"resolved: {waiting}"
    assert not lacks(waiting, "waiting")
    assert not lacks(leading, "leader now")


@virtually
async def test_a_leader_that_never_starts_is_dead_although_it_renews_the_lease() -> None:
    async with standing_by(FakeCluster(now=virtual_now)) as role:
        now = 1000.0
        role.clock = lambda: now
        await role.lease.acquired.wait()
        await asyncio.sleep(1)
        assert role.leads_since == 1000.0
        now += START
        assert role.dead() == {}, "an import may be slow"
        assert not lacks(role.unready()["loop"], "just become the leader")
        now += 1
        stuck = {"loop": "this process has led for 121 s and has not started, so the kubelet restarts it"}
        assert (role.dead(), role.unready()) == (stuck, stuck)
        await asyncio.sleep(3600)
        assert role.lease.is_leader, "the Lease is renewed all the time"
        role.probes = dict, dict
        assert (role.dead(), role.unready()) == ({}, {})


def test_a_standby_imports_nothing_that_only_a_leader_needs() -> None:
    done = subprocess.run([sys.executable, "-c", MODULES], capture_output=True, text=True, check=True)
    assert "gpusharing.kube.lease" in done.stdout.split()
    assert set(OF_A_LEADER).isdisjoint(done.stdout.split())
