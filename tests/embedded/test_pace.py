"""How fast pods are evicted, how often they are looked at, and who has to wait for whom."""

import asyncio
from datetime import datetime, timedelta
from typing import Literal

from hack.sim.fakefaults import Write
from hack.sim.workloads import Workload
from tests.embedded.scene import FULL, HOUR, SLICED, at_once, gpu_pod, nodes, pdb, scene
from tests.embedded.test_drain import OWNER, STRANDED_OK, busy
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.kube.client import PODS
from gpusharing.kube.errors import Conflict


@virtually
async def test_forty_blocked_nodes_cost_a_few_lists_of_pods_per_poll_and_each_gets_its_turn() -> None:
    async with scene(*nodes(40)) as stage:
        for number in range(1, 41):
            stage.e.cluster.add(PODS, gpu_pod(f"alone-{number}", f"gpu-{number}"))
        stage.apply(SLICED)
        await stage.until_condition("Stalled", "True", "Blocked")
        await asyncio.sleep(120)
        before = stage.e.cluster.calls["operator", "list", "pods"]
        await asyncio.sleep(300)
        lists = stage.e.cluster.calls["operator", "list", "pods"] - before
        assert 150 <= lists <= 5 * 60 + 20, "every node once a minute, and five per poll at most"
        assert all(stage.transition(f"gpu-{n}")["culprit"] == f"default/alone-{n}" for n in range(1, 41))
        stage.e.cluster.delete(PODS, "alone-17", "default")
        await stage.phase("gpu-17", "Synced", seconds=300)


@virtually
async def test_nodes_under_one_budget_that_allows_one_pod_are_drained_one_after_the_other() -> None:
    budget = pdb("slow", "llm", maxUnavailable=1)
    async with scene(*nodes(6, gpus=1), workloads=[Workload("llm", 4)], budgets=[budget]) as stage:
        await stage.running("llm", 4)
        stage.apply(FULL, rollout=at_once(6))
        await stage.ready()
        stage.apply(SLICED, rollout=at_once(6))
        most = 0

        def done() -> bool:
            nonlocal most
            holding = {str(pod["spec"].get("nodeName")) for pod in stage.pods("llm")}
            fenced = [f"gpu-{n}" for n in range(1, 7) if stage.fence(f"gpu-{n}") is not None]
            waiting = [
                name
                for name in fenced
                if name in holding and stage.transition(name).get("phase") == "Draining"
            ]
            most = max(most, len(waiting))
            return stage.condition("Ready").get("status") == "True"

        await stage.until_condition("Ready", "False", "RolloutInProgress")
        await stage.e.until(done, "Ready", 2 * HOUR)
        assert most == 1


@virtually
async def test_a_pod_that_comes_back_to_the_cordoned_node_is_evicted_once_and_then_named() -> None:
    stubborn = Workload("llm", 1, tolerations=({"operator": "Exists"},))
    async with scene(*nodes(1), workloads=[stubborn]) as stage:
        name = await busy(stage, 1)
        stage.apply(SLICED)
        transition = await stage.reason(name, "ToleratesCordon")
        assert "ReplicaSet llm" in transition["blockers"][0]
        await stage.reason(name, "Deferred")
        assert len(stage.evicted()) == 1
        assert not stage.cordoned(name)


@virtually
async def test_a_pod_that_is_pinned_to_its_node_and_tolerates_the_cordon_is_named_before_it() -> None:
    pinned = Workload(
        "llm", 1, node_selector={"kubernetes.io/hostname": "gpu-1"}, tolerations=({"operator": "Exists"},)
    )
    async with scene(*nodes(1), workloads=[pinned]) as stage:
        name = await busy(stage, 1)
        stage.apply(SLICED)
        transition = await stage.reason(name, "ToleratesCordon")
        assert transition["phase"] == "Blocked"
        assert stage.evicted() == []
        assert stage.fence(name) is None


@virtually
async def test_a_node_full_of_pods_is_drained_at_five_evictions_a_second() -> None:
    async with scene(*nodes(1)) as stage:
        owner = OWNER | {"kind": "ReplicaSet", "name": "llm"}
        for number in range(45):
            pod = gpu_pod(f"llm-{number}", "gpu-1", metadata={"ownerReferences": [owner]})
            stage.e.cluster.add(PODS, pod)
        moments: list[datetime] = []
        watched = stage.e.cluster.faults.on_write
        assert watched is not None

        def note(write: Write, when: Literal["before", "after"]) -> None:
            if when == "before" and write.call.verb == "evict":
                moments.append(virtual_now())
            watched(write, when)

        stage.e.cluster.faults.on_write = note
        stage.apply(SLICED, drain=STRANDED_OK)
        await stage.ready()
        assert len(moments) == 45
        pace = timedelta(seconds=2)
        busiest = max(sum(start <= moment < start + pace for moment in moments) for start in moments)
        assert busiest <= 10
        assert moments[-1] - moments[0] < timedelta(seconds=15)


@virtually
async def test_a_pod_that_is_asked_for_in_vain_is_asked_for_once_per_list() -> None:
    async with scene(*nodes(1)) as stage:
        owner = OWNER | {"kind": "ReplicaSet", "name": "llm"}
        for number in range(3):
            pod = gpu_pod(f"llm-{number}", "gpu-1", metadata={"ownerReferences": [owner]})
            stage.e.cluster.add(PODS, pod)
        calls = stage.e.cluster.calls
        stage.e.cluster.faults.fail("evict", PODS, Conflict("uid"), times=3, identity="operator")
        stage.apply(SLICED, drain=STRANDED_OK)
        await stage.e.until(lambda: calls["operator", "evict", "pods"] == 3, "three evictions", 1000)
        lists = calls["operator", "list", "pods"]
        await stage.e.until(lambda: calls["operator", "evict", "pods"] > 3, "a fourth eviction", 1000)
        assert calls["operator", "list", "pods"] > lists
        await stage.ready()
