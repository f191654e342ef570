"""Nodes fenced by DeviceTaintRules in a World where NVIDIA's DRA driver serves the GPUs: every action is held to the invariants, and a node whose rule does not hold is cordoned (docs/adr/0079-a-device-taint-rule-for-a-cordon.md)."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest
from tests.build import NOW, make_snapshot, make_stack
from tests.planning.test_dra import Played
from tests.planning.test_dra_world import FULL, MIG, SMALL, disturb, dra_world, phases
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.snapshot.actions import Actuate, Evict, FenceNode, Release, UpdateFence, WriteRules
from gpusharing.planning.snapshot.nvidia import RULE_PREFIX, TaintRuleView
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.transition.fencing import may_taint
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.objects import plan_rules

RULE = f"DeviceTaintRule {RULE_PREFIX}gpu-1"


def taint_world(*names: str) -> World:
    """Nodes at rest with whole GPUs, and a scheduler that was shown to obey DeviceTaintRules."""
    world = dra_world(*names)
    dra = replace(world.stack.dra, taints_work=True)
    world.stack = replace(world.stack, dra=dra)
    return world


def with_holder(world: World, name: str = "gpu-1", **more: object) -> str:
    """Start a pod with a GPU on a node, by a ResourceClaim, and return its UID."""
    assert world.add_pod(name)
    uid, pod = list(world.pods[name].items())[-1]
    world.pods[name][uid] = replace(pod, dra="gpu", **more)  # type: ignore[arg-type]  # fields of PodView
    return uid


def until(world: World, holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        world.act_everywhere()
        world.step()
        world.now += timedelta(seconds=2)
    raise AssertionError("it never did")


def closed_world(stage: str = "fenced") -> World:
    """gpu-1 with a pod that holds a GPU, behind its rule, in this stage of its change."""
    world = taint_world("gpu-1")
    with_holder(world)
    world.refusing = stage == "fenced"
    world.set_policy(MIG)
    until(world, lambda: world.nodes["gpu-1"].rule_since is not None and fence_of(world).stage == stage)
    return world


def fence_of(world: World, name: str = "gpu-1") -> Fence:
    fence = world.nodes[name].fence
    assert fence is not None
    return fence


def count_of(world: World, kind: type) -> int:
    return sum(isinstance(one, kind) for one in world.done)


def test_a_node_changes_behind_its_rule_stays_schedulable_and_loses_the_rule_at_the_end() -> None:
    world = taint_world("gpu-1", "gpu-2")
    uid = with_holder(world)
    for policy in (MIG, SMALL, FULL):
        done = len(world.done)
        world.set_policy(policy)
        until(world, lambda: any(node.fence is not None for node in world.nodes.values()))
        assert phases(world.settle()) == {Phase.SYNCED}
        steps = world.done[done:]
        assert all(one.fence.tainted and not one.cordon for one in steps if isinstance(one, FenceNode))
        assert not any(one.uncordon for one in steps if isinstance(one, Release))
        rules = [one for one in steps if isinstance(one, WriteRules)]
        assert sorted(name for one in rules for name in one.create) == ["gpu-1", "gpu-2"]
        assert sorted(rule.node for one in rules for rule in one.remove) == ["gpu-1", "gpu-2"]
        for node in world.nodes.values():
            assert (node.rule_since, node.unschedulable) == (None, False)
    assert [one.uid for one in world.done if isinstance(one, Evict)] == [uid]


def test_nothing_is_evicted_before_the_rule_is_in_place_and_the_scheduler_had_time_to_see_it() -> None:
    world = taint_world("gpu-1")
    with_holder(world)
    world.set_policy(MIG)
    until(world, lambda: world.nodes["gpu-1"].fence is not None)
    verdict = world.plan().verdicts["gpu-1"]
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.CORDONED, Reason.SETTLING, ())
    assert not lacks(verdict.message, RULE, "not in place yet", "no pod is evicted")
    until(world, lambda: world.nodes["gpu-1"].rule_since is not None)
    assert "closed to GPU pods by a DeviceTaintRule" in world.plan().verdicts["gpu-1"].message
    until(world, lambda: count_of(world, Evict) == 1)
    closed, settle = world.nodes["gpu-1"].closed_since, timedelta(seconds=world.settings.settle)
    assert closed is not None
    assert world.now >= closed + settle


@pytest.mark.parametrize("stage", ["fenced", "actuating"])
def test_a_rule_that_somebody_deletes_is_written_again_and_nothing_is_evicted_or_run_meanwhile(stage: str) -> None:
    world = closed_world(stage)
    world.nodes["gpu-1"] = replace(world.nodes["gpu-1"], rule_since=None)
    plan = world.plan()
    assert [one.create for one in plan.shared if isinstance(one, WriteRules)] == [("gpu-1",)]
    assert (plan.verdicts["gpu-1"].actions, plan.verdicts["gpu-1"].reason) == ((), Reason.SETTLING)
    world.refusing = False
    assert phases(world.settle()) == {Phase.SYNCED}
    assert count_of(world, UpdateFence) == 0


def test_an_operator_killed_before_any_write_is_followed_by_one_that_leaves_no_rule_and_no_open_drain() -> None:
    world, crashes = taint_world("gpu-1"), 0
    with_holder(world)
    world.set_policy(MIG)
    for _ in range(150):
        plan = world.plan()
        for twin in world.killed(plan):
            assert phases(twin.settle()) == {Phase.SYNCED}
            assert count_of(twin, Release) == 1
            node = twin.nodes["gpu-1"]
            assert (node.rule_since, node.unschedulable) == (None, False)
            crashes += 1
        if phases(plan) == {Phase.SYNCED} and not plan.shared:
            break
        world.act_everywhere()
        world.step()
        world.now += timedelta(seconds=2)
    assert {WriteRules, FenceNode, Evict, Actuate, Release} <= {type(one) for one in world.done}
    assert crashes > 10


def test_a_pod_that_starts_behind_the_rule_turns_the_fence_into_a_cordon_and_the_change_ends() -> None:
    world = taint_world("gpu-1")
    world.obeys = False  # somebody has switched the feature gate off since the test
    with_holder(world)
    world.refusing = True
    world.set_policy(MIG)
    until(world, lambda: any(one.phase is Phase.DRAINING for one in world.plan().verdicts.values()))
    world.now += timedelta(seconds=10)
    world.pods["gpu-1"].clear()
    late = with_holder(world)
    told = []

    def is_cordoned() -> bool:
        told.append(world.plan().verdicts["gpu-1"])
        return world.nodes["gpu-1"].unschedulable

    until(world, is_cordoned)
    assert not fence_of(world).tainted
    (swap,) = [one for one in told if one.reason is Reason.DEVICE_TAINT_FAILED]
    ref = world.pods["gpu-1"][late].ref
    assert not lacks(swap.message, RULE, ref, "cordons the node")
    world.refusing = False
    assert phases(world.settle()) == {Phase.SYNCED}
    assert (world.nodes["gpu-1"].rule_since, world.nodes["gpu-1"].unschedulable) == (None, False)


def evading(world: World) -> None:
    with_holder(world, evades_rules=True)


def rebooting(world: World) -> None:
    policy = world.stack.cluster_policy
    assert policy is not None
    world.stack = replace(world.stack, cluster_policy=replace(policy, with_reboot=True))


def held(world: World) -> None:
    world.nodes["gpu-1"] = replace(world.nodes["gpu-1"], hold_cordon=True)


def ignored(world: World) -> None:
    error = "kube-scheduler ignores DeviceTaintRules"
    world.stack = replace(world.stack, dra=replace(world.stack.dra, taints_work=False, taint_error=error))


@pytest.mark.parametrize("case", [evading, rebooting, held, ignored], ids=lambda one: one.__name__)
def test_a_node_is_cordoned_from_the_start_where_a_rule_would_not_be_enough(case: Callable[[World], None]) -> None:
    world = taint_world("gpu-1")
    case(world)
    world.set_policy(MIG)
    until(world, lambda: world.nodes["gpu-1"].fence is not None)
    assert not fence_of(world).tainted
    assert world.nodes["gpu-1"].unschedulable
    assert phases(world.settle()) <= {Phase.SYNCED, Phase.PENDING}
    assert not [one for one in world.done if isinstance(one, WriteRules)]


def unserved(world: World) -> None:
    world.nodes["gpu-1"] = replace(world.nodes["gpu-1"], rule_since=None)
    dra = replace(world.stack.dra, taints_work=False, taint_error="403", rule_error="403")
    world.stack = replace(world.stack, dra=dra)


def rebooting_now(world: World) -> None:
    fence = replace(fence_of(world), disruption=DisruptionClass.REBOOT)
    world.nodes["gpu-1"] = replace(world.nodes["gpu-1"], fence=fence)


def maintained(world: World) -> None:
    world.nodes["gpu-1"] = replace(world.nodes["gpu-1"], foreign="kured")


WORDS: dict[Callable[[World], None], str] = {
    unserved: f"{RULE} is not in place (403)",
    rebooting_now: "all pods must leave, because the change reboots the node",
    held: "annotation gpusharing.dev/hold-cordon asks for a cordon",
    maintained: "kured is working on gpu-1",
}


@pytest.mark.parametrize("stage", ["fenced", "actuating"])
@pytest.mark.parametrize("case", WORDS, ids=lambda one: one.__name__)
def test_a_rule_that_is_no_longer_enough_is_replaced_by_a_cordon_at_once(
    case: Callable[[World], None], stage: str
) -> None:
    world = closed_world(stage)
    case(world)
    verdict = world.plan().verdicts["gpu-1"]
    assert verdict.reason is Reason.DEVICE_TAINT_FAILED
    assert not lacks(verdict.message, WORDS[case], "cordons the node")
    (swap,) = verdict.actions
    assert isinstance(swap, UpdateFence)
    assert (swap.cordon, swap.fence.tainted, swap.fence.prior_unschedulable) == (True, False, False)


def test_a_rule_may_not_fence_a_node_where_the_device_plugin_serves_the_gpus() -> None:
    played = Played()
    works = replace(played.stack.dra, taints_work=True)
    case = played.case(MIG, NOW)
    on_dra = replace(played.stack, dra=works)
    assert may_taint(replace(case, stack=on_dra))
    assert not may_taint(replace(case, stack=make_stack(MIG, dra=works)))


def test_a_person_s_cordon_stays_when_the_change_behind_a_rule_ends() -> None:
    world = closed_world()
    world.nodes["gpu-1"] = replace(world.nodes["gpu-1"], unschedulable=True)
    world.human_cordons.add("gpu-1")
    world.refusing = False
    world.settle()
    assert world.nodes["gpu-1"].unschedulable
    assert world.nodes["gpu-1"].fence is None
    assert world.nodes["gpu-1"].rule_since is None


def test_a_node_that_was_cordoned_before_rules_were_used_keeps_its_cordon_until_its_change_ends() -> None:
    world = dra_world("gpu-1")
    with_holder(world)
    world.refusing = True
    world.set_policy(MIG)
    until(world, lambda: world.nodes["gpu-1"].fence is not None)
    dra = replace(world.stack.dra, taints_work=True)
    world.stack, world.refusing = replace(world.stack, dra=dra), False
    world.restart()
    assert phases(world.settle()) == {Phase.SYNCED}
    assert not [one for one in world.done if isinstance(one, WriteRules)]
    assert not world.nodes["gpu-1"].unschedulable


def test_rules_without_a_fence_or_with_another_spec_go_and_that_of_an_unreadable_fence_stays() -> None:
    world = taint_world("gpu-1", "gpu-2", "gpu-3")
    fence = replace(world.nodes["gpu-1"], fence=None)
    unread = replace(fence, name="gpu-2", fence_error="version 9")
    changed, orphan, kept, test = (
        TaintRuleView(name, f"uid-{name}", since)
        for name, since in (
            (f"{RULE_PREFIX}gpu-3", None),
            (f"{RULE_PREFIX}gone", world.now),
            (f"{RULE_PREFIX}gpu-2", world.now),
            ("gpusharing-taint-test", world.now),
        )
    )
    until_fenced = taint_world("gpu-3")
    until_fenced.set_policy(MIG)
    until(until_fenced, lambda: until_fenced.nodes["gpu-3"].fence is not None)
    snapshot = replace(
        make_snapshot([fence, unread, until_fenced.nodes["gpu-3"]]), taint_rules=(changed, orphan, kept, test)
    )
    assert plan_rules(snapshot, ()) == WriteRules(remove=(changed, orphan))
    assert plan_rules(snapshot, {"gpu-3"}) == WriteRules(remove=(orphan,))
    assert plan_rules(replace(snapshot, taint_rules=(kept,)), ()) == WriteRules(create=("gpu-3",))
    assert plan_rules(replace(snapshot, taint_rules=(kept,)), {"gpu-3"}) is None


def tamper(world: World, random: Random) -> None:
    name = random.choice(sorted(world.nodes))
    node = world.nodes[name]
    match random.randrange(5):
        case 0:
            world.nodes[name] = replace(node, rule_since=None)
        case 1:
            world.obeys = not world.obeys
        case 2:
            world.nodes[name] = replace(node, hold_cordon=not node.hold_cordon)
        case 3:
            works = not world.stack.dra.taints_work
            world.stack = replace(world.stack, dra=replace(world.stack.dra, taints_work=works, taint_error=""))
        case _:
            error = "" if world.stack.dra.rule_error else "403"
            world.stack = replace(world.stack, dra=replace(world.stack.dra, rule_error=error))


@pytest.mark.parametrize("seed", range(30))
def test_no_disturbance_breaks_an_invariant_or_leaves_a_rule_behind(seed: int) -> None:
    random, world = Random(seed), taint_world("gpu-1", "gpu-2")
    world.set_policy(MIG)
    until(world, lambda: any(node.fence is not None for node in world.nodes.values()))
    for _ in range(60):
        world.act_everywhere()
        if random.random() < 0.4:
            (tamper if random.random() < 0.5 else disturb)(world, random)
        world.step()
        world.now += timedelta(seconds=random.choice([1, 2, 10, 60]))
    for one in world.machines.values():
        one.temper = "works"
    world.obeys = True
    for name, node in world.nodes.items():
        world.nodes[name] = replace(node, hold_cordon=False)
    world.settle(approving=True)
    assert all(node.rule_since is None for node in world.nodes.values() if node.fence is None)
    assert any(one.fence.tainted for one in world.done if isinstance(one, FenceNode))


def test_a_policy_says_why_its_nodes_are_cordoned_although_rules_were_asked_for() -> None:
    world = taint_world("gpu-1")
    ignored(world)
    plan = world.plan()
    status = policy_status(world.policies[0], plan, world.snapshot(), {}, world.now)
    (row,) = [row for row in status["conditions"] if row["type"] == "Accepted"]
    assert row["status"] == "True"
    assert not lacks(row["message"], "dra.deviceTaints", "cordoned", "kube-scheduler")
