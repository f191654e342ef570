"""Nodes that share a gang start in one pass, as far as the budget allows, and are given back together.
What a gang costs is told by pools/candidates.py."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.build import (
    JOB,
    NOW,
    at,
    make_claim,
    make_fence,
    make_node,
    make_pdb,
    make_pod,
    make_policy,
    make_snapshot,
    make_work,
)
from tests.planning.cases import MIXED, SLICED, make_member, pool_of, proof_of, run_until
from tests.planning.changes import changing, fence_to, only
from tests.planning.gangs import make_gang, make_gang_view
from tests.planning.test_budget import LABELS_OF_C, shared_c
from tests.planning.test_pool import OFFERED, candidate, chosen, fenced, unlisted_of, with_waits
from tests.planning.told import verdict
from tests.wording import lacks

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.times import NEVER as FOREVER
from gpusharing.planning.pools.candidates import PassState, Selection, find_mates, op_of
from gpusharing.planning.pools.choice import select
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.waves import find_waves, hold_together
from gpusharing.planning.report.transition import who_ends, who_keeps
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.actions import FenceNode, Release, UpdateFence
from gpusharing.planning.snapshot.memory import CallFailure, Look
from gpusharing.planning.snapshot.podviews import NodeWork, PdbView, PodView
from gpusharing.planning.snapshot.records import Fence, Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.cases import show_failure
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Blocker
from gpusharing.planning.vocabulary.reasons import Reason

GANG = make_gang()
PAIR = ("n1", "n2")


def ranks(*nodes: str) -> dict[str, list[PodView]]:
    pods = {node: make_pod(f"rank-{node}", gang=GANG) for node in nodes}
    return {node: [pod] for node, pod in pods.items()}


def work_of(*nodes: str, pdbs: tuple[PdbView, ...] = ()) -> dict[str, NodeWork]:
    view = make_gang_view(ranks(*nodes))
    return {node: make_work(*pods, gangs=(view,), pdbs=pdbs) for node, pods in ranks(*nodes).items()}


def sharing(*nodes: str, listed: bool = True, pdbs: tuple[PdbView, ...] = (), pods: int = 1) -> list[NodeCase]:
    work = work_of(*nodes, pdbs=pdbs)
    return [candidate(node, work[node] if listed else None, pods=pods) for node in nodes]


def fences(selection: Selection) -> dict[str, Fence]:
    return {
        name: action.fence
        for name, verdict in selection.verdicts.items()
        for action in verdict.actions
        if isinstance(action, FenceNode)
    }


def test_nodes_that_share_a_gang_start_in_one_pass_and_record_their_wave() -> None:
    both = chosen(*sharing("a", "b"), candidate("z", pods=9), limit=2)
    assert fenced(both) == ["a", "b"]
    waves = {fence.wave for fence in fences(both).values()}
    assert len(waves) == 1
    assert waves != {""}
    assert both.claims.keys() == {"a", "b"}


def test_a_node_without_a_gang_belongs_to_no_wave() -> None:
    (fence,) = fences(chosen(candidate("z"))).values()
    assert (fence.wave, fence.mates) == ("", ())


def test_a_wave_that_the_budget_can_never_hold_starts_as_far_as_it_can_and_names_the_rest() -> None:
    """That the rest comes next in a whole roll: test_rest_of_a_gang.py."""
    selection = chosen(*sharing("a", "b", "c"), limit=2)
    assert len(fenced(selection)) == 2
    (left,) = {"a", "b", "c"} - set(fenced(selection))
    assert {fence.mates for fence in fences(selection).values()} == {(left,)}
    assert selection.verdicts[left].reason is Reason.BUDGET_FULL
    fenced_mate = make_node("m", unschedulable=True, fence=next(iter(fences(selection).values())))
    mate = make_member(fenced_mate, verdict(Phase.DRAINING, node="m"))
    assert fenced(chosen(candidate(left, pods=9), candidate("z"), members=[mate])) == [left]


def test_a_wave_waits_for_room_that_is_on_its_way_and_nobody_fills_it_meanwhile() -> None:
    selection = chosen(*sharing("a", "b"), candidate("z", pods=9), limit=2, used=1, moving=1)
    assert fenced(selection) == []
    told = selection.verdicts["a"]
    assert (told.phase, told.reason, told.wants_pods) == (Phase.PENDING, Reason.BUDGET_FULL, True)
    assert not lacks(told.message, "JobSet team-a/train", "2 nodes", "2 slots")
    assert selection.verdicts["z"].reason is Reason.BUDGET_FULL


def test_room_that_never_comes_is_not_waited_for() -> None:
    selection = chosen(*sharing("a", "b"), limit=2, used=1)
    assert len(fenced(selection)) == 1
    assert {fence.wave for fence in fences(selection).values()} == {""}


def test_the_nodes_of_a_gang_are_looked_at_before_any_of_them_starts() -> None:
    (first, _), (_, second) = sharing("a", "b"), sharing("a", "b", listed=False, pods=5)
    selection = chosen(first, second, limit=2)
    assert fenced(selection) == []
    assert {v.phase for v in selection.verdicts.values()} == {Phase.PREFLIGHT}
    assert all(v.wants_pods for v in selection.verdicts.values())


def test_a_blocked_node_does_not_keep_the_rest_of_its_gang() -> None:
    first, second = sharing("a", "b")
    assert second.work is not None
    stays = make_pod("stays", owner=None)
    second = replace(second, work=replace(second.work, pods=(*second.work.pods, stays)))
    selection = chosen(first, second, limit=2)
    assert fenced(selection) == ["a"]
    assert selection.verdicts["b"].phase is Phase.BLOCKED
    assert fences(selection)["a"].wave == ""


def test_before_a_gang_starts_without_its_blocked_node_the_pods_of_that_node_are_listed_once_more() -> None:
    free, unlisted = sharing("a", "b", "c")[:2], sharing("a", "b", "c", listed=False)[2]
    state = PassState(OFFERED, NOW, {"c": Look(make_policy().version, "", at(-1), 1, (Blocker(Reason.UNMANAGED),))})
    selection = chosen(*free, unlisted, limit=3, state=state)
    assert fenced(selection) == []
    assert {name: verdict.wants_pods for name, verdict in selection.verdicts.items()} == dict.fromkeys("abc", True)
    no_room = chosen(*free, unlisted, limit=2, state=state)
    assert fenced(no_room) == ["a", "b"], "there would be no room for the third node"


def test_within_a_wave_the_server_decides_and_others_that_the_budget_guards_wait() -> None:
    guard = make_pdb(allowed=1)
    other = candidate("z", make_work(make_pod("llm-9"), pdbs=[guard]), pods=9)
    selection = chosen(*sharing("a", "b", pdbs=(guard,)), other, limit=3)
    assert fenced(selection) == ["a", "b"]
    assert selection.verdicts["z"].reason is Reason.PDB_IN_USE


def test_a_wave_waits_as_a_whole_while_others_use_up_a_budget_of_its_pods() -> None:
    guard = make_pdb(allowed=1)
    state = PassState(OFFERED, NOW)
    state.add_evictions("n", [("team-a/llm", 1)])
    selection = chosen(*sharing("a", "b", pdbs=(guard,)), limit=2, state=state)
    assert fenced(selection) == []
    assert {(v.reason, v.wants_pods) for v in selection.verdicts.values()} == {(Reason.PDB_IN_USE, True)}


def later(seconds: float, *cases: NodeCase) -> list[NodeCase]:
    return [replace(case, now=case.now + timedelta(seconds=seconds)) for case in cases]


def after_a_crash(*passes: Selection, begun: tuple[str, ...]) -> PassState:
    """What the next process finds: fences on these nodes, of the others the claims of the last pass."""
    claims = {name: claim for one in passes for name, claim in one.claims.items() if name not in begun}
    return PassState(OFFERED, NOW, claimed_waves={name: claim.wave for name, claim in claims.items()})


def test_after_one_crash_and_two_the_rest_of_a_wave_stays_with_those_that_had_begun() -> None:
    first, *rest = sharing("a", "b", "c")
    start = chosen(first, *rest, limit=3)
    (wave,) = {fence.wave for fence in fences(start).values()}
    state = after_a_crash(start, begun=("a",))
    again = chosen(*later(5, *rest), limit=3, used=1, state=state)
    assert {fence.wave for fence in fences(again).values()} == {wave}
    assert {claim.wave for claim in again.claims.values()} == {wave}
    state = after_a_crash(start, again, begun=("a", "b"))
    last = chosen(*later(10, rest[1]), limit=3, used=2, state=state)
    assert fences(last)["c"].wave == wave
    assert last.claims["c"].wave == wave


def test_after_a_crash_a_node_that_started_beside_a_wave_joins_none() -> None:
    alone = candidate("z")
    start = chosen(*sharing("a", "b"), alone, limit=3)
    assert fenced(start) == ["a", "b", "z"]
    state = after_a_crash(start, begun=("a", "b"))
    assert fences(chosen(*later(5, alone), limit=3, used=2, state=state))["z"].wave == ""


def test_after_a_crash_before_the_first_fence_the_wave_keeps_its_name() -> None:
    both = sharing("a", "b")
    start = chosen(*both, limit=2)
    again = chosen(*later(5, *both), limit=2, state=after_a_crash(start, begun=()))
    assert {fence.wave for fence in fences(again).values()} == {fence.wave for fence in fences(start).values()}


def test_policies_whose_names_begin_alike_begin_different_changes() -> None:
    (case,) = sharing("a")
    names = ["x" * 40 + "-h100", "x" * 40 + "-a100", "pool-b"]
    ops = [op_of(replace(case, owner=make_policy(name))) for name in names]
    assert len(set(ops)) == 3
    assert ops[2].startswith("pool-b."), "a short name stays as it is"
    assert max(map(len, ops)) <= 40 + len(ops[2]) - len("pool-b")


def with_canaries(nodes: int, *cases: NodeCase) -> Selection:
    """What a pool does that may have all of these away and wants so many canaries first."""
    policy = make_policy(rollout={"maxUnavailable": 4, "canary": {"nodes": nodes, "soak": "10m"}})
    members = [make_member(one.node, one.verdict(Phase.PENDING, Reason.PROGRESSING, "")) for one in cases]
    members += [make_member(make_node(name), verdict(Phase.SYNCED)) for name in ("done-1", "done-2")]
    names = [member.node.name for member in members]
    pool = Pool(policy, names, 0, list(cases), members=members).with_hours(NOW)
    return with_waits(select(pool, unlisted_of(pool), 100, PassState(OFFERED, NOW)))


def test_canaries_are_looked_for_among_nodes_that_share_no_gang_first() -> None:
    selection = with_canaries(1, *sharing("a", "b"), candidate("z", make_work(make_pod("alone")), pods=1))
    assert fenced(selection) == ["z"]


def test_a_gang_that_fits_into_the_canary_is_interrupted_once() -> None:
    selection = with_canaries(2, *sharing("a", "b"))
    assert fenced(selection) == ["a", "b"]
    assert len({fence.wave for fence in fences(selection).values()}) == 1


def test_a_gang_that_is_larger_than_the_canary_starts_as_canary_and_names_the_rest() -> None:
    """Waiting for room would be for ever; the rest of it comes next (test_rest_of_a_gang.py)."""
    selection = with_canaries(1, *sharing("a", "b"))
    (first,) = fenced(selection)
    (left,) = {"a", "b"} - {first}
    assert fences(selection)[first].mates == (left,)
    assert selection.verdicts[left].reason is Reason.CANARY_SOAK


@pytest.mark.parametrize("listed", ["a", "b", "c", "d"])
def test_where_not_all_of_a_gang_can_go_the_node_whose_pods_were_listed_goes_first(listed: str) -> None:
    seen, unseen = sharing("a", "b", "c", "d"), sharing("a", "b", "c", "d", listed=False, pods=1)
    pairs = zip(seen, unseen, strict=True)
    cases = [one if one.node.name == listed else other for one, other in pairs]
    assert fenced(chosen(*cases, limit=1)) == [listed]


def test_a_gang_counts_as_a_whole_for_each_of_its_nodes() -> None:
    first, second = sharing("a", "b")
    cheap = candidate("z", make_work(make_pod("alone")), pods=1)
    assert fenced(chosen(first, second, cheap, limit=1)) == ["z"]


def test_waves_are_joined_by_way_of_others_and_keep_the_order() -> None:
    mates = {"c": frozenset({"a"}), "b": frozenset({"a"}), "x": frozenset({"elsewhere"})}
    assert find_waves(("b", "x", "c", "a"), mates) == {"b": ("b", "c", "a")}


def test_members_without_a_node_and_the_node_itself_are_no_mates() -> None:
    view = make_gang_view({**ranks("a", "b"), "": [make_pod("waits", gang=GANG)]})
    assert find_mates(candidate("a", make_work(*ranks("a")["a"], gangs=(view,)))) == {"b"}


# --- a slot that a claim alone holds ------------------------------------------------------------------------------

TWO_OF_THREE = make_policy(mode="TimeSlicing", finalizer=True, rollout={"maxUnavailable": 2})
TIMED_OUT = CallFailure("FenceNode failed: time-out", at(2))
BESIDE: dict[str, tuple[NodeView, dict[str, CallFailure]]] = {
    "its change begins in a moment": (make_node("n0", verified=proof_of(TWO_OF_THREE)), {}),
    "its fence may stand, though that call failed": (make_node("n0"), {"n0": TIMED_OUT}),
}


@pytest.mark.parametrize(("other", "failures"), BESIDE.values(), ids=BESIDE)
def test_a_wave_waits_for_the_slot_of_a_node_that_is_claimed_and_not_yet_fenced(
    other: NodeView, failures: dict[str, CallFailure]
) -> None:
    nodes = [other, make_node("n1"), make_node("n2")]
    claims = {"n0": make_claim("uid-n0")}
    snapshot = make_snapshot(nodes, [TWO_OF_THREE], claims=claims, work=work_of(*PAIR), call_failures=failures)
    plan = plan_rollout(snapshot, NOW)
    assert (plan.pools[TWO_OF_THREE.name].used, begun(plan)) == (1, [])
    assert {plan.verdicts[node].reason for node in ("n1", "n2")} == {Reason.BUDGET_FULL}
    alone = {node: snapshot.nodes[node] for node in PAIR}
    free = plan_rollout(replace(snapshot, claims={}, call_failures={}, nodes=alone), NOW)
    assert begun(free) == ["n1", "n2"]


UNTIL_LATER = make_fence(policy="pool-b", since=at(-600), deadline=at(300), disruption=DisruptionClass.RESET)
HELD = {"onTimeout": "Hold"}
IN_FLIGHT: dict[str, tuple[dict[str, Any], Fence, PodView, int]] = {
    "its time goes on": (HELD, UNTIL_LATER, make_pod("stays", owner=None), 0),
    "its drain is held past its time": (
        HELD, replace(UNTIL_LATER, deadline=at(-1)), make_pod("stays", owner=None), 1),
    "its jobs have an hour": (
        {"jobs": {"timeout": "1h"}}, replace(UNTIL_LATER, deadline=at(3000), jobs=True),
        make_pod("train", owner=JOB, restarts=False), 0),
    "its jobs may run for ever": (
        {"jobs": {"timeout": "Never"}}, replace(UNTIL_LATER, deadline=FOREVER, jobs=True),
        make_pod("train", owner=JOB, restarts=False), 1),
}  # fmt: skip


@pytest.mark.parametrize(("drain", "fence", "pod", "starts"), IN_FLIGHT.values(), ids=IN_FLIGHT)
def test_a_wave_waits_for_the_slot_of_a_drain_only_if_some_clock_ends_that_drain(
    drain: dict[str, Any], fence: Fence, pod: PodView, starts: int
) -> None:
    policy = make_policy(mode="TimeSlicing", finalizer=True, rollout={"maxUnavailable": 2}, drain=drain)
    work = work_of(*PAIR) | {"n0": make_work(pod)}
    away = make_node("n0", unschedulable=True, fence=replace(fence, policy=policy.name, node_uid="uid-n0"))
    nodes = [away, make_node("n1"), make_node("n2")]
    plan = plan_rollout(make_snapshot(nodes, [policy], work=work), NOW)
    assert plan.verdicts["n0"].phase in (Phase.DRAINING, Phase.WAITING_FOR_JOBS)
    assert plan.pools[policy.name].used == 1
    assert len(begun(plan)) == starts


@pytest.mark.parametrize(
    ("other", "starts"), [(TWO_OF_THREE, 0), (shared_c("TimeSlicing", "100%"), 1)], ids=["its own", "another"]
)
def test_a_wave_waits_for_a_slot_of_the_operator_wide_cap_that_a_change_has_of(other: PolicyView, starts: int) -> None:
    """docs/adr/0039-a-wave-stays-within-its-policy.md: another policy's jobs would hold up everybody else."""
    work = work_of(*PAIR) | {"n0": make_work(make_pod("leaves", owner=None))}
    fence = replace(UNTIL_LATER, policy=other.name, version=other.version, node_uid="uid-n0")
    away = make_node("n0", unschedulable=True, fence=fence)
    if other is not TWO_OF_THREE:
        away = replace(away, labels={**away.labels, **LABELS_OF_C})
    nodes = [away, make_node("n1"), make_node("n2")]
    policies = sorted({TWO_OF_THREE.name: TWO_OF_THREE, other.name: other}.items())
    snapshot = make_snapshot(nodes, [policy for _, policy in policies], work=work)
    plan = plan_rollout(replace(snapshot, settings=replace(snapshot.settings, max_in_flight=2)), NOW)
    assert plan.verdicts["n0"].phase is Phase.DRAINING
    assert len(begun(plan)) == starts
    rest = {
        mate
        for one in plan.verdicts.values()
        for a in one.actions
        if isinstance(a, FenceNode)
        for mate in a.fence.mates
    }
    assert len(rest) == starts, "its fence names the rest"


