"""What is true of one node whatever the time: whose terms it is held to, and what it is told on them."""

from dataclasses import replace

import pytest
from tests.build import (
    H100,
    NOW,
    SETTINGS,
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
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.stack.acceptance import Terms, find_terms, wish_of
from gpusharing.planning.transition.nodefacts import (
    Judged,
    NodeFacts,
    case_of,
    find_facts,
    find_models,
    find_surroundings,
    judge_facts,
)
from gpusharing.planning.vocabulary.reasons import Reason

PAUSED = make_policy(rollout={"paused": True})
STACK = make_stack(PAUSED)


def terms(policy: PolicyView) -> Terms:
    """What a policy offers."""
    return find_terms(policy, wish_of(policy), STACK, SETTINGS)


def judged(facts: NodeFacts, node: NodeView) -> Judged:
    """What a node is told."""
    snapshot = make_snapshot([node], [PAUSED], stack=STACK)
    ((_, surroundings),) = find_surroundings(snapshot, {node.name: facts})
    return judge_facts(surroundings, now=NOW)


def test_a_node_that_waits_is_told_so_until_something_changes() -> None:
    node, mine = make_node(), terms(PAUSED)
    facts = find_facts(node, make_gpunode(), mine, mine, STACK)
    told = judged(facts, node)
    assert told.member is not None
    assert (told.member.verdict.reason, told.candidate, told.differs, told.lasts) == (
        Reason.PAUSED,
        None,
        True,
        True,
    )


def test_a_candidate_is_told_apart_and_has_its_case() -> None:
    node, mine = make_node(), terms(make_policy())
    told = judged(find_facts(node, make_gpunode(), mine, mine, STACK), node)
    assert told.candidate is not None
    assert (told.candidate.node, told.candidate.now, told.differs, told.lasts) == (node, NOW, True, True)


def test_a_node_without_gpus_and_policy_is_none_of_our_business() -> None:
    node = make_node(labels={}, resources={})
    node = replace(node, labels={})
    assert judged(find_facts(node, None, None, None, STACK), node) == Judged(None, None, False, True)


@pytest.mark.parametrize("fenced", [True, False], ids=["in a change", "at rest"])
def test_a_node_is_held_to_the_terms_of_one_policy_and_owned_by_another_only_in_a_change(
    fenced: bool,
) -> None:
    other = terms(make_policy("other"))
    node = make_node(fence=make_fence(policy="other") if fenced else None)
    facts = find_facts(node, make_gpunode(), terms(PAUSED), other if fenced else terms(PAUSED), STACK)
    told = judged(facts, node)
    assert told.member is not None
    assert told.member.verdict.policy == ("other" if fenced else "pool-b")
    assert told.lasts is not fenced
    assert told.member.policy == told.member.verdict.policy, "its slot is one of that policy's budget"


@pytest.mark.parametrize(("liars", "believed"), [(1, False), (3, True)], ids=["few", "most"])
def test_what_a_card_offers_everywhere_is_what_most_nodes_say(liars: int, *, believed: bool) -> None:
    """That of a liar may be the first by name. Equal profiles are one, read twice or not."""
    truth = make_gpu()
    lie = tuple(replace(profile, max_count=1) for profile in truth.profiles)
    cards = [replace(truth, profiles=lie)] * liars + [
        truth,
        replace(truth, profiles=(*truth.profiles,)),
    ]
    mine = terms(PAUSED)
    facts = [
        find_facts(make_node(f"gpu-{number}"), make_gpunode(f"gpu-{number}", gpus=[gpu]), mine, mine, STACK)
        for number, gpu in enumerate(cards)
    ]
    assert (find_models(facts)[H100].profiles == lie) is believed


def test_a_list_of_pods_made_for_a_smaller_change_says_nothing_about_a_reboot() -> None:
    """It became one meanwhile, and nobody has asked about the gang of a launcher without a GPU."""
    fence = make_fence(disruption=DisruptionClass.REBOOT)
    node = make_node("gpu-07", uid="uid-gpu-07", unschedulable=True, fence=fence)
    facts = find_facts(node, make_gpunode("gpu-07"), terms(PAUSED), terms(PAUSED), STACK)

    def seen(work: NodeWork) -> NodeWork | None:
        snapshot = make_snapshot([node], [PAUSED], stack=STACK, work={"gpu-07": work})
        ((_, given),) = find_surroundings(snapshot, {"gpu-07": facts})
        return case_of(given, NOW).work

    fewer = make_work(make_pod("launcher", resources={}))
    assert seen(fewer) is None
    assert seen(replace(fewer, all_pods=True)) is not None
