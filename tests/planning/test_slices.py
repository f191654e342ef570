"""Whether ResourceSlices prove a layout."""

from dataclasses import replace

import pytest
from tests.build import make_gpu, make_gpunode, make_node
from tests.wording import lacks

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.gpus.texts import key_of
from gpusharing.planning.snapshot.nvidia import NodeDevices
from gpusharing.planning.wanted.verify import find_slice_mismatch

SMALL: Layout = (("1g.10gb", 7),)
MIXED: Layout = (("3g.40gb", 1), ("1g.10gb", 4))


@pytest.mark.parametrize(
    ("devices", "layouts"),
    [
        (NodeDevices((None, None)), (None, None)),
        (NodeDevices((SMALL, MIXED, None)), (None, MIXED, SMALL)),
        (NodeDevices((SMALL,)), ((), SMALL)),
        (NodeDevices(()), ((),)),
    ],
    ids=["whole GPUs", "GPUs in another order", "MIG on without instances", "no device at all"],
)
def test_slices_agree_with_the_target(devices: NodeDevices, layouts: tuple[Layout | None, ...]) -> None:
    assert find_slice_mismatch(replace(make_node("gpu-1"), devices=devices), layouts, None) == ""


@pytest.mark.parametrize(
    ("devices", "layouts", "says"),
    [
        (None, (None,), "publishes no ResourceSlice for gpu-1"),
        (NodeDevices((None,), missing=1), (None,), "has not published 1 ResourceSlice of pool gpu-1 yet"),
        (NodeDevices((None,), others=("vfio-0",)), (None,), "vfio-0"),
        (NodeDevices((None,)), (SMALL,), "show 1x full (1 GPU) instead of 7x1g.10gb (1 GPU);"),
        (NodeDevices((SMALL,)), (None,), "show 7x1g.10gb (1 GPU) instead of 1x full (1 GPU);"),
        (NodeDevices((SMALL,)), (SMALL, SMALL), "show 7x1g.10gb (1 GPU) instead of 7x1g.10gb (2 GPUs);"),
        (NodeDevices(()), (None, None), "show no device instead of 1x full (2 GPUs)"),
        (NodeDevices((None,)), ((),), "show 1x full (1 GPU) instead of no device;"),
        (NodeDevices((SMALL, MIXED)), (SMALL, SMALL), "(1 GPU) instead of 7x1g.10gb (2 GPUs);"),
    ],
    ids=[
        "nothing is published",
        "the pool is incomplete",
        "a device of another kind",
        "a whole GPU in place of instances",
        "instances in place of a whole GPU",
        "one GPU too few",
        "an empty pool",
        "a whole GPU in place of none",
        "one GPU has another layout",
    ],
)
def test_a_difference_from_the_target_is_named(
    devices: NodeDevices | None, layouts: tuple[Layout | None, ...], says: str
) -> None:
    assert says in find_slice_mismatch(replace(make_node("gpu-1"), devices=devices), layouts, None)


@pytest.mark.parametrize(
    ("published", "read", "agrees"),
    [("a", "a", True), ("a", "b", False), ("a", "", True), ("", "b", False)],
    ids=["the same devices", "made anew", "the agent's are unknown", "the driver's are unknown"],
)
def test_the_same_layout_made_anew_has_other_devices(published: str, read: str, agrees: bool) -> None:
    observed = make_gpunode(gpus=[make_gpu(layout=SMALL)]).observed
    assert observed is not None
    node = replace(make_node("gpu-1"), devices=NodeDevices((SMALL,), key=key_of((published,)) if published else ""))
    said = find_slice_mismatch(node, (SMALL,), replace(observed, devices=(read,) if read else ()))
    assert said == "" if agrees else not lacks(said, "ResourceSlices of gpu-1", "NVML")
