"""deletionPolicy Reset: a deleted policy brings its nodes to whole GPUs first (docs/design/transition.md#reset)."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.build import POOL_LABELS, make_cluster_policy, make_gpu, make_node, make_policy, make_stack
from tests.configs import make_shared, target_for
from tests.planning.cases import FULL, NODE, pool_of, run_until
from tests.planning.habits import person_approves
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Mode, Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.pools.writes import find_forgotten
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Action, Evict, FenceNode, LabelNode, Release
from gpusharing.planning.snapshot.nvidia import PlainStackView
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators import LABELS
from gpusharing.planning.wanted.ownership import Owners, find_contenders
from gpusharing.planning.wanted.pluginconfig import NEUTRAL, NEUTRAL_KEY, PluginConfig, Sharing, render
from gpusharing.planning.wanted.target import Target, under_deletion, without_default_label

OURS = (names.LABEL_POLICY, names.LABEL_MODE, names.LABEL_PLUGIN_CONFIG)
RESET: dict[str, Any] = {"deletionPolicy": "Reset", "drain": {"strandedPods": "Allow"}}


def rested(size: int = 1, mode: str = "MIG", **fields: Any) -> World:
    return pool_of(size, make_policy(mode=mode, **{**RESET, **fields}))


def test_the_finalizer_is_held_from_the_start_and_at_rest() -> None:
    assert rested().policies[0].finalizer
    assert not pool_of(1, make_policy()).policies[0].finalizer


@pytest.mark.parametrize("mode", ["MIG", "MPS", "TimeSlicing", "Full"])
def test_every_node_becomes_whole_and_keeps_nothing_of_ours_and_then_the_policy_goes(mode: str) -> None:
    world = rested(2, mode)
    for name in world.nodes:
        world.add_pod(name)
    world.delete_policy("pool-b")
    world.settle()
    assert world.policies == ()
    for node in world.nodes.values():
        assert dict(node.resources) == {"nvidia.com/gpu": 1}
        assert not set(OURS) & node.labels.keys()
        assert (node.verified, node.deferred, node.fence, node.unschedulable) == (None, None, None, False)
    assert world.claims == {}


@pytest.mark.parametrize("stays", ["pool-a", "pool-c"])
def test_a_policy_that_stays_keeps_no_other_from_going(stays: str) -> None:
    world, theirs = rested(), dict.fromkeys(POOL_LABELS, "c")
    world.add_node("other")
    world.nodes["other"] = replace(world.nodes["other"], labels={**world.nodes["other"].labels, **theirs})
    world.set_policy(make_policy(stays, "Full", nodeSelector={"matchLabels": theirs}))
    world.settle()
    world.delete_policy("pool-b")
    world.settle()
    assert [policy.name for policy in world.policies] == [stays]
    assert names.LABEL_POLICY not in world.nodes["n0"].labels
    assert world.nodes["other"].labels[names.LABEL_POLICY] == stays


def test_pods_leave_by_eviction_and_within_the_budget_as_ever() -> None:
    world = rested(3)
    for name in world.nodes:
        world.add_pod(name)
    world.delete_policy("pool-b")
    world.done.clear()
    assert max(sum(node.unschedulable for node in world.nodes.values()) for _ in passes(world, 400)) == 1
    assert world.policies == ()
    assert len([one for one in world.done if isinstance(one, Evict)]) == 3
    forgets = [one for one in world.done if isinstance(one, LabelNode) and one.forget]
    assert len(forgets) == len([one for one in world.done if isinstance(one, Release)]) == 3


def test_a_node_that_is_proven_whole_holds_up_no_other_though_its_labels_are_still_to_go() -> None:
    """Its claim goes in the same pass: counted as used, it would tear a gang apart."""
    world = rested(2)
    world.delete_policy("pool-b")
    for plan, _ in passes(world, 600):
        if forgotten := [one for one in plan.verdicts.values() if one.reason is Reason.DELETING]:
            break
    assert [one.phase for one in forgotten] == [Phase.SYNCED] * 2
    assert plan.pools["pool-b"].used == 0


def test_a_node_in_the_middle_of_a_change_turns_to_whole_gpus() -> None:
    world = rested()
    world.set_policy(make_policy(mode="TimeSlicing", **RESET))
    run_until(world, Phase.RECONFIGURING, node="n0")
    world.delete_policy("pool-b")
    world.settle()
    assert world.policies == ()
    assert dict(world.nodes["n0"].resources) == {"nvidia.com/gpu": 1}


def test_while_a_node_is_kept_the_policy_stays_and_says_by_what() -> None:
    world = rested()
    world.nodes["n0"] = replace(world.nodes["n0"], unschedulable=True)
    world.human_cordons.add("n0")
    world.delete_policy("pool-b")
    world.settle()
    status = policy_status(world.policies[0], world.plan(), world.snapshot(), {}, world.now)
    assert status["summary"]["status"] == "Deleting"
    assert not lacks(status["summary"]["message"], "1 node", "whole GPUs", "n0", "cordoned")
    (ready,) = (row for row in status["conditions"] if row["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Deleting")
    world.nodes["n0"] = replace(world.nodes["n0"], unschedulable=False)
    world.human_cordons.clear()
    world.settle()
    assert world.policies == ()


def test_a_failed_node_keeps_the_policy_until_somebody_gives_it_up() -> None:
    world = rested()
    world.machines["n0"].temper = "fails"
    world.delete_policy("pool-b")
    assert world.settle().verdicts["n0"].phase is Phase.FAILED
    (policy,) = world.policies
    given_up = replace(policy, deleting=True, resetting=False, force_release=True)
    world.policies = tuple(under_deletion(one, resets=True) for one in [given_up])
    world.settle()
    assert len(world.policies) == 0
    assert (world.nodes["n0"].fence, world.nodes["n0"].unschedulable) == (None, True)


def test_a_node_of_no_business_is_given_up_as_it_is() -> None:
    world = rested(products=["NVIDIA-H100-80GB-HBM3"])
    (policy,) = world.policies
    assert policy.spec is not None
    spec = policy.spec.model_copy(update={"products": ("Tesla-T4",)})
    world.set_policy(replace(policy, spec=spec))
    world.settle()
    world.delete_policy("pool-b")
    world.settle()
    assert world.policies == ()
    assert dict(world.nodes["n0"].resources) == {"nvidia.com/mig-3g.40gb": 2}


# --- whose nodes ------------------------------------------------------------------------------------------------


def owner(node_policy: str, *policies: PolicyView) -> str:
    labels = {"gpusharing.dev/pool": "b"} | ({names.LABEL_POLICY: node_policy} if node_policy else {})
    return Owners(find_contenders(policies)).owner(make_node(NODE, labels=labels))


GOES = under_deletion(make_policy(deleting=True, finalizer=True, **RESET), resets=True)
HIGH = replace(GOES, spec=GOES.spec.model_copy(update={"priority": 9}) if GOES.spec else None)


def test_a_policy_that_goes_keeps_its_nodes_and_takes_no_other() -> None:
    assert owner("pool-b", GOES) == "pool-b"
    assert owner("", GOES) == ""
    assert owner("", HIGH, make_policy("pool-c")) == "pool-c"


def test_what_another_policy_selects_too_goes_to_that_one_without_a_stop_at_whole_gpus() -> None:
    assert owner("pool-b", HIGH, make_policy("pool-c")) == "pool-c"


# --- when a policy is reset -------------------------------------------------------------------------------------

AWAY = make_policy(deleting=True, finalizer=True, **RESET)
RESETS: dict[str, tuple[PolicyView, bool, bool]] = {
    "it is being deleted": (AWAY, True, True),
    "it is not being deleted": (replace(AWAY, deleting=False), True, False),
    "it says Retain": (AWAY, False, False),
    "our finalizer is not on it: it is gone in a moment": (replace(AWAY, finalizer=False), True, False),
    "a person gives it up": (replace(AWAY, force_release=True), True, False),
}


@pytest.mark.parametrize(("policy", "resets", "expected"), RESETS.values(), ids=RESETS)
def test_a_policy_is_reset_when(policy: PolicyView, resets: bool, expected: bool) -> None:
    seen = under_deletion(policy, resets=resets)
    assert (seen.resetting, seen.going) == (expected, policy.deleting)
    assert seen.spec is not None
    assert (seen.spec.mode is Mode.FULL) is expected
    assert expected is (seen is not policy)


def test_what_cannot_be_read_keeps_its_finalizer_and_its_nodes() -> None:
    world = rested()
    (policy,) = world.policies
    world.policies = (replace(policy, spec=None),)
    world.settle()
    assert world.policies[0].finalizer
    unread = under_deletion(replace(policy, spec=None, deleting=True), resets=True)
    world.policies = (unread,)
    plan = world.settle()
    assert world.policies == (unread,)
    assert plan.verdicts["n0"].reason is Reason.INVALID_SPEC


@pytest.mark.parametrize(
    ("default", "stays"), [(render(make_shared(4)), True), (NEUTRAL, False)], ids=["shares", "shares nothing"]
)
def test_where_nvidias_chart_takes_the_entry_default_the_label_stays_as_long_as_that(default: str, stays: bool) -> None:
    plain = replace(make_cluster_policy(), plain=PlainStackView("nvdp", "nvdp"))
    stack = make_stack(FULL, cluster_policy=plain)
    stack = replace(stack, plugin_configs={**stack.plugin_configs, NEUTRAL_KEY: default})
    target = target_for(FULL, [make_gpu()], stack)
    assert isinstance(target, Target)
    assert (without_default_label(target, stack) == target) is stays


# --- a reset is a rollout like any other -------------------------------------------------------------------------------


def going(size: int, mode: str = "MIG", **rollout: Any) -> World:
    world = rested(size, mode, rollout=rollout)
    world.done.clear()
    world.delete_policy("pool-b")
    return world


def passes(world: World, most: int) -> Iterator[tuple[RolloutPlan, list[Action]]]:
    """The plan of each pass and what is done in it, until the policy is gone or after so many seconds."""
    for _ in range(most):
        if not world.policies:
            return
        world.act_everywhere()
        before = len(world.done)
        yield world.step(), world.done[before:]
        world.now += timedelta(seconds=1)


def marked(world: World) -> set[str]:
    return {name for name, node in world.nodes.items() if names.LABEL_POLICY in node.labels}


def test_no_further_node_starts_before_the_canary_has_served_for_its_soak() -> None:
    world = going(4, canary={"nodes": 1, "soak": "1h"}, maxUnavailable=3)
    starts = [world.now for _, done in passes(world, 4000) for one in done if isinstance(one, FenceNode)]
    first, *others = starts
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
    for _, done in passes(world, 400):
        forgotten += [world.now for one in done if isinstance(one, LabelNode) and one.forget]
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
    world = rested(size)
    world.set_policy(make_policy(mode="Full", **RESET))
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
    verdicts = (one for plan, _ in passes(world, 600) for one in plan.verdicts.values())
    told = {one.message for one in verdicts if one.reason is Reason.DELETING}
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
