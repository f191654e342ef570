"""What the writes of one node's change are, so that none is added unseen, and that Events tell of what has happened, once (docs/explanation/performance.md#writes-of-a-change)."""

import asyncio
from collections import Counter

import pytest
from hack.sim.fakefaults import EVER
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, HOUR, MIXED, gpu_pod, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import EVENTS, JSON, NODES, PODS
from gpusharing.kube.errors import EvictionBlocked, Unavailable


def told_by(body: JSON) -> str:
    """What a write to a GPUNode says: its phase, or that the agent is asked."""
    transition = (body.get("status") or {}).get("transition") or {}
    return str(transition.get("phase") or "request")


@pytest.mark.parametrize("pods", [0, 4])
@virtually
async def test_each_write_of_a_change_is_known(pods: int) -> None:
    async with open_scene(*nodes(1, gpus=4), workloads=[SimWorkload("llm", pods)], serving=FULL) as scene:
        await scene.running("llm", pods)
        await scene.reach(MIXED, drain={"strandedPods": "Allow"}, phase="Pending")
        since = scene.mark()
        await scene.ready()
        await asyncio.sleep(60)
        writes = [(write.call.verb, write.call.resource.plural, write.call.body or {}) for write in scene.writes(since)]
    kinds = Counter(kind for _, kind, _ in writes)
    events = Counter(body["reason"] for _, kind, body in writes if kind == "events")
    gpunode = Counter(told_by(body) for _, kind, body in writes if kind == "gpunodes")
    change = {"NodeCordoned": 1, "Reconfiguring": 2, "NodeReleased": 1, "LayoutVerified": 2}
    assert events == change | ({"DrainStarted": 2, "PodEvicted": pods} if pods else {}), "two: policy and GPUNode"
    assert gpunode.pop("request") == 2, "to close NVML, and to read once more"
    phases = {"Cordoned", "VerifyingIdle", "Reconfiguring", "Verifying", "Synced"} | ({"Draining"} if pods else set())
    assert gpunode == dict.fromkeys(phases, 1), "no phase is written twice"
    assert kinds["nodes"] == 3, "fence, point of no return, release"
    assert kinds["pods"] == pods, "evictions"
    assert kinds["gpusharingpolicies"] <= len(phases) + 5, "each phase, the finalizer twice, numbers that come late"


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
