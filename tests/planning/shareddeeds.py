"""Deeds that concern more than one node: the clock, policies, NVIDIA's stack and the operator's calls (deeds.py)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from tests.build import H100
from tests.planning.budgets import Budget
from tests.planning.recovery import lenient, wanted
from tests.planning.wires import FOR_EVER, How
from tests.planning.world import World

from gpusharing.api.policy import Cost
from gpusharing.planning.gpus.cards import bare_product
from gpusharing.planning.snapshot.memory import CLAIMS, CONFIG_MAPS, DEVICE_CLASS, policy_subject
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, MpsDaemonView
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing, render

Deed = Callable[[World, str], bool]
"""(world, node) → whether it changed anything. The node exists."""
T4 = "Tesla T4"


def clock_set(seconds: float) -> Deed:
    def deed(world: World, name: str) -> bool:
        world.now += timedelta(seconds=seconds)
        return True

    return deed


def edited(change: Callable[[PolicyView], PolicyView]) -> Deed:
    def deed(world: World, name: str) -> bool:
        if (old := driving(world, name)) is None or old.going:
            return False
        world.set_policy(change(old))
        return True

    return deed


def policy_edited(mode: int, **fields: Any) -> Deed:
    return edited(lambda old: wanted(old.name, mode, 2, **fields))


def card_left_out(world: World, name: str) -> bool:
    """spec.products now lists only a card that the node does not have."""
    other = T4 if T4 not in world.machines[name].products else H100
    narrowed = (bare_product(other),)
    return edited(lambda old: replace(old, spec=old.spec and old.spec.model_copy(update={"products": narrowed})))(
        world, name
    )


def rollout_edited(**fields: object) -> Deed:
    return edited(lambda old: lenient(old, **fields))


def priced(world: World, name: str) -> bool:
    world.serial += 1
    price = Cost(gpu_hourly_price=f"{world.serial}.20")
    return edited(lambda old: replace(old, spec=old.spec and old.spec.model_copy(update={"cost": price})))(world, name)


def paused_and_resumed(world: World, name: str) -> bool:
    return rollout_edited(paused=True)(world, name) and rollout_edited(paused=False)(world, name)


def policy_deleted(world: World, name: str) -> bool:
    if (old := driving(world, name)) is None or old.going:
        return False
    world.delete_policy(old.name)
    return True


def policy_reset(world: World, name: str) -> bool:
    """Deleted, and its deletionPolicy, Reset from the start, is to bring its nodes to whole GPUs."""
    if (old := driving(world, name)) is None or old.going or old.spec is None:
        return False
    held = replace(old, spec=old.spec.model_copy(update={"deletion_policy": "Reset"}), finalizer=True)
    world.policies = tuple(held if one.name == old.name else one for one in world.policies)
    world.delete_policy(old.name)
    return True


def policy_forced(world: World, name: str) -> bool:
    """Deleted, and force-release asked for, which keeps the cordon."""
    if not policy_deleted(world, name):
        return False
    force_release(world)
    return True


def other_policy(priority: int) -> Deed:
    def deed(world: World, name: str) -> bool:
        if any(known.name == "other" for known in world.policies):
            return False
        world.set_policy(wanted("other", 1, 1, priority))
        return True

    return deed


def guarded(world: World, name: str) -> bool:
    before, world.budgets = world.budgets, (Budget("all", "llm", 3), Budget("free", "free", 3))
    return before != world.budgets


def force_release(world: World) -> None:
    """A person gives up every policy that is being deleted: what it wanted of its nodes does not count any more."""
    world.policies = tuple(
        replace(known, force_release=True, deleting=True, resetting=False) if known.going else known
        for known in world.policies
    )


# --- ClusterPolicy and the chart --------------------------------------------------------------------------------------

USUAL = "usual"
SHARING = render(PluginConfig("none", Sharing((("nvidia.com/gpu", 4),), strategy="time-slicing")))


def cluster_policy_of(world: World) -> ClusterPolicyView:
    assert world.stack.cluster_policy is not None, "each installation of the world has one, or its like"
    return world.stack.cluster_policy


def reboots(world: World, name: str) -> bool:
    before = cluster_policy_of(world)
    world.stack = replace(world.stack, cluster_policy=replace(before, with_reboot=not before.with_reboot))
    return True


def default_changes(world: World, name: str) -> bool:
    """devicePlugin.config.default names an entry that shares GPUs, as all nodes without the label then do; or none."""
    before = cluster_policy_of(world)
    entries = {**world.stack.plugin_configs, USUAL: SHARING}
    changed = replace(before, plugin_default="" if before.plugin_default else USUAL)
    world.stack = replace(world.stack, cluster_policy=changed, plugin_configs=entries)
    return True


def deafens(world: World, name: str) -> bool:
    """The GPU Operator is upgraded to one whose MPS daemon follows no label, or back."""
    before = cluster_policy_of(world)
    daemon = MpsDaemonView("v0.19.3", "mps-control-daemon", "/usr/bin/mps-control-daemon", sees_host=True)
    changed = replace(before, mps_daemon=None if before.mps_daemon else daemon)
    world.stack = replace(world.stack, cluster_policy=changed)
    return True


def right_to_delete(world: World, name: str) -> bool:
    """The chart's value forceDelete changes: the operator starts anew."""
    world.settings = replace(world.settings, force_delete=not world.settings.force_delete)
    world.restart()
    return True


# --- the operator's calls about one object fail -----------------------------------------------------------------------


def driving(world: World, name: str) -> PolicyView | None:
    """The policy whose change is in flight on the node, else any."""
    fence = world.nodes[name].fence
    named = [known for known in world.policies if fence is None or known.name == fence.policy]
    return named[0] if named else None


def failing(how: How, times: int) -> Deed:
    """Calls of the operator about the node fail, so many times."""

    def deed(world: World, name: str) -> bool:
        before = world.wires.faults.get(name)
        world.wires.faults[name] = (how, times)
        return before != (how, times)

    return deed


def shared_failing(how: How, times: int) -> Deed:
    """The claims on the Lease, the ConfigMaps and the policy that drives the node cannot be written."""

    def deed(world: World, name: str) -> bool:
        policy = driving(world, name)
        subjects = [CLAIMS, CONFIG_MAPS, DEVICE_CLASS, *([policy_subject(policy.name)] if policy is not None else [])]
        world.wires.faults |= dict.fromkeys(subjects, (how, times))
        return True

    return deed


def calls_work(world: World, name: str) -> bool:
    failed = bool(world.wires.faults or world.unlisted)
    world.wires.faults.clear()
    world.unlisted.clear()
    return failed


def unlistable(world: World, name: str) -> bool:
    """The pods of the node cannot be listed, or can be again."""
    world.unlisted ^= {name}
    return True


def unreadable(world: World, name: str) -> bool:
    """The labels of the namespace cannot be read, or can be again."""
    world.namespace = None if world.namespace is not None else {"team": "a"}
    return True


CALLS: Mapping[str, Deed] = {
    "a call about the node is lost": failing("lost", 1),
    "the answer to a call about the node is lost": failing("unanswered", 1),
    "every call about the node is lost": failing("lost", FOR_EVER),
    "every answer to calls about the node is lost": failing("unanswered", FOR_EVER),
    "shared writes are lost": shared_failing("lost", 3),
    "the answers to shared writes are lost": shared_failing("unanswered", 3),
    "all calls work again": calls_work,
    "the pods on the node cannot be listed, or can be again": unlistable,
    "the namespace cannot be read, or can be again": unreadable,
}
