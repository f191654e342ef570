"""What keeps every node of a policy from starting: their order, halting, approval, canary and windows in whole ways."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import NOW, at, make_fence, make_node, make_policy
from tests.planning.cases import FULL, edited, make_case, pool_of, run_until
from tests.planning.promises import approve
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.rollout import Rollout
from gpusharing.planning.pools.approval import plan_hash
from gpusharing.planning.pools.canary import find_canary, find_note
from gpusharing.planning.pools.holds import HOLDS, find_hold
from gpusharing.planning.pools.hours import ALWAYS
from gpusharing.planning.pools.pooled import Member, Pooled
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.way.verdict import Verdict
from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.reasons import Reason

POOL = make_policy(generation=3)


def test_the_order_of_the_holds_is_part_of_the_product() -> None:
    assert [(hold.find.__name__, hold.reason) for hold in HOLDS] == [
        ("_frozen", Reason.FROZEN),
        ("_halted", Reason.HALTED),
        ("_unapproved", Reason.APPROVAL_NEEDED),
        ("_closed", Reason.WINDOW_CLOSED),
        ("_soaking", Reason.CANARY_SOAK),
    ]


def member(name: str, phase: Phase = Phase.PENDING, **node: Any) -> Member:
    view = make_node(name, **node)
    return Member(view, Verdict(name, "pool-b", phase, Reason.PROGRESSING, ""), None)


def pooled(*members: Member, policy: PolicyView = POOL, seconds: float = 0, **rollout: Any) -> Pooled:
    assert policy.spec is not None
    spec = policy.spec.model_copy(update={"rollout": Rollout.model_validate(rollout)})
    return Pooled(replace(policy, spec=spec), spec, members, False, ALWAYS, at(seconds))


# --- halting --------------------------------------------------------------------------------------------------

OURS: dict[str, Any] = {"policy_uid": "uid-pool-b", "generation": 3}
ACTUATING = make_fence("actuating", **OURS)
PROVEN = Verified("pool-b", "x", "y", policy_uid="uid-pool-b", generation=3, changed_at=NOW, took=60)
FAILED = {
    "it is Failed": (member("n1", Phase.FAILED, fence=ACTUATING), True),
    "it is tried again after it failed": (
        member("n1", Phase.RECONFIGURING, fence=replace(ACTUATING, failed_generation=3)), True),
    "it was proven after it had failed": (
        member("n1", Phase.SYNCED, verified=replace(PROVEN, failed_generation=3)), True),
    "it is on its way": (member("n1", Phase.RECONFIGURING, fence=ACTUATING), False),
    "it is proven": (member("n1", Phase.SYNCED, verified=PROVEN), False),
    "it failed in an earlier generation": (
        member("n1", Phase.FAILED, fence=replace(ACTUATING, generation=2)), False),
    "it had failed in an earlier generation": (member("n1", verified=replace(PROVEN, failed_generation=2)), False),
    "another policy of this name failed on it": (
        member("n1", verified=replace(PROVEN, failed_generation=3, policy_uid="old")), False),
    "it was given up before the point of no return": (member("n1", Phase.ABORTING, fence=make_fence(**OURS)), False),
}  # fmt: skip


@pytest.mark.parametrize(("node", "halts"), FAILED.values(), ids=FAILED.keys())
def test_a_failure_of_this_generation_halts_the_policy(node: Member, halts: bool) -> None:
    hold = find_hold(pooled(node, member("n2")))
    assert (hold is not None and hold.reason is Reason.HALTED) is halts


def test_more_failures_may_be_allowed_and_a_person_may_let_it_go_on() -> None:
    two = [member(name, Phase.FAILED, fence=ACTUATING) for name in ("n1", "n2")]
    assert find_hold(pooled(*two[:1], maxFailures=2)) is None
    hold = find_hold(pooled(*two, maxFailures=2))
    assert hold is not None
    assert "n1, n2 failed" in hold.message
    assert f"kubectl annotate gsp pool-b --overwrite {names.ANNOTATION_RESUME}=3" in hold.message
    assert find_hold(pooled(*two, policy=replace(POOL, resumed="3"))) is None
    assert find_hold(pooled(*two, policy=replace(POOL, resumed="2"))) is not None


# --- canary ---------------------------------------------------------------------------------------------------

CANARY = {"nodes": 2, "soak": "10m"}
MANY = [member(f"n{number}") for number in range(5)]


def proven(name: str, seconds: float = 0) -> Member:
    return member(name, Phase.SYNCED, verified=replace(PROVEN, changed_at=at(seconds)))


def test_only_so_many_nodes_start_before_the_others() -> None:
    begun = member("n8", fence=ACTUATING)
    assert find_canary(pooled(*MANY)) is None
    assert find_canary(pooled(*MANY, canary=CANARY)) == 2
    assert find_canary(pooled(*MANY, begun, canary=CANARY)) == 1
    assert find_canary(pooled(*MANY, proven("n9"), canary=CANARY)) == 1
    waiting = find_canary(pooled(*MANY, begun, proven("n9"), canary=CANARY))
    assert isinstance(waiting, Finding)
    assert (waiting.reason, waiting.until) == (Reason.CANARY_SOAK, None)


def test_the_others_start_when_all_canaries_have_soaked() -> None:
    done = (*MANY, proven("n8", 0), proven("n9", 60))
    soaking = find_canary(pooled(*done, canary=CANARY, seconds=659))
    assert isinstance(soaking, Finding)
    assert (soaking.reason, soaking.until) == (Reason.CANARY_SOAK, at(660))
    assert find_canary(pooled(*done, canary=CANARY, seconds=660)) is None


def test_what_an_earlier_generation_proved_is_no_canary() -> None:
    old = member("n9", verified=replace(PROVEN, generation=2))
    assert find_canary(pooled(*MANY, old, canary={"nodes": 1})) == 1


def test_a_canary_larger_than_the_pool_is_the_whole_pool_and_says_so() -> None:
    whole = pooled(*MANY, canary={"nodes": 7})
    assert find_canary(whole) is None
    assert "spec.rollout.canary.nodes is 7 and the pool has 5 nodes" in find_note(whole)
    assert find_note(pooled(*MANY, canary=CANARY)) == ""


# --- approval -------------------------------------------------------------------------------------------------


def planned(name: str, **node: Any) -> Member:
    """A node that is to be changed, by its assessment."""
    case = make_case(make_policy())
    view = replace(case.node, **{"name": name, "uid": f"uid-{name}", **node})
    return Member(view, Verdict(name, "pool-b", Phase.PENDING, Reason.PROGRESSING, ""), case.assessment)


TWO = [planned("n1"), planned("n2")]
CURRENT = plan_hash(POOL, TWO)


def test_without_an_approval_of_this_very_plan_nothing_starts() -> None:
    hold = find_hold(pooled(*TWO, approval="Manual"))
    assert hold is not None
    assert hold.reason is Reason.APPROVAL_NEEDED
    assert f"{names.ANNOTATION_APPROVE}={CURRENT}" in hold.message
    assert find_hold(pooled(*TWO, approval="Manual", policy=replace(POOL, approved=CURRENT))) is None
    assert find_hold(pooled(*TWO)) is None


def test_an_approval_of_an_old_plan_is_named() -> None:
    hold = find_hold(pooled(*TWO, approval="Manual", policy=replace(POOL, approved="0ldha5h")))
    assert hold is not None
    assert "0ldha5h is the hash of another plan" in hold.message
    long = find_hold(pooled(*TWO, approval="Manual", policy=replace(POOL, approved="x" * 5000)))
    assert long is not None
    assert len(long.message) < 500


OTHER_PLANS = {
    "another generation": (replace(POOL, generation=4), TWO),
    "another policy of this name": (replace(POOL, uid="other"), TWO),
    "a node that joins": (POOL, [*TWO, planned("n3")]),
    "a node that leaves": (POOL, TWO[:1]),
    "another node of the same name": (POOL, [TWO[0], planned("n2", uid="again")]),
}


@pytest.mark.parametrize(("policy", "members"), OTHER_PLANS.values(), ids=OTHER_PLANS.keys())
def test_another_plan_has_another_hash(policy: PolicyView, members: list[Member]) -> None:
    assert plan_hash(policy, members) != CURRENT


PROGRESS = {
    "in flight, and its class has risen": {
        "fence": make_fence(**OURS, disruption=DisruptionClass.REBOOT, planned=DisruptionClass.RESET)},
    "proven": {"verified": replace(PROVEN, planned=DisruptionClass.RESET)},
    "pods come and go": {},
}  # fmt: skip


@pytest.mark.parametrize("node", PROGRESS.values(), ids=PROGRESS.keys())
def test_progress_changes_no_hash(node: dict[str, Any]) -> None:
    assert TWO[0].verdict.disruption is DisruptionClass.NONE, "it is the assessment that counts"
    assert plan_hash(POOL, [planned("n1", **node), TWO[1]]) == CURRENT
    assert plan_hash(POOL, [TWO[1], planned("n1", **node)]) == CURRENT


# --- whole ways -------------------------------------------------------------------------------------------------


def rolling(size: int, **rollout: Any) -> World:
    """A pool of whole GPUs at rest whose policy has just been changed to time-slicing."""
    world = pool_of(size, FULL)
    world.set_policy(make_policy(mode="TimeSlicing", rollout={"maxUnavailable": 3, **rollout}))
    return world


def pass_time(world: World, seconds: int) -> None:
    """Let everybody act once a second."""
    for _ in range(seconds):
        for name in world.nodes:
            world.act(name)
        world.step()
        world.now += timedelta(seconds=1)


def shared(world: World) -> list[str]:
    """Nodes that are proven as wanted."""
    return [name for name, verdict in world.plan().verdicts.items() if verdict.phase is Phase.SYNCED]


def fences(world: World) -> list[NodeView]:
    return [node for node in world.nodes.values() if node.fence is not None]


def test_a_roll_waits_for_its_window_and_then_needs_nobody() -> None:
    world = rolling(3, windows=[{"schedule": "0 22 * * *", "duration": "6h"}])
    pass_time(world, 15)
    plan = world.plan()
    assert {verdict.reason for verdict in plan.verdicts.values()} == {Reason.WINDOW_CLOSED}
    opening = NOW.replace(hour=22)
    assert plan.wake_at is not None
    assert plan.wake_at <= opening
    world.settle()
    assert len(shared(world)) == 3
    proofs = [node.verified for node in world.nodes.values()]
    assert all(
        proof is not None and proof.changed_at is not None and proof.changed_at > opening for proof in proofs
    )


def test_a_window_that_is_closed_during_a_roll_lets_those_in_flight_finish() -> None:
    world = rolling(2, maxUnavailable=1, windows=[{"schedule": "0 10 * * *", "duration": "60m"}])
    run_until(world, Phase.RECONFIGURING, node=first_of(world))
    world.now = NOW + timedelta(minutes=40)
    pass_time(world, 600)
    assert len(shared(world)) == 1
    assert not fences(world)
    reasons = {verdict.reason for verdict in world.plan().verdicts.values()}
    assert reasons == {Reason.SYNCED, Reason.WINDOW_CLOSED}


def first_of(world: World) -> str:
    """The node that starts first."""
    for _ in range(60):
        if found := fences(world):
            return found[0].name
        pass_time(world, 1)
    raise AssertionError("nobody starts")


def test_a_wrong_window_holds_its_policy_and_no_other() -> None:
    world = rolling(1, windows=[{"schedule": "0 22 * * *", "duration": "6h", "timeZone": "Mars/Olympus"}])
    world.add_node("other", pool="c")
    other = {"matchLabels": {"pool": "c"}}
    world.set_policy(make_policy("pool-c", mode="TimeSlicing", nodeSelector=other))
    world.settle()
    verdicts = world.plan().verdicts
    assert (verdicts["n0"].phase, verdicts["n0"].reason) == (Phase.BLOCKED, Reason.INVALID_WINDOW)
    assert world.nodes["n0"].fence is None


def test_a_canary_is_proven_and_soaks_before_the_others_start_and_a_restart_changes_nothing() -> None:
    world = rolling(4, canary={"nodes": 1, "soak": "30m"})
    seen = 0
    for second in range(1500):
        pass_time(world, 1)
        seen = max(seen, len(fences(world)))
        if second % 50 == 0:
            world.restart()
    assert seen == 1
    assert len(shared(world)) == 1
    assert {v.reason for v in world.plan().verdicts.values()} == {Reason.SYNCED, Reason.CANARY_SOAK}
    world.settle()
    assert len(shared(world)) == 4


def test_a_plan_starts_when_it_is_approved_and_stays_approved_until_it_is_done() -> None:
    world = rolling(3, maxUnavailable=1, approval="Manual")
    world.settle()
    assert {v.reason for v in world.plan().verdicts.values()} == {Reason.APPROVAL_NEEDED}
    members = world.plan().pools["pool-b"].members
    (policy,) = world.policies
    approve(world, policy, plan_hash(policy, members))
    world.settle()
    assert len(shared(world)) == 3


def test_an_edit_gives_back_what_was_approved_before_it() -> None:
    world = rolling(1, approval="Manual")
    world.settle()
    (policy,) = world.policies
    approve(world, policy, plan_hash(policy, world.plan().pools["pool-b"].members))
    run_until(world, Phase.CORDONED, node="n0")
    world.step()
    (policy,) = world.policies
    assert policy.spec is not None
    world.set_policy(edited(policy, priority=5))
    world.settle()
    node = world.nodes["n0"]
    assert (node.fence, node.unschedulable) == (None, False)
    assert world.plan().verdicts["n0"].reason is Reason.APPROVAL_NEEDED
