"""An agent whose pod a real API server does not create, and NVIDIA's DRA stack: both are refused by name.
What else can be wrong about a policy or a node: tests/embedded/test_bad_input.py, test_refused.py, test_troubles.py, and of what the CRD refuses tests/api/test_policy_table.py."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hack.cluster.nodes import create_nodes, node_manifest
from tests.drafacts import NAMESPACE, driver, mig_device, resource_slice
from tests.integration.product import CLUSTER_POLICY, FULL, L40S, SLICED, Pool, Product

from hack import launch

pytestmark = pytest.mark.usefixtures("operator")

SETS = f"/apis/apps/v1/namespaces/{launch.AGENT_NAMESPACE}/daemonsets/gpusharing-agent"
ENFORCE = "pod-security.kubernetes.io/enforce"
RUNTIME_CLASS = "/apis/node.k8s.io/v1/runtimeclasses/nvidia"


@contextmanager
def restricted(product: Product) -> Iterator[None]:
    path = f"/api/v1/namespaces/{launch.AGENT_NAMESPACE}"
    before = product.api.get(path)["metadata"]["labels"][ENFORCE]
    product.api.merge_patch(path, {"metadata": {"labels": {ENFORCE: "restricted"}}})
    try:
        yield
    finally:
        product.api.merge_patch(path, {"metadata": {"labels": {ENFORCE: before}}})


@contextmanager
def no_runtime_class(product: Product) -> Iterator[None]:
    product.api.delete(RUNTIME_CLASS)
    try:
        yield
    finally:
        launch.runtime_class(product.api)


KEPT_OUT = {
    "PodSecurity forbids it": (
        restricted,
        (
            'violates PodSecurity "restricted:latest"',
            f"kubectl label --overwrite namespace {launch.AGENT_NAMESPACE} {ENFORCE}=privileged",
        ),
    ),
    "there is no RuntimeClass": (no_runtime_class, ('RuntimeClass "nvidia" not found', "agent.runtimeClassName")),
}


@pytest.mark.parametrize("case", KEPT_OUT)
def test_an_agent_that_the_api_server_refuses_is_told_with_its_words(product: Product, case: str) -> None:
    kept_out, words = KEPT_OUT[case]
    with kept_out(product), product.pool(L40S) as pool:
        pool.apply(SLICED)
        pool.wait_phase("Blocked", "AgentRefused")
        # Until the refusal of this pod is known, that of an earlier one may stand there.
        pool.wait(lambda: all(word in pool.transition()["message"] for word in words), f"{words}", pool.transition)
        wait_stalled(pool, words)
        assert product.writes("nodes", pool.nodes[0]) == []
    # The DaemonSet controller, which waits longer after every refusal, tries at once.
    product.api.merge_patch(SETS, {"metadata": {"annotations": {"tests/tried": uuid.uuid4().hex}}})
    with product.pool(L40S) as pool:
        pool.serve(SLICED)


@contextmanager
def dra_instead_of_the_plugin(product: Product) -> Iterator[None]:
    """NVIDIA's DRA driver is installed, and ClusterPolicy has the device plugin off. No kubelet plugin runs."""
    sets = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"
    raw = driver()
    product.api.create(sets, raw)
    product.api.merge_patch(CLUSTER_POLICY, {"spec": {"devicePlugin": {"enabled": False}}})
    try:
        yield
    finally:
        product.api.merge_patch(CLUSTER_POLICY, {"spec": {"devicePlugin": {"enabled": None}}})
        product.api.delete(f"{sets}/{raw['metadata']['name']}")


def test_nodes_of_nvidias_dra_stack_are_refused_with_what_is_missing(product: Product) -> None:
    """The ResourceSlice is a real one. Its GPUs are also served by a device plugin that ClusterPolicy does not run: the simulated one stops, and the test advertises in its place."""
    slices = "/apis/resource.k8s.io/v1/resourceslices"
    with product.pool(empty=True) as pool:
        manifest = node_manifest(f"{pool.name}-0", product=L40S, gpus=2, pool=pool.name, plugin=False)
        pool.nodes += create_nodes(pool.api, [manifest])
        (node,) = pool.nodes
        pool.wait(lambda: pool.offered() == {"nvidia.com/gpu": 2}, "the simulated device plugin", pool.node)
        with dra_instead_of_the_plugin(product):
            pool.wait(lambda: pool.offered() == {}, "the simulated device plugin to stop", pool.node)
            pool.create(slices, resource_slice(node, [mig_device(0, "1g.10gb", 1)]))
            served = {"capacity": {"nvidia.com/gpu": "2"}, "allocatable": {"nvidia.com/gpu": "2"}}
            pool.api.merge_patch(f"/api/v1/nodes/{node}/status", {"status": served})
            pool.apply(FULL)
            wait_refused(pool, f"both manage the GPUs on {node}")
            pool.apply(SLICED)
            wait_refused(pool, "would require consumable capacity")
            assert product.writes("nodes", node) == []
    with product.pool(L40S) as pool:
        pool.serve(SLICED)


def wait_refused(pool: Pool, words: str) -> None:
    """Until the policy is refused in these words: what the operator reads of the driver arrives piece by piece."""
    pool.wait_condition("Accepted", "False", "UnsupportedStack")
    pool.wait(lambda: words in pool.condition("Accepted").get("message", ""), words, lambda: pool.condition("Accepted"))


def wait_stalled(pool: Pool, words: tuple[str, ...]) -> None:
    """Until the policy says it as well: before that it may have said less."""
    pool.wait_condition("Stalled", "True", "Blocked")
    pool.wait(lambda: all(word in pool.condition("Stalled").get("message", "") for word in words), f"{words}")
