"""How a person deletes policies of the random world otherwise than by kubectl delete."""

from dataclasses import replace
from typing import TYPE_CHECKING

from gpusharing.planning.snapshot.views import PolicyView

if TYPE_CHECKING:
    from tests.planning.world import World


def delete_with_reset(world: "World", old: PolicyView) -> bool:
    """The policy said deletionPolicy Reset from the start. False: it is being deleted already, or cannot be read."""
    if old.going or old.spec is None:
        return False
    held = replace(old, spec=old.spec.model_copy(update={"deletion_policy": "Reset"}), finalizer=True)
    world.policies = tuple(held if one.name == old.name else one for one in world.policies)
    world.delete_policy(old.name)
    return True


def force_release(world: "World") -> None:
    """A person gives up every policy that is being deleted: what it wanted of its nodes does not count any more."""
    world.policies = tuple(
        replace(known, force_release=True, deleting=True, resetting=False) if known.going else known
        for known in world.policies
    )
