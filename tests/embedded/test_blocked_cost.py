"""What nodes cost that a PodDisruptionBudget blocks: calls, and verdicts whose status has to be computed (docs/adr/0018-looks-at-blocked-nodes.md, docs/explanation/performance.md#blocked-nodes)."""

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from hack.sim.fakecluster import FakeClient
from tests.embedded.scene import FULL, RARELY, SLICED, at_once, gpu_pod, nodes, open_scene, pdb
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.kube.client import JSON, LEASES, PDBS, PODS, ApiRequest
from gpusharing.planning.snapshot.memory import LONGEST, LOOKS
from gpusharing.planning.snapshot.views import PlanSettings

MINUTES = 3
POLLS = 60 / PlanSettings().poll
"""Polls in a minute."""
OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "llm", "uid": "llm", "controller": True}
GUARDED = {"labels": {"app": "llm"}, "ownerReferences": [OWNER]}


class Counting(FakeClient):
    """Counts the calls by verb and kind, those about the Lease apart."""

    counted: Counter[str]

    async def call(self, request: ApiRequest) -> JSON:
        if request.resource != LEASES:
            one = " of a node" * request.query.get("fieldSelector", "").startswith("spec.nodeName=gpu-")
            self.counted[f"{request.verb} {request.resource.plural}{one}"] += 1
        return await super().call(request)


@pytest.mark.parametrize("count", [20, 120])
@virtually
async def test_blocked_nodes_share_their_looks_and_nothing_is_written(count: int) -> None:
    async with open_scene(*nodes(count, gpus=1), start=False, lease=RARELY) as scene:
        client = Counting(scene.e.cluster, "operator")
        client.counted = Counter()
        scene.e.cluster.add(PDBS, pdb("llm", "llm", maxUnavailable=0))
        scene.e.start_operator(client)
        await scene.serve(FULL)
        for number in range(count):
            scene.e.cluster.add(PODS, gpu_pod(f"llm-{number}", f"gpu-{number + 1}", metadata=GUARDED))
        scene.apply(SLICED, rollout=at_once(1))
        await asyncio.sleep(60 + 60 * count / (LOOKS * POLLS))
        await asyncio.sleep(3 * LONGEST.total_seconds())  # no back-off grows any more
        reasons = {scene.transition(f"gpu-{number + 1}")["reason"] for number in range(count)}
        assert reasons == {"PDBNeverAllows"}
        client.counted.clear()
        since, begun = scene.mark(), virtual_now()
        while virtual_now() - begun < timedelta(minutes=MINUTES):
            # Passes for other reasons, which must not put the looks off.
            scene.person("gpu-1", {"metadata": {"annotations": {"example.com/heartbeat": str(virtual_now())}}})
            await asyncio.sleep(3)
        calls = {kind: number / MINUTES for kind, number in client.counted.items()}
        loop = scene.e.loop
        assert loop is not None
        assert loop.plan is not None
        before = loop.plan.verdicts
        await asyncio.sleep(4 * PlanSettings().poll)
        after = loop.plan.verdicts
        assert scene.writes(since) == []
    looks = calls.pop("list pods of a node")
    assert looks == pytest.approx(min(count, LOOKS * POLLS), rel=0.1), "a look a minute, and five per poll together"
    assert calls.pop("list poddisruptionbudgets") <= 2 * POLLS + 1, "one for each pass that looks"
    # Pending pods once a minute, and every ten minutes what is watched, in pages.
    assert sum(calls.values()) <= 5 + count / 25, calls
    news = [name for name, verdict in after.items() if before[name] != verdict]
    assert len(news) <= 2 * 5 * LOOKS, "of nodes that were looked at or are about to be, whatever the clock says"
