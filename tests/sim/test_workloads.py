"""SIMULATED workloads on FakeCluster: replaced when evicted, Pending when nothing offers their resource.
And what an operand's pod does next (docs/design/nvidia.md#b4)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.operands import OperandStep, PlayedOperand, Pod, decide
from hack.sim.plugin import PluginError
from hack.sim.settings import Clock, SimSettings
from hack.sim.workloads import SimWorkload, Workloads
from tests.fakes.running import running
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import JSON, NODES, PDBS, PODS, REPLICA_SETS
from gpusharing.planning.snapshot.nvidia import TAINT_TEST

GPU = "nvidia.com/gpu"
FACTOR = 1000.0


def node(name: str, gpus: int, pool: str = "a") -> JSON:
    return {
        "metadata": {"name": name, "labels": {"pool": pool}},
        "spec": {},
        "status": {"allocatable": {GPU: str(gpus)}},
    }


def placed(cluster: FakeCluster) -> list[tuple[str | None, str | None]]:
    pods = (pod for pod in cluster.objects(PODS) if "deletionTimestamp" not in pod["metadata"])
    where = [(pod["spec"].get("nodeName"), pod.get("status", {}).get("phase")) for pod in pods]
    return sorted(where, key=str)


@asynccontextmanager
async def playing(*nodes: JSON, dra: bool = False) -> AsyncIterator[tuple[FakeCluster, Workloads]]:
    cluster = FakeCluster(grace=5 / FACTOR, later=asyncio.get_running_loop().call_later)
    for one in nodes:
        cluster.add(NODES, one)
    workloads = Workloads(cluster.client("controllers"), SimSettings(time_factor=FACTOR, dra=dra))
    async with running(workloads.run()):
        yield cluster, workloads


async def until(cluster: FakeCluster, condition: Callable[[], object]) -> None:
    changed = asyncio.Event()
    cluster.store.on_commit.append(lambda resource, change: changed.set())
    async with asyncio.timeout(60):
        while not condition():
            changed.clear()
            await changed.wait()


async def test_pods_run_where_the_resource_is_and_wait_where_it_is_not() -> None:
    async with playing(node("n1", 1), node("n2", 1), node("n3", 9, pool="b")) as (cluster, workloads):
        workloads.apply(SimWorkload("train", replicas=3, resource=GPU, node_selector={"pool": "a"}))
        await until(cluster, lambda: placed(cluster) == [("n1", "Running"), ("n2", "Running"), (None, "Pending")])


async def test_an_evicted_pod_is_replaced_elsewhere() -> None:
    async with playing(node("n1", 2), node("n2", 2)) as (cluster, workloads):
        workloads.apply(SimWorkload("serve", replicas=2))
        await until(cluster, lambda: placed(cluster) == [("n1", "Running")] * 2)
        cluster.patch(NODES, "n1", {"spec": {"unschedulable": True}})
        first = cluster.objects(PODS)[0]["metadata"]
        await cluster.client("operator").evict("default", first["name"], first["uid"])
        await until(cluster, lambda: placed(cluster) == [("n1", "Running"), ("n2", "Running")])
        await until(cluster, lambda: len(cluster.objects(PODS)) == 2)


async def test_a_budget_counts_the_pods() -> None:
    async with playing(node("n1", 4)) as (cluster, workloads):
        budget = {
            "metadata": {"name": "b", "namespace": "default"},
            "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "serve"}}},
        }
        cluster.add(PDBS, budget)
        workloads.apply(SimWorkload("serve", replicas=3))
        await until(cluster, lambda: cluster.get(PDBS, "b", "default").get("status", {}).get("disruptionsAllowed") == 1)


@virtually
async def test_only_the_replica_set_of_the_operators_own_test_gets_the_pods_of_that_test() -> None:
    def replica_set(name: str, replicas: int) -> JSON:
        return {"metadata": {"name": name, "namespace": "default"}, "spec": {"replicas": replicas}}

    async with playing(dra=True) as (cluster, _):
        for name, replicas, pods in (("web", 3, 0), (TAINT_TEST, 1, 1), ("idle", 0, 1)):
            cluster.add(REPLICA_SETS, replica_set(name, replicas))
            await asyncio.sleep(10)
            assert len(placed(cluster)) == pods, name
        cluster.patch(REPLICA_SETS, TAINT_TEST, {"spec": {"replicas": 0}}, "default")
        await asyncio.sleep(10)
        assert placed(cluster) == []


ABSENT = Pod()
CRASHED = Pod(exists=True)
RUNNING = Pod(exists=True, running=True, loaded="a")


@pytest.mark.parametrize(
    ("pod", "deployed", "key", "step"),
    [
        pytest.param(ABSENT, False, "a", OperandStep.REST, id="not deployed: nothing"),
        pytest.param(ABSENT, True, "a", OperandStep.START, id="deployed: it starts"),
        pytest.param(ABSENT, True, "", OperandStep.START, id="with the empty configuration too"),
        pytest.param(ABSENT, True, None, OperandStep.INIT_CRASH, id="a new pod with an unknown key crash-loops"),
        pytest.param(CRASHED, True, "a", OperandStep.START, id="a crashed pod starts again"),
        pytest.param(CRASHED, False, None, OperandStep.STOP, id="a paused label removes a crashed pod"),
        pytest.param(RUNNING, True, "a", OperandStep.REST, id="the same key: already configured"),
        pytest.param(RUNNING, True, "b", OperandStep.RELOAD, id="another key: SIGHUP"),
        pytest.param(RUNNING, True, None, OperandStep.SIDECAR_CRASH, id="an unknown key: only the sidecar crash-loops"),
        pytest.param(RUNNING, False, "b", OperandStep.STOP, id="a paused label stops a running pod"),
    ],
)
def test_the_next_step_follows_from_pod_label_and_key(
    pod: Pod, deployed: bool, key: str | None, step: OperandStep
) -> None:
    assert decide(pod, deployed=deployed, key=key) is step


def test_a_plugin_that_waited_for_the_mps_daemon_starts_to_serve_again() -> None:
    assert decide(RUNNING, deployed=True, key="a", again=True) is OperandStep.RELOAD
    assert decide(RUNNING, deployed=False, key="a", again=True) is OperandStep.STOP


class Port:
    def __init__(self) -> None:
        self.is_deployed = True
        self.wanted: str | None = "a"
        self.exits = 0
        self.events: list[str] = []
        self._told = asyncio.Event()

    def deployed(self) -> bool:
        return self.is_deployed

    def key(self, *, new_pod: bool) -> str | None:
        return self.wanted

    async def serve(self, key: str) -> None:
        if self.exits:
            self.exits -= 1
            raise PluginError("exits")
        self._note(f"serves {key}")

    def again(self) -> bool:
        return False

    async def gone(self, *, crashed: bool) -> None:
        self._note("crashed" if crashed else "stopped")

    def _note(self, event: str) -> None:
        self.events.append(event)
        self._told.set()

    async def until(self, *events: str) -> None:
        async with asyncio.timeout(60):
            while self.events != list(events):
                self._told.clear()
                await self._told.wait()


async def test_it_follows_label_and_key_and_comes_back_from_a_crash() -> None:
    settings = SimSettings(time_factor=10_000)
    port = Port()
    port.exits = 1
    operand = PlayedOperand("device-plugin", port, Clock(settings), settings.times, lambda line: None)
    async with running(operand.run()):
        await port.until("crashed", "serves a")
        assert not operand.is_gone.is_set()
        port.wanted = "b"
        operand.wake()
        await port.until("crashed", "serves a", "serves b")
        port.is_deployed = False
        operand.wake()
        await port.until("crashed", "serves a", "serves b", "stopped")
        await operand.is_gone.wait()
        port.is_deployed = True
        operand.wake()
        await port.until("crashed", "serves a", "serves b", "stopped", "serves b")
