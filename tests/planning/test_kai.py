"""planning/drain/pods.py: pods with a fraction of a GPU through KAI-Scheduler hold the GPU, and KAI's reservation pod goes by itself. Reports: NVIDIA/KAI-Scheduler#848, #464, #65."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.build import at, make_pdb, make_pod, make_work
from tests.planning.drainpass import SCOPE, drain_pass, foreseen, roomy
from tests.wording import lacks

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.pods import classify, gpu_resources, holds_gpu, is_idle
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.vocabulary.reasons import Reason

CORDONED = at(-600)


def fraction(name: str = "llm-1", group: str = "g1", **more: Any) -> PodView:
    return make_pod(name, labels={"app": "llm", "runai-gpu-group": group}, resources={}, **more)


def reservation(group: str = "g1", **more: Any) -> PodView:
    """KAI's pod that keeps the GPU of a group, with the mark that KAI gives each for Karpenter."""
    labels = {"app": "kai-resource-reservation", "runai-gpu-group": group}
    marks = {"karpenter.sh/do-not-disrupt": "true"}
    name, namespace = f"gpu-reservation-{group}", "kai-resource-reservation"
    return make_pod(name, namespace=namespace, labels=labels, owner=None, marks=marks, **more)


def refs(pods: tuple[PodView, ...]) -> list[str]:
    return [pod.name for pod in pods]


def told(pods: list[PodView], options: Drain | None = None, cordoned: datetime | None = None) -> list[str]:
    found = drain_pass(make_work(*pods), options, cordoned=cordoned).found
    return [str(one.reason) for one in found.blockers]


def test_pods_that_share_a_gpu_through_kai_are_drained_and_its_own_pod_is_left_to_it() -> None:
    pods = [reservation(), fraction("llm-1"), fraction("llm-2")]
    for cordoned in (None, CORDONED):
        found = drain_pass(make_work(*pods), cordoned=cordoned)
        assert refs(found.plan.evict) == ["llm-1", "llm-2"]
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
    assert drain_pass(make_work(reservation(), pod), cordoned=CORDONED).plan.evict == (pod,)


def test_a_pod_that_only_names_kai_s_label_in_another_way_holds_no_gpu() -> None:
    for labels in ({"runai-gpu-group": ""}, {"my-runai-gpu-group": "g1"}, {"app": "runai-gpu-group"}):
        assert not holds_gpu(make_pod(labels=labels, resources={}))


def test_the_budget_of_pods_that_share_a_gpu_is_kept() -> None:
    full = make_pdb(allowed=0, expected=2, desired=2, current=2)
    found = foreseen(make_work(reservation(), fraction("llm-1"), fraction("llm-2"), pdbs=[full]))
    assert [(one.reason, one.pods) for one in found] == [(Reason.PDB_NEVER_ALLOWS, ("team-a/llm-1", "team-a/llm-2"))]
    slow = make_pdb(allowed=1, expected=2, desired=1, current=2)
    work = make_work(reservation(), fraction("llm-1"), fraction("llm-2"), pdbs=[slow])
    assert refs(drain_pass(work, cordoned=CORDONED).plan.evict) == ["llm-1"]


@pytest.mark.parametrize(
    ("rule", "reasons"),
    [
        ({"behavior": "Block", "podSelector": {"matchLabels": {"app": "llm"}}}, ["RuleBlocks"]),
        ({"behavior": "WaitCompleted", "podSelector": {"matchLabels": {"app": "llm"}}}, []),
    ],
)
def test_a_rule_about_pods_that_share_a_gpu_is_kept(rule: dict[str, Any], reasons: list[str]) -> None:
    found = drain_pass(make_work(reservation(), fraction()), Drain.model_validate({"rules": [rule]}), cordoned=at(0))
    assert [str(one.reason) for one in found.found.blockers] == reasons
    assert found.plan.evict == ()


def test_an_order_for_pods_that_share_a_gpu_is_not_held_up_by_the_pod_that_keeps_it() -> None:
    rule = {"behavior": "Evict", "order": 5, "podSelector": {"matchLabels": {"app": "llm"}}}
    options = Drain.model_validate({"rules": [rule]})
    found = drain_pass(make_work(reservation(), fraction()), options, cordoned=CORDONED)
    assert refs(found.plan.evict) == ["llm-1"]


def test_the_node_is_not_idle_before_kai_has_taken_its_pod_away() -> None:
    assert not is_idle([reservation()], SCOPE)
    found = drain_pass(make_work(reservation()), cordoned=CORDONED)
    assert found.plan.holders == 1


def test_a_reservation_pod_that_a_drain_has_left_over_is_evicted_and_blocks_nothing() -> None:
    """A pod with fractions of several GPUs has ended, and KAI v0.17.0 does not notice."""
    found = drain_pass(make_work(reservation(), fraction(phase="Succeeded")), cordoned=CORDONED)
    assert refs(found.plan.evict) == ["gpu-reservation-g1"]
    assert found.plan.blockers == ()


def test_before_a_cordon_a_reservation_pod_without_pods_of_its_group_is_named_as_what_it_is() -> None:
    (blocker,) = foreseen(make_work(reservation(), fraction(group="g2"), reservation("g2")))
    assert (blocker.reason, blocker.pods) == (Reason.UNMANAGED, ("kai-resource-reservation/gpu-reservation-g1",))
    assert not lacks(blocker.message, "KAI-Scheduler", "no pod of its group")
    allowed = Drain.model_validate({"unmanagedPods": "Evict"})
    assert foreseen(make_work(reservation()), options=allowed, afterwards=roomy()) == ()


def test_a_rule_that_keeps_everything_keeps_what_a_drain_has_left_over() -> None:
    options = Drain.model_validate({"rules": [{"behavior": "Block"}]})
    assert told([reservation()], options, CORDONED) == ["RuleBlocks"]


def test_where_no_node_would_offer_whole_gpus_the_pods_are_stranded_and_told_why() -> None:
    found = foreseen(make_work(reservation(), fraction()), afterwards=roomy("nvidia.com/mig-3g.40gb"))
    (one,) = found
    assert (one.reason, one.pods) == (Reason.STRANDED_PODS, ("team-a/llm-1",))
    assert not lacks(one.message, "nvidia.com/gpu", "KAI-Scheduler")


def test_before_a_reboot_the_pod_of_kai_still_goes_by_itself() -> None:
    scope = SCOPE.__class__("gpu-operator", all_pods=True, cordoned_at=CORDONED)
    pods = [reservation(), fraction(), make_pod("web", resources={})]
    found = classify(pods, Drain(), scope)
    assert refs(found.holders) == ["llm-1", "web"]
    assert refs(tuple(pod for pod in pods if pod not in found.must_leave)) == ["gpu-reservation-g1"]


def test_a_pod_that_is_marked_is_left_alone_though_it_has_only_a_fraction() -> None:
    marked = fraction(marks={"karpenter.sh/do-not-disrupt": "true"})
    assert told([reservation(), marked]) == ["DoNotDisrupt"]
    late = drain_pass(make_work(fraction(created=at(0) + timedelta(minutes=1))), cordoned=at(0)).found
    assert [str(one.reason) for one in late.blockers] == ["ToleratesCordon"]
