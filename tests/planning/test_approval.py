"""Approval: what makes another plan of one, and how long a plan that was approved is so."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.build import ask_anew, make_fence, make_policy
from tests.planning.cases import FULL, make_case, make_member, pass_time, pool_of, run_until
from tests.planning.promises import approve
from tests.planning.test_holds import (
    LENIENT,
    OURS,
    PROVEN,
    first_of,
    pooled,
    rolled,
    rolling,
    shared,
)
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.pools.holds import find_hold, plan_hash
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.attempts import owed_for
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed, Assessment, Untargeted


def planned(name: str, **node: Any) -> Member:
    """A node that is to be changed, by its assessment."""
    case = make_case(make_policy())
    view = replace(case.node, **{"name": name, "uid": f"uid-{name}", **node})
    return make_member(view, Verdict(name, "pool-b", Phase.PENDING, Reason.PROGRESSING, ""), case)


def found_to_be(member: Member, assessment: Assessment) -> Member:
    """The node with another assessment."""
    assert member.case is not None
    return replace(member, case=replace(member.case, assessment=assessment))


def edited(rollout: Mapping[str, Any] | None = None, **spec: Any) -> PolicyView:
    """MANUAL after an edit."""
    return make_policy(generation=4, rollout={"approval": "Manual", **(rollout or {})}, **spec)


MANUAL = make_policy(generation=3, rollout={"approval": "Manual"})
TWO = [planned("n1"), planned("n2")]
CURRENT = plan_hash(MANUAL, TWO)


def test_without_an_approval_of_this_very_plan_nothing_starts() -> None:
    hold = find_hold(pooled(*TWO, approval="Manual"))
    assert hold is not None
    assert hold.reason is Reason.APPROVAL_NEEDED
    assert f"{names.ANNOTATION_APPROVE}={CURRENT}" in hold.message
    assert find_hold(pooled(*TWO, approval="Manual", policy=replace(MANUAL, approved=CURRENT))) is None
    assert find_hold(pooled(*TWO)) is None


def test_an_approval_of_an_old_plan_is_named() -> None:
    hold = find_hold(pooled(*TWO, approval="Manual", policy=replace(MANUAL, approved="0ldha5h")))
    assert hold is not None
    assert "0ldha5h is the hash of another plan" in hold.message
    long = find_hold(pooled(*TWO, approval="Manual", policy=replace(MANUAL, approved="x" * 5000)))
    assert long is not None
    assert len(long.message) < 500


OTHER_PLANS = {
    "an edit of what nodes become": (edited(mode="TimeSlicing"), TWO),
    "an edit of how the rollout goes": (edited({"maxUnavailable": 2}), TWO),
    "an edit of the canary": (edited({"canary": {"nodes": 1}}), TWO),
    "a pause": (edited({"paused": True}), TWO),
    "the same words again, after others": (edited(), TWO),
    "another policy of this name": (replace(MANUAL, uid="other"), TWO),
    "a node that joins": (MANUAL, [*TWO, planned("n3")]),
    "a node that leaves": (MANUAL, TWO[:1]),
    "another node of the same name": (MANUAL, [TWO[0], planned("n2", uid="again")]),
}


@pytest.mark.parametrize(("policy", "members"), OTHER_PLANS.values(), ids=OTHER_PLANS.keys())
def test_another_plan_has_another_hash(policy: PolicyView, members: list[Member]) -> None:
    assert plan_hash(policy, members) != CURRENT


BY_IT: dict[str, Any] = {**OURS, "planned": DisruptionClass.RESET}
PROGRESS = {
    "in flight, and its class has risen": {"fence": make_fence(**BY_IT, disruption=DisruptionClass.REBOOT)},
    "proven": {"verified": replace(PROVEN, **BY_IT)},
    "pods come and go": {},
}


def proven(name: str, planned_as: DisruptionClass, *, drifted: bool) -> Member:
    """A node on which MANUAL was proven; `drifted`: it needs a Reset again."""
    member = planned(name, verified=replace(PROVEN, **{**BY_IT, "planned": planned_as}))
    assert isinstance(member.assessment, Assessed)
    assert member.assessment.disruption is DisruptionClass.RESET
    return member if drifted else found_to_be(member, replace(member.assessment, mismatch=None))


def test_drift_that_would_disturb_more_than_was_approved_is_another_plan() -> None:
    restarted = DisruptionClass.PLUGIN_RESTART
    done = [proven("n1", restarted, drifted=False), TWO[1]]
    assert plan_hash(MANUAL, [proven("n1", restarted, drifted=True), TWO[1]]) != plan_hash(MANUAL, done)


def test_drift_that_disturbs_no_more_than_was_approved_is_covered() -> None:
    reset = DisruptionClass.RESET
    done = [proven("n1", reset, drifted=False), TWO[1]]
    assert plan_hash(MANUAL, [proven("n1", reset, drifted=True), TWO[1]]) == plan_hash(MANUAL, done)


@pytest.mark.parametrize("node", PROGRESS.values(), ids=PROGRESS.keys())
def test_progress_changes_no_hash(node: dict[str, Any]) -> None:
    assert TWO[0].verdict.disruption is DisruptionClass.NONE, "it is the assessment that counts"
    assert plan_hash(MANUAL, [planned("n1", **node), TWO[1]]) == CURRENT
    assert plan_hash(MANUAL, [TWO[1], planned("n1", **node)]) == CURRENT


def recorded(**more: Any) -> dict[str, dict[str, Any]]:
    """By what became of it: a node whose change was approved."""
    found = planned("n1").assessment
    assert isinstance(found, Assessed)
    target = found.target
    proof = replace(
        PROVEN,
        **{**BY_IT, **more},
        mig_config=target.mig_config,
        plugin_config=target.plugin_key,
        layout=target.text,
    )
    return {
        "is proven": {"verified": proof},
        "is in flight": {"fence": make_fence(**{**BY_IT, **more}, approved=owed_for(target))},
    }


UNREAD = Untargeted(MANUAL, Finding(Reason.AGENT_ERROR, "no GPU through NVML"), "", unobserved=True)


@pytest.mark.parametrize("node", recorded().values(), ids=recorded())
def test_the_approval_stays_when_nobody_can_read_a_node_any_more_that(node: dict[str, Any]) -> None:
    read = planned("n1", **node)
    assert plan_hash(MANUAL, [found_to_be(read, UNREAD), TWO[1]]) == CURRENT


@pytest.mark.parametrize(
    "node",
    [{}, *recorded(version=ask_anew(MANUAL).version).values(), {"fence": make_fence(**BY_IT)}],
    ids=["not begun", "proven before", "begun before", "begun without an approval"],
)
def test_a_node_that_nobody_can_read_is_in_no_plan_where_its_change_is(node: dict[str, Any]) -> None:
    unread = found_to_be(planned("n1", **node), UNREAD)
    assert plan_hash(MANUAL, [unread, TWO[1]]) == plan_hash(MANUAL, TWO[1:])


# --- whole ways -------------------------------------------------------------------------------------------------


def test_a_plan_starts_when_it_is_approved_and_stays_approved_until_it_is_done() -> None:
    world = rolling(3, maxUnavailable=1, approval="Manual")
    world.settle()
    assert {v.reason for v in world.plan().verdicts.values()} == {Reason.APPROVAL_NEEDED}
    members = world.plan().pools["pool-b"].members
    (policy,) = world.policies
    approve(world, policy, plan_hash(policy, members))
    world.settle()
    assert len(shared(world)) == 3


def test_a_spec_that_comes_back_after_another_one_needs_an_approval_of_its_own() -> None:
    """The annotation is still there, and nobody looked at what would happen now."""
    world = rolling(2, maxUnavailable=2, approval="Manual")
    (policy,) = world.policies
    words = policy.spec
    approve(world, policy, plan_hash(policy, world.plan().pools["pool-b"].members))
    world.settle()
    assert len(shared(world)) == 2
    world.set_policy(make_policy(mode="Full", drain=LENIENT))
    world.settle()
    rolled(world, approval="Manual")
    (policy,) = world.policies
    world.policies = (replace(policy, spec=words),)
    world.settle()
    waits = {(verdict.reason, verdict.observed) for verdict in world.plan().verdicts.values()}
    assert waits == {(Reason.APPROVAL_NEEDED, "1x full")}


def under_way() -> World:
    """One node that drains by a plan that a person approved; its pod does not leave."""
    world = pool_of(1, FULL)
    world.add_pod("n0")
    world.refusing = True
    world.set_policy(make_policy(mode="TimeSlicing", drain=LENIENT, rollout={"approval": "Manual"}))
    world.settle()
    (policy,) = world.policies
    approve(world, policy, plan_hash(policy, world.plan().pools["pool-b"].members))
    run_until(world, Phase.DRAINING, node="n0")
    return world


GOES_ON: dict[str, tuple[dict[str, Any], Reason]] = {
    "a pause": ({"paused": True}, Reason.PDB),
    "a pause that holds": ({"paused": True, "when_paused": "Hold"}, Reason.PAUSED),
    "another budget": ({"max_unavailable": 2}, Reason.PDB),
}


@pytest.mark.parametrize(("edit", "reason"), GOES_ON.values(), ids=GOES_ON.keys())
def test_an_edit_that_changes_no_target_leaves_what_was_approved_in_flight(
    edit: dict[str, Any], reason: Reason
) -> None:
    """`kubectl gpusharing pause` says that nodes in flight go on."""
    world = under_way()
    rolled(world, **edit)
    pass_time(world, 20)
    node = world.nodes["n0"]
    assert node.fence is not None, "the node was given back"
    assert (node.unschedulable, world.plan().verdicts["n0"].reason) == (True, reason)
    world.refusing = False
    rolled(world, paused=False)
    world.settle()
    assert shared(world) == ["n0"]


def test_an_approval_after_a_pause_outlasts_the_node_that_was_past_its_point_of_no_return() -> None:
    """What it was planned as is in every plan of this revision, before it is proven and after."""
    world = pool_of(3, FULL)
    rollout = {"approval": "Manual", "maxUnavailable": 1}
    world.set_policy(make_policy(mode="MIG", drain=LENIENT, rollout=rollout))
    pass_time(world, 15)
    (policy,) = world.policies
    approve(world, policy, plan_hash(policy, world.plan().pools["pool-b"].members))
    first = first_of(world)
    run_until(world, Phase.RECONFIGURING, node=first)
    world.agents_down = {first}
    pass_time(world, 5)
    rolled(world, paused=True)
    rolled(world, paused=False)
    pass_time(world, 1)
    (policy,) = world.policies
    approve(world, policy, plan_hash(policy, world.plan().pools["pool-b"].members))
    world.agents_down = set()
    world.settle()
    assert {verdict.phase for verdict in world.plan().verdicts.values()} == {Phase.SYNCED}


def test_an_approval_is_not_for_another_policy_of_the_same_name() -> None:
    """A policy that is deleted and created again begins at the same generation."""
    world = under_way()
    (policy,) = world.policies
    world.policies = (replace(policy, uid="uid-of-another", approved=""),)
    world.settle()
    node = world.nodes["n0"]
    assert (node.fence, node.unschedulable) == (None, False)
    assert world.plan().verdicts["n0"].reason is Reason.APPROVAL_NEEDED


def test_an_edit_of_the_target_gives_back_what_was_approved_before_it() -> None:
    world = under_way()
    world.set_policy(make_policy(mode="MPS", drain=LENIENT, rollout={"approval": "Manual"}))
    world.settle()
    node = world.nodes["n0"]
    assert (node.fence, node.unschedulable) == (None, False)
    assert world.plan().verdicts["n0"].reason is Reason.APPROVAL_NEEDED


def test_a_policy_that_asks_for_approvals_from_now_on_gives_back_what_nobody_approved() -> None:
    world = rolling(1)
    run_until(world, Phase.CORDONED, node="n0")
    world.step()
    rolled(world, approval="Manual")
    world.settle()
    assert world.nodes["n0"].fence is None
    assert world.plan().verdicts["n0"].reason is Reason.APPROVAL_NEEDED
