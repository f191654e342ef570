"""The agent's client keeps its part of the contract, as the operator's does, over the same SIMULATED server.
The operator's client keeps all of it over a real server, too: tests/kube/test_contract_cluster.py."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from tests.fakes.apiserver import FakeServer, fake_server
from tests.fakes.login import AnonymousLogin
from tests.kube.contract import ObjectContract

from gpusharing.agent.rest import RestClient
from gpusharing.kube.client import MEDIK8S_MAINTENANCES, KubeClient, Resource
from gpusharing.kube.http import HttpClient


@dataclass
class ServerOnLoopback:
    """A FakeCluster behind HTTP."""

    fake: FakeServer
    client: KubeClient
    name: str = "team-a"
    missing: Resource = MEDIK8S_MAINTENANCES

    async def forget_history(self) -> None:
        self.fake.cluster.expire()

    async def terminate_namespace(self) -> None:
        self.fake.cluster.terminating_namespaces.add(self.name)


CLIENTS: dict[str, Callable[[str, HttpClient], KubeClient]] = {
    "the agent's client": lambda url, _: RestClient(AnonymousLogin(url)),
    "the operator's client": lambda _, operators: operators,
}


@pytest.fixture(params=CLIENTS.values(), ids=list(CLIENTS))
async def server(request: pytest.FixtureRequest) -> AsyncIterator[ServerOnLoopback]:
    async with fake_server() as fake, HttpClient(AnonymousLogin(fake.url)) as operators:
        fake.absent.add(MEDIK8S_MAINTENANCES)
        yield ServerOnLoopback(fake, request.param(fake.url, operators))


class TestClientsOfOneServer(ObjectContract):
    """Rung 1."""
