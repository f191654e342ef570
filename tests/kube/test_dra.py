"""What is read of NVIDIA's DRA driver and of its ResourceSlices, and when a DeviceTaintRule of ours counts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.build import NOW, make_node
from tests.drafacts import driver, mig_device, resource_slice, whole_gpu
from tests.fakes.running import running
from tests.fakes.virtualtime import virtually
from tests.kube.objects import node

from gpusharing.api.times import from_rfc3339
from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import (
    DAEMON_SETS,
    DEVICE_CLASSES,
    DEVICE_TAINT_RULES,
    GPU_CLUSTERS,
    JSON,
    NODES,
    PODS,
    RESOURCE_SLICES,
    Resource,
)
from gpusharing.kube.daemonsets import by_node, daemon_set_view, find_dra, operand_view
from gpusharing.kube.dra import (
    RULES_UNSERVED,
    SliceView,
    device_index,
    rule_for,
    slice_view,
    taint_rule_view,
    tell_unread,
)
from gpusharing.kube.errors import Forbidden, NotFound, Unavailable
from gpusharing.kube.pods import pod_view
from gpusharing.kube.sources import Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.kube.stackreader import StackReader
from gpusharing.planning.gpus.texts import key_of
from gpusharing.planning.snapshot.nvidia import DaemonSetState, DraView, NodeDevices, Program
from gpusharing.planning.wanted.verify import served

PUBLISHED = Path(__file__).parents[1] / "foreign" / "dra-slices.yaml"
NAME = "dra-driver-nvidia-gpu-kubelet-plugin"
FOUND = DaemonSetState(NAME, "dra", tolerates_gate=False)


def tolerant(raw: JSON) -> JSON:
    raw["spec"]["template"]["spec"]["tolerations"] = [{"key": "gpusharing.dev/unproven", "operator": "Exists"}]
    return raw


def renamed(raw: JSON) -> JSON:
    raw["spec"]["template"]["metadata"]["labels"] = {"gpus-component": "kubelet-plugin"}
    return raw


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (driver(), FOUND),
        (driver("compute-domains"), replace(FOUND, serves_gpus=False)),
        (
            driver(gates="DynamicMIG=true,MPSSupport=false,", release=""),
            replace(FOUND, release="", gates=frozenset({"DynamicMIG"})),
        ),
        (
            tolerant(driver()),
            replace(FOUND, tolerates_gate=True, tolerations='[{"key":"gpusharing.dev/unproven","operator":"Exists"}]'),
        ),
        (renamed(driver()), replace(FOUND, labelled=False)),
    ],
    ids=["GPUs and compute domains", "compute domains only", "with feature gates", "behind the taint", "another label"],
)
def test_the_driver_is_recognized_by_its_containers(raw: JSON, expected: DaemonSetState) -> None:
    assert daemon_set_view(raw).dra == expected


def test_a_driver_that_serves_gpus_comes_before_one_that_does_not() -> None:
    both = [daemon_set_view(driver("compute-domains", release="a")), daemon_set_view(driver(release="b"))]
    found = find_dra(both).driver
    assert found is not None
    assert found.release == "b"
    assert find_dra([]) == DraView()


def devices(*slices: JSON) -> dict[str, NodeDevices]:
    """What these slices publish, by node, without the keys and the names of devices."""
    views = {str(number): slice_view(raw) for number, raw in enumerate(slices)}
    found = device_index(lambda: views)()
    return {name: replace(one, key="", names={}) for name, one in found.items()}


ONE_GPU = NodeDevices((None,), key=key_of(["GPU-0"]), names={"gpu-0": "nvidia.com/gpu"})


def test_devices_are_grouped_by_the_gpu_that_they_are_a_part_of() -> None:
    parts = [mig_device(0, "1g.10gb", 1), mig_device(0, "3g.40gb", 2), mig_device(2, "1g.10gb+me", 3)]
    more = [mig_device(0, "1g.10gb", 4), whole_gpu(1)]
    found = devices(
        resource_slice("gpu-a", parts, name="a-1", of=2),
        resource_slice("gpu-a", more, name="a-2", of=2),
        resource_slice("gpu-b", [whole_gpu(0), whole_gpu(1)]),
    )
    assert found == {
        "gpu-a": NodeDevices(((("1g.10gb+me", 1),), (("3g.40gb", 1), ("1g.10gb", 2)), None)),
        "gpu-b": NodeDevices((None, None)),
    }


def test_only_the_newest_generation_of_a_pool_counts_and_what_it_still_lacks_is_counted() -> None:
    old = [resource_slice("gpu-a", [whole_gpu(0)], name=f"old-{number}", of=2) for number in (1, 2)]
    new = resource_slice("gpu-a", [mig_device(0, "1g.10gb", 1)], name="new", generation=2, of=3)
    assert devices(*old, new) == {"gpu-a": NodeDevices(((("1g.10gb", 1),),), missing=2)}


def test_a_device_that_pods_may_share_or_that_is_no_gpu_and_no_part_of_one_is_named() -> None:
    no_uuid = mig_device(0, "1g.10gb", 1)
    del no_uuid["attributes"]["uuid"]
    no_profile = mig_device(0, "1g.10gb", 1)
    del no_profile["attributes"]["profile"]
    odd: list[JSON] = [
        {"name": "vfio-0", "attributes": {"type": {"string": "vfio"}, "uuid": {"string": "GPU-0"}}},
        {"name": "no-gpu", "attributes": {"type": {"string": "mig"}, "profile": {"string": "1g.10gb"}}},
        {**no_profile, "name": "no-profile"},
        {**no_uuid, "name": "no-uuid"},
        {"name": "bare"},
        {"name": "odd", "attributes": {"type": {"int": 1}, "uuid": None}},
    ]
    for shared in ({**whole_gpu(4), "name": "shared"}, {**mig_device(5, "1g.10gb", 1), "name": "shared-mig"}):
        odd.append({**shared, "allowMultipleAllocations": True})
    prefixed = {"gpu.nvidia.com/type": {"string": "gpu"}, "gpu.nvidia.com/uuid": {"string": "GPU-1"}}
    found = devices(resource_slice("gpu-a", [*odd, {"name": "gpu-1", "attributes": prefixed}]))
    others = ("bare", "no-gpu", "no-profile", "no-uuid", "odd", "shared", "shared-mig", "vfio-0")
    assert found == {"gpu-a": NodeDevices((None,), others=others)}


def test_each_gpu_and_each_instance_has_its_extended_resource_by_its_name() -> None:
    parts = [whole_gpu(1), mig_device(0, "1g.10gb+me", 1), {"name": "bare"}]
    views = {"a": slice_view(resource_slice("gpu-a", parts))}
    (found,) = device_index(lambda: views)().values()
    names = {parts[0]["name"]: "nvidia.com/gpu", parts[1]["name"]: "nvidia.com/mig-1g.10gb.me"}
    assert found.names == names


def test_a_slice_without_any_field_is_an_empty_pool_without_a_name() -> None:
    assert devices({"metadata": {"name": "x"}}) == {"": NodeDevices(())}


def test_what_the_real_driver_published_is_read_as_the_layouts_that_mig_parted_made() -> None:
    published = yaml.safe_load(PUBLISHED.read_text())["items"]
    assert devices(*published) == {"gpu-1": NodeDevices(((("3g.40gb", 1), ("1g.10gb", 4)), None))}


def test_the_devices_of_a_node_stay_the_same_object_until_a_slice_changes() -> None:
    slices: dict[str, SliceView] = {}
    index = device_index(lambda: slices)
    slices["a"] = slice_view(resource_slice("gpu-a", [whole_gpu(0)]))
    slices["other"] = slice_view(resource_slice("not-a-node", [whole_gpu(0)]))
    first = index()
    assert first["gpu-a"] == ONE_GPU
    slices["a"] = slice_view(resource_slice("gpu-a", [whole_gpu(0)]))
    assert index()["gpu-a"] is first["gpu-a"]
    slices["a"] = slice_view(resource_slice("gpu-a", [mig_device(0, "1g.10gb", 1)]))
    second = index()
    assert second["gpu-a"].layouts == ((("1g.10gb", 1),),)
    assert second["not-a-node"] is first["not-a-node"]


def test_devices_count_as_the_resources_by_which_pods_request_them() -> None:
    layouts = ((("3g.40gb", 1), ("1g.10gb+me", 2)), (("3g.40gb", 1),), None, None)
    published = NodeDevices(layouts)
    counts = {"nvidia.com/mig-3g.40gb": 2, "nvidia.com/mig-1g.10gb.me": 2, "nvidia.com/gpu": 2}
    assert published.resources == counts
    bare = make_node("gpu-a")
    assert served(replace(bare, resources={}, devices=published)) == counts
    assert served(replace(bare, resources={"nvidia.com/gpu": 1}, devices=published)) == {"nvidia.com/gpu": 1}


@asynccontextmanager
async def following(cluster: FakeCluster, **settings: Any) -> AsyncIterator[tuple[Sources, StackReader]]:
    """Sources that follow the cluster since 5 s, and the reader of NVIDIA's stack in them."""
    sources = Sources(cluster.client("operator"), SourceSettings(**settings), lambda: None)
    async with running(sources.run()):
        await asyncio.sleep(5)
        yield sources, StackReader(sources, CallMemory(), silent=True)


