"""What is remembered of a policy is about its revision: no other edit ends it, and another revision ends all of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.build import NOW, at, make_fence, make_node, make_policy
from tests.planning.cases import FULL, agreed, make_case, make_member, pass_time, pool_of, run_until
from tests.planning.habits import person_approves
from tests.planning.recovery import lenient
from tests.planning.test_approval import planned
from tests.planning.test_holds import LENIENT, rolled, shared
from tests.planning.test_revision import OTHER, POLICY, SAME
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.api.policy import Canary, Cost, Window
from gpusharing.planning.pools.holds import count_failures, find_halt, has_failed, propose, proven_at
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.records import Deferred, FailedNode, Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.attempts import (
    failed_before,
    is_tried_again,
    standing_deferral,
    was_corrected,
    was_rolled_back,
)
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason

VERSION = POLICY.version
PROVEN = Verified("pool-b", "x", "y", layout="1x full", gpus=1, version=VERSION, changed_at=NOW, took=60)
DEFERRED = Deferred(1, at(600), "DrainTimeout", VERSION, failed_version=VERSION)
FAILED = make_node("n1", fence=make_fence("actuating", version=VERSION, failed=NOW))
TWO = [planned("n1"), planned("n2")]


MANUAL = lenient(POLICY, approval="Manual")
APPROVED = replace(MANUAL, approved=propose(Pool(MANUAL, members=TWO)).hash)
CONSENT = agreed(Pool(APPROVED, members=TWO))


def as_member(node: NodeView) -> Member:
    return make_member(node, Verdict(node.name, "pool-b", Phase.FAILED, Reason.PROGRESSING, ""))


def halted(policy: PolicyView) -> bool:
    return find_halt(Pool(lenient(policy, max_failures=1), members=[as_member(FAILED)])) is not None


def recorded(policy: PolicyView) -> bool:
    return any(count_failures(Pool(policy), {"uid-gone": FailedNode("gone", VERSION)}))


def node(policy: PolicyView, **records: Any) -> Any:
    return make_case(policy, node=records)


KINDS: dict[str, Callable[[PolicyView], object]] = {
    "a halt": halted,
    "a failure on the node": lambda policy: has_failed(as_member(FAILED), policy),
    "a failure on record": recorded,
    "an earlier failure": lambda policy: failed_before(make_node(deferred=DEFERRED), policy),
    "a way back": lambda policy: was_rolled_back(make_node(verified=replace(PROVEN, rolled_back=True)), policy),
    "an approval": lambda policy: (
        propose(Pool(replace(policy, approved=CONSENT.approved), members=TWO, consent=CONSENT)).approved
    ),
    "a retry": lambda policy: is_tried_again(make_node(deferred=DEFERRED), policy),
    "a canary": lambda policy: proven_at(make_node(verified=PROVEN), policy),
    "a deferral": lambda policy: standing_deferral(node(policy, deferred=DEFERRED), policy),
    "a correction of drift": lambda policy: was_corrected(
        node(policy, verified=replace(PROVEN, corrected_revision=VERSION.revision)), policy
    ),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("policy", SAME.values(), ids=SAME)
def test_what_outlasts_an_edit_that_asks_for_nothing_new(policy: PolicyView, kind: Callable[[PolicyView], Any]) -> None:
    assert kind(policy)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("policy", OTHER.values(), ids=OTHER)
def test_what_ends_with_another_revision(policy: PolicyView, kind: Callable[[PolicyView], Any]) -> None:
    assert not kind(policy)


# --- the approved plan never asks again ---------------------------------------------------------------------------

EARLIER = make_policy(mode="TimeSlicing", drain=LENIENT, rollout={"maxFailures": 9})
ANOTHER = make_policy(drain=LENIENT, rollout={"maxFailures": 9})
BACK = make_policy(drain=LENIENT, rollout={"onFailure": "Rollback", "maxFailures": 9})
WANTED = make_policy(drain={**LENIENT, "timeout": "4m"}, rollout={"approval": "Manual", "maxFailures": 9})


def draining(world: World) -> None:
    world.refusing = True
    world.set_policy(EARLIER)
    pass_time(world, 60, until=lambda world: any(one.phase is Phase.DRAINING for one in world.plan().verdicts.values()))


def given_up(world: World) -> None:
    world.refusing = True
    world.set_policy(EARLIER)
    pass_time(world, 300, seconds=20, until=lambda world: any(one.deferred for one in world.nodes.values()))
    assert any(one.deferred for one in world.nodes.values())


def reconfiguring(world: World) -> None:
    world.set_policy(EARLIER)
    pass_time(world, 300, until=lambda world: any(n.fence and n.fence.began for n in world.nodes.values()))
    assert any(n.fence and n.fence.began for n in world.nodes.values())


def failing(world: World, policy: PolicyView = WANTED) -> None:
    for machine in world.machines.values():
        machine.temper = "fails"
    world.set_policy(policy)
    person_approves(world, "pool-b", world.plan())
    pass_time(
        world, 600, seconds=5,
        until=lambda world: any(n.fence and (n.fence.failed or n.fence.rolls_back) for n in world.nodes.values()),
    )  # fmt: skip
    assert any(n.fence and (n.fence.failed or n.fence.rolls_back) for n in world.nodes.values())


STATES: dict[str, Callable[[World], None]] = {
    "before anything begins": lambda world: None,
    "while a node drains": draining,
    "after a node was given up": given_up,
    "while a node is reconfigured": reconfiguring,
    "while a node is Failed": failing,
    "while a node is Failed in another revision": lambda world: failing(world, ANOTHER),
    "while a node goes back": lambda world: failing(world, BACK),
}
NIGHT = Window(schedule="0 22 * * *", duration="6h")
EDITS: tuple[dict[str, Any], ...] = (
    {"paused": True}, {"paused": False}, {"max_unavailable": 2}, {"windows": (NIGHT,)}, {"windows": ()},
    {"blackouts": (NIGHT,)}, {"blackouts": ()}, {"canary": Canary(nodes=1, soak="1m")}, {"canary": None},
    {"approval": "Automatic"}, {"approval": "Manual"}, {"on_failure": "Rollback"}, {"max_failures": 8}, {"cost": "3.20"},
)  # fmt: skip


def edit(world: World, fields: dict[str, Any]) -> None:
    if "cost" not in fields:
        return rolled(world, **fields)
    (policy,) = world.policies
    assert policy.spec is not None
    spec = policy.spec.model_copy(update={"cost": Cost(gpu_hourly_price=fields["cost"])})
    return world.set_policy(replace(policy, spec=spec))


@pytest.mark.parametrize("edits", [(), EDITS], ids=["left alone", "edited"])
@pytest.mark.parametrize("begin", STATES.values(), ids=STATES)
def test_an_approved_plan_never_asks_again_when_it_was_approved(
    begin: Callable[[World], None], edits: tuple[dict[str, Any], ...]
) -> None:
    world = pool_of(3, FULL)
    for name in world.nodes:
        world.add_pod(name)
    begin(world)
    world.set_policy(WANTED)
    plan = world.plan()
    person_approves(world, "pool-b", plan)
    world.refusing = False
    for machine in world.machines.values():
        machine.temper = "works"
    approved, left = world.policies[0].approved, list(edits)

    def look(world: World, plan: RolloutPlan) -> bool:
        waits = [one for one in plan.verdicts.values() if one.reason is Reason.APPROVAL_NEEDED]
        assert not [one.message for one in waits if one.phase is not Phase.ABORTING]
        assert propose(plan.pools["pool-b"]).hash == approved != ""
        for name, verdict in plan.verdicts.items():
            if verdict.phase is Phase.FAILED:
                world.nodes[name] = replace(world.nodes[name], retry="again")
        if left and world.passes % 5 == 0:
            edit(world, left.pop(0))
            if world.passes % 2:
                world.restart()
            return True
        return bool(left)

    world.settle(people=look)
    assert shared(world) == list(world.nodes)
    world.add_node("n9")
    told = world.settle().verdicts["n9"]
    assert told.reason is Reason.APPROVAL_NEEDED
    assert not lacks(told.message, approved, "n9")


def test_a_person_who_approves_what_joined_lets_it_go_on() -> None:
    world = pool_of(2, FULL)
    world.set_policy(WANTED)
    person_approves(world, "pool-b", world.plan())
    run_until(world, Phase.RECONFIGURING, node=next(iter(sorted(world.nodes))), rounds=600)
    world.add_node("n9")
    world.settle(approving=True)
    assert len(shared(world)) == 3


def test_nothing_is_decided_from_the_generation_of_a_policy() -> None:
    world = pool_of(4, FULL)
    world.set_policy(lenient(WANTED, max_unavailable=2, canary=Canary(nodes=1, soak="1m")))
    person_approves(world, "pool-b", world.plan())
    for _ in range(120):
        snapshot = world.snapshot()
        later = replace(snapshot, policies=tuple(replace(one, generation=99) for one in snapshot.policies))
        one, other = plan_rollout(snapshot, world.now), plan_rollout(later, world.now)
        assert (one.verdicts, one.shared) == (other.verdicts, other.shared)
        pass_time(world, 1, seconds=5)
    assert shared(world) == list(world.nodes)
