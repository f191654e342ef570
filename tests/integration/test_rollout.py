"""When nodes may start, on a real API server: windows, approval, canary and skip (docs/design/drain.md#holds)."""

from datetime import UTC, datetime, timedelta

import pytest
from hack.cluster.api import Object
from tests.integration.product import L40S, NODES, SLICED, Pool, Product
from tests.integration.workloads import Workload, guard

pytestmark = pytest.mark.usefixtures("operator")


def rolled(**rollout: object) -> Object:
    return {**SLICED, "rollout": {"maxUnavailable": 3, **rollout}, "drain": {"strandedPods": "Allow"}}


def in_hours(hours: int) -> Object:
    """A window of two hours that opens so many hours from now; below 0 it is open."""
    start = datetime.now(UTC) + timedelta(hours=hours)
    return {"schedule": f"{start.minute} {start.hour} * * *", "duration": "2h"}


def approve(pool: Pool, revision: str) -> None:
    pool.api.merge_patch(pool.path, {"metadata": {"annotations": {"gpusharing.dev/approve": revision}}})


def plan(pool: Pool) -> Object:
    """`status.plan`; empty while there is none."""
    found: Object = pool.api.get(pool.path).get("status", {}).get("plan") or {}
    return found


def test_nodes_start_within_a_window_only_and_everybody_sees_when(product: Product) -> None:
    with product.pool(L40S) as pool:
        since = product.mark()
        pool.apply(rolled(windows=[in_hours(3)]))
        message = pool.wait_phase("Pending", "WindowClosed")
        pool.wait(lambda: pool.summary().get("nextWindow"), "the policy to tell of it, too")
        shown = pool.summary()["nextWindow"]
        assert shown in message
        assert shown in product.plane.kubectl("get", "gsp", pool.name, "-o", "wide")
        assert pool.api.get(pool.path)["status"]["plan"]["windows"][0].startswith(shown)
        assert not pool.fence()
        assert not product.writes("pods/eviction", since=since)
        pool.apply(rolled(windows=[in_hours(3), in_hours(-1)]))
        pool.wait_synced()
        assert pool.summary()["nextWindow"].startswith("open until ")


def test_a_blackout_closes_what_is_open_otherwise(product: Product) -> None:
    with product.pool(L40S) as pool:
        since = product.mark()
        pool.apply(rolled(windows=[in_hours(-1), in_hours(5)], blackouts=[in_hours(-1)]))
        pool.wait_phase("Pending", "WindowClosed")
        assert product.writes("nodes", pool.nodes[0], since) == []
        pool.apply(rolled(windows=[in_hours(-1)], blackouts=[in_hours(3)]))
        pool.wait_synced()


def test_a_zone_that_does_not_exist_keeps_its_policy_closed_and_no_other(product: Product) -> None:
    with product.pool(L40S) as wrong, product.pool(L40S) as right:
        wrong.apply(rolled(windows=[{**in_hours(-1), "timeZone": "Mars/Olympus"}]))
        message = wrong.wait_phase("Blocked", "InvalidWindow")
        assert 'spec.rollout.windows[0].timeZone "Mars/Olympus"' in message
        right.apply(rolled(windows=[{**in_hours(-1), "timeZone": "UTC"}]))
        right.wait_synced()
        assert not wrong.fence()


def test_a_plan_waits_for_the_approval_of_its_hash_and_an_old_one_is_named(product: Product) -> None:
    with product.pool(L40S) as pool:
        pool.apply(rolled(approval="Manual"))
        pool.wait_phase("Pending", "ApprovalNeeded")
        approve(pool, "0ldha5h")
        pool.wait(lambda: "0ldha5h" in pool.transition().get("message", ""), "the old hash to be named")
        assert not pool.fence()
        pool.wait(lambda: plan(pool).get("hash"), "the hash of the plan")
        approve(pool, plan(pool)["hash"])
        pool.wait_synced()


def test_a_plan_names_pods_and_budgets_before_it_is_approved(product: Product) -> None:
    with product.pool(L40S) as pool:
        app = Workload(pool, pool.nodes[0], 1)
        (pod,) = app.wait_running(1)
        budget = guard(pool, app.app, 0, minAvailable=1)
        pool.apply(rolled(approval="Manual"))
        pool.wait_phase("Pending", "ApprovalNeeded")
        named = ("podNames", "budgets", "blockers")
        pool.wait(lambda: all(map(plan(pool).get, named)), "pods, budgets and blockers to be named")
        told = plan(pool)
        assert told["podNames"] == [f"default/{pod}"]
        assert told["budgets"] == [budget]
        assert told["blockers"][0].startswith("PDBNeverAllows ")
        assert not pool.fence()


def test_the_others_wait_until_the_canary_is_proven_and_has_soaked(product: Product) -> None:
    with product.pool(L40S, L40S) as pool:
        pool.apply(rolled(canary={"nodes": 1, "soak": "1h"}))
        pool.wait(
            lambda: reasons(pool) == {"Synced", "CanarySoak"},
            "one proven, one waiting",
            lambda: reasons(pool),
        )
        pool.apply(rolled(canary={"nodes": 2, "soak": "1h"}))
        pool.wait_synced()
        assert "the whole pool is the canary" in str(pool.condition("Accepted")["message"])


def test_a_canary_larger_than_the_pool_freezes_it_until_a_person_corrects_the_number(
    product: Product,
) -> None:
    with product.pool(L40S, L40S) as pool:
        pool.apply(rolled(canary={"nodes": 5, "soak": "1h"}))
        said = "spec.rollout.canary.nodes is 5 and the pool has 2 nodes"
        pool.wait(
            lambda: said in str(pool.condition("Accepted").get("message")), "Accepted to name both numbers"
        )
        pool.wait(lambda: reasons(pool) == {"CanaryTooLarge"}, "both to be held", lambda: reasons(pool))
        assert not any(pool.fence(name) for name in pool.nodes)
        pool.apply(rolled(canary={"nodes": 2, "soak": "1h"}))
        pool.wait_synced()


def reasons(pool: Pool) -> set[str]:
    return {str(pool.transition(name).get("reason")) for name in pool.nodes}


def test_a_skipped_node_is_shown_and_the_others_go_on(product: Product) -> None:
    with product.pool(L40S, L40S) as pool:
        first = pool.nodes[0]
        pool.api.merge_patch(f"{NODES}/{first}", {"metadata": {"labels": {"gpusharing.dev/skip": "true"}}})
        pool.apply(rolled())
        pool.wait_phase("Synced", name=pool.nodes[1])
        pool.wait_phase("Skipped", "SkipLabel")
        pool.wait(lambda: pool.summary().get("nodes") == "1/2", "1/2")
        pool.api.merge_patch(f"{NODES}/{first}", {"metadata": {"labels": {"gpusharing.dev/skip": None}}})
        pool.wait_synced()
