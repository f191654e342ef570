"""Which claims without a fence stay, and who keeps a slot of the budget until somebody acts."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.build import (
    NOW,
    at,
    make_claim,
    make_fence,
    make_gpunode,
    make_node,
    make_pod,
    make_policy,
    make_snapshot,
    make_stack,
    make_work,
)
from tests.planning.cases import make_case, make_member, pool_of, proof_of
from tests.planning.test_pool import OFFERED, candidate, unlisted_of, with_waits
from tests.planning.told import verdict
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.api.times import NEVER
from gpusharing.planning.pools.candidates import PassState
from gpusharing.planning.pools.choice import select
from gpusharing.planning.pools.holds import find_capped
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.writes import find_resumed, plan_finalizers
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.actions import EnsureGPUNode, FenceNode, SetClaims, SetFinalizer
from gpusharing.planning.snapshot.memory import DRIFTS, PassMemory
from gpusharing.planning.snapshot.records import Deferred
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Blocker
from gpusharing.planning.vocabulary.reasons import Reason

POLICY = make_policy(finalizer=True)
CLAIMS = {"gpu-07": make_claim()}
JUST_WRITTEN = at(-119)
"""The kubelet may need one second more."""


def left_by_a_crash(policy: PolicyView = POLICY, **fields: Any) -> ClusterSnapshot:
    """gpu-07 is claimed and not fenced, and its configuration has a second to go."""
    stack = make_stack(policy, written_at=JUST_WRITTEN)
    known = {"nodes": [make_node()], "stack": stack, "claims": CLAIMS}
    return make_snapshot(policies=[policy], **{**known, **fields})


def shared(plan: RolloutPlan) -> dict[type, Any]:
    """What the plan does with claims and finalizers, by kind of action."""
    return {type(action): action for action in plan.shared}


def fenced(plan: RolloutPlan) -> list[str]:
    starts = [action for verdict in plan.verdicts.values() for action in verdict.actions]
    return [action.node.name for action in starts if isinstance(action, FenceNode)]


MOMENTS = {
    "for its configuration": (left_by_a_crash(), Reason.CONFIG_PROPAGATING),
    "after a try that was given up": (
        left_by_a_crash(nodes=[make_node(deferred=Deferred(1, at(1), "DrainTimeout", POLICY.version))]),
        Reason.DEFERRED,
    ),
    "for drift that it sees for the first time": (
        left_by_a_crash(stack=make_stack(POLICY), nodes=[make_node(verified=proof_of(POLICY))]),
        Reason.DRIFTED,
    ),
}


@pytest.mark.parametrize(("snapshot", "reason"), MOMENTS.values(), ids=MOMENTS.keys())
def test_a_claimed_node_that_waits_a_moment_keeps_its_claim_and_the_finalizer(
    snapshot: ClusterSnapshot, reason: Reason
) -> None:
    plan = plan_rollout(snapshot, NOW)
    assert plan.verdicts["gpu-07"].reason is reason
    assert plan.shared == ()


def test_after_that_moment_its_change_begins() -> None:
    plan = plan_rollout(left_by_a_crash(work={"gpu-07": make_work()}), at(2))
    assert fenced(plan) == ["gpu-07"]
    assert shared(plan).keys() == {SetClaims}, "of this try; the finalizer is there"


GIVEN_BACK = {
    "it waits for an agent, who knows how long": left_by_a_crash(agents=[]),
    "it waits for an answer that may never come": left_by_a_crash(gpunodes=[make_gpunode(quiet=True)]),
    "its configuration was written anew meanwhile": left_by_a_crash(stack=make_stack(POLICY, written_at=at(-5))),
    "it waits for long": left_by_a_crash(nodes=[make_node(deferred=Deferred(2, at(3600), "PDB", POLICY.version))]),
    "its policy was paused meanwhile": left_by_a_crash(make_policy(finalizer=True, rollout={"paused": True})),
    "the node is another one of that name": left_by_a_crash(claims={"gpu-07": make_claim("uid-before")}),
    "its policy is being deleted": left_by_a_crash(replace(POLICY, deleting=True)),
    "another policy owns it now": left_by_a_crash(claims={"gpu-07": make_claim(policy="pool-old")}),
}


@pytest.mark.parametrize("snapshot", GIVEN_BACK.values(), ids=GIVEN_BACK.keys())
def test_a_claim_without_a_fence_is_given_back_where(snapshot: ClusterSnapshot) -> None:
    done = shared(plan_rollout(snapshot, NOW))
    assert done[SetClaims].claims == {}
    assert done[SetFinalizer] == SetFinalizer("pool-b", present=False, uid="uid-pool-b")


def test_the_claim_of_a_node_that_is_gone_does_not_stay() -> None:
    assert find_resumed(CLAIMS, {}, {}, NOW) == {}


@pytest.mark.parametrize("stage", ["fenced", "actuating"])
@pytest.mark.parametrize("age", [timedelta(hours=1), timedelta(days=400)], ids=["an hour", "a year"])
def test_a_claim_with_a_fence_stays_however_old_it_is(age: timedelta, stage: Any) -> None:
    fence = make_fence(stage, since=NOW - age, failed=NOW - age if stage == "actuating" else None)
    claimed = replace(make_claim(), version=fence.version)
    hold = make_policy(finalizer=True, drain={"onTimeout": "Hold"})
    nodes = [make_node(fence=fence, unschedulable=True), make_node("gpu-08")]
    work = {"gpu-07": make_work(make_pod(owner=None)), "gpu-08": make_work()}
    snapshot = make_snapshot(nodes, [hold], claims={"gpu-07": claimed}, work=work)
    plan = plan_rollout(snapshot, NOW)
    kept = shared(plan)[SetClaims].claims if SetClaims in shared(plan) else snapshot.claims
    assert {name for name, claim in kept.items() if claim.policy == "pool-b"} == {"gpu-07"}
    assert fenced(plan) == [], "its slot is not another one's"


@pytest.mark.parametrize(("cap", "starts"), [(1, False), (2, True)])
def test_a_claim_that_stays_counts_in_the_operator_wide_cap(cap: int, starts: bool) -> None:
    pool = {"gpusharing.dev/pool": "a"}
    ready = make_policy("pool-a", "TimeSlicing", nodeSelector={"matchLabels": pool})
    stack = make_stack(POLICY, ready)
    stack = replace(stack, written={key: JUST_WRITTEN if "pool-b" in key else at(-600) for key in stack.written})
    nodes = [make_node(), make_node("gpu-01", labels=pool)]
    snapshot = make_snapshot(nodes, [POLICY, ready], stack=stack, claims=CLAIMS, work={"gpu-01": make_work()})
    settings = replace(snapshot.settings, max_in_flight=cap)
    plan = plan_rollout(replace(snapshot, settings=settings), NOW)
    assert plan.verdicts["gpu-07"].reason is Reason.CONFIG_PROPAGATING
    assert fenced(plan) == ["gpu-01"] * starts


def test_the_slot_of_a_change_that_has_just_ended_in_proof_is_free_at_once() -> None:
    world = pool_of(2)
    claims = {"n0": make_claim(world.nodes["n0"].uid)}
    before = replace(world.snapshot(), claims=claims)
    plan = plan_rollout(before, world.now)
    assert (plan.verdicts["n0"].phase, plan.pools["pool-b"].used) == (Phase.SYNCED, 0)
    assert shared(plan)[SetClaims].claims == {}
    unproven = replace(before.nodes["n0"], verified=None)
    agentless = replace(before, agents=frozenset({"n1"}), nodes={**before.nodes, "n0": unproven})
    waits = plan_rollout(agentless, world.now)
    assert (waits.verdicts["n0"].phase, waits.pools["pool-b"].used) == (Phase.BLOCKED, 1), "it is not proven"


def drifting(memory: PassMemory) -> dict[str, datetime]:
    return {name: seen[DRIFTS] for name, seen in memory.seen_since.items() if DRIFTS in seen}


def test_a_node_in_the_middle_of_a_change_does_not_drift_nor_does_one_that_is_not_ready() -> None:
    """The former differs from its target because of us; counted from now, it would have drifted when it is given back."""
    fence = make_fence("actuating", target_mig_config="", target_plugin_config="")
    nodes = [make_node(), make_node("gpu-08", fence=fence), make_node("gpu-09", ready=False)]
    snapshot = make_snapshot(nodes, [POLICY])
    plan = plan_rollout(snapshot, NOW)
    assert plan.verdicts["gpu-08"].phase.in_flight
    assert drifting(plan.memory).keys() == {"gpu-07"}


def test_since_when_a_node_differs_is_remembered_until_it_does_not() -> None:
    snapshot, seen = make_snapshot([make_node(), make_node("gpu-08")], [POLICY]), []
    for seconds, nodes in ((0, {"gpu-07"}), (5, {"gpu-07", "gpu-08"}), (9, {"gpu-08"})):
        there = replace(snapshot, nodes={name: snapshot.nodes[name] for name in nodes})
        snapshot = replace(snapshot, memory=plan_rollout(there, at(seconds)).memory)
        seen.append(drifting(snapshot.memory))
    assert seen == [{"gpu-07": at(0)}, {"gpu-07": at(0), "gpu-08": at(5)}, {"gpu-08": at(5)}]


@pytest.mark.parametrize("gpus", [(), None], ids=["it knows no GPU", "it has read the GPUs before"])
def test_the_grace_of_drift_does_not_begin_while_the_agent_cannot_read(gpus: tuple[()] | None) -> None:
    """After a reboot the driver is built for minutes, and only then mig-manager divides the GPUs again."""
    unread, read = make_gpunode(gpus=gpus, error="NVMLFailed"), make_gpunode()
    snapshot = make_snapshot([make_node()], [POLICY], gpunodes=[unread])
    memory = plan_rollout(snapshot, NOW).memory
    assert drifting(memory) == {}
    later = replace(snapshot, gpunodes={read.name: read}, memory=memory)
    assert drifting(plan_rollout(later, at(300)).memory) == {"gpu-07": at(300)}


@pytest.mark.parametrize("claimed", ["gpu-07", "gpu-08", "gpu-09"])
def test_the_slot_that_a_crash_left_is_used_by_the_node_that_holds_it(claimed: str) -> None:
    names = ("gpu-07", "gpu-08", "gpu-09")
    claims = {claimed: make_claim(f"uid-{claimed}")}
    work = {name: make_work() for name in names}
    plan = plan_rollout(make_snapshot(map(make_node, names), [POLICY], claims=claims, work=work), NOW)
    assert fenced(plan) == [claimed]


def test_where_the_operator_wide_cap_leaves_one_slot_the_first_policy_by_name_takes_it() -> None:
    labels = {"gpusharing.dev/pool": "a"}
    first = make_policy("pool-a", "TimeSlicing", nodeSelector={"matchLabels": labels})
    nodes = [make_node("gpu-01"), make_node("gpu-02", labels=labels)]
    snapshot = make_snapshot(nodes, [POLICY, first], work={"gpu-01": make_work(), "gpu-02": make_work()})
    assert fenced(plan_rollout(snapshot, NOW)) == ["gpu-01", "gpu-02"]
    capped = replace(snapshot, settings=replace(snapshot.settings, max_in_flight=1))
    assert fenced(plan_rollout(capped, NOW)) == ["gpu-02"]


def test_a_node_that_waits_for_a_slot_has_its_agent_asked_all_the_same() -> None:
    """The agent still reads, and was told to stop: who waits for long must not wait blind."""
    told_to_stop = make_gpunode(request_id="op-0", quiet=True, quiet_echoed=False)
    frozen = make_policy(rollout={"maxUnavailable": 0})
    verdict = plan_rollout(make_snapshot([make_node()], [frozen], gpunodes=[told_to_stop]), NOW).verdicts["gpu-07"]
    assert verdict.reason is Reason.FROZEN
    assert verdict.actions == (EnsureGPUNode("gpu-07", "uid-gpu-07", "op-0:resume", quiet=False),)


# --- the finalizer ---------------------------------------------------------------------------------------------------

BARE, LEAVING = make_policy(), make_policy(deleting=True, finalizer=True)
MOVING = make_node(fence=make_fence("actuating"))
FINALIZERS: dict[str, tuple[PolicyView, list[NodeView], Phase, bool, bool | None]] = {
    "it has nothing in flight": (BARE, [], Phase.PENDING, False, None),
    "a node of it is claimed": (BARE, [], Phase.PENDING, True, True),
    "a node of it is claimed still": (POLICY, [], Phase.PENDING, True, None),
    "its last node was given back": (POLICY, [], Phase.PENDING, False, False),
    "it goes, and a node of it is on its way": (LEAVING, [MOVING], Phase.RECONFIGURING, True, None),
    "it goes, and nothing of it is in flight": (LEAVING, [], Phase.PENDING, False, False),
    "it goes, and its claim has no fence": (LEAVING, [], Phase.PENDING, True, False),
    "it goes, and its node failed": (LEAVING, [MOVING], Phase.FAILED, True, False),
    "it goes, and its node is left to somebody else": (
        LEAVING, [make_node(fence=replace(make_fence(), stage="yielded"))], Phase.CORDONED, True, False,
    ),
    "it goes, and the node on its way is another policy's": (
        LEAVING, [make_node(fence=make_fence("actuating", policy="pool-a"))], Phase.RECONFIGURING, False, False,
    ),
    "it goes without a finalizer, and a node of it is on its way": (
        replace(LEAVING, finalizer=False), [MOVING], Phase.RECONFIGURING, True, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("policy", "nodes", "phase", "claimed", "set_to"), FINALIZERS.values(), ids=FINALIZERS)
def test_a_policys_finalizer_is_set_while_one_of_its_nodes_is_in_flight(
    policy: PolicyView, nodes: list[NodeView], phase: Phase, claimed: bool, set_to: bool | None
) -> None:
    said = {node.name: verdict(phase, node=node.name) for node in nodes}
    written = plan_finalizers({"pool-b": Pool(policy)}, [make_claim()] * claimed, nodes, said)
    assert written == ([] if set_to is None else [SetFinalizer("pool-b", set_to, policy.uid)])


def test_finalizers_stay_while_nodes_wait_and_are_written_in_the_order_of_their_policies() -> None:
    pools = {name: Pool(make_policy(name, finalizer=True)) for name in ("pool-c", "pool-a", "pool-b")}
    assert plan_finalizers(pools, [], [], {}) == [
        SetFinalizer(name, present=False, uid=f"uid-{name}") for name in ("pool-a", "pool-b", "pool-c")
    ]
    pools["pool-b"].candidates.append(make_case())
    assert [written.policy for written in plan_finalizers(pools, [], [], {})] == ["pool-a", "pool-c"]
    waiting = Pool(BARE, candidates=[make_case()])
    assert plan_finalizers({"pool-b": waiting}, [], [], {}) == [], "none is put on before a node starts"


@pytest.mark.parametrize(("seconds", "opens"), [(1.5, True), (1.6, False)])
def test_a_claim_is_kept_for_a_wait_no_longer_than_two_clocks_may_differ(seconds: float, opens: bool) -> None:
    claims, nodes = {"gpu-07": make_claim()}, {"gpu-07": make_node()}
    waits = {"gpu-07": verdict(Phase.PENDING, Reason.DEFERRED, wake=at(seconds))}
    assert find_resumed(claims, nodes, waits, NOW) == (claims if opens else {})
    assert find_resumed(claims, {"gpu-07": MOVING}, waits, NOW) == {}, "its fence speaks for it"
    assert find_resumed(claims, nodes, {}, NOW) == {}, "nobody judged it"
    newer = {name: replace(node, fence_error="version 9") for name, node in nodes.items()}
    assert find_resumed(claims, newer, waits, NOW) == claims, "its change is under way all the same"


# --- who keeps a slot until somebody acts, as nodes that wait for one tell ---------------------------------------------


def away(
    name: str,
    phase: Phase = Phase.BLOCKED,
    *,
    reason: Reason = Reason.PROGRESSING,
    deadline: datetime | None = None,
    **fields: Any,
) -> Member:
    blockers = (Blocker(reason),) if reason is Reason.CALL_FAILED else ()
    told = Verdict(name, "pool-b", phase, reason, "", deadline=deadline, blockers=blockers)
    return make_member(make_node(name, **fields), told)


def full(members: Sequence[Member]) -> str:
    return waiting(members).message


def waiting(members: Sequence[Member]) -> Verdict:
    pool = Pool(make_policy(rollout={"maxUnavailable": len(members)}))
    for member in members:
        pool.count(member)
    return joined_by_z(pool)


def joined_by_z(pool: Pool, cap: int = 100, state: PassState | None = None) -> Verdict:
    pool.names.append("z")
    pool.candidates.append(candidate("z"))
    chosen = select(pool.with_hours(NOW), unlisted_of(pool), cap, state or PassState(OFFERED, NOW))
    return with_waits(chosen).verdicts["z"]


OURS: dict[str, Any] = {"fence": make_fence(), "unschedulable": True}
KEPT: dict[str, tuple[Member, str]] = {
    "a person cordoned it": (away("a", unschedulable=True), "a is cordoned"),
    "its kubelet is silent": (away("a", ready=False), "a is not Ready"),
    "it is being deleted": (away("a", deleting=True, ready=False), "a is being deleted"),
    "its change failed": (
        away("a", Phase.FAILED, **{**OURS, "fence": make_fence("actuating")}, ready=False), "a has failed"),
    "its drain is held past its time": (
        away("a", Phase.DRAINING, **{**OURS, "fence": make_fence(deadline=NEVER)}, deadline=NEVER),
        "the change on a is on hold"),
    "it cannot be given back": (
        away("a", Phase.ABORTING, reason=Reason.CALL_FAILED, **OURS), "calls to the API server about a are failing"),
    "it was left to somebody else": (
        away("a", **{**OURS, "fence": make_fence("yielded")}, foreign="kured"), "kured is working on a"),
    "somebody has marked it": (away("a", foreign="kured"), "kured has begun to work on a"),
}  # fmt: skip
STANDS = {"a person cordoned it", "its change failed", "somebody has marked it"}
"""Who ends the wait is a person, unless the node comes back by itself."""


@pytest.mark.parametrize("what", KEPT)
def test_a_node_that_waits_for_a_slot_names_who_keeps_one_until_somebody_acts(what: str) -> None:
    member, why = KEPT[what]
    told = waiting([member])
    assert not lacks(told.message, "spec.rollout.maxUnavailable", "1 of 2 nodes", f"({why})")
    assert told.message.endswith(": kubectl gpusharing why a") is (what in STANDS)
    assert (told.keeper, told.stands) == ("node/a", what in STANDS)


def test_a_node_that_is_about_to_join_the_pool_out_of_service_has_its_slot_already() -> None:
    policy = make_policy(rollout={"maxUnavailable": 1})
    stuck = replace(away("a", Phase.ABORTING, reason=Reason.CALL_FAILED, **OURS), heir=policy.name)
    moves = away("a", Phase.ABORTING, deadline=at(60), **OURS)
    fence = make_fence(newcomer=True)
    newcomer = replace(away("a", Phase.ABORTING, fence=fence, unschedulable=True), heir=policy.name)
    pools = [Pool.of(policy, [], set(), set(), [member]) for member in (stuck, moves, newcomer)]
    assert [(pool.used, pool.moving, pool.total, len(pool.keepers)) for pool in pools] == [
        (1, 0, 0, 1),
        (1, 1, 0, 0),
        (0, 0, 0, 0),
    ]
    assert joined_by_z(pools[0]).message == (
        "spec.rollout.maxUnavailable allows 1 of 1 node to be unavailable at once (calls to the API server"
        " about a are failing); waiting for a slot"
    )


def test_a_slot_of_a_node_that_changes_becomes_free_beside_one_that_is_kept() -> None:
    changes = away("c", Phase.DRAINING, **OURS, deadline=at(60))
    told = waiting([changes, away("d", unschedulable=True)])
    assert (told.keeper, told.stands) == ("node/d", False)
    assert (waiting([changes]).keeper, waiting([changes]).stands) == ("", False)


def test_a_node_that_waits_for_the_cap_names_who_keeps_a_slot_of_it_in_whatever_policy() -> None:
    phases, fence = (("a", Phase.FAILED), ("b", Phase.DRAINING)), make_fence(policy="another")
    changing = {name: away(name, phase, fence=fence, deadline=at(60)) for name, phase in phases}
    snapshot = make_snapshot([one.node for one in changing.values()])
    state = PassState(OFFERED, NOW, capped=find_capped(snapshot, changing, reserved=0))
    told = joined_by_z(Pool(make_policy()), 0, state)
    assert told.message == (
        "the cap on nodes in flight (chart value operator.maxInFlight) has been reached (a has failed); waiting for a"
        " slot"
    )
    assert (told.keeper, told.stands) == ("node/a", False)


def test_no_more_than_three_nodes_that_keep_a_slot_are_named_and_none_that_changes() -> None:
    changes = away("c", Phase.DRAINING, **OURS, deadline=at(60))
    cordoned = [away(name, unschedulable=True) for name in ("g", "f", "e", "d")]
    said = "(d is cordoned; e is cordoned; f is cordoned; others)"
    assert said in full([changes, *cordoned])
    assert "at once; waiting" in full([changes])
