"""deletionPolicy Reset is a rollout like any other: what it remembers lasts until the whole pool is proven whole."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.build import make_policy
from tests.planning.cases import pool_of
from tests.planning.habits import person_approves
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.pools.writes import find_forgotten
from gpusharing.planning.snapshot.actions import Action, FenceNode, LabelNode
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators import LABELS
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing, render


def going(size: int, mode: str = "MIG", **rollout: Any) -> World:
    world = pool_of(
        size, make_policy(mode=mode, deletionPolicy="Reset", drain={"strandedPods": "Allow"}, rollout=rollout)
    )
    world.done.clear()
    world.delete_policy("pool-b")
    return world


def passes(world: World, most: int) -> Iterator[tuple[datetime, list[Action]]]:
    """What is done in each pass, until the policy is gone or after so many seconds."""
    for _ in range(most):
        if not world.policies:
            return
        world.act_everywhere()
        before = len(world.done)
        world.step()
        yield world.now, world.done[before:]
        world.now += timedelta(seconds=1)


def starts(world: World, most: int) -> list[datetime]:
    return [at for at, done in passes(world, most) for one in done if isinstance(one, FenceNode)]


def marked(world: World) -> set[str]:
    return {name for name, node in world.nodes.items() if names.LABEL_POLICY in node.labels}


def test_no_further_node_starts_before_the_canary_has_served_for_its_soak() -> None:
    world = going(4, canary={"nodes": 1, "soak": "1h"}, maxUnavailable=3)
    first, *others = starts(world, 4000)
    assert len(others) == 3
    assert min(others) - first > timedelta(hours=1)
    assert world.policies == ()


def test_a_failure_halts_the_others_also_when_it_was_mended() -> None:
    world = going(3, maxFailures=1, maxUnavailable=1)
    for machine in world.machines.values():
        machine.temper = "fails"
    plan = world.settle()
    (failed,) = (one.node for one in plan.verdicts.values() if one.phase is Phase.FAILED)
    world.machines[failed].temper = "works"
    world.nodes[failed] = replace(world.nodes[failed], retry="again")
    plan = world.settle()
    assert {one.reason for name, one in plan.verdicts.items() if name != failed} == {Reason.HALTED}
    assert marked(world) == set(world.nodes)


def test_nodes_that_are_away_after_their_reset_count_in_the_budget() -> None:
    world = going(3, maxUnavailable=1)
    begun, given_back = 0, dict.fromkeys(world.nodes, 0)
    for _, done in passes(world, 400):
        begun += sum(isinstance(one, FenceNode) for one in done)
        for name, node in world.nodes.items():
            given_back[name] += node.fence is None and not world.machines[name].layouts[0]
            world.nodes[name] = replace(node, ready=given_back[name] < 3)
    assert begun == 2, "the second began before the first was away, and with two away no third one does"
    assert marked(world) == set(world.nodes)
    for name, node in world.nodes.items():
        world.nodes[name] = replace(node, ready=True)
    world.settle()
    assert world.policies == ()


def test_one_approval_is_for_the_whole_pool() -> None:
    world = going(4, "MIG")
    (policy,) = world.policies
    assert policy.spec is not None
    rollout = policy.spec.rollout.model_copy(update={"approval": "Manual"})
    world.policies = (replace(policy, spec=policy.spec.model_copy(update={"rollout": rollout})),)
    plan = world.settle()
    assert {one.reason for one in plan.verdicts.values()} == {Reason.APPROVAL_NEEDED}
    assert person_approves(world, "pool-b", plan)
    world.settle()
    assert len(world.policies) == 0


def test_nothing_is_forgotten_of_a_policy_that_stays() -> None:
    world = pool_of(2, make_policy(mode="Full", deletionPolicy="Reset"))
    plan = world.plan()
    assert find_forgotten(plan.pools, plan.verdicts, world.nodes, LABELS) == {}


def test_no_node_is_forgotten_before_all_are_proven_whole() -> None:
    world = going(3)
    forgotten: list[datetime] = []
    for at, done in passes(world, 400):
        forgotten += [at for one in done if isinstance(one, LabelNode) and one.forget]
        if not forgotten:
            assert marked(world) == set(world.nodes)
    assert len(forgotten) == 3
    assert len(set(forgotten)) == 1


@pytest.mark.parametrize("what", ["its agent is away", "it is not Ready"])
def test_a_whole_node_that_nobody_sees_now_keeps_the_policy(what: str) -> None:
    world = going(2, "Full")
    world.step()
    assert all(node.verified and not node.verified.plugin_config for node in world.nodes.values())
    world.nodes["n0"] = replace(world.nodes["n0"], ready=what != "it is not Ready")
    world.agents_down |= {"n0"} if what == "its agent is away" else set()
    plan = world.settle()
    assert plan.verdicts["n0"].phase is Phase.BLOCKED
    assert world.policies != ()


def test_the_forgetting_goes_on_where_it_was_interrupted() -> None:
    world = going(3)
    for _ in range(400):
        world.act_everywhere()
        plan = world.plan()
        if any(isinstance(one, LabelNode) for verdict in plan.verdicts.values() for one in verdict.actions):
            break
        world.step()
        world.now += timedelta(seconds=1)
    world.step(limit=len(plan.shared) + 1)
    assert len(marked(world)) == 2
    world.settle()
    assert (marked(world), world.policies) == (set(), ())


# --- the label of the device plugin -----------------------------------------------------------------------------


def shared_by_default(world: World, text: str) -> None:
    """ClusterPolicy's devicePlugin.config.default names an entry with this text."""
    policy = world.stack.cluster_policy
    assert policy is not None, "the world has one"
    entries = {**world.stack.plugin_configs, "usual": text}
    stack = replace(world.stack, cluster_policy=replace(policy, plugin_default="usual"), plugin_configs=entries)
    world.stack = stack


