"""Changes that do not go straight, each to its end: aborts, deletions, wedges, failures, repair, drift, and the stop between MPS and MIG."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.build import ask_anew, make_policy
from tests.planning.cases import (
    FULL,
    MIG_SLICED,
    MIXED,
    MPS,
    NODE,
    SINGLE,
    SLICED,
    T4,
    copy_of,
    edited,
    pool_of,
    run_until,
    verdict_of,
    wrote,
)
from tests.planning.deeds import DEEDS
from tests.planning.shareddeeds import force_release
from tests.planning.test_failures import resume
from tests.planning.wires import FOR_EVER
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.snapshot.actions import Actuate, Evict, FenceNode, Release, RestartOperand, UpdateFence
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import PolicyView
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
    world = failed_world()
    world.nodes[NODE] = replace(world.nodes[NODE], retry="once more")
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED


def test_a_failed_node_is_repaired_by_a_new_generation() -> None:
    world = failed_world()
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


# --- from MPS to MIG and back, through whole GPUs (docs/design/nvidia.md#b5, R11) --------------------------------------

EIGHT = make_policy(mode="MPS", mps={"replicas": 8})


def fence_of(world: World) -> Fence:
    fence = world.nodes[NODE].fence
    assert fence is not None
    return fence


def to_step(world: World, step: int, rounds: int = 300) -> None:
    """Let everybody act until the point of no return of this step has passed."""
    for _ in range(rounds):
        world.act(NODE)
        world.step()
        fence = world.nodes[NODE].fence
        if fence is not None and fence.stage == "actuating" and fence.step == step:
            return
        world.now += timedelta(seconds=1)
    raise AssertionError(f"step {step} never began: {verdict_of(world)}")


def settle_killed_after(world: World, number: int, rounds: int = 300) -> bool:
    """Let everybody act until the node is Synced, the operator killed after so many actions. Whether it was."""
    before = len(world.done)
    for _ in range(rounds):
        world.act(NODE)
        left = number - (len(world.done) - before)
        actions = len(world.plan().shared) + len(verdict_of(world).actions)
        world.step(limit=left if left < actions else None)
        if left < actions:
            world.settle()
            return True
        if verdict_of(world).phase is Phase.SYNCED and not world.claims:
            return False
        world.now += timedelta(seconds=1)
    raise AssertionError(f"never Synced: {verdict_of(world)}")


WAYS = {
    "MPS to MIG": (MPS, MIXED, 2, 0),
    "MIG to MPS": (MIG_SLICED, MPS, 2, 0),
    "MPS to another number of clients": (MPS, EIGHT, 1, 1),
}


@pytest.mark.parametrize(("before", "after", "steps", "restarts"), WAYS.values(), ids=WAYS.keys())
def test_an_operator_killed_after_any_action_gets_there_without_doing_anything_twice(
    before: PolicyView, after: PolicyView, steps: int, restarts: int
) -> None:
    number, killed = 1, True
    while killed:
        world = copy_of(before)
        world.add_pod(NODE)
        world.done.clear()
        world.set_policy(edited(after))
        killed = settle_killed_after(world, number)
        number += 1
        assert verdict_of(world).phase is Phase.SYNCED
        assert wrote(world, Actuate) == ["Actuate"] * steps
        assert wrote(world, Evict) == ["Evict"]
        assert wrote(world, RestartOperand) == ["RestartOperand"] * restarts
        assert not world.nodes[NODE].unschedulable
    assert number > 12, "that many actions were cut off"


def test_the_first_step_proves_whole_gpus_before_the_second_asks_for_mig() -> None:
    world = copy_of(MPS)
    world.set_policy(edited(MIXED))
    assert verdict_of(world).disruption is DisruptionClass.RESET
    to_step(world, 1)
    fence = fence_of(world)
    assert (fence.steps, fence.to_layout, fence.target_mig_config) == (2, "1x full", "all-disabled")
    assert verdict_of(world).step == "1/2"
    assert verdict_of(world).wanted == "2x3g.40gb"
    to_step(world, 2)
    assert (fence_of(world).to_layout, verdict_of(world).step) == ("2x3g.40gb", "2/2")
    assert not world.machines[NODE].exclusive
    assert world.settle().verdicts[NODE].observed == "2x3g.40gb"


def test_a_stray_process_holds_up_the_second_step_too() -> None:
    world = copy_of(MPS)
    world.set_policy(edited(MIXED))
    to_step(world, 1)
    world.machines[NODE].stray = True
    assert run_until(world, Phase.VERIFYING_IDLE).step == "1/2"
    told = set()
    for number in range(60):
        world.act(NODE)
        plan = world.step()
        verdict = plan.verdicts[NODE]
        told.add((verdict.phase, verdict.reason, NODE in plan.memory.proving))
        world.now += timedelta(seconds=1)
        if number == 50:
            assert fence_of(world).step == 1
            world.machines[NODE].stray = False
    assert (Phase.VERIFYING_IDLE, Reason.GPU_STILL_BUSY, False) in told
    assert {(phase, reason) for phase, reason, proving in told if proving} == {(Phase.VERIFYING_IDLE, Reason.SETTLING)}
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED


CHANGED_MINDS = {
    "to time-slicing during the first step": (1, SLICED, 2, "4x shared"),
    "to whole GPUs during the first step, which are there already": (1, FULL, 2, "1x full"),
    "back to MPS during the first step": (1, MPS, 2, "4x shared"),
    "to another layout during the first step": (1, SINGLE, 2, "7x1g.10gb"),
    "to time-slicing during the second step": (2, SLICED, 3, "4x shared"),
    "back to MPS during the second step": (2, MPS, 4, "4x shared"),
}


@pytest.mark.parametrize(("step", "instead", "actuations", "ends"), CHANGED_MINDS.values(), ids=CHANGED_MINDS.keys())
def test_a_policy_that_changes_its_mind_between_mps_and_mig_still_gets_what_it_wants(
    step: int, instead: PolicyView, actuations: int, ends: str
) -> None:
    world = copy_of(MPS)
    world.done.clear()
    world.set_policy(edited(MIXED))
    to_step(world, step)
    world.set_policy(edited(instead))
    verdict = world.settle().verdicts[NODE]
    assert (verdict.phase, verdict.observed) == (Phase.SYNCED, ends)
    assert len(wrote(world, Actuate)) <= actuations
    assert world.machines[NODE].exclusive is (instead is MPS)


def test_all_gpunodes_deleted_between_the_steps_make_no_difference_to_the_end() -> None:
    world = copy_of(MPS)
    world.done.clear()
    world.set_policy(edited(MIXED))
    to_step(world, 1)
    run_until(world, Phase.VERIFYING_IDLE)
    world.gpunodes.clear()
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert wrote(world, Actuate) == ["Actuate"] * 2


def test_a_daemon_that_left_the_gpus_exclusive_stops_the_change_with_the_command_that_helps() -> None:
    world = copy_of(MPS)
    world.machines[NODE].kill_mps()
    world.set_policy(edited(MIXED))
    verdict = run_until(world, Phase.FAILED, rounds=6000)
    assert verdict.reason is Reason.COMPUTE_MODE
    assert not lacks(verdict.message, "MPS", "nvidia-smi -c 0")
    assert (fence_of(world).step, world.nodes[NODE].unschedulable) == (1, True)
    world.machines[NODE].exclusive = False  # nvidia-smi -c 0
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED


def test_an_exclusive_gpu_without_mps_is_drift_that_only_a_person_can_mend() -> None:
    world = copy_of(FULL)
    world.add_pod(NODE)
    world.machines[NODE].exclusive = True
    verdict = world.settle().verdicts[NODE]
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.COMPUTE_MODE)
    assert "nvidia-smi -c 0" in verdict.message
    assert not world.nodes[NODE].unschedulable
    world.set_policy(edited(SLICED))
    assert world.settle().verdicts[NODE].reason is Reason.COMPUTE_MODE, "every change would fail on it"
    world.machines[NODE].exclusive = False
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED


def test_a_change_to_mps_takes_over_a_gpu_that_was_left_exclusive() -> None:
    world = copy_of(FULL)
    world.machines[NODE].exclusive = True
    world.set_policy(edited(MPS))
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED


def test_another_number_of_clients_deletes_the_daemons_pod_once_because_it_would_keep_the_old_one() -> None:
    world = copy_of(MPS)
    world.done.clear()
    old = world.machines[NODE].mps_daemon
    world.set_policy(edited(EIGHT))
    assert verdict_of(world).disruption is DisruptionClass.GPU_PODS
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert [action.uid for action in world.done if isinstance(action, RestartOperand)] == [old.uid if old else ""]
    assert world.machines[NODE].clients == 8


def test_cards_without_mig_go_to_mps_and_back_in_one_step_without_any_mig_label() -> None:
    world = copy_of(FULL, (T4,))
    for policy, devices in ((SLICED, 4), (MPS, 4), (SLICED, 4), (MPS, 4), (FULL, 1)):
        world.done.clear()
        world.set_policy(edited(policy))
        assert world.settle().verdicts[NODE].phase is Phase.SYNCED
        assert wrote(world, Actuate) == ["Actuate"]
        assert dict(world.nodes[NODE].resources) == {"nvidia.com/gpu": devices}
        assert not any(label.startswith("nvidia.com/mig.config") for label in world.nodes[NODE].labels)


def test_the_stops_configuration_is_written_before_and_stays_while_the_fence_names_it() -> None:
    world = copy_of(MPS)
    world.set_policy(edited(MIXED))
    to_step(world, 1)
    stop = fence_of(world).target_plugin_config
    assert "migStrategy: none" in world.stack.plugin_configs[stop]
    assert "sharing" not in world.stack.plugin_configs[stop]
    world.set_policy(replace(edited(SLICED), generation=3))
    world.step()
    assert stop in world.stack.plugin_configs
    world.settle()
    assert stop not in world.stack.plugin_configs
    assert world.nodes[NODE].labels[names.LABEL_PLUGIN_CONFIG] in world.stack.plugin_configs
