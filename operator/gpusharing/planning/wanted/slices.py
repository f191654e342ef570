"""Compares the ResourceSlices of a node with its target: what the scheduler sees where NVIDIA's DRA driver serves the
GPUs, in place of the kubelet's allocatable counts and of GPU Feature Discovery's labels."""

from collections import Counter
from collections.abc import Sequence

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.views import NodeView, ObservedView
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.wanted.target import describe_layouts


def find_slice_mismatch(
    node: NodeView, layouts: Sequence[Layout | None], observed: ObservedView | None
) -> str:
    """Return how the devices that NVIDIA's DRA driver publishes for `node` differ from `layouts`, one per GPU, or from
    the devices that the agent has read. Only the first difference is reported. Empty if they agree. It counts as a
    difference if the driver has published nothing, not everything yet, or a device that is neither a GPU nor a MIG
    device.

    The GPUs are compared without regard to their order, because the driver names them by UUID. A GPU with MIG on and
    without instances has no device. The UUIDs are compared only if `observed` has a `devices_key`, because devices that
    are made anew with the same layout may have other UUIDs.
    """
    if (devices := node.devices) is None:
        return f"NVIDIA's DRA driver publishes no ResourceSlice for {node.name}"
    if devices.missing:
        slices = counted(devices.missing, "ResourceSlice")
        return f"NVIDIA's DRA driver has not published {slices} of pool {node.name} yet"
    if devices.others:
        return (
            f"NVIDIA's DRA driver publishes devices of {node.name} that are neither GPUs nor MIG devices:"
            f" {some(devices.others)}"
        )
    wanted = [layout for layout in layouts if layout is None or layout]
    when = "NVIDIA's DRA driver looks for MIG devices only when its pod starts"
    if Counter(wanted) != Counter(devices.layouts):
        now, due = tell_devices(devices.layouts), tell_devices(wanted)
        return f"the ResourceSlices of {node.name} show {now} instead of {due}; {when}"
    if observed is not None and observed.devices_key and devices.key != observed.devices_key:
        return f"the ResourceSlices of {node.name} list different devices than NVML reports; {when}"
    return ""


def tell_devices(layouts: Sequence[Layout | None]) -> str:
    """Return the layouts for people, with the number of GPUs even if all have the same layout, or `no device` if there
    are none."""
    if len(set(layouts)) > 1:
        return describe_layouts(layouts)
    return f"{describe_layouts(layouts)} ({counted(len(layouts), 'GPU')})" if layouts else "no device"
