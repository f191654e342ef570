"""Newcomers behind the start-up taint take no slot; what holds the other nodes of a pool holds them too."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import NOW, make_claim, make_fence, make_pod, make_policy, make_work
from tests.planning.newcomers import begun, fleet
from tests.planning.promises import approve
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.planning.pools.holds import propose
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.vocabulary.reasons import Reason

HOLDS: dict[str, tuple[dict[str, Any], Reason]] = {
    "closed windows": ({"windows": [{"schedule": "0 22 * * *", "duration": "6h"}]}, Reason.WINDOW_CLOSED),
    "a blackout": ({"blackouts": [{"schedule": "0 9 * * *", "duration": "6h"}]}, Reason.WINDOW_CLOSED),
    "a plan that nobody approved": ({"approval": "Manual"}, Reason.APPROVAL_NEEDED),
}


@pytest.mark.parametrize(("rollout", "reason"), HOLDS.values(), ids=HOLDS)
def test_newcomers_wait_like_all_others_for(rollout: dict[str, Any], reason: Reason) -> None:
    snapshot = fleet(served=1, new=1, **rollout)
    assert begun(snapshot) == []
    assert {one.reason for one in plan_rollout(snapshot, NOW).verdicts.values()} == {reason}


def hash_of(snapshot: Any) -> str:
    (pool,) = plan_rollout(snapshot, NOW).pools.values()
    return propose(pool).hash


def test_a_node_that_joins_behind_the_taint_needs_an_approval_of_its_own() -> None:
    before, after = (fleet(served=1, new=new, approval="Manual") for new in (0, 1))
    (policy,) = after.policies
    told = plan_rollout(replace(after, policies=(replace(policy, approved=hash_of(before)),)), NOW).verdicts
    assert {one.reason for one in told.values()} == {Reason.APPROVAL_NEEDED}
    assert begun(replace(after, policies=(replace(policy, approved=hash_of(after)),))) == ["NEW-0", "old-0"]


def test_its_approval_lasts_until_the_node_that_joined_is_proven_and_beyond() -> None:
    """Or its release would be another plan, and stop the others."""
    world = World()
    world.set_policy(make_policy(mode="TimeSlicing", rollout={"approval": "Manual"}))
    world.add_node("new", gated=True)
    world.settle()
    (policy,) = world.policies
    plan = world.plan()
    approved = propose(plan.pools["pool-b"]).hash
    approve(world, policy, plan)
    seen: set[str] = set()
    while not seen or world.nodes["new"].gate is not None:
        world.act("new")
        world.step()
        seen.add(propose(world.plan().pools["pool-b"]).hash)
        world.now += timedelta(seconds=1)
    world.settle()
    assert seen == {approved} == {propose(world.plan().pools["pool-b"]).hash}


def test_newcomers_may_be_canaries_and_do_not_start_beside_them() -> None:
    snapshot = fleet(served=2, new=2, maxUnavailable=3, canary={"nodes": 1, "soak": "30m"})
    assert len(begun(snapshot)) == 1
    waiting = [one for one in plan_rollout(snapshot, NOW).verdicts.values() if not one.actions]
    assert {one.reason for one in waiting} == {Reason.CANARY_SOAK}


def test_a_newcomer_that_fails_halts_the_policy_like_any_other() -> None:
    snapshot = fleet(served=1, new=1)
    fence = make_fence(
        "actuating",
        node_uid="uid-new-0",
        version=snapshot.policies[0].version,
        newcomer=True,
        failed_version=snapshot.policies[0].version,
    )
    nodes = {**snapshot.nodes, "new-0": replace(snapshot.nodes["new-0"], fence=fence, unschedulable=True)}
    told = plan_rollout(replace(snapshot, nodes=nodes, claims={"new-0": make_claim("uid-new-0")}), NOW).verdicts
    assert told["old-0"].reason is Reason.HALTED


def test_newcomers_start_beside_a_canary_that_is_too_large_and_nodes_in_service_do_not() -> None:
    snapshot = fleet(served=2, new=2, maxUnavailable=2, canary={"nodes": 5})
    assert begun(snapshot) == ["NEW-0", "NEW-1"]
    told = plan_rollout(snapshot, NOW).verdicts
    assert {told[name].reason for name in ("old-0", "old-1")} == {Reason.CANARY_TOO_LARGE}
    busy = replace(snapshot, work={**snapshot.work, "new-0": make_work(make_pod("llm"))})
    assert begun(busy) == ["NEW-1"], "one that turns out to have pods would be drained"
    assert plan_rollout(busy, NOW).verdicts["new-0"].reason is Reason.CANARY_TOO_LARGE
    unapproved = fleet(served=1, new=1, approval="Manual", canary={"nodes": 5})
    told = plan_rollout(unapproved, NOW).verdicts
    assert begun(unapproved) == []
    assert (told["old-0"].reason, told["new-0"].reason) == (Reason.CANARY_TOO_LARGE, Reason.APPROVAL_NEEDED)


def test_the_proof_of_a_newcomer_says_that_nobody_counted_on_it() -> None:
    world = World()
    world.set_policy(make_policy(mode="TimeSlicing"))
    world.add_node("new", gated=True)
    world.add_node("old")
    world.settle()
    proofs = {name: node.verified for name, node in world.nodes.items()}
    assert {name: proof is not None and proof.apart for name, proof in proofs.items()} == {
        "new": True, "old": False}  # fmt: skip
    world.nodes["new"] = replace(world.nodes["new"], labels={**world.nodes["new"].labels, names.LABEL_POLICY: ""})
    world.settle()
    again = world.nodes["new"].verified
    assert again is not None
    assert again.apart, "taking it over once more forgets nothing"
