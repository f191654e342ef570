"""Canaries that no longer serve what was proven on them, or are never proven, keep the others waiting (pools/holds.py)."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.build import NOW, at, make_node, make_policy
from tests.planning.cases import FULL, make_member, pass_time, pool_of
from tests.planning.machines import patched
from tests.planning.test_holds import ACTUATING, MANY, POOL, PROVEN, first_of, member, pooled, proven, rolling, shared
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.times import NEVER
from gpusharing.planning.pools.holds import find_canary, find_hold, wait_for_canaries
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.report.transition import who_ends, who_keeps
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason

SERVED: dict[str, Any] = {"verified": PROVEN}
BROKEN: dict[str, tuple[Member, str]] = {
    "is not Ready": (member("n9", Phase.SYNCED, ready=False, **SERVED), "it is not Ready"),
    "is cordoned": (member("n9", Phase.SYNCED, unschedulable=True, **SERVED), "it is cordoned"),
    "is being deleted": (member("n9", Phase.SYNCED, deleting=True, **SERVED), "its Node is being deleted"),
    "has an unhealthy GPU": (
        make_member(
            make_node("n9", **SERVED), Verdict("n9", "pool-b", Phase.SYNCED, Reason.GPU_UNHEALTHY, "")
        ),
        "GPUUnhealthy"),
    "has lost a GPU": (
        make_member(make_node("n9", **SERVED), Verdict("n9", "pool-b", Phase.BLOCKED, Reason.GPU_MISSING, "")),
        "GPUMissing"),
    "is being put right": (member("n9", Phase.DRAINING, fence=ACTUATING, **SERVED), "it is being changed"),
    "could not be put right": (member("n9", Phase.FAILED, fence=ACTUATING, **SERVED), "it has failed"),
    "could not be put right, and is cordoned and not Ready": (
        member("n9", Phase.FAILED, fence=ACTUATING, ready=False, unschedulable=True, **SERVED), "it has failed"),
    "is being put right, and is cordoned": (
        member("n9", Phase.DRAINING, fence=ACTUATING, unschedulable=True, **SERVED), "it is being changed"),
    "is being deleted, and is not Ready": (
        member("n9", Phase.SYNCED, deleting=True, ready=False, **SERVED), "its Node is being deleted"),
    "is not Ready, and is cordoned": (
        member("n9", Phase.SYNCED, ready=False, unschedulable=True, **SERVED), "it is not Ready"),
}  # fmt: skip


@pytest.mark.parametrize("seconds", [60, 700], ids=["while it soaks", "after its soak"])
@pytest.mark.parametrize(("canary", "why"), BROKEN.values(), ids=BROKEN)
def test_the_others_do_not_start_while_a_canary(canary: Member, why: str, seconds: float) -> None:
    one = {"nodes": 1, "soak": "10m"}
    assert find_hold(pooled(*MANY, proven("n9"), canary=one, seconds=700)) is None
    hold = find_hold(pooled(*MANY, canary, canary=one, maxFailures=2, seconds=seconds))
    assert hold is not None
    assert (hold.reason, hold.keeper) == (Reason.CANARY_NOT_SERVING, "node/n9")
    assert not lacks(hold.message, "n9", "spec.rollout.canary", why)
    assert hold.reason.waiting_phase is Phase.BLOCKED


OTHERS: dict[str, tuple[Member, bool]] = {
    "began before the soak was over": (member("n8", Phase.DRAINING, fence=replace(ACTUATING, since=at(599))), True),
    "was proven before the soak was over": (proven("n8", 300), True),
    "has begun since": (member("n8", Phase.DRAINING, fence=replace(ACTUATING, since=at(600))), False),
    "was proven since": (proven("n8", 650), False),
    "failed since and went back": (
        member("n8", verified=replace(PROVEN, changed_at=at(650), rolled_back=True)), True),
}  # fmt: skip


@pytest.mark.parametrize(("other", "waits"), OTHERS.values(), ids=OTHERS)
def test_a_canary_that_breaks_keeps_the_others_waiting_unless_one_of_them(other: Member, waits: bool) -> None:
    broken = member("n9", Phase.SYNCED, ready=False, **SERVED)
    hold = find_hold(pooled(*MANY, broken, other, canary={"nodes": 1, "soak": "10m"}, seconds=700))
    assert (hold is not None and hold.reason is Reason.CANARY_NOT_SERVING) is waits


def test_a_canary_that_is_gone_is_followed_by_the_next_one_and_a_deletion_waits_for_none() -> None:
    assert find_canary(pooled(*MANY, canary={"nodes": 1})) == 1
    resetting = replace(POOL, resetting=True)
    served = replace(PROVEN, version=resetting.version)
    broken = member("n9", Phase.SYNCED, ready=False, verified=served)
    assert find_canary(pooled(*MANY, broken, policy=resetting, canary={"nodes": 1}, seconds=7200)) is None


def test_a_canary_that_has_drifted_is_put_right_and_serves_anew_before_the_others_start() -> None:
    world = rolling(4, canary={"nodes": 1, "soak": "30m"})
    first = first_of(world)
    while not shared(world):
        pass_time(world, 1)
    before = world.nodes[first].verified
    assert before is not None
    assert before.changed_at is not None
    world.nodes[first] = patched(world.nodes[first], {names.LABEL_PLUGIN_CONFIG: None})
    pass_time(world, 600)
    after = world.nodes[first].verified
    assert after is not None
    assert after.changed_at is not None
    assert after.changed_at > before.changed_at, "its own repair waits for nothing"
    assert shared(world) == [first], "another node changed beside a canary that was being put right"
    world.settle()
    assert len(shared(world)) == 4
    last = [node.verified.changed_at for node in world.nodes.values() if node.verified is not None]
    assert sum(at is not None and at > after.changed_at + timedelta(minutes=30) for at in last) == 3


# --- canaries that are never proven ---------------------------------------------------------------------------------


def begun(phase: Phase, reason: Reason = Reason.PROGRESSING, *, deadline: datetime | None = None) -> Member:
    node = make_node("n9", fence=ACTUATING, unschedulable=True)
    return make_member(node, Verdict("n9", "pool-b", phase, reason, "", deadline=deadline))


UNPROVEN: dict[str, tuple[Member, str, str, bool]] = {
    "is changing": (begun(Phase.RECONFIGURING, deadline=at(60)), "", "", False),
    "drains": (begun(Phase.DRAINING, deadline=at(60)), "", "", False),
    "has failed": (begun(Phase.FAILED), " (n9 has failed)", "node/n9", True),
    "is held past its time": (
        begun(Phase.DRAINING, Reason.DRAIN_HELD), " (the change on n9 is on hold)", "node/n9", True),
    "waits for jobs that may run for ever": (
        begun(Phase.WAITING_FOR_JOBS, deadline=NEVER), " (the change on n9 is on hold)", "node/n9", False),
}  # fmt: skip


@pytest.mark.parametrize("nodes", [1, 2], ids=["the whole canary", "one of two"])
@pytest.mark.parametrize(("canary", "why", "keeper", "stands"), UNPROVEN.values(), ids=UNPROVEN)
def test_the_others_name_a_canary_that_no_clock_ends_and_say_who_does_where_it(
    canary: Member, why: str, keeper: str, stands: bool, nodes: int
) -> None:
    """Not the one that is changing: each waiting node would be written again whenever one begins."""
    told = pooled(*MANY, canary, maxFailures=2, canary={"nodes": nodes})
    found = find_hold(told) if nodes == 1 else wait_for_canaries(told)
    assert found is not None
    assert (found.reason, found.keeper, found.stands) == (Reason.CANARY_SOAK, keeper, stands)
    assert not lacks(
        found.message,
        "spec.rollout.canary",
        f"canary of {nodes} node{'s'[: nodes - 1]}",
        "to be proven" if nodes == 1 else "before this node",
    )


@pytest.mark.parametrize("nodes", [1, 2])
def test_behind_a_canary_whose_drain_is_held_every_node_waits_for_a_person_and_names_it(nodes: int) -> None:
    world = pool_of(4, FULL)
    for name in world.nodes:
        assert world.add_pod(name)
    world.refusing = True
    rollout = {"maxUnavailable": 3, "canary": {"nodes": nodes, "soak": "10m"}}
    world.set_policy(
        make_policy(mode="TimeSlicing", drain={"onTimeout": "Hold", "strandedPods": "Allow"}, rollout=rollout)
    )
    pass_time(world, 100, seconds=15)
    plan = world.plan()
    held = [name for name, one in plan.verdicts.items() if one.reason is Reason.DRAIN_HELD]
    assert len(held) == nodes
    others = {
        (one.reason, who_keeps(one, world.nodes[name]), who_ends(one))
        for name, one in plan.verdicts.items()
        if name not in held
    }
    assert others == {(Reason.CANARY_SOAK, f"node/{min(held)}", "Person")}
    (policy,) = world.policies
    told = policy_status(policy, plan, world.snapshot(), {}, NOW)["conditions"]
    assert {one["type"]: one["status"] for one in told}["Stalled"] == "True"
