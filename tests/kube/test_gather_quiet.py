"""How proofs of idleness live: when pods are listed, and what a refused LIST changes (kube/gather.py)."""

from hack.sim.fakefaults import EVER
from tests.build import at
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.objects import observed

from gpusharing.kube.client import GPUNODES, JSON, PODS
from gpusharing.kube.errors import Throttled

ASKED: JSON = {
    "metadata": {"name": "gpu-07", "uid": "uid-of-gpu-07"},
    "spec": {"request": {"id": "op-1:quiet:1", "quiet": True}},
}
ANSWER = observed(requestID="op-1:quiet:1", quiet=True)


@virtually
async def test_the_first_of_the_lists_that_prove_a_node_idle_is_made_when_its_agent_has_answered() -> None:
    """The time between the two is all that is waited for."""
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
async def test_pods_that_the_server_refuses_to_list_are_as_they_were_for_two_minutes() -> None:
    async with gathering() as stage:
        busy = Throttled("too many requests", 30.0)
        stage.cluster.faults.fail("list", PODS, busy, identity="operator")
        assert "cannot be listed: too many requests" in (await stage.work(-9)).error, "they were never seen"
        before = await stage.work()
        stage.cluster.faults.fail("list", PODS, busy, identity="operator", times=EVER)
        assert await stage.work(3) == await stage.work(119) == before
        assert "cannot be listed: too many requests" in (await stage.work(120)).error
