"""A slow API server slows the roll and nothing else: the leader stays, the process is alive, nobody's clock matters.
A plan that a newer one has overruled, or that has grown old, sends no further call.
And what the operator does when etcd is restored from a backup, or a watch falls silent."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER, SILENCE
from tests.embedded.mpsset import DEAF, counted
from tests.embedded.scene import (
    FULL,
    HOUR,
    L40S,
    MPS,
    OTHER_MIXED,
    SLICED,
    Scene,
    at_once,
    gpu_pod,
    nodes,
    open_scene,
    pdb,
)
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_people import claims
from tests.fakes.login import AnonymousLogin
from tests.fakes.slow import SlowClient
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.controller.execute import PLAN_VALID
from gpusharing.controller.leading import STUCK, Health
from gpusharing.controller.loop import Loop
from gpusharing.controller.policywatch import PolicyWatch
from gpusharing.kube.client import CONFIG_MAPS, GPUNODES, JSON, LEASES, PDBS, PODS, POLICIES, ApiRequest, Resource
from gpusharing.kube.clock import SteadyClock, loop_time
from gpusharing.kube.http import Limits
from gpusharing.kube.lease import LeaderLease, Timing
from gpusharing.kube.lists import pages_of


def start(scene: Scene, seconds: float) -> tuple[Loop, SlowClient]:
    """The operator on a slow server, wired as the shipped process is."""

    def called(request: ApiRequest, status: int) -> None:
        loop.called(request, status)

    client = SlowClient(
        scene.e.cluster.client("operator"), seconds, apart=LEASES, apart_seconds=min(seconds, 3.0), on_call=called
    )
    loop = scene.e.start_operator(client)
    return loop, client


def alive(scene: Scene, loop: Loop) -> dict[str, str]:
    """What only a restart would mend."""
    assert scene.e.lease is not None
    assert scene.e.client is not None
    watch = PolicyWatch(scene.e.client, AnonymousLogin(""), lambda *_: None)
    return Health(loop, scene.e.lease, watch).dead()


@pytest.mark.parametrize(("lists", "seconds"), [(100, 0.5), (30, 3.0)], ids=["100 x 0.5 s", "30 x 3 s"])
@pytest.mark.parametrize("apart", [LEASES, None], ids=["as shipped", "in one queue"])
@virtually
async def test_a_renewal_waits_for_no_other_call(lists: int, seconds: float, apart: Resource | None) -> None:
    cluster = FakeCluster()
    client = SlowClient(cluster.client("operator"), seconds, apart=apart)
    lost = asyncio.Event()
    lease = LeaderLease(client, "gpusharing", "leader", "us", on_lost=lost.set, timing=Timing(clock=loop_time))
    leading = asyncio.create_task(lease.run())
    await lease.acquired.wait()

    async def look_at_all() -> None:
        while True:
            async for _ in pages_of(client, PODS):
                pass

    looking = [asyncio.create_task(look_at_all()) for _ in range(lists)]
    await asyncio.sleep(120)
    assert lost.is_set() == (apart is None), "the shared queue is what the test is about"
    if apart is not None:
        assert client.waited[LEASES] == 0
    for task in (*looking, leading):
        task.cancel()


async def roll(scene: Scene, count: int, *, pods: int = 0, seconds: float = 3.0) -> tuple[Loop, SlowClient]:
    """Begin to roll nodes, some of them with a pod, where each call takes its time."""
    for number in range(pods):
        scene.e.cluster.add(PODS, gpu_pod(f"job-{number}", f"gpu-{number + 1}"))
    loop, client = start(scene, seconds)
    scene.apply(SLICED, rollout=at_once(count), drain={"unmanagedPods": "Evict", "strandedPods": "Allow"})
    return loop, client


def blamed(scene: Scene) -> int:
    """Events that say that something keeps the pods; an answer on its way is nothing of that kind."""
    return scene.events()["PodEvictionBlocked"]


@pytest.mark.parametrize(("count", "seconds"), [(6, 3.0), (30, 6.0)], ids=["6 nodes at 3 s", "30 nodes at 6 s"])
@virtually
async def test_a_slow_server_slows_the_roll_and_nodes_are_proven_a_few_at_a_time(count: int, seconds: float) -> None:
    async with open_scene(*nodes(count), start=False, lease=Timing()) as scene:
        await roll(scene, count, pods=count, seconds=seconds)
        await scene.ready(seconds=HOUR)
        assert scene.events()["ChangeGivenUp"] == 0
        assert blamed(scene) == 0


@pytest.mark.parametrize("count", [30, 60])
@virtually
async def test_the_leader_of_a_roll_stays_and_lives_where_each_call_takes_three_seconds(count: int) -> None:
    async with open_scene(*nodes(count), start=False, lease=Timing()) as scene:
        loop, client = await roll(scene, count, pods=count)
        for _ in range(60):
            await asyncio.sleep(10)
            assert scene.e.client is not None
            assert not scene.e.client.dead, "the Lease was not lost"
            assert alive(scene, loop) == {}
        assert client.waited[LEASES] == 0
        await scene.ready(seconds=HOUR)
        assert scene.events()["ChangeGivenUp"] == 0
        assert blamed(scene) == 0


@virtually
async def test_no_more_nodes_are_away_than_max_unavailable_allows_where_each_call_takes_three_seconds() -> None:
    async with open_scene(*nodes(12), start=False, lease=Timing()) as scene:
        start(scene, 3.0)
        await scene.serve(OTHER_MIXED, rollout=at_once(4), seconds=HOUR)
        assert scene.guard.largest["pool-b"] == 4


@virtually
async def test_a_repair_of_the_mps_daemonset_is_reported_once_where_each_call_takes_five_seconds() -> None:
    async with open_scene(*nodes(1, product=L40S), sim=DEAF, repair_mps=True, start=False, lease=Timing()) as scene:
        start(scene, 5.0)
        await scene.serve(MPS, seconds=HOUR)
        assert (scene.events()["MPSDaemonRepaired"], counted(scene)) == (1, 1)


@virtually
async def test_first_passes_that_create_for_minutes_are_no_reason_to_restart() -> None:
    """5,000 creations of 0.2 s. Without agents, which would take five real minutes of this test."""
    async with open_scene(*nodes(5000), start=False, played=False, lease=Timing()) as scene:
        loop, _ = start(scene, 0.2)
        scene.apply(FULL)
        begun = loop_time()
        told: set[str] = set()
        async with asyncio.timeout(900):
            while len(list(scene.e.cluster.store.all(GPUNODES))) < 5000:
                await asyncio.sleep(5)
                told |= set(alive(scene, loop))
        assert loop_time() - begun > STUCK
        assert told == set()
        assert scene.e.client is not None
        assert not scene.e.client.dead, "the Lease was not lost"


def stepped(step: timedelta) -> tuple[Callable[[], datetime], Callable[[], None]]:
    moved = [timedelta(0)]

    def set_it() -> None:
        moved[0] = step

    return lambda: virtual_now() + moved[0], set_it


@pytest.mark.parametrize("step", [-3600, 3600], ids=["back", "forward"])
@virtually
async def test_a_wall_clock_that_is_set_by_an_hour_in_the_middle_of_a_drain_changes_nothing(step: int) -> None:
    wall, set_it = stepped(timedelta(seconds=step))
    async with open_scene(*nodes(1), start=False, lease=Timing()) as scene:
        scene.e.now = SteadyClock(loop_time, wall)
        scene.e.start_operator()
        scene.e.cluster.add(PODS, gpu_pod("job", "gpu-1", metadata={"finalizers": ["example.com/slow"]}))
        fence = await scene.begin(SLICED, drain={"unmanagedPods": "Evict", "strandedPods": "Allow", "timeout": "10m"})
        set_it()
        lists = scene.e.cluster.calls["operator", "list", "pods"]
        await asyncio.sleep(60)
        assert scene.e.cluster.calls["operator", "list", "pods"] - lists >= 10, "it looks every few seconds"
        assert scene.fence("gpu-1") == fence, "no deadline passes early"
        assert virtual_now() < fence.deadline
        scene.e.cluster.patch(PODS, "job", {"metadata": {"finalizers": None}}, "default")
        scene.e.cluster.delete(PODS, "job", "default")
        await scene.ready(seconds=HOUR)
        assert scene.evicted() == ["job"]
        assert scene.events()["ChangeGivenUp"] == 0


EVICTS = {"unmanagedPods": "Evict", "strandedPods": "Allow"}
GPUS = "gpu-1", "gpu-2", "gpu-3"


@pytest.mark.parametrize("pods", [[], ["job-1", "job-2"]], ids=["an idle node", "a node with a pod"])
@virtually
async def test_no_pod_leaves_and_no_node_passes_its_point_of_no_return_while_a_watch_is_silent(pods: list[str]) -> None:
    async with open_scene(*nodes(2)) as scene:
        for name, node in zip(pods, GPUS, strict=False):
            scene.e.cluster.add(PODS, gpu_pod(name, node))
        first = await scene.begin_any(SLICED, drain=EVICTS, rollout=at_once(1))
        scene.apply(SLICED, drain=EVICTS, rollout={**at_once(2), "paused": True, "whenPaused": "Hold"})
        await scene.reason(first, "Paused")
        silent = scene.e.cluster.faults.fail("watch", CONFIG_MAPS, SILENCE, times=EVER)
        listless = scene.e.cluster.faults.fail("list", CONFIG_MAPS, SILENCE, times=EVER)
        scene.e.cluster.close_watches()
        await asyncio.sleep(200)
        scene.apply(SLICED, drain=EVICTS, rollout=at_once(2))
        await scene.reason(first, "ObservationPending")
        await asyncio.sleep(300)
        assert [name for name in GPUS[:2] if scene.cordoned(name)] == [first]
        assert scene.evicted() == []
        silent.lift()
        listless.lift()
        await scene.ready()
        assert sorted(scene.evicted()) == pods


@pytest.mark.parametrize("done", [False, True], ids=["of its first node", "after its first node"])
@virtually
async def test_a_rollout_goes_on_from_what_a_restored_store_says(done: bool) -> None:
    async with open_scene(*nodes(3), lease=Timing()) as scene:
        first = await scene.begin_any(SLICED, rollout=at_once(1))
        if done:
            await scene.released(first)
        fences, cluster = [scene.fence(name) for name in GPUS], scene.e.cluster
        backup, claimed = cluster.backup(), claims(scene)
        cluster.store.version += 10_000
        await scene.ready()
        cluster.restore(backup)
        await asyncio.sleep(0.1)
        cluster.send_bookmarks()  # to NVIDIA's simulated programs: they begin anew with their API server
        assert [scene.fence(name) for name in GPUS] == fences
        assert claims(scene) == claimed
        await scene.ready(seconds=HOUR)
        assert_as_wanted(scene, SLICED, *GPUS)
        assert claims(scene) == set()
        assert not any(map(scene.cordoned, GPUS))
        assert scene.e.operators == 1, "it was not restarted"


OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "w", "uid": "w", "controller": True}


def add_pods(scene: Scene, *nodes_of: str) -> None:
    """A pod on each of these nodes; by default eight on gpu-1."""
    about = {"labels": {"app": "w"}, "ownerReferences": [OWNER]}
    for number, name in enumerate(nodes_of or ["gpu-1"] * 8):
        scene.e.cluster.add(PODS, gpu_pod(f"w{number}", name, metadata=about))


async def first_of(pods: Callable[[], list[str]], scene: Scene) -> None:
    await scene.e.until(lambda: len(pods()) == 1, "the first pod leaves", 600)


def change(scene: Scene, drain: JSON, **rollout: Any) -> None:
    spec = scene.e.policy("pool-b")["spec"]
    rollout = {**spec.get("rollout", {}), **rollout}
    scene.apply(SLICED, drain={**spec["drain"], **drain}, rollout=rollout)


def block(scene: Scene) -> None:
    change(scene, {"rules": [{"behavior": "Block", "podSelector": {"matchLabels": {"app": "w"}}}]})


def hold(scene: Scene) -> None:
    change(scene, {}, paused=True, whenPaused="Hold")


def protect(scene: Scene) -> None:
    marked = {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}}
    for pod in scene.pods("w"):
        if pod["metadata"]["name"] not in scene.evicted():
            scene.e.cluster.patch(PODS, pod["metadata"]["name"], marked, namespace="default")


def delete(scene: Scene) -> None:
    scene.e.cluster.delete(POLICIES, "pool-b")


@pytest.mark.parametrize("overrule", [block, hold, protect, delete], ids=lambda change: change.__name__)
@virtually
async def test_no_pod_is_evicted_that_the_newest_plan_keeps_where_each_eviction_takes_ten_seconds(
    overrule: Callable[[Scene], None],
) -> None:
    async with open_scene(*nodes(1, gpus=8), lease=Timing()) as scene:
        add_pods(scene)
        scene.e.cluster.faults.fail("evict", PODS, SILENCE, times=EVER, after=True)
        scene.apply(SLICED, drain={"timeout": "30m"})
        await first_of(scene.evicted, scene)
        overrule(scene)
        await asyncio.sleep(90)
        assert scene.evicted() == ["w0"]


@pytest.mark.parametrize("overrule", [block, hold, protect, delete], ids=lambda change: change.__name__)
@virtually
async def test_an_eviction_that_waits_behind_eight_slow_ones_is_not_sent_once_the_newest_plan_keeps_its_pod(
    overrule: Callable[[Scene], None],
) -> None:
    async with open_scene(*nodes(16), lease=Timing()) as scene:
        add_pods(scene, *(f"gpu-{number + 1}" for number in range(16)))
        scene.e.cluster.faults.fail("evict", PODS, SILENCE, times=EVER, after=True)
        scene.apply(SLICED, rollout=at_once(16), drain={"timeout": "30m", "strandedPods": "Allow"})
        await scene.e.until(lambda: len(scene.evicted()) == Limits().parallel, "all slots are in use", 600)
        first = scene.evicted()
        await asyncio.sleep(1)
        overrule(scene)
        await asyncio.sleep(90)
        assert scene.evicted() == first


@virtually
async def test_a_drain_goes_on_as_fast_as_a_server_that_takes_ten_seconds_for_each_eviction() -> None:
    async with open_scene(*nodes(1, gpus=8), lease=Timing()) as scene:
        add_pods(scene)
        scene.e.cluster.faults.fail("evict", PODS, SILENCE, times=EVER, after=True)
        scene.apply(SLICED, drain={"timeout": "30m"})
        await first_of(scene.evicted, scene)
        begun = virtual_now()
        await scene.e.until(lambda: len(scene.evicted()) == 8, "all pods leave", 600)
        assert (virtual_now() - begun).total_seconds() < 80
        await scene.ready()


@virtually
async def test_no_pod_is_evicted_after_the_deadline_of_its_drain_where_each_eviction_takes_ten_seconds() -> None:
    async with open_scene(*nodes(1, gpus=8), lease=Timing()) as scene:
        add_pods(scene)
        scene.e.cluster.faults.fail("evict", PODS, SILENCE, times=EVER, after=True)
        deadline = (await scene.begin(SLICED, drain={"timeout": "1m"})).deadline
        await scene.e.until(lambda: virtual_now() >= deadline, "the deadline", 600)
        left = scene.evicted()
        assert 0 < len(left) < 8
        await asyncio.sleep(90)
        assert scene.evicted() == left


@virtually
async def test_no_further_pod_is_deleted_by_force_once_the_policy_gives_up_instead() -> None:
    async with open_scene(*nodes(1, gpus=8), lease=Timing(), force_delete=True) as scene:
        add_pods(scene)
        scene.e.cluster.add(PDBS, pdb("w", "w", maxUnavailable=0))
        scene.e.cluster.faults.fail("delete", PODS, SILENCE, times=EVER, after=True)
        scene.apply(SLICED, drain={"timeout": "5m", "onTimeout": "ForceDelete"})
        await first_of(scene.deleted, scene)
        scene.apply(SLICED, drain={"timeout": "5m", "onTimeout": "Abort"})
        await asyncio.sleep(120)
        assert scene.deleted() == ["w0"]


@virtually
async def test_a_proof_that_a_node_is_idle_does_not_grow_old_behind_writes_of_policies_that_hang() -> None:
    async with open_scene(*nodes(1), lease=Timing()) as scene:
        await scene.begin(SLICED)
        scene.e.cluster.faults.fail("patch", POLICIES, SILENCE, times=EVER, subresource="")
        await asyncio.sleep(11.5)
        for number in range(10):
            scene.apply(FULL, f"pool-{number}", f"x{number}", deletionPolicy="Reset")
        await asyncio.sleep(5)
        assert (await scene.fenced("gpu-1")).stage == "fenced", "the pass waits for the finalizers"
        await asyncio.sleep(PLAN_VALID - 5)
        await scene.fenced("gpu-1", "actuating", seconds=1)