def kubelet_plugin(name: str, *containers: str) -> JSON:
    labels = {"dra-driver-nvidia-gpu-component": "kubelet-plugin"}
    return {
        "metadata": {"name": name, "namespace": "gpu-operator", "labels": labels},
        "spec": {"nodeName": "gpu-a", "containers": [{"name": one} for one in containers]},
    }


@virtually
async def test_the_kubelet_plugin_of_a_node_is_the_pod_that_serves_gpus() -> None:
    cluster = FakeCluster()
    cluster.add(DAEMON_SETS, driver())
    cluster.add(PODS, kubelet_plugin("domains", "compute-domains"))
    cluster.add(PODS, kubelet_plugin("gpus", "compute-domains", "gpus"))
    cluster.add(PODS, kubelet_plugin("more-domains", "compute-domains"))
    async with following(cluster) as (sources, _):
        found = by_node(sources.kubelet_plugins.items.values(), Program.KUBELET_PLUGIN)
        assert {node: pod.name for node, pod in found.items()} == {"gpu-a": "gpus"}
        assert sources.operands.items == {}


@pytest.mark.parametrize(("gpus", "ready"), [(True, True), (False, False)])
def test_a_kubelet_plugin_whose_compute_domains_fail_still_serves_gpus(gpus: bool, ready: bool) -> None:
    states = [{"name": "gpus", "ready": gpus}, {"name": "compute-domains", "ready": False}]
    pod = {**kubelet_plugin("gpus", "compute-domains", "gpus"), "status": {"containerStatuses": states}}
    assert operand_view(pod).ready == ready


