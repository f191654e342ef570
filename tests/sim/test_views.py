"""Small views of the simulators: ConfigMaps with delay, pods by node, ClusterPolicy, the agents' shared watch."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hack.sim.agents import AgentAPI, SharedGPUNodes
from hack.sim.configmaps import MountedConfigMaps
from hack.sim.fakecluster import FakeCluster
from hack.sim.feed import follow
from hack.sim.gpuoperator import ClusterPolicy, cluster_policy, operator_labels
from hack.sim.pods import DaemonPods, PodBook

from gpusharing.kube.client import CONFIG_MAPS, GPUNODES, JSON, WatchEvent
from gpusharing.kube.errors import Expired

GPU = "nvidia.com/gpu"


def pod(uid: str, phase: str = "Running", node: str = "n1", **metadata: Any) -> JSON:
    return {
        "metadata": {"uid": uid, "name": uid, "namespace": "ml", **metadata},
        "spec": {"nodeName": node, "containers": [{"resources": {"limits": {GPU: "2", "cpu": "1"}}}]},
        "status": {"phase": phase},
    }


def test_a_running_pod_sees_a_new_config_map_late_and_a_new_pod_at_once() -> None:
    maps = MountedConfigMaps(delay=60)
    assert maps.put("c", {"data": {"a": "1"}}, float("-inf"))
    assert not maps.put("c", {"data": {"a": "1"}}, 50)
    assert maps.put("c", {"data": {"a": "2"}}, 100)
    assert maps.content("c", node="n1", pod_started=0, now=101) == {"a": "1"}
    assert maps.content("c", node="n1", pod_started=0, now=160) == {"a": "2"}
    assert maps.content("c", node="n1", pod_started=100, now=101) == {"a": "2"}
    assert maps.content("other", node="n1", pod_started=0, now=101) == {}
    maps.put("c", None, 200)
    assert maps.content("c", node="n1", pod_started=200, now=201) == {}


def test_only_running_pods_hold_devices() -> None:
    book = PodBook()
    book.take(pod("a"), False)
    book.take(pod("b", "Pending"), False)
    book.take(pod("c", node="n2"), False)
    book.take(pod("d", deletionTimestamp="2026-11-20T10:00:00Z"), False)
    assert (book.holdings("n1").allocated, book.holdings("n1").pods) == ({GPU: 4}, 2)
    book.take(pod("a", "Succeeded"), False)
    book.take(pod("d"), True)
    assert (book.holdings("n1").allocated, book.holdings("n1").pods) == ({}, 0)


def test_a_daemon_pod_that_is_being_deleted_does_not_run_any_more() -> None:
    pods = DaemonPods("ml", "app", "x")
    labels = {"app": "x"}
    assert pods.take(pod("a", labels=labels), False) == "n1"
    assert pods.take(pod("b", labels={"app": "y"}), False) is None
    running = pods.running("n1")
    assert running is not None
    assert running["metadata"]["uid"] == "a"
    pods.take(pod("a", labels=labels, deletionTimestamp="2026-11-20T10:00:00Z"), False)
    assert pods.running("n1") is None
    assert pods.exists("n1")
    pods.take(pod("a", labels=labels), True)
    assert not pods.exists("n1")


def test_cluster_policy_is_read_as_far_as_it_reaches_a_node() -> None:
    assert cluster_policy([]) == ClusterPolicy()
    spec = {
        "devicePlugin": {"config": {"name": "p", "default": "full"}},
        "mig": {"strategy": "single"},
        "migManager": {"config": {"name": "m", "default": ""}, "env": [{"name": "WITH_REBOOT", "value": "true"}]},
    }
    found = cluster_policy([{"metadata": {"name": "x"}, "spec": spec}])
    assert found == ClusterPolicy("p", "full", "single", "m", "", with_reboot=True)


def test_switches_of_cluster_policy_name_the_operands_that_nothing_runs() -> None:
    blocks = {block: {"enabled": False} for block in ("devicePlugin", "gfd", "migManager")}
    found = cluster_policy([{"metadata": {"name": "x"}, "spec": blocks}])
    assert found.off == {"device-plugin", "mps-control-daemon", "gpu-feature-discovery", "mig-manager"}
    asleep = {"sandboxWorkloads": {"enabled": False, "defaultWorkload": "vm-vgpu"}}
    assert cluster_policy([{"metadata": {"name": "x"}, "spec": asleep}]) == ClusterPolicy()


@pytest.mark.parametrize(
    ("labels", "mig_capable", "key", "value"),
    [
        pytest.param({}, True, "nvidia.com/mig.config", "all-disabled", id="a missing mig.config"),
        pytest.param({"nvidia.com/mig.config": "x"}, True, "nvidia.com/mig.config", None, id="a kept mig.config"),
        pytest.param({}, False, "nvidia.com/mig.config", None, id="none on a card without MIG"),
        pytest.param(
            {"nvidia.com/gpu.deploy.dcgm": "false"}, True, "nvidia.com/gpu.deploy.dcgm", None, id="false stays"
        ),
        pytest.param({}, False, "nvidia.com/gpu.deploy.mig-manager", None, id="no mig-manager without MIG"),
    ],
)
def test_the_gpu_operator_adds_what_is_missing(
    labels: dict[str, str], mig_capable: bool, key: str, value: str | None
) -> None:
    assert operator_labels(labels, ClusterPolicy(), mig_capable=mig_capable).get(key) == value


async def _next(changes: AsyncGenerator[WatchEvent, None]) -> WatchEvent:
    async with asyncio.timeout(60):
        return await anext(changes)


async def test_agents_share_one_watch_and_miss_nothing() -> None:
    shared = SharedGPUNodes()
    client = FakeCluster().client("agent")
    api = AgentAPI(client, shared, "n1")
    page = await api.list_page(GPUNODES)
    assert page.items == []
    changes = api.watch(GPUNODES, page.resource_version)
    node = {"metadata": {"name": "n1", "uid": "u", "resourceVersion": "7"}}
    shared.take({"metadata": {"name": "n2", "uid": "v", "resourceVersion": "6"}}, False)
    shared.take(node, False)
    assert (await _next(changes)).object == node
    shared.take(node, True)
    assert (await _next(changes)).type == "DELETED"
    with pytest.raises(Expired):
        await _next(api.watch(GPUNODES, "7"))


async def test_a_feed_tells_of_everything_also_after_a_gap() -> None:
    cluster = FakeCluster()
    told: list[tuple[str, bool]] = []
    changed, synced = asyncio.Event(), asyncio.Event()

    def take(obj: JSON, gone: bool) -> None:
        told.append((obj["metadata"]["name"], gone))
        changed.set()

    async def until(*expected: tuple[str, bool]) -> None:
        async with asyncio.timeout(60):
            while told != list(expected):
                changed.clear()
                await changed.wait()

    cluster.add(CONFIG_MAPS, {"metadata": {"name": "a"}})
    lines: list[str] = []
    task = asyncio.create_task(follow(cluster.client("sim"), CONFIG_MAPS, take, log=lines.append, synced=synced))
    try:
        await until(("a", False))
        await synced.wait()
        cluster.add(CONFIG_MAPS, {"metadata": {"name": "b"}})
        await until(("a", False), ("b", False))
        cluster.swallow(CONFIG_MAPS, 1)
        cluster.delete(CONFIG_MAPS, "a")
        cluster.expire()
        await until(("a", False), ("b", False), ("a", True))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert lines == []
