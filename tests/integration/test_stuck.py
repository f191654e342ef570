"""A pod that never goes, on a real API server: its node waits and says for whom, the others go on."""

import pytest
from hack.cluster.api import Object
from tests.integration.product import L40S, SLICED, Pool, Product
from tests.integration.workloads import PODS, pod_spec

pytestmark = pytest.mark.usefixtures("operator")

KEEP = "example.com/keep"


def kept_pod(pool: Pool) -> str:
    """A running pod on the first node with a finalizer that nobody takes away; returns its name."""
    name = f"{pool.name}-kept"
    pool.create(PODS, {"metadata": {"name": name, "finalizers": [KEEP]}, "spec": pod_spec(pool.nodes[0])})
    pool.wait(lambda: pool.api.get(f"{PODS}/{name}")["status"]["phase"] == "Running", "the pod")
    return name


def let_go(pool: Pool, name: str) -> None:
    pool.api.merge_patch(f"{PODS}/{name}", {"metadata": {"finalizers": None}})


def drained(on_timeout: str) -> Object:
    drain = {"unmanagedPods": "Evict", "strandedPods": "Allow", "timeout": "8s", "onTimeout": on_timeout}
    return {**SLICED, "drain": drain, "rollout": {"maxUnavailable": 2}}


def test_with_hold_the_node_stays_cordoned_names_the_pod_and_goes_on_when_it_is_gone(
    product: Product,
) -> None:
    with product.pool(L40S, L40S) as pool:
        name, (sick, healthy) = kept_pod(pool), pool.nodes
        try:
            since = product.mark()
            pool.apply(drained("Hold"))
            pool.wait_phase("Synced", name=healthy)
            message = pool.wait_phase("Draining", "DrainHeld")
            told = pool.transition()
            assert "1 GPU pod left to go" in message
            assert (told["culprit"], told["cordon"], told["deadline"]) == (
                f"default/{name}",
                "ours",
                "person",
            )
            assert pool.node(sick)["spec"]["unschedulable"] is True
            assert len(product.writes("pods/eviction", since=since)) == 1, "it was asked once"
        finally:
            let_go(pool, name)
        pool.wait_synced()


def test_with_abort_the_node_is_given_back_and_the_next_try_waits(product: Product) -> None:
    with product.pool(L40S, L40S) as pool:
        name, (sick, healthy) = kept_pod(pool), pool.nodes
        try:
            pool.apply(drained("Abort"))
            pool.wait_phase("Synced", name=healthy)
            pool.wait(lambda: "ChangeGivenUp" in dict(pool.events()), "the end of the drain", pool.transition)
            assert "DrainTimeout" in dict(pool.events())["ChangeGivenUp"]
            pool.wait(lambda: not pool.node(sick)["spec"].get("unschedulable"), "the node to be given back")
        finally:
            let_go(pool, name)
        pool.wait_synced()
