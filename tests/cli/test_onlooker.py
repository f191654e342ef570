"""Who only looks writes nothing, whatever it is told."""

from collections.abc import Awaitable, Callable

import pytest
from hack.sim.fakecluster import FakeCluster

from gpusharing.kube.client import NODES, POLICIES
from gpusharing.kube.lists import list_of
from kubectl_gpusharing.live.cluster import Onlooker

Call = Callable[[Onlooker], Awaitable[object]]
WRITES: dict[str, tuple[Call, str]] = {
    "create": (lambda client: client.create(NODES, {"metadata": {"name": "n"}}), "create nodes n"),
    "patch": (lambda client: client.patch(NODES, "n", {"spec": {"unschedulable": True}}), "patch nodes n"),
    "delete": (lambda client: client.delete(NODES, "n", uid="u"), "delete nodes n"),
    "evict": (lambda client: client.evict("default", "pod", "u"), "create pods default/pod"),
}


@pytest.mark.parametrize(("write", "told"), WRITES.values(), ids=WRITES.keys())
async def test_a_write_never_leaves(write: Call, told: str) -> None:
    cluster = FakeCluster()
    cluster.add(NODES, {"metadata": {"name": "n"}})
    before = len(cluster.writes)
    with pytest.raises(RuntimeError, match=f"a read-only client was asked to {told}$"):
        await write(Onlooker(cluster.client("person")))
    assert len(cluster.writes) == before


async def test_what_is_there_is_seen() -> None:
    cluster = FakeCluster()
    cluster.add(NODES, {"metadata": {"name": "n"}})
    client = Onlooker(cluster.client("person"))
    assert (await client.get(NODES, "n"))["metadata"]["name"] == "n"
    assert len(await list_of(client, NODES)) == 1
    assert await client.version() == cluster.version


async def test_a_policy_exported_while_it_was_deleted_is_shown_as_the_server_would_create_it() -> None:
    spec = {"nodeSelector": {"matchLabels": {"a": "b"}}, "mode": "Full"}
    served = {
        "uid": "u",
        "creationTimestamp": "2024-01-01T00:00:00Z",
        "deletionTimestamp": "2024-01-02T00:00:00Z",
        "finalizers": ["gpusharing.dev/in-flight"],
        "generation": 7,
    }
    exported = {"metadata": {"name": "p", "annotations": {"a": "b"}, **served}, "spec": spec, "status": {"nodes": 1}}
    listed = await list_of(Onlooker(FakeCluster().client("person"), [exported]), POLICIES)
    metadata = {"name": "p", "annotations": {"a": "b"}, "generation": 1, "resourceVersion": "0"}
    assert listed == [{"metadata": metadata, "spec": spec}]
