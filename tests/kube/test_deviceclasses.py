"""DeviceClasses as they are read and written."""

from typing import Any

import pytest
from hack.sim.fakecluster import FakeCluster

from gpusharing.kube.client import DEVICE_CLASSES, JSON
from gpusharing.kube.deviceclasses import device_class, device_class_view, write_classes
from gpusharing.kube.errors import AlreadyExists, Conflict
from gpusharing.planning.wanted.deviceclasses import ClassPlan, DeviceClassView, plan_classes, wanted_class

SMALL = wanted_class("1g.10gb")


def present(cluster: FakeCluster) -> dict[str, DeviceClassView]:
    """All classes by name."""
    return {one["metadata"]["name"]: device_class_view(one) for one in cluster.objects(DEVICE_CLASSES)}


async def carry_out(cluster: FakeCluster, *profiles: str) -> ClassPlan:
    """Plan for these profiles, and write; returns the plan."""
    plan = plan_classes(profiles, present(cluster).values())
    await write_classes(cluster.client("operator"), plan)
    return plan


async def test_what_is_written_is_right_and_goes_when_nobody_uses_it() -> None:
    cluster = FakeCluster()
    cluster.add(DEVICE_CLASSES, {"metadata": {"name": "gpu.nvidia.com"}, "spec": {}})
    await carry_out(cluster, "1g.10gb", "3g.40gb")
    assert (await carry_out(cluster, "1g.10gb", "3g.40gb")) == ClassPlan()
    await carry_out(cluster, "1g.10gb")
    assert set(present(cluster)) == {"gpu.nvidia.com", SMALL.name}
    await carry_out(cluster)
    assert set(present(cluster)) == {"gpu.nvidia.com"}


@pytest.mark.parametrize(
    "change",
    [
        {"selectors": [{"cel": {"expression": "true"}}]},
        {"extendedResourceName": None},
        {"config": [{"opaque": {"driver": "gpu.nvidia.com", "parameters": {}}}]},
    ],
    ids=["another selector", "no extended resource", "a configuration"],
)
async def test_what_somebody_changed_is_put_right(change: dict[str, Any]) -> None:
    cluster = FakeCluster()
    await carry_out(cluster, "1g.10gb")
    cluster.patch(DEVICE_CLASSES, SMALL.name, {"spec": change})
    assert (await carry_out(cluster, "1g.10gb")).correct
    assert (await carry_out(cluster, "1g.10gb")) == ClassPlan()


async def test_what_changed_or_came_since_it_was_read_is_left_to_the_next_pass() -> None:
    cluster = FakeCluster()
    stale = plan_classes(["1g.10gb"], [])
    await carry_out(cluster, "1g.10gb")
    with pytest.raises(AlreadyExists):
        await write_classes(cluster.client("operator"), stale)
    cluster.patch(DEVICE_CLASSES, SMALL.name, {"spec": {"extendedResourceName": "example.com/x"}})
    wrong = plan_classes(["1g.10gb"], present(cluster).values())
    cluster.patch(DEVICE_CLASSES, SMALL.name, {"metadata": {"labels": {"example.com/a": "b"}}})
    with pytest.raises(Conflict):
        await write_classes(cluster.client("operator"), wrong)


async def test_a_class_that_is_gone_already_counts_as_removed() -> None:
    cluster = FakeCluster()
    await carry_out(cluster, "1g.10gb", "3g.40gb")
    removal = plan_classes([], present(cluster).values())
    await write_classes(cluster.client("operator"), removal)
    await write_classes(cluster.client("operator"), removal)
    assert present(cluster) == {}


def test_a_bare_class_has_empty_parts() -> None:
    raw: JSON = {"metadata": {"name": "x", "uid": "u", "resourceVersion": "1"}}
    assert device_class_view(raw) == DeviceClassView("x", "u", "1", ours=False, resource="", selectors=())
    assert device_class(SMALL)["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "gpusharing-operator"
    }
