"""From MPS to MIG and back, through whole GPUs: two points of no return, each with its own proof (docs/design/nvidia.md#b5, R11)."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.build import make_policy
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
    run_until,
    verdict_of,
    wrote,
)
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.snapshot.actions import Actuate, Evict, RestartOperand
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.vocabulary.reasons import Reason

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
    for _ in range(60):
        world.act(NODE)
        told.add(world.step().verdicts[NODE].reason)
        world.now += timedelta(seconds=1)
    assert Reason.GPU_STILL_BUSY in told
    assert fence_of(world).step == 1
    world.machines[NODE].stray = False
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
    for policy in (MPS, SLICED, MPS, FULL):
        world.done.clear()
        world.set_policy(edited(policy))
        assert world.settle().verdicts[NODE].phase is Phase.SYNCED
        assert wrote(world, Actuate) == ["Actuate"]
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
