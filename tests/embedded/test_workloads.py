"""Who leaves how: rules of the policy by namespace and label, jobs that may end first, and the clocks of both."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hack.sim.workloads import Workload
from tests.embedded.scene import HOUR, SLICED, Scene, gpu_pod, nodes, scene
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.kube.client import JSON, NAMESPACES, PODS

JOB = {"apiVersion": "batch/v1", "kind": "Job", "name": "train", "uid": "job", "controller": True}


def trainer(name: str = "train-0", **metadata: Any) -> JSON:
    """A pod of a Job on gpu-1."""
    return gpu_pod(
        name, "gpu-1", metadata={"ownerReferences": [JOB], **metadata}, spec={"restartPolicy": "Never"}
    )


def end(stage: Scene, name: str = "train-0") -> None:
    """Its containers have ended well."""
    stage.e.cluster.patch(PODS, name, {"status": {"phase": "Succeeded"}}, "default", subresource="status")


@virtually
async def test_a_job_ends_on_the_cordoned_node_before_anybody_is_evicted() -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.add(PODS, trainer())
        stage.e.cluster.add(PODS, gpu_pod("alone", "gpu-1"))
        stage.apply(SLICED, drain={"unmanagedPods": "Evict", "timeout": "5m"})
        transition = await stage.phase("gpu-1", "WaitingForJobs")
        fence = stage.fence("gpu-1")
        assert fence is not None
        assert stage.cordoned("gpu-1")
        transition = await stage.reason("gpu-1", "JobsRunning")
        assert transition["culprit"] == "default/train-0"
        await stage.e.until(
            lambda: bool((now := stage.fence("gpu-1")) and now.jobs), "the clock of the jobs", 60
        )
        fence = stage.fence("gpu-1")
        assert fence is not None
        assert fence.deadline == fence.since + timedelta(hours=1)
        await stage.e.until(
            lambda: stage.transition("gpu-1")["deadline"] == f"{fence.deadline:%H:%M:%SZ}", "the deadline", 60
        )
        await asyncio.sleep(1800)
        assert stage.evicted() == []
        end(stage)
        await stage.ready()
        assert stage.evicted() == ["alone"]
        assert stage.events()["WaitingForJobs"] == 1


@virtually
async def test_after_the_jobs_the_drain_has_all_of_its_own_time() -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.add(PODS, trainer())
        stays = gpu_pod("stays", "gpu-1", metadata={"finalizers": ["example.com/keep"]})
        stage.e.cluster.add(PODS, stays)
        stage.apply(SLICED, drain={"unmanagedPods": "Evict", "timeout": "5m"})
        await stage.phase("gpu-1", "WaitingForJobs")
        await asyncio.sleep(3000)
        end(stage)
        ended = virtual_now()
        await stage.phase("gpu-1", "Draining")
        fence = stage.fence("gpu-1")
        assert fence is not None
        assert not fence.jobs
        assert timedelta(0) <= fence.deadline - timedelta(minutes=5) - ended <= timedelta(seconds=25)
        await stage.released("gpu-1")
        assert fence.deadline <= virtual_now() <= fence.deadline + timedelta(seconds=10)


@virtually
async def test_a_job_that_does_not_end_in_time_goes_on_and_the_node_is_restored() -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.add(PODS, trainer())
        stage.apply(SLICED, drain={"jobs": {"timeout": "30m"}})
        fence = await stage.fenced("gpu-1")
        await stage.released("gpu-1")
        assert timedelta(minutes=30) <= virtual_now() - fence.since <= timedelta(minutes=31)
        assert not stage.cordoned("gpu-1")
        transition = await stage.reason("gpu-1", "Deferred")
        assert "JobsTimeout" in transition["message"]
        assert stage.evicted() == []
        end(stage)
        await stage.ready(seconds=HOUR)


@virtually
async def test_a_job_that_does_not_end_in_time_is_evicted_when_the_policy_says_so() -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.add(PODS, trainer())
        stage.apply(SLICED, drain={"jobs": {"timeout": "30m", "onTimeout": "Evict"}})
        fence = await stage.fenced("gpu-1")
        await stage.e.until(lambda: stage.evicted() == ["train-0"], "the eviction", HOUR)
        assert timedelta(minutes=30) <= virtual_now() - fence.since <= timedelta(minutes=31)
        await stage.ready()


@virtually
async def test_a_job_is_waited_for_without_an_end_until_the_policy_names_one() -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.add(PODS, trainer())
        stage.apply(SLICED, drain={"jobs": {"timeout": "Never"}})
        await stage.reason("gpu-1", "JobsRunning")
        await asyncio.sleep(3 * HOUR)
        assert stage.cordoned("gpu-1")
        assert stage.evicted() == []
        assert stage.transition("gpu-1")["deadline"] == "others", "the job itself"
        assert stage.transition("gpu-1")["phase"] == "WaitingForJobs"
        stage.apply(SLICED, drain={"jobs": {"timeout": "2h"}})
        await stage.released("gpu-1")
        assert not stage.cordoned("gpu-1")
        end(stage)
        await stage.ready(seconds=HOUR)


@virtually
async def test_a_pause_does_not_keep_a_node_cordoned_whose_jobs_ended_meanwhile() -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.add(PODS, trainer())
        drain = {"jobs": {"timeout": "Never"}, "timeout": "10m"}
        stage.apply(SLICED, drain=drain)
        await stage.reason("gpu-1", "JobsRunning")
        stage.apply(SLICED, drain=drain, rollout={"paused": True, "whenPaused": "Hold"})
        await stage.reason("gpu-1", "Paused")
        await asyncio.sleep(3 * HOUR)
        assert stage.cordoned("gpu-1"), "they still run"
        end(stage)
        ended = virtual_now()
        await stage.released("gpu-1")
        assert timedelta(minutes=10) <= virtual_now() - ended <= timedelta(minutes=11)
        assert not stage.cordoned("gpu-1")
        assert stage.evicted() == []


@pytest.mark.parametrize("down", [60, 4000], ids=["for a minute", "past the deadline"])
@virtually
async def test_an_operator_that_was_away_while_jobs_ran_goes_on_where_it_stood(down: int) -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.add(PODS, trainer())
        stage.apply(SLICED)
        await stage.phase("gpu-1", "WaitingForJobs")
        await stage.e.until(
            lambda: bool((now := stage.fence("gpu-1")) and now.jobs), "the clock of the jobs", 60
        )
        before = stage.fence("gpu-1")
        await stage.e.kill_operator()
        await asyncio.sleep(down)
        if down > HOUR:
            end(stage)
        stage.e.start_operator()
        if down < HOUR:
            await asyncio.sleep(60)
            assert stage.fence("gpu-1") == before
            end(stage)
        await stage.ready(seconds=HOUR)
        assert stage.evicted() == []
        assert stage.events()["ChangeGivenUp"] == 0, "what is there counts more than the clock"


@virtually
async def test_rules_by_namespace_and_label_decide_and_what_they_block_is_named_with_the_rule() -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.add(NAMESPACES, {"metadata": {"name": "default", "labels": {"team": "a"}}})
        stage.e.cluster.add(PODS, gpu_pod("kept", "gpu-1", metadata={"labels": {"tier": "prod"}}))
        rules: list[JSON] = [
            {"behavior": "Evict", "namespaceSelector": {"matchLabels": {"team": "b"}}},
            {"behavior": "Block", "podSelector": {"matchLabels": {"tier": "prod"}}},
        ]
        stage.apply(SLICED, drain={"rules": rules})
        transition = await stage.reason("gpu-1", "RuleBlocks")
        assert "spec.drain.rules[1] says Block" in transition["blockers"][0]
        assert transition["culprit"] == "default/kept"
        assert not stage.cordoned("gpu-1")
        rules[0]["namespaceSelector"] = {"matchLabels": {"team": "a"}}
        stage.apply(SLICED, drain={"rules": rules})
        await stage.ready()
        assert stage.evicted() == ["kept"]


@virtually
async def test_a_namespace_that_nobody_can_read_keeps_its_pods_and_the_other_policies_go_on() -> None:
    async with scene(*nodes(2)) as stage:
        stage.e.cluster.add(PODS, gpu_pod("lost", "gpu-1"))
        rule = {"behavior": "Evict", "namespaceSelector": {"matchLabels": {"team": "a"}}}
        stage.apply(SLICED, drain={"rules": [rule]})
        transition = await stage.reason("gpu-1", "NamespaceUnreadable")
        assert "namespace default" in transition["blockers"][0]
        assert not stage.cordoned("gpu-1")
        await stage.phase("gpu-2", "Synced")
        stage.e.cluster.add(NAMESPACES, {"metadata": {"name": "default", "labels": {"team": "a"}}})
        await stage.ready()


@virtually
async def test_namespaces_are_read_only_where_a_rule_asks_for_them() -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.add(PODS, gpu_pod("alone", "gpu-1"))
        rule = {"behavior": "Evict", "podSelector": {"matchLabels": {}}}
        stage.apply(SLICED, drain={"rules": [rule]})
        await stage.ready()
        assert stage.evicted() == ["alone"]
        assert stage.e.cluster.calls["operator", "get", "namespaces"] == 0


@virtually
async def test_pods_of_a_lower_order_are_gone_before_the_next_are_asked() -> None:
    async with scene(*nodes(1), workloads=[Workload("llm", 1)]) as stage:
        await stage.running("llm", 1)
        stage.e.cluster.add(PODS, gpu_pod("early", "gpu-1", metadata={"labels": {"first": "yes"}}))
        rule = {"behavior": "Evict", "podSelector": {"matchLabels": {"first": "yes"}}, "order": -1}
        stage.apply(SLICED, drain={"rules": [rule]})
        await stage.e.until(lambda: stage.evicted() == ["early"], "the first eviction", HOUR)
        begun = virtual_now()
        await stage.e.until(lambda: len(stage.evicted()) == 2, "the second eviction", HOUR)
        assert virtual_now() - begun >= timedelta(seconds=30), "the grace period of the first"
        await stage.ready()


@virtually
async def test_files_on_the_node_keep_a_pod_only_where_the_policy_says_so() -> None:
    async with scene(*nodes(1)) as stage:
        volumes = [{"name": "shm", "emptyDir": {"medium": "Memory"}}, {"name": "scratch", "emptyDir": {}}]
        stage.e.cluster.add(PODS, gpu_pod("scratch", "gpu-1", spec={"volumes": volumes}))
        stage.apply(SLICED, drain={"unmanagedPods": "Evict", "localStorage": "Block"})
        transition = await stage.reason("gpu-1", "LocalStorage")
        assert transition["culprit"] == "default/scratch"
        assert not stage.cordoned("gpu-1")
        stage.apply(SLICED, drain={"unmanagedPods": "Evict"})
        await stage.ready()
        assert stage.evicted() == ["scratch"]


@virtually
async def test_a_drain_that_is_held_past_its_time_keeps_cordon_and_slot_says_so_and_goes_on() -> None:
    async with scene(*nodes(2)) as stage:
        stays = gpu_pod("stays", "gpu-1", metadata={"finalizers": ["example.com/keep"]})
        stage.e.cluster.add(PODS, stays)
        more = gpu_pod("also", "gpu-2", metadata={"finalizers": ["example.com/keep"]})
        stage.e.cluster.add(PODS, more)
        stage.apply(SLICED, drain={"unmanagedPods": "Evict", "timeout": "5m", "onTimeout": "Hold"})
        name = await stage.any_fenced()
        before = stage.fence(name)
        transition = await stage.reason(name, "DrainHeld")
        assert before is not None
        assert virtual_now() >= before.deadline
        assert transition["phase"] == "Draining"
        assert "drain.onTimeout is Hold" in transition["message"]
        assert transition["deadline"] == "person", "the time is over"
        await stage.e.kill_operator()
        stage.e.start_operator()
        await asyncio.sleep(3 * HOUR)
        assert stage.fence(name) == before
        assert stage.cordoned(name)
        assert len(stage.evicted()) == 1, "the other node waits for the slot"
        assert stage.events()["DrainHeld"] >= 1
        for pod in ("stays", "also"):
            stage.e.cluster.patch(PODS, pod, {"metadata": {"finalizers": None}}, "default")
        stage.e.cluster.delete(PODS, stage.evicted()[0], "default")
        await stage.ready(seconds=HOUR)


@virtually
async def test_lifting_the_cordon_gives_a_held_drain_up() -> None:
    async with scene(*nodes(1)) as stage:
        stays = gpu_pod("stays", "gpu-1", metadata={"finalizers": ["example.com/keep"]})
        stage.e.cluster.add(PODS, stays)
        stage.apply(SLICED, drain={"unmanagedPods": "Evict", "timeout": "5m", "onTimeout": "Hold"})
        await stage.reason("gpu-1", "DrainHeld")
        stage.cordon("gpu-1", on=False)
        await stage.released("gpu-1")
        transition = await stage.reason("gpu-1", "Deferred")
        assert "UncordonedExternally" in transition["message"]
