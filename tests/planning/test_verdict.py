"""What a verdict takes from the fence of its node, and what it says of a node without one."""

from tests.build import NOW, make_fence
from tests.planning.cases import FULL, MIXED, make_case

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason

FENCE = make_fence("actuating", policy="pool-a", attempt=3, step=2, steps=2, disruption=DisruptionClass.RESET)


def said(case: NodeCase) -> Verdict:
    return case.verdict(Phase.RECONFIGURING, Reason.PROGRESSING, "on its way")


def test_a_node_in_a_change_tells_whose_change_it_is_how_far_and_until_when() -> None:
    verdict = said(make_case(MIXED, fence=FENCE))
    assert (verdict.policy, verdict.deadline) == ("pool-a", FENCE.deadline)
    assert (verdict.attempt, verdict.step, verdict.disruption) == (3, "2/2", DisruptionClass.RESET)
    assert (verdict.wanted, verdict.observed, verdict.candidate) == ("2x3g.40gb", "1x full", False)


def test_a_node_without_a_change_tells_none_of_it() -> None:
    verdict = said(make_case(FULL))
    assert (verdict.policy, verdict.deadline) == ("pool-b", None)
    assert (verdict.attempt, verdict.step, verdict.disruption) == (0, "", DisruptionClass.NONE)
    assert (verdict.wanted, verdict.observed, verdict.candidate) == ("1x full", "1x full", False)


def test_a_node_whose_policy_is_gone_tells_what_its_fence_was_to_lead_to() -> None:
    assert said(make_case(None, fence=FENCE)).wanted == FENCE.to_layout == "2x3g.40gb"
    assert said(make_case(None)).wanted == ""


def test_pods_that_came_after_the_cordon_are_told_from_those_before_by_the_time_of_the_fence() -> None:
    assert make_case(MIXED, fence=FENCE).scope.cordoned_at == NOW
    assert make_case(MIXED).scope.cordoned_at is None