SHARED = render(PluginConfig("none", Sharing((("nvidia.com/gpu", 4),), strategy="time-slicing")))
HELD = {"paused": {"paused": True}, "frozen": {"maxUnavailable": 0}}


@pytest.mark.parametrize("how", HELD)
def test_while_a_policy_is_held_its_whole_nodes_keep_the_label_of_the_device_plugin(how: str) -> None:
    """Taking it off restarts the plugin."""
    world = reset_from_mig_to_full()
    (policy,) = world.policies
    assert policy.spec is not None
    held = GPUSharingPolicySpec.model_validate(
        {**policy.spec.model_dump(by_alias=True, exclude_unset=True), "rollout": HELD[how]}
    )
    world.policies = (replace(policy, spec=held),)
    world.delete_policy("pool-b")
    world.settle()
    assert all(names.LABEL_PLUGIN_CONFIG in node.labels for node in world.nodes.values())
    assert len(world.policies) == 1


def reset_from_mig_to_full(size: int = 3) -> World:
    """Whole GPUs, to which the pool came by a change, so that the plugin has a label."""
    world = pool_of(size, make_policy(mode="MIG", deletionPolicy="Reset"))
    world.set_policy(make_policy(mode="Full", deletionPolicy="Reset", drain={"strandedPods": "Allow"}))
    world.settle()
    assert all(names.LABEL_PLUGIN_CONFIG in node.labels for node in world.nodes.values())
    return world


def test_device_plugins_restart_within_the_budget_and_without_a_drain() -> None:
    world = reset_from_mig_to_full()
    for name in world.nodes:
        world.add_pod(name)
    world.done.clear()
    world.delete_policy("pool-b")
    most = 0
    for _ in passes(world, 400):
        most = max(most, sum(node.fence is not None for node in world.nodes.values()))
        assert not any(node.unschedulable for node in world.nodes.values())
    assert (most, world.policies) == (1, ())
    assert all(names.LABEL_PLUGIN_CONFIG not in node.labels for node in world.nodes.values())
    assert all(len(pods) == 1 for pods in world.pods.values())
    assert len([one for one in world.done if isinstance(one, FenceNode)]) == 3


@pytest.mark.parametrize("mode", ["MIG", "Full"])
def test_where_the_default_shares_the_label_stays_and_that_is_told(mode: str) -> None:
    world = reset_from_mig_to_full() if mode == "Full" else going(2)
    shared_by_default(world, SHARED)
    if mode == "Full":
        world.settle()
        world.delete_policy("pool-b")
    told = set()
    for _ in range(600):
        world.act_everywhere()
        told |= {one.message for one in world.step().verdicts.values() if one.reason is Reason.DELETING}
        world.now += timedelta(seconds=1)
    assert len(world.policies) == 0
    assert any("removes its labels except nvidia.com/device-plugin.config" in one for one in told)
    for node in world.nodes.values():
        assert dict(node.resources) == {"nvidia.com/gpu": 1}
        assert names.LABEL_PLUGIN_CONFIG in node.labels


def test_a_default_that_shares_nothing_needs_no_label() -> None:
    world = going(2)
    shared_by_default(world, "version: v1\n")
    world.settle()
    assert len(world.policies) == 0
    assert not any(names.LABEL_PLUGIN_CONFIG in node.labels for node in world.nodes.values())
