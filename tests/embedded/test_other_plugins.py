"""A node that somebody else's device plugin serves, or whose label another controller sets, is left alone. Status, plan and doctor name them (vocabulary/reasons.py)."""

import asyncio
from pathlib import Path

import pytest
from tests.cli.asking import ask, install, operated, written
from tests.embedded.scene import A100, FULL, MIXED, SLICED, Scene, gpu_pod, nodes, open_scene, policy
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_drift import adopted
from tests.fakes.virtualtime import virtually

from gpusharing.api.names import LABEL_MIG_CONFIG
from gpusharing.kube.client import JSON, PODS
from kubectl_gpusharing.shell.troubles import CHANGES

HAMI = "hami.io/node-nvidia-register"
MARKS: dict[str, tuple[JSON, str]] = {
    "HAMi's annotation": ({"annotations": {HAMI: '[{"id":"GPU-0","count":10}]'}}, "HAMi's device plugin"),
    "a label of GKE": ({"labels": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}}, "GKE's own device plugin"),
}


def mark(scene: Scene, metadata: JSON) -> None:
    scene.person("gpu-1", {"metadata": metadata})


@pytest.mark.parametrize(("metadata", "plugin"), MARKS.values(), ids=MARKS.keys())
@virtually
async def test_a_node_of_another_device_plugin_is_left_alone_until_it_is_handed_over(
    metadata: JSON, plugin: str
) -> None:
    async with open_scene(*nodes(2), serving=FULL) as scene:
        mark(scene, metadata)
        scene.e.cluster.add(PODS, gpu_pod("alone", "gpu-1"))
        since = scene.mark()
        transition = await scene.reach(SLICED, drain={"unmanagedPods": "Evict"}, reason="ForeignDevicePlugin")
        assert transition["phase"] == "Blocked"
        assert transition["message"].startswith(f"{plugin} serves the GPUs on gpu-1 (")
        await scene.phase("gpu-2", "Synced")
        assert scene.node_writes(since)["gpu-1"] == 0
        assert scene.evicted() == []
        mark(scene, {kind: dict.fromkeys(keys) for kind, keys in metadata.items()})
        await scene.ready()
        assert scene.evicted() == ["alone"]


@virtually
async def test_plan_status_and_doctor_name_the_other_device_plugin(tmp_path: Path) -> None:
    async with open_scene(*nodes(2)) as scene:
        install(scene.e.cluster)
        await scene.serve(FULL)
        mark(scene, MARKS["HAMi's annotation"][0])
        cluster = scene.e.cluster
        plan = await ask(cluster, "plan", "-f", written(tmp_path, policy(SLICED)))
        await scene.reach(SLICED, reason="ForeignDevicePlugin")
        status = await ask(cluster, "status")
        doctor = await ask(cluster, "doctor", "-o", "json")
    assert "Blocked: ForeignDevicePlugin" in plan.out
    assert "gpu-1: HAMi's device plugin serves the GPUs on gpu-1" in status.out
    (found,) = [one for one in doctor.data["symptoms"] if one["reason"] == "ForeignDevicePlugin"]
    assert found["severity"] == "ERROR"
    assert f"kubectl annotate node gpu-1 {HAMI}-" in found["message"]


@virtually
async def test_a_pod_that_asks_for_what_only_hami_serves_is_told_so() -> None:
    async with open_scene(*nodes(2)) as scene:
        install(scene.e.cluster)
        await scene.serve(FULL)
        asked = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "3000", "nvidia.com/gpucores": "30"}
        pod = gpu_pod("hami", "", spec={"containers": [{"name": "main", "resources": {"limits": asked}}]})
        del pod["spec"]["nodeName"]
        scene.e.cluster.add(PODS, {**pod, "status": {"phase": "Pending"}})
        told = await ask(scene.e.cluster, "why", "default/hami")
    assert (
        "nvidia.com/gpucores, nvidia.com/gpumem: only HAMi's device plugin serves this, and it serves no node here"
        in " ".join(told.out.split())
    )


