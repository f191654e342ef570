"""A node whose calls fail waits, named, with the server's words, and its slot goes to others."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from tests.build import (
    NOW,
    ask_anew,
    at,
    make_claim,
    make_fence,
    make_node,
    make_operand,
    make_policy,
    make_snapshot,
    make_work,
)
from tests.planning.cases import make_member
from tests.planning.changes import FENCE, answering, changing, emptied
from tests.planning.told import PENDING, SYNCED, verdict
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.planning.pools.pool import Pool, name_keepers
from gpusharing.planning.report.events import node_events
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    EnsureGPUNode,
    FenceNode,
    Release,
    RestartOperand,
    SetClaims,
    UpdateFence,
)
from gpusharing.planning.snapshot.memory import POLICIES, CallFailure, failed_again
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import OLD_VIEW
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.cases import Member, find_late, is_moot, show_failure
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.reasons import Reason

WORDS = "FenceNode failed: admission webhook denied it"
LASTING = CallFailure(WORDS, at(8), tries=3)
RELEASE = Release(make_node("gpu-07", fence=make_fence(stage="actuating")), uncordon=True, labels={})
ACTION = EnsureGPUNode("gpu-07", "uid", "1", quiet=False)


def test_the_waits_double_up_to_a_minute() -> None:
    waits, failure = [], None
    for _ in range(7):
        failure = failed_again(failure, WORDS, NOW, jitter=0.0)
        waits.append((failure.next_try - NOW).total_seconds())
    assert waits == [2, 4, 8, 16, 32, 60, 60]
    assert failed_again(failure, WORDS, NOW, jitter=0.999).next_try > at(45)


def test_a_failure_that_lasts_is_named_with_the_servers_words_and_a_blocker() -> None:
    verdict = show_failure(PENDING.then(ACTION), LASTING, NOW)
    assert (verdict.reason, verdict.phase, verdict.wake) == (Reason.CALL_FAILED, PENDING.phase, at(8))
    assert WORDS in verdict.message
    assert [(row.reason, row.message) for row in verdict.blockers] == [(Reason.CALL_FAILED, WORDS)]
    assert verdict.actions == (ACTION,)


KEPT = verdict(Phase.ABORTING, Reason.CORDON_KEPT, "gpu-07", "the cordon stays").then(RELEASE)
"""The node is let go, and people are to lift its cordon."""


def test_that_a_cordon_stays_is_told_while_the_release_fails_because_no_later_pass_tells_it() -> None:
    """A person gives the policy up because the API server refuses each write to the node."""
    refused = replace(LASTING, message="Release failed: denied")
    failing = show_failure(KEPT, refused, NOW)
    assert (failing.phase, failing.reason) == (KEPT.phase, Reason.CORDON_KEPT)
    assert not lacks(failing.message, "the cordon stays", "Release failed: denied")
    assert show_failure(failing, refused, NOW) is failing, "the failure is named once"
    restored = replace(KEPT, reason=Reason.DELETING, message="the policy is being deleted")
    before = show_failure(restored, refused, NOW)
    assert before.reason is Reason.CALL_FAILED
    assert [event.reason for event in node_events(before, failing)] == ["CordonKept"]
    assert [event.reason for event in node_events(KEPT, failing)] == ["CallFailed"]
    assert node_events(failing, failing) == node_events(failing, replace(failing, attempt=0)) == ()


@pytest.mark.parametrize("refused", [True, False])
def test_only_a_person_ends_what_the_server_refuses(*, refused: bool) -> None:
    failure = failed_again(LASTING, WORDS, NOW, 0.0, refused=refused)
    assert show_failure(verdict(Phase.DRAINING, deadline=at(60)), failure, NOW).stands is refused


def test_one_failure_alone_is_waited_out_without_a_word() -> None:
    verdict = show_failure(PENDING.then(ACTION), replace(LASTING, tries=1), NOW)
    assert (verdict.reason, verdict.wake) == (PENDING.reason, at(8))


def test_where_nothing_is_to_be_done_an_old_failure_says_nothing() -> None:
    assert show_failure(SYNCED, LASTING, NOW) is SYNCED
    assert is_moot(SYNCED)
    assert not is_moot(SYNCED.then(ACTION))
    assert not is_moot(PENDING)


def test_a_candidate_is_none_until_it_may_be_tried_again() -> None:
    waiting = replace(PENDING, candidate=True)
    assert not show_failure(waiting, LASTING, NOW).candidate
    assert show_failure(waiting, LASTING, at(8)) == waiting


UPDATE = UpdateFence(make_node("gpu-07", fence=make_fence(stage="actuating")), make_fence())
RESTART = RestartOperand("gpu-07", "gpu-operator", "mig-manager", "uid")
EARLY = UpdateFence(make_node("gpu-07", fence=make_fence(stage="fenced")), make_fence())


@pytest.mark.parametrize(
    ("action", "phase"),
    [
        pytest.param(UPDATE, Phase.FAILED, id="a record of another attempt"),
        pytest.param(RESTART, Phase.FAILED, id="a restart of mig-manager"),
        pytest.param(RELEASE, Phase.RECONFIGURING, id="giving back is tried for ever"),
        pytest.param(EARLY, Phase.RECONFIGURING, id="before the point of no return the change is given up"),
    ],
)
def test_a_step_that_cannot_be_taken_after_the_point_of_no_return_fails_the_node_at_its_deadline(
    action: Action, phase: Phase
) -> None:
    moving = replace(PENDING, phase=Phase.RECONFIGURING, deadline=at(5)).then(action)
    assert show_failure(moving, LASTING, at(4)).phase is Phase.RECONFIGURING
    assert show_failure(moving, LASTING, at(5)).phase is phase
    assert show_failure(moving, replace(LASTING, tries=1), at(5)).phase is Phase.RECONFIGURING


def test_a_release_that_is_refused_for_ever_has_no_end_that_is_long_past() -> None:
    leaving = replace(PENDING, phase=Phase.ABORTING, deadline=at(-9000)).then(RELEASE)
    assert show_failure(leaving, LASTING, NOW).deadline is None
    assert show_failure(leaving, replace(LASTING, tries=1), NOW) == replace(leaving, wake=at(8))


@pytest.mark.parametrize(("tries", "reason"), [(5, Reason.SETTLING), (6, Reason.CALL_FAILED)])
def test_a_node_whose_calls_have_failed_for_long_is_no_change_that_ends_by_itself(tries: int, reason: Reason) -> None:
    moving = replace(PENDING, phase=Phase.ABORTING, reason=Reason.SETTLING).then(RELEASE)
    stuck = {"gpu-07": replace(LASTING, tries=tries)}
    found = find_late(stuck, {"gpu-07": make_member(RELEASE.node, moving)}, NOW)
    assert found["gpu-07"].verdict.reason is reason
    pool = Pool(make_policy())
    pool.count(found["gpu-07"])
    assert (pool.moving, len(pool.keepers)) == ((1, 0) if tries == 5 else (0, 1))


def test_a_node_whose_release_fails_is_named_to_those_who_wait_for_its_slot_although_its_cordon_stays() -> None:
    stuck = {"gpu-07": replace(LASTING, tries=6)}
    pool = Pool(make_policy())
    pool.count(find_late(stuck, {"gpu-07": make_member(RELEASE.node, KEPT)}, NOW)["gpu-07"])
    assert (pool.moving, len(pool.keepers)) == (0, 1)
    found, keeper = name_keepers(pool.keepers)
    assert keeper == "node/gpu-07"
    assert not lacks(found, "calls to the API server", "gpu-07")


def test_people_are_told_once_and_no_pod_is_blamed() -> None:
    before = PENDING.then(ACTION)
    after = show_failure(before, LASTING, NOW)
    assert [(event.type, event.reason) for event in node_events(before, after)] == [("Warning", "CallFailed")]
    assert node_events(after, after) == ()


@pytest.mark.parametrize(("tries", "claimed"), [(1, True), (2, False)])
def test_the_slot_of_a_fence_that_cannot_be_written_goes_back_once_no_fence_can_stand(
    tries: int, claimed: bool
) -> None:
    sick = make_node("gpu-07")
    snapshot = replace(
        make_snapshot([sick], [make_policy()], claims={"gpu-07": make_claim()}),
        call_failures={"gpu-07": CallFailure(WORDS, at(8), tries)},
    )
    plan = plan_rollout(snapshot, NOW)
    assert plan.verdicts["gpu-07"].phase is not Phase.CORDONED
    written = [action.claims for action in plan.shared if hasattr(action, "claims")]
    left = written[0] if written else snapshot.claims
    assert ("gpu-07" in left) is claimed


@pytest.mark.parametrize(("tries", "starts"), [(1, False), (3, True)])
def test_a_fence_that_may_stand_though_its_call_failed_takes_the_room_of_another_node(tries: int, starts: bool) -> None:
    """The node is a candidate still, and its claim stays: without its slot, one more node than allowed would go."""
    nodes = [make_node("gpu-07"), make_node("gpu-08")]
    snapshot = replace(
        make_snapshot(nodes, [make_policy()], claims={"gpu-07": make_claim()}, work={"gpu-08": make_work()}),
        call_failures={"gpu-07": CallFailure(WORDS, at(8), tries)},
    )
    plan = plan_rollout(snapshot, NOW)
    begun = [name for name, verdict in plan.verdicts.items() for a in verdict.actions if isinstance(a, FenceNode)]
    assert begun == (["gpu-08"] if starts else [])
    assert plan.pools["pool-b"].used == (0 if starts else 1)


LISTING = "the policies cannot be listed: forbidden"


@pytest.mark.parametrize(
    ("tries", "reason"), [(0, Reason.PROGRESSING), (1, Reason.PROGRESSING), (2, Reason.CALL_FAILED)]
)
def test_while_the_policies_may_be_old_nothing_starts_or_takes_a_slot_and_it_says_so(
    tries: int, reason: Reason
) -> None:
    snapshot = make_snapshot([make_node("gpu-07")], [make_policy()], work={"gpu-07": make_work()})
    begins = plan_rollout(snapshot, NOW)
    assert begins.verdicts["gpu-07"].phase is Phase.CORDONED
    failures = {POLICIES: CallFailure(LISTING, at(8), tries)} if tries else {}
    plan = plan_rollout(replace(snapshot, policies_error=LISTING, call_failures=failures), NOW)
    verdict = plan.verdicts["gpu-07"]
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.PENDING, reason, ())
    assert not lacks(verdict.message, LISTING, "no node starts")
    assert not [action for action in plan.shared if isinstance(action, SetClaims)]


def test_while_a_view_is_too_old_for_a_point_of_no_return_no_node_starts() -> None:
    """Its pods would be evicted, and then the change would be given up, again and again."""
    snapshot = make_snapshot([make_node("gpu-07")], [make_policy()], work={"gpu-07": make_work()})
    plan = plan_rollout(replace(snapshot, view_ages={"ConfigMaps": OLD_VIEW + 1}), NOW)
    verdict = plan.verdicts["gpu-07"]
    assert (verdict.phase, verdict.actions) == (Phase.PENDING, ())
    assert not lacks(verdict.message, "ConfigMaps", "out of date", "no node starts")
    assert plan.wake_at == at(60), "no event may tell when it is known again"
    assert not [action for action in plan.shared if isinstance(action, SetClaims)]


def test_the_plan_itself_names_the_node_whose_calls_fail() -> None:
    snapshot = make_snapshot([make_node("gpu-07")], [make_policy()], gpunodes=[], call_failures={"gpu-07": LASTING})
    verdict = plan_rollout(snapshot, NOW).verdicts["gpu-07"]
    assert (verdict.reason, verdict.wake) == (Reason.CALL_FAILED, LASTING.next_try)
    assert WORDS in verdict.message


# --- past the point of no return, and past the deadline -----------------------------------------------------------

TWO = make_policy(rollout={"maxUnavailable": 2})
LATE = make_fence("actuating", version=TWO.version, deadline=at(-1))
"""Of gpu-07, whose cordon somebody has lifted: it is to be put back, and no call about the node succeeds."""


@pytest.mark.parametrize(("tries", "reason"), [(3, Reason.HALTED), (1, Reason.SETTLING)])
def test_a_node_that_failed_because_of_its_calls_halts_the_others_in_the_same_pass(tries: int, reason: Reason) -> None:
    nodes = [make_node("gpu-07", fence=LATE), make_node("gpu-08")]
    snapshot = make_snapshot(
        nodes,
        [TWO],
        claims={"gpu-07": make_claim()},
        work={"gpu-08": make_work()},
        call_failures={"gpu-07": CallFailure(WORDS, at(8), tries)},
    )
    plan = plan_rollout(snapshot, NOW)
    sick, next_one = plan.verdicts["gpu-07"], plan.verdicts["gpu-08"]
    assert (sick.phase is Phase.FAILED, next_one.reason) == (tries == 3, reason)
    assert [row.reason for row in sick.blockers] == [Reason.CALL_FAILED] * (tries == 3), "it is named once"
    assert noted(sick.actions) == [NOW if tries == 3 else None]


def noted(actions: Sequence[Action]) -> list[datetime | None]:
    return [action.fence.failed for action in actions if isinstance(action, UpdateFence | Actuate)]


def member(*actions: Action, fence: Fence = LATE) -> Member:
    moving = replace(PENDING, phase=Phase.RECONFIGURING, deadline=at(-1)).then(*actions)
    return make_member(make_node("gpu-07", fence=fence), moving)


def late(one: Member) -> Member:
    return find_late({"gpu-07": LASTING}, {"gpu-07": one}, NOW)["gpu-07"]


NODE = make_node("gpu-07", fence=LATE)
FOLLOWED: dict[str, tuple[Action, datetime | None]] = {
    "another run": (Actuate(NODE, replace(LATE, attempt=2), {}), NOW),
    "a run of another revision": (Actuate(NODE, replace(LATE, version=ask_anew(TWO).version), {}), None),
    "a record of the failure": (UpdateFence(NODE, replace(LATE, failed_version=LATE.version)), None),
}


@pytest.mark.parametrize(("action", "failed"), FOLLOWED.values(), ids=FOLLOWED)
def test_what_cannot_be_written_says_that_the_change_had_failed_if_it_had(
    action: Action, failed: datetime | None
) -> None:
    found = late(member(action)).verdict
    assert (found.phase, len(found.actions), noted(found.actions)) == (Phase.FAILED, 1, [failed])


def test_a_step_that_is_no_patch_of_the_node_comes_after_the_record() -> None:
    found = late(member(RESTART)).verdict
    assert found.actions == (UpdateFence(NODE, replace(LATE, failed=NOW)), RESTART)
    seen = replace(LATE, failed=at(-5))
    assert late(member(RESTART, fence=seen)).verdict.actions == (RESTART,)


OVER: dict[str, Any] = {"now": 2500, "gpunode": answering("op-1:older")}
"""gpu-07 past its deadline."""
RUN = replace(FENCE, restart_uid=make_operand().uid)
ASKING: dict[str, tuple[NodeCase, Phase]] = {
    "to read": (changing(**OVER), Phase.VERIFYING),
    "to be quiet for another run": (changing(fence=RUN, work=emptied(2500), **OVER), Phase.VERIFYING_IDLE),
}


@pytest.mark.parametrize(("case", "phase"), ASKING.values(), ids=ASKING)
def test_a_node_has_failed_at_its_deadline_whose_agent_cannot_be_asked(case: NodeCase, phase: Phase) -> None:
    """Otherwise the two minutes for an answer would begin anew in every pass, and never end."""
    asking = after_pnr(case)
    assert (asking.phase, [type(one) for one in asking.actions]) == (phase, [EnsureGPUNode])
    refused = {"gpu-07": replace(LASTING, next_try=at(2510))}
    verdict = find_late(refused, {"gpu-07": make_member(case.node, asking)}, at(2500))["gpu-07"].verdict
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, Reason.CALL_FAILED)
    assert verdict.actions == (UpdateFence(case.node, replace(case.fence, failed=at(2500))), *asking.actions)
    before = replace(case.node, fence=replace(case.fence, stage="fenced"))
    drained = find_late(refused, {"gpu-07": make_member(before, asking)}, at(2500))["gpu-07"].verdict
    assert drained.phase is phase, "before the point of no return its deadline ends the change"


def test_whose_step_may_yet_be_taken_is_counted_as_before() -> None:
    for one in (member(RELEASE), member(), replace(member(RESTART), verdict=SYNCED)):
        assert late(one) is one
