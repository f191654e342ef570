"""What the agent may not see, cannot read or has to keep its hands off, and what the whole product makes of it."""

import asyncio

import pytest
from hack.sim.gpu import SimulatedGPUs
from tests.embedded.scene import FULL, MIXED, SLICED, Scene, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtually

from gpusharing.agent.library import LibraryError
from gpusharing.api import names
from gpusharing.kube.client import GPUNODES, JSON, POLICIES

LIMIT = 1200.0
"""Seconds after which a mig-manager that works is looked at."""


def gpus(scene: Scene, name: str = "gpu-1") -> SimulatedGPUs:
    return scene.e.software.nodes[name].gpus


def observed(scene: Scene, name: str = "gpu-1") -> JSON:
    found: JSON = scene.e.cluster.get(GPUNODES, name)["status"]["observed"]
    return found


def label(scene: Scene, **labels: str | None) -> None:
    scene.person("gpu-1", {"metadata": {"labels": labels}})


async def readings_in(scene: Scene, seconds: float) -> int:
    """How often the agent opens NVML in the next seconds."""
    before = gpus(scene).readings
    await asyncio.sleep(seconds)
    return gpus(scene).readings - before


# --- NVML stays closed -------------------------------------------------------------------------------------


@virtually
async def test_nvml_stays_closed_while_mig_manager_works_on_an_admins_own_label() -> None:
    async with open_scene(*nodes(1)) as scene:
        await asyncio.sleep(60)
        scene.e.software.inject("gpu-1", "wedge-pending")
        label(scene, **{names.LABEL_MIG_CONFIG: "all-1g.10gb"})
        await scene.e.until(lambda: scene.labels("gpu-1").get(names.LABEL_MIG_STATE) == "pending", "work", 60)
        await asyncio.sleep(60)
        assert observed(scene)["quiet"]
        assert await readings_in(scene, LIMIT - 180) == 0
        await asyncio.sleep(120)
        assert await readings_in(scene, 600) > 10  # whether that mig-manager is stuck, only a reading tells
        assert not observed(scene)["quiet"]


@virtually
async def test_nvml_stays_closed_while_a_driver_is_replaced_and_not_while_an_upgrade_waits() -> None:
    async with open_scene(*nodes(1), serving=SLICED) as scene:
        for state, closed in (
            ("upgrade-required", False),
            ("cordon-required", False),
            ("pod-deletion-required", True),
            ("drain-required", True),
            ("pod-restart-required", True),
            ("validation-required", False),
            ("upgrade-failed", False),
        ):
            label(scene, **{names.LABEL_UPGRADE_STATE: state})
            await asyncio.sleep(60)
            assert (await readings_in(scene, 600) == 0) is closed, state
            assert scene.transition("gpu-1")["reason"] in ("ForeignMaintenance", "Synced"), state
        label(scene, **{names.LABEL_UPGRADE_STATE: "upgrade-done"})
        await scene.ready()
        assert not scene.events()["NodeFailed"]


@virtually
async def test_a_short_run_of_mig_manager_is_told_once_and_nothing_is_put_right() -> None:
    async with open_scene(*nodes(1), serving=MIXED) as scene:
        mark = scene.mark()
        label(scene, **{names.LABEL_MIG_STATE: "pending"})
        await scene.reason("gpu-1", "ActuatorBusy")
        await asyncio.sleep(600)
        label(scene, **{names.LABEL_MIG_STATE: "success"})
        await scene.phase("gpu-1", "Synced", seconds=60)
        await asyncio.sleep(300)
        shown = [w for w in scene.writes(plural="gpunodes", since=mark) if "transition" in str(w.call.body)]
        assert len(shown) <= 3
        assert not scene.node_writes(mark)
        assert_as_wanted(scene, MIXED, "gpu-1")


# --- nobody can report -------------------------------------------------------------------------------------


