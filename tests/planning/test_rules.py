"""Rules of a policy about pods, jobs, who leaves first, and pods with a fraction of a GPU; the reasons are in vocabulary/reasons.py."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.build import JOB, REPLICA_SET, at, make_pdb, make_pod, make_work
from tests.planning.drainpass import GPU, OPERATOR, SCOPE, drain_pass, foreseen, roomy
from tests.wording import lacks

from gpusharing.api.policy import Drain
from gpusharing.api.times import NEVER
from gpusharing.planning.drain.plan import DrainPlan, due_under, plan_drain, preflight
from gpusharing.planning.drain.pods import (
    asks_for_namespaces,
    classify,
    find_rule,
    gpu_resources,
    holds_gpu,
    is_idle,
    is_job,
    patience,
    tier_of,
)
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.snapshot.podviews import Owner, PodView, Scope
from gpusharing.planning.vocabulary.reasons import Reason

TRAINING = {"matchLabels": {"tier": "training"}}
TEAM_A = {"matchLabels": {"team": "a"}}
CORDONED = Scope(OPERATOR, cordoned_at=at(0))


def drain(*rules: dict[str, Any], **more: Any) -> Drain:
    return Drain.model_validate({"rules": list(rules), **more})


def rule(behavior: str = "Evict", **more: Any) -> dict[str, Any]:
    return {"behavior": behavior, **more}


def plan(*pods: PodView, options: Drain, now: float = 10) -> DrainPlan:
    work = make_work(*pods, listed_at=at(now))
    return plan_drain(find_standings(work, options, at(now), scope=CORDONED), at(now))


def names(pods: tuple[PodView, ...]) -> list[str]:
    return [pod.name for pod in pods]


TRAINER = make_pod("train-0", labels={"tier": "training"}, owner=JOB, restarts=False)
SERVER = make_pod("llm-0")


FIRST_MATCH: dict[str, tuple[list[dict[str, Any]], str]] = {
    "the first that matches blocks": ([rule("Block", podSelector=TRAINING), rule("Evict")], "RuleBlocks"),
    "the first that matches evicts": ([rule("Evict"), rule("Block", podSelector=TRAINING)], "evict"),
    "none matches": ([rule("Block", podSelector={"matchLabels": {"tier": "serving"}})], "Unmanaged"),
    "a rule overrides unmanagedPods": ([rule("Evict", podSelector=TRAINING)], "evict"),
    "a rule lets it end first": ([rule("WaitCompleted", podSelector=TRAINING)], "wait"),
    "by namespace": ([rule("Evict", namespaceSelector=TEAM_A)], "evict"),
    "of another namespace": ([rule("Evict", namespaceSelector={"matchLabels": {"team": "b"}})], "Unmanaged"),
}


@pytest.mark.parametrize(("rules", "expected"), FIRST_MATCH.values(), ids=FIRST_MATCH)
def test_the_first_rule_that_matches_decides_about_a_bare_pod(rules: list[dict[str, Any]], expected: str) -> None:
    pod = make_pod("notebook", owner=None, labels={"tier": "training"}, namespace_labels={"team": "a"})
    found = classify([pod], drain(*rules), CORDONED)
    if expected in ("evict", "wait"):
        assert names(found.holders) == ["notebook"]
        assert (pod.uid in found.waited) is (expected == "wait")
    else:
        assert [str(one.reason) for one in found.blockers] == [expected]


def test_a_rule_does_not_override_a_mark_on_the_pod_nor_what_nobody_evicts() -> None:
    options = drain(rule("Evict"))
    marked = make_pod("marked", marks={"karpenter.sh/do-not-disrupt": "true"})
    static = make_pod("static", mirror=True)
    found = classify([marked, static], options, CORDONED)
    assert sorted(str(one.reason) for one in found.blockers) == ["DoNotDisrupt", "StaticGPUPod"]


def test_a_rule_overrides_what_is_said_of_files_and_jobs() -> None:
    options = drain(rule("Evict"), localStorage="Block")
    found = classify([make_pod("files", local_files=True), TRAINER], options, CORDONED)
    assert (names(found.holders), found.waited, found.blockers) == (["files", "train-0"], frozenset(), ())


def test_where_the_labels_of_a_namespace_cannot_be_read_the_pod_is_left_alone_and_the_rule_named() -> None:
    options = drain(rule("Evict", namespaceSelector=TEAM_A))
    (blocker,) = classify([SERVER], options, CORDONED).blockers
    assert str(blocker.reason) == "NamespaceUnreadable"
    assert blocker.pods == ("team-a/llm-0",)
    assert not lacks(blocker.message, "spec.drain.rules[0].namespaceSelector", "labels of namespace team-a")


def test_a_rule_for_other_pods_does_not_care_for_a_namespace_that_cannot_be_read() -> None:
    options = drain(rule("Block", namespaceSelector=TEAM_A, podSelector=TRAINING))
    assert find_rule(SERVER, options) is None
    assert asks_for_namespaces(options)
    assert not asks_for_namespaces(drain(rule("Block", podSelector=TRAINING)))


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        ({"key": "tier", "operator": "In", "values": ["training", "batch"]}, True),
        ({"key": "tier", "operator": "In", "values": ["batch"]}, False),
        ({"key": "tier", "operator": "NotIn", "values": ["training"]}, False),
        ({"key": "team", "operator": "NotIn", "values": ["a"]}, True),
        ({"key": "tier", "operator": "Exists"}, True),
        ({"key": "team", "operator": "Exists"}, False),
        ({"key": "team", "operator": "DoesNotExist"}, True),
        ({"key": "tier", "operator": "DoesNotExist"}, False),
    ],
    ids=["in", "not among them", "excluded", "without the label", "has it", "lacks it", "is free of it", "is not"],
)
def test_expressions_mean_what_they_mean_in_kubernetes(row: dict[str, Any], holds: bool) -> None:
    found = find_rule(TRAINER, drain(rule("Block", podSelector={"matchExpressions": [row]})))
    assert (found is not None) is holds


JOBS: dict[str, tuple[PodView, bool]] = {
    "a pod of a Job": (make_pod(owner=JOB, restarts=False), True),
    "a pod of a Volcano Job": (make_pod(owner=Owner("batch.volcano.sh/v1alpha1", "Job", "j"), restarts=False), True),
    "a rank of a PyTorchJob": (make_pod(owner=Owner("kubeflow.org/v1", "PyTorchJob", "j"), restarts=False), True),
    "a step of a Workflow": (make_pod(owner=Owner("argoproj.io/v1alpha1", "Workflow", "w"), restarts=False), True),
    "a worker of a RayJob": (
        make_pod(
            owner=Owner("ray.io/v1", "RayCluster", "r"), restarts=False, labels={"ray.io/originated-from-crd": "RayJob"}
        ),
        True,
    ),
    "a worker of a RayService": (make_pod(owner=Owner("ray.io/v1", "RayCluster", "r"), restarts=False), False),
    "a Job whose pods restart for ever": (make_pod(owner=JOB), False),
    "a Job of another group": (make_pod(owner=Owner("example.com/v1", "Job", "j"), restarts=False), False),
    "a bare pod that ends": (make_pod(owner=None, restarts=False), False),
    "a pod of a ReplicaSet": (make_pod(owner=REPLICA_SET), False),
}


@pytest.mark.parametrize(("pod", "expected"), JOBS.values(), ids=JOBS.keys())
def test_who_ends_by_itself(pod: PodView, expected: bool) -> None:
    assert is_job(pod) is expected


def test_a_rule_names_its_own_patience_and_jobs_have_that_of_all() -> None:
    options = drain(rule("WaitCompleted", podSelector={"matchLabels": {"app": "llm"}}, timeout="8h"))
    assert patience(SERVER, options) == timedelta(hours=8)
    assert patience(TRAINER, options) == timedelta(hours=1)


def test_while_a_job_runs_nobody_is_evicted_and_it_is_named_with_the_end_of_its_time() -> None:
    found = plan(TRAINER, SERVER, options=Drain())
    assert (found.evict, names(found.jobs), found.jobs_until, found.overdue) == ((), ["train-0"], at(3600), ())
    assert [(str(one.reason), one.pods, one.message) for one in found.blockers] == [
        ("JobsRunning", ("team-a/train-0",), "The drain waits until 2026-11-20T11:00:00Z")
    ]
    assert found.next_wake == at(3600)


def test_the_jobs_of_a_node_get_as_long_as_the_most_patient_rule_gives_one_of_them() -> None:
    slow = make_pod("train-1", owner=JOB, restarts=False, labels={"slow": "yes"})
    patient = rule("WaitCompleted", podSelector={"matchLabels": {"slow": "yes"}}, timeout="8h")
    assert plan(TRAINER, slow, options=drain(patient)).jobs_until == at(8 * 3600)


@pytest.mark.parametrize("end", [{"phase": "Succeeded"}, {"deleted_at": at(40)}], ids=["has ended", "is leaving"])
def test_the_others_leave_when_the_job(end: dict[str, Any]) -> None:
    found = plan(make_pod("train-0", owner=JOB, restarts=False, **end), SERVER, options=Drain())
    assert (names(found.evict), found.jobs) == (["llm-0"], ())


def test_a_job_past_its_time_is_overdue_and_never_evicted_unless_the_policy_says_so() -> None:
    kept = plan(TRAINER, options=Drain(), now=3600)
    assert (kept.evict, names(kept.overdue)) == ((), ["train-0"])
    gone = plan(TRAINER, options=Drain.model_validate({"jobs": {"onTimeout": "Evict"}}), now=3600)
    assert (names(gone.evict), gone.jobs, gone.overdue) == (["train-0"], (), ())


def test_a_job_may_run_for_as_long_as_it_wants_where_the_policy_says_never() -> None:
    never = Drain.model_validate({"jobs": {"timeout": "Never", "onTimeout": "Evict"}})
    found = plan(TRAINER, options=never, now=10**8)
    assert (names(found.jobs), found.evict, found.overdue, found.jobs_until) == (["train-0"], (), (), NEVER)
    assert found.next_wake is None
    (blocker,) = found.blockers
    assert (blocker.reason, blocker.until) == (Reason.JOBS_RUNNING, None)
    assert not lacks(blocker.message, "until the pod ends", "without a time limit")
    ruled = drain(rule("WaitCompleted", timeout="1h"), jobs={"timeout": "Never"})
    assert names(plan(TRAINER, options=ruled, now=3600).overdue) == ["train-0"], "a rule's own time counts"


def test_a_job_does_not_block_the_cordon_whatever_its_budget_says() -> None:
    work = make_work(TRAINER, pdbs=[make_pdb(match_labels={"tier": "training"}, allowed=0, expected=1, desired=1)])
    found = find_standings(work, Drain(), at(0), scope=Scope(OPERATOR), cordoned=False)
    assert preflight(found, Drain(), roomy(), at(0)) == ()
    assert not due_under(found)
    ended_anyway = Drain.model_validate({"jobs": {"onTimeout": "Evict"}})
    found = find_standings(work, ended_anyway, at(0), scope=Scope(OPERATOR), cordoned=False)
    assert [str(one.reason) for one in preflight(found, ended_anyway, GPU, at(0))] == ["PDBNeverAllows"]


FIRST = drain(rule("Evict", podSelector={"matchLabels": {"first": "yes"}}, order=-5))
EARLY = make_pod("early", labels={"first": "yes"})


def test_pods_of_a_lower_order_are_gone_before_the_next_are_asked() -> None:
    assert names(plan(EARLY, SERVER, options=FIRST).evict) == ["early"]
    assert plan(replace(EARLY, deleted_at=at(30)), SERVER, options=FIRST).evict == ()
    assert names(plan(SERVER, options=FIRST).evict) == ["llm-0"]


def test_pods_of_a_lower_order_leave_before_jobs_are_waited_for() -> None:
    found = plan(EARLY, TRAINER, options=FIRST)
    assert (names(found.evict), found.jobs) == (["early"], ())
    assert names(plan(TRAINER, options=FIRST).jobs) == ["train-0"]


def test_a_blocked_pod_holds_back_those_of_a_higher_order_only() -> None:
    stays = make_pod("stays", labels={"first": "yes"}, marks={"karpenter.sh/do-not-disrupt": "true"})
    assert names(plan(stays, EARLY, SERVER, options=FIRST).evict) == ["early"]
    assert plan(stays, SERVER, options=FIRST).evict == ()


def test_pods_of_the_clusters_own_priority_classes_leave_last() -> None:
    system = make_pod("a-critical", system=True)
    assert names(plan(system, SERVER, options=Drain()).evict) == ["llm-0"]
    assert names(plan(system, options=Drain()).evict) == ["a-critical"]
    assert tier_of(system, Drain()) > tier_of(SERVER, Drain())


# --- fractions of a GPU through KAI-Scheduler (NVIDIA/KAI-Scheduler#848, #464, #65) ------------------------------------

LONG_AGO = at(-600)


def fraction(name: str = "llm-1", group: str = "g1", **more: Any) -> PodView:
    return make_pod(name, labels={"app": "llm", "runai-gpu-group": group}, resources={}, **more)


def reservation(group: str = "g1", **more: Any) -> PodView:
    """KAI's pod that keeps the GPU of a group, with the mark that KAI gives each for Karpenter."""
    labels = {"app": "kai-resource-reservation", "runai-gpu-group": group}
    marks = {"karpenter.sh/do-not-disrupt": "true"}
    name, namespace = f"gpu-reservation-{group}", "kai-resource-reservation"
    return make_pod(name, namespace=namespace, labels=labels, owner=None, marks=marks, **more)


