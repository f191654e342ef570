"""Draining on a real API server: its LISTs of pods, its evictions, its budgets and what it is asked about owners.
tests/embedded/test_drain.py plays what the operator makes of every answer (docs/design/drain.md)."""

from collections import Counter
from urllib.parse import parse_qs, urlsplit

import pytest
from hack.cluster.api import Object
from tests.integration.product import H100, L40S, OPERATOR, SLICED, Product
from tests.integration.test_output import plugin, view_in
from tests.integration.workloads import PODS, Workload, guard, pod_spec

pytestmark = pytest.mark.usefixtures("operator")


def evicted(product: Product, since: int) -> Counter[str]:
    return Counter(f"{request.namespace}/{request.name}" for request in product.writes("pods/eviction", since=since))


def refused(product: Product, since: int) -> bool:
    """Whether a budget was asked, and said no. Who can tell beforehand need not ask at once."""
    return any(r.resource == "pods/eviction" and r.status == 429 for r in product.requests(since))


def test_pods_are_listed_in_pages_evicted_once_each_and_the_change_follows(product: Product) -> None:
    with product.pool(H100) as pool:
        work = Workload(pool, pool.nodes[0], 2)
        before = work.wait_running(2)
        since = product.mark()
        pool.serve(SLICED)
        assert evicted(product, since) == {f"default/{name}": 1 for name in before}
        assert len(product.writes("nodes", pool.nodes[0], since)) == 3
        assert not set(before) & set(work.wait_running(2)), "new pods came back to the new layout"
        # Statuses and Events are written side by side: that it is Ready is no word about its Events.
        pool.wait(lambda: "LayoutVerified" in dict(pool.events()), "the last Event", pool.events)
        reasons = [reason for reason, _ in pool.events()]
        assert reasons.index("DrainStarted") < reasons.index("Reconfiguring") < reasons.index("LayoutVerified")
        assert_listed_in_pages(product, pool.nodes[0], since)


def assert_listed_in_pages(product: Product, node: str, since: int) -> None:
    """The pods of a node were listed page by page, at their newest state, and never watched."""
    asked = [r for r in product.requests(since) if r.resource == "pods" and r.verb != "delete"]
    urls = [urlsplit(request.path) for request in asked]
    queries = [parse_qs(url.query) for url in urls if f"spec.nodeName%3D{node}" in url.query]
    assert len(queries) >= 2, "two empty LISTs at least"
    expected = {"fieldSelector": [f"spec.nodeName={node}"], "limit": ["500"]}
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
        pool.wait_phase("Draining", "PDBInUse")
        pool.wait(lambda: refused(product, since), "the budget that allowed one eviction to refuse the second")
        left = work.running()
        assert len(left) == 1
        pool.wait(lambda: pool.transition().get("culprit") == f"default/{left[0]}", "the pod that is left to be named")
        now = pool.transition()
        assert budget in now["blockers"][0]
        assert now["cordonedBy"] == "Operator"
        assert now["waitingFor"] == "Clock"
        shown = product.plane.kubectl("get", "gpun", node, "-o", "wide")
        assert {"Draining", "PDBInUse", "Operator"} <= set(shown.split())
        assert f"default/{left[0]}" in shown
        elsewhere.scale(1)
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{name}": 1 for name in before}


def test_an_evicted_pod_leaves_an_event_that_its_tenant_finds_and_why_shows(product: Product) -> None:
    """The tenant has `view` in the namespace and nothing else, so no other trace of the eviction is for him to see."""
    tenant = "drained-tenant"
    with product.pool(H100) as pool:
        pool.create("/api/v1/namespaces", {"metadata": {"name": tenant}})
        pool.create(f"/api/v1/namespaces/{tenant}/serviceaccounts", {"metadata": {"name": "somebody"}})
        view_in(product, tenant, "somebody")
        somebody = product.plane.service_account_kubeconfig(tenant, "somebody")
        pods = f"/api/v1/namespaces/{tenant}/pods"
        product.api.create(pods, {"metadata": {"name": "train"}, "spec": pod_spec(pool.nodes[0])})
        pool.wait(lambda: product.api.get(f"{pods}/train")["status"]["phase"] == "Running", "the pod to run")
        pool.apply({**SLICED, "drain": {"unmanagedPods": "Evict"}})
        pool.wait_synced()

        def events() -> str:
            return product.plane.kubectl("get", "events", "-n", tenant, "-o", "wide", kubeconfig=somebody)

        pool.wait(lambda: "PodEvicted" in events(), "the Event", events)
        said = (
            f"the GPU sharing operator evicted this pod from node {pool.nodes[0]}, because policy {pool.name} changes"
        )
        (line,) = [one for one in events().splitlines() if "PodEvicted" in one]
        assert "pod/train" in line
        assert said in line
        assert said in " ".join(plugin(somebody, "why", "pod/train", "-n", tenant).split())
        nowhere = plugin(somebody, "why", "pod/other", "-n", tenant)
        assert f"there is no pods/other in namespace {tenant}" in nowhere


def test_a_daemon_set_and_a_claim_of_the_dra_driver_block_and_are_looked_up(product: Product) -> None:
    with product.pool(L40S) as pool:
        node = pool.nodes[0]
        labels = {"app": f"{pool.name}-ds"}
        sets = "/apis/apps/v1/namespaces/default/daemonsets"
        template = {"metadata": {"labels": labels}, "spec": pod_spec(node)}
        spec = {"selector": {"matchLabels": labels}, "template": template}
        pool.create(sets, {"metadata": {"name": f"{pool.name}-ds"}, "spec": spec})
        pool.wait(lambda: product.api.get(f"{sets}/{pool.name}-ds")["status"].get("numberReady") == 1, "its pod")
        pool.apply(SLICED)
        pool.wait_phase("Blocked", "GPUDaemonSet")
        product.api.delete(f"{sets}/{pool.name}-ds")
        pool.wait_synced()
        since = product.mark()
        claims = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
        wanted = {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}]}
        pool.create(claims, {"metadata": {"name": f"{pool.name}-claim"}, "spec": {"devices": wanted}})
        result = {"request": "gpu", "driver": "gpu.nvidia.com", "pool": node, "device": "gpu-0"}
        allocation = {"allocation": {"devices": {"results": [result]}}}
        product.api.merge_patch(f"{claims}/{pool.name}-claim/status", {"status": allocation})
        claiming: Object = {
            "nodeName": node,
            "containers": [{"name": "main", "image": "simulated", "resources": {"claims": [{"name": "gpu"}]}}],
            "resourceClaims": [{"name": "gpu", "resourceClaimName": f"{pool.name}-claim"}],
        }
        pool.create(PODS, {"metadata": {"name": f"{pool.name}-dra"}, "spec": claiming})
        pool.apply({"mode": "TimeSlicing", "timeSlicing": {"replicas": 8}})
        pool.wait_phase("Blocked", "DRAClaim")
        assert product.writes("nodes", node, since) == []
        asked = Counter((r.resource, r.verb) for r in product.requests(user=OPERATOR))
        assert asked["daemonsets", "get"]
        assert asked["resourceclaims", "get"]