TRIGGERS: dict[str, tuple[Resource, JSON]] = {
    "a GPUCluster": (GPU_CLUSTERS, {"metadata": {"name": "gpus"}}),
    "a DRA driver that serves GPUs": (DAEMON_SETS, driver()),
}


@pytest.mark.parametrize(("kind", "raw"), TRIGGERS.values(), ids=TRIGGERS)
@virtually
async def test_slices_are_followed_from_the_moment_when_the_dra_stack_is_there(kind: Resource, raw: JSON) -> None:
    cluster = FakeCluster()
    cluster.add(NODES, {**node(), "status": {"allocatable": {"nvidia.com/gpu": "1"}}})
    cluster.add(DAEMON_SETS, driver("compute-domains", release="imex"))
    name = cluster.objects(NODES)[0]["metadata"]["name"]
    cluster.add(RESOURCE_SLICES, resource_slice(name, [whole_gpu(0)]))
    cluster.add(RESOURCE_SLICES, resource_slice(name, [], driver_name="compute-domain.nvidia.com"))
    async with following(cluster) as (sources, reader):
        assert sources.node_views()[name].devices is None
        assert sources.missing() == {}
        if kind is DAEMON_SETS:
            raw = {**raw, "metadata": {**raw["metadata"], "name": "gpus"}}
        cluster.add(kind, raw)
        await asyncio.sleep(5)
        dra = reader.read(NOW).dra
        assert sources.node_views()[name].devices == ONE_GPU
        assert sources.node_views()[name] == sources.seen_node(name)
        assert dra.doubles == (name,)
        assert {"resourceslices", "DRA driver pods"} <= sources.ages().keys()
        assert sources.missing() == {}


NO_RIGHT, NOT_SERVED = "is not allowed to list", "does not serve resource.k8s.io/v1"
UNREAD: dict[str, tuple[Resource, bool, str]] = {
    "slices not allowed": (RESOURCE_SLICES, True, f"{NO_RIGHT} resourceslices"),
    "slices not served": (RESOURCE_SLICES, False, NOT_SERVED),
    "classes not allowed": (DEVICE_CLASSES, True, f"{NO_RIGHT} deviceclasses"),
}


