"""Approval: what makes another plan of one, and how long a plan that was approved is so."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.build import NOW, at, make_fence, make_node, make_policy
from tests.planning.cases import FULL, agreed, make_case, make_member, pass_time, pool_of, run_until
from tests.planning.habits import person_approves
from tests.planning.promises import approve
from tests.planning.recovery import lenient
from tests.planning.test_holds import LENIENT, PROVEN, first_of, hold_of, pooled, rolled, rolling, shared
from tests.planning.test_revision import OTHER, POLICY, SAME
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policy import Canary, Cost, Window
from gpusharing.planning.pools.holds import (
    DIGESTS_SHARE,
    Approvable,
    agree,
    count_failures,
    find_halt,
    find_hold,
    has_failed,
    propose,
    proven_at,
    with_records,
)
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.windows import ALWAYS
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.records import DIGEST, Consent, Deferred, FailedNode, Verified
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
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed, Assessment, Untargeted


def planned(name: str, **node: Any) -> Member:
    case = make_case(make_policy())
    view = replace(case.node, **{"name": name, "uid": f"uid-{name}", **node})
    return make_member(view, Verdict(name, "pool-b", Phase.PENDING, Reason.PROGRESSING, ""), case)


def found_to_be(member: Member, assessment: Assessment) -> Member:
    return replace(member, case=replace(member.case, assessment=assessment))


def edited(rollout: Mapping[str, Any] | None = None, **spec: Any) -> PolicyView:
    return make_policy(generation=4, rollout={"approval": "Manual", **(rollout or {})}, **spec)


MANUAL = make_policy(generation=3, rollout={"approval": "Manual"})
TWO = [planned("n1"), planned("n2")]


def plan_of(members: Sequence[Member], policy: PolicyView = MANUAL, consent: Consent | None = None) -> Approvable:
    return propose(Pool(policy, members=list(members), consent=consent))


def approved(members: Sequence[Member], policy: PolicyView = MANUAL) -> tuple[PolicyView, Consent]:
    said = replace(policy, approved=plan_of(members, policy).hash)
    return said, agreed(Pool(said, members=list(members)))


CURRENT = plan_of(TWO).hash
SAID, CONSENT = approved(TWO)


def test_without_an_approval_of_this_very_plan_nothing_starts() -> None:
    hold = hold_of(pooled(*TWO, approval="Manual"))
    assert hold.reason is Reason.APPROVAL_NEEDED
    assert f"{names.ANNOTATION_APPROVE}={CURRENT}" in hold.message
    assert find_hold(pooled(*TWO, approval="Manual", policy=SAID)) is None
    assert find_hold(pooled(*TWO)) is None


def test_an_approval_of_an_old_plan_is_named() -> None:
    hold = hold_of(pooled(*TWO, approval="Manual", policy=replace(MANUAL, approved="0ldha5h")))
    assert "0ldha5h is the hash of another plan" in hold.message
    long = hold_of(pooled(*TWO, approval="Manual", policy=replace(MANUAL, approved="x" * 5000)))
    assert len(long.message) < 500


@pytest.mark.parametrize(
    ("policy", "members"),
    [
        (edited(mode="TimeSlicing"), TWO),
        (replace(MANUAL, uid="other"), TWO),
        (MANUAL, [*TWO, planned("n3")]),
        (MANUAL, TWO[:1]),
        (MANUAL, [TWO[0], planned("n2", uid="again")]),
    ],
    ids=["another revision", "another policy", "a node joins", "a node leaves", "another node of the same name"],
)
def test_another_plan_has_another_hash(policy: PolicyView, members: list[Member]) -> None:
    assert plan_of(members, policy).hash != CURRENT


def reassessed(name: str, **assessment: Any) -> Member:
    member = planned(name)
    assert isinstance(member.assessment, Assessed)
    return found_to_be(member, replace(member.assessment, **assessment))


FOUND = planned("n1").assessment
assert isinstance(FOUND, Assessed)
assert FOUND.disruption is DisruptionClass.RESET
BY_IT: dict[str, Any] = {"version": MANUAL.version, "planned": DisruptionClass.RESET}
UNREAD = Untargeted(MANUAL, Finding(Reason.AGENT_ERROR, "no GPU through NVML"), "", unobserved=True)
COVERED: dict[str, Sequence[Member]] = {
    "nothing changes": TWO,
    "a node leaves": TWO[1:],
    "a node is in flight, and its class has risen": [
        planned("n1", fence=make_fence(**BY_IT, disruption=DisruptionClass.REBOOT)), TWO[1]],
    "a node that is in flight joins from another policy": [*TWO, planned("n3", fence=make_fence(**BY_IT))],
    "a node is given up and waits": [planned("n1", deferred=Deferred(2, NOW, "PDB", MANUAL.version)), TWO[1]],
    "a node went back": [planned("n1", verified=replace(PROVEN, **BY_IT, rolled_back=True)), TWO[1]],
    "a node is proven": [reassessed("n1", mismatch=None), TWO[1]],
    "a node needs less than was approved": [reassessed("n1", disruption=DisruptionClass.GPU_PODS), TWO[1]],
    "a node cannot be read": [found_to_be(TWO[0], UNREAD), TWO[1]],
    "a node that joins has what it needs": [*TWO, reassessed("n3", mismatch=None)],
}  # fmt: skip


@pytest.mark.parametrize("members", COVERED.values(), ids=COVERED)
def test_an_approval_covers_the_plan_and_keeps_its_hash_when(members: Sequence[Member]) -> None:
    plan = plan_of(members, SAID, CONSENT)
    assert (plan.hash, plan.approved, plan.differs) == (CURRENT, True, ())


BEYOND: dict[str, tuple[Sequence[Member], PolicyView, str]] = {
    "a node joins": ([*TWO, planned("n3")], SAID, "n3 was not in it"),
    "nodes join": ([planned(f"n{number}") for number in range(1, 8)], SAID, "n3, n4, n5 and 2 more were not in it"),
    "another node comes under a name": ([planned("n1", uid="again"), TWO[1]], SAID, "n1 was not in it"),
    "a graver class": (
        [reassessed("n1", disruption=DisruptionClass.REBOOT), TWO[1]], SAID, "n1 needs Reboot instead of Reset"),
    "another layout": (
        [reassessed("n1", target=replace(FOUND.target, mig_config="other")), TWO[1]], SAID,
        f"n1 would get another layout, {FOUND.target.text}"),
    "another revision": (
        TWO, replace(edited(mode="TimeSlicing"), approved=CURRENT), "the policy asks for something else, revision "),
}  # fmt: skip


@pytest.mark.parametrize(("members", "policy", "told"), BEYOND.values(), ids=BEYOND)
def test_what_goes_beyond_an_approval_is_named_and_needs_another(
    members: Sequence[Member], policy: PolicyView, told: str
) -> None:
    pool = Pool(policy, members=list(members), hours=ALWAYS, now=NOW)
    pool.consent = agree(replace(pool, consent=CONSENT))
    hold = hold_of(pool)
    assert hold.reason is Reason.APPROVAL_NEEDED
    assert not lacks(hold.message, CURRENT, told)
    shown = hold.message.rpartition("=")[2]
    assert shown == propose(pool).hash != CURRENT
    pool.policy = replace(policy, approved=shown)
    pool.consent = agree(replace(pool, consent=CONSENT))
    assert find_hold(pool) is None


def test_what_has_joined_may_leave_again_and_the_approval_stands() -> None:
    consent = agree(Pool(SAID, members=[*TWO, planned("n3")], consent=CONSENT))
    assert consent == CONSENT
    assert plan_of(TWO, SAID, consent).approved


def test_an_approval_of_an_earlier_revision_does_not_come_back_with_it() -> None:
    other = replace(edited(mode="TimeSlicing"), approved=CURRENT)
    plan = plan_of(TWO, SAID, agreed(Pool(other, members=TWO, consent=CONSENT)))
    assert not plan.approved
    assert plan.hash != CURRENT


def test_an_approval_of_many_nodes_lasts_until_they_are_done_and_covers_no_other_node_and_no_graver_class() -> None:
    many = [planned(f"n{number}") for number in range(6000)]
    said, consent = approved(many)
    proven = [reassessed(f"n{number}", mismatch=None) for number in range(3000)]
    assert plan_of(proven + many[3000:], said, consent).approved
    assert not plan_of([*many, planned("later")], said, consent).approved
    assert not plan_of([reassessed("n0", disruption=DisruptionClass.REBOOT), *many[1:]], said, consent).approved


def recorded(
    *pools: Pool, room: int, consents: Mapping[str, Consent] | None = None
) -> tuple[dict[str, Pool], dict[str, Consent]]:
    """The pools and consents after a pass with so many characters of the Lease for approvals."""
    snapshot = replace(World().snapshot(), lease_room=room * DIGESTS_SHARE, consents=consents or {})
    found, _, after = with_records({pool.policy.name: pool for pool in pools}, snapshot)
    return found, after


def test_a_plan_that_the_lease_has_no_room_for_is_not_accepted_and_starts_no_node() -> None:
    pool = pooled(*TWO, approval="Manual", policy=SAID)
    found, after = recorded(pool, room=2 * DIGEST - 1)
    assert after == {}
    hold = hold_of(found["pool-b"])
    assert hold.reason is Reason.APPROVAL_TOO_LARGE
    assert not lacks(hold.message, "the plan has 2 nodes", "an approval of 1 more")
    found, after = recorded(pool, room=2 * DIGEST)
    assert (find_hold(found["pool-b"]), after) == (None, {SAID.uid: CONSENT})


def test_an_approval_whose_nodes_are_done_makes_room_for_another_and_one_under_way_does_not() -> None:
    other = replace(MANUAL, name="pool-a", uid="uid-a")
    plan = plan_of(TWO, other)
    new = Pool(replace(other, approved=plan.hash), members=TWO)
    known, room = {SAID.uid: CONSENT}, 3 * DIGEST
    done = [reassessed("n1", mismatch=None), reassessed("n2", mismatch=None)]
    _, after = recorded(new, Pool(SAID, members=done), room=room, consents=known)
    assert after["uid-a"].changes == plan.changes
    assert after[SAID.uid] == replace(CONSENT, changes=())
    found, after = recorded(new, Pool(SAID, members=TWO), room=room, consents=known)
    assert after == known
    assert found["pool-a"].oversize is not None


# --- whole ways -------------------------------------------------------------------------------------------------


def test_a_plan_starts_when_it_is_approved_and_stays_approved_until_it_is_done() -> None:
    world = rolling(3, maxUnavailable=1, approval="Manual")
    world.settle()
    assert {v.reason for v in world.plan().verdicts.values()} == {Reason.APPROVAL_NEEDED}
    (policy,) = world.policies
    approve(world, policy, world.plan())
    world.settle()
    assert len(shared(world)) == 3


def test_a_spec_that_comes_back_after_another_one_needs_an_approval_of_its_own() -> None:
    """The annotation is still there, and nobody looked at what would happen now."""
    world = rolling(2, maxUnavailable=2, approval="Manual")
    (policy,) = world.policies
    words = policy.spec
    approve(world, policy, world.plan())
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
    approve(world, policy, world.plan())
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
    world = pool_of(3, FULL)
    rollout = {"approval": "Manual", "maxUnavailable": 1}
    world.set_policy(make_policy(mode="MIG", drain=LENIENT, rollout=rollout))
    pass_time(world, 15)
    (policy,) = world.policies
    approve(world, policy, world.plan())
    first = first_of(world)
    run_until(world, Phase.RECONFIGURING, node=first)
    world.agents_down = {first}
    pass_time(world, 5)
    rolled(world, paused=True)
    rolled(world, paused=False)
    pass_time(world, 1)
    (policy,) = world.policies
    approve(world, policy, world.plan())
    world.agents_down = set()
    world.settle()
    assert {verdict.phase for verdict in world.plan().verdicts.values()} == {Phase.SYNCED}


def another_of_the_name(world: World) -> None:
    (policy,) = world.policies
    world.policies = (replace(policy, uid="uid-of-another", approved=""),)


def another_target(world: World) -> None:
    world.set_policy(make_policy(mode="MPS", drain=LENIENT, rollout={"approval": "Manual"}))


@pytest.mark.parametrize("become", [another_of_the_name, another_target])
def test_what_was_approved_is_given_back_when_the_policy_becomes(become: Callable[[World], None]) -> None:
    world = under_way()
    become(world)
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


# --- what is remembered is about the revision: no other edit ends it, and another one ends all of it ------------------

VERSION = POLICY.version
PROVED = Verified("pool-b", "x", "y", layout="1x full", gpus=1, version=VERSION, changed_at=NOW, took=60)
DEFERRED = Deferred(1, at(600), "DrainTimeout", VERSION, failed_version=VERSION)
FAILED = make_node("n1", fence=make_fence("actuating", version=VERSION, failed=NOW))


MANUALLY = lenient(POLICY, approval="Manual")
APPROVED = replace(MANUALLY, approved=propose(Pool(MANUALLY, members=TWO)).hash)
AGREED = agreed(Pool(APPROVED, members=TWO))


def as_member(node: NodeView) -> Member:
    return make_member(node, Verdict(node.name, "pool-b", Phase.FAILED, Reason.PROGRESSING, ""))


def halted(policy: PolicyView) -> bool:
    return find_halt(Pool(lenient(policy, max_failures=1), members=[as_member(FAILED)])) is not None


def node(policy: PolicyView, **records: Any) -> Any:
    return make_case(policy, node=records)


KINDS: dict[str, Callable[[PolicyView], object]] = {
    "a halt": halted,
    "a failure on the node": lambda policy: has_failed(as_member(FAILED), policy),
    "a failure on record": lambda policy: any(count_failures(Pool(policy), {"uid-gone": FailedNode("gone", VERSION)})),
    "an earlier failure": lambda policy: failed_before(make_node(deferred=DEFERRED), policy),
    "a way back": lambda policy: was_rolled_back(make_node(verified=replace(PROVED, rolled_back=True)), policy),
    "an approval": lambda policy: (
        propose(Pool(replace(policy, approved=AGREED.approved), members=TWO, consent=AGREED)).approved
    ),
    "a retry": lambda policy: is_tried_again(make_node(deferred=DEFERRED), policy),
    "a canary": lambda policy: proven_at(make_node(verified=PROVED), policy),
    "a deferral": lambda policy: standing_deferral(node(policy, deferred=DEFERRED), policy),
    "a correction of drift": lambda policy: was_corrected(
        node(policy, verified=replace(PROVED, corrected_revision=VERSION.revision)), policy
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
