"""A node as its pool counts it (way/members.py): whose slot it takes, and what that means for those that wait."""

from dataclasses import replace

import pytest
from tests.build import make_fence, make_node, make_policy
from tests.planning.test_pool import OFFERED, candidate, fenced
from tests.planning.test_waves import fences, sharing
from tests.planning.told import verdict

from gpusharing.api.names import Phase
from gpusharing.planning.pools.common import Common
from gpusharing.planning.pools.pool import Pool, select
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.way.members import Member, find_member
from gpusharing.planning.words.reasons import Reason

MARKED = make_node("gone", foreign="NVIDIA NodeMaintenance ops/nm (failed)")
TAKEN: dict[str, tuple[NodeView, Phase]] = {
    "a program that maintains its node": (MARKED, Phase.BLOCKED),
    "a program that our change gave way to": (
        replace(MARKED, unschedulable=True, fence=replace(make_fence(), stage="yielded")),
        Phase.BLOCKED,
    ),
    "a person who cordoned its node": (make_node("gone", unschedulable=True), Phase.BLOCKED),
    "a node that is not Ready": (make_node("gone", ready=False), Phase.PENDING),
    "a change of ours": (make_node("gone", unschedulable=True, fence=make_fence()), Phase.PENDING),
}  # fmt: skip


@pytest.mark.parametrize(("away", "phase"), TAKEN.values(), ids=TAKEN)
def test_nodes_are_blocked_and_not_only_in_line_where_the_slot_is_that_of(
    away: NodeView, phase: Phase
) -> None:
    """No change of ours gives it back: the alert on nodes that stay Blocked is for that."""
    pool = Pool(make_policy(), candidates=[candidate("c")])
    held = verdict(Phase.DRAINING if phase is Phase.PENDING and away.fence else Phase.BLOCKED, node="gone")
    pool.count(find_member(held, away, None, make_policy()))
    pool.count(Member(make_node("c"), verdict(Phase.PENDING, node="c")))
    told = select(pool, 100, Common(OFFERED)).verdicts["c"]
    assert (told.phase, told.reason) == (phase, Reason.BUDGET_FULL)


def test_a_gang_does_not_wait_for_a_slot_that_somebody_else_has_and_the_rest_of_it_comes_next() -> None:
    """The node is marked and still Ready; nobody knows for how long."""
    cases = sharing("a", "b", "c")
    pool = Pool(make_policy(rollout={"maxUnavailable": 3}), candidates=cases)
    pool.count(find_member(verdict(Phase.BLOCKED, node="gone"), MARKED, None, make_policy()))
    for case in cases:
        pool.count(Member(case.node, verdict(Phase.PENDING, node=case.node.name)))
    selection = select(pool, 100, Common(OFFERED))
    assert len(fenced(selection)) == 2
    (left,) = {"a", "b", "c"} - set(fenced(selection))
    assert {fence.mates for fence in fences(selection).values()} == {(left,)}
    assert len({fence.wave for fence in fences(selection).values()}) == 1
    assert selection.verdicts[left].reason is Reason.BUDGET_FULL
