"""Compares the ResourceSlices of a node with its target: what the scheduler sees where NVIDIA's DRA driver serves the
GPUs, in place of the kubelet's allocatable counts and of GPU Feature Discovery's labels."""

from collections import Counter
from collections.abc import Sequence

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.draviews import NodeDevices
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.wanted.target import describe_layouts


def find_slice_mismatch(node: str, devices: NodeDevices | None, layouts: Sequence[Layout | None]) -> str:
    """Return how the devices that NVIDIA's DRA driver publishes for `node` differ from the target's `layouts`, one per
    GPU. Empty if they agree. `devices` is None if the driver publishes nothing for the node.

    The GPUs are compared without regard to their order, because the driver names them by UUID. A GPU with MIG on and
    without instances has no device.
    """
    if devices is None:
        return f"NVIDIA's DRA driver publishes no ResourceSlice for {node}"
    if devices.missing:
        slices = counted(devices.missing, "ResourceSlice")
        return f"NVIDIA's DRA driver has not published {slices} of pool {node} yet"
    if devices.others:
        return f"NVIDIA's DRA driver publishes {some(devices.others)} of {node}, neither GPUs nor MIG devices"
    wanted = [layout for layout in layouts if layout is None or layout]
    if Counter(wanted) == Counter(devices.layouts):
        return ""
    return (
        f"the ResourceSlices of {node} show {_tell(devices.layouts)} instead of {_tell(wanted)}; NVIDIA's DRA driver"
        " looks for MIG devices only when its pod starts"
    )


def _tell(layouts: Sequence[Layout | None]) -> str:
    """Return the layouts for people, with the number of GPUs even if all have the same layout."""
    if len(set(layouts)) > 1:
        return describe_layouts(layouts)
    return f"{describe_layouts(layouts)} ({counted(len(layouts), 'GPU')})" if layouts else "no device"
