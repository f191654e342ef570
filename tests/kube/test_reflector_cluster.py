"""The cache, the projection and the Node patches together on a real API server."""

import asyncio
import os
from datetime import UTC, datetime, timedelta

import pytest
from hack.cluster.controlplane import ControlPlane

from gpusharing.api.names import DisruptionClass
from gpusharing.kube.client import NODES
from gpusharing.kube.convert import node_view
from gpusharing.kube.errors import Conflict, Invalid
from gpusharing.kube.fence import NodePatch, patch_for
from gpusharing.kube.http import HttpClient
from gpusharing.kube.lease import LeaderLease
from gpusharing.kube.login import OfficialLogin
from gpusharing.kube.reflector import Reflector
from gpusharing.planning.snapshot.actions import FenceNode, LabelNode, Release
from gpusharing.planning.snapshot.records import Claim, Fence, SpecVersion, Verified
from gpusharing.planning.snapshot.views import NodeView

pytestmark = pytest.mark.cluster

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)


def fence(node: NodeView) -> Fence:
    return Fence(
        "op",
        "pool-b",
        SpecVersion("uid-pool-b", "r1"),
        node.uid,
        False,
        (),
        DisruptionClass.GPU_PODS,
        "4x shared",
        "fenced",
        1,
        1,
        1,
        NOW,
        NOW,
        NOW + timedelta(minutes=15),
    )


async def test_a_node_is_fenced_and_released_by_conditional_patches(control_plane: ControlPlane) -> None:
    name = f"reflected-{os.getpid()}"
    changed = asyncio.Event()
    async with HttpClient(OfficialLogin(control_plane.kubeconfig)) as client:
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"test": name, "gpusharing.dev/mode": "full"}},
        }
        created = await client.create(NODES, body)
        cache = Reflector(client, NODES, node_view, label_selector=f"test={name}", on_change=lambda _: changed.set())
        following = asyncio.create_task(cache.run())
        try:
            async with asyncio.timeout(60):
                await cache.synced.wait()
                await _fence_and_release(client, cache, name)
                changed.clear()
                await client.delete(NODES, name, uid=created["metadata"]["uid"])
                await changed.wait()
            assert name not in cache.items
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def _fence_and_release(client: HttpClient, cache: Reflector[NodeView], name: str) -> None:
    before, stale = cache.items[name], cache.version(name)
    fencing = FenceNode(before, fence(before), cordon=True, labels={"gpusharing.dev/mode": None})
    await _patched(client, cache, fencing)
    fenced = cache.items[name]
    assert fenced.unschedulable
    assert fenced.fence == fence(before)
    assert "gpusharing.dev/mode" not in fenced.labels
    with pytest.raises(Conflict):
        await client.patch(NODES, name, patch_for(fencing, stale))

    verified = Verified("pool-b", "", "pool-b-1", layout="1x full", gpus=1)
    await _patched(client, cache, Release(fenced, True, {"gpusharing.dev/mode": "time-slicing"}, verified))
    free = cache.items[name]
    assert (free.unschedulable, free.fence, free.verified) == (False, None, verified)
    assert free.labels["gpusharing.dev/mode"] == "time-slicing"

    another = LabelNode(NodeView("x", "another-uid", {}, {}, ready=True, unschedulable=False), {"x": "y"})
    with pytest.raises((Conflict, Invalid)):
        await client.patch(NODES, name, patch_for(another, ""))


async def _patched(client: HttpClient, cache: Reflector[NodeView], action: NodePatch) -> None:
    """One conditional patch, again after a Conflict: the cluster's own controllers write to new nodes too."""
    name = next(iter(cache.items))
    while True:
        try:
            cache.accept(await client.patch(NODES, name, patch_for(action, cache.version(name))))
            return
        except Conflict:
            cache.accept(await client.get(NODES, name))


async def test_the_lease_changes_hands_with_its_claims(control_plane: ControlPlane) -> None:
    name = f"leader-{os.getpid()}"
    claims = {"gpu-07": Claim("u7", "pool-b", "op-1")}
    async with HttpClient(OfficialLogin(control_plane.kubeconfig)) as client:
        first, second = (
            LeaderLease(client, "default", name, identity, on_lost=lambda: pytest.fail("the Lease was lost"))
            for identity in ("a", "b")
        )
        async with asyncio.timeout(60):
            leading = asyncio.create_task(first.run())
            await first.acquired.wait()
            await first.set_claims(claims, {})
            following = asyncio.create_task(second.run())
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)
            await second.acquired.wait()
        assert second.claims == claims
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
