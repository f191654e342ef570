"""The agent's client keeps its part of the contract, as the operator's does, over the same SIMULATED server.

The operator's client keeps all of it over a real server, too: tests/kube/test_contract_cluster.py.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.fakes.apiserver import FakeServer, fake_server
from tests.fakes.login import AnonymousLogin
from tests.kube.contract import NodeAPIContract

from gpusharing.agent.rest import RestClient
from gpusharing.kube.client import JSON, MEDIK8S_MAINTENANCES, KubeClient, NodeAPI, Page, Resource, WatchEvent
from gpusharing.kube.http import HttpClient
from gpusharing.kube.passing import PassingClient


class Agents(PassingClient):
    """The verbs of the agent's client; what it lacks, and tests need to arrange something, is the operator's."""

    def __init__(self, api: NodeAPI, others: KubeClient) -> None:
        super().__init__(others)
        self.api = api

    def pages(self, resource: Resource, **where: Any) -> AsyncIterator[Page]:
        """See Followable."""
        return self.api.pages(resource, **where)

    def watch(self, resource: Resource, resource_version: str, **where: Any) -> AsyncIterator[WatchEvent]:
        """See Followable."""
        return self.api.watch(resource, resource_version, **where)

    async def served(self, resource: Resource) -> bool:
        """See Followable."""
        return await self.api.served(resource)

    async def patch(self, resource: Resource, name: str, body: JSON, **where: Any) -> JSON:
        """See NodeAPI."""
        return await self.api.patch(resource, name, body, **where)


@dataclass
class ServerOnLoopback:
    """A FakeCluster behind HTTP."""

    fake: FakeServer
    client: KubeClient
    name: str = "team-a"
    missing: Resource = MEDIK8S_MAINTENANCES

    async def forget_history(self) -> None:
        """See Server."""
        self.fake.cluster.expire()

    async def terminate_namespace(self) -> None:
        """See Server."""
        self.fake.cluster.terminating_namespaces.add(self.name)


CLIENTS: dict[str, Callable[[str, HttpClient], KubeClient]] = {
    "the agent's client": lambda url, operators: Agents(RestClient(AnonymousLogin(url)), operators),
    "the operator's client": lambda _, operators: operators,
}


@pytest.fixture(params=CLIENTS.values(), ids=list(CLIENTS))
async def server(request: pytest.FixtureRequest) -> AsyncIterator[ServerOnLoopback]:
    async with fake_server() as fake, HttpClient(AnonymousLogin(fake.url)) as operators:
        fake.absent.add(MEDIK8S_MAINTENANCES)
        yield ServerOnLoopback(fake, request.param(fake.url, operators))


class TestClientsOfOneServer(NodeAPIContract):
    """Rung 1."""
