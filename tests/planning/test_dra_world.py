"""Changes in a World where NVIDIA's DRA driver serves the GPUs: every action is held to the invariants, also when the operator is killed before it."""

from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from tests.build import make_policy
from tests.planning import rules
from tests.planning.broken import Broken
from tests.planning.cases import pass_time, run_until
from tests.planning.dradeeds import DRA_DEEDS
from tests.planning.dramachines import DraMachine
from tests.planning.installations import DRA, stack_of
from tests.planning.test_invariants_can_fail import ReachedError, Watched
from tests.planning.world import World

from gpusharing.api.names import Phase
from gpusharing.planning.gpus.texts import key_of
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Actuate, Evict, FenceNode, Release, RestartOperand, WriteClasses
from gpusharing.planning.snapshot.nvidia import NodeDevices, Program
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.verify import served

MIG, FULL = (make_policy(drain={"strandedPods": "Allow"}), make_policy(mode="Full", drain={"strandedPods": "Allow"}))
SLICED = make_policy(mode="TimeSlicing")
SMALL = make_policy(mig={"layouts": [{"profiles": {"1g.10gb": 7}}]}, drain={"strandedPods": "Allow"})


def dra_world(*names: str) -> World:
    world = World(stack=stack_of(DRA))
    for name in names:
        world.add_node(name)
    world.set_policy(FULL)
    world.settle()
    return world


def machine_of(world: World, name: str) -> DraMachine:
    machine = world.machines[name]
    assert isinstance(machine, DraMachine)
    return machine


def classes(world: World) -> set[str]:
    return {one.resource for one in world.stack.dra.classes or ()}


def phases(plan: RolloutPlan) -> set[Phase]:
    return {verdict.phase for verdict in plan.verdicts.values()}


@pytest.mark.parametrize("uses", ["claims", "extended resources"])
def test_a_pool_goes_to_mig_to_another_layout_and_back(uses: str) -> None:
    world = dra_world("gpu-1", "gpu-2", "gpu-3")
    world.add_pod("gpu-1")
    (pod,) = world.pods["gpu-1"].values()
    resources = {} if uses == "claims" else pod.resources
    world.pods["gpu-1"][pod.uid] = replace(pod, dra="gpu", resources=resources)
    for policy, resource, count in (
        (MIG, "nvidia.com/mig-3g.40gb", 2),
        (SMALL, "nvidia.com/mig-1g.10gb", 7),
        (FULL, "nvidia.com/gpu", 1),
    ):
        before = {name: machine.operands[Program.KUBELET_PLUGIN].uid for name, machine in world.machines.items()}
        world.set_policy(policy)
        assert phases(world.settle()) == {Phase.SYNCED}
        for name, node in world.nodes.items():
            assert served(node) == {resource: count}
            assert node.devices is not None
            assert node.devices.key == key_of(world.machines[name].devices)
            assert not node.unschedulable
            assert world.machines[name].operands[Program.KUBELET_PLUGIN].uid != before[name]
        assert classes(world) == ({resource} if "mig" in resource else set())
    assert [one.uid for one in world.done if isinstance(one, Evict)] == [pod.uid]


def test_devices_made_anew_by_somebody_else_are_published_anew() -> None:
    world = dra_world("gpu-1")
    world.set_policy(MIG)
    world.settle()
    done = len(world.done)
    machine_of(world, "gpu-1").divided += 1
    assert phases(world.settle()) == {Phase.SYNCED}
    steps = [type(one) for one in world.done[done:] if isinstance(one, FenceNode | RestartOperand | Release)]
    assert steps[0] is FenceNode
    assert steps[-1] is Release
    assert RestartOperand in steps


@pytest.mark.parametrize("policy", [MIG, SMALL], ids=["halves", "sevenths"])
def test_an_operator_that_is_killed_before_any_write_is_followed_by_one_that_ends_the_change(
    policy: PolicyView,
) -> None:
    world, crashes = dra_world("gpu-1"), 0
    world.add_pod("gpu-1")
    world.set_policy(policy)
    for _ in range(150):
        plan = world.plan()
        for twin in world.killed(plan):
            assert phases(twin.settle()) == {Phase.SYNCED}
            assert len([one for one in twin.done if isinstance(one, Release)]) == 1
            plugins = [one for one in twin.done if isinstance(one, RestartOperand)]
            assert len(plugins) == 1, "one restart is enough, whoever sees it"
            crashes += 1
        if phases(plan) == {Phase.SYNCED}:
            break
        world.act_everywhere()
        world.step()
        world.now += timedelta(seconds=2)
    kinds = {type(one) for one in world.done}
    assert {WriteClasses, FenceNode, Evict, Actuate, RestartOperand, Release} <= kinds
    assert crashes > 10


def test_a_policy_edited_to_a_mode_that_dra_lacks_says_so_on_a_node_whose_plugin_was_not_restarted_yet() -> None:
    world = dra_world("gpu-1")
    world.set_policy(MIG)
    pass_time(world, 60, until=lambda world: any(isinstance(one, Actuate) for one in world.done))
    world.set_policy(SLICED)
    verdict = run_until(world, Phase.FAILED, node="gpu-1")
    assert verdict.reason is Reason.UNSUPPORTED_STACK
    assert "use mode Full or MIG" in verdict.message
    assert "gpusharing.dev/retry" not in verdict.message, "another try would not help"
    world.set_policy(MIG)
    assert phases(world.settle()) == {Phase.SYNCED}
    assert world.nodes["gpu-1"].devices == machine_of(world, "gpu-1").due


