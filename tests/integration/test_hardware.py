"""What hardware and NVIDIA's software do wrong, on a real API server and under the shipped rights.
One test for each thing that can go wrong; tests/embedded plays the others (test_troubles.py, test_health.py, test_rollback.py, test_bad_hardware.py)."""

import pytest
from hack.cluster.api import MERGE_PATCH, Object
from tests.integration.nodelog import corrected
from tests.integration.product import FULL, GPUNODES, MIXED, NODES, SINGLE, SLICED, Pool, Product

from gpusharing.api import names

pytestmark = pytest.mark.usefixtures("operator")


def events_of(pool: Pool, *reasons: str) -> list[str]:
    return [reason for reason, _ in pool.events() if reason in reasons]


def test_a_wedge_of_mig_manager_is_cured_by_restarting_its_pod(product: Product) -> None:
    with product.pool() as pool:
        pool.serve(FULL)
        pool.inject("wedge-paused")
        since = product.mark()
        pool.serve(MIXED)
        deleted = [r for r in product.writes("pods", since=since) if r.verb == "delete"]
        restarts = len({r.name for r in deleted})
        assert len(deleted) == restarts, "no pod is deleted twice"
        assert {r.namespace for r in deleted} == {"gpu-operator"}
        assert restarts in (1, 2), "one is enough where the new pod starts in time; two are allowed"
        restarted = ["ActuatorRestarted"] * restarts
        pool.wait(lambda: events_of(pool, "ActuatorRestarted") == restarted, f"{restarts} Events", pool.events)
        writes = product.writes("nodes", pool.nodes[0], since)
        assert len(writes) == 3 + 2 * restarts, "fence, PNR, each further attempt and its own PNR, release"


def test_drift_that_returns_and_an_edit_after_it_name_the_field_manager_that_wrote_the_label(product: Product) -> None:
    """FakeCluster has no managedFields (docs/adr/0005-limits-of-fakecluster.md)."""
    theirs = {"metadata": {"labels": {names.LABEL_MIG_CONFIG: "all-disabled"}}}
    manager = "kyverno-background-controller"
    with product.pool() as pool:
        node = f"{NODES}/{pool.nodes[0]}"
        pool.serve(MIXED)
        since = product.mark()
        product.api.request("PATCH", node, theirs, MERGE_PATCH, fieldManager=manager)
        pool.wait(lambda: corrected(pool, since), "the correction")
        pool.wait(lambda: not pool.fence(), "its end", pool.fence)
        pool.wait_synced()
        product.api.request("PATCH", node, theirs, MERGE_PATCH, fieldManager=manager)
        message = pool.wait_phase("Blocked", "DriftReturned")
        assert f"{manager} was the last to write {names.LABEL_MIG_CONFIG}" in message
        since = product.mark()
        pool.apply(SINGLE)
        message = pool.wait_phase("Blocked", "LabelOwnedElsewhere")
        assert f"{manager} has overwritten the operator's value" in message
        assert not product.writes("nodes", pool.nodes[0], since)
        pool.annotate(pool.nodes[0], {names.ANNOTATION_RETRY: "again"})
        pool.wait_synced()


def test_a_failed_node_serves_again_what_was_proven_there_last_and_a_retry_tries_again(product: Product) -> None:
    with product.pool() as pool:
        pool.serve(SINGLE)
        before = {key: pool.labels()[key] for key in (names.LABEL_MIG_CONFIG, names.LABEL_PLUGIN_CONFIG)}
        pool.inject("refuse")
        pool.apply({**MIXED, "rollout": {"onFailure": "Rollback"}})
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


def healthy(pool: Pool) -> Object:
    """The condition Healthy of the first node; empty while there is none."""
    rows = pool.api.get(f"{GPUNODES}/{pool.nodes[0]}").get("status", {}).get("conditions") or [{}]
    found: Object = rows[0]
    return found


def test_a_node_with_an_unhealthy_gpu_is_not_reconfigured_and_goes_on_when_it_is_healthy(product: Product) -> None:
    with product.pool() as pool:
        node = pool.nodes[0]
        pool.serve(FULL)
        product.plane.kubectl("wait", "--for=condition=Healthy", f"gpun/{node}", "--timeout=120s")
        since = product.mark()
        pool.inject("sick-gpu")
        pool.wait_phase("Synced", "GPUUnhealthy")
        pool.apply(SLICED)
        message = pool.wait_phase("Blocked", "GPUUnhealthy")
        assert message.startswith("GPU 0: the driver recommends Reset; drain the node, then reset the GPU")
        assert (healthy(pool)["status"], healthy(pool)["reason"]) == ("False", "RecoveryNeeded")
        pool.wait_condition("Stalled", "True", "Blocked")
        assert "GPUUnhealthy" in product.plane.kubectl("get", "gpun", node)
        described = product.plane.kubectl("describe", "gpun", node)
        assert "RecoveryNeeded" in described
        assert "the driver recommends Reset" in described
        pool.wait(lambda: bool(events_of(pool, "GPUUnhealthy")), "the Event")
        assert product.writes("nodes", node, since) == []
        refused = [r for r in product.requests(since) if r.status == 403]
        assert refused == [], "the shipped rights suffice"
        pool.inject("heal-gpu")
        pool.wait_synced()
        pool.wait(lambda: healthy(pool)["status"] == "True", "the GPUNode to say so too", lambda: healthy(pool))
        assert len(product.writes("nodes", node, since)) == 3, "fence, PNR, release"
        pool.wait(lambda: bool(events_of(pool, "GPUHealthy")), "the second Event")