def begun(plan: RolloutPlan) -> list[str]:
    return [name for name, told in plan.verdicts.items() if any(isinstance(a, FenceNode) for a in told.actions)]


# --- nodes of a wave are given back together ---------------------------------------------------------------------------

PROOF = Verified("pool-b", "all-1g.10gb", "c-1", layout="1x full", gpus=1)
POLICY = make_policy(rollout={"timeouts": {"verification": "5m"}})


def in_wave(name: str, *, wave: str = "w", **fence: Any) -> NodeView:
    uid = f"uid-{name}"
    return make_node(name, uid=uid, unschedulable=True, fence=make_fence("actuating", node_uid=uid, wave=wave, **fence))


def proven(node: NodeView) -> Verdict:
    verdict = Verdict(node.name, "pool-b", Phase.UNCORDONING, Reason.SYNCED, "2x3g.40gb proven")
    return verdict.then(Release(node, True, {}, verified=PROOF))


def working(node: NodeView, phase: Phase = Phase.RECONFIGURING) -> Verdict:
    return Verdict(node.name, "pool-b", phase, Reason.ACTUATION_IN_PROGRESS, "at work")


def held(*verdicts: Verdict, nodes: tuple[NodeView, ...], now: datetime = NOW) -> dict[str, Verdict]:
    by_name = {node.name: node for node in nodes}
    told = {verdict.node: make_member(by_name[verdict.node], verdict) for verdict in verdicts}
    return {name: one.verdict for name, one in hold_together(told, make_snapshot(nodes, [POLICY]), now).items()}


