"""A real API server keeps the contract, through HttpClient: what FakeCluster is held against."""

import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hack.cluster.controlplane import ControlPlane
from tests.kube.contract import ObjectContract, PodContract, config_map

from gpusharing.kube.client import CONFIG_MAPS, EVENTS, GPUNODES, NODES, KubeClient, Resource
from gpusharing.kube.errors import AlreadyExists, NotFound
from gpusharing.kube.http import HttpClient, Limits
from gpusharing.kube.streams import closing

pytestmark = pytest.mark.cluster

NAMESPACES = Resource("", "v1", "namespaces")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", namespaced=True)
UNICORNS = Resource("gpusharing.dev", "v1alpha1", "unicorns")
NUMBERS = itertools.count()


@dataclass
class RealServer:
    """A namespace and a node name on the shared control plane."""

    client: KubeClient
    name: str
    missing: Resource = UNICORNS

    async def forget_history(self) -> None:
        """The watch cache of a custom resource begins when its CRD is installed, long after version 1."""

    async def terminate_namespace(self) -> None:
        """See Server."""
        await self.client.create(CONFIG_MAPS, config_map("holds", finalizers=["a.b/c"]), namespace=self.name)
        namespace = await self.client.get(NAMESPACES, self.name)
        await self.client.delete(NAMESPACES, self.name, uid=namespace["metadata"]["uid"])


@pytest.fixture
async def server(control_plane: ControlPlane) -> AsyncIterator[RealServer]:
    name = f"contract-{os.getpid()}-{next(NUMBERS)}"
    async with await HttpClient.connect(control_plane.kubeconfig) as client:
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
    async with await HttpClient.connect(control_plane.kubeconfig, limits=limits) as client:
        version = [page.resource_version async for page in client.pages(EVENTS, namespace="quiet")][-1]
        async with closing(client.watch(EVENTS, version, namespace="quiet")) as events:
            assert [event.type async for event in events] == []


class TestObjectsOfTheApiServer(ObjectContract):
    """Rung 2."""


class TestPodsOfTheApiServer(PodContract):
    """Rung 2."""
