"""How long a holder of the Lease is waited for, and how long a renewal may hang. In virtual time."""

import asyncio

import pytest
from hack.sim.fakefaults import EVER, SILENCE
from tests.fakes.cluster import FakeCluster
from tests.fakes.virtualtime import virtually
from tests.kube.test_lease import Contender, contenders

from gpusharing.api.names import ANNOTATION_CLAIMS
from gpusharing.kube.client import JSON, LEASES
from gpusharing.kube.clock import boot_time
from gpusharing.kube.errors import Conflict, Unavailable
from gpusharing.kube.lease import Timing


@pytest.mark.parametrize(
    ("stated", "patience"),
    [({"leaseDurationSeconds": 60}, 60), ({}, 15), ({"leaseDurationSeconds": True}, 15)],
    ids=["60 s", "none", "no number"],
)
@virtually
async def test_another_holder_has_as_long_as_its_own_lease_says(stated: JSON, patience: float) -> None:
    cluster = FakeCluster()
    metadata = {"name": "leader", "namespace": "gpusharing"}
    cluster.add(LEASES, {"metadata": metadata, "spec": {"holderIdentity": "other", **stated}})
    contender = Contender(cluster, "a")
    await asyncio.sleep(patience - 1)
    assert not contender.lease.acquired.is_set()
    async with asyncio.timeout(4):
        await contender.lease.acquired.wait()
    await contender.stop()


@virtually
async def test_claims_are_given_up_for_this_pass_when_the_lease_changes_at_each_of_three_attempts() -> None:
    cluster = FakeCluster()
    async with contenders(cluster, "a") as (a,):
        changing = cluster.faults.fail("patch", LEASES, Conflict("it changed"), times=EVER)
        with pytest.raises(Conflict, match="each of 3 attempts"):
            await a.lease.set_claims({}, {})
        assert changing.hits == 3
        changing.lift()


@virtually
async def test_a_stop_waits_two_seconds_for_a_server_that_does_not_answer() -> None:
    cluster = FakeCluster()
    async with contenders(cluster, "a") as (a,):
        cluster.faults.fail("patch", LEASES, SILENCE)
        begun = asyncio.get_running_loop().time()
        await a.stop()
        assert asyncio.get_running_loop().time() - begun == 2.0


@virtually
async def test_a_renewal_that_hangs_leaves_time_for_another_one() -> None:
    cluster = FakeCluster()
    async with contenders(cluster, "a") as (a,):
        await asyncio.sleep(4.5)
        hung = cluster.faults.fail("patch", LEASES, SILENCE)
        await asyncio.sleep(30)
        assert hung.hits == 1
        assert a.lease.is_leader
        assert not a.lost.is_set()


@pytest.mark.parametrize(
    "touched",
    [{"annotations": {"example.com/seen": "{}"}}, {"labels": {"example.com/seen": "n{}"}}],
    ids=["annotation", "label"],
)
@virtually
async def test_a_lease_that_others_touch_all_the_time_is_taken_over_from_a_dead_leader(touched: JSON) -> None:
    cluster = FakeCluster()
    async with contenders(cluster, "a", "b") as (a, b):
        await asyncio.sleep(5)
        cluster.faults.fail("patch", LEASES, Unavailable("down"), times=EVER, identity="a")
        for second in range(20):
            (key, pairs), *_ = touched.items()
            changed = {name: text.format(second) for name, text in pairs.items()}
            cluster.patch(LEASES, "leader", {"metadata": {key: changed}}, "gpusharing")
            await asyncio.sleep(1)
        assert b.lease.is_leader
        assert a.lost.is_set()


@virtually
async def test_a_leader_that_only_writes_claims_is_alive() -> None:
    cluster = FakeCluster()
    metadata = {"name": "leader", "namespace": "gpusharing"}
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 15}
    cluster.add(LEASES, {"metadata": metadata, "spec": spec})
    contender = Contender(cluster, "a")
    for number in range(6):
        await asyncio.sleep(10)
        claims = {"metadata": {"annotations": {ANNOTATION_CLAIMS: f'{{"v":1,"claims":{{}},"n":{number}}}'}}}
        cluster.patch(LEASES, "leader", claims, "gpusharing")
    assert not contender.lease.acquired.is_set()
    await contender.stop()


def test_the_lease_counts_the_time_that_the_machine_slept_unless_it_is_told_otherwise() -> None:
    assert Timing().clock is boot_time