A, B = in_wave("a"), in_wave("b")


def test_a_proven_node_waits_for_the_others_of_its_wave_and_records_since_when() -> None:
    (found,) = held(proven(A), working(B), nodes=(A, B)).values()
    assert (found.node, found.phase, found.reason) == ("a", Phase.UNCORDONING, Reason.WAITS_FOR_WAVE)
    assert not lacks(found.message, "2x3g.40gb proven", "together with b")
    (action,) = found.actions
    assert isinstance(action, UpdateFence)
    assert A.fence is not None
    assert action.fence == replace(A.fence, proven=NOW)
    assert (found.wake, found.deadline) == (at(300), at(300))


def test_the_node_that_is_waited_for_is_the_culprit() -> None:
    """Not the policy of the wave, of which kubectl get gpun would show nothing."""
    other = in_wave("c")
    found = held(proven(B), working(other), working(A), nodes=(A, B, other))["b"]
    assert (who_keeps(found, B), who_ends(found), found.deadline) == ("node/a", "Clock", at(300))


OWN: list[tuple[float, Phase, float | None]] = [
    (0, Phase.VERIFYING, 200),  # its own deadline, a minute ago, no longer counts
    (199, Phase.VERIFYING, 200),
    (200, Phase.FAILED, None),  # five minutes after its proof
]


