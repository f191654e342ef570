"""deletionPolicy Reset: a deleted policy brings its nodes to whole GPUs first (docs/design/transition.md#reset)."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import POOL_LABELS, make_cluster_policy, make_gpu, make_node, make_policy, make_stack
from tests.configs import make_shared, target_for
from tests.planning.cases import FULL, NODE, pool_of, run_until
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Mode, Phase
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.snapshot.actions import Evict, LabelNode, Release
from gpusharing.planning.snapshot.nvidia import PlainStackView
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.ownership import Owners, find_contenders
from gpusharing.planning.wanted.pluginconfig import NEUTRAL, NEUTRAL_KEY, render
from gpusharing.planning.wanted.target import Target, under_deletion, without_default_label

OURS = (names.LABEL_POLICY, names.LABEL_MODE, names.LABEL_PLUGIN_CONFIG)
RESET: dict[str, Any] = {"deletionPolicy": "Reset", "drain": {"strandedPods": "Allow"}}


def rested(size: int = 1, mode: str = "MIG", **fields: Any) -> World:
    return pool_of(size, make_policy(mode=mode, **{**RESET, **fields}))


def shown(world: World) -> dict[str, Any]:
    plan = world.plan()
    return policy_status(world.policies[0], plan, world.snapshot(), {}, world.now)


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
    away = 0
    while world.policies:
        world.act_everywhere()
        world.step()
        away = max(away, sum(node.unschedulable for node in world.nodes.values()))
        world.now += timedelta(seconds=1)
    assert away == 1
    assert len([one for one in world.done if isinstance(one, Evict)]) == 3
    forgets = [one for one in world.done if isinstance(one, LabelNode) and one.forget]
    assert len(forgets) == len([one for one in world.done if isinstance(one, Release)]) == 3


def test_a_node_that_is_proven_whole_holds_up_no_other_though_its_labels_are_still_to_go() -> None:
    """Its claim goes in the same pass: counted as used, it would tear a gang apart."""
    world = rested(2)
    world.delete_policy("pool-b")
    for _ in range(600):
        world.act_everywhere()
        plan = world.step()
        forgotten = [one for one in plan.verdicts.values() if one.reason is Reason.DELETING]
        world.now += timedelta(seconds=1)
        if forgotten:
            break
    assert [one.phase for one in forgotten] == [Phase.SYNCED] * 2
    assert plan.pools["pool-b"].used == 0


def test_with_retain_the_nodes_stay_as_they_are() -> None:
    world = pool_of(1, make_policy())
    before = dict(world.nodes["n0"].labels)
    world.delete_policy("pool-b")
    world.settle()
    assert world.policies == ()
    assert dict(world.nodes["n0"].labels) == {k: v for k, v in before.items() if k != names.LABEL_POLICY}


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
    status = shown(world)
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
