"""A failed driver upgrade of NVIDIA is a person's turn wherever the wait is shown, and the command that is printed ends it (stack/requirements.py, docs/design/nvidia.md#d4)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hack.embedded import CLUSTER_POLICY
from hack.sim.driverupgrade import DONE, DriverUpgrades
from hack.sim.workloads import SimWorkload
from tests.cli.asking import ask, install
from tests.cli.printed import CommandPlayer, commands_in
from tests.embedded.scene import FULL, HOUR, SLICED, Scene, at_once, nodes, open_scene
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.api.names import LABEL_UPGRADE_SKIP, LABEL_UPGRADE_STATE, UPGRADE_FAILED
from gpusharing.kube.client import NODES

STATE = f"{LABEL_UPGRADE_STATE}={UPGRADE_FAILED}"


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