@pytest.mark.parametrize(("now", "phase", "wake"), OWN)
def test_a_node_that_waits_for_its_wave_may_have_its_plugin_restarted(
    now: float, phase: Phase, wake: float | None
) -> None:
    fence = fence_to(POLICY, at(-600), wave="w", proven=at(-100), deadline=at(-60))
    verdict = after_pnr(changing(POLICY, fence=fence, now=now, node={"resources": {}}))
    assert (verdict.phase, verdict.reason) == (phase, Reason.ALLOCATABLE_MISMATCH)
    assert (verdict.wake, verdict.deadline) == (None if wake is None else at(wake), at(200))


def test_a_node_that_waits_for_its_wave_follows_a_new_spec_in_time() -> None:
    fence = fence_to(MIXED, at(-600), wave="w", proven=at(-100), deadline=at(-60))
    verdict = after_pnr(changing(SLICED, fence=fence, now=0))
    assert "after the deadline" not in verdict.message
    assert all(action.fence.failed_version is None for action in verdict.actions if isinstance(action, UpdateFence))


def test_a_step_of_a_node_that_waits_for_its_wave_is_not_late_because_its_call_fails() -> None:
    fence = fence_to(POLICY, at(-600), wave="w", proven=at(-100), deadline=at(-60))
    verdict = after_pnr(changing(POLICY, fence=fence, now=0, node={"unschedulable": False}))
    assert isinstance(only(verdict), UpdateFence)
    failure = CallFailure("the server is away", at(8), tries=3)
    assert show_failure(verdict, failure, at(0), fence).phase is Phase.RECONFIGURING


