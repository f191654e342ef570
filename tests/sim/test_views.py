"""Small views of the simulators: ConfigMaps with delay, pods by node, ClusterPolicy, the agents' shared watch,
calls of NVML without a thread (hack/sim/readings.py)."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hack.cluster.nodes import node_manifest
from hack.embedded import embedded
from hack.sim.agents import AgentAPI, SharedGPUNodes
from hack.sim.configmaps import MountedConfigMaps
from hack.sim.fakecluster import FakeClient, FakeCluster
from hack.sim.feed import follow
from hack.sim.gpu import SimulatedGPUs
from hack.sim.gpuoperator import ClusterPolicy, cluster_policy, operator_labels
from hack.sim.pods import DaemonPods, PodBook
from hack.sim.readings import HANGING, Readings
from hack.sim.selectors import matcher
from tests.fakes.running import running
from tests.fakes.virtualtime import virtually

from gpusharing.agent.library import LibraryError
from gpusharing.kube.client import (
    CONFIG_MAPS,
    CORE_EVENTS,
    EVENTS,
    GPUNODES,
    JSON,
    NODES,
    PODS,
    POLICIES,
    ApiRequest,
    Resource,
    WatchEvent,
)
from gpusharing.kube.errors import Expired, Invalid

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
    async with running(follow(cluster.client("sim"), CONFIG_MAPS, take, log=lines.append, synced=synced)):
        await until(("a", False))
        await synced.wait()
        cluster.add(CONFIG_MAPS, {"metadata": {"name": "b"}})
        await until(("a", False), ("b", False))
        cluster.swallow(CONFIG_MAPS, 1)
        cluster.delete(CONFIG_MAPS, "a")
        cluster.expire()
        await until(("a", False), ("b", False), ("a", True))
    assert lines == []


@pytest.mark.parametrize(
    ("resource", "selector", "field"),
    [
        (NODES, "spec.nodeName=gpu-1", "spec.nodeName"),
        (NODES, "spec.unschedulable=true,spec.providerID!=x", "spec.providerID"),
        (PODS, "spec.priority=1", "spec.priority"),
        (PODS, "!spec.nodeName=gpu-1", "!spec.nodeName"),
        (EVENTS, "involvedObject.name=gpu-1", "involvedObject.name"),
        (CONFIG_MAPS, "data.x=1", "data.x"),
        (POLICIES, "status.transition.phase=Held", "status.transition.phase"),
    ],
)
async def test_a_field_by_which_the_server_does_not_select_is_refused_with_its_name(
    resource: Resource, selector: str, field: str
) -> None:
    client = FakeCluster().client("someone")
    with pytest.raises(Invalid, match=f"^field label not supported: {field}$"):
        await client.list_page(resource, field_selector=selector)
    with pytest.raises(Invalid, match=f"^field label not supported: {field}$"):
        await anext(client.watch(resource, "0", field_selector=selector))


@pytest.mark.parametrize(
    ("resource", "selector"),
    [
        (NODES, "metadata.name==gpu-1,spec.unschedulable!=true"),
        (PODS, "spec.nodeName=,status.phase!=Failed"),
        (EVENTS, "type=Warning,regarding.name=gpu-1"),
        (CORE_EVENTS, "involvedObject.kind=Pod,involvedObject.name=gpu-1"),
        (GPUNODES, "status.transition.phase=Held"),
        (POLICIES, "spec.mode=MIG"),
    ],
)
async def test_a_field_by_which_the_server_selects_is_accepted(resource: Resource, selector: str) -> None:
    assert (await FakeCluster().client("someone").list_page(resource, field_selector=selector)).items == []


@pytest.mark.parametrize("selector", ["!a=b", "!a in (b)", "c,!a!=b"])
def test_a_negated_label_with_an_operator_is_refused(selector: str) -> None:
    with pytest.raises(ValueError, match="bad label selector"):
        matcher(selector)


H100 = "NVIDIA H100 80GB HBM3"


def simulated() -> tuple[SimulatedGPUs, Readings]:
    gpus = SimulatedGPUs("gpu-1", [H100])
    return gpus, Readings(gpus)


@virtually
async def test_a_reading_is_made_at_once_in_the_thread_of_the_caller_who_goes_on_in_another_turn() -> None:
    _, readings = simulated()
    future = readings(threading.current_thread, "nvml-reading")
    assert not future.done(), "others get their turn, as beside a real reading"
    assert await future is threading.current_thread()


@virtually
async def test_what_a_reading_fails_of_reaches_the_one_who_awaits() -> None:
    _, readings = simulated()

    def fail() -> None:
        raise LibraryError("no driver", "NVMLNotLoaded")

    with pytest.raises(LibraryError, match="no driver"):
        await readings(fail, "nvml-reading")


@virtually
async def test_nobody_minds_that_a_reading_was_given_up_on() -> None:
    gpus, readings = simulated()
    given_up = readings(gpus.read, "nvml-reading")
    given_up.cancel()
    assert (await readings(gpus.read, "nvml-reading")).gpus
    assert given_up.cancelled()


@virtually
async def test_a_reading_that_hangs_holds_up_nobody_and_returns_when_it_no_longer_does() -> None:
    gpus, readings = simulated()
    before = set(HANGING)
    gpus.hang()
    hanging = readings(gpus.read, "nvml-reading")
    await asyncio.sleep(60)
    assert not hanging.done()
    (thread,) = set(HANGING) - before
    assert thread.name == "nvml-reading"
    gpus.unhang()
    assert thread not in HANGING, "its end is waited for, before any time passes"
    assert (await hanging).gpus


class BrokenClient(FakeClient):
    async def call(self, request: ApiRequest) -> JSON:
        raise ZeroDivisionError


async def fail() -> None:
    async with embedded([node_manifest("gpu-1")]) as environment:
        environment.start_operator(BrokenClient(environment.cluster, "operator"))
        with pytest.raises(ExceptionGroup):
            await environment.until(lambda: False, "something that never comes")


async def test_after_an_error_of_the_operator_nothing_else_runs_on() -> None:
    before = asyncio.all_tasks()
    with pytest.raises(ExceptionGroup):
        await fail()
    assert asyncio.all_tasks() == before
