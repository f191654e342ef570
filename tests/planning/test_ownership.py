"""Which policy owns a node: priority, then age, then name; an owner keeps it unless a strictly higher one comes."""

from dataclasses import replace
from typing import Literal

import pytest
from tests.build import NOW, POOL_LABELS, make_fence, make_node, make_policy, make_snapshot

from gpusharing.api.policy import LabelSelector
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.wanted.ownership import Owners, find_contenders, selects_node

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


def test_a_node_in_flight_takes_the_slot_of_the_policy_that_fenced_it() -> None:
    old, new = policy("a"), policy("b", YOUNG, priority=1)
    fence = make_fence("actuating", policy="a", node_uid="uid-gpu-07")
    node = make_node("gpu-07", unschedulable=True, fence=fence)
    pools = plan_rollout(make_snapshot([node], [old, new]), NOW).pools
    assert (pools["a"].used, pools["b"].used) == (1, 0)
    orphaned = plan_rollout(make_snapshot([node], [new]), NOW).pools
    assert orphaned["b"].used == 1, "whose policy is gone: that of its owner"
