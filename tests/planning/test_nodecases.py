"""The case of one node: which policy owns it, whose terms it is held to, what it is told on them, and for how long."""

from dataclasses import replace
from typing import Any, Literal

import pytest
from tests.build import (
    H100,
    NOW,
    POOL_LABELS,
    SETTINGS,
    at,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_pod,
    make_policy,
    make_snapshot,
    make_stack,
    make_work,
)

from gpusharing.api.names import DisruptionClass
from gpusharing.api.policy import LabelSelector
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.memory import DRIFTS
from gpusharing.planning.snapshot.podviews import NodeWork, Scope
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.stack.acceptance import find_targets, request_of
from gpusharing.planning.transition.cases import Member, find_models, judge_nodes, keeps_verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.ownership import Owners, find_contenders, selects_node
from gpusharing.planning.wanted.target import PolicyTargets

PAUSED = make_policy(rollout={"paused": True})
STACK = make_stack(PAUSED)


def terms(policy: PolicyView) -> PolicyTargets:
    return find_targets(policy, request_of(policy), STACK, SETTINGS)


def judge_alone(
    node: NodeView, owner: PolicyTargets | None, followed: PolicyTargets | None, *, seen: bool = True, **given: Any
) -> Member | None:
    policies = {one.policy.name: one for one in (owner, followed) if one is not None}
    gpunodes = [make_gpunode(node.name)] if seen else []
    snapshot = make_snapshot([node], [PAUSED], stack=STACK, gpunodes=gpunodes, **given)
    owners = {node.name: owner.policy.name if owner is not None else ""}
    terms_of = {node.name: followed}
    members = judge_nodes(snapshot, owners=owners, terms=policies, followed=terms_of, now=NOW, memo=Memo(), failed={})
    return members.get(node.name)


def judged(member: Member | None) -> Member:
    assert member is not None
    return member


def test_a_node_that_waits_is_told_so_until_something_changes() -> None:
    mine = terms(PAUSED)
    told = judged(judge_alone(make_node(), mine, mine))
    assert (told.verdict.reason, told.verdict.candidate, DRIFTS in told.seen) == (Reason.PAUSED, False, True)
    assert keeps_verdict(told)


def test_a_candidate_is_told_apart_and_has_its_case() -> None:
    node, mine = make_node(), terms(make_policy())
    told = judged(judge_alone(node, mine, mine))
    assert told.verdict.candidate
    assert (told.case.node, told.case.now, DRIFTS in told.seen) == (node, NOW, True)
    assert keeps_verdict(told)


def test_a_node_without_gpus_and_policy_is_none_of_our_business() -> None:
    node = make_node(labels={}, resources={})
    node = replace(node, labels={})
    told = judge_alone(node, None, None, seen=False)
    assert told is None
    assert keeps_verdict(told)


@pytest.mark.parametrize("fenced", [True, False], ids=["in a change", "at rest"])
def test_a_node_is_held_to_the_terms_of_one_policy_and_owned_by_another_only_in_a_change(fenced: bool) -> None:
    other = terms(make_policy("other"))
    node = make_node(fence=make_fence(policy="other") if fenced else None)
    told = judged(judge_alone(node, terms(PAUSED), other if fenced else terms(PAUSED)))
    assert told.verdict.policy == ("other" if fenced else "pool-b")
    assert keeps_verdict(told) is not fenced
    assert told.policy == told.verdict.policy, "its slot is one of that policy's budget"


def test_a_case_is_equal_to_the_one_of_the_last_pass_if_only_the_time_is_another() -> None:
    mine = terms(PAUSED)
    case = judged(judge_alone(make_node(), mine, mine)).case
    assert case == replace(case, now=at(1))
    assert case != replace(case, claimed=True)


@pytest.mark.parametrize(("liars", "believed"), [(1, False), (3, True)], ids=["few", "most"])
def test_what_a_card_offers_everywhere_is_what_most_nodes_say(liars: int, *, believed: bool) -> None:
    truth = make_gpu()
    lie = tuple(replace(profile, max_count=1) for profile in truth.profiles)
    cards = [replace(truth, profiles=lie)] * liars + [truth, replace(truth, profiles=(*truth.profiles,))]
    reports = [make_gpunode(f"gpu-{number}", gpus=[gpu]) for number, gpu in enumerate(cards)]
    assert (find_models([*reports, None])[H100].profiles == lie) is believed


def test_a_list_of_pods_made_for_a_smaller_change_says_nothing_about_a_reboot() -> None:
    fence = make_fence(disruption=DisruptionClass.REBOOT)
    node = make_node("gpu-07", uid="uid-gpu-07", unschedulable=True, fence=fence)
    mine = terms(PAUSED)

    def seen(work: NodeWork) -> NodeWork | None:
        return judged(judge_alone(node, mine, mine, work={"gpu-07": work})).case.work

    fewer = make_work(make_pod("launcher", resources={}))
    assert seen(fewer) is None
    assert seen(replace(fewer, scope=Scope("gpu-operator", all_pods=True))) is not None


# --- which policy owns a node ------------------------------------------------------------------------------------------

OLD, YOUNG = "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"
MARK = "gpusharing.dev/policy"


def owner(*policies: PolicyView, present: str = "", **labels: str) -> str:
    """Who owns a node of pool b that carries the mark of `present`."""
    node = make_node(labels={**({MARK: present} if present else {}), **labels})
    return owners(*policies).owner(node)


def owners(*policies: PolicyView) -> Owners:
    return Owners(find_contenders(policies))


def policy(name: str, created: str = OLD, **fields: object) -> PolicyView:
    return make_policy(name, created=created, **fields)  # type: ignore[arg-type]  # spec fields are free-form


