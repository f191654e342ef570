"""What NVIDIA's software does wrong, on a real API server: wedges, failures, reboots, stale answers, drift."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hack.cluster.api import Object
from tests.integration.nodelog import corrected, states
from tests.integration.product import AGENT, CLUSTER_POLICY, FULL, MIXED, MPS, SLICED, Pool, Product
from tests.integration.workloads import PODS

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.operator(wedge_pending="4")]

STATE = "nvidia.com/mig.config.state"
A100 = "NVIDIA A100-SXM4-80GB"
"""Ampere keeps a pending MIG mode over a reboot; on later cards the reboot would be in vain."""


def events_of(pool: Pool, *reasons: str) -> list[str]:
    return [reason for reason, _ in pool.events() if reason in reasons]


@pytest.mark.parametrize("fault", ["wedge-pending", "wedge-paused"])
def test_a_wedge_of_mig_manager_is_cured_by_restarting_its_pod(product: Product, fault: str) -> None:
    with product.pool() as pool:
        pool.apply(FULL)
        pool.wait_synced()
        pool.inject(fault)
        since = product.mark()
        pool.apply(MIXED)
        pool.wait_synced()
        deleted = [r for r in product.writes("pods", since=since) if r.verb == "delete"]
        restarts = len({r.name for r in deleted})
        assert len(deleted) == restarts, "no pod is deleted twice"
        assert {r.namespace for r in deleted} == {"gpu-operator"}
        assert restarts in (1, 2), "one is enough where the new pod starts in time; two are allowed"
        assert events_of(pool, "ActuatorRestarted") == ["ActuatorRestarted"] * restarts
        writes = product.writes("nodes", pool.nodes[0], since)
        assert len(writes) == 3 + 2 * restarts, "fence, PNR, each further attempt and its own PNR, release"


def test_a_failed_apply_keeps_the_node_cordoned_until_a_retry_repairs_it(product: Product) -> None:
    with product.pool() as pool:
        node = pool.nodes[0]
        pool.apply(FULL)
        pool.wait_synced()
        pool.inject("failed")
        pool.apply(MIXED)
        message = pool.wait_phase("Failed", "ActuatorFailed")
        assert f"kubectl annotate node {node} --overwrite gpusharing.dev/retry=again" in message
        assert pool.node()["spec"]["unschedulable"] is True
        pool.wait_condition("Stalled", "True", "NodesFailed")
        failures = product.api.get(pool.path)["status"]["failures"]
        assert [(row["node"], row["reason"]) for row in failures] == [(node, "ActuatorFailed")]
        product.plane.kubectl("annotate", "node", node, "--overwrite", "gpusharing.dev/retry=again")
        pool.wait_synced()
        assert "unschedulable" not in pool.node()["spec"]


@contextmanager
def with_reboot(product: Product) -> Iterator[None]:
    """mig-manager may reboot nodes, as ClusterPolicy says."""
    env: Object = {"spec": {"migManager": {"env": [{"name": "WITH_REBOOT", "value": "true"}]}}}
    product.api.merge_patch(CLUSTER_POLICY, env)
    try:
        yield
    finally:
        product.api.merge_patch(CLUSTER_POLICY, {"spec": {"migManager": {"env": None}}})


def test_a_reboot_is_waited_for_and_announced_as_such(product: Product) -> None:
    with with_reboot(product), product.pool(A100) as pool:
        node = pool.nodes[0]
        pool.apply(FULL)
        pool.wait_synced()
        bystander = {"metadata": {"name": f"{pool.name}-cpu"}, "spec": {"nodeName": node}}
        bystander["spec"]["containers"] = [{"name": "main", "image": "simulated"}]  # type: ignore[assignment]  # JSON
        pool.create(PODS, bystander)
        pool.inject("reboot")
        since = product.mark()
        pool.apply({**MIXED, "drain": {"unmanagedPods": "Evict"}})
        pool.wait_synced()
        assert "rebooting" in [one["metadata"]["labels"].get(STATE) for one in states(pool, since)]
        classes = [note for reason, note in pool.events() if reason == "Reconfiguring"]
        assert [note.endswith("(class Reboot)") for note in classes] == [True]
        assert not product.exists(f"{PODS}/{pool.name}-cpu"), (
            "a reboot ends every pod, so every pod goes before"
        )


def test_only_a_reading_from_after_the_change_proves_it(product: Product) -> None:
    with product.pool() as pool:
        node = pool.nodes[0]
        since = product.mark()
        pool.apply(SLICED)
        pool.wait_synced()
        raw = product.api.get(f"/apis/gpusharing.dev/v1alpha1/gpunodes/{node}")
        request = raw["spec"]["request"]["id"]
        assert ":verify:" in request
        assert raw["status"]["observed"]["requestID"] == request
        release = product.writes("nodes", node, since)[-1].at
        asked = [r.at for r in product.writes("gpunodes", node, since) if r.verb == "patch"]
        answered = [
            r.at
            for r in product.requests(since, AGENT)
            if (r.resource, r.name, r.status) == ("gpunodes/status", node, 200)
        ]
        last_asked = max(moment for moment in asked if moment < release)
        assert any(last_asked < moment < release for moment in answered)


def test_drift_is_shown_put_right_once_and_then_left_to_a_person(product: Product) -> None:
    with product.pool() as pool:
        pool.apply(MIXED)
        pool.wait_synced()
        since = product.mark()
        pool.inject("lose-instances")
        pool.wait(lambda: bool(events_of(pool, "Drifted")), "the drift to be told")
        pool.wait(lambda: corrected(pool, since), "the correction")
        pool.wait_synced()
        record = json.loads(pool.node()["metadata"]["annotations"]["gpusharing.dev/verified"])
        assert record["correctedGeneration"] == product.api.get(pool.path)["metadata"]["generation"]
        since = product.mark()
        pool.inject("lose-instances")
        pool.wait_phase("Blocked", "DriftReturned")
        pool.wait_condition("Stalled", "True", "DriftReturned")
        assert pool.summary()["status"] == "DriftReturned"
        assert product.writes("nodes", pool.nodes[0], since) == []


def test_gpus_that_a_killed_mps_daemon_left_exclusive_are_shown_with_the_command_and_waited_for(
    product: Product,
) -> None:
    with product.pool() as pool:
        pool.apply(MPS)
        pool.wait_synced()
        pool.inject("kill-mps-daemon")
        pool.apply(FULL)
        pool.wait(lambda: pool.transition().get("reason") == "ComputeMode", "the reason", pool.transition)
        told = pool.transition()
        assert "nvidia-smi -i 0 -c 0" in told["message"]
        assert told["culprit"] == "GPUs"
        assert pool.offered() != {"nvidia.com/gpu": 2} or pool.node()["spec"].get("unschedulable")
        pool.inject("default-compute-mode")
        pool.wait_synced()
        assert not pool.node()["spec"].get("unschedulable")
