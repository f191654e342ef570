"""FakeCluster keeps the contract."""

from dataclasses import dataclass

import pytest
from hack.sim.fakecluster import FakeCluster
from tests.kube.contract import ObjectContract, PodContract

from gpusharing.kube.client import MEDIK8S_MAINTENANCES, KubeClient, Resource


@dataclass
class InMemoryServer:
    cluster: FakeCluster
    client: KubeClient
    name: str = "team-a"
    missing: Resource = MEDIK8S_MAINTENANCES

    async def forget_history(self) -> None:
        self.cluster.expire()

    async def terminate_namespace(self) -> None:
        self.cluster.terminating_namespaces.add(self.name)


@pytest.fixture
def server() -> InMemoryServer:
    cluster = FakeCluster()
    cluster.uninstall(MEDIK8S_MAINTENANCES)
    return InMemoryServer(cluster, cluster.client("contract"))


class TestObjectsOfFakeCluster(ObjectContract):
    """Rung 1."""


class TestPodsOfFakeCluster(PodContract):
    """Rung 1."""