@pytest.mark.parametrize(("kind", "refused", "says"), UNREAD.values(), ids=UNREAD)
@virtually
async def test_what_cannot_be_read_of_the_dra_stack_stops_nothing_and_is_told(
    kind: Resource, refused: bool, says: str
) -> None:
    cluster = FakeCluster()
    cluster.add(DAEMON_SETS, driver())
    if refused:
        cluster.faults.fail("list", kind, Forbidden("no"), times=EVER)
    else:
        cluster.uninstalled.add(kind)
    async with following(cluster) as (sources, reader):
        assert sources.missing() == {}
        assert kind.plural not in sources.ages()
        dra = reader.read(NOW).dra
        assert says in dra.unread
        assert (dra.classes is None) is (kind is DEVICE_CLASSES)


@virtually
async def test_rules_that_are_not_served_are_told_where_they_were_asked_for() -> None:
    cluster = FakeCluster()
    cluster.add(DAEMON_SETS, driver())
    cluster.uninstalled.add(DEVICE_TAINT_RULES)
    async with following(cluster, device_taints=True) as (_, reader):
        assert reader.read(NOW).dra.taint_error == RULES_UNSERVED


WHEN = "2026-11-20T10:00:00Z"


def stored(node: str = "gpu-07", **metadata: Any) -> dict[str, Any]:
    raw = rule_for(node)
    raw["metadata"] |= {"uid": "u1", "creationTimestamp": WHEN, **metadata}
    raw["spec"]["taint"]["timeAdded"] = WHEN
    return raw


def test_the_rule_of_a_node_closes_its_pool_to_new_pods_only_and_counts_from_its_creation() -> None:
    raw = stored()
    assert raw["spec"]["deviceSelector"] == {"driver": "gpu.nvidia.com", "pool": "gpu-07"}
    assert raw["spec"]["taint"]["effect"] == "NoSchedule"
    view = taint_rule_view(raw)
    assert (view.node, view.since) == ("gpu-07", from_rfc3339(WHEN))


@pytest.mark.parametrize(
    "change",
    [
        {"deviceSelector": {"driver": "gpu.nvidia.com", "pool": "gpu-08"}},
        {"deviceSelector": {"driver": "gpu.nvidia.com", "pool": "gpu-07", "device": "gpu-0"}},
        {"deviceSelector": None},
        {"taint": {"key": "gpusharing.dev/changing", "value": "true", "effect": "None"}},
        {"taint": {"key": "other", "value": "true", "effect": "NoSchedule"}},
    ],
)
def test_a_rule_that_somebody_changed_does_not_count(change: dict[str, Any]) -> None:
    raw = stored()
    raw["spec"] |= change
    assert taint_rule_view(raw).since is None


def test_a_rule_that_is_being_deleted_or_has_no_time_or_is_of_the_test_does_not_count() -> None:
    assert taint_rule_view(stored(deletionTimestamp=WHEN)).since is None
    assert taint_rule_view(stored(creationTimestamp="soon")).since is None
    test = {**stored(), "metadata": {"name": "gpusharing-taint-test", "uid": "u2"}}
    assert (taint_rule_view(test).node, taint_rule_view(test).since) == ("", None)


def test_only_a_kind_that_is_not_served_or_may_not_be_read_counts_as_unread() -> None:
    told = partial(tell_unread, kind="devicetaintrules", unserved=RULES_UNSERVED)
    assert "--runtime-config=resource.k8s.io/v1beta2=true" in told(NotFound("404"))
    assert "not allowed to list devicetaintrules" in told(Forbidden("403"))
    assert told(Unavailable("away")) == told(None) == ""


@pytest.mark.parametrize(
    ("spec", "evades"),
    [
        ({}, False),
        ({"schedulerName": "default-scheduler"}, False),
        ({"schedulerName": "kai-scheduler"}, True),
        ({"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpu"}]}, False),
        ({"resourceClaims": [{"name": "gpu", "resourceClaimName": "shared"}]}, True),
    ],
)
def test_a_pod_with_another_scheduler_or_a_claim_that_outlives_it_evades_rules(
    spec: dict[str, Any], evades: bool
) -> None:
    raw = {"metadata": {"name": "a", "namespace": "default", "uid": "u"}, "spec": spec}
    assert pod_view(raw, {}).evades_rules is evades
