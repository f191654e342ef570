"""What a 429 to the LIST of a node's pods changes (kube/gather.py)."""

from hack.sim.fakefaults import EVER
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering

from gpusharing.kube.client import PODS
from gpusharing.kube.errors import Throttled


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
