"""The invariants of rollout.py, asked of every single action before a World carries it out."""

from typing import TYPE_CHECKING

from hack.sim.plugin import parse_config
from tests.planning import podkinds
from tests.planning.broken import Broken as Broken
from tests.planning.broken import hold as hold
from tests.planning.dramachines import DraMachine
from tests.planning.pooling import is_away, is_newcomer, joining, pool

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass
from gpusharing.api.validation import allowance
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    ClearRequests,
    EnsureGPUNode,
    Evict,
    FenceNode,
    LabelNode,
    Release,
    RestartOperand,
    SetFinalizer,
    UpdateFence,
    WriteClasses,
)
from gpusharing.planning.snapshot.records import Claim, Fence
from gpusharing.planning.snapshot.views import NodeView, PolicyView

if TYPE_CHECKING:
    from tests.planning.world import World

NEEDS_IDLE = (DisruptionClass.CHANGED_GPUS, DisruptionClass.GPU_PODS, DisruptionClass.RESET, DisruptionClass.REBOOT)


def emptied(fence: Fence | None) -> tuple[int, ...]:
    """The only GPUs that the change empties; none if it empties all of them."""
    return fence.gpus if fence is not None and fence.disruption is DisruptionClass.CHANGED_GPUS else ()


def is_settled(plan: RolloutPlan) -> bool:
    return not plan.shared and not any(verdict.actions for verdict in plan.verdicts.values())


def check(world: "World", action: Action) -> None:
    """Whether this action may be carried out in this world now."""
    match action:
        case FenceNode():
            _fresh(world, action.node)
            _fence(world, action)
        case Actuate():
            _fresh(world, action.node)
            _widened_by_a_person(world, action)
            _point_of_no_return(world, action)
        case UpdateFence():
            _fresh(world, action.node)
            hold(action.node.fence is not None, "a fence is updated that is not there")
            _widened_by_a_person(world, action)
        case Release():
            _fresh(world, action.node)
            _release(world, action)
        case LabelNode():
            if action.forget:
                _fresh(world, action.node)
                _reset(world, action)
                return
            ours = {names.LABEL_MODE, names.LABEL_POLICY}
            if action.requests is not None:
                _fresh(world, action.node)
                hold(bool(action.labels or action.requests), "takes nothing from a GPUNode")
                hold(action.node.fence_error == "", "(i) writes to a node whose fence cannot be read")
                ours = {names.LABEL_SKIP}
            hold(set(action.labels) <= ours, f"adoption writes more than our labels: {action.labels}")
        case ClearRequests():
            _moved(world, action)
        case Evict():
            _eviction(world, action)
        case RestartOperand():
            machine = world.machines[action.node]
            alive = {pod.uid for pod in machine.operands.values()}
            hold(action.uid in alive, "restarts a pod that is gone")
            _restart(world, action)
        case SetFinalizer():
            policy = next(policy for policy in world.policies if policy.name == action.policy)
            hold(policy.finalizer != action.present, "writes a finalizer that is as wanted")
            hold(not (policy.deleting and action.present), "adds a finalizer under deletion")
        case WriteClasses():
            _classes(world, action)
        case EnsureGPUNode():
            hold(len(action.request_id) <= 128, "request id longer than the CRD allows")
        case _:
            pass


def _moved(world: "World", action: ClearRequests) -> None:
    """Nothing that an editor has asked for is lost on its way to the Node."""
    node, asked = world.nodes[action.node], dict(world.gpunodes[action.node].requests)
    hold(asked == action.requests, "removes a request that came later")
    skip = asked.pop(names.LABEL_SKIP, None)
    skipped = names.is_skip(node.labels.get(names.LABEL_SKIP))
    hold(skip is None or names.is_skip(skip) == skipped, "a request to skip the node is lost")
    present = {names.ANNOTATION_RETRY: node.retry, names.ANNOTATION_ABORT: node.abort}
    hold(all(present[key] == value for key, value in asked.items()), "a retry or an abort is lost")


