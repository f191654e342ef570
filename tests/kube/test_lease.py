"""One leader at a time, claims in the same object, and nobody acts on a lost Lease. In virtual time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hack.sim.fakefaults import EVER, SILENCE
from tests.fakes.cluster import FakeClient, FakeCluster
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.api.names import ANNOTATION_CLAIMS
from gpusharing.kube import errors
from gpusharing.kube.client import JSON, LEASES, ApiRequest, KubeClient
from gpusharing.kube.clock import boot_time
from gpusharing.kube.errors import Conflict, NotFound, Unavailable
from gpusharing.kube.fence import claims_text
from gpusharing.kube.lease import LeaderLease, LeaseLost, Timing
from gpusharing.planning.snapshot.records import LEASE_ROOM, Claim, FailedNode, SpecVersion

CLAIMS = {"gpu-07": Claim("u7", "pool-b", "op-1")}


class Contender:
    """A LeaderLease under the name of its process, and whether it was told to die."""

    def __init__(self, cluster: FakeCluster, identity: str, client: KubeClient | None = None) -> None:
        self.lost = asyncio.Event()
        self.stood_still = 0.0
        """Seconds for which the process did not run, as its clock says when it goes on."""
        loop = asyncio.get_running_loop()
        self.lease = LeaderLease(
            client or cluster.client(identity),
            "gpusharing",
            "leader",
            identity,
            on_lost=self.lost.set,
            timing=Timing(clock=lambda: loop.time() + self.stood_still),
        )
        self.task = asyncio.create_task(self.lease.run())

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@asynccontextmanager
async def contenders(
    *identities: str, cluster: FakeCluster | None = None
) -> AsyncIterator[tuple[FakeCluster, list[Contender]]]:
    """A cluster, a new one unless told, and contenders that start in this order; the first one leads at once."""
    cluster, started = cluster or FakeCluster(), list[Contender]()
    for identity in identities:
        started.append(Contender(cluster, identity))
        if len(started) == 1:
            await started[0].lease.acquired.wait()
    try:
        yield cluster, started
    finally:
        for contender in started:
            contender.task.cancel()
        await asyncio.gather(*(contender.task for contender in started), return_exceptions=True)


def lease_of(cluster: FakeCluster) -> dict[str, Any]:
    return cluster.get(LEASES, "leader", "gpusharing")


def holder(cluster: FakeCluster) -> str:
    try:
        return str(lease_of(cluster)["spec"].get("holderIdentity", ""))
    except NotFound:
        return ""


@virtually
async def test_the_first_contender_creates_the_lease_and_keeps_it() -> None:
    async with contenders("a", "b") as (cluster, [a, b]):
        await asyncio.sleep(120)
        assert a.lease.is_leader
        assert not b.lease.acquired.is_set()
        assert lease_of(cluster)["spec"]["holderIdentity"] == "a"
        assert not a.lost.is_set()


@virtually
async def test_a_clean_stop_hands_over_at_once() -> None:
    async with contenders("a", "b") as (cluster, [a, b]):
        await asyncio.sleep(5)
        await a.stop()
        assert "holderIdentity" not in lease_of(cluster)["spec"]
        async with asyncio.timeout(3):
            await b.lease.acquired.wait()
        assert lease_of(cluster)["spec"]["leaseTransitions"] == 2


@pytest.mark.parametrize(("changes", "holder"), [({}, None), ({"holderIdentity": "c"}, "c")], ids=["ours", "taken"])
@virtually
async def test_a_stop_in_the_middle_of_a_write_gives_up_the_lease_all_the_same_unless_somebody_has_it(
    changes: dict[str, str], holder: str | None
) -> None:
    async with contenders("a") as (cluster, [a]):
        await asyncio.sleep(5)
        cluster.patch(LEASES, "leader", {"metadata": {"annotations": {"x": "y"}}, "spec": changes}, "gpusharing")
        await a.stop()
        assert lease_of(cluster)["spec"].get("holderIdentity") == holder
        assert not a.lost.is_set()


class Unheard(FakeClient):
    async def call(self, request: ApiRequest) -> JSON:
        done = await super().call(request)
        taken = request.body is not None and request.body["spec"].get("holderIdentity")
        if request.verb == "create" or taken:
            await asyncio.get_running_loop().create_future()
        return done


@pytest.mark.parametrize("there", [False, True], ids=["created", "taken over"])
@virtually
async def test_a_stop_before_the_answer_that_the_lease_is_ours_gives_it_up(there: bool) -> None:
    cluster = FakeCluster()
    if there:
        async with contenders("first", cluster=cluster):
            pass
        cluster.patch(LEASES, "leader", {"spec": {"holderIdentity": None}}, "gpusharing")
    contender = Contender(cluster, "a", Unheard(cluster, "a"))
    await asyncio.sleep(1)
    assert holder(cluster) == "a"
    assert not contender.lease.acquired.is_set()
    await contender.stop()
    assert holder(cluster) == ""


@virtually
async def test_a_dead_leader_is_followed_after_the_duration_and_not_before() -> None:
    async with contenders("a", "b") as (cluster, [a, b]):
        await a.lease.set_claims(CLAIMS, {})
        await asyncio.sleep(4.5)
        cluster.faults.fail("patch", LEASES, errors.Unavailable("down"), times=999, identity="a")
        await asyncio.sleep(9)
        assert not b.lease.acquired.is_set()
        async with asyncio.timeout(12):
            await b.lease.acquired.wait()
        # a was told to die before b took over, and b knows what a had claimed.
        assert a.lost.is_set()
        assert b.lease.claims == CLAIMS


@virtually
async def test_a_leader_dies_at_the_deadline_when_the_server_hangs() -> None:
    async with contenders("a") as (_, [a]):
        await asyncio.sleep(4.5)
        renewed = asyncio.get_running_loop().time() - 0.5
        client = a.lease._client

        async def hang(*_: Any, **__: Any) -> Any:
            await asyncio.Event().wait()

        a.lease._client = type("Hung", (), {"patch": hang, "get": hang, "create": hang})()
        await a.lost.wait()
        assert asyncio.get_running_loop().time() - renewed == pytest.approx(10.0, abs=0.6)
        assert not a.lease.is_leader
        assert client is not a.lease._client


@virtually
async def test_claims_are_written_with_proof_of_leadership() -> None:
    async with contenders("a") as (cluster, [a]):
        await a.lease.set_claims(CLAIMS, {})
        assert a.lease.claims == CLAIMS
        written = cluster.writes[-1]
        assert written.call.body is not None
        assert written.call.body["metadata"]["resourceVersion"]
        await asyncio.sleep(10)
        assert a.lease.claims == CLAIMS


@virtually
async def test_claims_survive_a_competing_edit_of_the_lease() -> None:
    async with contenders("a") as (cluster, [a]):
        cluster.patch(LEASES, "leader", {"metadata": {"labels": {"x": "y"}}}, "gpusharing")
        await a.lease.set_claims(CLAIMS, {})
        assert a.lease.claims == CLAIMS


@virtually
async def test_claims_whose_answer_was_lost_are_found_again() -> None:
    async with contenders("a") as (cluster, [a]):
        cluster.faults.fail("patch", LEASES, errors.Unavailable("reset"), after=True)
        with pytest.raises(errors.Unavailable):
            await a.lease.set_claims(CLAIMS, {})
        await asyncio.sleep(3)
        assert a.lease.claims == CLAIMS
        assert a.lease.is_leader


@virtually
async def test_who_does_not_hold_the_lease_any_more_cannot_claim() -> None:
    async with contenders("a") as (cluster, [a]):
        cluster.patch(LEASES, "leader", {"spec": {"holderIdentity": "b"}}, "gpusharing")
        with pytest.raises(LeaseLost):
            await a.lease.set_claims(CLAIMS, {})
        assert a.lost.is_set()
        assert "gpu-07" not in str(lease_of(cluster))


@virtually
async def test_who_stood_still_beyond_the_deadline_cannot_claim_though_nobody_else_took_over() -> None:
    async with contenders("a") as (cluster, [a]):
        a.stood_still = 10.5
        with pytest.raises(LeaseLost):
            await a.lease.set_claims(CLAIMS, {})
        assert a.lost.is_set()
        assert "gpu-07" not in str(lease_of(cluster))
        await asyncio.gather(a.task)
        assert holder(cluster) == "a", "it has no right to release it either"


@virtually
async def test_failures_are_written_with_the_claims_and_found_by_a_successor() -> None:
    cluster, failed = FakeCluster(), {"u9": FailedNode("gpu-09", SpecVersion("uid-b", "r3"))}
    async with contenders("a", "b", cluster=cluster) as (_, [a, b]):
        await a.lease.set_claims(CLAIMS, failed)
        assert a.lease.failed_nodes == failed
        await a.stop()
        await b.lease.acquired.wait()
        assert (b.lease.claims, b.lease.failed_nodes) == (CLAIMS, failed)
        await b.lease.set_claims({}, {})
        assert b.lease.failed_nodes == {}


@virtually
async def test_only_who_leads_may_write_and_who_stood_still_is_told_before_its_first_write() -> None:
    async with contenders("a", "b") as (_, [a, b]):
        a.lease.must_lead()
        assert not a.lost.is_set()
        with pytest.raises(LeaseLost, match="b no longer holds the Lease leader"):
            b.lease.must_lead()
        a.stood_still = 10.5
        with pytest.raises(LeaseLost):
            a.lease.must_lead()
        assert a.lost.is_set(), "it does not wait for the next renewal to notice"


@virtually
async def test_a_renewal_that_finds_another_holder_ends_the_process() -> None:
    async with contenders("a") as (cluster, [a]):
        cluster.patch(LEASES, "leader", {"spec": {"holderIdentity": "b"}}, "gpusharing")
        async with asyncio.timeout(3):
            await a.lost.wait()
        # It does not write to a Lease that is not its own, not even on its way out.
        await asyncio.gather(a.task)
        assert lease_of(cluster)["spec"]["holderIdentity"] == "b"


@virtually
async def test_what_a_newer_operator_wrote_of_claims_survives_renewals_and_other_claims() -> None:
    async with contenders("newer") as (cluster, [newer]):
        await newer.lease.set_claims(CLAIMS, {})
        await newer.stop()
        record = json.loads(lease_of(cluster)["metadata"]["annotations"][ANNOTATION_CLAIMS])
        record["claims"]["gpu-07"]["tide"] = 2
        patch = {"metadata": {"annotations": {ANNOTATION_CLAIMS: json.dumps(record)}}}
        await cluster.client("person").patch(LEASES, "leader", patch, namespace="gpusharing")
        async with contenders("older", cluster=cluster) as (_, [older]):
            await asyncio.sleep(60)
            assert older.lease.claims == CLAIMS
            await older.lease.set_claims({**CLAIMS, "gpu-08": Claim("u8", "pool-b", "op-2")}, {})
            await asyncio.sleep(60)
    written = json.loads(lease_of(cluster)["metadata"]["annotations"][ANNOTATION_CLAIMS])
    assert written["claims"]["gpu-07"]["tide"] == 2
    assert "tide" not in written["claims"]["gpu-08"]


@virtually
async def test_a_deleted_lease_is_made_anew_with_the_claims() -> None:
    async with contenders("a") as (cluster, [a]):
        await a.lease.set_claims(CLAIMS, {})
        cluster.delete(LEASES, "leader", "gpusharing")
        await asyncio.sleep(5)
        assert a.lease.is_leader
        assert "gpu-07" in lease_of(cluster)["metadata"]["annotations"]["gpusharing.dev/claims"]


@virtually
async def test_damaged_claims_are_reported_and_do_not_keep_anybody_from_leading() -> None:
    cluster = FakeCluster()
    damaged = {"gpusharing.dev/claims": "{"}
    cluster.add(LEASES, {"metadata": {"name": "leader", "namespace": "gpusharing", "annotations": damaged}})
    async with contenders("a", cluster=cluster) as (_, [a]):
        assert a.lease.claims == {}
        assert "not JSON" in a.lease.claims_error


@virtually
async def test_a_failure_on_record_that_cannot_be_read_is_reported_until_it_is_replaced() -> None:
    cluster = FakeCluster()
    damaged = {"gpusharing.dev/claims": '{"v":1,"claims":{},"failedNodes":{"u9":7}}'}
    cluster.add(LEASES, {"metadata": {"name": "leader", "namespace": "gpusharing", "annotations": damaged}})
    async with contenders("a", cluster=cluster) as (_, [a]):
        assert not lacks(a.lease.claims_error, "u9", "7")
        await a.lease.set_claims(CLAIMS, {})
        assert a.lease.claims_error == ""


@virtually
async def test_missing_rights_are_shown_and_waited_out() -> None:
    cluster = FakeCluster()
    cluster.faults.fail("get", LEASES, errors.Forbidden("not allowed to get leases"), times=2)
    contender = Contender(cluster, "a")
    await asyncio.sleep(1)
    assert isinstance(contender.lease.error, errors.Forbidden)
    async with asyncio.timeout(5):
        await contender.lease.acquired.wait()
    await contender.stop()


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
    async with contenders("a") as (cluster, [a]):
        changing = cluster.faults.fail("patch", LEASES, Conflict("it changed"), times=EVER)
        with pytest.raises(Conflict, match="each of 3 attempts"):
            await a.lease.set_claims({}, {})
        assert changing.hits == 3
        changing.lift()


@virtually
async def test_a_stop_waits_two_seconds_for_a_server_that_does_not_answer() -> None:
    async with contenders("a") as (cluster, [a]):
        cluster.faults.fail("patch", LEASES, SILENCE)
        begun = asyncio.get_running_loop().time()
        await a.stop()
        assert asyncio.get_running_loop().time() - begun == 2.0


@virtually
async def test_a_renewal_that_hangs_leaves_time_for_another_one() -> None:
    async with contenders("a") as (cluster, [a]):
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
    async with contenders("a", "b") as (cluster, [a, b]):
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


TOO_LONG = errors.Invalid("metadata.annotations: Too long: may not be more than 262144 bytes")


@virtually
async def test_what_others_write_on_the_lease_and_a_record_that_was_refused_leave_less_room_for_claims() -> None:
    async with contenders("a") as (cluster, [a]):
        await asyncio.sleep(5)
        assert (room := a.lease.room) == LEASE_ROOM - len(ANNOTATION_CLAIMS)
        cluster.patch(LEASES, "leader", {"metadata": {"annotations": {"note": "x" * 1000}}}, "gpusharing")
        await asyncio.sleep(3.5)  # the Lease is renewed in between, and not at this moment
        assert a.lease.room == room - 1004
        cluster.faults.fail("patch", LEASES, errors.Invalid("denied by a webhook"))
        with pytest.raises(errors.Invalid):
            await a.lease.set_claims(CLAIMS, {})
        assert a.lease.room == room - 1004, "a shorter record would be refused, too"
        cluster.faults.fail("patch", LEASES, TOO_LONG)
        with pytest.raises(errors.Invalid):
            await a.lease.set_claims(CLAIMS, {})
        assert a.lease.room == len(claims_text(CLAIMS)) - 1
