"""Changes in a World where NVIDIA's DRA driver serves the GPUs: every action is held to the invariants, also when the
operator is killed before it."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random

import pytest
from tests.build import make_cluster_policy, make_policy
from tests.planning.machines import Labels, NodeMachine
from tests.planning.test_drastack import DRIVER
from tests.planning.world import World

from gpusharing.api.names import Phase
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import (
    Actuate,
    Evict,
    FenceNode,
    Release,
    RestartOperand,
    WriteClasses,
)
from gpusharing.planning.snapshot.draviews import DraView, NodeDevices, key_of
from gpusharing.planning.snapshot.stackviews import PLUGIN_SWITCH, Operand, Program, StackView
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.wanted.verify import served

MIG, FULL = (
    make_policy(drain={"strandedPods": "Allow"}),
    make_policy(mode="Full", drain={"strandedPods": "Allow"}),
)
SMALL = make_policy(
    mig={"layouts": [{"devices": "all", "profiles": {"1g.10gb": 7}}]}, drain={"strandedPods": "Allow"}
)


@dataclass
class DraMachine(NodeMachine):
    """A node whose devices the kubelet plugin publishes when it starts, and only then."""

    plugins: int = 0
    """Counts pods of the kubelet plugin."""
    published: int = -1
    """The pod that published last."""
    divided: int = 0
    """How often the GPUs were divided: each time their devices get other UUIDs."""
    pauses: bool = False
    """The kubelet plugin requires gpu.deploy.client, so that mig-manager takes its pod away during a run."""

    @property
    def operands(self) -> dict[Program, Operand]:
        """mig-manager's pod and that of the kubelet plugin, which may be away."""
        if self.pauses and self.running:
            return {Program.MIG_MANAGER: self.operand}
        plugin = Operand("gpu-operator", f"dra-{self.name}", f"uid-dra-{self.name}-{self.plugins}", True)
        return {Program.MIG_MANAGER: self.operand, Program.KUBELET_PLUGIN: plugin}

    @property
    def devices_key(self) -> str:
        """Of the devices as they are now."""
        return key_of([f"{self.name}-{self.divided}"])

    def mig_manager(self, node: NodeView, stack: StackView) -> Labels:
        """One step; the end of a run makes other devices."""
        running, labels = self.running, super().mig_manager(node, stack)
        ended = bool(running and not self.running)
        self.divided += ended
        self.plugins += ended and self.pauses
        return labels

    def reboot(self) -> None:
        """MIG instances are gone, and both programs start again in their pods."""
        self.layouts = [None if layout is None else () for layout in self.layouts]
        self.seen, self.published = None, -1

    def stop_mps(self) -> None:
        """The other pod that may be restarted is that of the kubelet plugin."""
        self.plugins += 1

    def plugin(self, node: NodeView, stack: StackView, now: datetime) -> NodeView:
        """One step: a new pod publishes what there is."""
        if self.published == self.plugins or (self.pauses and self.running):
            return node
        self.published = self.plugins
        return replace(node, resources={}, devices=self.due)

    @property
    def due(self) -> NodeDevices:
        """What a plugin that starts now publishes."""
        shown: list[Layout | None] = [layout for layout in self.layouts if layout is None or layout]
        layouts = tuple(sorted(shown, key=lambda layout: (layout is None, layout or ())))
        return NodeDevices(layouts, key=self.devices_key)


def dra_world(*names: str) -> World:
    """Nodes at rest with whole GPUs."""
    world = World()
    policy = make_cluster_policy("", switches={PLUGIN_SWITCH: False}, mig_manager_version="v0.15.1")
    world.stack = replace(world.stack, cluster_policy=policy, dra=DraView(DRIVER, classes=()))
    for name in names:
        world.add_node(name, DraMachine(name))
    world.set_policy(FULL)
    world.settle()
    return world


