"""A deploy label that keeps mig-manager off a node is named before any drain where MIG has to change, with the command that corrects it, and does not matter anywhere else (docs/design/nvidia.md#d2)."""

import asyncio

import pytest
from hack.sim.gpu import SimulatedGPUs
from hack.sim.workloads import SimWorkload
from tests.cli.asking import ask, install
from tests.cli.printed import CommandPlayer
from tests.embedded.scene import FULL, HOUR, MIXED, MPS, SLICED, Scene, nodes, open_scene
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.api.names import LABEL_MIG_CONFIG
from gpusharing.kube.client import JSON

OFF = "nvidia.com/gpu.deploy.mig-manager"
REMEDY = ". To correct that, run: "
ON_AGAIN = f"kubectl label node gpu-1 --overwrite {OFF}=true"


def switched_off(**labels: str) -> JSON:
    (node,) = nodes(1)
    node["metadata"]["labels"] |= {OFF: "false", **labels}
    return node


async def told(scene: Scene) -> str:
    await scene.e.until(lambda: REMEDY in scene.transition("gpu-1").get("message", ""), "the command", HOUR)
    transition = await scene.reason("gpu-1", "OperandsDisabled")
    message, _, command = transition["message"].partition(REMEDY)
    assert not lacks(message, OFF, "false", "mig-manager", "gpu-1")
    assert transition["waitingFor"] == "Person"
    symptoms = (await ask(scene.e.cluster, "doctor", "-o", "json")).data["symptoms"]
    assert [one["command"] for one in symptoms if one["reason"] == "OperandsDisabled"] == [command]
    return str(command)


@virtually
async def test_a_policy_that_wants_mig_waits_and_the_printed_command_ends_the_wait() -> None:
    async with open_scene(switched_off()) as scene:
        install(scene.e.cluster)
        scene.apply(MIXED)
        command = await told(scene)
        await asyncio.sleep(600)
        assert scene.node_writes() == {}
        assert scene.condition("Stalled")["status"] == "True"
        plan = (await ask(scene.e.cluster, "plan")).out
        assert "OperandsDisabled" in plan
        assert (await ask(scene.e.cluster, "why", "gpu-1")).out.count("until a person acts") == 1
        assert command == ON_AGAIN
        await CommandPlayer(scene).play(command)
        await scene.ready()


@virtually
async def test_its_start_leaves_the_gpus_as_they_are_whatever_the_nodes_label_says() -> None:
    trainer = SimWorkload("trainer", 1)
    async with open_scene(switched_off(**{LABEL_MIG_CONFIG: "all-1g.10gb"}), workloads=[trainer]) as scene:
        install(scene.e.cluster)
        scene.apply(MIXED, rollout={"paused": True}, drain={"strandedPods": "Allow"})
        await scene.running("trainer", 1)
        command = await told(scene)
        assert command == f"kubectl label node gpu-1 --overwrite {LABEL_MIG_CONFIG}=all-disabled && {ON_AGAIN}"
        await CommandPlayer(scene).play(command)
        assert not any(gpu.instances for gpu in scene.e.software.nodes["gpu-1"].gpus.look())
        await scene.running("trainer", 1)
        await scene.serve(MIXED, drain={"strandedPods": "Allow"})


@pytest.mark.parametrize("spec", [SLICED, MPS, FULL], ids=["time-slicing", "MPS", "whole GPUs"])
@virtually
async def test_without_mig_nothing_waits_for_mig_manager(spec: JSON) -> None:
    async with open_scene(switched_off()) as scene:
        install(scene.e.cluster)
        await scene.serve(spec)
        symptoms = (await ask(scene.e.cluster, "doctor", "-o", "json")).data["symptoms"]
        assert "OperandsDisabled" not in [one["reason"] for one in symptoms]
        scene.person("gpu-1", {"metadata": {"labels": {OFF: "true"}}})
        await asyncio.sleep(600)
        await scene.ready()
        scene.person("gpu-1", {"metadata": {"labels": {OFF: "false"}}})
        await scene.serve({**FULL, "mode": "Full"} if spec is not FULL else SLICED)


@pytest.mark.parametrize("spec", [SLICED, MPS], ids=["time-slicing", "MPS"])
@virtually
async def test_whoever_has_to_switch_mig_off_waits_for_mig_manager(spec: JSON) -> None:
    async with open_scene(*nodes(1)) as scene:
        install(scene.e.cluster)
        await scene.serve(MIXED)
        scene.person("gpu-1", {"metadata": {"labels": {OFF: "false"}}})
        mark = scene.mark()
        scene.apply(spec)
        command = await told(scene)
        assert scene.node_writes(mark) == {}
        await CommandPlayer(scene).play(command)
        await scene.ready()


@virtually
async def test_where_it_is_unknown_what_its_start_would_change_no_command_is_printed() -> None:
    hidden = {"gpu-1": SimulatedGPUs("gpu-1", ["NVIDIA-H100-80GB-HBM3"] * 2)}
    async with open_scene(switched_off(), hardware=hidden, sim={"agents": False}) as scene:
        install(scene.e.cluster)
        scene.apply(MIXED)
        transition = await scene.reason("gpu-1", "OperandsDisabled")
        symptoms = (await ask(scene.e.cluster, "doctor", "-o", "json")).data["symptoms"]
        (command,) = (one["command"] for one in symptoms if one["reason"] == "OperandsDisabled")
        assert command == f"kubectl get nodes -L {LABEL_MIG_CONFIG}"
        assert not lacks(transition["message"], "unknown", "mig-manager", "gpu-1")
        assert ON_AGAIN not in transition["message"]
