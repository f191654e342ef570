"""What a mode needs of NVIDIA's programs and does not get (planning/stack/requirements.py, docs/design/nvidia.md#d2, docs/design/nvidia.md#d4): what the GPU Operator does not run, a label that keeps mig-manager off a node, and a driver upgrade that failed. Every verb names it, and the command that is printed ends the wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hack.embedded import CLUSTER_POLICY
from hack.sim.driverupgrade import DONE, DriverUpgrades
from hack.sim.gpu import SimulatedGPUs
from hack.sim.workloads import SimWorkload
from tests.cli.asking import ask, install, written
from tests.cli.printed import CommandPlayer, commands_in
from tests.embedded.scene import FULL, HOUR, L40S, MIXED, MPS, SLICED, Scene, at_once, node, nodes, open_scene, policy
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.agent.library import LibraryError
from gpusharing.api.names import LABEL_MIG_CONFIG, LABEL_UPGRADE_SKIP, LABEL_UPGRADE_STATE, UPGRADE_FAILED
from gpusharing.kube.client import CLUSTER_POLICIES, JSON, NODES

# --- what the GPU Operator does not run -------------------------------------------------------------------------------

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


# --- a label that keeps mig-manager off a node ------------------------------------------------------------------------

DEPLOY = "nvidia.com/gpu.deploy.mig-manager"
REMEDY = ". To correct that, run: "
ON_AGAIN = f"kubectl label node gpu-1 --overwrite {DEPLOY}=true"


def switched_off(**labels: str) -> JSON:
    (node,) = nodes(1)
    node["metadata"]["labels"] |= {DEPLOY: "false", **labels}
    return node


async def told(scene: Scene) -> str:
    await scene.e.until(lambda: REMEDY in scene.transition("gpu-1").get("message", ""), "the command", HOUR)
    transition = await scene.reason("gpu-1", "OperandsDisabled")
    message, _, command = transition["message"].partition(REMEDY)
    assert not lacks(message, DEPLOY, "false", "mig-manager", "gpu-1")
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
        scene.person("gpu-1", {"metadata": {"labels": {DEPLOY: "true"}}})
        await asyncio.sleep(600)
        await scene.ready()
        scene.person("gpu-1", {"metadata": {"labels": {DEPLOY: "false"}}})
        await scene.serve({**FULL, "mode": "Full"} if spec is not FULL else SLICED)


@pytest.mark.parametrize("spec", [SLICED, MPS], ids=["time-slicing", "MPS"])
@virtually
async def test_whoever_has_to_switch_mig_off_waits_for_mig_manager(spec: JSON) -> None:
    async with open_scene(*nodes(1)) as scene:
        install(scene.e.cluster)
        await scene.serve(MIXED)
        scene.person("gpu-1", {"metadata": {"labels": {DEPLOY: "false"}}})
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


# --- a driver upgrade that failed -------------------------------------------------------------------------------------


@asynccontextmanager
async def failed(*, count: int = 1, **how: set[str]) -> AsyncIterator[tuple[Scene, DriverUpgrades]]:
    """The driver upgrade of gpu-1 has failed, and its policy changes after that."""
    trainer = SimWorkload("trainer", 1)
    async with open_scene(*nodes(count), workloads=[trainer]) as scene:
        install(scene.e.cluster)
        await scene.serve(FULL)
        upgrades = DriverUpgrades(scene.e.cluster, {"gpu-1"}, **how)
        async with asyncio.TaskGroup() as group:
            playing = group.create_task(upgrades.run())
            await scene.e.until(lambda: state(scene) == UPGRADE_FAILED, "the failure", HOUR)
            scene.apply(SLICED)
            yield scene, upgrades
            playing.cancel()


def state(scene: Scene) -> str:
    return scene.labels("gpu-1").get(LABEL_UPGRADE_STATE, "")


def command_in(message: str) -> str:
    (found,) = (one for one in commands_in(message) if not one.startswith("kubectl get "))
    return found


async def answers(scene: Scene, *words: str) -> Any:
    return (await ask(scene.e.cluster, *words, "-o", "json")).data


@virtually
async def test_after_pods_that_could_not_be_deleted_the_printed_command_starts_it_again() -> None:
    async with failed(held={"gpu-1"}) as (scene, upgrades):
        told = await scene.reason("gpu-1", "DriverUpgradeFailed")
        await asyncio.sleep(HOUR)
        assert (told["waitingFor"], told["culprit"]) == ("Person", "NVIDIA driver upgrade")
        assert scene.condition("Stalled")["status"] == "True"
        upgrades.held.clear()
        await CommandPlayer(scene).play(command_in(told["message"]))
        await scene.ready()
        assert state(scene) == DONE
        assert not scene.cordoned("gpu-1")


@virtually
async def test_a_mark_that_keeps_the_upgrade_out_goes_by_the_same_command() -> None:
    async with failed(held={"gpu-1"}) as (scene, upgrades):
        scene.person("gpu-1", {"metadata": {"labels": {LABEL_UPGRADE_SKIP: "true"}}})
        await scene.e.until(lambda: LABEL_UPGRADE_SKIP in scene.transition("gpu-1").get("message", ""), "it", HOUR)
        upgrades.held.clear()
        await CommandPlayer(scene).play(command_in(scene.transition("gpu-1")["message"]))
        assert state(scene) == DONE


@virtually
async def test_a_driver_pod_that_was_repaired_needs_no_command() -> None:
    async with failed(broken={"gpu-1"}) as (scene, upgrades):
        told = await scene.reason("gpu-1", "DriverUpgradeFailed")
        assert "kubectl get pods -A -l app.kubernetes.io/component=nvidia-driver" in told["message"]
        upgrades.broken.clear()
        await scene.ready()
        assert state(scene) == DONE


@virtually
async def test_the_slot_of_a_node_that_was_left_to_a_failed_upgrade_waits_for_a_person() -> None:
    async with open_scene(*nodes(2)) as scene:
        scene.apply(SLICED, rollout=at_once(1))
        name = await scene.any_fenced()
        scene.person(name, {"metadata": {"labels": {LABEL_UPGRADE_STATE: UPGRADE_FAILED}}})
        told = await scene.reason(name, "DriverUpgradeFailed")
        assert not lacks(told["message"], "uncordons", "driver upgrade")
        (other,) = {"gpu-1", "gpu-2"} - {name}
        assert (await scene.reason(other, "BudgetFull"))["waitingFor"] == "Person"


DRIVERLESS: dict[str, tuple[Any, dict[str, str]]] = {
    "ClusterPolicy installs none": ({"driver": {"enabled": False}}, {}),
    "the host has its own": ({}, {"nvidia.com/gpu.deploy.driver": "pre-installed"}),
}


@pytest.mark.parametrize(("spec", "labels"), DRIVERLESS.values(), ids=DRIVERLESS)
@virtually
async def test_where_no_driver_pod_runs_that_could_end_it_the_label_is_removed(
    spec: Any, labels: dict[str, str]
) -> None:
    cluster_policy = {**CLUSTER_POLICY, "spec": {**CLUSTER_POLICY["spec"], **spec}}
    async with open_scene(*nodes(1), cluster_policy=cluster_policy) as scene:
        scene.person("gpu-1", {"metadata": {"labels": {**labels, LABEL_UPGRADE_STATE: UPGRADE_FAILED}}})
        scene.apply(SLICED)
        told = await scene.reason("gpu-1", "DriverUpgradeFailed")
        assert command_in(told["message"]) == f"kubectl label node gpu-1 {LABEL_UPGRADE_STATE}-"
        await CommandPlayer(scene).play(command_in(told["message"]))
        await scene.ready()


@virtually
async def test_every_verb_says_that_a_person_is_needed_whatever_the_other_nodes_do() -> None:
    async with failed(count=2, held={"gpu-1"}) as (scene, _):
        await scene.until_condition("Stalled", "True", "DriverUpgradeFailed")
        why = (await ask(scene.e.cluster, "why", "gpu-1")).out
        assert "until a person acts" in why
        assert "NVIDIA's driver upgrade failed on gpu-1" in why
        (pool,) = (await answers(scene, "status"))["pools"]
        assert pool["status"] == "DriverUpgradeFailed"
        assert ("blocked", "Person") in [(one["state"], one["waitingFor"]) for one in pool["members"]]
        plan = (await ask(scene.e.cluster, "plan")).out
        assert "DriverUpgradeFailed" in plan
        symptoms = [one for one in (await answers(scene, "doctor"))["symptoms"] if "Upgrade" in one["reason"]]
        assert [(one["reason"], one["severity"]) for one in symptoms] == [("DriverUpgradeFailed", "ERROR")]
        assert symptoms[0]["command"] == (
            f"kubectl label node gpu-1 --overwrite {LABEL_UPGRADE_STATE}=upgrade-required"
        )
        assert scene.e.cluster.get(NODES, "gpu-1")["spec"]["unschedulable"]