def machine_of(world: World, name: str) -> DraMachine:
    """The machine behind a node."""
    machine = world.machines[name]
    assert isinstance(machine, DraMachine)
    return machine


def classes(world: World) -> set[str]:
    """The extended resources of our DeviceClasses."""
    return {one.resource for one in world.stack.dra.classes or ()}


def phases(plan: RolloutPlan) -> set[Phase]:
    """The phases of all nodes."""
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
        before = {
            name: machine.operands[Program.KUBELET_PLUGIN].uid for name, machine in world.machines.items()
        }
        world.set_policy(policy)
        assert phases(world.settle()) == {Phase.SYNCED}
        for name, node in world.nodes.items():
            assert served(node) == {resource: count}
            assert node.devices is not None
            assert node.devices.key == world.machines[name].devices_key
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
        actions = [*plan.shared, *(one for verdict in plan.verdicts.values() for one in verdict.actions)]
        for limit in range(len(actions)):
            twin = world.copy()
            twin.step(limit=limit)
            assert phases(twin.settle()) == {Phase.SYNCED}
            assert len([one for one in twin.done if isinstance(one, Release)]) == 1
            plugins = [one for one in twin.done if isinstance(one, RestartOperand)]
            assert len(plugins) == 1, "one restart is enough, whoever sees it"
            crashes += 1
        if phases(plan) == {Phase.SYNCED}:
            break
        for name in world.nodes:
            world.act(name)
        world.step()
        world.now += timedelta(seconds=2)
    kinds = {type(one) for one in world.done}
    assert {WriteClasses, FenceNode, Evict, Actuate, RestartOperand, Release} <= kinds
    assert crashes > 10


def disturb(world: World, random: Random) -> None:
    """Something happens on a node, or to the operator, in the middle of whatever goes on."""
    name = random.choice(sorted(world.nodes))
    machine = machine_of(world, name)
    match random.randrange(8):
        case 0:
            world.step(limit=random.randrange(3))
        case 1:
            world.restart()
        case 2:
            world.set_policy(random.choice([FULL, MIG, SMALL]))
        case 3:
            machine.plugins += 1  # somebody deletes the kubelet plugin's pod, perhaps too early
        case 4:
            machine.temper = random.choice(["works", "hangs", "forgets", "fails"])
        case 5 if world.nodes[name].fence is None:  # in a change it might come after the last reading
            machine.divided += 1
        case 6:
            world.nodes[name] = replace(world.nodes[name], devices=None)  # the kubelet wipes the slices
            machine.plugins += 1
        case _:
            if world.add_pod(name):
                uid, pod = list(world.pods[name].items())[-1]
                world.pods[name][uid] = replace(pod, dra="gpu")


@pytest.mark.parametrize("seed", range(30))
def test_no_disturbance_breaks_an_invariant_or_lets_a_node_with_stale_slices_go(seed: int) -> None:
    random, world = Random(seed), dra_world("gpu-1", "gpu-2")
    world.set_policy(MIG)
    for _ in range(60):
        for name in world.nodes:
            world.act(name)
        if random.random() < 0.3:
            disturb(world, random)
        done = len(world.done)
        world.step()
        for action in world.done[done:]:
            if isinstance(action, Release) and action.verified is not None:
                machine = machine_of(world, action.node.name)
                assert world.nodes[action.node.name].devices == machine.due
        world.now += timedelta(seconds=random.choice([1, 2, 10, 60]))
    for one in world.machines.values():
        one.temper = "works"
    plan = world.settle(approving=True)
    for name, verdict in plan.verdicts.items():
        if verdict.phase is Phase.SYNCED:
            assert world.nodes[name].devices == machine_of(world, name).due


@pytest.mark.parametrize("pauses", [False, True], ids=["runs on", "is paused by mig-manager"])
def test_a_plugin_that_mig_manager_pauses_is_replaced_by_nobody_else_and_heals_after_a_reboot(
    pauses: bool,
) -> None:
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
