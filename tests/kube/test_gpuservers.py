"""Which DaemonSets serve GPUs (kube/daemonsets.py)."""

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER

from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, JSON, Resource
from gpusharing.kube.daemonsets import find_gpu_operator, gpu_server
from gpusharing.kube.errors import Forbidden
from gpusharing.planning.stack.plugins import Role, tell_twins


def daemon_set(name: str, *command: str, image: str = "") -> JSON:
    containers = [{"name": name, "image": image, "command": list(command)}]
    return {
        "metadata": {"namespace": "gpus", "name": "server"},
        "spec": {"template": {"spec": {"containers": containers}}},
    }


@pytest.mark.parametrize(
    ("raw", "role"),
    [
        (daemon_set("nvidia-device-plugin"), Role.PLUGIN),
        (daemon_set("device-plugin", image="registry.example/projecthami/hami:v2.10.0"), Role.PLUGIN),
        (daemon_set("gpus", "gpu-kubelet-plugin"), Role.DRIVER),
        (daemon_set("nvidia-mig-manager"), Role.MIG_MANAGER),
        (daemon_set("gpus", "exporter"), None),
        (daemon_set("device-plugin", image="registry.example/other/plugin:v1"), None),
    ],
    ids=[
        "the device plugin",
        "HAMi's device plugin",
        "the DRA driver",
        "mig-manager",
        "another program in a container of that name",
        "something else",
    ],
)
def test_what_a_daemon_set_does_with_gpus_is_known_by_its_containers(raw: JSON, role: Role | None) -> None:
    server = gpu_server(raw)
    assert (None if server is None else server.role) is role


@pytest.mark.parametrize(("generation", "observed", "refused"), [(1, 1, True), (2, 1, False), (2, 2, True)], ids=str)
def test_a_daemon_set_whose_status_is_older_than_its_spec_is_no_twin(
    generation: int, observed: int, refused: bool
) -> None:
    one, other = daemon_set("nvidia-device-plugin"), daemon_set("nvidia-device-plugin-ctr")
    one["status"] = other["status"] = {"desiredNumberScheduled": 2, "observedGeneration": 1}
    other["metadata"] |= {"name": "other", "generation": generation}
    other["status"] = {**other["status"], "observedGeneration": observed}
    other["spec"]["template"]["spec"]["nodeSelector"] = {"none": "x"}
    servers = [server for raw in (one, other) if (server := gpu_server(raw)) is not None]
    assert bool(tell_twins(servers, "gpus")) is refused
    assert bool(tell_twins(reversed(servers), "gpus")) is refused


STATUS = {"status": {"namespace": "nvidia"}}
PLUGIN = daemon_set("nvidia-device-plugin")
OWNED = {**PLUGIN, "metadata": {**PLUGIN["metadata"], "ownerReferences": [{"kind": "ClusterPolicy"}]}}


@pytest.mark.parametrize(
    ("policies", "sets", "namespace"),
    [
        ([STATUS], [OWNED], "nvidia"),
        ([{"status": {"namespace": "old", "state": "ignored"}}, STATUS], [], "nvidia"),
        ([{}], [daemon_set("mesh"), OWNED], "gpus"),
        ([{}], [PLUGIN], "default"),
        ([], [], "default"),
    ],
    ids=[
        "ClusterPolicy says so",
        "one of two ClusterPolicies is ignored",
        "ClusterPolicy owns the device plugin there",
        "somebody else runs a device plugin",
        "there is nothing",
    ],
)
async def test_the_gpu_operator_is_where_its_objects_say(
    policies: list[JSON], sets: list[JSON], namespace: str
) -> None:
    cluster = FakeCluster()
    for number, raw in enumerate(policies):
        cluster.add(CLUSTER_POLICIES, {"metadata": {"name": f"policy-{number}"}, **raw})
    for number, raw in enumerate(sets):
        metadata = {**raw["metadata"], "name": f"server-{number}"}
        cluster.add(DAEMON_SETS, {**raw, "metadata": metadata})
    assert await find_gpu_operator(cluster.client("me"), "default") == namespace


@pytest.mark.parametrize("kind", [CLUSTER_POLICIES, DAEMON_SETS], ids=["ClusterPolicies", "DaemonSets"])
async def test_where_its_objects_may_not_be_read_nobody_knows_where_the_gpu_operator_is(kind: Resource) -> None:
    cluster = FakeCluster()
    cluster.add(CLUSTER_POLICIES, {"metadata": {"name": "cluster-policy"}})
    cluster.add(DAEMON_SETS, OWNED)
    cluster.faults.fail("list", kind, Forbidden("no"), times=EVER)
    assert await find_gpu_operator(cluster.client("me"), "default") == "default"
    cluster.uninstalled.add(kind)
    assert await find_gpu_operator(cluster.client("me"), "default") == "default"
