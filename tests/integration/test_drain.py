"""Draining on a real API server: evictions, budgets, cordons, time-outs, stranded pods (docs/design/drain.md)."""

import json
from collections import Counter
from urllib.parse import parse_qs, urlsplit

import pytest
from hack.cluster.api import Object
from tests.integration.nodelog import states
from tests.integration.product import (
    FENCE,
    FULL,
    H100,
    L40S,
    MIXED,
    OPERATOR,
    SLICED,
    UNTIL_TOLD,
    Pool,
    Product,
)
from tests.integration.workloads import PDBS, PODS, Workload, guard, pod_spec

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.operator(**UNTIL_TOLD)]
DEFERRED = "gpusharing.dev/deferred"
LONG_AGO = "2026-01-01T00:00:00Z"


def evicted(product: Product, since: int) -> Counter[str]:
    """Accepted evictions by pod."""
    return Counter(
        f"{request.namespace}/{request.name}" for request in product.writes("pods/eviction", since=since)
    )


def refused(product: Product, since: int) -> bool:
    """Whether a budget was asked, and said no. Who can tell beforehand need not ask at once."""
    return any(r.resource == "pods/eviction" and r.status == 429 for r in product.requests(since))


def test_pods_are_evicted_once_each_and_the_change_follows(product: Product) -> None:
    with product.pool(H100) as pool:
        work = Workload(pool, pool.nodes[0], 2)
        before = work.wait_running(2)
        since = product.mark()
        pool.apply(SLICED)
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{name}": 1 for name in before}
        assert len(product.writes("nodes", pool.nodes[0], since)) == 3
        assert not set(before) & set(work.wait_running(2)), "new pods came back to the new layout"
        # Statuses and Events are written side by side: that it is Ready is no word about its Events.
        pool.wait(lambda: "LayoutVerified" in dict(pool.events()), "the last Event", pool.events)
        reasons = [reason for reason, _ in pool.events()]
        assert (
            reasons.index("DrainStarted") < reasons.index("Reconfiguring") < reasons.index("LayoutVerified")
        )


def test_the_pods_of_a_node_are_listed_in_pages_and_never_watched(product: Product) -> None:
    with product.pool(L40S) as pool:
        since = product.mark()
        pool.apply(SLICED)
        pool.wait_synced()
        asked = [
            urlsplit(r.path) for r in product.requests(since) if r.resource == "pods" and r.verb != "delete"
        ]
        queries = [parse_qs(url.query) for url in asked if "spec.nodeName%3D" + pool.nodes[0] in url.query]
        assert len(queries) >= 2, "two empty LISTs at least"
        expected = {"fieldSelector": [f"spec.nodeName={pool.nodes[0]}"], "limit": ["500"]}
        assert all(query == expected for query in queries), "no resourceVersion: the newest state; no watch"


def test_a_budget_that_refuses_is_named_and_scaling_up_lets_the_drain_go_on(product: Product) -> None:
    with product.pool(H100) as pool, product.pool(H100) as spare:
        node = pool.nodes[0]
        work = Workload(pool, node, 2)
        elsewhere = Workload(pool, spare.nodes[0], 0, app=work.app)
        before = work.wait_running(2)
        budget = guard(pool, work.app, 1, minAvailable=1)
        since = product.mark()
        pool.apply(SLICED)
        pool.wait_phase("Draining", "PDB")
        pool.wait(
            lambda: refused(product, since), "the budget that allowed one eviction to refuse the second"
        )
        now = pool.transition()
        left = work.running()
        assert len(left) == 1
        assert now["culprit"] == f"default/{left[0]}"
        assert budget in now["blockers"][0]
        assert now["cordon"] == "ours"
        assert now["deadline"].endswith("Z")
        shown = product.plane.kubectl("get", "gpun", node, "-o", "wide")
        assert {"Draining", "PDB", "ours"} <= set(shown.split())
        assert f"default/{left[0]}" in shown
        elsewhere.scale(1)
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{name}": 1 for name in before}


def test_a_budget_that_never_allows_keeps_the_node_untouched(product: Product) -> None:
    with product.pool(H100) as pool:
        work = Workload(pool, pool.nodes[0], 2)
        work.wait_running(2)
        guard(pool, work.app, 0, minAvailable=2)
        since = product.mark()
        pool.apply(SLICED)
        message = pool.wait_phase("Blocked", "PDBNeverAllows")
        assert message
        assert product.writes("nodes", pool.nodes[0], since) == []
        assert evicted(product, since) == {}
        assert pool.wait_condition("Stalled", "True", "Blocked")