def _reset(world: "World", action: LabelNode) -> None:
    """Nothing of ours stays, and it happens to whole GPUs of a policy that is being deleted only."""
    name = action.node.name
    owner = action.node.labels.get(names.LABEL_POLICY)
    left = [one.name for one in pool(world, owner or "") if one.fence or any(world.machines[one.name].layouts)]
    hold(not left, f"(s) {name} is forgotten, and {left} of its pool are not whole")
    ours = {names.LABEL_MODE, names.LABEL_POLICY}
    hold(set(action.labels) == ours & action.node.labels.keys(), f"a reset leaves labels: {action.labels}")
    cluster_policy = world.stack.cluster_policy
    default = cluster_policy.plugin_default if cluster_policy is not None else ""
    shares = parse_config(world.stack.plugin_configs.get(default, "")).sharing != "none"
    kept = names.LABEL_PLUGIN_CONFIG in action.node.labels
    needed = shares and not world.stack.by_dra
    hold(kept is needed, f"a reset leaves the label of the device plugin, or takes one that is needed: {kept}")
    hold(set(action.labels.values()) <= {None}, "a reset writes labels")
    machine = world.machines[name]
    whole = all(layout is None for layout in machine.layouts) and not machine.clients and not machine.exclusive
    hold(whole and world.nodes[name].fence is None, f"a reset of {name}, which has no whole GPUs")
    hold(any(one.name == owner and one.resetting for one in world.policies), "a reset of a policy that stays")


def _fresh(world: "World", node: NodeView) -> None:
    """Every check-then-act write is decided on the node as it is; two in one pass would conflict."""
    hold(world.nodes.get(node.name) == node, f"a second conditional write on {node.name} in one pass")


def _fence(world: "World", action: FenceNode) -> None:
    node, fence = action.node, action.fence
    policy = next(policy for policy in world.policies if policy.name == fence.policy)
    hold(policy.spec is not None and not policy.deleting, "a fence for a policy that is going or unreadable")
    assert policy.spec is not None, "just held"
    hold(not policy.spec.rollout.paused, "a fence for a paused policy")
    _within_budget(world, fence, policy)
    fenced = sum(node.fence is not None and node.fence.stage != "yielded" for node in world.nodes.values())
    hold(fenced < world.settings.max_in_flight, "(a) the operator-wide cap is exceeded")
    claim = Claim(node.uid, fence.policy, fence.op, fence.wave)
    hold(world.claims.get(node.name) == claim, "a fence without its claim")
    hold(not node.unschedulable and not node.foreign and node.ready, "a fence on somebody else's node")
    hold(not node.deleting, "a fence on a node that is going")
    drains = fence.disruption in NEEDS_IDLE
    hold(action.cordon == (drains and not fence.tainted), "cordon and class disagree")
    hold(not fence.tainted or (drains and world.stack.dra.taints_work), "a rule that was not shown to work")
    hold(policy.finalizer, "a node in flight without a finalizer on its policy")


def _widened_by_a_person(world: "World", action: Actuate | UpdateFence) -> None:
    """What must be gone is written with the fence, and only an edit or a retry that says so adds to it."""
    node, before, after = action.node, action.node.fence, action.fence
    if before is None or before.covers(after.disruption, after.gpus):
        return
    named = names.RETRIES_THAT_EMPTY.get(node.retry.partition(".")[0])
    if node.retry != before.retry and named is not None:
        return
    policy = next((policy for policy in world.policies if policy.name == before.policy), None)
    owner = next((policy for policy in world.policies if policy.name == after.policy), policy)
    edited = owner is not None and owner.version != before.version
    hold(
        edited,
        f"(x) {before.disruption} {before.gpus} becomes {after.disruption} {after.gpus}, and nobody asked for it",
    )
    assert owner is not None, "just held"
    paused = owner.spec is None or owner.spec.rollout.paused
    hold(not paused, "(x) an edit empties more although its policy is paused")


def _within_budget(world: "World", fence: Fence, policy: PolicyView) -> None:
    assert policy.spec is not None, "held before"
    node = next(node for node in world.nodes.values() if node.uid == fence.node_uid)
    if fence.newcomer:
        hold(node.gate is not None and node.verified is None, "(a) no slot for a node that was in service")
        pods = [pod for pod in world.pods[node.name].values() if podkinds.must_leave(pod, reboot=False)]
        hold(fence.disruption not in NEEDS_IDLE or not pods, "(a) no slot for a node with GPU pods")
        hold(allowance(policy.spec.rollout.max_unavailable, 1) > 0, "(h) a frozen pool starts a node")
        return
    mine = [node for node in pool(world, policy.name) if not is_newcomer(world, node)]
    limit = allowance(policy.spec.rollout.max_unavailable, len(mine))
    used = sum(map(is_away, mine)) + len(joining(world, policy.name))
    hold(used < limit, f"(a) {used} of {limit} nodes of {policy.name} are away already")


