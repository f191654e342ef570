"""How fast pods are evicted, how often they are looked at, and who has to wait for whom."""

import asyncio
from datetime import datetime, timedelta
from typing import Literal

from hack.sim.fakefaults import Write
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, HOUR, SLICED, at_once, gpu_pod, nodes, open_scene, pdb
from tests.embedded.test_drain import OWNER, STRANDED_OK, busy
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.kube.client import PODS
from gpusharing.kube.errors import Conflict


@virtually
async def test_forty_blocked_nodes_cost_a_few_lists_of_pods_per_poll_and_each_gets_its_turn() -> None:
    async with open_scene(*nodes(40)) as scene:
        for number in range(1, 41):
            scene.e.cluster.add(PODS, gpu_pod(f"alone-{number}", f"gpu-{number}"))
        scene.apply(SLICED)
        await scene.until_condition("Stalled", "True", "Blocked")
        await asyncio.sleep(120)
        before = scene.e.cluster.calls["operator", "list", "pods"]
        await asyncio.sleep(300)
        lists = scene.e.cluster.calls["operator", "list", "pods"] - before
        assert 150 <= lists <= 5 * 60 + 20, "every node once a minute, and five per poll at most"
        assert all(scene.transition(f"gpu-{n}")["culprit"] == f"default/alone-{n}" for n in range(1, 41))
        scene.e.cluster.delete(PODS, "alone-17", "default")
        await scene.phase("gpu-17", "Synced", seconds=300)


@virtually
async def test_nodes_under_one_budget_that_allows_one_pod_are_drained_one_after_the_other() -> None:
    budget = pdb("slow", "llm", maxUnavailable=1)
    async with open_scene(*nodes(6, gpus=1), workloads=[SimWorkload("llm", 4)], budgets=[budget]) as scene:
        await scene.running("llm", 4)
        await scene.serve(FULL, rollout=at_once(6))
        scene.apply(SLICED, rollout=at_once(6))
        most = 0

        def done() -> bool:
            nonlocal most
            holding = {str(pod["spec"].get("nodeName")) for pod in scene.pods("llm")}
            fenced = [f"gpu-{n}" for n in range(1, 7) if scene.fence(f"gpu-{n}") is not None]
            waiting = [name for name in fenced if name in holding and scene.transition(name).get("phase") == "Draining"]
            most = max(most, len(waiting))
            return scene.condition("Ready").get("status") == "True"

        await scene.until_condition("Ready", "False", "RolloutInProgress")
        await scene.e.until(done, "Ready", 2 * HOUR)
        assert most == 1


@virtually
async def test_a_pod_that_comes_back_to_the_cordoned_node_is_evicted_once_and_then_named() -> None:
    stubborn = SimWorkload("llm", 1, tolerations=({"operator": "Exists"},))
    async with open_scene(*nodes(1), workloads=[stubborn]) as scene:
        name = await busy(scene, 1)
        scene.apply(SLICED)
        transition = await scene.reason(name, "ToleratesCordon")
        assert "ReplicaSet llm" in transition["blockers"][0]
        await scene.reason(name, "Deferred")
        assert len(scene.evicted()) == 1
        assert not scene.cordoned(name)


@virtually
async def test_a_pod_whose_template_names_the_node_is_evicted_once_and_then_named() -> None:
    async with open_scene(*nodes(1)) as scene:
        owner = OWNER | {"kind": "ReplicaSet", "name": "llm"}
        for number in range(2):  # its controller starts the next one where the template says, cordon or not
            pod = gpu_pod(f"llm-{number}", "gpu-1", metadata={"ownerReferences": [owner]})
            scene.e.cluster.add(PODS, pod)
            if number == 0:
                scene.apply(SLICED)
                await scene.e.until(lambda: scene.evicted() == ["llm-0"], "the eviction", HOUR)
        transition = await scene.reason("gpu-1", "ToleratesCordon")
        assert "ReplicaSet llm started it here after the cordon" in transition["blockers"][0]
        await scene.reason("gpu-1", "Deferred")
        assert scene.evicted() == ["llm-0"]
        assert not scene.cordoned("gpu-1")


@virtually
async def test_a_pod_that_is_pinned_to_its_node_and_tolerates_the_cordon_is_named_before_it() -> None:
    pinned = SimWorkload(
        "llm", 1, node_selector={"kubernetes.io/hostname": "gpu-1"}, tolerations=({"operator": "Exists"},)
    )
    async with open_scene(*nodes(1), workloads=[pinned]) as scene:
        name = await busy(scene, 1)
        scene.apply(SLICED)
        transition = await scene.reason(name, "ToleratesCordon")
        assert transition["phase"] == "Blocked"
        assert scene.evicted() == []
        assert scene.fence(name) is None


@virtually
async def test_a_node_full_of_pods_is_drained_at_five_evictions_a_second() -> None:
    async with open_scene(*nodes(1)) as scene:
        owner = OWNER | {"kind": "ReplicaSet", "name": "llm"}
        for number in range(45):
            pod = gpu_pod(f"llm-{number}", "gpu-1", metadata={"ownerReferences": [owner]})
            scene.e.cluster.add(PODS, pod)
        moments: list[datetime] = []
        watched = scene.e.cluster.faults.on_write
        assert watched is not None

        def note(write: Write, when: Literal["before", "after"]) -> None:
            if when == "before" and write.call.verb == "evict":
                moments.append(virtual_now())
            watched(write, when)

        scene.e.cluster.faults.on_write = note
        await scene.serve(SLICED, drain=STRANDED_OK)
        assert len(moments) == 45
        pace = timedelta(seconds=2)
        busiest = max(sum(start <= moment < start + pace for moment in moments) for start in moments)
        assert busiest <= 10
        assert moments[-1] - moments[0] < timedelta(seconds=15)


@virtually
async def test_a_pod_that_is_asked_for_in_vain_is_asked_for_once_per_list() -> None:
    async with open_scene(*nodes(1)) as scene:
        owner = OWNER | {"kind": "ReplicaSet", "name": "llm"}
        for number in range(3):
            pod = gpu_pod(f"llm-{number}", "gpu-1", metadata={"ownerReferences": [owner]})
            scene.e.cluster.add(PODS, pod)
        calls = scene.e.cluster.calls
        scene.e.cluster.faults.fail("evict", PODS, Conflict("uid"), times=3, identity="operator")
        scene.apply(SLICED, drain=STRANDED_OK)
        await scene.e.until(lambda: calls["operator", "evict", "pods"] == 3, "three evictions", 1000)
        lists = calls["operator", "list", "pods"]
        await scene.e.until(lambda: calls["operator", "evict", "pods"] > 3, "a fourth eviction", 1000)
        assert calls["operator", "list", "pods"] > lists
        await scene.ready()
