"""Who only looks writes nothing, whatever it is told."""

from collections.abc import Awaitable, Callable

import pytest
from hack.sim.fakecluster import FakeCluster

from gpusharing.cli.live.onlooker import Onlooker
from gpusharing.kube.client import NODES

Call = Callable[[Onlooker], Awaitable[object]]
WRITES: dict[str, Call] = {
    "create": lambda client: client.create(NODES, {"metadata": {"name": "n"}}),
    "patch": lambda client: client.patch(NODES, "n", {"spec": {"unschedulable": True}}),
    "delete": lambda client: client.delete(NODES, "n", uid="u"),
    "evict": lambda client: client.evict("default", "pod", "u"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_a_write_never_leaves(write: Call) -> None:
    cluster = FakeCluster()
    cluster.add(NODES, {"metadata": {"name": "n"}})
    before = len(cluster.writes)
    with pytest.raises(RuntimeError, match="a read-only client was asked to"):
        await write(Onlooker(cluster.client("person")))
    assert len(cluster.writes) == before


async def test_what_is_there_is_seen() -> None:
    cluster = FakeCluster()
    cluster.add(NODES, {"metadata": {"name": "n"}})
    client = Onlooker(cluster.client("person"))
    assert (await client.get(NODES, "n"))["metadata"]["name"] == "n"
    assert [len(page.items) async for page in client.pages(NODES)] == [1]
    assert await client.version() == cluster.version
