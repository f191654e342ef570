"""What `doctor` says of DeviceClasses of somebody else (stack/drastack.py)."""

from typing import Any

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.cli.asking import ME, ask
from tests.cli.test_doctor_rivals import DOMAINS, daemon_set
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, DEVICE_CLASSES
from gpusharing.kube.errors import Forbidden, NotFound

GPUS = {"name": "gpus", "args": ["exec gpu-kubelet-plugin -v 4"]}
HALF = "nvidia.com/mig-3g.40gb"


def cluster_with(profile: str, *, plugin: bool = False) -> FakeCluster:
    """NVIDIA's DRA driver, perhaps beside a device plugin, and a class for halves that selects another profile."""
    cluster = FakeCluster()
    spec = {"devicePlugin": {"enabled": plugin}}
    cluster.add(CLUSTER_POLICIES, {"metadata": {"name": "cluster-policy"}, "spec": spec})
    cluster.add(DAEMON_SETS, daemon_set("gpu-operator", "dra", DOMAINS, GPUS))
    selectors = [{"cel": {"expression": f"device.attributes['gpu.nvidia.com'].profile == '{profile}'"}}]
    halves = {"extendedResourceName": HALF, "selectors": selectors}
    cluster.add(DEVICE_CLASSES, {"metadata": {"name": "halves"}, "spec": halves})
    cluster.add(DEVICE_CLASSES, {"metadata": {"name": "any"}, "spec": {}})
    return cluster


async def told(cluster: FakeCluster) -> tuple[list[dict[str, Any]], dict[str, str]]:
    answer = await ask(cluster, "doctor", "-o", "json")
    found = [one for one in answer.data["symptoms"] if one["reason"] == "DeviceClassDoubtful"]
    return found, answer.data["unknown"]


@virtually
async def test_a_class_that_selects_another_profile_than_its_resource_names_is_told() -> None:
    ((row,), unknown) = await told(cluster_with("7g.80gb"))
    assert (row["severity"], row["topic"]) == ("WARNING", "ClusterPolicy")
    assert not lacks(row["message"], "DeviceClass halves", "spec.extendedResourceName", HALF)
    assert row["command"] == "kubectl get deviceclass halves -o yaml"
    assert "DeviceClasses" not in unknown.get("ClusterPolicy", "")


@virtually
async def test_a_class_that_selects_its_profile_is_not_told_and_neither_is_any_where_a_device_plugin_serves() -> None:
    assert (await told(cluster_with("3g.40gb")))[0] == []
    assert (await told(cluster_with("7g.80gb", plugin=True)))[0] == []


@pytest.mark.parametrize("error", [Forbidden("not allowed"), NotFound("no such kind")], ids=str)
@virtually
async def test_where_classes_cannot_be_read_that_is_told(error: Exception) -> None:
    cluster = cluster_with("7g.80gb")
    cluster.faults.fail("list", DEVICE_CLASSES, error, times=EVER, identity=ME)
    found, unknown = await told(cluster)
    assert found == []
    assert "DeviceClasses cannot be read" in unknown["ClusterPolicy"]
