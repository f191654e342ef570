"""What the API server of a World makes of the operator's calls, and what the operator's process remembers of them."""

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from tests.planning.budgets import answer_to
from tests.planning.machines import patched

from gpusharing.api import names
from gpusharing.planning.drain.evictions import is_accepted, is_seen, remember
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    ClearRequests,
    EnsureGPUNode,
    Evict,
    FenceNode,
    ForceDelete,
    LabelNode,
    Release,
    RestartOperand,
    SetClaims,
    SetFinalizer,
    UpdateFence,
    WriteClasses,
    WriteConfig,
    WriteRules,
)
from gpusharing.planning.snapshot.nvidia import DeviceClassView
from gpusharing.planning.snapshot.views import GPUNodeView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.migfile import parse as parse_mig_file
from gpusharing.planning.wanted.target import known_times

if TYPE_CHECKING:
    from tests.planning.world import World

GRACE = timedelta(seconds=10)
NodePatch = FenceNode | Actuate | UpdateFence | Release | LabelNode


def carry_out(world: "World", action: Action) -> None:
    match action:
        case WriteConfig():
            _write_config(world, action)
        case EnsureGPUNode():
            _ensure_gpunode(world, action)
        case SetClaims():
            world.claims, world.failed_nodes = dict(action.claims), dict(action.failed_nodes)
            world.consents = dict(action.consents)
        case SetFinalizer():
            _set_finalizer(world, action)
        case Evict():
            _evict(world, action)
        case ForceDelete():
            _force_delete(world, action)
        case RestartOperand():
            _restart(world, action)
        case WriteClasses():
            _write_classes(world, action)
        case ClearRequests():
            world.gpunodes[action.node] = replace(world.gpunodes[action.node], requests={})
        case WriteRules():
            for name in (*action.create, *(rule.node for rule in action.remove)):
                since = world.now if name in action.create else None
                if name in world.nodes:
                    world.nodes[name] = replace(world.nodes[name], rule_since=since)
        case FenceNode() | Actuate() | UpdateFence() | Release() | LabelNode():
            _patch_node(world, action)


def _restart(world: "World", action: RestartOperand) -> None:
    world.machines[action.node].delete_pod(action.uid)


def _write_classes(world: "World", action: WriteClasses) -> None:
    gone = {one.name for one in (*action.remove, *(wrong for _, wrong in action.correct))}
    kept = [one for one in world.stack.dra.classes or () if one.name not in gone]
    made = [
        DeviceClassView(one.name, f"uid-{one.name}", "1", True, one.resource, one.selectors)
        for one in (*action.create, *(right for right, _ in action.correct))
    ]
    classes = tuple(sorted([*kept, *made], key=lambda one: one.name))
    world.stack = replace(world.stack, dra=replace(world.stack.dra, classes=classes))


def _write_config(world: "World", action: WriteConfig) -> None:
    keys = [*action.plugin_configs, *parse_mig_file(action.mig_file)]
    known = known_times(world.stack.written, world.now)
    written = {key: known.get(key, world.now) for key in keys}
    world.stack = replace(
        world.stack,
        plugin_configs=dict(action.plugin_configs),
        mig_file=action.mig_file,
        written=written,
        plugin_map_exists=True,
    )


def _ensure_gpunode(world: "World", action: EnsureGPUNode) -> None:
    old = world.gpunodes.get(action.node)
    observed = old.observed if old else None
    world.gpunodes[action.node] = GPUNodeView(
        action.node,
        f"uid-gpunode-{action.node}",
        action.request_id,
        action.quiet,
        observed,
        old.requests if old else {},
        action.holders,
        action.quiet_gpus,
    )


def _set_finalizer(world: "World", action: SetFinalizer) -> None:
    world.policies = tuple(
        replace(policy, finalizer=action.present) if policy.name == action.policy else policy
        for policy in world.policies
        if not (policy.name == action.policy and policy.going and not action.present)
    )


def _evict(world: "World", action: Evict) -> None:
    memories = world.memory.evictions.setdefault(action.node, {})
    pods = world.pods[action.node]
    answer = answer_to(pods[action.uid], world.budgets, world.everywhere())
    answer = Reason.PDB if world.refusing else answer
    fate = world.wires.fate(action)
    told = Reason.EVICTION_ERROR if fate is not None else answer
    memories[action.uid] = remember(told, "", memories.get(action.uid), world.now, 0.0)
    if told is not Reason.EVICTED:
        world.refused.add(action.uid)
    if answer is Reason.EVICTED and fate != "lost":
        world.evicted.add(action.uid)
        pods[action.uid] = replace(pods[action.uid], deleted_at=world.now + GRACE)


def _force_delete(world: "World", action: ForceDelete) -> None:
    """No budget is asked, and the pod has the longer of the two grace periods."""
    memories, pods = world.memory.evictions.setdefault(action.node, {}), world.pods[action.node]
    fate, pod = world.wires.fate(action), pods[action.uid]
    told = Reason.FORCE_DELETE if fate is None else Reason.FORCE_DELETE_FAILED
    memories[action.uid] = remember(told, "", memories.get(action.uid), world.now, 0.0)
    if fate != "lost":
        ends = world.now + timedelta(seconds=max(pod.grace, action.grace or 0))
        pods[action.uid] = replace(pod, deleted_at=ends)


def _patch_node(world: "World", action: NodePatch) -> None:
    node = world.nodes[action.node.name]
    changed = patched(node, action.labels)
    if isinstance(action, FenceNode | UpdateFence | Release):
        taken = {name for name, value in action.annotations.items() if value is None}
        marks = (node.neighbor_marks | action.annotations.keys()) - taken
        changed = replace(changed, neighbor_marks=marks) if marks != node.neighbor_marks else changed
    match action:
        case FenceNode() | UpdateFence():
            cordoned = node.unschedulable or action.cordon
            changed = replace(changed, fence=action.fence, unschedulable=cordoned)
        case Actuate():
            changed = replace(changed, fence=action.fence)
        case Release():
            cordoned = node.unschedulable and not action.uncordon
            changed = replace(changed, fence=action.fence, deferred=action.deferred, unschedulable=cordoned)
    if isinstance(action, Release | LabelNode) and action.verified is not None:
        changed = replace(changed, verified=action.verified, gate=None)
    if isinstance(action, LabelNode) and action.requests is not None:
        retry = action.requests.get(names.ANNOTATION_RETRY, node.retry)
        changed = replace(changed, retry=retry, abort=action.requests.get(names.ANNOTATION_ABORT, node.abort))
    if isinstance(action, LabelNode) and action.forget:
        changed = replace(changed, verified=None, deferred=None)
    world.nodes[node.name] = changed


def forget_answers(world: "World") -> None:
    """As controller/evict.py: refusals hold for one drain, an accepted eviction until a LIST has shown its end."""
    memories = world.memory.evictions
    for name in list(memories):
        node, work = world.nodes.get(name), world.memory.work.get(name)
        if node is None:
            del memories[name]
        elif node.fence is None:
            listed_at = work.listed_at if work is not None and not work.error else None
            memories[name] = {
                uid: memory
                for uid, memory in memories[name].items()
                if is_accepted(memory) and not is_seen(memory, listed_at)
            }
