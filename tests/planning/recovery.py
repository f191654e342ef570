"""The small pool and the policies of the random world, and what people do at the end so that everything can come to rest."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from tests.build import H100, make_policy
from tests.planning.installations import Installation, can_carry_out, stack_of
from tests.planning.machines import unmaintained
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.planning.gpus.health import HEALTHY
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.views import PlanSettings, PolicyView

MODES: Sequence[tuple[str, dict[str, Any]]] = (
    ("Full", {}),
    ("TimeSlicing", {}),
    ("TimeSlicing", {"timeSlicing": {"replicas": 4, "failRequestsGreaterThanOne": True}}),
    ("MIG", {}),
    ("MIG", {"mig": {"strategy": "single", "config": "all-1g.10gb"}}),
    ("MIG", {"mig": {"config": "all-balanced"}}),
    ("MPS", {}),
    ("MPS", {"mps": {"replicas": 8}}),
    ("MIG", {"timeSlicing": {"replicas": 2}}),
    ("MIG", {"mig": {"config": "all-balanced"}, "timeSlicing": {"replicas": 3}}),
)
INSTEAD = {2: 3, 4: 5, 7: 0, 8: 5, 9: 3}
"""Modes that people choose where NVIDIA's DRA driver serves the GPUs, instead of those that it lacks. Of 1 and 6 they do not know that; these are refused."""
BOTH_POOLS = {"matchExpressions": [{"key": "gpusharing.dev/pool", "operator": "In", "values": ["b", "c"]}]}


def wanted(
    name: str, mode: int, budget: object, priority: int = 0, stranded: str = "Allow", unmanaged: str = "Evict"
) -> PolicyView:
    kind, fields = MODES[mode]
    selector: dict[str, Any] = {"nodeSelector": BOTH_POOLS} if name == "other" else {}
    return make_policy(
        name,
        kind,
        created=f"2026-11-01T00:00:0{len(name) % 10}Z",
        priority=priority,
        drain={"strandedPods": stranded, "unmanagedPods": unmanaged, "timeout": "2m"},
        rollout={"maxUnavailable": budget},
        **selector,
        **fields,
    )


def lenient(policy: PolicyView, **rollout: object) -> PolicyView:
    """The policy with anything at all in its rollout block, also what the API server would refuse."""
    assert policy.spec is not None, "made from a good spec"
    block = policy.spec.rollout.model_copy(update=rollout)
    return replace(policy, spec=policy.spec.model_copy(update={"rollout": block}))


def request(world: World, name: str, **annotations: str) -> bool:
    """`kubectl annotate gpunode`, by somebody without a right on Nodes. False: there is none, or it is so already."""
    gpunode = world.gpunodes.get(name)
    if gpunode is None:
        return False
    more = {names.PREFIX + key: value for key, value in annotations.items()}
    world.gpunodes[name] = replace(gpunode, requests={**gpunode.requests, **more})
    return world.gpunodes[name] != gpunode


def chosen(stack: StackView, mode: int) -> int:
    """The number of the mode that people choose in this installation instead of another one: mostly one that it has."""
    return INSTEAD.get(mode, mode) if stack.by_dra else mode


def carried_out(world: World, policy: PolicyView) -> PolicyView:
    """The policy, or one for whole GPUs where NVIDIA's installation cannot carry its mode out, as a person edits it who reads why it was refused."""
    if policy.spec is None or can_carry_out(world.stack, policy.spec):
        return policy
    full = {"mode": Mode.FULL, "mig": None, "mps": None, "time_slicing": None}
    return replace(policy, spec=policy.spec.model_copy(update=full))


def clear_up(world: World) -> None:
    """All that a person does so that things go on: after it nothing but the operator is needed."""
    world.budgets = ()
    mend_software(world)
    world.agents_down.clear()
    world.wires.faults.clear()
    world.unlisted.clear()
    world.namespace = {"team": "a"}
    for name in [name for name, node in world.nodes.items() if node.deleting]:
        world.remove_node(name)
        world.add_node(name)
    mend_machines(world)
    for policy in world.policies:
        if not policy.deleting:
            whole = policy.spec and policy.spec.model_copy(update={"products": ()})
            whole_policy = carried_out(world, replace(policy, spec=whole))
            world.set_policy(lenient(whole_policy, max_unavailable=1, paused=False))
    world.serial += 1
    world.gpunodes = {name: replace(gpunode, requests={}) for name, gpunode in world.gpunodes.items()}
    for name, known in world.nodes.items():
        node = unmaintained(known)
        ours = node.fence is not None and name not in world.human_cordons
        assert ours or not node.unschedulable or name in world.human_cordons, f"an orphan cordon on {name}"
        labels = {**node.labels, "gpusharing.dev/pool": "b", names.LABEL_GPU_PRESENT: "true"}
        labels.pop(names.LABEL_SKIP, None)
        world.nodes[name] = replace(
            node,
            hold_cordon=False,
            ready=True,
            unschedulable=node.unschedulable and ours,
            retry=f"clear-{world.serial}",
            label_owners={},
            labels=labels,
        )
    world.human_cordons.clear()
    for pods in world.pods.values():
        pods.clear()
    settle_deleted(world)


def mend_software(world: World) -> None:
    """One operator leads, and the GPU Operator's MPS daemon follows labels."""
    world.rival = None
    if world.stack.cluster_policy is not None:
        known = replace(world.stack.cluster_policy, mps_daemon=None)
        world.stack = replace(world.stack, cluster_policy=known)


def mend_machines(world: World) -> None:
    """GPUs and NVIDIA's programs work again; a mig-manager that stands still is started anew."""
    for machine in world.machines.values():
        if not machine.products:
            machine.products, machine.layouts = (H100,), [None]
        machine.temper, machine.stray, machine.vitals, machine.away = "works", False, HEALTHY, False
        if machine.mps_dead:
            machine.stop_mps()
        machine.exclusive = machine.clients is not None
        if machine.running or any("paused" in v for k, v in world.nodes[machine.name].labels.items() if "deploy" in k):
            machine.restart()


def settle_deleted(world: World) -> None:
    """Fences of policies that are gone need a policy that takes them over."""
    if not any(not policy.deleting for policy in world.policies):
        world.set_policy(wanted("rescue", 0, 1))


# --- the small pool that the machine of random events begins with -----------------------------------------------------

NODES = ("gpu-0", "gpu-1", "gpu-2")
WAITS = PlanSettings(
    settle=1,
    idle=1,
    poll=2,
    config_propagation=3,
    drift_grace=10,
    wedge_pending=60,
    wedge_paused=5,
    restart_grace=4,
    force_delete=True,
)


@lru_cache
def at_rest(mode: int, budget: object, installation: Installation) -> World:
    """A pool that was proven in this mode, or with whole GPUs where the installation cannot carry the mode out. One pool serves many examples, each with a copy."""
    world = World(settings=WAITS, stack=stack_of(installation))
    for name in NODES:
        world.add_node(name)
    world.set_policy(carried_out(world, wanted("pool-b", mode, budget)))
    world.settle()
    return world


def in_flight(world: World) -> list[str]:
    return [name for name, node in sorted(world.nodes.items()) if node.fence is not None]


def stage_of(world: World, name: str) -> str:
    fence = world.nodes[name].fence
    return fence.stage if fence is not None else ""
