"""A list that is made in a pass survives the failure of one of its pages (docs/adr/0061). In virtual time."""

import asyncio
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hack.sim.fakecluster import FakeClient, FakeCluster
from hack.sim.fakefaults import EVER
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.objects import pdb, pod

from gpusharing.kube.client import JSON, PDBS, PODS, ApiRequest
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import Expired, Forbidden, HeldBack, KubeError, ServerAway, Throttled, Unavailable
from gpusharing.kube.fanout import Fanout
from gpusharing.kube.gather import count_pending
from gpusharing.kube.lists import list_of, pages_of

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