SEVENTHS: JSON = {"mode": "MIG", "mig": {"strategy": "mixed", "config": "all-1g.10gb"}}
LISTS = "nfd.node.kubernetes.io/feature-labels"
TOLD = f"Node Feature Discovery manages it (annotation {LISTS}) and restores its own value; remove it from the"


def rule(scene: Scene, value: str | None) -> None:
    """nfd-master carries out a NodeFeatureRule that sets mig.config to this value, or removes it with its rule."""
    listed = "cpu-model.vendor_id" if value is None else f"cpu-model.vendor_id,{LABEL_MIG_CONFIG}"
    metadata = {"annotations": {LISTS: listed}, "labels": {LABEL_MIG_CONFIG: value}}
    scene.person("gpu-1", {"metadata": metadata})


@virtually
async def test_a_node_whose_label_a_node_feature_rule_sets_is_left_alone_until_the_rule_is_gone(tmp_path: Path) -> None:
    async with operated(1) as scene:
        cluster = scene.e.cluster
        rule(scene, "all-1g.10gb")
        await scene.serve(SEVENTHS)
        told = await ask(cluster, "doctor", "-o", "json")
        (owned,) = (one for one in told.data["symptoms"] if one["reason"] == "LabelOwnedElsewhere")
        assert owned["severity"] == "WARNING"
        assert owned["message"].startswith(f"the operator does not change label {LABEL_MIG_CONFIG} on gpu-1: {TOLD}")
        plan = await ask(cluster, "plan", "-f", written(tmp_path, policy(MIXED)))
        assert plan.status == CHANGES
        assert "Blocked: LabelOwnedElsewhere" in plan.out
        assert TOLD in " ".join(plan.out.split())
        since = scene.mark()
        transition = await scene.reach(MIXED, reason="LabelOwnedElsewhere")
        assert transition["phase"] == "Blocked"
        await scene.until_condition("Stalled", "True", "Blocked")
        await asyncio.sleep(3600)
        assert (scene.node_writes(since)["gpu-1"], scene.cordoned("gpu-1")) == (0, False)
        why = await ask(cluster, "why", "gpu-1")
        assert TOLD in " ".join(why.out.split())
        rule(scene, None)
        await scene.ready()
        assert scene.labels("gpu-1")[LABEL_MIG_CONFIG].startswith("pool-b-")


@virtually
async def test_whoever_set_the_label_before_the_node_was_adopted_has_replaced_nothing_of_ours() -> None:
    async with adopted("Terraform") as scene:
        await scene.serve(FULL)
        assert_as_wanted(scene, FULL, "gpu-1")


@virtually
async def test_instances_of_an_unknown_divider_beside_its_pod_stay_until_a_person_decides() -> None:
    """As a controller makes them that creates instances for each pod, under whatever name."""
    async with open_scene(*nodes(1, A100), start=False) as scene:
        await asyncio.sleep(200)
        gpus = scene.e.software.nodes["gpu-1"].gpus
        for index in range(2):
            gpus.set_mig_mode(index, True)
        gpus.reset(0, 1)
        for _ in range(3):
            gpus.create(0, "1g.10gb")
        limits = {"slices.example.com/1g.10gb": "1"}
        pod = gpu_pod("sliced", "gpu-1", spec={"containers": [{"name": "main", "resources": {"limits": limits}}]})
        scene.e.cluster.add(PODS, pod)
        scene.e.start_operator()
        shown = await scene.reach(MIXED, reason="DividedElsewhere")
        assert shown["phase"] == "Blocked"
        assert "default/sliced" in shown["message"]
        command = "kubectl annotate gpunode gpu-1 --overwrite gpusharing.dev/retry=again"
        assert command in shown["message"]
        since = scene.mark()
        await asyncio.sleep(1800)
        assert not scene.cordoned("gpu-1")
        assert scene.node_writes(since)["gpu-1"] == 0
        assert [len(gpu.instances) for gpu in gpus.look()] == [3, 0]
        scene.request("gpu-1", retry="again")
        await scene.ready(seconds=3600)
        assert [len(gpu.instances) for gpu in gpus.look()] == [2, 2]
