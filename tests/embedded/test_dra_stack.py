"""DRA with static partitions: ClusterPolicy without a device plugin, mig-manager, and NVIDIA's DRA driver (planning/stack/drastack.py, docs/adr/0078-dra-with-static-partitions.md)."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hack.cluster.nodes import LABEL_POOL
from hack.sim.dra import DRA_SET, LABEL_DRA
from hack.sim.fakefaults import EVER, SILENCE
from hack.sim.gpu import SimulatedGPUs
from hack.sim.gpuoperator import LABEL_DEPLOY_MIG_MANAGER
from hack.sim.workloads import SimWorkload
from tests import plainchart
from tests.cli.asking import ask, written
from tests.embedded.scene import (
    DRA_POLICY,
    FULL,
    H100,
    HOUR,
    MIXED,
    OTHER_MIXED,
    Scene,
    node,
    open_scene,
    pdb,
    policy,
)
from tests.fakes.virtualtime import virtually

from gpusharing.api.names import LABEL_GPU_PRESENT, LABEL_MANAGED_BY, MANAGED_BY
from gpusharing.kube.client import DAEMON_SETS, DEVICE_CLASSES, GPU_CLUSTERS, JSON, PODS, RESOURCE_SLICES
from gpusharing.kube.errors import Forbidden, Unavailable


def bare(name: str, **more: Any) -> JSON:
    return node(name, plugin=False, **more)


@asynccontextmanager
async def dra(*machines: JSON, **more: Any) -> AsyncIterator[Scene]:
    async with open_scene(*machines, cluster_policy=DRA_POLICY, sim={"dra": True}, **more) as scene:
        yield scene


def published(scene: Scene, name: str) -> Counter[str]:
    """What the driver publishes for a node: profiles, and `gpu` for whole GPUs."""
    slices = [raw for raw in scene.e.cluster.objects(RESOURCE_SLICES) if raw["spec"]["nodeName"] == name]
    return Counter(
        device["attributes"].get("profile", {"string": "gpu"})["string"]
        for raw in slices
        for device in raw["spec"]["devices"]
    )


def classes(scene: Scene) -> dict[str, str]:
    ours = scene.e.cluster.objects(DEVICE_CLASSES, label_selector=f"{LABEL_MANAGED_BY}={MANAGED_BY}")
    return {raw["metadata"]["name"]: raw["spec"]["extendedResourceName"] for raw in ours}


def stalled(scene: Scene, mark: int) -> list[str]:
    """The messages with which a policy was Stalled since then: GitOps tools give up at the first one."""
    bodies = (write.call.body or {} for write in scene.writes(mark, "gpusharingpolicies"))
    rows = (row for body in bodies for row in body.get("status", {}).get("conditions") or ())
    return [row["message"] for row in rows if (row["type"], row["status"]) == ("Stalled", "True")]


def plugin(scene: Scene, name: str) -> str:
    pods = scene.e.cluster.objects(PODS, label_selector=f"{LABEL_DRA}=kubelet-plugin")
    (pod,) = [raw for raw in pods if raw["spec"]["nodeName"] == name]
    return str(pod["metadata"]["uid"])


@virtually
async def test_a_pool_goes_to_mig_to_another_layout_and_back() -> None:
    async with dra(bare("gpu-1"), bare("gpu-2")) as scene:
        await scene.serve(FULL)
        assert classes(scene) == {}
        mark = scene.mark()
        for spec, wanted in ((MIXED, {"3g.40gb": 4}), (OTHER_MIXED, {"1g.10gb": 14}), (FULL, {"gpu": 2})):
            before = {name: plugin(scene, name) for name in ("gpu-1", "gpu-2")}
            await scene.serve(spec, seconds=1200)
            for name in ("gpu-1", "gpu-2"):
                assert published(scene, name) == wanted
                assert plugin(scene, name) != before[name]
                assert scene.labels(name)["gpusharing.dev/mode"] == spec["mode"].lower()
            resources = {f"gpusharing-mig-{one}": f"nvidia.com/mig-{one}" for one in wanted if one != "gpu"}
            assert classes(scene) == resources
        assert {one.rsplit("-", 1)[0] for one in scene.deleted()} == {DRA_SET}
        assert stalled(scene, mark) == [], "a class that the operator creates is nothing to act on"


@virtually
async def test_holders_of_claims_and_extended_resources_leave_within_their_budgets_and_a_cpu_pod_stays() -> None:
    workloads = (
        SimWorkload("old", 2),
        SimWorkload("claimed", 1, resource="", device_class="gpu.nvidia.com"),
        SimWorkload("cpu", 1, resource="", node_selector={"kubernetes.io/hostname": "gpu-1"}),
    )
    budget = pdb("old", "old", minAvailable=1)
    machines = [bare("gpu-1", gpus=4), bare("gpu-2", gpus=4, pool="spare")]
    async with dra(*machines, workloads=workloads, budgets=[budget]) as scene:
        for workload in workloads:
            await scene.running(workload.name, workload.replicas)
        assert {pod["spec"]["nodeName"] for pod in scene.pods("old")} == {"gpu-1"}
        (cpu,) = scene.pods("cpu")
        await scene.serve(MIXED, seconds=1800)
        assert Counter(name.rsplit("-", 1)[0] for name in scene.evicted()) == {"old": 2, "claimed": 1}
        assert [pod["metadata"]["uid"] for pod in scene.pods("cpu")] == [cpu["metadata"]["uid"]]
        scene.e.workloads.apply(SimWorkload("small", 2, resource="nvidia.com/mig-3g.40gb"))
        await scene.running("small", 2)
        assert {pod["spec"]["nodeName"] for pod in scene.pods("small")} == {"gpu-1"}
        scene.e.workloads.apply(SimWorkload("small", 0, resource="nvidia.com/mig-3g.40gb"))
        await scene.serve(FULL, drain={"strandedPods": "Allow"}, seconds=1800)
        assert scene.pods("small") == []
        assert published(scene, "gpu-1") == {"gpu": 4}


@virtually
async def test_a_pod_whose_claimed_device_nobody_would_publish_holds_its_node_and_is_named() -> None:
    claimed = SimWorkload("claimed", 1, resource="", device_class="gpu.nvidia.com")
    async with dra(bare("gpu-1"), workloads=[claimed]) as scene:
        await scene.running("claimed", 1)
        await scene.reach(MIXED, reason="StrandedPods")
        assert scene.evicted() == []
        assert not scene.cordoned("gpu-1")
        scene.e.workloads.apply(replace(claimed, replicas=0))
        (pod,) = scene.pods("claimed")
        scene.e.cluster.delete(PODS, pod["metadata"]["name"], "default")
        await scene.ready(seconds=1200)


@virtually
async def test_an_operator_that_dies_before_and_after_the_plugins_restart_is_followed_by_another() -> None:
    async with dra(bare("gpu-1")) as scene:
        await scene.begin(MIXED, stage="actuating")
        before = plugin(scene, "gpu-1")
        await scene.e.kill_operator()
        scene.e.start_operator()
        await scene.e.until(lambda: bool(scene.deleted()), "the restart of the kubelet plugin", 900)
        await scene.e.kill_operator()
        scene.e.start_operator()
        await scene.ready(seconds=1800)
        assert published(scene, "gpu-1") == {"3g.40gb": 4}
        assert plugin(scene, "gpu-1") != before
        assert len(scene.deleted()) == 1, "one restart is enough, whoever sees it"


def halves(profile: str) -> JSON:
    """A class of somebody else for halves of a GPU, which selects devices of this profile."""
    selector = {"cel": {"expression": f"device.attributes['gpu.nvidia.com'].profile == '{profile}'"}}
    spec = {"extendedResourceName": "nvidia.com/mig-3g.40gb", "selectors": [selector]}
    return {"metadata": {"name": "halves"}, "spec": spec}


@pytest.mark.parametrize("profile", ["3g.40gb", "7g.80gb"])
@virtually
async def test_a_deviceclass_of_somebody_else_is_left_alone_and_is_told_if_it_cannot_serve_the_pods(
    profile: str,
) -> None:
    async with dra(bare("gpu-1"), start=False) as scene:
        scene.e.cluster.add(DEVICE_CLASSES, halves(profile))
        scene.e.start_operator()
        await scene.serve(MIXED, seconds=1800)
        assert classes(scene) == {}
        scene.e.workloads.apply(SimWorkload("small", 1, resource="nvidia.com/mig-3g.40gb"))
        said = scene.condition("Accepted")["message"]
        if profile == "3g.40gb":
            assert "DeviceClass" not in said
            await scene.running("small", 1)
        else:
            assert "none of its selectors names the profile 3g.40gb" in said
            assert "kubectl get deviceclass halves -o yaml" in said
            scene.e.cluster.delete(DEVICE_CLASSES, "halves")
            await scene.running("small", 1)
            await asyncio.sleep(60)
            assert "DeviceClass" not in scene.condition("Accepted")["message"]


def alone(name: str) -> JSON:
    """A node to which neither the GPU Operator nor GPU Feature Discovery has given labels."""
    raw = bare(name)
    labels = raw["metadata"]["labels"]
    kept = (LABEL_GPU_PRESENT, LABEL_POOL, "kubernetes.io/")
    raw["metadata"]["labels"] = {key: value for key, value in labels.items() if key.startswith(kept)}
    raw["metadata"]["labels"][LABEL_DEPLOY_MIG_MANAGER] = "true"
    return raw


@pytest.mark.parametrize("gpu_cluster", [False, True], ids=["without the GPU Operator", "with a GPUCluster"])
@virtually
async def test_a_mig_manager_of_its_own_does_it_as_well(gpu_cluster: bool) -> None:
    async with open_scene(
        alone("gpu-1"),
        cluster_policy=None,
        sim={"dra": True, "plain_mig": "gpusharing-mig-parted"},
        hardware={"gpu-1": SimulatedGPUs("gpu-1", [H100] * 2)},
        start=False,
    ) as scene:
        scene.e.cluster.add(DAEMON_SETS, plainchart.mig_manager())
        if gpu_cluster:
            scene.e.cluster.add(GPU_CLUSTERS, {"metadata": {"name": "gpus"}})
        scene.e.start_operator()
        for spec, wanted in ((MIXED, {"3g.40gb": 4}), (FULL, {"gpu": 2})):
            await scene.serve(spec, seconds=1800)
            assert published(scene, "gpu-1") == wanted


@virtually
async def test_why_shows_a_pod_the_devices_that_the_driver_publishes_and_plan_what_a_change_takes_away(
    tmp_path: Path,
) -> None:
    async with dra(bare("gpu-1")) as scene:
        await scene.serve(MIXED, seconds=1800)
        scene.e.workloads.apply(SimWorkload("small", 1, resource="nvidia.com/mig-3g.40gb"))
        await scene.running("small", 1)
        cluster, (pod,) = scene.e.cluster, scene.pods("small")
        why = await ask(cluster, "why", f"default/{pod['metadata']['name']}")
        assert ["pool-b", "gpu-1", "nvidia.com/mig-3g.40gb", "4", "?", "4"] in [
            line.split()[:6] for line in why.out.splitlines()
        ]
        proof = await ask(cluster, "why", "gpu-1")
        assert "ResourceSlices" in proof.out
        plan = await ask(cluster, "plan", "-f", written(tmp_path, policy(FULL)))
        assert "nvidia.com/mig-3g.40gb: 4 -> 0 if the blocked nodes changed too" in plan.out
        allowed = policy({**FULL, "drain": {"strandedPods": "Allow"}})
        plan = await ask(cluster, "plan", "-f", written(tmp_path, allowed))
        assert "- nvidia.com/mig-3g.40gb: 4 -> 0" in plan.out
        assert "+ nvidia.com/gpu: 0 -> 2" in plan.out


@virtually
async def test_a_node_whose_kubelet_plugin_does_not_publish_fails_and_stays_fenced_until_it_does() -> None:
    async with dra(bare("gpu-1")) as scene:
        await scene.serve(FULL)
        refused = Unavailable("etcd has no leader")
        faults = [
            scene.e.cluster.faults.fail(verb, RESOURCE_SLICES, refused, times=EVER)
            for verb in ("create", "patch", "delete")
        ]
        failed = await scene.reach(MIXED, phase="Failed")
        assert failed["reason"] == "AllocatableMismatch"
        assert "show 1x full (2 GPUs) instead of 2x3g.40gb (2 GPUs)" in failed["message"]
        assert scene.cordoned("gpu-1")
        assert scene.condition("Ready")["status"] == "False"
        assert Counter(name.rsplit("-", 1)[0] for name in scene.deleted())[DRA_SET] == 3, "two more tries"
        for fault in faults:
            fault.lift()
        scene.annotate("gpu-1", retry="again")
        await scene.ready(seconds=HOUR)
        assert published(scene, "gpu-1") == {"3g.40gb": 4}


@pytest.mark.parametrize("stage", ["fenced", "actuating"])
@virtually
async def test_a_right_that_is_lost_in_the_middle_of_a_change_is_named_and_the_change_goes_on_with_it(
    stage: str,
) -> None:
    async with dra(bare("gpu-1")) as scene:
        scene.apply(MIXED)
        await scene.fenced("gpu-1", stage)
        refusal = Forbidden("not allowed to list resourceslices")
        faults = [scene.e.cluster.faults.fail(verb, RESOURCE_SLICES, refusal, times=EVER) for verb in ("list", "watch")]
        scene.e.cluster.close_watches()
        transition = await scene.reason("gpu-1", "UnsupportedStack")
        assert "this operator is not allowed to list resourceslices (chart value rbac.create)" in str(transition)
        for fault in faults:
            fault.lift()
        await scene.ready(seconds=HOUR)
        assert published(scene, "gpu-1") == {"3g.40gb": 4}


@virtually
async def test_while_the_watch_does_not_show_that_the_plugin_restarts_the_agent_is_asked_once_a_minute() -> None:
    async with dra(bare("gpu-1")) as scene:
        await scene.begin(MIXED, stage="actuating")
        silent = scene.e.cluster.faults.fail("watch", PODS, SILENCE, times=EVER, identity="operator")
        scene.e.cluster.close_watches()
        await scene.e.until(lambda: bool(scene.deleted()), "the restart of the kubelet plugin", 900)
        mark = scene.mark()
        await asyncio.sleep(100)
        requests = [write for write in scene.writes(mark, "gpunodes") if write.call.subresource is None]
        assert len(requests) <= 2
        silent.lift()
        scene.e.cluster.close_watches()
        await scene.ready(seconds=HOUR)
        assert len(scene.deleted()) == 1
