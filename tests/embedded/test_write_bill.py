"""What the writes of one node's change are, so that none is added unseen (docs/explanation/performance.md#writes-of-a-change)."""

import asyncio
from collections import Counter

import pytest
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, MIXED, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import JSON


def told_by(body: JSON) -> str:
    """What a write to a GPUNode says: its phase, or that the agent is asked."""
    transition = (body.get("status") or {}).get("transition") or {}
    return str(transition.get("phase") or "request")


@pytest.mark.parametrize("pods", [0, 4])
@virtually
async def test_each_write_of_a_change_is_known(pods: int) -> None:
    async with open_scene(*nodes(1, gpus=4), workloads=[SimWorkload("llm", pods)], serving=FULL) as scene:
        await scene.running("llm", pods)
        scene.apply(MIXED, drain={"strandedPods": "Allow"})
        await scene.phase("gpu-1", "Pending")
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