def _no_race(world: "World", action: Actuate) -> None:
    """mig-manager does not wait for the MPS daemon, and plugin and GFD refuse MPS on MIG (docs/design/nvidia.md#b5): never at once."""
    machine, fence = world.machines[action.node.name], action.fence
    divided = world.resolves_to_mig(fence.target_mig_config)
    mps = parse_config(world.stack.plugin_configs.get(fence.target_plugin_config, "")).clients is not None
    hold(not (divided and mps), "MPS and MIG at once")
    hold(not (divided and (machine.clients or machine.exclusive)), "MIG is asked for while MPS serves")
    hold(not mps or all(layout is None for layout in machine.layouts), "MPS is asked for on GPUs with MIG")


def _proven_idle(world: "World", node: NodeView, *, reboot: bool, what: str) -> None:
    """Nobody uses the GPUs, nobody can begin to, and the agent has closed NVML: before every run of mig-manager."""
    pods = world.pods[node.name]
    left = [
        world.kinds[uid]
        for uid, pod in pods.items()
        if podkinds.must_leave(pod, reboot=reboot) and world.is_touched(node.name, uid, emptied(node.fence))
    ]
    hold(not left, f"(b) {what} with {left} on {node.name}")
    hold(not world.machines[node.name].stray, f"(b) {what} while a process computes")
    hold(is_closed(node), f"(b) {what} on a schedulable node")
    hold(not node.deleting, f"(b) {what} on a node that is going")
    gpunode = world.gpunodes.get(node.name)
    quiet = gpunode is not None and gpunode.observed is not None and gpunode.observed.quiet
    hold(quiet, f"(b) {what} while the agent has NVML open")
    alone = gpunode.quiet_gpus if gpunode is not None else ()
    hold(alone in ((), emptied(node.fence)), f"(b) {what} while the agent leaves alone only GPUs {alone}")


def _reboots(world: "World", fence: Fence, node: str) -> bool:
    policy, machine = world.stack.cluster_policy, world.machines[node]
    wanted = machine.wanted(fence.target_mig_config, world.stack) if fence.target_mig_config else None
    return policy is not None and policy.with_reboot and wanted is not None and machine.switches(wanted)


def _restart(world: "World", action: RestartOperand) -> None:
    """A fresh mig-manager runs at once, and a fresh MPS daemon ends its clients: as grave as the PNR."""
    node = world.nodes[action.node]
    hold(node.fence is not None and node.fence.stage == "actuating", "restarts a pod on a node that is not ours")
    assert node.fence is not None, "just held"
    machine = world.machines[node.name]
    early = isinstance(machine, DraMachine) and machine.running and action.uid != machine.operand.uid
    hold(not early, "(v) restarts the kubelet plugin while mig-manager works, so that it publishes too early")
    reboot = action.uid == machine.operand.uid and _reboots(world, node.fence, node.name)
    _proven_idle(world, node, reboot=reboot, what="a restart")


def _point_of_no_return(world: "World", action: Actuate) -> None:
    node, labels, machine = action.node, action.labels, world.machines[action.node.name]
    target = action.fence.target_mig_config
    if action.fence.disruption in NEEDS_IDLE:
        reboot = _reboots(world, action.fence, node.name)
        _proven_idle(world, node, reboot=reboot, what="point of no return")
    else:
        wanted = machine.wanted(target, world.stack) if target else None
        hold(wanted in (None, tuple(machine.layouts)), "(b) another layout without an idle node")
    first = node.fence is not None and node.fence.stage == "fenced"
    hold(not (first and node.foreign_works), "point of no return on a node that somebody else maintains")
    present = node.labels.get(names.LABEL_MIG_CONFIG)
    if names.LABEL_MIG_STATE in labels:
        hold(labels[names.LABEL_MIG_STATE] is None, "we never write a state but null")
        hold(labels.get(names.LABEL_MIG_CONFIG, present) != present, "state null without a new mig.config")
        hold(node.labels.get(names.LABEL_MIG_STATE) != "rebooting", "state null while rebooting")
    hold(labels.get(names.LABEL_MIG_CONFIG, "") != present, "the same mig.config is written again")
    # GPUs that vanish while the agent keeps quiet are still written to: nobody can have seen that.
    capable = not machine.products or any(gpu.mig_capable for gpu in machine.gpus())
    mig = {names.LABEL_MIG_CONFIG, names.LABEL_MIG_STATE} & labels.keys()
    hold(capable or not mig, "a card without MIG gets mig labels")
    _no_race(world, action)
    key = labels.get(names.LABEL_PLUGIN_CONFIG)
    hold(key is None or key in world.stack.plugin_configs, "a label names a configuration that is not written")


