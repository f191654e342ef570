"""The chart value gpuOperator.namespace is changed in the middle of a change, and changed back."""

from collections.abc import Iterator

import pytest
from tests.integration.product import FULL, HELD, MIXED, Pool, Product
from tests.integration.workloads import PDBS, Workload, guard

from hack import launch

OTHER = "nvidia"
"""An existing namespace in which none of NVIDIA's pods run."""


def set_namespace(product: Product, name: str) -> None:
    launch.install_chart(product.plane.kubeconfig, "--set", f"operator.replicaCount=0,gpuOperator.namespace={name}")


@pytest.fixture(autouse=True)
def _set_back(product: Product) -> Iterator[None]:
    product.api.ensure("/api/v1/namespaces", {"metadata": {"name": OTHER}})
    yield
    set_namespace(product, product.namespace)


def assert_unharmed(pool: Pool, stage: str) -> None:
    assert (pool.fence()["stage"], pool.fence()["failed"]) == (stage, None)
    assert pool.node()["spec"]["unschedulable"]


def test_a_change_past_its_point_of_no_return_waits_and_has_not_failed(product: Product) -> None:
    with product.pool() as pool:
        with product.operator("before", **HELD):
            pool.serve(FULL)
            pool.hold()
            pool.apply(MIXED)
            pool.wait_held()
        set_namespace(product, OTHER)
        with product.operator("elsewhere", gpu_operator_namespace=OTHER, **HELD):
            pool.let_go()
            pool.wait_phase("Verifying", "GPUOperatorElsewhere")
            assert "set chart value gpuOperator.namespace=gpu-operator" in pool.summary()["message"]
            assert_unharmed(pool, "actuating")
        set_namespace(product, product.namespace)
        with product.operator("after"):
            pool.wait_synced()
        assert not pool.api.get(pool.path)["status"].get("failures")


def test_a_drain_stops_and_goes_on(product: Product) -> None:
    with product.pool() as pool:
        with product.operator("before"):
            pool.serve(FULL)
            work = Workload(pool, pool.nodes[0], 2)
            work.wait_running(2)
            guard(pool, pool.name, 1, minAvailable=1)
            pool.apply(MIXED)
            pool.wait_phase("Draining", "PDBInUse")
        set_namespace(product, OTHER)
        with product.operator("elsewhere", gpu_operator_namespace=OTHER):
            pool.wait_phase("Cordoned", "GPUOperatorElsewhere")
            assert_unharmed(pool, "fenced")
        set_namespace(product, product.namespace)
        with product.operator("after"):
            pool.wait_phase("Draining", "PDB")
            product.api.merge_patch(f"{PDBS}/{pool.name}-guard", {"spec": {"minAvailable": 0}})
            pool.wait_synced()
