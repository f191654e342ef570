"""People who pause, give up or misconfigure a change under way, on a real API server (docs/design/drain.md#holds)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hack.cluster.api import Object
from tests.integration.product import L40S, NODES, SLICED, UNTIL_TOLD, Pool, Product
from tests.integration.workloads import PODS, pod_spec

from gpusharing.api import names

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.operator(**UNTIL_TOLD)]

EVICT: Object = {"drain": {"unmanagedPods": "Evict", "strandedPods": "Allow"}}
CALM: Object = {"drain": {"strandedPods": "Allow"}}


@contextmanager
def a_pod_that_never_ends(pool: Pool) -> Iterator[str]:
    """It was evicted, and its kubelet does not end it: the node stays Draining."""
    name = f"{pool.name}-hangs"
    metadata = {"name": name, "annotations": {"simulate.gpusharing.dev/stop": "never"}}
    pool.create(PODS, {"metadata": metadata, "spec": pod_spec(pool.nodes[0])})
    pool.wait(lambda: pool.api.get(f"{PODS}/{name}")["status"]["phase"] == "Running", "the pod")
    try:
        yield name
    finally:
        pool.api.delete(f"{PODS}/{name}", {"gracePeriodSeconds": 0})


def paused(how: str) -> Object:
    return {**SLICED, **EVICT, "rollout": {"paused": True, "whenPaused": how}}


def draining(pool: Pool) -> Object:
    """Start a change that stays in its drain; returns its fence."""
    pool.apply({**SLICED, **EVICT})
    pool.wait_phase("Draining")
    return pool.fence()


def test_a_pause_that_holds_keeps_the_node_as_it_is_until_it_ends(product: Product) -> None:
    with product.pool(L40S) as pool:
        with a_pod_that_never_ends(pool):
            op = draining(pool)["op"]
            pool.apply(paused("Hold"))
            pool.wait(lambda: pool.transition().get("reason") == "Paused", "the pause to be shown")
            assert pool.node()["spec"]["unschedulable"] is True
            assert pool.fence()["op"] == op
        pool.apply({**SLICED, **EVICT})
        pool.wait_synced()


def test_a_pause_that_finishes_ends_what_has_begun_and_starts_nothing_else(product: Product) -> None:
    with product.pool(L40S, L40S) as pool:
        first, second = pool.nodes
        skip = {"metadata": {"labels": {names.LABEL_SKIP: "true"}}}
        pool.api.merge_patch(f"{NODES}/{second}", skip)
        with a_pod_that_never_ends(pool):
            draining(pool)
            pool.apply(paused("Finish"))
            pool.api.merge_patch(f"{NODES}/{second}", {"metadata": {"labels": {names.LABEL_SKIP: None}}})
            pool.wait_phase("Pending", "Paused", second)
            assert pool.transition(first)["phase"] == "Draining"
        pool.wait_phase("Synced", name=first)
        assert not pool.fence(second)
        pool.apply({**SLICED, **EVICT})
        pool.wait_synced()


def test_a_pause_that_aborts_gives_the_node_back_and_the_next_start_is_not_put_off(product: Product) -> None:
    with product.pool(L40S) as pool:
        with a_pod_that_never_ends(pool):
            draining(pool)
            pool.apply(paused("Abort"))
            pool.wait(lambda: not pool.fence(), "the fence to go")
            assert "unschedulable" not in pool.node()["spec"]
            pool.wait(lambda: pool.transition().get("reason") == "Paused", "the pause to be shown")
            assert names.ANNOTATION_DEFERRED not in pool.node()["metadata"]["annotations"]
        pool.apply({**SLICED, **EVICT})
        pool.wait_synced()


def test_a_person_gives_up_one_change_by_its_name_and_retry_starts_the_next_at_once(product: Product) -> None:
    with product.pool(L40S) as pool:
        node = pool.nodes[0]
        with a_pod_that_never_ends(pool):
            op = draining(pool)["op"]
            pool.annotate(node, {names.ANNOTATION_ABORT: "another"})
            pool.annotate(node, {names.ANNOTATION_ABORT: op})
            pool.wait_phase("Pending", "Deferred")
            assert "unschedulable" not in pool.node()["spec"]
            record = json.loads(pool.node()["metadata"]["annotations"][names.ANNOTATION_DEFERRED])
            assert record["reason"] == "AbortRequested"
        pool.annotate(node, {names.ANNOTATION_RETRY: "now"})
        pool.wait_synced()


def test_five_attempts_that_were_given_up_ask_for_a_person_and_the_others_go_on(product: Product) -> None:
    with product.pool(L40S, L40S) as pool:
        node, other = pool.nodes
        with a_pod_that_never_ends(pool):
            pool.api.merge_patch(f"{NODES}/{other}", {"metadata": {"labels": {names.LABEL_SKIP: "true"}}})
            pool.apply({**SLICED, "drain": {**EVICT["drain"], "timeout": "2s"}})
            pool.wait_phase("Pending", "Deferred")
            record = json.loads(pool.node()["metadata"]["annotations"][names.ANNOTATION_DEFERRED])
            assert record["count"] == 1
            four = {**record, "count": 4, "until": "2026-01-01T00:00:00Z"}
            pool.annotate(node, {names.ANNOTATION_DEFERRED: json.dumps(four)})
            message = pool.wait_phase("Blocked", "NeedsAttention")
            assert "5" in message
            assert "unschedulable" not in pool.node()["spec"]
            pool.api.merge_patch(f"{NODES}/{other}", {"metadata": {"labels": {names.LABEL_SKIP: None}}})
            pool.wait_phase("Synced", name=other)


WRONG: dict[str, tuple[Object, str, str]] = {
    "a cron that does not exist": (
        {"windows": [{"schedule": "0 25 * * *", "duration": "2h"}]},
        "InvalidWindow",
        "spec.rollout.windows[0].schedule",
    ),
    "a window that is never open long enough": (
        {"windows": [{"schedule": "0 2 * * *", "duration": "5m"}]},
        "WindowTooShort",
        "5m",
    ),
    "nobody may be away": ({"maxUnavailable": "0%"}, "Frozen", "spec.rollout.maxUnavailable"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_rollout_that_can_never_start_touches_nothing_and_other_policies_go_on(
    product: Product, case: str
) -> None:
    rollout, reason, said = WRONG[case]
    with product.pool(L40S) as wrong, product.pool(L40S) as right:
        since = product.mark()
        wrong.apply({**SLICED, **CALM, "rollout": rollout})
        wrong.wait(lambda: wrong.transition().get("reason") == reason, reason, wrong.transition)
        assert said in str(wrong.transition()["message"])
        right.apply({**SLICED, **CALM})
        right.wait_synced()
        assert not wrong.fence()
        assert "unschedulable" not in wrong.node()["spec"]
        assert not product.writes("pods/eviction", since=since)
