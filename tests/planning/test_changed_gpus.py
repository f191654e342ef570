"""A change of some GPUs leaves the pods of the others alone (`drain.scope: Changed`)."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from random import Random
from types import MappingProxyType
from typing import Any

import pytest
from tests.build import make_policy
from tests.planning.broken import Broken
from tests.planning.gpuworld import HALVES, SEVENTHS, THIRDS, GpuWorld, gpu_world, gpus_of, layouts
from tests.planning.promises import approve

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.gpus.geometry import normalize
from gpusharing.planning.pools.afterwards import MAX_NODES
from gpusharing.planning.pools.holds import propose
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import (
    Actuate,
    EnsureGPUNode,
    Evict,
    FenceNode,
    Release,
    RestartOperand,
    UpdateFence,
)
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed

NODE = "gpu-1"
BEFORE = layouts(HALVES, HALVES, SEVENTHS, SEVENTHS)
AFTER = layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS)


def full_world(policy: PolicyView = BEFORE, first: str = "a pod of a ReplicaSet") -> GpuWorld:
    world = gpu_world(policy, NODE)
    for gpu in range(4):
        assert world.add_pod(NODE, "a pod of a ReplicaSet" if gpu else first, gpu=gpu)
    world.settle()
    return world


def go_on(world: GpuWorld, until: Callable[[], bool], most: int = 300, limit: int | None = None) -> RolloutPlan:
    for _ in range(most):
        world.act_everywhere()
        plan = world.step(limit)
        if until():
            return plan
        world.now += timedelta(seconds=1)
    raise AssertionError(f"it does not come: {plan.verdicts}")


def is_fenced(world: GpuWorld) -> bool:
    return world.nodes[NODE].fence is not None


def classes(world: GpuWorld, since: int = 0) -> list[DisruptionClass]:
    return [one.fence.disruption for one in world.done[since:] if isinstance(one, FenceNode)]


def wait(world: GpuWorld, turns: int, seconds: float = 1) -> RolloutPlan:
    for _ in range(turns):
        plan = go_on(world, lambda: True)
        world.now += timedelta(seconds=seconds)
    return plan


def evictions(world: GpuWorld, since: int) -> list[Evict]:
    return [one for one in world.done[since:] if isinstance(one, Evict)]


def uid_on(world: GpuWorld, gpu: int) -> str:
    (uid,) = (uid for uid, held in gpus_of(world, NODE).items() if held == gpu)
    return uid


def change_pod(world: GpuWorld, gpu: int, **fields: Any) -> None:
    uid = uid_on(world, gpu)
    world.pods[NODE][uid] = replace(world.pods[NODE][uid], **fields)


def change_stack(world: GpuWorld, **fields: Any) -> None:
    policy = world.stack.cluster_policy
    assert policy is not None
    world.stack = replace(world.stack, cluster_policy=replace(policy, **fields))


def ask_for_retry(world: GpuWorld, value: str = "again") -> None:
    world.nodes[NODE] = replace(world.nodes[NODE], retry=value)


def test_only_the_pods_of_the_changed_gpu_are_evicted() -> None:
    world = full_world()
    before, done = gpus_of(world, NODE), len(world.done)
    world.set_policy(AFTER)
    plan = world.settle()
    assert {one.phase for one in plan.verdicts.values()} == {Phase.SYNCED}
    assert classes(world, done) == [DisruptionClass.CHANGED_GPUS]
    assert [before[one.uid] for one in evictions(world, done)] == [1]
    assert gpus_of(world, NODE) == {uid: gpu for uid, gpu in before.items() if gpu != 1}


def test_the_plan_says_which_gpu_is_emptied() -> None:
    world = full_world()
    world.set_policy(layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, away="0"))
    plan = go_on(world, lambda: NODE in world.memory.passed.previews)
    (verdict,) = plan.verdicts.values()
    assert (verdict.disruption, verdict.gpus) == (DisruptionClass.CHANGED_GPUS, (1,))
    preview = plan.memory.previews[NODE]
    assert preview.pods == (world.pods[NODE][uid_on(world, 1)].ref,)


WHOLE: dict[str, tuple[PolicyView, Callable[[GpuWorld], object]]] = {
    "drain.scope is Node": (layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, scope="Node"), lambda world: None),
    "all GPUs change": (layouts(SEVENTHS, SEVENTHS, HALVES, HALVES), lambda world: None),
    "the agent cannot name a pod": (AFTER, lambda world: world.machine(NODE).unnamed.add(uid_on(world, 3))),
    "the driver is the host's": (AFTER, lambda world: change_stack(world, switches={"driver.enabled": False})),
    "an init container has a GPU": (AFTER, lambda world: change_pod(world, 3, init_gpus=True)),
}


@pytest.mark.parametrize(("change", "cause"), WHOLE.values(), ids=WHOLE)
def test_the_whole_node_is_emptied_where(change: PolicyView, cause: Callable[[GpuWorld], object]) -> None:
    world = full_world()
    cause(world)
    world.settle()
    done = len(world.done)
    world.set_policy(change)
    world.settle()
    assert classes(world, done) == [DisruptionClass.GPU_PODS]
    assert len(evictions(world, done)) == 4


def test_a_gpu_with_an_instance_that_has_no_compute_instance_is_one_of_those_that_change() -> None:
    world = full_world()
    before = gpus_of(world, NODE)
    assert world.machine(NODE).strip(0)
    done = len(world.done)
    world.set_policy(AFTER)
    plan = world.settle()
    assert plan.verdicts[NODE].phase is Phase.SYNCED
    assert classes(world, done) == [DisruptionClass.CHANGED_GPUS]
    assert sorted(before[one.uid] for one in evictions(world, done)) == [0, 1]
    assert world.machine(NODE).layouts[:2] == [normalize(HALVES), normalize(THIRDS)]


def test_an_instance_that_mig_parted_would_leave_stops_the_change_until_a_person_removes_it() -> None:
    half = {"3g.40gb": 1}
    world = full_world(layouts(half, HALVES, SEVENTHS, SEVENTHS))
    machine = world.machine(NODE)
    machine.layouts[0] = normalize({**half, "0c.1g.10gb": 1})
    done = len(world.done)
    world.set_policy(layouts(half, THIRDS, SEVENTHS, SEVENTHS))
    verdict = wait(world, 150).verdicts[NODE]
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.INSTANCES_LEFT)
    assert "nvidia-smi mig -i 0 -gi 0 -dgi" in verdict.message
    assert not classes(world, done)
    machine.layouts[0] = normalize(half)
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert len(evictions(world, done)) == 1


def test_a_kept_gpu_that_loses_a_compute_instance_past_the_point_of_no_return_is_seen() -> None:
    world = past_pnr()
    assert world.machine(NODE).strip(0)
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED, most=2000)
    assert world.nodes[NODE].unschedulable


UNSEEN = "an unidentified process (docs/design/hardware.md#lists says on which cards)"


@pytest.mark.parametrize(
    ("name", "shown"),
    [*((name, name) for name in ("nvidia-cuda-mps-server", "nvidia-cuda-mps-control", "python3")), ("", UNSEEN)],
)
def test_a_gpu_with_mig_on_is_busy_whatever_the_process_is_called(name: str, shown: str) -> None:
    world = full_world()
    world.machine(NODE).own = {1: name}
    done = len(world.done)
    world.set_policy(AFTER)
    verdict = wait(world, 60).verdicts[NODE]
    assert verdict.reason is Reason.GPU_STILL_BUSY
    assert verdict.message.endswith(f"GPU 1 is used by {shown}")
    assert not any(isinstance(one, Actuate) for one in world.done[done:])
    world.machine(NODE).own = {}
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED


def test_a_node_with_more_pods_than_an_agent_names_is_emptied_as_a_whole_and_says_so() -> None:
    world = full_world()
    world.set_policy(layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, away="0"))
    world.act(NODE)
    gpunode = world.gpunodes[NODE]
    assert gpunode.observed is not None
    world.gpunodes[NODE] = replace(gpunode, observed=replace(gpunode.observed, holders=None, pods=65))
    (member,) = world.plan().pools["pool-b"].members
    assert isinstance(member.assessment, Assessed)
    assert member.assessment.disruption is DisruptionClass.GPU_PODS
    assert member.assessment.whole == "65 pods hold devices, and the agent names at most 64 of a node"


def test_a_pod_that_tolerates_the_cordon_makes_it_a_change_of_the_whole_node() -> None:
    world = full_world()
    change_pod(world, 3, tolerates_cordon=True)
    done = len(world.done)
    world.set_policy(AFTER)
    world.settle(rounds=400)
    assert DisruptionClass.CHANGED_GPUS not in classes(world, done)


def test_nobody_is_evicted_while_the_agent_does_not_say_who_holds_what() -> None:
    world = full_world()
    world.set_policy(AFTER)
    go_on(world, lambda: is_fenced(world))
    world.machine(NODE).silent = True
    done = len(world.done)
    go_on(world, lambda: not is_fenced(world), most=1200)
    assert not [one for one in world.done[done:] if isinstance(one, Evict | Actuate)]


def test_a_run_that_would_make_kept_instances_in_use_anew_fails_and_a_retry_evicts_nobody_else() -> None:
    world = full_world()
    world.machine(NODE).loses_mode = True
    world.set_policy(AFTER)
    verdict = world.settle().verdicts[NODE]
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, Reason.ACTUATOR_FAILED)
    assert world.nodes[NODE].unschedulable
    assert sorted(gpus_of(world, NODE).values()) == [0, 2, 3]
    ask_for_retry(world)
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert sorted(gpus_of(world, NODE).values()) == [0, 2, 3]


def test_kept_instances_that_no_process_uses_are_made_anew_with_the_same_uuids_and_pods_keep_them() -> None:
    world = full_world()
    world.machine(NODE).computes = False
    world.machine(NODE).loses_mode = True
    world.machine(NODE).collides = False
    world.set_policy(AFTER)
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert not world.machine(NODE).loses_mode, "the run made them anew"
    assert sorted(gpus_of(world, NODE).values()) == [0, 2, 3]


def test_a_mode_that_is_lost_is_not_set_while_the_agent_reads_and_a_retry_evicts_nobody_else() -> None:
    world = full_world()
    world.machine(NODE).computes = False
    world.machine(NODE).loses_mode = True
    world.set_policy(AFTER)
    verdict = world.settle().verdicts[NODE]
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, Reason.ACTUATOR_FAILED)
    assert sorted(gpus_of(world, NODE).values()) == [0, 2, 3]
    ask_for_retry(world)
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert sorted(gpus_of(world, NODE).values()) == [0, 2, 3]


def test_the_agent_reads_the_kept_gpus_during_the_run_and_the_proof_is_as_strict() -> None:
    world = full_world()
    world.set_policy(AFTER)
    go_on(world, lambda: bool(world.machine(NODE).running) and is_fenced(world))
    gpunode = world.gpunodes[NODE]
    assert (gpunode.quiet, gpunode.quiet_gpus, sorted(world.machine(NODE).opens)) == (True, (1,), [0, 2, 3])
    report = gpunode.observed
    go_on(world, lambda: not world.machine(NODE).running)
    assert world.gpunodes[NODE].observed == report, "what is read during the run is not reported"
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    gpunode, machine = world.gpunodes[NODE], world.machine(NODE)
    assert (gpunode.quiet, gpunode.quiet_gpus, sorted(machine.opens)) == (False, (), [0, 1, 2, 3])


def test_a_kept_pod_that_a_restarted_kubelet_does_not_admit_again_holds_up_no_proof() -> None:
    world = past_pnr()
    done = len(world.done)
    change_pod(world, 3, phase="Failed")
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert not evictions(world, done)
    assert sorted(gpus_of(world, NODE).values()) == [0, 2]


def test_a_retry_that_drains_all_gpus_closes_nvml_on_all_of_them() -> None:
    world = past_pnr()
    world.machine(NODE).temper = "fails"
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED)
    world.machine(NODE).temper = "works"
    ask_for_retry(world, "gpu-pods")
    done = len(world.done)
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    asked = [one.quiet_gpus for one in world.done[done:] if isinstance(one, EnsureGPUNode) and one.quiet]
    runs = [one for one in world.done[done:] if isinstance(one, Actuate)]
    assert (asked[-1], len(runs)) == ((), 1)


MOVED: dict[str, Callable[[GpuWorld], None]] = {
    "kept instances are at other places": lambda world: world.machine(NODE).displace(3),
    "a kept pod holds another device": lambda world: world.machine(NODE).move(uid_on(world, 3)),
}


@pytest.mark.parametrize("move", MOVED.values(), ids=MOVED)
def test_the_node_is_left_failed_with_the_pods_named_where(move: Callable[[GpuWorld], None]) -> None:
    world = past_pnr()
    move(world)
    verdict = world.settle().verdicts[NODE]
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, Reason.KEPT_GPUS_CHANGED)
    assert world.nodes[NODE].unschedulable
    refs = {gpu: world.pods[NODE][uid].ref for uid, gpu in gpus_of(world, NODE).items()}
    assert [gpu for gpu, ref in refs.items() if ref in verdict.message] == [3]
    ask_for_retry(world)
    done = len(world.done)
    assert world.settle().verdicts[NODE].reason is Reason.KEPT_GPUS_CHANGED
    assert not evictions(world, done)
    ask_for_retry(world, "gpu-pods")
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert len(evictions(world, done)) == 3


ROLLBACK = {"onFailure": "Rollback"}


def past_pnr(first: str = "a pod of a ReplicaSet", rollout: Mapping[str, str] = MappingProxyType({})) -> GpuWorld:
    """A world in which mig-manager works on GPU 1 and pods run on the others."""
    world = full_world(layouts(HALVES, HALVES, SEVENTHS, SEVENTHS, rollout=rollout), first)
    done = len(world.done)
    world.set_policy(layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, rollout=rollout))
    go_on(world, lambda: any(isinstance(one, Actuate) for one in world.done[done:]))
    return world


def when_late(world: GpuWorld) -> RolloutPlan:
    """The plan in which a change that cannot be proven has failed by its deadline."""
    world.settle()
    fence = world.nodes[NODE].fence
    assert fence is not None
    world.now = max(world.now, fence.deadline)
    return go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED)


def test_an_edit_after_a_failure_empties_the_gpus_of_both_and_no_other() -> None:
    world = past_pnr()
    done = len(world.done)
    before = gpus_of(world, NODE)
    world.machine(NODE).temper = "fails"
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED)
    world.machine(NODE).temper = "works"
    world.set_policy(layouts(SEVENTHS, THIRDS, SEVENTHS, SEVENTHS))
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert [before[one.uid] for one in evictions(world, done)] == [0]
    assert sorted(gpus_of(world, NODE).values()) == [2, 3]


HOLDS: dict[str, dict[str, object]] = {
    "the policy is paused": {"paused": True},
    "no window is open": {"windows": [{"schedule": "0 3 * * *", "duration": "1h"}]},
    "nobody approved it": {"approval": "Manual"},
}


@pytest.mark.parametrize("rollout", HOLDS.values(), ids=HOLDS)
def test_an_edit_after_a_failure_empties_no_other_gpu_while(rollout: Mapping[str, object]) -> None:
    world = past_pnr()
    done = len(world.done)
    world.machine(NODE).temper = "fails"
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED)
    world.machine(NODE).temper = "works"
    world.set_policy(layouts(SEVENTHS, THIRDS, SEVENTHS, SEVENTHS, rollout=rollout))
    wait(world, 60, 5)
    ask_for_retry(world)
    assert wait(world, 60, 5).verdicts[NODE].phase is Phase.FAILED
    assert not evictions(world, done)
    ask_for_retry(world, "gpu-pods")
    go_on(world, lambda: not is_fenced(world), most=900)
    assert not gpus_of(world, NODE)


def test_an_edit_after_a_failure_evicts_nobody_while_a_pod_there_may_not_leave() -> None:
    world = past_pnr("a protected pod")
    done = len(world.done)
    world.machine(NODE).temper = "fails"
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED)
    world.machine(NODE).temper = "works"
    world.set_policy(layouts(SEVENTHS, THIRDS, SEVENTHS, SEVENTHS))
    verdict = wait(world, 60, 5).verdicts[NODE]
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, Reason.DO_NOT_DISRUPT)
    assert not evictions(world, done)


def test_an_edit_after_the_point_of_no_return_begins_anew_when_the_change_is_proven() -> None:
    world = past_pnr("a protected pod")
    done = len(world.done)
    world.set_policy(layouts(SEVENTHS, THIRDS, SEVENTHS, SEVENTHS))
    go_on(world, lambda: not is_fenced(world), most=600)
    plan = go_on(world, lambda: world.step().verdicts[NODE].reason is Reason.DO_NOT_DISRUPT)
    assert [type(one).__name__ for one in world.done[done:] if isinstance(one, Evict | Release)] == ["Release"]
    assert plan.verdicts[NODE].gpus == (0,)
    assert not world.nodes[NODE].unschedulable


@pytest.mark.parametrize("past", [False, True], ids=["before the point of no return", "after a failure"])
def test_an_agent_that_starts_anew_while_nvml_is_closed_is_asked_again(past: bool) -> None:
    world = full_world()
    world.machine(NODE).temper = "fails" if past else "works"
    world.set_policy(AFTER)
    done = len(world.done)
    if past:
        go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED, most=600)
        world.machine(NODE).temper = "works"
        ask_for_retry(world)
    go_on(world, lambda: world.gpunodes[NODE].quiet and is_fenced(world), most=600)
    world.agent(NODE)
    world.machine(NODE).blind_for = world.gpunodes[NODE].request_id
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert len(evictions(world, done)) == 1
    assert sorted(gpus_of(world, NODE).values()) == [0, 2, 3]


@pytest.mark.parametrize(
    "edit",
    [layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, scope="Node"), layouts(SEVENTHS, THIRDS, SEVENTHS, SEVENTHS)],
    ids=["scope Node", "a change of other GPUs"],
)
def test_a_drain_of_some_gpus_is_ended_by(edit: PolicyView) -> None:
    world = full_world()
    world.pods[NODE] = {uid: replace(pod, finalizers=("stays",)) for uid, pod in world.pods[NODE].items()}
    world.set_policy(AFTER)
    go_on(world, lambda: any(isinstance(one, Evict) for one in world.done))
    world.set_policy(edit)
    done = len(world.done)
    plan = go_on(world, lambda: any(isinstance(one, Release) for one in world.done[done:]))
    assert plan.verdicts[NODE].phase is Phase.ABORTING


GAPS: dict[str, Callable[[GpuWorld], object]] = {
    "the kubelet does not answer": lambda world: setattr(world.machine(NODE), "silent", True),
    "a pod has no name yet": lambda world: world.machine(NODE).unnamed.add(uid_on(world, 3)),
    "the kubelet does not know its pods yet": lambda world: world.machine(NODE).held.clear(),
}


@pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)
def test_what_is_unknown_for_a_moment_is_waited_for(gap: Callable[[GpuWorld], object]) -> None:
    world = full_world()
    before, done, held = gpus_of(world, NODE), len(world.done), dict(world.machine(NODE).held)
    gap(world)
    world.agent(NODE)
    world.set_policy(AFTER)
    plan = wait(world, 30)
    assert not is_fenced(world)
    assert plan.verdicts[NODE].reason is Reason.HOLDER_UNKNOWN
    machine = world.machine(NODE)
    machine.silent, machine.held = False, held
    machine.unnamed.clear()
    world.settle()
    assert classes(world, done) == [DisruptionClass.CHANGED_GPUS]
    assert [before[one.uid] for one in evictions(world, done)] == [1]


MANUAL = layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, rollout={"approval": "Manual"})


def manual() -> tuple[GpuWorld, RolloutPlan]:
    """A world in which the change of GPU 1 waits for an approval, and the plan that is to be approved."""
    world = full_world()
    world.set_policy(MANUAL)
    return world, go_on(world, lambda: NODE in world.memory.passed.previews)


def test_a_person_who_approved_the_change_of_one_gpu_is_asked_before_all_are_emptied() -> None:
    world, plan = manual()
    approve(world, world.policies[0], plan)
    change_pod(world, 3, tolerates_cordon=True)
    done = len(world.done)
    plan = wait(world, 100, 5)
    assert not classes(world, done)
    assert plan.verdicts[NODE].disruption is DisruptionClass.GPU_PODS
    approve(world, world.policies[0], plan)
    go_on(world, lambda: is_fenced(world))
    assert classes(world, done) == [DisruptionClass.GPU_PODS]


def test_a_person_who_approved_the_change_of_one_gpu_is_not_passed_over_by_a_silent_agent() -> None:
    world, plan = manual()
    world.machine(NODE).silent = True
    world.agent(NODE)
    approve(world, world.policies[0], plan)
    done = len(world.done)
    plan = wait(world, 100, 5)
    assert not classes(world, done)
    assert plan.verdicts[NODE].reason is Reason.HOLDER_UNKNOWN
    assert "drain.scope: Node" in plan.verdicts[NODE].message


def test_the_class_that_is_shown_does_not_depend_on_whether_the_pods_were_just_listed() -> None:
    world = full_world()
    change_pod(world, 3, tolerates_cordon=True)
    world.set_policy(layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, away="0"))
    go_on(world, lambda: NODE in world.memory.passed.previews)
    shown = {wait(world, 1, 7).verdicts[NODE].disruption for _ in range(100)}
    assert shown == {DisruptionClass.GPU_PODS}
    assert len(world.memory.passed.previews[NODE].pods) + len(world.memory.passed.previews[NODE].blockers) > 1


def test_what_was_in_the_way_of_one_revision_is_not_held_against_the_next() -> None:
    world = full_world()
    change_pod(world, 3, tolerates_cordon=True)
    world.set_policy(layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, away="0"))
    assert wait(world, 20).verdicts[NODE].disruption is DisruptionClass.GPU_PODS
    change_pod(world, 3, tolerates_cordon=False)
    world.set_policy(layouts(THIRDS, HALVES, SEVENTHS, SEVENTHS, away="0"))
    world.memory.passed = replace(world.memory.passed, wants_pods=frozenset())
    assert world.plan().verdicts[NODE].disruption is DisruptionClass.CHANGED_GPUS


def test_a_gpu_that_is_used_without_a_pod_is_tried_once_before_all_are_emptied() -> None:
    world = full_world()
    world.machine(NODE).elsewhere[uid_on(world, 3)] = 1
    done = len(world.done)
    world.set_policy(AFTER)
    assert world.settle(rounds=2000).verdicts[NODE].phase is Phase.SYNCED
    assert classes(world, done) == [DisruptionClass.CHANGED_GPUS, DisruptionClass.GPU_PODS]


PASSING: dict[str, Callable[[GpuWorld], None]] = {
    "a MIG mode is pending": lambda world: world.machine(NODE).misread.update({3: {"mig_pending": True}}),
    "a GPU is read without MIG": lambda world: world.machine(NODE).misread.update(
        {3: {"mig_enabled": False, "layout": None}}
    ),
    "mig-manager may reboot the node": lambda world: change_stack(world, with_reboot=True),
}


@pytest.mark.parametrize("begin", PASSING.values(), ids=PASSING)
def test_an_edit_that_needs_nothing_more_is_no_reason_to_believe_what_is_seen_for_a_moment(
    begin: Callable[[GpuWorld], None],
) -> None:
    world = full_world()
    before, done = gpus_of(world, NODE), len(world.done)
    world.set_policy(AFTER)
    go_on(world, lambda: is_fenced(world))
    begin(world)
    world.set_policy(layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, timeout="20m"))
    wait(world, 3)
    world.machine(NODE).misread.clear()
    change_stack(world, with_reboot=False)
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert {before[one.uid] for one in evictions(world, done)} == {1}


def test_a_second_edit_after_a_failure_adds_to_the_first_at_once() -> None:
    world = past_pnr()
    done, before = len(world.done), gpus_of(world, NODE)
    world.machine(NODE).temper = "fails"
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED)
    world.machine(NODE).temper = "works"
    world.set_policy(layouts(SEVENTHS, THIRDS, SEVENTHS, SEVENTHS))
    go_on(world, lambda: (fence := world.nodes[NODE].fence) is not None and fence.gpus == (0, 1))
    world.set_policy(layouts(SEVENTHS, THIRDS, HALVES, SEVENTHS))
    go_on(world, lambda: (fence := world.nodes[NODE].fence) is not None and fence.gpus == (0, 1, 2), most=60)
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert sorted(before[one.uid] for one in evictions(world, done)) == [0, 2]


@pytest.mark.parametrize("word", ["gpu-pods", "all-pods"])
def test_a_retry_that_drains_more_evicts_nobody_while_a_gpu_pod_may_not_leave(word: str) -> None:
    world = past_pnr("a protected pod")
    done = len(world.done)
    world.machine(NODE).temper = "fails"
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED)
    ask_for_retry(world, word)
    verdict = wait(world, 60, 5).verdicts[NODE]
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, Reason.DO_NOT_DISRUPT)
    assert not evictions(world, done)


def test_a_retry_that_drains_more_and_comes_while_a_plain_one_runs_is_answered_as_what_it_says() -> None:
    world = past_pnr()
    world.machine(NODE).temper = "fails"
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED)
    ask_for_retry(world)
    done = len(world.done)
    go_on(world, lambda: any(isinstance(one, Actuate) for one in world.done[done:]))
    ask_for_retry(world, "gpu-pods")
    go_on(world, lambda: (fence := world.nodes[NODE].fence) is not None and not fence.gpus, most=120)
    world.machine(NODE).temper = "works"
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED


def test_the_retry_that_is_told_is_the_one_that_the_edit_needs() -> None:
    world = past_pnr()
    world.machine(NODE).temper = "fails"
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED)
    change_stack(world, with_reboot=True)
    world.set_policy(make_policy(mode="Full"))
    verdict = wait(world, 20).verdicts[NODE]
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, Reason.WIDER_DRAIN_NEEDED)
    assert "retry=all-pods" in verdict.message
    done = len(world.done)
    ask_for_retry(world, "gpu-pods")
    assert "retry=all-pods" in wait(world, 20).verdicts[NODE].message
    assert not evictions(world, done)


@pytest.mark.parametrize("reboots", [True, False])
def test_a_run_is_not_repeated_beside_pods_while_mig_manager_works_in_another_way(reboots: bool) -> None:
    world = past_pnr()
    world.machine(NODE).temper = "hangs"
    change_stack(world, with_reboot=reboots, stops_host_clients=not reboots)
    done = len(world.done)
    go_on(world, lambda: world.step().verdicts[NODE].reason is Reason.WIDER_DRAIN_NEEDED, most=3000)
    ask_for_retry(world)
    verdict = wait(world, 400, 10).verdicts[NODE]
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, Reason.WIDER_DRAIN_NEEDED)
    assert not [one for one in world.done[done:] if isinstance(one, Evict | Actuate | RestartOperand)]
    change_stack(world, with_reboot=False, stops_host_clients=False)
    world.machine(NODE).temper = "works"
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert sorted(gpus_of(world, NODE).values()) == [0, 2, 3]


def test_a_correction_after_the_point_of_no_return_is_tried_and_not_blamed() -> None:
    world = past_pnr(rollout=ROLLBACK)
    world.machine(NODE).temper = "fails"
    go_on(world, lambda: bool(world.machine(NODE).running), most=30)
    world.set_policy(layouts(SEVENTHS, THIRDS, SEVENTHS, SEVENTHS, rollout=ROLLBACK))
    go_on(world, lambda: not world.machine(NODE).running, most=600)
    world.machine(NODE).temper = "works"
    assert world.settle(rounds=3000).verdicts[NODE].phase is Phase.SYNCED
    record = world.nodes[NODE].verified
    assert record is not None
    assert not record.rolled_back


def test_a_retry_while_the_kubelet_does_not_answer_waits_for_its_answer() -> None:
    world = full_world()
    world.machine(NODE).temper = "fails"
    world.set_policy(AFTER)
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED, most=900)
    world.machine(NODE).temper = "works"
    world.machine(NODE).silent = True
    ask_for_retry(world)
    done = len(world.done)
    go_on(world, lambda: not evictions(world, done), most=20)
    world.machine(NODE).silent = False
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert not evictions(world, done)


def test_a_wait_for_jobs_ends_although_the_agent_does_not_say_who_holds_what() -> None:
    world = full_world(first="a pod of a Job that ends")
    done = len(world.done)
    world.set_policy(layouts(THIRDS, HALVES, SEVENTHS, SEVENTHS))
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.WAITING_FOR_JOBS)
    world.machine(NODE).silent = True
    go_on(world, lambda: any(isinstance(one, Release) for one in world.done[done:]), most=1500)
    assert not evictions(world, done)


def test_pods_that_are_unnamed_one_after_the_other_are_no_reason_to_empty_the_node() -> None:
    world = full_world()
    machine = world.machine(NODE)
    world.set_policy(AFTER)
    done = len(world.done)
    for turn in range(150):
        machine.unnamed = {uid_on(world, 2 + turn // 20 % 2)}
        wait(world, 1)
    assert DisruptionClass.GPU_PODS not in classes(world, done)


def test_what_a_pod_made_of_the_change_is_remembered_for_nodes_that_no_preview_names() -> None:
    nodes = [f"gpu-{index:02}" for index in range(MAX_NODES + 2)]
    world = gpu_world(BEFORE, *nodes)
    for node in nodes:
        assert world.add_pod(node, gpu=3)
        ((uid, pod),) = world.pods[node].items()
        world.pods[node][uid] = replace(pod, tolerates_cordon=True)
    world.set_policy(MANUAL)
    wait(world, 60, 5)
    hashes = set()
    for turn in range(40):
        plan = wait(world, 1, 5)
        if turn % 8 == 0:
            hashes.add(propose(plan.pools["pool-b"]).hash)
            approve(world, world.policies[0], plan)
    assert any(isinstance(one, FenceNode) for one in world.done)
    assert len(hashes) < 4


def test_a_policy_in_error_after_the_point_of_no_return_makes_the_change_no_greater() -> None:
    world = past_pnr("a protected pod")
    done = len(world.done)
    world.set_policy(layouts({"9g.90gb": 1}, THIRDS, SEVENTHS, SEVENTHS))
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.FAILED)
    world.set_policy(layouts(SEVENTHS, THIRDS, SEVENTHS, SEVENTHS))
    go_on(world, lambda: not is_fenced(world), most=900)
    plan = go_on(world, lambda: world.step().verdicts[NODE].reason is Reason.DO_NOT_DISRUPT)
    assert plan.verdicts[NODE].gpus == (0,)
    assert not evictions(world, done)


def test_a_person_who_approved_the_change_of_one_gpu_is_asked_before_another_is_emptied() -> None:
    world, plan = manual()
    approve(world, world.policies[0], plan)
    machine = world.machine(NODE)
    machine.layouts = [machine.layouts[0], machine.layouts[1], machine.layouts[2], normalize(THIRDS)]
    world.agent(NODE)
    done = len(world.done)
    plan = wait(world, 60, 5)
    assert not classes(world, done)
    assert (plan.verdicts[NODE].reason, plan.verdicts[NODE].gpus) == (Reason.APPROVAL_NEEDED, (1, 3))


def test_a_proof_that_waits_for_a_list_of_the_kept_pods_is_looked_at_soon() -> None:
    world = past_pnr()
    world.unlisted.add(NODE)
    go_on(world, lambda: world.step().verdicts[NODE].phase is Phase.VERIFYING, most=900)
    verdict = wait(world, 20).verdicts[NODE]
    assert verdict.phase is Phase.VERIFYING
    assert verdict.wake is not None
    assert verdict.wake <= world.now + timedelta(seconds=60)


def test_a_list_that_fails_decides_nothing() -> None:
    world = full_world()
    world.machine(NODE).silent = True
    world.agent(NODE)
    world.set_policy(AFTER)
    world.unlisted.add(NODE)
    go_on(world, lambda: NODE in world.step().memory.looks)
    world.unlisted.clear()
    wait(world, 30)
    world.machine(NODE).silent = False
    done = len(world.done)
    world.settle()
    assert classes(world)[-1:] == [DisruptionClass.CHANGED_GPUS]
    assert len(evictions(world, done)) == 1


def test_a_policy_in_error_until_the_deadline_makes_the_change_no_greater_either() -> None:
    world = past_pnr()
    done = len(world.done)
    world.set_policy(layouts({"9g.90gb": 1}, THIRDS, SEVENTHS, SEVENTHS))
    when_late(world)
    world.set_policy(layouts(SEVENTHS, THIRDS, SEVENTHS, SEVENTHS, away="0"))
    go_on(world, lambda: not is_fenced(world), most=900)
    assert not evictions(world, done)


def test_a_late_way_back_of_some_gpus_is_proven_once_everybody_reports_again() -> None:
    world = full_world(layouts(HALVES, HALVES, SEVENTHS, SEVENTHS, rollout=ROLLBACK))
    world.machine(NODE).temper = "fails"
    world.set_policy(layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, rollout=ROLLBACK))

    def goes_back() -> bool:
        fence = world.nodes[NODE].fence
        return fence is not None and fence.rolls_back and fence.owed == ""

    go_on(world, goes_back, most=3000)
    machine = world.machine(NODE)
    machine.temper, machine.silent = "works", True
    when_late(world)
    machine.silent = False
    go_on(world, lambda: not is_fenced(world), most=600)
    record = world.nodes[NODE].verified
    assert record is not None
    assert record.rolled_back


UNPROVEN: dict[str, tuple[Callable[[GpuWorld], object], str]] = {
    "no longer names a kept pod": (lambda world: world.machine(NODE).unnamed.add(uid_on(world, 3)), "{ref}"),
    "lacks a kept pod": (lambda world: world.machine(NODE).held.pop(uid_on(world, 3)), "retry=gpu-pods"),
    "never says again who holds what": (lambda world: setattr(world.machine(NODE), "silent", True), "gpusharing.dev"),
}


@pytest.mark.parametrize(("gap", "says"), UNPROVEN.values(), ids=UNPROVEN)
def test_the_node_fails_and_only_a_retry_that_says_so_drains_all_of_it_where_the_report(
    gap: Callable[[GpuWorld], object], says: str
) -> None:
    world = past_pnr()
    kept = world.pods[NODE][uid_on(world, 3)]
    gap(world)
    verdict = when_late(world).verdicts[NODE]
    assert verdict.commands
    assert says.format(ref=kept.ref) in verdict.message
    assert world.nodes[NODE].unschedulable
    done = len(world.done)
    ask_for_retry(world)
    wait(world, 400, 10)
    assert not evictions(world, done)
    ask_for_retry(world, "gpu-pods")
    assert world.settle(rounds=2000).verdicts[NODE].phase is Phase.SYNCED
    assert len(evictions(world, done)) == 3
    assert {one.fence.attempt for one in world.done[done:] if isinstance(one, UpdateFence)} == {1}


def play(seed: int) -> Counter[str]:
    """How often each thing happened (tally.py) while pods came, people changed their minds and programs failed."""
    dice = Random(seed)
    rows = [dice.choice((HALVES, SEVENTHS, THIRDS)) for _ in range(4)]
    world = gpu_world(layouts(*rows), "gpu-1", "gpu-2")
    kinds = ("a pod of a ReplicaSet", "a pod of a Job", "a pod of a Job that ends", "a pod that sticks")
    vandal = Random(f"{seed}: compute instances")
    for _ in range(40):
        if vandal.random() < 0.1:
            world.machine(vandal.choice(sorted(world.nodes))).strip(vandal.randrange(4))
        node = dice.choice(sorted(world.nodes))
        machine = world.machine(node)
        match dice.randrange(18):
            case 0 | 17:
                for gpu in dice.sample(range(4), dice.choice((1, 1, 2, 4))):
                    rows[gpu] = dice.choice((HALVES, SEVENTHS, THIRDS))
                world.set_policy(layouts(*rows, scope=dice.choice(("Changed", "Changed", "Node"))))
            case 1:
                world.restart()
            case 2:
                machine.temper = dice.choice(("works", "works", "fails", "hangs"))
            case 3:
                machine.loses_mode, machine.computes = True, dice.random() < 0.5
            case 16 | 8 if machine.held:
                machine.displace(dice.choice(sorted(gpu for gpu, _ in machine.held.values())))
            case 4:
                machine.silent = not machine.silent and dice.random() < 0.5
            case 5:
                machine.unnamed = set(dice.sample(sorted(machine.held), min(1, len(machine.held), dice.randrange(2))))
            case 6:
                world.nodes[node] = replace(world.nodes[node], retry=f"try-{dice.random()}")
            case 14:
                machine.serves = not machine.serves
            case 15 if machine.held:
                machine.move(dice.choice(sorted(machine.held)))
            case 7:
                for uid, pod in world.pods[node].items():
                    world.pods[node][uid] = replace(pod, finalizers=())
            case _:
                world.add_pod(node, dice.choice(kinds), gpu=dice.randrange(4))
        for _ in range(dice.choice((1, 5, 10, 30))):
            world.act_everywhere()
            world.step(limit=dice.choice((None, None, None, 1)))
            world.now += timedelta(seconds=dice.choice((1, 1, 5, 20)))
        if dice.random() < 0.3:
            for name, one in world.nodes.items():
                broken = world.machine(name)
                broken.temper, broken.silent, broken.serves, broken.unnamed = "works", False, True, set()
                world.nodes[name] = replace(one, retry=f"try-{dice.random()}")
    return world.happened


def test_whatever_happens_no_pod_of_a_kept_gpu_is_evicted_or_loses_its_device_unseen() -> None:
    seen = sum(map(play, (3, 6, 7, 16, 26, 38)), Counter[str]())
    begun = ("fence: ChangedGPUs", "PNR: ChangedGPUs", "fence: GPUPods", "PNR: another target", "eviction: Evicted")
    ended = ("told Failed: KeptGPUsChanged", "told Failed: ActuatorFailed", "given back: Synced")
    assert not [what for what in (*begun, *ended) if not seen[what]]


def test_the_world_notices_an_eviction_from_a_kept_gpu() -> None:
    world = full_world()
    world.set_policy(AFTER)
    go_on(world, lambda: is_fenced(world))
    pod = world.pods[NODE][uid_on(world, 0)]
    with pytest.raises(Broken, match=r"\(w\)"):
        world.carry_out(Evict(NODE, pod.namespace, pod.name, pod.uid))


def test_an_operator_that_is_killed_before_any_write_is_followed_by_one_that_ends_the_change() -> None:
    world, crashes = full_world(), 0
    world.set_policy(AFTER)
    for _ in range(200):
        plan = world.plan()
        for twin in world.killed(plan):
            crashes += 1
            assert twin.settle().verdicts[NODE].phase is Phase.SYNCED
            assert sorted(gpus_of(twin, NODE).values()) == [0, 2, 3]
        world.step()
        world.act_everywhere()
        world.now += timedelta(seconds=1)
    assert crashes > 8
