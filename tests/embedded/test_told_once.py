"""Events tell of what has happened: a write that the server refuses is told when it is carried out, once."""

from hack.sim.fakefaults import EVER
from tests.embedded.scene import FULL, HOUR, MIXED, gpu_pod, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import EVENTS, NODES, PODS
from gpusharing.kube.errors import EvictionBlocked, Unavailable

EVICTS = {"unmanagedPods": "Evict", "strandedPods": "Allow"}


@virtually
async def test_a_point_of_no_return_is_told_when_it_is_written_and_not_when_it_is_refused() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        await scene.begin(MIXED)
        before = scene.events()["Reconfiguring"]
        refused = scene.e.cluster.faults.fail(
            "patch", NODES, Unavailable("a webhook does not answer"), identity="operator", times=6
        )
        await scene.e.until(lambda: refused.hits == 6, "six refusals, during which the proof grows old", HOUR)
        assert scene.events()["Reconfiguring"] == before
        await scene.ready(seconds=HOUR)
        assert scene.events()["Reconfiguring"] == before + 1


@virtually
async def test_the_start_of_a_drain_is_told_once_although_its_pods_cannot_be_listed_for_a_moment() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        scene.e.cluster.add(PODS, gpu_pod("job", "gpu-1"))
        before, faults = scene.events()["DrainStarted"], scene.e.cluster.faults
        blocked = faults.fail("evict", PODS, EvictionBlocked("a budget says no"), times=EVER)
        scene.apply(MIXED, drain=EVICTS)
        await scene.e.until(lambda: scene.events()["DrainStarted"] == before + 1, "the Event", HOUR)
        unlisted = faults.fail("list", PODS, Unavailable("503"), selector="spec.nodeName=gpu-1")
        await scene.e.until(lambda: unlisted.hits == 1, "a list that fails", HOUR)
        blocked.lift()
        await scene.ready(seconds=HOUR)
        assert scene.evicted() == ["job"]
        assert scene.events()["DrainStarted"] == before + 1
        (told,) = [one for one in scene.e.cluster.objects(EVENTS) if one["reason"] == "PodEvicted"]
        assert (told["regarding"]["name"], told["metadata"]["namespace"]) == ("job", "default")
