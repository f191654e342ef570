"""One object fails for ever on a real API server: its node alone waits, named, and goes on when it is well again.
Three rows of tests/embedded/test_sick.py, one of each sort of answer, through the real client and a proxy that answers for the sick object."""

from collections.abc import Iterator

import pytest
from hack.cluster.api import Object
from hack.faultproxy import FaultProxy, PlayedRefusal
from tests.fakes.tls import Identity
from tests.integration.product import FACTOR, H100, LEASE, NODES, SLICED, STEADY, WAITS, Pool, Product
from tests.integration.workloads import PODS, pod_spec

from hack import launch

WORDS = "the fault proxy says no"
NAMED = {"ListFailed", "EvictionError", "CallFailed"}


@pytest.fixture(scope="module")
def proxy(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """What the calls of an operator under the shipped rights go through."""
    directory, api = tmp_path_factory.mktemp("sick"), product.api
    product.remove(LEASE)
    identity = Identity(directory / "tls")
    with FaultProxy(api.url, api.ca_pem, tls=identity.context()) as proxy:
        door = launch.Door(proxy.url, identity.authority)
        with launch.operator(product.plane.kubeconfig, directory, FACTOR, door, **WAITS, **STEADY) as process:
            yield proxy
            assert process.exit_status is None, process.log.read_text()[-3000:]


ROWS: dict[str, tuple[str, str, PlayedRefusal | None]] = {
    "LIST of its pods, no answer": ("GET", "pods", None),
    "eviction, 500": ("POST", "eviction", PlayedRefusal(500, WORDS)),
    "Node, 409": ("PATCH", "node", PlayedRefusal(409, WORDS, "Conflict")),
}


def fall_ill(proxy: FaultProxy, pool: Pool, method: str, what: str, answer: PlayedRefusal | None) -> None:
    node = pool.nodes[0]
    paths = {"pods": "/api/v1/pods", "eviction": f"{PODS}/{pool.name}-job/eviction", "node": f"{NODES}/{node}"}
    proxy.fail(method, paths[what], answer, query=f"spec.nodeName={node}" if what == "pods" else "")


@pytest.mark.parametrize(("method", "what", "answer"), ROWS.values(), ids=ROWS.keys())
def test_a_sick_object_keeps_its_own_node_only_and_is_named(
    proxy: FaultProxy, product: Product, method: str, what: str, answer: PlayedRefusal | None
) -> None:
    with product.pool(H100, H100) as pool:
        sick, healthy = pool.nodes
        pool.create(PODS, {"metadata": {"name": f"{pool.name}-job"}, "spec": pod_spec(sick)})
        pool.wait(lambda: product.api.get(f"{PODS}/{pool.name}-job")["status"]["phase"] == "Running", "the pod")
        proxy.reset()
        fall_ill(proxy, pool, method, what, answer)
        drain = {"unmanagedPods": "Evict", "strandedPods": "Allow"}
        pool.apply({**SLICED, "drain": drain, "rollout": {"maxUnavailable": "100%"}})
        pool.wait_phase("Synced", name=healthy)
        shown: Object = {}

        def named() -> bool:
            shown.update(pool.transition(sick))
            return shown.get("reason") in NAMED

        pool.wait(named, "the node to be named")
        message = str(shown["message"])
        assert WORDS in message or answer is None or "each of 3 attempts" in message, message
        proxy.reset()
        pool.wait_synced()