def test_a_node_that_was_not_proven_fails_at_its_deadline() -> None:
    fence = fence_to(POLICY, at(-600), wave="w", deadline=at(-60))
    assert after_pnr(changing(POLICY, fence=fence, now=0, node={"resources": {}})).phase is Phase.FAILED


def test_since_when_it_waits_is_written_once() -> None:
    waiting = in_wave("a", proven=at(-60))
    (found,) = held(proven(waiting), working(B), nodes=(waiting, B)).values()
    assert found.actions == ()
    assert found.wake == at(240)


def test_all_are_given_back_in_the_pass_that_proves_the_last() -> None:
    assert held(proven(A), proven(B), nodes=(A, B)) == {}


def test_the_first_proof_sets_the_end_for_those_proven_later() -> None:
    first, third = in_wave("a", proven=at(-290)), in_wave("c")
    found = held(proven(first), working(B), proven(third), nodes=(first, B, third))
    assert {verdict.wake for verdict in found.values()} == {at(10)}
    assert found.keys() == {"a", "c"}


ENDS: dict[str, tuple[NodeView, Verdict]] = {
    "a member is Failed": (A, working(B, Phase.FAILED)),
    "a member was given up": (A, working(B, Phase.ABORTING).then(Release(B, True, {}))),
    "the first proof is timeouts.verification ago": (in_wave("a", proven=at(-300)), working(B)),
}


