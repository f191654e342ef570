"""Changes that do not go straight: aborts, deletions, wedges, failures, repair and drift, each to its end."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.build import ask_anew, make_policy
from tests.planning.cases import FULL, MIXED, NODE, SLICED, copy_of, edited, pool_of, run_until, verdict_of, wrote
from tests.planning.deeds import DEEDS
from tests.planning.deletions import force_release
from tests.planning.test_failures import resume
from tests.planning.wires import FOR_EVER
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import Actuate, FenceNode, Release, RestartOperand, UpdateFence
from gpusharing.planning.vocabulary.reasons import Reason

# --- giving up and coming back ------------------------------------------------------------------------------------


def test_a_drain_that_times_out_restores_the_node_waits_longer_each_time_and_gets_there_in_the_end() -> None:
    world = copy_of(FULL)
    world.add_pod(NODE)
    world.refusing = True
    world.set_policy(edited(SLICED))
    waits = []
    for _ in range(3):
        run_until(world, Phase.ABORTING, 3000)
        node = world.nodes[NODE]
        assert node.deferred is not None
        assert (node.unschedulable, node.labels.get(names.LABEL_MODE)) == (False, "full")
        assert names.LABEL_UPGRADE_SKIP not in node.labels
        waits.append((node.deferred.until - world.now).total_seconds())
        world.now = node.deferred.until
    assert waits == [300, 600, 1200]
    world.refusing = False
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert world.nodes[NODE].deferred is None


def test_a_policy_deleted_before_the_pnr_gives_the_node_back_and_goes() -> None:
    world = copy_of(FULL)
    world.add_pod(NODE)
    world.set_policy(edited(SLICED))
    run_until(world, Phase.DRAINING)
    world.delete_policy("pool-b")
    world.settle()
    assert world.policies == ()
    assert (world.nodes[NODE].fence, world.nodes[NODE].unschedulable) == (None, False)
    assert names.LABEL_PLUGIN_CONFIG not in world.nodes[NODE].labels


def test_a_policy_deleted_after_the_pnr_goes_when_its_node_is_proven() -> None:
    world = copy_of(FULL)
    world.set_policy(MIXED)
    run_until(world, Phase.RECONFIGURING)
    world.delete_policy("pool-b")
    assert world.policies[0].deleting
    world.settle()
    assert world.policies == ()
    assert (world.nodes[NODE].fence, world.nodes[NODE].unschedulable) == (None, False)
    assert dict(world.nodes[NODE].resources) == {"nvidia.com/mig-3g.40gb": 2}


def test_force_release_lets_a_policy_go_at_once_and_keeps_the_cordon() -> None:
    world = copy_of(FULL)
    world.machines[NODE].temper = "hangs"
    world.set_policy(MIXED)
    run_until(world, Phase.RECONFIGURING)
    world.delete_policy("pool-b")
    world.step()
    assert world.policies, "a node that may still be proven holds the policy"
    world.policies = tuple(replace(policy, force_release=True) for policy in world.policies)
    world.settle()
    assert (world.policies, world.claims) == ((), {})
    assert (world.nodes[NODE].fence, world.nodes[NODE].unschedulable) == (None, True)


def test_a_policy_starts_nothing_while_a_forced_release_is_about_to_leave_it_a_cordoned_node() -> None:
    world = pool_of(3)
    for name in ("n1", "n2"):
        world.add_pod(name)  # so that n0 is first
    world.set_policy(MIXED)
    run_until(world, Phase.DRAINING, node="n0")
    world.delete_policy("pool-b")
    force_release(world)
    world.wires.faults["n0"] = ("lost", FOR_EVER)
    world.set_policy(make_policy("next", "TimeSlicing", rollout={"maxUnavailable": 1}))
    for _ in range(120):
        world.act_everywhere()
        plan = world.step()
        world.now += timedelta(seconds=1)
        assert fenced(world) == ["n0"]
    assert not lacks(plan.verdicts["n1"].message, "calls to the API server about n0", "slot")
    world.wires.faults.clear()
    plan = world.settle()
    assert (fenced(world), world.nodes["n0"].unschedulable) == ([], True)
    assert "(n0 is cordoned); waiting for a slot" in plan.verdicts["n1"].message
    DEEDS["a person uncordons"](world, "n0")
    assert {verdict.phase for verdict in world.settle().verdicts.values()} == {Phase.SYNCED}


def fenced(world: World) -> list[str]:
    return [name for name, node in world.nodes.items() if node.fence is not None]


def failed_world() -> World:
    world = copy_of(FULL)
    world.machines[NODE].temper = "fails"
    world.set_policy(MIXED)
    assert world.settle().verdicts[NODE].reason is Reason.ACTUATOR_FAILED
    world.machines[NODE].temper = "works"
    world.done.clear()
    return world


def test_a_deleted_policy_goes_at_failed_and_the_node_waits_for_the_next_one() -> None:
    world = failed_world()
    world.delete_policy("pool-b")
    plan = world.settle()
    assert world.policies == ()
    assert (plan.verdicts[NODE].phase, plan.verdicts[NODE].reason) == (Phase.FAILED, Reason.ORPHAN_FENCE)
    assert (world.nodes[NODE].unschedulable, set(world.claims)) == (True, {NODE})
    world.set_policy(make_policy("next", "TimeSlicing"))
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED


@pytest.mark.parametrize("deleted", [False, True], ids=["", "and its old policy is deleted"])
def test_a_failed_node_goes_over_to_its_new_owner_with_fence_cordon_and_slot(deleted: bool) -> None:
    world = failed_world()
    world.set_policy(make_policy("heir", "TimeSlicing", priority=1))
    if deleted:
        world.delete_policy("pool-b")
    plan = world.step()
    (action,) = plan.verdicts[NODE].actions
    assert isinstance(action, UpdateFence)
    assert (action.fence.policy, action.fence.op, action.cordon) == ("heir", world.claims[NODE].op, False)
    assert "heir" in plan.verdicts[NODE].message
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert wrote(world, FenceNode, Release) == ["Release"], "it was never given back in between"
    assert world.nodes[NODE].labels[names.LABEL_POLICY] == "heir"


def test_a_fence_of_an_earlier_node_of_the_name_goes_over_to_nobody() -> None:
    world = failed_world()
    node = world.nodes[NODE]
    assert node.fence is not None
    world.nodes[NODE] = replace(node, fence=replace(node.fence, node_uid="earlier"))
    world.set_policy(make_policy("heir", "TimeSlicing", priority=1))
    verdict = world.settle().verdicts[NODE]
    assert (verdict.phase, verdict.reason, verdict.policy) == (Phase.FAILED, Reason.ORPHAN_FENCE, "pool-b")


def test_a_node_in_the_middle_of_a_change_that_may_succeed_does_not_go_over() -> None:
    world = copy_of(FULL)
    world.set_policy(MIXED)
    run_until(world, Phase.RECONFIGURING)
    world.set_policy(make_policy("heir", "TimeSlicing", priority=1))
    plan = world.step()
    assert not any(isinstance(action, UpdateFence) for action in plan.verdicts[NODE].actions)
    assert plan.verdicts[NODE].policy == "pool-b"


def test_a_node_created_again_with_the_same_name_begins_anew() -> None:
    world = copy_of(FULL)
    world.set_policy(MIXED)
    run_until(world, Phase.RECONFIGURING)
    world.remove_node(NODE)
    world.step()
    assert world.claims == {}
    world.add_node(NODE)
    assert world.settle().verdicts[NODE].reason is Reason.HALTED  # its first life counts as a failure
    resume(world)
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert dict(world.nodes[NODE].resources) == {"nvidia.com/mig-3g.40gb": 2}


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.RECONFIGURING, Phase.VERIFYING])
def test_all_gpunodes_deleted_in_the_middle_make_no_difference_to_the_end(phase: Phase) -> None:
    world = copy_of(FULL)
    world.add_pod(NODE)
    world.set_policy(edited(MIXED))
    run_until(world, phase)
    world.gpunodes.clear()
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert wrote(world, Actuate) == ["Actuate"]


# --- wedges, failures, drift --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temper", ["hangs", "forgets"])
def test_a_wedged_mig_manager_is_restarted_twice_and_then_the_node_is_failed_and_keeps_its_slot(temper: str) -> None:
    world = copy_of(FULL)
    world.machines[NODE].temper = temper  # type: ignore[assignment]  # one of the tempers
    world.set_policy(MIXED)
    plan = world.settle()
    assert len(wrote(world, RestartOperand)) == (2 if temper == "hangs" else 1)
    if temper == "hangs":
        assert plan.verdicts[NODE].phase is Phase.FAILED
        assert world.claims.keys() == {NODE}
        assert world.nodes[NODE].unschedulable


def test_a_failed_node_is_repaired_by_the_retry_annotation() -> None:
    world = copy_of(FULL)
    world.machines[NODE].temper = "fails"
    world.set_policy(MIXED)
    assert world.settle().verdicts[NODE].reason is Reason.ACTUATOR_FAILED
    world.machines[NODE].temper = "works"
    world.nodes[NODE] = replace(world.nodes[NODE], retry="once more")
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED


def test_a_failed_node_is_repaired_by_a_new_generation() -> None:
    world = copy_of(FULL)
    world.machines[NODE].temper = "fails"
    world.set_policy(MIXED)
    world.settle()
    world.machines[NODE].temper = "works"
    world.set_policy(SLICED)
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert dict(world.nodes[NODE].resources) == {"nvidia.com/gpu": 4}


def drift(world: World) -> None:
    node = world.nodes[NODE]
    world.nodes[NODE] = replace(node, labels={**node.labels, names.LABEL_MIG_CONFIG: "all-disabled"})
    for _ in range(4):
        world.act(NODE)


def test_drift_is_shown_put_right_once_per_revision_and_then_left_to_a_person() -> None:
    world = copy_of(MIXED)
    drift(world)
    assert verdict_of(world).reason is Reason.DRIFTED
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert wrote(world, FenceNode)[-1:] == ["FenceNode"]
    drift(world)
    assert world.settle().verdicts[NODE].reason is Reason.DRIFT_RETURNED
    world.nodes[NODE] = replace(world.nodes[NODE], retry="I stopped the other one")
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    drift(world)
    world.set_policy(ask_anew(MIXED))
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED


def test_a_plugin_that_is_down_is_not_drained_for() -> None:
    world = copy_of(MIXED)
    world.done.clear()
    node = world.nodes[NODE]
    world.nodes[NODE] = replace(node, resources={})
    for _ in range(20):
        plan = world.step()
        world.now += timedelta(seconds=30)
    assert plan.verdicts[NODE].reason is Reason.ALLOCATABLE_MISMATCH
    assert world.done == []
