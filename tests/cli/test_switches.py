"""What every verb says where the GPU Operator does not run what a mode needs (planning/stack/requirements.py)."""

import asyncio
from pathlib import Path

import pytest
from hack.embedded import CLUSTER_POLICY
from hack.sim.gpu import SimulatedGPUs
from hack.sim.workloads import SimWorkload
from tests.cli.asking import ask, install, written
from tests.embedded.scene import HOUR, L40S, SLICED, node, open_scene, policy
from tests.fakes.virtualtime import virtually

from gpusharing.agent.library import LibraryError
from gpusharing.kube.client import CLUSTER_POLICIES, JSON

OFF: dict[str, tuple[JSON, str, str]] = {
    "no device plugin": (
        {"devicePlugin": {"enabled": False}},
        "PluginDisabled",
        """-p '{"spec":{"devicePlugin":{"enabled":true}}}'""",
    ),
    "no GPU Feature Discovery": (
        {"gfd": {"enabled": False}},
        "FeatureDiscoveryDisabled",
        """-p '{"spec":{"gfd":{"enabled":true}}}'""",
    ),
}


@pytest.mark.parametrize(("spec", "reason", "command"), OFF.values(), ids=OFF.keys())
@virtually
async def test_without_a_program_that_every_mode_needs_no_pod_is_evicted_and_every_verb_says_so(
    spec: JSON, reason: str, command: str, tmp_path: Path
) -> None:
    """Project-HAMi/website#874: devicePlugin.enabled=false beside the plugin of HAMi."""
    async with open_scene(node("gpu-1", L40S), workloads=[SimWorkload("llm", 2)]) as scene:
        cluster = scene.e.cluster
        install(cluster)
        await scene.running("llm", 2)
        cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": spec})
        await asyncio.sleep(300)
        doctor = await ask(cluster, "doctor", "-o", "json")
        proposed = await ask(cluster, "import", "-o", "json")
        planned = await ask(cluster, "plan", "-f", written(tmp_path, policy(SLICED)))
        scene.apply(SLICED)
        row = await scene.until_condition("Accepted", "False", reason)
        await asyncio.sleep(600)
        assert not scene.evicted()
        assert not scene.node_writes()
    assert command in row["message"]
    assert [one["command"].endswith(command) for one in doctor.data["symptoms"] if one["reason"] == reason] == [True]
    assert reason in planned.out
    assert "pods that would be evicted" not in planned.out
    assert proposed.data["items"] == []


@virtually
async def test_a_host_with_its_own_driver_and_toolkit_is_served_as_any_other(tmp_path: Path) -> None:
    async with open_scene(node("gpu-1", L40S)) as scene:
        install(scene.e.cluster)
        hosted = {"driver": {"enabled": False}, "toolkit": {"enabled": False}}
        scene.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": hosted})
        await scene.serve(SLICED)
        doctor = await ask(scene.e.cluster, "doctor", "-o", "json")
    assert {one["reason"] for one in doctor.data["symptoms"]}.isdisjoint({"DriverDisabled", "ToolkitDisabled"})


@virtually
async def test_a_host_without_a_driver_is_refused_where_it_has_to_bring_one_and_served_once_it_does() -> None:
    gpus = SimulatedGPUs("gpu-1", [L40S, L40S])
    gpus.fail(LibraryError("the NVIDIA driver is not loaded on this node; look at the driver pod", "NVMLNotLoaded"))
    hosted = {**CLUSTER_POLICY, "spec": {**CLUSTER_POLICY["spec"], "driver": {"enabled": False}}}
    async with open_scene(node("gpu-1", L40S), hardware={"gpu-1": gpus}, cluster_policy=hosted) as scene:
        scene.apply(SLICED)
        row = await scene.until_condition("Accepted", "False", "DriverDisabled")
        assert not scene.node_writes()
        gpus.fail(None)
        await scene.ready(seconds=HOUR)
    assert """-p '{"spec":{"driver":{"enabled":true}}}'""" in row["message"]