@pytest.mark.parametrize(("node", "other"), ENDS.values(), ids=ENDS.keys())
def test_it_waits_no_longer_when(node: NodeView, other: Verdict) -> None:
    assert held(proven(node), other, nodes=(node, B)) == {}


OTHERS: dict[str, NodeView] = {
    "is of another wave": in_wave("b", wave="v"),
    "started by itself": in_wave("b", wave=""),
    "was left to somebody else": make_node("b", uid="uid-b", fence=make_fence("yielded", wave="w", node_uid="uid-b")),
    "only inherited the fence of an earlier node": make_node(
        "b", uid="uid-b", fence=make_fence(wave="w", node_uid="another")
    ),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_nobody_waits_for_a_node_that(other: NodeView) -> None:
    assert held(proven(A), working(other), nodes=(A, other)) == {}


def test_a_pass_gives_no_node_of_a_wave_back_alone() -> None:
    world = pool_of(2)
    both = {"maxUnavailable": 2}
    world.set_policy(make_policy(mode="TimeSlicing", timeSlicing={"replicas": 4}, rollout=both))
    run_until(world, Phase.RECONFIGURING, node="n0")
    for name, node in world.nodes.items():
        assert node.fence is not None
        world.nodes[name] = replace(node, fence=replace(node.fence, wave="w"))
    for _ in range(30):  # the software of n1 does nothing meanwhile
        world.act("n0")
        world.step()
        world.now += timedelta(seconds=1)
    plan = world.plan()
    assert [(one.phase, one.reason) for one in plan.verdicts.values()] == [
        (Phase.UNCORDONING, Reason.WAITS_FOR_WAVE),
        (Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS),
    ]
    assert not any(isinstance(one, Release) for verdict in plan.verdicts.values() for one in verdict.actions)


def test_at_most_three_of_the_others_are_named() -> None:
    others = [in_wave(f"n{number}") for number in range(5)]
    (found,) = held(proven(A), *map(working, others), nodes=(A, *others)).values()
    assert not lacks(found.message, "together with n0, n1, n2 and 2 more")
