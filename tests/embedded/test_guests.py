"""Ampere cards in a virtual machine, which cannot reset them: the MIG mode stays pending until the node reboots."""

import asyncio
from pathlib import Path

from hack.sim.gpu import SimulatedGPUs
from tests.cli.asking import ask, install, written
from tests.embedded.scene import A100, FULL, H100, HOUR, MIXED, node, open_scene, policy
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_reruns import WITH_REBOOT
from tests.fakes.virtualtime import virtually

SETTING = 'WITH_REBOOT "true" in ClusterPolicy migManager.env'


def guest(product: str) -> dict[str, SimulatedGPUs]:
    """The hardware of a virtual machine gpu-1 with two GPUs passed through."""
    gpus = SimulatedGPUs("gpu-1", [product, product])
    gpus.is_guest = True
    return {"gpu-1": gpus}


@virtually
async def test_a_mode_that_a_virtual_machine_may_not_switch_is_told_before_and_named_after_the_failure(
    tmp_path: Path,
) -> None:
    async with open_scene(node("gpu-1", A100), hardware=guest(A100)) as scene:
        install(scene.e.cluster)
        await scene.serve(FULL)
        planned = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(MIXED)), width=2000)
        scene.apply(MIXED)
        await scene.phase("gpu-1", "Failed")
        await asyncio.sleep(300)
        failed = scene.transition("gpu-1")
    assert "a MIG mode change on gpu-1 may stay pending" in planned.out
    assert SETTING in planned.out
    assert "disruption class Reset" in planned.out
    assert SETTING in failed["message"]


@virtually
async def test_where_mig_manager_may_reboot_the_node_the_class_says_so_and_the_mode_is_switched(tmp_path: Path) -> None:
    async with open_scene(node("gpu-1", A100), hardware=guest(A100), cluster_policy=WITH_REBOOT) as scene:
        install(scene.e.cluster)
        await scene.serve(FULL)
        planned = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(MIXED)), width=2000)
        await scene.serve(MIXED, seconds=HOUR)
        assert_as_wanted(scene, MIXED, "gpu-1")
    assert "class Reboot" in planned.out
    assert "may stay pending" not in planned.out


@virtually
async def test_pass_through_alone_forbids_nothing(tmp_path: Path) -> None:
    async with open_scene(node("gpu-1", H100), hardware=guest(H100)) as scene:
        install(scene.e.cluster)
        await scene.serve(FULL)
        planned = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(MIXED)), width=2000)
        await scene.serve(MIXED)
        assert_as_wanted(scene, MIXED, "gpu-1")
    assert "may stay pending" not in planned.out
