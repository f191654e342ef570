"""What people do to the installation on a real API server, under the shipped rights: our ConfigMaps are taken by somebody else, handed over and deleted, and in the middle of a change gpuOperator.namespace is changed and changed back, and both CRDs deleted (docs/design/faults.md#crds).
tests/embedded/test_configuration.py plays what else people do to the ConfigMaps."""

from collections.abc import Iterator

import pytest
from hack.cluster.api import ApiError, Object
from tests.integration.product import FULL, H100, HELD, MIXED, OPERATOR, SLICED, Pool, Product
from tests.integration.workloads import PDBS, Workload, guard

from hack import launch

SPACE = "/api/v1/namespaces/gpu-operator/configmaps"
PLUGIN, MIG = (f"{SPACE}/{name}" for name in ("gpusharing-device-plugin", "gpusharing-mig-parted"))
THEIRS = {"time-slicing-a100": "version: v1\n"}


@pytest.fixture
def pool(product: Product) -> Iterator[Pool]:
    """A pool whose operator finds that somebody else has a ConfigMap with the name of ours."""
    product.remove(PLUGIN, MIG)
    product.api.create(SPACE, {"metadata": {"name": "gpusharing-device-plugin"}, "data": THEIRS})
    with product.pool(H100) as pool, product.operator("configuration") as process:
        yield pool
        assert process.exit_status is None, process.log.read_text()[-3000:]


def hand_over(pool: Pool, message: str) -> None:
    """Run the command of the message, which gives the ConfigMap to the operator."""
    command = next(part for part in message.split(": ") if part.startswith("kubectl label")).split(" (")[0]
    pool.product.plane.kubectl(*command.removeprefix("kubectl ").split())
    pool.wait_synced()


def test_a_config_map_of_somebody_else_is_ours_after_the_command_and_comes_back_when_it_is_deleted(
    product: Product, pool: Pool
) -> None:
    since = product.mark()
    pool.apply(SLICED)
    message = pool.wait_condition("Accepted", "False", "ConfigMapTaken")
    pool.wait_phase("Blocked", "ConfigMapTaken")
    assert product.api.get(PLUGIN)["data"] == THEIRS
    assert product.writes("configmaps", since=since) == []
    assert product.writes("nodes", since=since) == []
    hand_over(pool, message)
    ours: Object = product.api.get(PLUGIN)["data"]
    assert not THEIRS.keys() & ours.keys()
    since = product.mark()
    product.remove(PLUGIN, MIG)
    pool.wait(lambda: product.exists(MIG) and product.exists(PLUGIN), "both to be written anew")
    assert product.api.get(PLUGIN)["data"] == ours
    assert pool.condition("Ready")["status"] == "True"
    assert product.writes("nodes", since=since) == []
    assert [r for r in product.requests(since, OPERATOR) if r.resource == "pods/eviction"] == []


OTHER = "nvidia"
"""An existing namespace in which none of NVIDIA's pods run."""


def upgrade(product: Product, namespace: str = "gpu-operator") -> None:
    """`helm upgrade`; the operator of this folder is a process of its own."""
    values = f"operator.replicaCount=0,gpuOperator.namespace={namespace}"
    launch.install_chart(product.plane.kubeconfig, "--set", values)


@pytest.fixture(autouse=True)
def _set_back(product: Product) -> Iterator[None]:
    product.api.ensure("/api/v1/namespaces", {"metadata": {"name": OTHER}})
    yield
    upgrade(product)


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
        upgrade(product, OTHER)
        with product.operator("elsewhere", gpu_operator_namespace=OTHER, **HELD):
            pool.let_go()
            pool.wait_phase("Verifying", "GPUOperatorElsewhere")
            words = "set chart value gpuOperator.namespace=gpu-operator"
            pool.wait(lambda: words in pool.summary()["message"], "the policy to say what to do")
            assert_unharmed(pool, "actuating")
        upgrade(product)
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
        upgrade(product, OTHER)
        with product.operator("elsewhere", gpu_operator_namespace=OTHER):
            pool.wait_phase("Cordoned", "GPUOperatorElsewhere")
            assert_unharmed(pool, "fenced")
        upgrade(product)
        with product.operator("after"):
            pool.wait_phase("Draining", "PDB")
            product.api.merge_patch(f"{PDBS}/{pool.name}-guard", {"spec": {"minAvailable": 0}})
            pool.wait_synced()


CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def test_a_change_ends_when_the_crds_that_were_deleted_in_the_middle_of_it_are_back(product: Product) -> None:
    with product.pool() as pool, product.operator("crds", **HELD) as process:
        pool.serve(FULL)
        pool.hold()
        pool.apply(MIXED)
        pool.wait_held()
        for name in ("gpusharingpolicies", "gpunodes"):
            product.api.delete(f"{CRDS}/{name}.gpusharing.dev")
        pool.let_go()
        message = pool.wait_condition("Stalled", "True", "KindNotServed")
        assert "does not serve gpunodes.gpusharing.dev" in message
        assert message in pool.summary()["message"]
        assert pool.node()["spec"]["unschedulable"]
        upgrade(product)  # as the message says
        pool.wait(
            lambda: not product.exists(f"{CRDS}/gpusharingpolicies.gpusharing.dev"), "the policy to go", pool.node
        )
        assert "unschedulable" not in pool.node()["spec"]
        assert pool.labels()["gpusharing.dev/mode"] == "mig"
        upgrade(product)

        def applied() -> bool:
            try:
                pool.apply(MIXED)
            except ApiError as error:
                if error.status != 404:
                    raise
                return False
            return True

        pool.wait(applied, "the new CRD to be served", pool.node)
        pool.wait_synced()
        assert process.exit_status is None, process.log.read_text()[-3000:]
