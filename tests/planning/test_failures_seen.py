"""A failure that was seen is written down: no clock that is set back, and nothing read later, undoes it (ADR 44)."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import ask_anew, at, make_pod
from tests.planning.cases import EVENT, FULL, MIXED, judged, pool_of, run_until, wrote
from tests.planning.changes import FENCE, MIG_STATE, VERIFY, answering, changing, emptied, only, proven_idle
from tests.planning.test_reruns import OWED
from tests.planning.world import World

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import Actuate, FenceNode, Release, UpdateFence
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.attempts import is_late, next_deferral, remembered
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason

OURS = replace(FENCE, version=MIXED.version)
LATE = replace(OURS, failed=at(2400))
REFUTED = replace(OURS, failed=at(60))
UNPROVEN: dict[str, Any] = {"node": {"resources": {}}}
SAYS_FAILED: dict[str, Any] = {"labels": {MIG_STATE: "failed"}}


def noted(verdict: Verdict) -> list[Fence]:
    return [action.fence for action in verdict.actions if isinstance(action, UpdateFence)]


FAILURES: dict[str, tuple[dict[str, Any], float]] = {
    "at the deadline": (UNPROVEN, 2400),
    "when mig-manager says so": (SAYS_FAILED, 60),
}


@pytest.mark.parametrize(("fields", "now"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_recorded_once(fields: dict[str, Any], now: float) -> None:
    verdict = judged(changing(fence=OURS, now=now, **fields))
    assert verdict.phase is Phase.FAILED
    assert noted(verdict) == [replace(OURS, failed=at(now))]
    again = judged(changing(fence=replace(OURS, failed=at(now)), now=now + 1, **fields))
    assert (again.phase, again.reason, noted(again)) == (Phase.FAILED, verdict.reason, [])


NOT_OURS: dict[str, dict[str, Any]] = {
    "the fence is of an earlier node of this name": {"fence": replace(OURS, node_uid="uid-before")},
    "no policy is left whose failure it would be": {"policy": None},
}


@pytest.mark.parametrize("fields", NOT_OURS.values(), ids=NOT_OURS)
def test_nothing_is_recorded_where(fields: dict[str, Any]) -> None:
    policy, fence = fields.get("policy", MIXED), fields.get("fence", OURS)
    verdict = judged(changing(policy, fence=fence, now=2400, **UNPROVEN))
    assert (verdict.phase, noted(verdict)) == (Phase.FAILED, [])


UNANSWERED = replace(answering("older"), request_id=VERIFY)


def test_an_operator_that_was_away_past_the_deadline_reads_the_node_before_it_calls_it_failed() -> None:
    back = at(9000)
    first = changing(fence=OURS, now=9000, gpunode=answering("older"))
    asks = judged(first)
    assert (asks.phase, asks.reason, noted(asks)) == (Phase.VERIFYING, Reason.OBSERVATION_PENDING, [])
    request = f"op-1:verify:{EVENT}:{int(back.timestamp() * 1000)}"
    waits = replace(answering("older"), request_id=request)
    for seconds in (0, 119):
        verdict = judged(changing(fence=OURS, now=9000 + seconds, gpunode=waits))
        assert (verdict.phase, verdict.wake, noted(verdict)) == (Phase.VERIFYING, at(9120), [])
    late = judged(changing(fence=OURS, now=9120, gpunode=waits))
    assert (late.phase, noted(late)) == (Phase.FAILED, [replace(OURS, failed=at(9120))])
    proven = judged(changing(fence=OURS, now=9060, gpunode=answering(request)))
    assert proven.phase is Phase.UNCORDONING


def test_without_a_ready_agent_nobody_waits_for_its_answer() -> None:
    case = changing(fence=OURS, now=2400, gpunode=UNANSWERED, agent_ready=False)
    assert noted(judged(case)) == [replace(OURS, failed=at(2400))]


@pytest.mark.parametrize("now", [1800, 2399])
def test_a_node_that_the_clock_called_failed_stays_failed_when_it_is_set_back(now: float) -> None:
    verdict = judged(changing(fence=LATE, now=now, **UNPROVEN))
    assert (verdict.phase, noted(verdict)) == (Phase.FAILED, [])
    assert verdict.wake is None or verdict.wake > at(now)
    unseen = judged(changing(fence=OURS, now=now, **UNPROVEN))
    assert unseen.phase is Phase.VERIFYING


def test_what_mig_manager_refuted_goes_on_when_a_person_restarts_it() -> None:
    verdict = judged(changing(fence=REFUTED, labels={MIG_STATE: "pending"}))
    assert (verdict.phase, noted(verdict)) == (Phase.RECONFIGURING, [])


def test_a_result_counts_more_than_the_record() -> None:
    released = only(judged(changing(fence=LATE, now=1800)))
    assert isinstance(released, Release)
    assert released.verified is not None
    assert released.verified.failed_version is None


def test_a_retry_begins_with_a_clean_record_and_remembers_the_failure() -> None:
    fence = replace(LATE, began=at(-180))
    case = changing(fence=fence, now=1800, node={"resources": {}, "retry": "again"})
    owed = only(judged(case)).fence
    assert (owed.failed, owed.failed_version) == (None, OURS.version)
    assert owed.began is None, "what it took a person to come is no part of what the next run takes"


def test_a_cure_that_the_operator_makes_is_part_of_what_the_change_takes() -> None:
    labels = {MIG_STATE: "success", "nvidia.com/mig.config": "all-disabled"}
    owed = only(judged(changing(fence=replace(OURS, began=at(-180)), labels=labels, now=60))).fence
    assert (owed.attempt, owed.began) == (2, at(-180))


@pytest.mark.parametrize(
    ("failed", "took"), [(2400, 2500), (60, 0)], ids=["only the clock said so", "mig-manager said so"]
)
def test_what_a_person_repaired_without_a_retry_is_no_measure_of_a_change(failed: float, took: int) -> None:
    """A run that is late may have ended by itself; what mig-manager has given up did not."""
    fence = replace(OURS, began=at(0), failed=at(failed))
    released = only(judged(changing(fence=fence, now=2500)))
    assert released.verified is not None
    assert released.verified.took == took


RUNS: dict[str, tuple[PolicyView, Any]] = {
    "of the same revision, and never later than now": (MIXED, at(60)),
    "of another revision not": (ask_anew(MIXED), None),
    "for a policy that was made anew not": (replace(MIXED, uid="uid-anew"), None),
}


@pytest.mark.parametrize(("policy", "failed"), RUNS.values(), ids=RUNS)
def test_a_run_that_begins_by_itself_keeps_the_record(policy: PolicyView, failed: Any) -> None:
    fence = replace(OWED, version=MIXED.version, failed=at(2400), failed_version=None)
    action = only(after_pnr(changing(policy, fence=fence, **proven_idle(60))))
    assert isinstance(action, Actuate)
    assert action.fence.failed == failed
    assert not is_late(replace(changing(fence=action.fence), now=at(60)))


def test_a_cure_that_nobody_asked_for_keeps_the_record() -> None:
    case = changing(fence=LATE, labels={MIG_STATE: "success", "nvidia.com/mig.config": "all-disabled"}, now=60)
    owed = only(judged(case)).fence
    assert (owed.attempt, owed.failed, owed.failed_version) == (2, at(60), None)


def test_a_change_that_is_given_back_after_a_failure_remembers_it() -> None:
    case = changing(fence=LATE, work=emptied(60, make_pod()))
    given = remembered(case, Reason.PODS_LEAVING)
    assert given is not None
    assert given.failed_version == OURS.version
    assert next_deferral(case, Reason.PODS_LEAVING).failed_version == OURS.version
    assert remembered(changing(fence=OURS), Reason.PODS_LEAVING) is None


def halted() -> World:
    """Of two nodes of a pool that wants MIG the first one is Failed by the deadline."""
    world = pool_of(2)
    world.set_policy(replace(MIXED, uid=FULL.uid, generation=2))
    first = next(name for name in world.nodes if started(world, name))
    world.machines[first].temper = "fails"
    run_until(world, Phase.FAILED, node=first)
    return world


def passed(world: World) -> Mapping[str, Verdict]:
    world.act_everywhere()
    world.now += timedelta(seconds=1)
    return world.step().verdicts


def started(world: World, node: str) -> bool:
    for _ in range(60):
        passed(world)
        begun = [action.node.name for action in world.done if isinstance(action, FenceNode)]
        if begun:
            return begun[0] == node
    raise AssertionError("no node ever began")


def test_a_halted_rollout_stays_halted_when_the_clock_is_set_back() -> None:
    """Behind the point of no return: nothing that mig-manager says is believed then."""
    world = halted()
    begun = wrote(world, FenceNode)
    for seconds in (0, -600, -3600):
        world.now += timedelta(seconds=seconds)
        world.restart()
        told = {verdict.reason for _ in range(15) for verdict in passed(world).values()}
        assert Reason.HALTED in told, (seconds, told)
    assert wrote(world, FenceNode) == begun


def test_a_configuration_whose_time_is_yet_to_come_is_waited_for_no_longer_than_any_other() -> None:
    world = pool_of(1)
    world.set_policy(replace(MIXED, uid=FULL.uid, generation=2))
    passed(world)
    world.now -= timedelta(hours=1)
    world.restart()
    for _ in range(60):
        passed(world)
    assert wrote(world, FenceNode) == ["FenceNode"]