@virtually
async def test_a_change_whose_gpunode_kind_is_deleted_names_it_and_ends_when_it_is_back() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        scene.e.software.inject("gpu-1", "wedge-pending")
        await scene.begin(MIXED, stage="actuating")
        await asyncio.sleep(5)
        scene.e.cluster.uninstall(GPUNODES)
        scene.e.cluster.delete(POLICIES, "pool-b")  # as with its CRD
        scene.e.software.inject("gpu-1", "unwedge")
        told = await scene.until_condition("Stalled", "True", "KindNotServed")
        assert "the API server does not serve gpunodes.gpusharing.dev" in told["message"]
        assert "--set crds.enabled=true" in told["message"]
        assert told["message"] in scene.e.policy("pool-b")["status"]["summary"]["message"]
        before = scene.mark()
        await asyncio.sleep(600)
        assert not scene.writes(before, "gpunodes"), "nothing is asked of a kind that is gone"
        assert scene.cordoned("gpu-1")
        scene.e.cluster.uninstalled.clear()
        await scene.released("gpu-1", seconds=60)
        assert_as_wanted(scene, MIXED, "gpu-1")
        await scene.e.until(lambda: not scene.e.cluster.objects(POLICIES), "the policy to go", 60)


@virtually
async def test_no_change_starts_while_the_gpunode_kind_is_gone() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        scene.e.cluster.uninstall(GPUNODES)
        scene.apply(MIXED)
        await scene.until_condition("Stalled", "True", "KindNotServed")
        assert not scene.cordoned("gpu-1")
        scene.e.cluster.uninstalled.clear()
        await scene.ready(seconds=600)


# --- what a container may not see --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"), [(FULL, MIXED), (MIXED, FULL)], ids=["that it could not prove", "that takes apart"]
)
@virtually
async def test_no_change_begins_of_divided_gpus_into_which_the_agent_cannot_look(before: JSON, after: JSON) -> None:
    async with open_scene(*nodes(1), serving=before) as scene:
        gpus(scene).contain(mig=False)
        await asyncio.sleep(60)
        assert {gpu["instancesWithheld"] for gpu in observed(scene)["gpus"]} == {True}
        transition = await scene.reach(after, reason="AgentLacksRights")
        assert transition["phase"] == "Blocked"
        await asyncio.sleep(3600)
        assert not scene.cordoned("gpu-1")
        gpus(scene).contain()
        await scene.ready(seconds=3600)
        assert_as_wanted(scene, after, "gpu-1")


@virtually
async def test_without_the_hosts_processes_no_gpu_is_ever_called_idle() -> None:
    async with open_scene(*nodes(1)) as scene:
        await asyncio.sleep(10)
        gpus(scene).contain(host_pid=False)
        await asyncio.sleep(60)
        await scene.reach(MIXED, drain={"timeout": "5m"}, reason="GPUStillBusy")
        await scene.reason("gpu-1", "Deferred", seconds=600)
        assert not scene.cordoned("gpu-1")
        gpus(scene).contain()
        await scene.ready(seconds=3600)


# --- what cannot be read -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [LibraryError("another driver", "NVMLReplaced"), LibraryError("Unknown Error", "NVMLAccessLost")],
    ids=["a new driver", "systemd"],
)
@virtually
async def test_an_agent_that_needs_a_new_container_says_why_and_gets_it(error: LibraryError) -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        gpus(scene).fail(error)
        await scene.reason("gpu-1", "AgentError")
        assert observed(scene)["error"] == f"{error.reason}: {error}"
        await asyncio.sleep(600)
        assert observed(scene)["error"] == f"{error.reason}: {error}"
        gpus(scene).fail(None)
        await scene.phase("gpu-1", "Synced")
        assert "error" not in observed(scene)


@virtually
async def test_a_sick_gpu_is_named_and_the_others_are_read() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        gpus(scene).lose(1, "Failed", "Insufficient External Power")
        transition = await scene.reason("gpu-1", "GPUUnhealthy")
        (condition,) = scene.e.cluster.get(GPUNODES, "gpu-1")["status"]["conditions"]
        assert condition["reason"] == "GPUUnreadable"
        assert condition["message"].startswith("GPU 1: NVML returns Insufficient External Power")
        gpus(scene).add_process(0, "python3", 4711)
        await scene.e.until(lambda: bool(observed(scene)["programs"]), "the other GPU", 120)
        assert transition["phase"] != "Failed"
        gpus(scene).lose(1, "Ok")
        gpus(scene).remove_process(4711)
        await scene.phase("gpu-1", "Synced")
