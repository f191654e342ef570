"""The case of one node: whose terms it is held to, what it is told on them, and for how long."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import (
    H100,
    NOW,
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
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.memory import DRIFTS
from gpusharing.planning.snapshot.podviews import NodeWork, Scope
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.stack.acceptance import find_targets, request_of
from gpusharing.planning.transition.cases import Member, find_models, judge_nodes, keeps_verdict
from gpusharing.planning.vocabulary.reasons import Reason
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
