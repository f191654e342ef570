"""Who leaves how: rules of the policy by namespace and label, jobs that may end first, the clocks of both, and with `drain.scope: Changed` only the pods of GPUs that change."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import HOUR, SLICED, Scene, gpu_pod, nodes, open_scene
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api.times import to_rfc3339
from gpusharing.kube.client import GPUNODES, JSON, NAMESPACES, PODS

JOB = {"apiVersion": "batch/v1", "kind": "Job", "name": "train", "uid": "job", "controller": True}


def trainer(name: str = "train-0", **metadata: Any) -> JSON:
    return gpu_pod(name, "gpu-1", metadata={"ownerReferences": [JOB], **metadata}, spec={"restartPolicy": "Never"})


def end(scene: Scene, name: str = "train-0") -> None:
    scene.e.cluster.patch(PODS, name, {"status": {"phase": "Succeeded"}}, "default", subresource="status")


@virtually
async def test_a_job_ends_on_the_cordoned_node_before_anybody_is_evicted() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, trainer())
        scene.e.cluster.add(PODS, gpu_pod("alone", "gpu-1"))
        await scene.reach(SLICED, drain={"unmanagedPods": "Evict", "timeout": "5m"}, phase="WaitingForJobs")
        assert scene.cordoned("gpu-1")
        transition = await scene.reason("gpu-1", "JobsRunning")
        assert transition["culprit"] == "default/train-0"
        await scene.e.until(lambda: bool((now := scene.fence("gpu-1")) and now.jobs), "the clock of the jobs", 60)
        fence = await scene.fenced("gpu-1", seconds=0)
        assert fence.deadline == fence.since + timedelta(hours=1)
        await scene.e.until(
            lambda: scene.transition("gpu-1").get("deadline") == to_rfc3339(fence.deadline), "the deadline", 60
        )
        await asyncio.sleep(1800)
        assert scene.evicted() == []
        end(scene)
        await scene.ready()
        assert scene.evicted() == ["alone"]
        assert scene.events()["WaitingForJobs"] == 1


@virtually
async def test_the_deadline_of_a_drain_is_set_when_its_last_job_ends() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, trainer())
        stays = gpu_pod("stays", "gpu-1", metadata={"finalizers": ["example.com/keep"]})
        scene.e.cluster.add(PODS, stays)
        await scene.reach(SLICED, drain={"unmanagedPods": "Evict", "timeout": "5m"}, phase="WaitingForJobs")
        await asyncio.sleep(3000)
        end(scene)
        ended = virtual_now()
        await scene.phase("gpu-1", "Draining")
        fence = await scene.fenced("gpu-1", seconds=0)
        assert not fence.jobs
        assert timedelta(0) <= fence.deadline - timedelta(minutes=5) - ended <= timedelta(seconds=25)
        await scene.released("gpu-1")
        assert fence.deadline <= virtual_now() <= fence.deadline + timedelta(seconds=10)


@virtually
async def test_a_job_that_does_not_end_in_time_goes_on_and_the_node_is_restored() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, trainer())
        fence = await scene.begin(SLICED, drain={"jobs": {"timeout": "30m"}})
        await scene.released("gpu-1")
        assert timedelta(minutes=30) <= virtual_now() - fence.since <= timedelta(minutes=31)
        assert not scene.cordoned("gpu-1")
        transition = await scene.reason("gpu-1", "Deferred")
        assert "JobsTimeout" in transition["message"]
        assert scene.evicted() == []
        end(scene)
        await scene.ready(seconds=HOUR)


@virtually
async def test_a_job_is_waited_for_without_an_end_until_the_policy_names_one() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, trainer())
        await scene.reach(SLICED, drain={"jobs": {"timeout": "Never"}}, reason="JobsRunning")
        await asyncio.sleep(1.5 * HOUR)
        assert scene.cordoned("gpu-1")
        assert scene.evicted() == []
        assert scene.transition("gpu-1")["waitingFor"] == "Others", "the job itself"
        assert scene.transition("gpu-1")["phase"] == "WaitingForJobs"
        scene.apply(SLICED, drain={"jobs": {"timeout": "80m"}})
        await scene.released("gpu-1")
        assert not scene.cordoned("gpu-1")
        end(scene)
        await scene.ready(seconds=HOUR)


@virtually
async def test_a_pause_does_not_keep_a_node_cordoned_whose_jobs_ended_meanwhile() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, trainer())
        drain = {"jobs": {"timeout": "Never"}, "timeout": "10m"}
        await scene.reach(SLICED, drain=drain, reason="JobsRunning")
        await scene.reach(SLICED, drain=drain, rollout={"paused": True, "whenPaused": "Hold"}, reason="Paused")
        await asyncio.sleep(HOUR)
        assert scene.cordoned("gpu-1"), "they still run"
        end(scene)
        ended = virtual_now()
        await scene.released("gpu-1")
        assert timedelta(minutes=10) <= virtual_now() - ended <= timedelta(minutes=11)
        assert not scene.cordoned("gpu-1")
        assert scene.evicted() == []


@pytest.mark.parametrize("down", [60, 4000], ids=["for a minute", "past the deadline"])
@virtually
async def test_an_operator_that_was_away_while_jobs_ran_goes_on_where_it_stood(down: int) -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, trainer())
        await scene.reach(SLICED, phase="WaitingForJobs")
        await scene.e.until(lambda: bool((now := scene.fence("gpu-1")) and now.jobs), "the clock of the jobs", 60)
        before = scene.fence("gpu-1")
        await scene.e.kill_operator()
        await asyncio.sleep(down)
        if down > HOUR:
            end(scene)
        scene.e.start_operator()
        if down < HOUR:
            await asyncio.sleep(60)
            assert scene.fence("gpu-1") == before
            end(scene)
        await scene.ready(seconds=HOUR)
        assert scene.evicted() == []
        assert scene.events()["ChangeGivenUp"] == 0, "what is there counts more than the clock"


@virtually
async def test_rules_by_namespace_and_label_decide_and_what_they_block_is_named_with_the_rule() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(NAMESPACES, {"metadata": {"name": "default", "labels": {"team": "a"}}})
        scene.e.cluster.add(PODS, gpu_pod("kept", "gpu-1", metadata={"labels": {"tier": "prod"}}))
        rules: list[JSON] = [
            {"behavior": "Evict", "namespaceSelector": {"matchLabels": {"team": "b"}}},
            {"behavior": "Block", "podSelector": {"matchLabels": {"tier": "prod"}}},
        ]
        transition = await scene.reach(SLICED, drain={"rules": rules}, reason="RuleBlocks")
        assert "spec.drain.rules[1] has behavior Block" in transition["blockers"][0]
        assert transition["culprit"] == "default/kept"
        assert not scene.cordoned("gpu-1")
        rules[0]["namespaceSelector"] = {"matchLabels": {"team": "a"}}
        await scene.serve(SLICED, drain={"rules": rules})
        assert scene.evicted() == ["kept"]


@virtually
async def test_a_namespace_that_nobody_can_read_keeps_its_pods_and_the_other_policies_go_on() -> None:
    async with open_scene(*nodes(2)) as scene:
        scene.e.cluster.add(PODS, gpu_pod("lost", "gpu-1"))
        rule = {"behavior": "Evict", "namespaceSelector": {"matchLabels": {"team": "a"}}}
        transition = await scene.reach(SLICED, drain={"rules": [rule]}, reason="NamespaceUnreadable")
        assert "namespace default" in transition["blockers"][0]
        assert not scene.cordoned("gpu-1")
        await scene.phase("gpu-2", "Synced")
        scene.e.cluster.add(NAMESPACES, {"metadata": {"name": "default", "labels": {"team": "a"}}})
        await scene.ready()


@virtually
async def test_a_drain_that_is_held_past_its_time_keeps_cordon_and_slot_says_so_and_goes_on() -> None:
    async with open_scene(*nodes(2)) as scene:
        stays = gpu_pod("stays", "gpu-1", metadata={"finalizers": ["example.com/keep"]})
        scene.e.cluster.add(PODS, stays)
        more = gpu_pod("also", "gpu-2", metadata={"finalizers": ["example.com/keep"]})
        scene.e.cluster.add(PODS, more)
        name = await scene.begin_any(SLICED, drain={"unmanagedPods": "Evict", "timeout": "5m", "onTimeout": "Hold"})
        before = scene.fence(name)
        transition = await scene.reason(name, "DrainHeld")
        assert before is not None
        assert virtual_now() >= before.deadline
        assert transition["phase"] == "Draining"
        assert "drain.onTimeout is Hold" in transition["message"]
        assert "1 GPU pod left to go" in transition["message"]
        assert (transition["culprit"], transition["cordonedBy"]) == (f"default/{scene.evicted()[0]}", "Operator")
        assert transition["waitingFor"] == "Person", "the time is over"
        await scene.e.kill_operator()
        scene.e.start_operator()
        await asyncio.sleep(HOUR)
        assert scene.fence(name) == before
        assert scene.cordoned(name)
        assert len(scene.evicted()) == 1, "the other node waits for the slot"
        assert scene.events()["DrainHeld"] >= 1
        for pod in ("stays", "also"):
            scene.e.cluster.patch(PODS, pod, {"metadata": {"finalizers": None}}, "default")
        scene.e.cluster.delete(PODS, scene.evicted()[0], "default")
        await scene.ready(seconds=HOUR)


@virtually
async def test_lifting_the_cordon_gives_a_held_drain_up() -> None:
    async with open_scene(*nodes(1)) as scene:
        stays = gpu_pod("stays", "gpu-1", metadata={"finalizers": ["example.com/keep"]})
        scene.e.cluster.add(PODS, stays)
        await scene.reach(
            SLICED, drain={"unmanagedPods": "Evict", "timeout": "5m", "onTimeout": "Hold"}, reason="DrainHeld"
        )
        scene.cordon("gpu-1", on=False)
        await scene.released("gpu-1")
        transition = await scene.reason("gpu-1", "Deferred")
        assert "UncordonedExternally" in transition["message"]


HALF, SEVENTH = "nvidia.com/mig-3g.40gb", "nvidia.com/mig-1g.10gb"


def divided(last: dict[str, int], scope: str) -> JSON:
    layouts = [{"devices": [*range(7)], "profiles": {"3g.40gb": 2}}, {"devices": [7], "profiles": last}]
    drain = {"scope": scope, "strandedPods": "Allow"}
    return {"mode": "MIG", "mig": {"layouts": layouts}, "drain": drain, "rollout": {"maxUnavailable": 1}}


async def changed(scene: Scene, scope: str) -> tuple[set[str], set[str]]:
    """The pods before the last GPU of each node gets another layout, and those that are still there afterwards."""
    await scene.serve(divided({"1g.10gb": 7}, scope))
    await scene.e.until(lambda: len(running(scene)) == 30, "all pods to run")
    before = running(scene)
    await scene.serve(divided({"2g.20gb": 3}, scope))
    return before, running(scene)


def running(scene: Scene) -> set[str]:
    pods = scene.e.cluster.store.all(PODS)
    held = [pod for pod in pods if pod["metadata"]["namespace"] == "default"]
    return {pod["metadata"]["uid"] for pod in held if pod.get("status", {}).get("phase") == "Running"}


WORKLOADS = (SimWorkload("llm", 28, HALF), SimWorkload("small", 2, SEVENTH))


@pytest.mark.parametrize(("scope", "left"), [("Changed", 28), ("Node", 0)])
@virtually
async def test_pods_of_gpus_that_do_not_change_stay(scope: str, left: int) -> None:
    async with open_scene(*nodes(2, gpus=8), workloads=WORKLOADS) as scene:
        before, after = await changed(scene, scope)
        assert len(before & after) == left
        classes = {one["status"]["transition"].get("disruption") for one in scene.e.cluster.store.all(GPUNODES)}
        assert classes == {"None"}
