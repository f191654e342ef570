"""Deeds that concern more than one node: the clock, and edits of the policies (deeds.py)."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from tests.build import H100
from tests.planning.budgets import Budget
from tests.planning.callfaults import driving
from tests.planning.deletions import delete_with_reset, force_release
from tests.planning.recovery import lenient, wanted
from tests.planning.world import World

from gpusharing.api.policy import Cost
from gpusharing.planning.gpus.cards import bare_product
from gpusharing.planning.snapshot.views import PolicyView

Deed = Callable[[World, str], bool]
"""(world, node) → whether it changed anything. The node exists."""
T4 = "Tesla T4"


def clock_set(seconds: float) -> Deed:
    def deed(world: World, name: str) -> bool:
        world.now += timedelta(seconds=seconds)
        return True

    return deed


def edited(change: Callable[[PolicyView], PolicyView]) -> Deed:
    """Somebody edits the policy that drives the node."""

    def deed(world: World, name: str) -> bool:
        if (old := driving(world, name)) is None or old.going:
            return False
        world.set_policy(change(old))
        return True

    return deed


def policy_edited(mode: int, **fields: Any) -> Deed:
    """It wants something else."""
    return edited(lambda old: wanted(old.name, mode, 2, **fields))


def card_left_out(world: World, name: str) -> bool:
    """spec.products now lists only a card that the node does not have."""
    other = T4 if T4 not in world.machines[name].products else H100
    narrowed = (bare_product(other),)
    return edited(lambda old: replace(old, spec=old.spec and old.spec.model_copy(update={"products": narrowed})))(
        world, name
    )


def rollout_edited(**fields: object) -> Deed:
    """It wants the same, otherwise rolled out."""
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
    """Deleted, and it is to bring its nodes to whole GPUs."""
    old = driving(world, name)
    return old is not None and delete_with_reset(world, old)


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
