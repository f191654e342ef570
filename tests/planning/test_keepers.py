"""Who keeps a slot of the budget until somebody acts, as nodes that wait for one tell (planning/pools/pool.py)."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from tests.build import NOW, at, make_fence, make_node, make_policy, make_snapshot
from tests.planning.cases import make_member
from tests.planning.test_pool import OFFERED, candidate, unlisted_of, with_waits
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.api.times import NEVER
from gpusharing.planning.pools.candidates import PassState
from gpusharing.planning.pools.choice import select
from gpusharing.planning.pools.holds import find_capped
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Blocker
from gpusharing.planning.vocabulary.reasons import Reason


def away(
    name: str,
    phase: Phase = Phase.BLOCKED,
    *,
    reason: Reason = Reason.PROGRESSING,
    deadline: datetime | None = None,
    **fields: Any,
) -> Member:
    blockers = (Blocker(reason),) if reason is Reason.CALL_FAILED else ()
    told = Verdict(name, "pool-b", phase, reason, "", deadline=deadline, blockers=blockers)
    return make_member(make_node(name, **fields), told)


def full(members: Sequence[Member]) -> str:
    return waiting(members).message


def waiting(members: Sequence[Member]) -> Verdict:
    policy = make_policy(rollout={"maxUnavailable": len(members)})
    pool = Pool(policy)
    for member in members:
        pool.count(member)
    pool.names.append("z")
    pool.candidates.append(candidate("z"))
    return with_waits(select(pool.with_hours(NOW), unlisted_of(pool), 100, PassState(OFFERED, NOW))).verdicts["z"]


KEPT: dict[str, tuple[Member, str]] = {
    "a person cordoned it": (away("a", unschedulable=True), "a is cordoned"),
    "its kubelet is silent": (away("a", ready=False), "a is not Ready"),
    "it is being deleted": (away("a", deleting=True, ready=False), "a is being deleted"),
    "its change failed": (
        away("a", Phase.FAILED, fence=make_fence("actuating"), unschedulable=True, ready=False),
        "a has failed",
    ),
    "its drain is held past its time": (
        away("a", Phase.DRAINING, fence=make_fence(deadline=NEVER), unschedulable=True, deadline=NEVER),
        "the change on a is on hold",
    ),
    "it cannot be given back": (
        away("a", Phase.ABORTING, reason=Reason.CALL_FAILED, fence=make_fence(), unschedulable=True),
        "calls to the API server about a are failing",
    ),
    "it was left to somebody else": (
        away("a", fence=replace(make_fence(), stage="yielded"), unschedulable=True, foreign="kured"),
        "kured is working on a",
    ),
    "somebody has marked it": (away("a", foreign="kured"), "kured has begun to work on a"),
}


@pytest.mark.parametrize("what", KEPT)
def test_a_node_that_waits_for_a_slot_names_who_keeps_one_until_somebody_acts(what: str) -> None:
    member, why = KEPT[what]
    assert not lacks(full([member]), "spec.rollout.maxUnavailable", "1 of 2 nodes", f"({why})")
    assert full([member]).endswith(": kubectl gpusharing why a") is (what in STANDS)


STANDS = {"a person cordoned it", "its change failed", "somebody has marked it"}


@pytest.mark.parametrize("what", KEPT)
def test_who_keeps_the_slot_is_the_culprit_and_a_person_ends_it_unless_it_comes_back_by_itself(what: str) -> None:
    told = waiting([KEPT[what][0]])
    assert (told.keeper, told.stands) == ("node/a", what in STANDS)


def test_a_node_that_is_about_to_join_the_pool_out_of_service_has_its_slot_already() -> None:
    policy = make_policy(rollout={"maxUnavailable": 1})
    stuck = replace(
        away("a", Phase.ABORTING, reason=Reason.CALL_FAILED, fence=make_fence(), unschedulable=True), heir=policy.name
    )
    moves = away("a", Phase.ABORTING, deadline=at(60), fence=make_fence(), unschedulable=True)
    fence = make_fence(newcomer=True)
    newcomer = replace(away("a", Phase.ABORTING, fence=fence, unschedulable=True), heir=policy.name)
    pools = [Pool.of(policy, [], set(), set(), [member]) for member in (stuck, moves, newcomer)]
    assert [(pool.used, pool.moving, pool.total, len(pool.keepers)) for pool in pools] == [
        (1, 0, 0, 1),
        (1, 1, 0, 0),
        (0, 0, 0, 0),
    ]
    pool = pools[0]
    pool.names.append("z")
    pool.candidates.append(candidate("z"))
    told = with_waits(select(pool.with_hours(NOW), unlisted_of(pool), 100, PassState(OFFERED, NOW))).verdicts["z"]
    assert told.message == (
        "spec.rollout.maxUnavailable allows 1 of 1 node to be unavailable at once (calls to the API server"
        " about a are failing); waiting for a slot"
    )


def test_a_slot_of_a_node_that_changes_becomes_free_beside_one_that_is_kept() -> None:
    changes = away("c", Phase.DRAINING, fence=make_fence(), unschedulable=True, deadline=at(60))
    told = waiting([changes, away("d", unschedulable=True)])
    assert (told.keeper, told.stands) == ("node/d", False)
    assert (waiting([changes]).keeper, waiting([changes]).stands) == ("", False)


def test_a_node_that_waits_for_the_cap_names_who_keeps_a_slot_of_it_in_whatever_policy() -> None:
    pool = Pool(make_policy())
    pool.names.append("z")
    pool.candidates.append(candidate("z"))
    phases, fence = (("a", Phase.FAILED), ("b", Phase.DRAINING)), make_fence(policy="another")
    changing = {name: away(name, phase, fence=fence, deadline=at(60)) for name, phase in phases}
    snapshot = make_snapshot([one.node for one in changing.values()])
    state = PassState(OFFERED, NOW, capped=find_capped(snapshot, changing, reserved=0))
    told = with_waits(select(pool.with_hours(NOW), unlisted_of(pool), 0, state)).verdicts["z"]
    assert told.message == (
        "the cap on nodes in flight (chart value operator.maxInFlight) has been reached (a has failed); waiting for a"
        " slot"
    )
    assert (told.keeper, told.stands) == ("node/a", False)


def test_no_more_than_three_nodes_that_keep_a_slot_are_named_and_none_that_changes() -> None:
    changes = away("c", Phase.DRAINING, fence=make_fence(), unschedulable=True, deadline=at(60))
    cordoned = [away(name, unschedulable=True) for name in ("g", "f", "e", "d")]
    said = "(d is cordoned; e is cordoned; f is cordoned; others)"
    assert said in full([changes, *cordoned])
    assert "at once; waiting" in full([changes])
