"""Who leaves how, on a real API server: marks on pods, files, rules, jobs (docs/design/drain.md#p17, P19, T11)."""

import pytest
from hack.cluster.api import Object
from tests.integration.product import H100, SLICED, UNTIL_TOLD, Pool, Product
from tests.integration.test_drain import evicted
from tests.integration.workloads import PODS, Workload, guard, pod_spec

from gpusharing.api.names import ANNOTATION_RETRY

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.operator(**UNTIL_TOLD)]

NAMESPACE = "/api/v1/namespaces/default"
JOBS = "/apis/batch/v1/namespaces/default/jobs"


def test_marked_pods_and_files_hold_the_node_uncordoned_until_somebody_gives_way(product: Product) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        marked = {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "for long"}}}
        volumes = {"volumes": [{"name": "scratch", "emptyDir": {}}]}
        work = Workload(pool, node, 1, more={**marked, "spec": volumes})
        before = work.wait_running(1)
        since = product.mark()
        pool.apply({**SLICED, "drain": {"localStorage": "Block"}})
        pool.wait_phase("Blocked", "DoNotDisrupt")
        assert pool.transition()["culprit"] == f"default/{before[0]}"
        assert '"for long"' in pool.transition()["blockers"][0]
        name = before[0]
        product.api.merge_patch(
            f"{PODS}/{name}", {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": None}}}
        )
        pool.wait_phase("Blocked", "LocalStorage")
        assert product.writes("nodes", node, since) == []
        assert evicted(product, since) == {}
        pool.apply({**SLICED, "drain": {"protectedPods": "Ignore"}})
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{name}": 1}


def job(pool: Pool) -> Object:
    """A Job whose one pod runs on the node of the pool until somebody ends it."""
    template = {"spec": {**pod_spec(pool.nodes[0]), "restartPolicy": "Never"}}
    spec = {"backoffLimit": 0, "template": template}
    return pool.create(JOBS, {"metadata": {"name": f"{pool.name}-train"}, "spec": spec})


def pods_of_job(pool: Pool) -> list[Object]:
    """Its pods that run."""
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
        deadline = pool.fence()["deadline"]
        pool.wait(
            lambda: pool.transition().get("deadline") == f"{deadline[11:19]}Z", "the deadline of the jobs"
        )
        shown = product.plane.kubectl("get", "gpun", node, "-o", "wide")
        assert {"WaitingForJobs", "JobsRunning", "ours"} <= set(shown.split())
        assert evicted(product, since) == {}
        product.api.merge_patch(f"{PODS}/{name}/status", {"status": {"phase": "Succeeded"}})
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{before[0]}": 1}
        assert product.api.get(f"{PODS}/{name}")["status"]["phase"] == "Succeeded", "kept for its log"
        assert "WaitingForJobs" in [reason for reason, _ in pool.events()]


def test_a_job_that_runs_too_long_goes_on_and_the_node_is_given_back(product: Product) -> None:
    with product.pool(H100) as pool:
        job(pool)
        pool.wait(lambda: bool(pods_of_job(pool)), "the Job's pod")
        since = product.mark()
        pool.apply({**SLICED, "drain": {"jobs": {"timeout": "2s"}}})
        pool.wait_phase("Pending", "Deferred")
        assert "JobsTimeout" in pool.transition()["message"]
        assert "unschedulable" not in pool.node()["spec"]
        assert evicted(product, since) == {}
        pool.apply({**SLICED, "drain": {"jobs": {"timeout": "2s", "onTimeout": "Evict"}}})
        pool.annotate(pool.nodes[0], {ANNOTATION_RETRY: "now"})
        pool.wait_synced()
        assert sum(evicted(product, since).values()) == 1


def test_a_job_that_may_never_be_hurried_is_waited_for_without_a_deadline(product: Product) -> None:
    with product.pool(H100) as pool:
        job(pool)
        pool.wait(lambda: bool(pods_of_job(pool)), "the Job's pod")
        name = pods_of_job(pool)[0]["metadata"]["name"]
        since = product.mark()
        pool.apply({**SLICED, "drain": {"timeout": "2s", "jobs": {"timeout": "Never"}}})
        pool.wait_phase("WaitingForJobs", "JobsRunning")
        pool.wait(lambda: pool.fence().get("jobs") is True, "the wait for jobs to begin")
        pool.wait(
            lambda: pool.transition().get("deadline") == "others", "no time to be told", pool.transition
        )
        product.api.merge_patch(f"{PODS}/{name}/status", {"status": {"phase": "Succeeded"}})
        pool.wait_synced()
        assert evicted(product, since) == {}


def test_pods_of_a_lower_order_are_gone_before_the_next_are_asked_to_leave(product: Product) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        slow = f"{pool.name}-slow"
        metadata = {
            "name": slow,
            "labels": {"order": "first"},
            "annotations": {"simulate.gpusharing.dev/stop": "never"},
        }
        pool.create(PODS, {"metadata": metadata, "spec": pod_spec(node)})
        pool.wait(lambda: product.api.get(f"{PODS}/{slow}")["status"]["phase"] == "Running", "the slow pod")
        (other,) = Workload(pool, node, 1).wait_running(1)
        first = {"podSelector": {"matchLabels": {"order": "first"}}, "behavior": "Evict", "order": -1}
        since = product.mark()
        pool.apply({**SLICED, "drain": {"rules": [first]}})
        pool.wait(lambda: evicted(product, since), "the first to be asked")
        pool.wait_phase("Draining")
        assert evicted(product, since) == {f"default/{slow}": 1}
        product.api.delete(f"{PODS}/{slow}", {"gracePeriodSeconds": 0})
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{slow}": 1, f"default/{other}": 1}


def test_rules_by_namespace_and_label_decide_in_their_order(product: Product) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        product.api.merge_patch(NAMESPACE, {"metadata": {"labels": {"gpusharing-test/team": pool.name}}})
        metadata = {"name": f"{pool.name}-bare", "labels": {"tier": "prod"}}
        pool.create(PODS, {"metadata": metadata, "spec": pod_spec(node)})
        pool.wait(
            lambda: product.api.get(f"{PODS}/{pool.name}-bare")["status"]["phase"] == "Running", "the pod"
        )
        team = {
            "namespaceSelector": {"matchLabels": {"gpusharing-test/team": "another"}},
            "behavior": "Evict",
        }
        keep = {"podSelector": {"matchLabels": {"tier": "prod"}}, "behavior": "Block"}
        since = product.mark()
        pool.apply({**SLICED, "drain": {"rules": [team, keep]}})
        pool.wait_phase("Blocked", "RuleBlocks")
        assert "spec.drain.rules[1] says Block" in pool.transition()["blockers"][0]
        assert product.writes("nodes", node, since) == []
        team["namespaceSelector"] = {"matchLabels": {"gpusharing-test/team": pool.name}}
        pool.apply({**SLICED, "drain": {"rules": [team, keep]}})
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{pool.name}-bare": 1}
        asked = {(r.resource, r.verb) for r in product.requests(since)}
        assert ("namespaces", "get") in asked


def test_force_without_the_right_acts_as_abort_and_the_policy_says_how_to_get_it(product: Product) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        work = Workload(pool, node, 1)
        work.wait_running(1)
        guard(pool, work.app, 0, minAvailable=1)
        since = product.mark()
        pool.apply({**SLICED, "drain": {"timeout": "2s", "onTimeout": "ForceDelete"}})
        pool.wait_phase("Blocked", "PDBNeverAllows")
        assert "--set forceDelete=true" in pool.wait_condition("Accepted", "True", "ForceDeleteOff")
        assert product.writes("nodes", node, since) == []
        assert product.writes("pods", since=since) == []


def test_a_drain_that_is_held_past_its_time_keeps_the_cordon_and_says_so(product: Product) -> None:
    with product.pool(H100) as pool:
        node, name = pool.nodes[0], f"{pool.name}-hangs"
        hangs = {"simulate.gpusharing.dev/stop": "never"}
        pool.create(PODS, {"metadata": {"name": name, "annotations": hangs}, "spec": pod_spec(node)})
        pool.wait(lambda: product.api.get(f"{PODS}/{name}")["status"]["phase"] == "Running", "the pod")
        drain = {"timeout": "2s", "unmanagedPods": "Evict", "onTimeout": "Hold"}
        since = product.mark()
        pool.apply({**SLICED, "drain": drain})
        pool.wait_phase("Draining", "DrainHeld")
        assert pool.node()["spec"]["unschedulable"] is True
        assert "drain.onTimeout is Hold" in pool.transition()["message"]
        shown = product.plane.kubectl("get", "gpun", node, "-o", "wide")
        assert {"Draining", "DrainHeld", "ours"} <= set(shown.split())
        product.api.delete(f"{PODS}/{name}", {"gracePeriodSeconds": 0})
        pool.wait_synced()
        assert evicted(product, since) == {f"default/{name}": 1}
