"""What people do to ClusterPolicy and to the chart in the random world."""

from dataclasses import replace
from typing import TYPE_CHECKING

from gpusharing.planning.snapshot.nvidia import MpsDaemonView
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing, render

if TYPE_CHECKING:
    from tests.planning.world import World

USUAL = "usual"
SHARING = render(PluginConfig("none", Sharing((("nvidia.com/gpu", 4),), strategy="time-slicing")))


def reboots(world: "World", name: str) -> bool:
    before = world.stack.cluster_policy
    assert before is not None, "each installation of the world has one, or its like"
    world.stack = replace(world.stack, cluster_policy=replace(before, with_reboot=not before.with_reboot))
    return True


def default_changes(world: "World", name: str) -> bool:
    """devicePlugin.config.default names an entry that shares GPUs, as all nodes without the label then do; or none."""
    before = world.stack.cluster_policy
    assert before is not None, "each installation of the world has one, or its like"
    entries = {**world.stack.plugin_configs, USUAL: SHARING}
    changed = replace(before, plugin_default="" if before.plugin_default else USUAL)
    world.stack = replace(world.stack, cluster_policy=changed, plugin_configs=entries)
    return True


def deafens(world: "World", name: str) -> bool:
    """The GPU Operator is upgraded to one whose MPS daemon follows no label, or back."""
    before = world.stack.cluster_policy
    assert before is not None, "each installation of the world has one, or its like"
    daemon = MpsDaemonView("v0.19.3", "mps-control-daemon", "/usr/bin/mps-control-daemon", sees_host=True)
    changed = replace(before, mps_daemon=None if before.mps_daemon else daemon)
    world.stack = replace(world.stack, cluster_policy=changed)
    return True


def right_to_delete(world: "World", name: str) -> bool:
    """The chart's value forceDelete changes: the operator starts anew."""
    world.settings = replace(world.settings, force_delete=not world.settings.force_delete)
    world.restart()
    return True