ELSEWHERE = {"matchLabels": {"gpusharing.dev/pool": "c"}}
CHOICES: dict[str, tuple[list[PolicyView], str, str]] = {
    "the only one that selects it": ([policy("a")], "", "a"),
    "nobody selects it": ([policy("a", nodeSelector=ELSEWHERE)], "", ""),
    "the higher priority": ([policy("a"), policy("b", YOUNG, priority=1)], "", "b"),
    "at equal priority the older": ([policy("a", YOUNG), policy("b")], "", "b"),
    "at equal age the first name": ([policy("b"), policy("a")], "", "a"),
    "the owner keeps it from an older one": ([policy("a", YOUNG), policy("b")], "a", "a"),
    "the owner keeps it from an equal priority": ([policy("a", YOUNG, priority=5), policy("b", priority=5)], "a", "a"),
    "the owner loses it to a strictly higher priority": ([policy("a"), policy("b", YOUNG, priority=1)], "a", "b"),
    "the owner loses it when it selects it no longer": ([policy("a", nodeSelector=ELSEWHERE), policy("b")], "a", "b"),
    "an owner under deletion owns nothing": ([policy("a", deleting=True), policy("b", YOUNG)], "a", "b"),
    "the mark of a policy that is gone counts for nothing": ([policy("b"), policy("c", YOUNG)], "a", "b"),
    "an owner whose spec cannot be read keeps it": ([replace(policy("a"), spec=None), policy("b")], "a", "a"),
    "one whose spec cannot be read takes nothing": ([replace(policy("a"), spec=None), policy("b", YOUNG)], "", "b"),
}


@pytest.mark.parametrize(("policies", "present", "expected"), CHOICES.values(), ids=CHOICES.keys())
def test_the_owner_is(policies: list[PolicyView], present: str, expected: str) -> None:
    assert owner(*policies, present=present) == expected
    assert owner(*reversed(policies), present=present) == expected


@pytest.mark.parametrize("stage", ["fenced", "actuating"])
def test_between_equals_the_policy_of_the_fence_counts_as_owner(stage: Literal["fenced", "actuating"]) -> None:
    old, young = policy("a"), policy("b", YOUNG)
    fenced = make_node(fence=make_fence(stage, policy="b"))
    assert owners(old, young).owner(make_node()) == "a"
    assert owners(old, young).owner(fenced) == "b"
    marked = make_node(labels={MARK: "a"}, fence=make_fence(stage, policy="b"))
    assert owners(old, young).owner(marked) == "b", "a mark tells who proved the node last"
    higher = policy("a", priority=1)
    assert owners(higher, young).owner(fenced) == "a"
    elsewhere = policy("b", YOUNG, nodeSelector=ELSEWHERE)
    assert owners(old, elsewhere).owner(fenced) == "a"


def test_a_fence_whose_policy_cannot_be_read_any_more_keeps_its_owner() -> None:
    broken = replace(policy("b", YOUNG), spec=None)
    assert owners(policy("a"), broken).owner(make_node(fence=make_fence(policy="b"))) == "b"


SELECTORS: dict[str, tuple[dict[str, object], bool]] = {
    "an empty selector selects nothing": ({}, False),
    "a label value that is there": ({"matchLabels": {"a": "1"}}, True),
    "another value": ({"matchLabels": {"a": "2"}}, False),
    "one label of two is missing": ({"matchLabels": {"a": "1", "x": "1"}}, False),
    "In with the value": ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
    "In without the label": ({"matchExpressions": [{"key": "x", "operator": "In", "values": ["1"]}]}, False),
    "NotIn with the value": ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
    "NotIn without the label": ({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["1"]}]}, True),
    "Exists": ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, True),
    "Exists without the label": ({"matchExpressions": [{"key": "x", "operator": "Exists"}]}, False),
    "DoesNotExist": ({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}, True),
    "labels and expressions must both hold": (
        {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]},
        False,
    ),
}


@pytest.mark.parametrize(("selector", "expected"), SELECTORS.values(), ids=SELECTORS.keys())
def test_a_selector_over_the_labels_a_is_1(selector: dict[str, object], expected: bool) -> None:
    assert selects_node(LabelSelector.model_validate(selector), {"a": "1"}) is expected


def test_the_index_over_labels_finds_what_comparing_with_every_policy_finds() -> None:
    selectors: list[dict[str, object]] = [
        {"matchLabels": POOL_LABELS},
        {"matchLabels": {"zone": "1", **POOL_LABELS}},
        {"matchLabels": {"zone": "1"}},
        {"matchLabels": {"a": "x", "zone": "1"}},
        {"matchExpressions": [{"key": "zone", "operator": "Exists"}]},
    ]
    policies = [policy(f"p{n}", nodeSelector=selector) for n, selector in enumerate(selectors)]
    for labels in ({}, {"zone": "1"}, {"zone": "2"}, {"a": "x"}, {"a": "x", "zone": "1"}):
        node = make_node(labels=labels)
        slow = {p.name for p in policies if p.spec and selects_node(p.spec.node_selector, node.labels)}
        assert {found.name for found in owners(*policies).selecting(node)} == slow


def test_a_node_in_flight_takes_a_slot_of_the_policy_that_fenced_it_and_of_the_one_that_owns_it() -> None:
    old, new = policy("a"), policy("b", YOUNG, priority=1)
    fence = make_fence("actuating", policy="a", node_uid="uid-gpu-07")
    node = make_node("gpu-07", unschedulable=True, fence=fence)
    pools = plan_rollout(make_snapshot([node], [old, new]), NOW).pools
    assert (pools["a"].used, pools["b"].used) == (1, 1)
    orphaned = plan_rollout(make_snapshot([node], [new]), NOW).pools
    assert orphaned["b"].used == 1, "whose policy is gone: that of its owner"
