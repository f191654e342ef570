"""The disruption budget over the nodes of a pool and over all pools (pools/choice.py), on whole ways in world.py."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import (
    H100,
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
from tests.planning.cases import SLICED, T4, make_member, pair_of, pass_time, pool_of, run_until
from tests.planning.deeds import vanished
from tests.planning.drainpass import roomy
from tests.planning.machines import NodeMachine
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.gpus.cards import bare_product
from gpusharing.planning.pools.candidates import PassState
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.memory import LOOKS, Look, PassMemory
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.records import Claim, Fence
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Blocker
from gpusharing.planning.vocabulary.reasons import Reason


def test_a_claim_without_a_fence_goes_first_and_does_not_count_twice() -> None:
    world = pool_of(3)
    world.set_policy(SLICED)
    run_until(world, Phase.PREFLIGHT, node="n0")
    world.claims["n2"] = Claim(world.nodes["n2"].uid, "pool-b", "lost")
    for _ in range(30):
        world.step()
        world.now += timedelta(seconds=1)
        if world.claims and any(node.fence for node in world.nodes.values()):
            break
    assert [name for name, node in world.nodes.items() if node.fence] == ["n2"]
    assert world.claims.keys() == {"n2"}


def test_a_cordoned_node_of_the_pool_takes_a_slot_and_is_left_alone() -> None:
    world = pool_of(3)
    world.nodes["n0"] = replace(world.nodes["n0"], unschedulable=True)
    world.human_cordons.add("n0")
    world.set_policy(SLICED)
    plan = world.settle()
    assert {name: v.reason for name, v in plan.verdicts.items()} == {
        "n0": Reason.ALREADY_CORDONED, "n1": Reason.BUDGET_FULL, "n2": Reason.BUDGET_FULL}  # fmt: skip


OTHERS = {"another product": NodeMachine("other", (T4,)), "no GPU": None}


def half_of_four(other: NodeMachine | None, *, cordoned: bool = False) -> World:
    """Two H100 nodes and two others in one pool of which half may be away, about to be shared."""
    world = pool_of(2, make_policy(mode="Full", products=[bare_product(H100)]))
    for name in ("x0", "x1"):
        world.add_node(name, None if other is None else replace(other, name=name))
        if other is None:
            world.machines[name] = replace(world.machines[name], products=(), layouts=[])
            world.nodes[name] = make_node(name, resources={}, unschedulable=cordoned)
        else:
            world.nodes[name] = replace(world.nodes[name], unschedulable=cordoned)
    for _ in range(2):  # everybody gets a GPUNode and reports
        world.step()
        for name in (name for name, machine in world.machines.items() if machine.products):
            world.act(name)
    half = {"maxUnavailable": "50%"}
    world.set_policy(make_policy(mode="TimeSlicing", products=[bare_product(H100)], rollout=half))
    return world


@pytest.mark.parametrize("cordoned", [False, True], ids=["there", "cordoned"])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_a_percentage_is_of_the_nodes_that_the_policy_is_about(other: NodeMachine | None, cordoned: bool) -> None:
    world = half_of_four(other, cordoned=cordoned)
    most = 0
    for _ in range(200):
        for name in ("n0", "n1"):
            world.act(name)
        world.step()
        world.now += timedelta(seconds=1)
        most = max(most, sum(node.fence is not None for node in world.nodes.values()))
    assert most == 1
    assert {v.phase for name, v in world.plan().verdicts.items() if name.startswith("n")} == {Phase.SYNCED}


def test_a_node_that_an_admin_keeps_from_changing_stays_part_of_a_percentage() -> None:
    world = pool_of(4)
    switch = names.LABEL_DEPLOY_PREFIX + "device-plugin"
    for name in ("n2", "n3"):
        node = world.nodes[name]
        world.nodes[name] = replace(node, labels={**node.labels, switch: "false"}, unschedulable=name == "n3")
    world.set_policy(make_policy(mode="TimeSlicing", rollout={"maxUnavailable": "50%"}))
    world.now += timedelta(hours=1)
    pool = world.plan().pools["pool-b"]
    assert (pool.total, pool.limit, pool.used) == (4, 2, 1)


def two_pools(limit: object = "100%") -> World:
    """Three nodes of pool b and three of pool c, each pool about to be shared under a policy of its own."""
    world = pool_of(3)
    for name in ("m0", "m1", "m2"):
        world.add_node(name)
        world.nodes[name] = replace(world.nodes[name], labels={**world.nodes[name].labels, **LABELS_OF_C})
    world.set_policy(shared_c("Full", limit))
    world.settle()
    world.set_policy(make_policy(mode="TimeSlicing", rollout={"maxUnavailable": limit}))
    world.set_policy(shared_c("TimeSlicing", limit))
    return world


LABELS_OF_C = {"gpusharing.dev/pool": "c"}


def shared_c(mode: str, limit: object) -> PolicyView:
    return make_policy("pool-c", mode, nodeSelector={"matchLabels": LABELS_OF_C}, rollout={"maxUnavailable": limit})


def largest(world: World, seconds: int = 200) -> dict[str, int]:
    """The most nodes that were fenced at once, of each policy and of all, while everybody acts once a second."""
    most: Counter[str] = Counter()
    for _ in range(seconds):
        for name in world.nodes:
            world.act(name)
        world.step()
        world.now += timedelta(seconds=1)
        fences = Counter(node.fence.policy for node in world.nodes.values() if node.fence is not None)
        most |= fences + Counter({"all": fences.total()})
    return dict(most)


def test_the_operator_wide_cap_holds_over_policies() -> None:
    world = two_pools()
    world.settings = replace(world.settings, max_in_flight=2)
    assert largest(world)["all"] == 2
    assert all(v.phase is Phase.SYNCED for v in world.settle().verdicts.values())


def test_two_pools_below_that_cap_are_independent() -> None:
    world = two_pools(1)
    assert largest(world.copy()) == {"pool-b": 1, "pool-c": 1, "all": 2}, "side by side"
    world.nodes["n0"] = replace(world.nodes["n0"], unschedulable=True)
    world.human_cordons.add("n0")
    largest(world)
    found = {name: v.reason for name, v in world.settle().verdicts.items()}
    assert {found[name] for name in ("n1", "n2")} == {Reason.BUDGET_FULL}
    assert {found[name] for name in ("m0", "m1", "m2")} == {Reason.SYNCED}, "a full pool stops its own nodes only"


def test_lowering_the_budget_stops_nobody_who_is_under_way() -> None:
    world = pool_of(3, make_policy(mode="Full", rollout={"maxUnavailable": 3}))
    world.set_policy(make_policy(mode="TimeSlicing", rollout={"maxUnavailable": 3}))
    run_until(world, Phase.RECONFIGURING, node="n0")
    world.set_policy(make_policy(mode="TimeSlicing", rollout={"maxUnavailable": 0}))
    assert all(v.phase is Phase.SYNCED for v in world.settle().verdicts.values())


# --- what holds a slot ------------------------------------------------------------------------------------------


def beside(*, claims: bool, **fields: Any) -> tuple[int, bool]:
    """Slots used, and whether n1 starts, beside n0 in a pool of which one node may be away."""
    node = make_node("n0", **fields)
    held = {"n0": make_claim("uid-n0")} if claims else {}
    policy = make_policy(mode="TimeSlicing", finalizer=True)
    works = {"n0": make_work(make_pod(owner=None)), "n1": make_work()}
    snapshot = make_snapshot([node, make_node("n1")], [policy], claims=held, work=works)
    plan = plan_rollout(snapshot, NOW)
    return plan.pools["pool-b"].used, any(isinstance(a, FenceNode) for a in plan.verdicts["n1"].actions)


MIG_CONFIG, PLUGIN_CONFIG = pair_of(SLICED)
GONE_WRONG = make_fence(
    "actuating",
    node_uid="uid-n0",
    deadline=at(-60),
    failed=at(-60),
    to_layout="4x shared",
    target_mig_config=MIG_CONFIG,
    target_plugin_config=PLUGIN_CONFIG,
)
AWAY: dict[str, dict[str, Any]] = {
    "its kubelet does not answer": {"ready": False},
    "it is being deleted": {"deleting": True},
    "it is cordoned": {"unschedulable": True},
    "its change failed": {"fence": GONE_WRONG, "unschedulable": True},
    "nobody can read its fence": {"fence_error": "version 9"},
    "somebody else works on it": {"foreign": "kured"},
    "several of these at once": {"ready": False, "deleting": True, "unschedulable": True, "foreign": "kured"},
}


@pytest.mark.parametrize(("limit", "starts"), [(1, 0), (2, 1), ("50%", 1)])
@pytest.mark.parametrize("node", AWAY.values(), ids=AWAY.keys())
def test_it_is_part_of_the_whole_takes_one_slot_and_is_skipped_over_where(
    node: dict[str, Any], limit: object, starts: int
) -> None:
    policy = make_policy(mode="TimeSlicing", rollout={"maxUnavailable": limit, "maxFailures": 9})
    nodes = [make_node("n0", **node), *(make_node(f"n{number}") for number in (1, 2, 3))]
    plan = plan_rollout(make_snapshot(nodes, [policy], work={one.name: make_work() for one in nodes}), NOW)
    begun = {name for name, v in plan.verdicts.items() if any(isinstance(a, FenceNode) for a in v.actions)}
    pool = plan.pools["pool-b"]
    assert (pool.total, pool.used, len(begun)) == (4, 1, starts)
    assert "n0" not in begun
    assert (plan.verdicts["n0"].phase is Phase.FAILED) is (node.get("fence") is GONE_WRONG)


RESTART = make_fence(node_uid="uid-n0", disruption=DisruptionClass.PLUGIN_RESTART)
CHANGING = make_fence("actuating", node_uid="uid-n0", disruption=DisruptionClass.PLUGIN_RESTART)


@pytest.mark.parametrize("claims", [True, False], ids=["claimed", "its claim is lost"])
@pytest.mark.parametrize("fence", [RESTART, CHANGING], ids=["before", "after"])
def test_a_restart_of_the_plugin_takes_a_slot_although_the_node_is_not_cordoned(fence: Fence, claims: bool) -> None:
    assert beside(claims=claims, fence=fence) == (1, False)


def test_a_claim_without_a_fence_holds_its_slot_while_the_node_can_neither_start_nor_is_done() -> None:
    assert beside(claims=True, retry="", labels={names.LABEL_WORKLOAD_CONFIG: "vm-vgpu"}) == (1, False)
    assert beside(claims=False, labels={names.LABEL_WORKLOAD_CONFIG: "vm-vgpu"}) == (0, True)


def test_a_claimed_node_that_its_pods_block_holds_no_slot() -> None:
    assert beside(claims=True) == (0, True)


# --- PodDisruptionBudgets of nodes in flight --------------------------------------------------------------------

PDB = make_pdb(allowed=1)


def in_flight(settling: bool, fence: Fence | None = None, **fields: Any) -> ClusterSnapshot:
    """n0 is fenced, n1 is a candidate; a budget that allows one pod guards a pod of each."""
    policy = make_policy(mode="TimeSlicing", rollout={"maxUnavailable": 2})
    fence = replace(fence or make_fence(), node_uid="uid-n0", since=at(-1 if settling else -60), deadline=at(600))
    guarded = make_work(make_pod("b"), pdbs=[PDB])
    nodes = [make_node("n0", fence=fence, unschedulable=True), make_node("n1")]
    known = {"work": {"n1": guarded}, "claims": {"n0": make_claim("uid-n0")}, **fields}
    return make_snapshot(nodes, [policy], **known)


def guarded_work(**fields: Any) -> NodeWork:
    return make_work(make_pod("a"), pdbs=[PDB], **fields)


def begun(*needs: tuple[str, int]) -> PassMemory:
    return PassMemory(looks={"n0": Look(make_policy().version, "", at(-2), 1, (), needs)})


BOTH = {"n0": guarded_work(), "n1": guarded_work()}
GOING = {"n0": make_work(make_pod("a", deleted_at=at(30)), pdbs=[PDB]), "n1": guarded_work()}
UNLISTED = {"n0": make_work(error="the API server did not respond"), "n1": guarded_work()}
CROWDS: dict[str, tuple[ClusterSnapshot, bool, Reason | None]] = {
    "its pod is still to go": (in_flight(False, work=BOTH), False, Reason.PDB_IN_USE),
    "the policy of its change is gone, and nobody evicts": (
        in_flight(False, make_fence(policy="gone"), work=BOTH), True, None),
    "its GPUs are reset now, where a restart of the plugin was planned": (
        in_flight(False, make_fence(disruption=DisruptionClass.PLUGIN_RESTART), work=BOTH), True, None),
    "its pod is going: the budget tells the rest": (in_flight(False, work=GOING), True, None),
    "its pods are not listed while it settles, but were before": (
        in_flight(True, memory=begun(("team-a/llm", 1))), False, Reason.PDB_IN_USE),
    "they cannot be listed while it settles, but were before": (
        in_flight(True, work=UNLISTED, memory=begun(("team-a/llm", 1))), False, Reason.PDB_IN_USE),
    "they cannot be listed after that either": (
        in_flight(False, work=UNLISTED, memory=begun(("team-a/llm", 1))), False, Reason.PDB_IN_USE),
    "they cannot be listed while it settles, and nobody knows them": (
        in_flight(True, work=UNLISTED), False, Reason.PROGRESSING),
    "no budget guarded its pods when it was fenced": (in_flight(True, memory=begun()), True, None),
    "nobody knows its pods: we were just started": (in_flight(True), False, Reason.PROGRESSING),
}  # fmt: skip


@pytest.mark.parametrize(("snapshot", "starts", "reason"), CROWDS.values(), ids=CROWDS.keys())
def test_beside_a_node_in_flight_under_one_budget_another_starts_when(
    snapshot: ClusterSnapshot, starts: bool, reason: Reason | None
) -> None:
    memo = Memo()
    for plan in (plan_rollout(snapshot, NOW, memo), plan_rollout(snapshot, NOW, memo)):
        fences = any(isinstance(action, FenceNode) for action in plan.verdicts["n1"].actions)
        assert fences is starts, plan.verdicts["n1"]
        assert reason is None or plan.verdicts["n1"].reason is reason
        if before := snapshot.memory.looks:
            assert plan.memory.looks["n0"] == before["n0"], "remembered until its pods are listed"
        assert None not in plan.memory.looks.values(), "what nobody has seen is no look"


def test_a_node_that_stands_aside_takes_no_room_by_what_it_was_to_need() -> None:
    fence = make_fence(since=at(-1))
    snapshot = make_snapshot([make_node("n0", fence=fence)], [make_policy()], memory=begun(("team-a/llm", 1)))
    for reason, counted in ((Reason.SETTLING, 1), (Reason.FOREIGN_MAINTENANCE, 0)):
        state = PassState(roomy(), NOW)
        verdict = Verdict("n0", "pool-b", Phase.CORDONED, reason, "")
        look = state.add_in_flight(snapshot, make_member(snapshot.nodes["n0"], verdict))
        crowd = {"team-a/llm": {"n0": 1}} if counted else {}
        assert (state.crowd, state.crowd_known, look is not None) == (crowd, True, bool(counted))


UNCOUNTED = {
    "a restart of the plugin evicts nobody": (make_fence(disruption=DisruptionClass.PLUGIN_RESTART), Reason.SETTLING),
    "nothing is done on a node that nobody can judge": (make_fence(), Reason.NODE_NOT_JUDGED),
}


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
@pytest.mark.parametrize(("fence", "reason"), UNCOUNTED.values(), ids=UNCOUNTED.keys())
def test_it_takes_no_room_in_a_budget_of_pods(fence: Fence, reason: Reason, listed: bool) -> None:
    work = {"n0": guarded_work()} if listed else {}
    snapshot = make_snapshot([make_node("n0", fence=fence)], [make_policy()], work=work)
    state = PassState(roomy(), NOW)
    verdict = Verdict("n0", "pool-b", Phase.CORDONED, reason, "")
    assert state.add_in_flight(snapshot, make_member(snapshot.nodes["n0"], verdict)) is None
    assert (state.crowd, state.crowd_known) == ({}, True)


# --- looks at blocked nodes -------------------------------------------------------------------------------------


def test_blocked_nodes_of_all_policies_share_the_looks_of_one_poll() -> None:
    policies = [make_policy(name, "TimeSlicing", nodeSelector={"matchLabels": {"pool": name}}) for name in ("a", "b")]
    nodes = [make_node(f"{pool}{n}", labels={"pool": pool}) for pool in ("a", "b") for n in range(6)]
    held = (Blocker(Reason.UNMANAGED, ("team-a/db-0",)),)
    version = {policy.name: policy.version for policy in policies}
    looks = {node.name: Look(version[node.name[0]], "", at(-90), 9, held) for node in nodes}
    snapshot = make_snapshot(nodes, policies, memory=PassMemory(looks=looks))
    plan = plan_rollout(snapshot, NOW)
    assert len(plan.memory.wants_pods) == LOOKS
    assert plan.memory.looks == looks, "what was found last stays"
    assert {verdict.reason for verdict in plan.verdicts.values()} == {Reason.UNMANAGED}
    work = {name: make_work(make_pod("db-0", owner=None)) for name in plan.memory.wants_pods}
    after = plan_rollout(replace(snapshot, work=work), NOW)
    assert after.memory.wants_pods == frozenset(), "they were listed a moment ago"
    assert {name for name, look in after.memory.looks.items() if look.at == NOW} == set(work)
    assert after.wake_at == at(5)
    still = plan_rollout(replace(snapshot, memory=after.memory), at(4))
    assert still.memory.wants_pods == frozenset()
    following = plan_rollout(replace(snapshot, memory=after.memory), at(5))
    assert len(following.memory.wants_pods) == LOOKS
    assert not following.memory.wants_pods & plan.memory.wants_pods, "the others come next"


# --- a node whose change has begun stays its policy's business -----------------------------------------------------

A100 = "NVIDIA A100-SXM4-80GB"


def sharing(replicas: int, products: tuple[str, ...] = (), **rollout: int) -> World:
    """Two H100 nodes and an A100 node that are to share their GPUs, one after the other."""
    world = World()
    for name, product in (("a0", A100), ("n1", H100), ("n2", H100)):
        world.add_node(name, NodeMachine(name, (product,)))
    world.set_policy(make_policy(mode="Full"))
    world.settle()
    edit(world, replicas, products, **rollout)
    return world


def edit(world: World, replicas: int, products: tuple[str, ...] = (), **rollout: int) -> None:
    world.set_policy(
        make_policy(
            mode="TimeSlicing",
            timeSlicing={"replicas": replicas},
            products=[bare_product(product) for product in products],
            rollout={"maxUnavailable": 1, **rollout},
            drain={"strandedPods": "Allow"},
        )
    )


def changing(name: str) -> Callable[[World], bool]:
    def reached(world: World) -> bool:
        fence = world.nodes[name].fence
        return fence is not None and fence.stage == "actuating"

    return reached


def test_a_product_that_is_left_out_in_the_middle_of_its_change_keeps_its_slot_and_is_told() -> None:
    world = sharing(4)
    pass_time(world, 1000, until=changing("a0"))
    assert world.nodes["a0"].fence is not None
    edit(world, 2, (H100,))
    pass_time(world, 200, seconds=15)
    plan, snapshot = world.plan(), world.snapshot()
    assert (plan.verdicts["a0"].phase, plan.verdicts["a0"].reason) == (Phase.FAILED, Reason.PRODUCT_SKIPPED)
    pool = plan.pools["pool-b"]
    assert (pool.total, pool.limit, pool.used) == (3, 1, 1)
    assert [name for name, node in world.nodes.items() if node.unschedulable] == ["a0"]
    status = policy_status(snapshot.policies[0], plan, snapshot, {}, world.now)
    told = {row["type"]: (row["status"], row["reason"]) for row in status["conditions"]}
    assert told["Ready"] == ("False", "RolloutInProgress")
    assert told["Stalled"] == ("True", "NodesFailed")
    assert [row["node"] for row in status["failures"]] == ["a0"]
    edit(world, 2)
    pass_time(world, 200, seconds=15)
    assert [node.fence for node in world.nodes.values()] == [None] * 3


@pytest.mark.parametrize("failures", [1, 3], ids=["the first halts", "three halt"])
def test_a_node_whose_gpus_vanish_in_its_change_counts_as_failed_and_as_away(failures: int) -> None:
    world = sharing(4, maxFailures=failures)
    pass_time(world, 1000, until=changing("a0"))
    assert vanished(world, "a0")
    pass_time(world, 200, seconds=15)
    plan = world.plan()
    assert plan.verdicts["a0"].phase is Phase.FAILED
    assert [name for name, node in world.nodes.items() if node.unschedulable] == ["a0"]
    waits = {one.reason for one in plan.verdicts.values() if one.phase not in (Phase.FAILED, Phase.SYNCED)}
    assert waits == {Reason.HALTED if failures == 1 else Reason.BUDGET_FULL}