def told(pods: list[PodView], options: Drain | None = None, cordoned: datetime | None = None) -> list[str]:
    found = drain_pass(make_work(*pods), options, cordoned=cordoned).found
    return [str(one.reason) for one in found.blockers]


def test_pods_that_share_a_gpu_through_kai_are_drained_and_its_own_pod_is_left_to_it() -> None:
    pods = [reservation(), fraction("llm-1"), fraction("llm-2")]
    for cordoned in (None, LONG_AGO):
        found = drain_pass(make_work(*pods), cordoned=cordoned)
        assert names(found.plan.evict) == ["llm-1", "llm-2"]
        assert (found.plan.holders, found.plan.blockers) == (2, ())
    assert foreseen(make_work(*pods)) == ()


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({"runai-gpu-group": "g1"}, id="one GPU"),
        pytest.param({"runai-gpu-group/g1": "g1", "runai-gpu-group/g2": "g2"}, id="fractions of two GPUs"),
        pytest.param({"kai-gpu-group": "g1"}, id="the name of the label to come"),
    ],
)
def test_a_pod_with_the_group_of_a_gpu_holds_that_gpu_though_it_asks_for_none(labels: dict[str, str]) -> None:
    pod = make_pod(labels=labels, resources={})
    assert holds_gpu(pod)
    assert gpu_resources(pod) == ("nvidia.com/gpu",)
    assert drain_pass(make_work(reservation(), pod), cordoned=LONG_AGO).plan.evict == (pod,)


