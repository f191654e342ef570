"""When the pods of a node are listed whose agent was asked to close NVML (kube/gather.py)."""

import asyncio

from hack.sim.fakefaults import EVER, SILENCE
from tests.build import at
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.objects import observed

from gpusharing.kube.client import GPUNODES, JSON, NODES

ASKED: JSON = {
    "metadata": {"name": "gpu-07", "uid": "uid-of-gpu-07"},
    "spec": {"request": {"id": "op-1:quiet:1", "quiet": True}},
}
ANSWER = observed(requestID="op-1:quiet:1", quiet=True)


@virtually
async def test_the_first_of_the_lists_that_prove_a_node_idle_is_made_when_its_agent_has_answered() -> None:
    async with gathering((GPUNODES, ASKED)) as stage:
        assert (await stage.work(0)).listed_at == at(0)
        assert (await stage.work(1)).listed_at == at(0), "nothing was answered"
        stage.cluster.patch(GPUNODES, "gpu-07", {"status": {"observed": ANSWER}}, subresource="status")
        await stage.seen()
        first = await stage.work(2)
        assert (first.listed_at, first.quiet_since) == (at(2), at(2))
        assert (await stage.work(4.9)).listed_at == at(2), "once for each answer"
        assert (await stage.work(5)).listed_at == at(5)


@virtually
async def test_a_snapshot_has_the_age_of_each_view_that_decides() -> None:
    async with gathering() as stage:
        silent = stage.cluster.faults.fail("watch", NODES, SILENCE, times=EVER)
        listless = stage.cluster.faults.fail("list", NODES, SILENCE, times=EVER)
        stage.cluster.close_watches()
        await asyncio.sleep(140)
        ages = dict((await stage.snapshot()).view_ages)
        pods = {"agent pods", "operand pods", "device-plugin chart pods"}
        assert set(ages) == {"nodes", "gpunodes", "configmaps", *pods}
        assert 135 < ages.pop("nodes") < 145
        assert max(ages.values()) < 61
        assert (await stage.snapshot()).old_views == ""
        await asyncio.sleep(20)
        assert (await stage.snapshot()).old_views == "nodes"
        silent.lift()
        listless.lift()
        await asyncio.sleep(120)
        assert (await stage.snapshot()).old_views == ""
