"""A failure stays on record when its node goes: maxFailures holds the policy until somebody has looked (ADR 44)."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import ask_anew, at, make_fence, make_node, make_policy, make_snapshot
from tests.planning.cases import FULL, MIXED, make_member, pool_of, run_until, wrote
from tests.planning.changes import only
from tests.planning.habits import person_resumes
from tests.planning.machines import patched
from tests.planning.test_failures_seen import halted, passed, started
from tests.planning.test_wayback import BACK, failing
from tests.planning.test_wayback import FENCE as RUN
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.planning.pools.holds import MOST, find_gone, has_failed, with_records
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.actions import Actuate, FenceNode, SetClaims
from gpusharing.planning.snapshot.records import Claim, FailedNode, Fence
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.after import after_pnr
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
    begun = wrote(world, FenceNode)
    for _ in range(30):
        told = passed(world)
        assert {verdict.reason for verdict in told.values()} == {Reason.HALTED}
    assert all(f"{failed} failed in this revision" in verdict.message for verdict in told.values())
    world.restart()
    passed(world)
    assert wrote(world, FenceNode) == begun
    resume(world)
    for _ in range(30):
        passed(world)
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
    for _ in range(40):
        passed(world)
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


def under_way(phase: Phase) -> tuple[World, str]:
    """The first of three nodes of a pool that wants MIG is in this phase."""
    world = pool_of(3)
    world.set_policy(replace(MIXED, uid=FULL.uid, generation=2))
    first = next(name for name in world.nodes if started(world, name))
    run_until(world, phase, node=first)
    passed(world)
    return world, first


def test_a_node_that_goes_past_the_point_of_no_return_unproven_has_failed() -> None:
    world, first = under_way(Phase.RECONFIGURING)
    world.remove_node(first)
    world.restart()  # whoever comes next knows it from the Lease
    begun = wrote(world, FenceNode)
    for _ in range(30):
        told = passed(world)
        assert {verdict.reason for verdict in told.values()} == {Reason.HALTED}
    assert not any(lacks(verdict.message, first, "deleted in the middle") for verdict in told.values())
    assert (wrote(world, FenceNode), world.claims) == (begun, {})
    resume(world)
    for _ in range(30):
        passed(world)
    assert len(wrote(world, FenceNode)) > len(begun)
    assert {one.node for one in world.failed_nodes.values()} == {first}


def test_another_node_of_that_name_does_not_hide_the_failure() -> None:
    world, first = under_way(Phase.RECONFIGURING)
    world.remove_node(first)
    world.add_node(first)
    for _ in range(30):
        told = passed(world)
    assert told[first].reason is Reason.HALTED


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
    for _ in range(20):
        passed(world)
    assert len(wrote(world, SetClaims)) == before


def test_what_is_turned_back_counts_for_the_revision_that_it_is_held_in() -> None:
    edit = ask_anew(BACK)
    earlier = replace(RUN, version=BACK.version)
    case = failing(edit, fence=earlier)
    action = only(after_pnr(case))
    assert action.fence.failed_version == edit.version
    member = make_member(replace(case.node, fence=action.fence), after_pnr(case))
    assert has_failed(member, edit)
