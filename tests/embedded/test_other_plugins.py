"""A node that the device plugin of somebody else serves is left alone. Status, plan and doctor name that plugin (its reason: vocabulary/reasons.py)."""

from pathlib import Path

import pytest
from tests.cli.asking import ask, install, written
from tests.embedded.scene import FULL, SLICED, Scene, gpu_pod, nodes, open_scene, policy
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import JSON, PODS

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
