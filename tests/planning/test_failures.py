"""A failure stays on record when its node goes: maxFailures holds the policy until somebody has looked (ADR 44)."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import ask_anew, at, make_fence, make_node, make_pod, make_policy, make_snapshot
from tests.planning.cases import EVENT, FULL, MIXED, judged, make_member, pool_of, run_until, wrote
from tests.planning.changes import FENCE, MIG_STATE, VERIFY, answering, changing, emptied, only, proven_idle
from tests.planning.habits import person_resumes
from tests.planning.machines import Temper, patched
from tests.planning.test_reruns import OWED
from tests.planning.test_wayback import BACK, failing
from tests.planning.test_wayback import FENCE as RUN
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.planning.pools.holds import MOST, find_gone, has_failed, with_records
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.actions import Actuate, FenceNode, Release, SetClaims, UpdateFence
from gpusharing.planning.snapshot.records import Claim, FailedNode, Fence
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.attempts import is_late, next_deferral, remembered
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason

POLICY = replace(MIXED, uid="uid-pool-b", generation=3)
FAILED = FailedNode("n1", POLICY.version)
RECORD = {"uid-n1": FAILED}


def member(name: str, phase: Phase, **node: Any) -> Member:
    return make_member(make_node(name, **node), Verdict(name, POLICY.name, phase, Reason.PROGRESSING, ""))


def counted(
    *members: Member, recorded: Mapping[str, FailedNode] = RECORD, policy: PolicyView = POLICY
) -> tuple[dict[str, FailedNode], tuple[str, ...]]:
    """What is on record afterwards, and whose failure only the record knows."""
    pool = Pool(policy)
    for one in members:
        pool.count(one)
    snapshot = make_snapshot(policies=[policy], failed_nodes=recorded)
    pools, found, _ = with_records({policy.name: pool}, snapshot)
    return found, tuple(sorted(pools[policy.name].failed_before.values()))


ACTUATING = make_fence("actuating", version=POLICY.version)
FAILING = member("n1", Phase.FAILED, fence=ACTUATING)
STAYS: dict[str, tuple[Member, ...]] = {
    "it was deleted": (),
    "another one came under its name": (member("n1", Phase.PENDING, uid="uid-new"),),
    "a person took its fence away": (member("n1", Phase.PENDING),),
    "it is tried again": (member("n1", Phase.RECONFIGURING, fence=ACTUATING),),
}


@pytest.mark.parametrize("members", STAYS.values(), ids=STAYS)
def test_a_failure_stays_on_record_though(members: tuple[Member, ...]) -> None:
    assert counted(*members) == (RECORD, ("n1",))


def test_a_node_that_fails_is_recorded_and_counted_once() -> None:
    assert counted(FAILING, recorded={}) == (RECORD, ())
    assert counted(FAILING) == (RECORD, ())


def test_a_failure_is_forgotten_when_its_node_is_proven() -> None:
    assert counted(member("n1", Phase.SYNCED)) == ({}, ())
    aside = replace(ACTUATING, stage="yielded", proven=at(0), failed=at(-60))
    assert counted(member("n1", Phase.BLOCKED, fence=aside)) == ({}, ()), "though somebody else works on it"


ENDED = {"in another revision": ask_anew(POLICY), "with its policy": replace(POLICY, uid="uid-another")}


def test_a_failure_stays_on_record_though_a_person_lets_the_policy_go_on() -> None:
    """Else as many again, and again, would not be counted from it."""
    assert counted(policy=replace(POLICY, resumed=POLICY.version.revision)) == (RECORD, ("n1",))


@pytest.mark.parametrize("policy", ENDED.values(), ids=ENDED)
def test_a_failure_is_forgotten(policy: PolicyView) -> None:
    assert counted(policy=policy) == ({}, ())


def test_no_more_failures_are_kept_than_the_lease_has_room_for() -> None:
    many = {f"uid-{number:03}": FailedNode(f"n{number}", POLICY.version) for number in range(MOST + 20)}
    found, names = counted(recorded=many)
    assert (len(found), len(names)) == (MOST, MOST + 20), "all that were there count in this pass"


def test_a_rollout_stays_halted_when_the_node_that_failed_is_replaced() -> None:
    world = halted()
    (failed,) = (name for name in world.nodes if world.step().verdicts[name].phase is Phase.FAILED)
    assert {one.node for one in world.failed_nodes.values()} == {failed}
    world.remove_node(failed)
    stays_halted_until_a_person_resumes(world, failed, f"{failed} failed in this revision")


def stays_halted_until_a_person_resumes(world: World, failed: str, *words: str) -> None:
    begun = wrote(world, FenceNode)
    for _ in range(30):
        told = passed(world)
        assert {verdict.reason for verdict in told.values()} == {Reason.HALTED}
    assert not any(lacks(verdict.message, *words) for verdict in told.values())
    assert (wrote(world, FenceNode), world.claims) == (begun, {})
    world.restart()
    passed(world)
    assert wrote(world, FenceNode) == begun
    resume(world)
    passed(world, 30)
    assert len(wrote(world, FenceNode)) > len(begun)
    assert {one.node for one in world.failed_nodes.values()} == {failed}


@pytest.mark.parametrize("mode", ["TimeSlicing", "MIG"], ids=["another layout", "the same layout"])
def test_a_node_that_failed_in_one_pool_halts_no_rollout_of_the_pool_that_gets_it(mode: str) -> None:
    world = halted()
    label: dict[str, Any] = {"gpusharing.dev/pool": "c"}
    heir: dict[str, Any] = {"nodeSelector": {"matchLabels": label}}
    (failed,) = (name for name, node in world.nodes.items() if node.fence is not None)
    for name in ("c0", "c1", "c2"):
        world.add_node(name, **label)
    world.set_policy(make_policy("pool-c", mode="Full", **heir))
    passed(world, 40)
    world.now += timedelta(hours=1)
    edited = make_policy("pool-c", mode=mode, rollout={"maxUnavailable": 2}, **heir)
    world.set_policy(edited)
    world.nodes[failed] = patched(world.nodes[failed], label)
    world.machines[failed].temper = "works"
    for _ in range(200):
        told = passed(world)
        halts = [name for name, one in told.items() if one.policy == "pool-c" and one.reason is Reason.HALTED]
        assert not halts, told[halts[0]].message
    assert {told[name].phase for name in ("c0", "c1", "c2")} == {Phase.SYNCED}
    assert {one.version.uid for one in world.failed_nodes.values()} == {FULL.uid}, "whose run it was"


def under_way(phase: Phase, size: int = 3, temper: Temper = "works") -> tuple[World, str]:
    """The first node of a pool that wants MIG is in this phase."""
    world = pool_of(size)
    world.set_policy(replace(MIXED, uid=FULL.uid, generation=2))
    first = next(name for name in world.nodes if started(world, name))
    world.machines[first].temper = temper
    run_until(world, phase, node=first)
    passed(world)
    return world, first


def test_a_node_that_goes_past_the_point_of_no_return_unproven_has_failed() -> None:
    world, first = under_way(Phase.RECONFIGURING)
    world.remove_node(first)
    world.restart()  # whoever comes next knows it from the Lease
    stays_halted_until_a_person_resumes(world, first, first, "deleted in the middle")


def test_another_node_of_that_name_does_not_hide_the_failure() -> None:
    world, first = under_way(Phase.RECONFIGURING)
    world.remove_node(first)
    world.add_node(first)
    assert passed(world, 30)[first].reason is Reason.HALTED


@pytest.mark.parametrize("phase", [Phase.CORDONED, Phase.SYNCED], ids=["before it", "once proven"])
def test_a_node_that_goes_has_not_failed(phase: Phase) -> None:
    world, first = under_way(phase)
    world.remove_node(first)
    for _ in range(30):
        assert Reason.HALTED not in {verdict.reason for verdict in passed(world).values()}
    assert world.failed_nodes == {}


def before_actuation(world: World, node: str) -> None:
    """Let everybody act until the next pass would take the node past its point of no return."""
    for _ in range(60):
        for name in world.nodes:
            world.act(name)
        world.now += timedelta(seconds=1)
        if any(isinstance(action, Actuate) for action in world.plan().verdicts[node].actions):
            return
        world.step()
    raise AssertionError(f"{node} never passed its point of no return")


def test_the_lease_knows_of_the_point_of_no_return_first() -> None:
    """Else a Node that goes a moment after it would be known to nobody. A successor that decides it again, after a crash between the two writes, finds that record and writes the Lease no more."""
    world, first = under_way(Phase.CORDONED)
    before_actuation(world, first)
    (said,) = (action for action in world.plan().shared if isinstance(action, SetClaims))
    assert said.claims[first].version == world.policies[0].version
    world.claims = dict(said.claims)
    world.restart()
    node = world.nodes[first]
    assert node.fence is not None
    assert node.fence.stage != "actuating"
    assert [action for action in world.plan().shared if isinstance(action, SetClaims)] == []


PROVEN = replace(ACTUATING, proven=at(60))
SLOTS: dict[str, tuple[Fence, bool]] = {
    "past the point of no return": (ACTUATING, True),
    "before it": (make_fence(version=POLICY.version), False),
    "proven, while it waits for its wave": (PROVEN, False),
    "of an earlier node of this name": (replace(ACTUATING, node_uid="uid-before"), False),
}


@pytest.mark.parametrize(("fence", "counts"), SLOTS.values(), ids=SLOTS)
def test_a_slot_says_of_which_revision_the_failure_would_be(fence: Fence, counts: bool) -> None:
    claim = Claim.of("uid-gpu-07", fence)
    assert claim.version == (POLICY.version if counts else None)
    gone = {"uid-gpu-07": FailedNode("gpu-07", POLICY.version, gone=True)} if counts else {}
    assert find_gone({"gpu-07": claim}, {}) == gone
    assert find_gone({"gpu-07": claim}, {"gpu-07": make_node("gpu-07", uid="uid-new")}) == gone
    assert find_gone({"gpu-07": claim}, {"gpu-07": make_node("gpu-07")}) == {}


def test_a_node_that_had_failed_before_it_went_is_told_as_failed() -> None:
    claims = {"n1": Claim("uid-n1", POLICY.name, "op-1", version=POLICY.version)}
    pools, gone = {POLICY.name: Pool(POLICY)}, {"uid-n1": replace(FAILED, gone=True)}
    assert with_records(pools, make_snapshot(policies=[POLICY], claims=claims, failed_nodes=RECORD))[1] == RECORD
    found, failures, _ = with_records(pools, make_snapshot(policies=[POLICY], claims=claims))
    assert failures == gone
    before = found[POLICY.name].failed_before
    assert [*before] == ["uid-n1"]
    assert not lacks(before["uid-n1"], "n1", "deleted in the middle")


def resume(world: World) -> None:
    person_resumes(world, "pool-b", world.plan())


def test_what_is_on_record_is_written_only_when_it_changes() -> None:
    world = halted()
    passed(world)
    before = len(wrote(world, SetClaims))
    passed(world, 20)
    assert len(wrote(world, SetClaims)) == before


def test_what_is_turned_back_counts_for_the_revision_that_it_is_held_in() -> None:
    edit = ask_anew(BACK)
    earlier = replace(RUN, version=BACK.version)
    case = failing(edit, fence=earlier)
    action = only(after_pnr(case))
    assert action.fence.failed_version == edit.version
    member = make_member(replace(case.node, fence=action.fence), after_pnr(case))
    assert has_failed(member, edit)


# --- a failure that was seen is written down --------------------------------------------------------------------------

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
    return under_way(Phase.FAILED, 2, "fails")[0]


def passed(world: World, times: int = 1) -> Mapping[str, Verdict]:
    for _ in range(times):
        world.act_everywhere()
        world.now += timedelta(seconds=1)
        told = world.step().verdicts
    return told


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
    passed(world, 60)
    assert wrote(world, FenceNode) == ["FenceNode"]
