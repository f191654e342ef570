"""What happens to NVIDIA's DRA driver, its ResourceSlices and the DeviceClasses in the random world."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.planning.dramachines import DraMachine

from gpusharing.planning.snapshot.nvidia import DeviceClassView
from gpusharing.planning.wanted.objects import wanted_class

if TYPE_CHECKING:
    from tests.planning.world import World

THEIRS = "halves"


def _machine(world: "World", name: str) -> DraMachine | None:
    """The machine of a node that the DRA driver serves; None in another installation."""
    machine = world.machines[name]
    return machine if isinstance(machine, DraMachine) else None


def plugin_deleted(world: "World", name: str) -> bool:
    """The kubelet plugin's pod, perhaps too early: while mig-manager works, or before."""
    if (machine := _machine(world, name)) is not None:
        machine.restart_serving()
    return machine is not None


def slices_wiped(world: "World", name: str) -> bool:
    """The plugin was away for long, and the kubelet deletes its slices; then a new pod comes."""
    if (machine := _machine(world, name)) is not None:
        world.nodes[name] = replace(world.nodes[name], devices=None)
        machine.restart_serving()
    return machine is not None


def devices_made_anew(world: "World", name: str) -> bool:
    """nvidia-smi makes the same layout again: other UUIDs. In a change it might come after the last reading."""
    machine = _machine(world, name)
    if machine is None or world.nodes[name].fence is not None or not any(machine.layouts):
        return False
    machine.divided += 1
    return True


def pausing(world: "World", name: str) -> bool:
    """The driver's chart is upgraded: mig-manager pauses its kubelet plugin from now on, or no more."""
    machine = _machine(world, name)
    if machine is None or machine.running:
        return False
    machine.pauses ^= True
    return True


def with_classes(world: "World", classes: tuple[DeviceClassView, ...]) -> bool:
    """Replace the DeviceClasses; whether that changed anything."""
    before = world.stack.dra
    world.stack = replace(world.stack, dra=replace(before, classes=classes))
    return before.classes != classes


def classes_deleted(world: "World", name: str) -> bool:
    return with_classes(world, tuple(one for one in world.stack.dra.classes or () if not one.ours))


def classes_changed(world: "World", name: str) -> bool:
    """Somebody lets our DeviceClasses select other devices."""
    changed = (replace(one, selectors=("true",)) if one.ours else one for one in world.stack.dra.classes or ())
    return with_classes(world, tuple(changed))


def class_of_theirs(world: "World", name: str) -> bool:
    """Somebody has a class of their own for halves of a GPU, or no more."""
    if _machine(world, name) is None:
        return False
    kept = tuple(one for one in world.stack.dra.classes or () if one.name != THEIRS)
    if kept != world.stack.dra.classes:
        return with_classes(world, kept)
    half = wanted_class("3g.40gb")
    theirs = DeviceClassView(THEIRS, f"uid-{THEIRS}", "1", False, half.resource, half.selectors)
    return with_classes(world, (*kept, theirs))


DRA_DEEDS: Mapping[str, Callable[["World", str], bool]] = {
    "the kubelet plugin's pod is deleted": plugin_deleted,
    "the kubelet wipes the ResourceSlices": slices_wiped,
    "somebody makes the MIG devices anew": devices_made_anew,
    "mig-manager pauses the kubelet plugin, or no more": pausing,
    "somebody deletes our DeviceClasses": classes_deleted,
    "somebody changes our DeviceClasses": classes_changed,
    "somebody has a DeviceClass for halves, or no more": class_of_theirs,
}
"""Only where the DRA driver serves the GPUs."""
