"""SIMULATED workloads on FakeCluster: replaced when evicted, Pending when nothing offers their resource."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hack.sim.fakecluster import FakeCluster
from hack.sim.settings import SimSettings
from hack.sim.workloads import SimWorkload, Workloads
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
    task = asyncio.create_task(workloads.run())
    try:
        yield cluster, workloads
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
