"""Both CRDs deleted in the middle of a change, on a real API server (docs/design/faults.md#crds)."""

from collections.abc import Iterator

import pytest
from hack.cluster.api import ApiError
from tests.integration.product import FULL, HELD, MIXED, Product

from hack import launch

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

pytestmark = [pytest.mark.operator(**HELD), pytest.mark.usefixtures("operator")]


def install(product: Product) -> None:
    """As the message says: `helm upgrade`; the operator of this folder is a process of its own."""
    launch.install_chart(product.plane.kubeconfig, "--set", "operator.replicaCount=0")


@pytest.fixture(autouse=True)
def _crds_stay(product: Product) -> Iterator[None]:
    yield
    install(product)


def test_a_change_ends_when_the_crds_that_were_deleted_in_the_middle_of_it_are_back(product: Product) -> None:
    with product.pool() as pool:
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
        install(product)
        pool.wait(
            lambda: not product.exists(f"{CRDS}/gpusharingpolicies.gpusharing.dev"), "the policy to go", pool.node
        )
        assert "unschedulable" not in pool.node()["spec"]
        assert pool.labels()["gpusharing.dev/mode"] == "mig"
        install(product)

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
