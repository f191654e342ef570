"""The invariants of rollout.py, asked of every single action before a World carries it out."""

from typing import TYPE_CHECKING

from hack.sim.plugin import parse_config

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass
from gpusharing.api.validation import allowance
from gpusharing.planning.actions import (
    Action,
    Actuate,
    EnsureGPUNode,
    Evict,
    FenceNode,
    LabelNode,
    Release,
    RestartOperand,
    SetFinalizer,
    UpdateFence,
)
from gpusharing.planning.ownership import Owners
from gpusharing.planning.views import Claim, NodeView, PodView

if TYPE_CHECKING:
    from tests.planning.world import World

NEEDS_IDLE = (DisruptionClass.GPU_PODS, DisruptionClass.RESET, DisruptionClass.REBOOT)


class Broken(AssertionError):
    """An invariant does not hold; the text says which."""


def hold(condition: bool, invariant: str) -> None:
    """Raise Broken unless the condition holds."""
    if not condition:
        raise Broken(invariant)


def check(world: "World", action: Action) -> None:
    """Whether this action may be carried out in this world now."""
    match action:
        case FenceNode():
            _fresh(world, action.node)
            _fence(world, action)
        case Actuate():
            _fresh(world, action.node)
            _point_of_no_return(world, action)
        case UpdateFence():
            _fresh(world, action.node)
            hold(action.node.fence is not None, "a fence is updated that is not there")
        case Release():
            _fresh(world, action.node)
            _release(world, action)
        case LabelNode():
            ours = {names.LABEL_MODE, names.LABEL_POLICY}
            hold(set(action.labels) <= ours, f"adoption writes more than our labels: {action.labels}")
        case Evict():
            _eviction(world, action)
        case RestartOperand():
            machine = world.machines[action.node]
            alive = {machine.operand.uid} | ({machine.mps_daemon.uid} if machine.mps_daemon else set())
            hold(action.uid in alive, "restarts a pod that is gone")
        case SetFinalizer():
            policy = next(policy for policy in world.policies if policy.name == action.policy)
            hold(policy.finalizer != action.present, "writes a finalizer that is as wanted")
            hold(not (policy.deleting and action.present), "adds a finalizer under deletion")
        case EnsureGPUNode():
            hold(len(action.request_id) <= 128, "request id longer than the CRD allows")
        case _:
            pass


def _fresh(world: "World", node: NodeView) -> None:
    """Every check-then-act write is decided on the node as it is; two in one pass would conflict."""
    hold(world.nodes.get(node.name) == node, f"a second conditional write on {node.name} in one pass")


def is_away(node: NodeView) -> bool:
    """Nobody can start a pod there, for whatever reason."""
    return not node.ready or node.unschedulable or node.deleting or node.fence is not None


def pool(world: "World", policy: str) -> list[NodeView]:
    """The nodes of a policy, those that still carry its fence included."""
    owners = Owners(world.policies)
    mine = []
    for node in world.nodes.values():
        owner = owners.owner(node)
        if (node.fence.policy if node.fence else owner.name if owner else "") == policy:
            mine.append(node)
    return mine


def _fence(world: "World", action: FenceNode) -> None:
    node, fence = action.node, action.fence
    policy = next(policy for policy in world.policies if policy.name == fence.policy)
    hold(policy.spec is not None and not policy.deleting, "a fence for a policy that is going or unreadable")
    assert policy.spec is not None, "just held"
    mine = pool(world, policy.name)
    limit = allowance(policy.spec.rollout.max_unavailable, len(mine))
    used = sum(map(is_away, mine))
    hold(used < limit, f"(a) {used} of {limit} nodes of {policy.name} are away already")
    fenced = sum(node.fence is not None for node in world.nodes.values())
    hold(fenced < world.settings.max_in_flight, "(a) the operator-wide cap is exceeded")
    claim = Claim(node.uid, fence.policy, fence.op)
    hold(world.claims.get(node.name) == claim, "a fence without its claim")
    hold(not node.unschedulable and not node.foreign and node.ready, "a fence on somebody else's node")
    hold(action.cordon == (fence.disruption in NEEDS_IDLE), "cordon and class disagree")
    hold(policy.finalizer, "a node in flight without a finalizer on its policy")