def _release(world: "World", action: Release) -> None:
    node, fence = action.node, action.node.fence
    hold(fence is not None, "a release without a fence")
    assert fence is not None, "just held"
    forced = any(policy.name == fence.policy and policy.force_release for policy in world.policies)
    if action.uncordon:
        hold(node.name not in world.human_cordons, "(d) uncordons somebody else's cordon")
        hold(not node.hold_cordon and not node.foreign_works, "(d) uncordons a held node")
    elif is_ours(world, node) and action.fence is None:
        kept = node.hold_cordon or forced or node.deleting
        hold(kept, "(d) leaves our own cordon behind as somebody else's")
        world.human_cordons.add(node.name)  # from now on it is for people to lift
    machine = world.machines[node.name]
    if isinstance(machine, DraMachine) and action.verified is not None:
        _published(world, node, machine)
    if action.fence is not None:
        hold(node.foreign_works and action.verified is not None, "a fence stays, and nobody else works there")
    if action.uncordon and fence.stage == "actuating":
        policy = action.labels.get(names.LABEL_POLICY)
        hold(action.verified is not None and bool(policy), "uncordoned after the PNR without a proof")


def _published(world: "World", node: NodeView, machine: DraMachine) -> None:
    """(t) A node that the DRA driver serves is given back with its present devices, which pods may ask for."""
    hold(node.devices == machine.due, f"(v) {node.name} is proven with the ResourceSlices of other devices")
    classes = {names.RESOURCE_GPU, *(one.resource for one in world.stack.dra.classes or ())}
    hold(machine.due.resources.keys() <= classes, f"(v) no DeviceClass serves the devices of {node.name}")


def _classes(world: "World", action: WriteClasses) -> None:
    """Only classes of ours are changed or removed, and none by which pods on a node may have asked for devices."""
    touched = (*action.remove, *(wrong for _, wrong in action.correct))
    foreign = [one.name for one in touched if not one.ours]
    hold(not foreign, f"(v) writes DeviceClasses of somebody else: {foreign}")
    published = {name for node in world.nodes.values() if node.devices for name in node.devices.resources}
    needed = published & {one.resource for one in action.remove}
    hold(not needed, f"(v) removes the DeviceClasses of {sorted(needed)}, which nodes have")


def is_ours(world: "World", node: NodeView) -> bool:
    """We cordoned it, for a change, and nobody else did."""
    fence = node.fence
    return (
        fence is not None
        and fence.disruption in NEEDS_IDLE
        and not fence.tainted
        and not fence.prior_unschedulable
        and node.unschedulable
        and node.name not in world.human_cordons
    )


def is_closed(node: NodeView) -> bool:
    """It is cordoned, or its fence is a DeviceTaintRule that is in place."""
    tainted = node.fence is not None and node.fence.tainted
    return node.rule_since is not None if tainted else node.unschedulable


def _eviction(world: "World", action: Evict) -> None:
    pod, node = world.pods[action.node].get(action.uid), world.nodes[action.node]
    hold(action.uid not in world.evicted, "(c) a second eviction of one pod")
    hold(pod is not None, "evicts a pod that is gone")
    assert pod is not None, "just held"
    fence = node.fence
    hold(fence is not None and is_closed(node), "evicts from a node that is not ours")
    assert fence is not None, "just held"
    hold(fence.stage == "actuating" or not node.foreign_works, "evicts from a node that somebody else maintains")
    policy = next((policy for policy in world.policies if policy.name == fence.policy), None)
    spec = policy.spec if policy is not None else None
    hold(spec is not None, "(c) evicts for a policy that is gone")
    assert spec is not None, "just held"
    reboot = fence.disruption is DisruptionClass.REBOOT
    terms = podkinds.Terms(spec.drain, reboot, world.now, fence.since, world.stack.by_dra)
    others = [world.readable(one) for one in world.pods[action.node].values()]
    touched = world.is_touched(node.name, action.uid, emptied(node.fence))
    hold(touched, f"(w) evicts {world.kinds[action.uid]} from a GPU that does not change")
    fine = podkinds.may_be_evicted(world.readable(pod), others, terms)
    hold(fine, f"(c) evicts {world.kinds[action.uid]}")
