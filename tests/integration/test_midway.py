"""In the middle of a change, after its point of no return, where it is held until the test has done what it does."""

import pytest
from tests.integration.nodelog import fences
from tests.integration.product import FULL, HELD, MIXED, NODES, Product

from gpusharing.api import names

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.operator(**HELD)]


def test_a_success_that_the_hardware_belies_is_not_believed(product: Product) -> None:
    with product.pool() as pool:
        node = pool.nodes[0]
        pool.apply(FULL)
        pool.wait_synced()
        pool.hold()
        pool.apply(MIXED)
        pool.wait_held()
        paused = names.PAUSED_FOR_MIG
        deploy = {key: "true" for key, value in pool.labels().items() if value == paused}
        labels = {names.LABEL_MIG_STATE: "success", **deploy}
        product.api.merge_patch(f"{NODES}/{node}", {"metadata": {"labels": labels}})
        pool.wait_phase("Verifying", "LayoutMismatch")
        assert pool.node()["spec"]["unschedulable"] is True
        assert pool.fence()["stage"] == "actuating"
        pool.let_go()
        pool.wait_synced()


def test_all_disabled_over_our_label_is_put_right(product: Product) -> None:
    """As NVIDIA's GPU Operator writes it where it finds no label (docs/design/nvidia.md#d1)."""
    with product.pool() as pool:
        pool.apply(FULL)
        pool.wait_synced()
        since = product.mark()
        pool.hold()
        pool.apply(MIXED)
        pool.wait_held()
        theirs = {"metadata": {"labels": {names.LABEL_MIG_CONFIG: "all-disabled"}}}
        product.api.merge_patch(f"{NODES}/{pool.nodes[0]}", theirs)
        pool.wait_synced()
        assert pool.offered() == {"nvidia.com/mig-3g.40gb": 4}
        attempts = [fence.get("attempt", 0) for now in fences(pool, since) for fence in now.values()]
        assert max(attempts) == 2
        writes = product.writes("nodes", pool.nodes[0], since)
        assert len(writes) == 5, "fence, PNR, another attempt and its own PNR, release"
        assert not [one for one in product.writes("pods", since=since) if one.verb == "delete"], (
            "nobody is restarted"
        )
        told = [reason for reason, _ in pool.events() if reason == "ActuatorRestarted"]
        assert told == ["ActuatorRestarted"]
