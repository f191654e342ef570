"""What is read of NVIDIA's DRA driver and of its ResourceSlices."""

import asyncio
from contextlib import suppress

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.build import NOW
from tests.drafacts import driver, resource_slice, whole_gpu
from tests.fakes.virtualtime import virtually
from tests.kube.objects import node

from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import DAEMON_SETS, GPU_CLUSTERS, JSON, NODES, RESOURCE_SLICES, Resource
from gpusharing.kube.dra import find_published_node
from gpusharing.kube.errors import Forbidden
from gpusharing.kube.plainstack import daemon_set_view, find_dra
from gpusharing.kube.sources import Sources, SourceSettings
from gpusharing.kube.stackreader import StackReader
from gpusharing.planning.snapshot.draviews import DraDriverView, DraView

NAME = "dra-driver-nvidia-gpu-kubelet-plugin"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (driver(), DraDriverView(NAME, "dra")),
        (driver("compute-domains"), DraDriverView(NAME, "dra", serves_gpus=False)),
        (
            driver(gates="DynamicMIG=true,MPSSupport=false,", release=""),
            DraDriverView(NAME, "", gates=frozenset({"DynamicMIG"})),
        ),
    ],
    ids=["GPUs and compute domains", "compute domains only", "with feature gates"],
)
def test_the_driver_is_recognized_by_its_containers(raw: JSON, expected: DraDriverView) -> None:
    assert daemon_set_view(raw).dra == expected


def test_a_driver_that_serves_gpus_comes_before_one_that_does_not() -> None:
    both = [daemon_set_view(driver("compute-domains", release="a")), daemon_set_view(driver(release="b"))]
    found = find_dra(both).driver
    assert found is not None
    assert found.release == "b"
    assert find_dra([]) == DraView()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (resource_slice("gpu-a", [whole_gpu(0)]), "gpu-a"),
        (resource_slice("gpu-a", []), ""),
        ({"metadata": {"name": "x"}}, ""),
        ({"spec": {"pool": "gpu-a", "devices": "x"}}, ""),
    ],
    ids=["a GPU", "no device", "no field", "damaged"],
)
def test_a_slice_names_its_node_only_if_it_lists_devices(raw: JSON, expected: str) -> None:
    assert find_published_node(raw) == expected


TRIGGERS: dict[str, tuple[Resource, JSON]] = {
    "a GPUCluster": (GPU_CLUSTERS, {"metadata": {"name": "gpus"}}),
    "a DRA driver that serves GPUs": (DAEMON_SETS, driver()),
}


@pytest.mark.parametrize(("kind", "raw"), TRIGGERS.values(), ids=TRIGGERS)
@virtually
async def test_slices_are_followed_from_the_moment_when_the_dra_stack_is_there(
    kind: Resource, raw: JSON
) -> None:
    cluster = FakeCluster()
    cluster.add(NODES, {**node(), "status": {"allocatable": {"nvidia.com/gpu": "1"}}})
    cluster.add(DAEMON_SETS, driver("compute-domains", release="imex"))
    name = cluster.objects(NODES)[0]["metadata"]["name"]
    cluster.add(RESOURCE_SLICES, resource_slice(name, [whole_gpu(0)]))
    cluster.add(RESOURCE_SLICES, resource_slice(name, [], driver_name="compute-domain.nvidia.com"))
    sources = Sources(cluster.client("operator"), SourceSettings(), lambda: None)
    reader = StackReader(sources, CallMemory(), silent=True)
    task = asyncio.create_task(sources.run())
    try:
        await asyncio.sleep(5)
        assert reader.read(NOW).dra.doubles == ()
        assert sources.missing() == {}
        if kind is DAEMON_SETS:
            raw = {**raw, "metadata": {**raw["metadata"], "name": "gpus"}}
        cluster.add(kind, raw)
        await asyncio.sleep(5)
        dra = reader.read(NOW).dra
        assert dra.doubles == (name,)
        assert sources.missing() == {}
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("refused", [True, False], ids=["not allowed", "not served"])
@virtually
async def test_slices_that_cannot_be_read_stop_nothing_and_are_told(refused: bool) -> None:
    cluster = FakeCluster()
    cluster.add(DAEMON_SETS, driver())
    if refused:
        cluster.faults.fail("list", RESOURCE_SLICES, Forbidden("no"), times=EVER)
    else:
        cluster.uninstalled.add(RESOURCE_SLICES)
    sources = Sources(cluster.client("operator"), SourceSettings(), lambda: None)
    reader = StackReader(sources, CallMemory(), silent=True)
    task = asyncio.create_task(sources.run())
    try:
        await asyncio.sleep(5)
        assert sources.missing() == {}
        says = "is not allowed to list resourceslices" if refused else "does not serve resource.k8s.io/v1"
        assert says in reader.read(NOW).dra.unread
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