def test_two_budgets_on_one_pod_keep_its_node_untouched_and_no_other(product: Product) -> None:
    """The API server answers every eviction of such a pod with 500 (docs/design/drain.md#e8)."""
    with product.pool(L40S, L40S) as pool:
        sick, healthy = pool.nodes
        work = Workload(pool, sick, 1)
        (name,) = work.wait_running(1)
        selector = {"selector": {"matchLabels": {"app": work.app}}}
        for number in (1, 2):
            budget = {"metadata": {"name": f"{pool.name}-{number}"}, "spec": {**selector, "minAvailable": 0}}
            pool.create(PDBS, budget)
        since = product.mark()
        pool.apply({**SLICED, "rollout": {"maxUnavailable": 2}})
        pool.wait_phase("Synced", name=healthy)
        message = pool.wait_phase("Blocked", "PDBConflict")
        assert f"PDBConflict default/{pool.name}-1, default/{pool.name}-2: Pod default/{name}." in message
        assert product.writes("nodes", sick, since) == []
        assert evicted(product, since) == {}


def test_a_drain_that_runs_out_of_time_restores_the_node_and_waits_before_the_next_try(
    product: Product,
) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        pool.apply(FULL)
        pool.wait_synced()
        hangs = {"simulate.gpusharing.dev/stop": "never"}
        metadata = {"name": f"{pool.name}-hangs", "annotations": hangs}
        pool.create(PODS, {"metadata": metadata, "spec": pod_spec(node)})
        pool.wait(
            lambda: product.api.get(f"{PODS}/{pool.name}-hangs")["status"]["phase"] == "Running", "the pod"
        )
        drain = {"timeout": "2s", "unmanagedPods": "Evict"}
        since = product.mark()
        pool.apply({**SLICED, "drain": drain})
        pool.wait_phase("Pending", "Deferred")
        fenced = next(one for one in states(pool, since) if FENCE in one["metadata"]["annotations"])
        assert fenced["spec"]["unschedulable"] is True
        assert "gpusharing.dev/mode" not in fenced["metadata"]["labels"], "no workload may land in between"
        assert "unschedulable" not in pool.node()["spec"]
        assert pool.labels()["gpusharing.dev/mode"] == "full"
        assert not pool.fence()
        deferred = json.loads(pool.node()["metadata"]["annotations"][DEFERRED])
        assert (deferred["count"], deferred["reason"]) == (1, "DrainTimeout")
        pool.wait(lambda: "ChangeGivenUp" in dict(pool.events()), "the Event")
        product.api.delete(f"{PODS}/{pool.name}-hangs", {"gracePeriodSeconds": 0})
        pool.annotate(node, {DEFERRED: json.dumps({**deferred, "until": LONG_AGO})})
        pool.wait_synced()
        assert DEFERRED not in pool.node()["metadata"]["annotations"]


def test_a_node_that_a_person_cordoned_is_left_alone_until_they_lift_it(product: Product) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        pool.cordon(node)
        pool.apply(SLICED)
        assert f"kubectl uncordon {node}" in pool.wait_phase("Blocked", "AlreadyCordoned")
        assert pool.transition()["cordon"] == "human"
        assert product.writes("nodes", node) == []
        pool.cordon(node, lifted=True)
        pool.wait_synced()


def test_a_cordon_that_is_to_be_held_survives_the_change(product: Product) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        pool.annotate(node, {"gpusharing.dev/hold-cordon": "true"})
        pool.apply(SLICED)
        pool.wait(lambda: pool.labels().get("gpusharing.dev/mode") == "time-slicing", "the release")
        assert pool.node()["spec"]["unschedulable"] is True
        assert not pool.fence()
        pool.wait(lambda: pool.transition().get("cordon") == "human", "kubectl get gpun to say whose it is")
        pool.cordon(node, lifted=True)


def test_lifting_our_cordon_during_the_drain_gives_the_change_up(product: Product) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        hangs = {"simulate.gpusharing.dev/stop": "never"}
        name = f"{pool.name}-hangs"
        pool.create(PODS, {"metadata": {"name": name, "annotations": hangs}, "spec": pod_spec(node)})
        pool.wait(lambda: product.api.get(f"{PODS}/{name}")["status"]["phase"] == "Running", "the pod")
        pool.apply({**SLICED, "drain": {"unmanagedPods": "Evict"}})
        pool.wait_phase("Draining")
        pool.cordon(node, lifted=True)
        pool.wait(lambda: not pool.fence(), "the fence to go")
        assert "unschedulable" not in pool.node()["spec"], "their word, not ours"
        deferred = json.loads(pool.node()["metadata"]["annotations"][DEFERRED])
        assert deferred["reason"] == "UncordonedExternally"
        product.api.delete(f"{PODS}/{name}", {"gracePeriodSeconds": 0})