def test_a_pod_that_only_names_kai_s_label_in_another_way_holds_no_gpu() -> None:
    for labels in ({"runai-gpu-group": ""}, {"my-runai-gpu-group": "g1"}, {"app": "runai-gpu-group"}):
        assert not holds_gpu(make_pod(labels=labels, resources={}))


def test_the_budget_of_pods_that_share_a_gpu_is_kept() -> None:
    full = make_pdb(allowed=0, expected=2, desired=2, current=2)
    found = foreseen(make_work(reservation(), fraction("llm-1"), fraction("llm-2"), pdbs=[full]))
    assert [(one.reason, one.pods) for one in found] == [(Reason.PDB_NEVER_ALLOWS, ("team-a/llm-1", "team-a/llm-2"))]
    slow = make_pdb(allowed=1, expected=2, desired=1, current=2)
    work = make_work(reservation(), fraction("llm-1"), fraction("llm-2"), pdbs=[slow])
    assert names(drain_pass(work, cordoned=LONG_AGO).plan.evict) == ["llm-1"]


@pytest.mark.parametrize(
    ("behavior", "reasons", "evicted"),
    [
        ({"behavior": "Block"}, ["RuleBlocks"], []),
        ({"behavior": "WaitCompleted"}, [], []),
        ({"behavior": "Evict", "order": 5}, [], ["llm-1"]),
    ],
    ids=["it blocks", "it waits", "its order is not held up by the pod that keeps the GPU"],
)
def test_a_rule_about_pods_that_share_a_gpu_is_kept(
    behavior: dict[str, Any], reasons: list[str], evicted: list[str]
) -> None:
    rules = [{**behavior, "podSelector": {"matchLabels": {"app": "llm"}}}]
    found = drain_pass(make_work(reservation(), fraction()), Drain.model_validate({"rules": rules}), cordoned=at(0))
    assert [str(one.reason) for one in found.found.blockers] == reasons
    assert names(found.plan.evict) == evicted


