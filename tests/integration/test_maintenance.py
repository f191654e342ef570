"""Somebody else maintains a SIMULATED node: NodeMaintenance objects on a real API server, under the shipped rights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster.api import Object
from hack.cluster.install import install_crds
from tests.integration.product import SLICED, Pool, Product

CRDS = Path(__file__).with_name("maintenance-crds.yaml")
MEDIK8S = "/apis/nodemaintenance.medik8s.io/v1beta1/nodemaintenances"
NVIDIA = "/apis/maintenance.nvidia.com/v1alpha1/namespaces/default/nodemaintenances"
KINDS: dict[str, tuple[str, Object, str]] = {
    "medik8s": (MEDIK8S, {"apiVersion": "nodemaintenance.medik8s.io/v1beta1"}, "medik8s NodeMaintenance {}"),
    "NVIDIA": (
        NVIDIA,
        {"apiVersion": "maintenance.nvidia.com/v1alpha1"},
        "NVIDIA NodeMaintenance default/{} for fabric.example.com",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def operator(product: Product) -> Iterator[None]:
    """One operator for this module, started where both kinds are installed."""
    install_crds(product.api, CRDS)
    with product.operator("maintenance") as process:
        yield
        assert process.exit_status is None, process.log.read_text()[-3000:]


def begin(pool: Pool, kind: str) -> str:
    """Create a NodeMaintenance for the first node; returns who is at work then. NVIDIA's operator has chosen it."""
    path, head, who = KINDS[kind]
    spec = {"nodeName": pool.nodes[0], "requestorID": "fabric.example.com"}
    pool.create(path, {**head, "kind": "NodeMaintenance", "metadata": {"name": pool.name}, "spec": spec})
    if kind == "NVIDIA":
        condition = {"type": "Ready", "status": "False", "reason": "Scheduled"}
        pool.api.merge_patch(f"{path}/{pool.name}/status", {"status": {"conditions": [condition]}})
    return who.format(pool.name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_maintenance_of_each_kind_is_watched_and_its_end_lets_the_change_start(product: Product, kind: str) -> None:
    with product.pool() as pool:
        since = product.mark()
        who = begin(pool, kind)
        pool.apply(SLICED)
        message = pool.wait_phase("Blocked", "ForeignMaintenance")
        assert message == f"{who} is working on {pool.nodes[0]}; waiting until it has finished"
        assert product.writes("nodes", pool.nodes[0], since) == []
        pool.api.delete(f"{KINDS[kind][0]}/{pool.name}")
        pool.wait_synced()
        refused = [r.path for r in product.requests(since) if r.status == 403]
        assert refused == [], "the shipped rights suffice"
        asked = {(r.group, r.verb) for r in product.requests() if r.resource == "nodemaintenances"}
        group = KINDS[kind][1]["apiVersion"].partition("/")[0]
        assert {verb for where, verb in asked if where == group} == {"list", "watch"}, "all that is granted"
