"""One object fails for ever on a real API server: its node alone waits, named, and goes on when it is well again.

Ten rows of tests/embedded/test_sick.py, through the real client and a proxy that answers for the sick object.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hack.cluster.api import Object
from hack.faultproxy import FaultProxy, PlayedRefusal
from tests.fakes.tls import Identity
from tests.integration.product import (
    FACTOR,
    GPUNODES,
    H100,
    LEASE,
    NODES,
    SLICED,
    STEADY,
    WAITS,
    Pool,
    Product,
)
from tests.integration.workloads import PODS, pod_spec

from hack import launch

WORDS = "the fault proxy says no"
NAMED = {"ListFailed", "EvictionError", "CallFailed"}


@dataclass
class Sickbed:
    """A proxy, and the log of the operator behind it."""

    proxy: FaultProxy
    process: launch.LaunchedProcess

    def said(self) -> str:
        """The operator's log."""
        return self.process.log.read_text()


@pytest.fixture(scope="module")
def sickbed(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sickbed]:
    """An operator under the shipped rights whose calls go through a proxy."""
    directory, api = tmp_path_factory.mktemp("sick"), product.api
    product.remove(LEASE)
    identity = Identity(directory / "tls")
    with FaultProxy(api.url, api.ca_pem, tls=identity.context()) as proxy:
        door = launch.Door(proxy.url, identity.authority)
        with launch.operator(product.plane.kubeconfig, directory, FACTOR, door, **WAITS, **STEADY) as process:
            yield Sickbed(proxy, process)
            assert process.exit_status is None, process.log.read_text()[-3000:]


ROWS: dict[str, tuple[str, str, PlayedRefusal | None]] = {
    "LIST of its pods, 503": ("GET", "pods", PlayedRefusal(503, WORDS)),
    "LIST of its pods, no answer": ("GET", "pods", None),
    "eviction, 504": ("POST", "eviction", PlayedRefusal(504, WORDS)),
    "eviction, 500": ("POST", "eviction", PlayedRefusal(500, WORDS)),
    "Node, 500": ("PATCH", "node", PlayedRefusal(500, WORDS)),
    "Node, 409": ("PATCH", "node", PlayedRefusal(409, WORDS, "Conflict")),
    "Node, 429": ("PATCH", "node", PlayedRefusal(429, WORDS, "TooManyRequests", retry_after=1)),
    "Node, no answer": ("PATCH", "node", None),
    "GPUNode, 403": ("PATCH", "gpunode", PlayedRefusal(403, WORDS, "Forbidden")),
    "status of the GPUNode, 503": ("PATCH", "status", PlayedRefusal(503, WORDS)),
}


def fall_ill(bed: Sickbed, pool: Pool, method: str, what: str, answer: PlayedRefusal | None) -> None:
    """From now on calls about the first node of the pool fail."""
    node = pool.nodes[0]
    paths = {
        "pods": "/api/v1/pods",
        "eviction": f"{PODS}/{pool.name}-job/eviction",
        "node": f"{NODES}/{node}",
        "gpunode": f"{GPUNODES}/{node}",
        "status": f"{GPUNODES}/{node}/status",
    }
    bed.proxy.fail(method, paths[what], answer, query=f"spec.nodeName={node}" if what == "pods" else "")


@pytest.mark.parametrize(("method", "what", "answer"), ROWS.values(), ids=ROWS.keys())
def test_a_sick_object_keeps_its_own_node_only_and_is_named(
    sickbed: Sickbed, product: Product, method: str, what: str, answer: PlayedRefusal | None
) -> None:
    with product.pool(H100, H100, H100) as pool:
        sick, *healthy = pool.nodes
        pool.create(PODS, {"metadata": {"name": f"{pool.name}-job"}, "spec": pod_spec(sick)})
        pool.wait(
            lambda: product.api.get(f"{PODS}/{pool.name}-job")["status"]["phase"] == "Running", "the pod"
        )
        sickbed.proxy.reset()
        fall_ill(sickbed, pool, method, what, answer)
        drain = {"unmanagedPods": "Evict", "strandedPods": "Allow"}
        pool.apply({**SLICED, "drain": drain, "rollout": {"maxUnavailable": "100%"}})
        pool.wait(
            lambda: all(pool.transition(name).get("phase") == "Synced" for name in healthy),
            "the healthy nodes to be done",
        )
        if what == "status":
            pool.wait(lambda: f"node/{sick}" in sickbed.said(), "the log to name it")
        else:
            shown: Object = {}

            def named() -> bool:
                shown.update(pool.transition(sick))
                return shown.get("reason") in NAMED

            pool.wait(named, "the node to be named")
            message = str(shown["message"])
            assert WORDS in message or answer is None or "changed 3 times" in message, message
        sickbed.proxy.reset()
        pool.wait_synced()