def test_the_node_is_not_idle_before_kai_has_taken_its_pod_away() -> None:
    assert not is_idle([reservation()], SCOPE)
    found = drain_pass(make_work(reservation()), cordoned=LONG_AGO)
    assert found.plan.holders == 1


def test_a_reservation_pod_that_a_drain_has_left_over_is_evicted_and_blocks_nothing() -> None:
    """A pod with fractions of several GPUs has ended, and KAI v0.17.0 does not notice."""
    found = drain_pass(make_work(reservation(), fraction(phase="Succeeded")), cordoned=LONG_AGO)
    assert names(found.plan.evict) == ["gpu-reservation-g1"]
    assert found.plan.blockers == ()


def test_before_a_cordon_a_reservation_pod_without_pods_of_its_group_is_named_as_what_it_is() -> None:
    (blocker,) = foreseen(make_work(reservation(), fraction(group="g2"), reservation("g2")))
    assert (blocker.reason, blocker.pods) == (Reason.UNMANAGED, ("kai-resource-reservation/gpu-reservation-g1",))
    assert not lacks(blocker.message, "KAI-Scheduler", "no pod of its group")
    allowed = Drain.model_validate({"unmanagedPods": "Evict"})
    assert foreseen(make_work(reservation()), options=allowed, afterwards=roomy()) == ()