def test_pods_that_could_start_nowhere_afterwards_hold_the_change_until_it_is_allowed(
    product: Product,
) -> None:
    with product.pool(H100) as pool:
        pool.apply(MIXED)
        pool.wait_synced()
        work = Workload(pool, pool.nodes[0], 1, resource="nvidia.com/mig-3g.40gb")
        before = work.wait_running(1)
        since = product.mark()
        pool.apply(FULL)
        pool.wait_phase("Blocked", "StrandedPods")
        assert f"default/{before[0]}" == pool.transition()["culprit"]
        assert "nvidia.com/mig-3g.40gb" in pool.transition()["blockers"][0]
        assert product.writes("nodes", pool.nodes[0], since) == []
        pool.apply({**FULL, "drain": {"strandedPods": "Allow"}})
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{before[0]}": 1}


def test_a_pod_without_a_controller_blocks_and_is_named(product: Product) -> None:
    with product.pool(L40S) as pool:
        node = pool.nodes[0]
        pool.create(PODS, {"metadata": {"name": f"{pool.name}-bare"}, "spec": pod_spec(node)})
        pool.wait(
            lambda: product.api.get(f"{PODS}/{pool.name}-bare")["status"]["phase"] == "Running", "the pod"
        )
        pool.apply(SLICED)
        pool.wait_phase("Blocked", "Unmanaged")
        assert pool.transition()["culprit"] == f"default/{pool.name}-bare"
        assert product.writes("nodes", node) == []


def resource_claim(pool: Pool) -> Object:
    """A claim of a GPU of NVIDIA's DRA driver."""
    device = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}
    return {"metadata": {"name": f"{pool.name}-claim"}, "spec": {"devices": {"requests": [device]}}}


def test_a_daemon_set_and_a_claim_of_the_dra_driver_block_and_are_looked_up(product: Product) -> None:
    with product.pool(L40S) as pool:
        node = pool.nodes[0]
        labels = {"app": f"{pool.name}-ds"}
        sets = "/apis/apps/v1/namespaces/default/daemonsets"
        template = {"metadata": {"labels": labels}, "spec": pod_spec(node)}
        spec = {"selector": {"matchLabels": labels}, "template": template}
        pool.create(sets, {"metadata": {"name": f"{pool.name}-ds"}, "spec": spec})
        pool.wait(
            lambda: product.api.get(f"{sets}/{pool.name}-ds")["status"].get("numberReady") == 1, "its pod"
        )
        pool.apply(SLICED)
        pool.wait_phase("Blocked", "GPUDaemonSet")
        product.api.delete(f"{sets}/{pool.name}-ds")
        pool.wait_synced()
        since = product.mark()
        claims = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
        pool.create(claims, resource_claim(pool))
        result = {"request": "gpu", "driver": "gpu.nvidia.com", "pool": node, "device": "gpu-0"}
        allocation = {"allocation": {"devices": {"results": [result]}}}
        product.api.merge_patch(f"{claims}/{pool.name}-claim/status", {"status": allocation})
        claiming: Object = {
            "nodeName": node,
            "containers": [
                {"name": "main", "image": "simulated", "resources": {"claims": [{"name": "gpu"}]}}
            ],
            "resourceClaims": [{"name": "gpu", "resourceClaimName": f"{pool.name}-claim"}],
        }
        pool.create(PODS, {"metadata": {"name": f"{pool.name}-dra"}, "spec": claiming})
        pool.apply({"mode": "TimeSlicing", "timeSlicing": {"replicas": 8}})
        pool.wait_phase("Blocked", "DRAClaim")
        assert product.writes("nodes", node, since) == []
        asked = Counter((r.resource, r.verb) for r in product.requests(user=OPERATOR))
        assert asked["daemonsets", "get"]
        assert asked["resourceclaims", "get"]


def test_only_as_many_nodes_as_the_budget_allows_are_away_at_once(product: Product) -> None:
    with product.pool(L40S, L40S, L40S, L40S) as pool:
        since = product.mark()
        pool.apply({**SLICED, "rollout": {"maxUnavailable": "50%"}})
        pool.wait_synced()
        away: set[str] = set()
        counts = []
        for node in states(pool, since):
            (away.add if node["spec"].get("unschedulable") else away.discard)(node["metadata"]["name"])
            counts.append(len(away))
        assert max(counts) == 2
        assert counts[-1] == 0
