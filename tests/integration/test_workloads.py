"""Who leaves how, on a real API server: jobs, rules by namespace, gangs, finalizers (docs/design/drain.md#p19, T11)."""

from datetime import datetime
from urllib.parse import parse_qs, urlsplit

import pytest
from hack.cluster.api import Object
from tests.integration.product import FULL, H100, L40S, SLICED, Pool, Product
from tests.integration.test_drain import evicted
from tests.integration.workloads import PODS, Workload, pod_spec

from gpusharing.api.times import to_rfc3339

pytestmark = pytest.mark.usefixtures("operator")

NAMESPACE = "/api/v1/namespaces/default"
JOBS = "/apis/batch/v1/namespaces/default/jobs"
GANG = "jobset.sigs.k8s.io/jobset-name"


def job(pool: Pool) -> Object:
    """A Job whose one pod runs on the node of the pool until somebody ends it."""
    template = {"spec": {**pod_spec(pool.nodes[0]), "restartPolicy": "Never"}}
    spec = {"backoffLimit": 0, "template": template}
    return pool.create(JOBS, {"metadata": {"name": f"{pool.name}-train"}, "spec": spec})


def pods_of_job(pool: Pool) -> list[Object]:
    found = pool.api.list(PODS, labelSelector=f"job-name={pool.name}-train")
    return [pod for pod in found if pod["status"]["phase"] == "Running"]


def test_a_job_may_end_on_the_cordoned_node_and_then_the_others_leave(product: Product) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        work = Workload(pool, node, 1)
        before = work.wait_running(1)
        job(pool)
        pool.wait(lambda: bool(pods_of_job(pool)), "the Job's pod")
        name = pods_of_job(pool)[0]["metadata"]["name"]
        since = product.mark()
        pool.apply(SLICED)
        pool.wait_phase("WaitingForJobs", "JobsRunning")
        assert pool.transition()["culprit"] == f"default/{name}"
        assert pool.node()["spec"]["unschedulable"] is True
        pool.wait(lambda: pool.fence().get("jobs") is True, "the clock of the jobs")
        deadline = to_rfc3339(datetime.fromisoformat(pool.fence()["deadline"]))
        pool.wait(lambda: pool.transition().get("deadline") == deadline, "the deadline of the jobs")
        shown = product.plane.kubectl("get", "gpun", node, "-o", "wide")
        assert {"WaitingForJobs", "JobsRunning", "Operator", deadline} <= set(shown.split()), "no <invalid> deadline"
        assert evicted(product, since) == {}
        product.api.merge_patch(f"{PODS}/{name}/status", {"status": {"phase": "Succeeded"}})
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{before[0]}": 1}
        assert product.api.get(f"{PODS}/{name}")["status"]["phase"] == "Succeeded", "kept for its log"
        assert "WaitingForJobs" in [reason for reason, _ in pool.events()]


def run(pool: Pool, node: str, **metadata: object) -> str:
    name = f"{pool.name}-bare"
    pool.create(PODS, {"metadata": {"name": name, **metadata}, "spec": pod_spec(node)})
    pool.wait(lambda: pool.api.get(f"{PODS}/{name}")["status"]["phase"] == "Running", f"pod {name} to run")
    return name


def test_rules_by_namespace_and_label_decide_in_their_order(product: Product) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        product.api.merge_patch(NAMESPACE, {"metadata": {"labels": {"gpusharing-test/team": pool.name}}})
        run(pool, node, labels={"tier": "prod"})
        team = {"namespaceSelector": {"matchLabels": {"gpusharing-test/team": "another"}}, "behavior": "Evict"}
        keep = {"podSelector": {"matchLabels": {"tier": "prod"}}, "behavior": "Block"}
        since = product.mark()
        pool.apply({**SLICED, "drain": {"rules": [team, keep]}})
        pool.wait_phase("Blocked", "RuleBlocks")
        assert "spec.drain.rules[1] has behavior Block" in pool.transition()["blockers"][0]
        assert product.writes("nodes", node, since) == []
        team["namespaceSelector"] = {"matchLabels": {"gpusharing-test/team": pool.name}}
        pool.apply({**SLICED, "drain": {"rules": [team, keep]}})
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{pool.name}-bare": 1}
        asked = {(r.resource, r.verb) for r in product.requests(since)}
        assert ("namespaces", "get") in asked


def test_the_members_of_a_gang_are_listed_by_label_and_one_that_must_stay_holds_the_node_of_another(
    product: Product,
) -> None:
    with product.pool(H100, H100) as pool:
        first, second = pool.nodes
        pool.serve(FULL)
        labels = {"labels": {GANG: pool.name}}
        (member,) = Workload(pool, first, 1, more={"metadata": labels}).wait_running(1)
        bare = run(pool, second, **labels)
        since = product.mark()
        pool.apply({**SLICED, "rollout": {"maxUnavailable": 2}})
        pool.wait(lambda: pool.transition(first).get("reason") == "Unmanaged", "a member elsewhere to hold it")
        transition = pool.transition(first)
        assert transition["culprit"] == f"default/{bare}"
        where = f"Gang: JobSet default/{pool.name}, 2 pods (1 on {first}, 1 on {second})."
        assert where in transition["blockers"][0]
        assert product.writes("nodes", first, since) == []
        queries = [parse_qs(urlsplit(r.path).query) for r in product.requests(since) if r.resource == "pods"]
        members = {
            "labelSelector": [f"{GANG}={pool.name}"],
            "fieldSelector": ["status.phase!=Succeeded,status.phase!=Failed"],
            "limit": ["500"],
        }
        assert members in queries
        product.api.delete(f"{PODS}/{bare}", {"gracePeriodSeconds": 0})
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{member}": 1}


def test_a_pod_that_its_finalizer_keeps_is_evicted_once_and_holds_its_node_until_the_finalizer_goes(
    product: Product,
) -> None:
    with product.pool(L40S) as pool:
        name = run(pool, pool.nodes[0], finalizers=["example.com/keep"])
        try:
            since = product.mark()
            drain = {"unmanagedPods": "Evict", "timeout": "2s", "onTimeout": "Hold"}
            pool.apply({**SLICED, "drain": drain})
            assert "1 GPU pod left to go" in pool.wait_phase("Draining", "DrainHeld")
            transition = pool.transition()
            shown = transition["culprit"], transition["cordonedBy"], transition["waitingFor"]
            assert shown == (f"default/{name}", "Operator", "Person")
            assert pool.node()["spec"]["unschedulable"] is True
            assert evicted(product, since) == {f"default/{name}": 1}
        finally:
            pool.api.merge_patch(f"{PODS}/{name}", {"metadata": {"finalizers": None}})
        pool.wait_synced()