def test_a_rule_that_keeps_everything_keeps_what_a_drain_has_left_over() -> None:
    options = Drain.model_validate({"rules": [{"behavior": "Block"}]})
    assert told([reservation()], options, LONG_AGO) == ["RuleBlocks"]


def test_where_no_node_would_offer_whole_gpus_the_pods_are_stranded_and_told_why() -> None:
    found = foreseen(make_work(reservation(), fraction()), afterwards=roomy("nvidia.com/mig-3g.40gb"))
    (one,) = found
    assert (one.reason, one.pods) == (Reason.STRANDED_PODS, ("team-a/llm-1",))
    assert not lacks(one.message, "nvidia.com/gpu", "KAI-Scheduler")


def test_before_a_reboot_the_pod_of_kai_still_goes_by_itself() -> None:
    scope = SCOPE.__class__("gpu-operator", all_pods=True, cordoned_at=LONG_AGO)
    pods = [reservation(), fraction(), make_pod("web", resources={})]
    found = classify(pods, Drain(), scope)
    assert names(found.holders) == ["llm-1", "web"]
    assert names(tuple(pod for pod in pods if pod not in found.must_leave)) == ["gpu-reservation-g1"]


def test_a_pod_that_is_marked_is_left_alone_though_it_has_only_a_fraction() -> None:
    marked = fraction(marks={"karpenter.sh/do-not-disrupt": "true"})
    assert told([reservation(), marked]) == ["DoNotDisrupt"]
    late = drain_pass(make_work(fraction(created=at(0) + timedelta(minutes=1))), cordoned=at(0)).found
    assert [str(one.reason) for one in late.blockers] == ["ToleratesCordon"]
