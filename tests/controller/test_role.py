"""A process that stands by: its probes, its log, and that it imports nothing that only a leader needs."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from structlog.testing import capture_logs
from tests.fakes.virtualtime import virtual_now, virtually
from tests.wording import lacks

from gpusharing.controller.role import START, Role
from gpusharing.kube.client import LEASES
from gpusharing.kube.errors import Forbidden
from gpusharing.kube.lease import LeaderLease

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
