"""A real API server keeps the contract, through HttpClient: what FakeCluster is held against."""

import base64
import contextlib
import itertools
import json
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import pytest
from hack.cluster.controlplane import ControlPlane
from tests.integration.test_faults_around import compact
from tests.kube.contract import ObjectContract, PodContract, config_map

from gpusharing.kube.client import CONFIG_MAPS, EVENTS, GPUNODES, JSON, NAMESPACES, NODES, KubeClient, Resource
from gpusharing.kube.errors import AlreadyExists, Expired, NotFound
from gpusharing.kube.http import HttpClient, Limits
from gpusharing.kube.login import OfficialLogin

pytestmark = pytest.mark.cluster

SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", namespaced=True)
UNICORNS = Resource("gpusharing.dev", "v1alpha1", "unicorns")
NUMBERS = itertools.count()


@dataclass
class RealServer:
    client: KubeClient
    name: str
    missing: Resource = UNICORNS

    async def forget_history(self) -> None:
        """The watch cache of a custom resource begins when its CRD is installed, long after version 1."""

    async def terminate_namespace(self) -> None:
        await self.client.create(CONFIG_MAPS, config_map("holds", finalizers=["a.b/c"]), namespace=self.name)
        namespace = await self.client.get(NAMESPACES, self.name)
        await self.client.delete(NAMESPACES, self.name, uid=namespace["metadata"]["uid"])


@pytest.fixture
async def server(control_plane: ControlPlane) -> AsyncIterator[RealServer]:
    name = f"contract-{os.getpid()}-{next(NUMBERS)}"
    async with HttpClient(OfficialLogin(control_plane.kubeconfig)) as client:
        await client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        with contextlib.suppress(AlreadyExists):  # pods need it, and its controller may be slower than we are
            await client.create(SERVICE_ACCOUNTS, account, namespace=name)
        yield RealServer(client, name)
        for resource in (NODES, GPUNODES):
            with contextlib.suppress(NotFound):
                left = await client.get(resource, name)
                await client.delete(resource, name, uid=left["metadata"]["uid"])


async def test_a_quiet_watch_of_events_ends_and_does_not_break(control_plane: ControlPlane) -> None:
    """The API server sends no bookmark of them: a watch of the usual length would be taken for dead."""
    limits = Limits(inactivity=3.0)
    async with HttpClient(OfficialLogin(control_plane.kubeconfig), limits=limits) as client:
        version = (await client.list_page(EVENTS, namespace="quiet")).resource_version
        async with aclosing(client.watch(EVENTS, version, namespace="quiet")) as events:
            assert [event.type async for event in events] == []


async def test_a_token_that_has_expired_comes_with_one_for_the_rest_of_the_list(
    server: RealServer, control_plane: ControlPlane
) -> None:
    """The token is made older than what etcd and the API server remember of GPUNodes."""
    client, mine = server.client, f"test={server.name}"

    async def create(number: int) -> JSON:
        metadata = {"name": f"{server.name}-{number}", "labels": {"test": server.name}}
        body = {"apiVersion": GPUNODES.api_version, "kind": "GPUNode", "metadata": metadata, "spec": {}}
        return await client.create(GPUNODES, body)

    nodes = [await create(number) for number in range(3)]
    compact(control_plane)
    first = await client.list_page(GPUNODES, limit=1, label_selector=mine)
    token = json.loads(base64.urlsafe_b64decode(first.more + "=" * (-len(first.more) % 4)))
    old = base64.urlsafe_b64encode(json.dumps({**token, "rv": 1}).encode()).decode().rstrip("=")
    nodes.append(await create(3))
    with pytest.raises(Expired) as expired:
        await client.list_page(GPUNODES, limit=1, label_selector=mine, after=old)
    second = await client.list_page(GPUNODES, limit=2, label_selector=mine, after=expired.value.rest)
    last = await client.list_page(GPUNODES, limit=2, label_selector=mine, after=second.more)
    assert [item["metadata"]["uid"] for item in (*second.items, *last.items)] == [
        node["metadata"]["uid"] for node in nodes[1:]
    ]
    assert int(second.resource_version) > int(first.resource_version)
    assert not last.more
    whole = await client.list_page(GPUNODES, limit=0, label_selector=mine)
    assert not whole.more
    assert [item["metadata"]["uid"] for item in whole.items] == [node["metadata"]["uid"] for node in nodes]
    for node in nodes:
        await client.delete(GPUNODES, node["metadata"]["name"], uid=node["metadata"]["uid"])


class TestObjectsOfTheApiServer(ObjectContract):
    """Rung 2."""


class TestPodsOfTheApiServer(PodContract):
    """Rung 2."""
