"""onFailure Rollback on a real API server (docs/design/way.md#rollback)."""

import pytest
from hack.cluster.api import Object
from tests.integration.product import H100, MIXED, SINGLE, Pool, Product

from gpusharing.api import names

pytestmark = pytest.mark.usefixtures("operator")


def reasons(pool: Pool) -> set[str]:
    return {str(pool.transition(name).get("reason")) for name in pool.nodes}


def backward(spec: Object, **rollout: object) -> Object:
    return {**spec, "rollout": {"onFailure": "Rollback", **rollout}}


def test_a_failed_node_serves_again_what_was_proven_there_last_and_a_retry_tries_again(
    product: Product,
) -> None:
    with product.pool(H100) as pool:
        pool.apply(SINGLE)
        pool.wait_synced()
        before = {key: pool.labels()[key] for key in (names.LABEL_MIG_CONFIG, names.LABEL_PLUGIN_CONFIG)}
        pool.inject("refuse")
        pool.apply(backward(MIXED))
        message = pool.wait_phase("Blocked", "RolledBack")
        assert "mig-manager failed to apply" in message
        assert {key: pool.labels()[key] for key in before} == before
        assert pool.labels()[names.LABEL_MIG_STATE] == "success"
        assert not pool.node()["spec"].get("unschedulable")
        pool.wait(lambda: pool.condition("Stalled").get("reason") == "RolledBack", "Stalled with the reason")
        assert pool.condition("Ready")["status"] == "False"
        assert "RolledBack" in product.plane.kubectl("get", "gsp", pool.name)
        pool.inject("accept")
        pool.annotate(pool.nodes[0], {names.ANNOTATION_RETRY: "again"})
        pool.wait_synced()


def test_where_nothing_was_proven_a_failed_node_stays_cordoned_and_halts_the_others(product: Product) -> None:
    with product.pool(H100, H100) as pool:
        for name in pool.nodes:
            pool.inject("refuse", name)
        pool.apply(backward(MIXED))
        pool.wait(lambda: reasons(pool) == {"ActuatorFailed", "Halted"}, "one failed, one halted")
        failed = next(name for name in pool.nodes if pool.transition(name)["reason"] == "ActuatorFailed")
        assert "nothing was proven on the node before" in pool.transition(failed)["message"]
        assert pool.node(failed)["spec"]["unschedulable"] is True
        for name in pool.nodes:  # before the other one may begin
            pool.inject("accept", name)
        generation = str(pool.api.get(pool.path)["metadata"]["generation"])
        pool.api.merge_patch(pool.path, {"metadata": {"annotations": {names.ANNOTATION_RESUME: generation}}})
        pool.annotate(failed, {names.ANNOTATION_RETRY: "again"})
        pool.wait_synced()
