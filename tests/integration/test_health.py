"""A GPU of a SIMULATED node turns unhealthy, on a real API server and under the shipped rights."""

import pytest
from hack.cluster.api import Object
from tests.integration.product import AGENT, FULL, GPUNODES, MIXED, SLICED, Pool, Product

pytestmark = pytest.mark.usefixtures("operator")


def healthy(pool: Pool) -> Object:
    """The condition Healthy of the first node; empty while there is none."""
    rows = pool.api.get(f"{GPUNODES}/{pool.nodes[0]}").get("status", {}).get("conditions") or [{}]
    found: Object = rows[0]
    return found


def told(pool: Pool) -> list[str]:
    """The Events about health, in order."""
    return [reason for reason, _ in pool.events() if reason in ("GPUUnhealthy", "GPUHealthy")]


def test_a_node_with_an_unhealthy_gpu_is_not_reconfigured_and_goes_on_when_it_is_healthy(
    product: Product,
) -> None:
    with product.pool() as pool:
        node = pool.nodes[0]
        pool.apply(FULL)
        pool.wait_synced()
        product.plane.kubectl("wait", "--for=condition=Healthy", f"gpun/{node}", "--timeout=120s")
        since = product.mark()
        pool.inject("sick-gpu")
        pool.wait_phase("Synced", "GPUUnhealthy")
        pool.apply(SLICED)
        message = pool.wait_phase("Blocked", "GPUUnhealthy")
        assert message.startswith("GPU 0: the driver asks for Reset; drain the node, then reset the GPU")
        assert (healthy(pool)["status"], healthy(pool)["reason"]) == ("False", "RecoveryNeeded")
        pool.wait_condition("Stalled", "True", "Blocked")
        assert "GPUUnhealthy" in product.plane.kubectl("get", "gpun", node)
        described = product.plane.kubectl("describe", "gpun", node)
        assert "RecoveryNeeded" in described
        assert "the driver asks for Reset" in described
        pool.wait(lambda: told(pool) == ["GPUUnhealthy"], "the Event")
        assert product.writes("nodes", node, since) == []
        refused = [r for r in product.requests(since) if r.status == 403]
        assert refused == [], "the shipped rights suffice"
        pool.inject("heal-gpu")
        pool.wait_synced()
        pool.wait(
            lambda: healthy(pool)["status"] == "True", "the GPUNode to say so too", lambda: healthy(pool)
        )
        assert len(product.writes("nodes", node, since)) == 3, "fence, PNR, release"
        pool.wait(lambda: told(pool) == ["GPUUnhealthy", "GPUHealthy"], "the second Event")


def test_a_lost_gpu_is_shown_with_what_was_known_of_it_and_nothing_is_proven_by_it(product: Product) -> None:
    with product.pool() as pool:
        node = pool.nodes[0]
        pool.apply(MIXED)
        pool.wait_synced()
        before = pool.api.get(f"{GPUNODES}/{node}")["status"]["observed"]["gpus"]
        since = product.mark()
        pool.inject("lose-gpu")
        assert "drain and reboot the node" in pool.wait_phase("Blocked", "GPUUnhealthy")
        lost, healthy = pool.api.get(f"{GPUNODES}/{node}")["status"]["observed"]["gpus"]
        assert lost == {**before[0], "access": "Lost"}
        assert healthy == before[1]
        assert [r.status for r in product.requests(since, AGENT) if r.status >= 400] == []
        pool.inject("find-gpu")
        pool.wait_synced()
        pool.wait_phase("Synced", "Synced")
        assert product.writes("nodes", node, since) == [], "it healed by itself"