def _no_race(world: "World", action: Actuate) -> None:
    """mig-manager does not wait for the MPS daemon, and plugin and GFD refuse MPS on MIG (b.5): never at once."""
    machine, fence = world.machines[action.node.name], action.fence
    divided = world.resolves_to_mig(fence.target_mig_config)
    mps = parse_config(world.stack.plugin_configs.get(fence.target_plugin_config, "")).clients is not None
    hold(not (divided and mps), "MPS and MIG at once")
    hold(not (divided and (machine.clients or machine.exclusive)), "MIG is asked for while MPS serves")
    hold(not mps or all(layout is None for layout in machine.layouts), "MPS is asked for on GPUs with MIG")


def counts(pod: PodView) -> bool:
    """A pod that holds a GPU and that a change must not kill."""
    gpu = any(name.startswith(("nvidia.com/gpu", "nvidia.com/mig-")) for name in pod.resources)
    return gpu and pod.phase not in ("Succeeded", "Failed") and pod.namespace != "gpu-operator"


def _point_of_no_return(world: "World", action: Actuate) -> None:
    node, labels = action.node, action.labels
    if action.fence.disruption in NEEDS_IDLE:
        left = [pod.ref for pod in world.pods[node.name].values() if counts(pod)]
        hold(not left, f"(b) point of no return with {left} on {node.name}")
        hold(not world.machines[node.name].stray, "(b) point of no return while a process computes")
        hold(node.unschedulable, "(b) point of no return on a schedulable node")
        gpunode = world.gpunodes.get(node.name)
        quiet = gpunode is not None and gpunode.observed is not None and gpunode.observed.quiet
        hold(quiet, "point of no return while the agent has NVML open")
    present = node.labels.get(names.LABEL_MIG_CONFIG)
    if names.LABEL_MIG_STATE in labels:
        hold(labels[names.LABEL_MIG_STATE] is None, "we never write a state but null")
        hold(labels.get(names.LABEL_MIG_CONFIG, present) != present, "state null without a new mig.config")
        hold(node.labels.get(names.LABEL_MIG_STATE) != "rebooting", "state null while rebooting")
    hold(labels.get(names.LABEL_MIG_CONFIG, "") != present, "the same mig.config is written again")
    capable = any(gpu.mig_capable for gpu in world.machines[node.name].gpus())
    mig = {names.LABEL_MIG_CONFIG, names.LABEL_MIG_STATE} & labels.keys()
    hold(capable or not mig, "a card without MIG gets mig labels")
    _no_race(world, action)
    key = labels.get(names.LABEL_PLUGIN_CONFIG)
    hold(
        key is None or key in world.stack.plugin_configs, "a label names a configuration that is not written"
    )


def _release(world: "World", action: Release) -> None:
    node = action.node
    hold(node.fence is not None, "a release without a fence")
    if action.uncordon:
        hold(node.name not in world.human_cordons, "(d) uncordons somebody else's cordon")
        hold(not node.hold_cordon and not node.foreign, "(d) uncordons a held node")
    if action.uncordon and node.fence is not None and node.fence.stage == "actuating":
        policy = action.labels.get(names.LABEL_POLICY)
        hold(action.verified is not None and bool(policy), "uncordoned after the PNR without a proof")


def _eviction(world: "World", action: Evict) -> None:
    pod = world.pods[action.node].get(action.uid)
    hold(action.uid not in world.evicted, "(c) a second eviction of one pod")
    hold(pod is not None, "evicts a pod that is gone")
    assert pod is not None, "just held"
    kind = pod.owner.kind if pod.owner else ""
    hold(kind != "DaemonSet" and not pod.mirror and pod.deleted_at is None, "(c) evicts what must not be")
    hold(counts(pod), "(c) evicts a pod that holds no GPU")
    fence = world.nodes[action.node].fence
    hold(fence is not None and world.nodes[action.node].unschedulable, "evicts from a node that is not ours")
