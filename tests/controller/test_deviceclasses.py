"""DeviceClasses as they are read and written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.build import NOW
from tests.planning.test_deviceclasses import plan

from gpusharing.controller.sharedwrites import SharedWrites
from gpusharing.kube.client import DEVICE_CLASSES, JSON
from gpusharing.kube.dra import device_class, device_class_view
from gpusharing.kube.errors import AlreadyExists, Conflict, Invalid
from gpusharing.kube.sources import Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.planning.snapshot.actions import WriteClasses
from gpusharing.planning.snapshot.nvidia import DeviceClassView
from gpusharing.planning.wanted.objects import wanted_class

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = wanted_class("1g.10gb")


def present(cluster: FakeCluster) -> dict[str, DeviceClassView]:
    return {one["metadata"]["name"]: device_class_view(one) for one in cluster.objects(DEVICE_CLASSES)}


def writer(cluster: FakeCluster) -> SharedWrites:
    client = cluster.client("operator")
    return SharedWrites(client, Sources(client, SourceSettings(), lambda: None), lambda: NOW)


async def carry_out(cluster: FakeCluster, *profiles: str) -> WriteClasses | None:
    """Plan for these profiles, and write; returns the plan."""
    writes = plan(list(profiles), list(present(cluster).values()))
    if writes is not None:
        await writer(cluster).write_classes(writes)
    return writes


async def test_what_is_written_is_right_and_goes_when_nobody_uses_it() -> None:
    cluster = FakeCluster()
    cluster.add(DEVICE_CLASSES, {"metadata": {"name": "gpu.nvidia.com"}, "spec": {}})
    await carry_out(cluster, "1g.10gb", "3g.40gb")
    assert (await carry_out(cluster, "1g.10gb", "3g.40gb")) is None
    await carry_out(cluster, "1g.10gb")
    assert set(present(cluster)) == {"gpu.nvidia.com", SMALL.name}
    await carry_out(cluster)
    assert set(present(cluster)) == {"gpu.nvidia.com"}


async def test_what_was_written_is_known_before_an_event_tells_of_it() -> None:
    cluster = FakeCluster()
    by_operator = writer(cluster)
    await by_operator.write_classes(WriteClasses(create=(SMALL,)))
    assert by_operator.sources.device_classes.items == present(cluster)


@pytest.mark.parametrize(
    "change",
    [
        {"selectors": [{"cel": {"expression": "true"}}]},
        {"extendedResourceName": "example.com/x"},
        {"config": [{"opaque": {"driver": "gpu.nvidia.com", "parameters": {}}}]},
    ],
    ids=["another selector", "another extended resource", "a configuration"],
)
async def test_what_somebody_changed_is_put_right(change: dict[str, Any]) -> None:
    cluster = FakeCluster()
    await carry_out(cluster, "1g.10gb")
    cluster.patch(DEVICE_CLASSES, SMALL.name, {"spec": change})
    writes = await carry_out(cluster, "1g.10gb")
    assert writes is not None
    assert writes.correct
    assert (await carry_out(cluster, "1g.10gb")) is None


async def test_what_changed_or_came_since_it_was_read_is_left_to_the_next_pass() -> None:
    cluster = FakeCluster()
    await carry_out(cluster, "1g.10gb")
    with pytest.raises(AlreadyExists):
        await writer(cluster).write_classes(WriteClasses(create=(SMALL,)))
    before = present(cluster)[SMALL.name]
    cluster.patch(DEVICE_CLASSES, SMALL.name, {"metadata": {"labels": {"example.com/a": "b"}}})
    with pytest.raises(Conflict):
        await writer(cluster).write_classes(WriteClasses(correct=((SMALL, before),)))
    with pytest.raises(Conflict):
        await writer(cluster).write_classes(WriteClasses(remove=(replace(before, uid="another"),)))
    assert set(present(cluster)) == {SMALL.name}


async def test_a_class_that_is_refused_for_ever_keeps_no_other_from_being_written() -> None:
    cluster = FakeCluster()
    await carry_out(cluster, "4g.40gb")
    refused = wanted_class("3g.40gb")
    cluster.faults.fail("create", DEVICE_CLASSES, Invalid("a webhook"), name=refused.name, times=EVER)
    with pytest.raises(Invalid, match="a webhook"):
        await carry_out(cluster, "1g.10gb", "3g.40gb", "7g.80gb")
    assert set(present(cluster)) == {SMALL.name, wanted_class("7g.80gb").name}


async def test_a_class_that_is_gone_already_counts_as_removed() -> None:
    cluster = FakeCluster()
    await carry_out(cluster, "1g.10gb", "3g.40gb")
    removal = plan([], list(present(cluster).values()))
    assert removal is not None
    await writer(cluster).write_classes(removal)
    await writer(cluster).write_classes(removal)
    assert present(cluster) == {}


@pytest.mark.parametrize("page", ["dra", "uninstall"])
def test_the_pages_delete_the_classes_that_stayed_by_the_label_that_they_have(page: str) -> None:
    ((label, label_value),) = device_class(SMALL)["metadata"]["labels"].items()
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
    assert f"kubectl delete deviceclass -l {label}={label_value}\n" in text


def test_a_bare_class_has_empty_parts() -> None:
    raw: JSON = {"metadata": {"name": "x", "uid": "u", "resourceVersion": "1"}}
    assert device_class_view(raw) == DeviceClassView("x", "u", "1", ours=False, resource="", selectors=())
    assert device_class(SMALL)["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "gpusharing-operator"}