def disturb(world: World, random: Random) -> None:
    """Something happens on a node, or to the operator, in the middle of whatever goes on."""
    name = random.choice(sorted(world.nodes))
    match random.randrange(5):
        case 0:
            world.step(limit=random.randrange(3))
        case 1:
            world.set_policy(random.choice([FULL, MIG, SMALL]))
        case 2:
            machine_of(world, name).temper = random.choice(["works", "hangs", "forgets", "fails"])
        case 3:
            world.add_pod(name)
        case _:
            DRA_DEEDS[random.choice(sorted(DRA_DEEDS))](world, name)


@pytest.mark.parametrize("seed", range(30))
def test_no_disturbance_of_changes_in_quick_succession_breaks_an_invariant(seed: int) -> None:
    random, world = Random(seed), dra_world("gpu-1", "gpu-2")
    world.set_policy(MIG)
    for _ in range(60):
        world.act_everywhere()
        if random.random() < 0.3:
            disturb(world, random)
        world.step()
        world.now += timedelta(seconds=random.choice([1, 2, 10, 60]))
    for one in world.machines.values():
        one.temper = "works"
    plan = world.settle(approving=True)
    for name, verdict in plan.verdicts.items():
        if verdict.phase is Phase.SYNCED:
            assert world.nodes[name].devices == machine_of(world, name).due


@pytest.mark.parametrize("pauses", [False, True], ids=["runs on", "is paused by mig-manager"])
def test_a_plugin_that_mig_manager_pauses_is_replaced_by_nobody_else_and_heals_after_a_reboot(pauses: bool) -> None:
    world = dra_world("gpu-1")
    machine = machine_of(world, "gpu-1")
    machine.pauses = pauses
    world.set_policy(MIG)
    assert phases(world.settle()) == {Phase.SYNCED}
    restarts = [one for one in world.done if isinstance(one, RestartOperand)]
    assert len(restarts) == (0 if pauses else 1)
    done = len(world.done)
    machine.reboot()
    world.plugin("gpu-1")  # before mig-manager
    assert phases(world.settle()) == {Phase.SYNCED}
    assert world.nodes["gpu-1"].devices == machine.due
    fenced = any(isinstance(one, FenceNode) for one in world.done[done:])
    assert fenced is not pauses, "otherwise the drift has to be corrected with a drain"


def test_a_device_that_no_run_can_turn_into_a_gpu_drains_nothing() -> None:
    world = dra_world("gpu-1")
    world.add_pod("gpu-1")
    devices = world.nodes["gpu-1"].devices
    assert devices is not None
    world.nodes["gpu-1"] = replace(world.nodes["gpu-1"], devices=replace(devices, others=("vfio-0",)))
    done = len(world.done)
    for _ in range(5):
        world.step()
        world.now += timedelta(seconds=30)
    assert not [one for one in world.done[done:] if isinstance(one, FenceNode | Evict)]
    verdict = world.plan().verdicts["gpu-1"]
    assert "vfio-0" in verdict.message


# --- the invariants see what they are there for ----------------------------------------------------------------


def reached(kind: type, policy: PolicyView = MIG) -> tuple[World, Any]:
    """The world in which the first call of this kind is sent on the way to MIG, or from there to another layout, and that call. It is right."""
    world = Watched(**vars(dra_world("gpu-1")))
    if policy is not MIG:
        world.set_policy(MIG)
        world.settle()
    world.kind = kind
    world.set_policy(policy)
    with pytest.raises(ReachedError) as found:
        world.settle()
    rules.check(world, found.value.action)
    return world, found.value.action


def test_an_invariant_sees_a_node_that_is_released_with_old_slices() -> None:
    world, release = reached(Release)
    machine_of(world, "gpu-1").divided += 1
    with pytest.raises(Broken, match=r"\(v\).* ResourceSlices of other devices"):
        rules.check(world, release)


def test_an_invariant_sees_a_node_whose_devices_no_pod_can_request() -> None:
    world, release = reached(Release)
    world.stack = replace(world.stack, dra=replace(world.stack.dra, classes=()))
    with pytest.raises(Broken, match=r"\(v\) no DeviceClass"):
        rules.check(world, release)


def test_an_invariant_sees_a_plugin_that_is_restarted_too_early() -> None:
    world, restart = reached(RestartOperand)
    machine_of(world, "gpu-1").running = "all-disabled"
    with pytest.raises(Broken, match=r"\(v\) restarts the kubelet plugin"):
        rules.check(world, restart)


def test_an_invariant_sees_a_class_that_nodes_need_or_that_is_not_ours() -> None:
    world, write = reached(WriteClasses, FULL)
    (gone,) = write.remove
    theirs = replace(write, remove=(replace(gone, ours=False),))
    with pytest.raises(Broken, match=r"\(v\) writes DeviceClasses of somebody else"):
        rules.check(world, theirs)
    world.nodes["gpu-1"] = replace(world.nodes["gpu-1"], devices=NodeDevices(((("3g.40gb", 2),),)))
    with pytest.raises(Broken, match=r"\(v\) removes the DeviceClasses of \['nvidia.com/mig-3g.40gb'\]"):
        rules.check(world, write)
