"""What the agent may not see, cannot read or has to keep its hands off, and what the whole product makes of it."""

import asyncio

import pytest
from hack.sim.gpu import SimulatedGPUs
from tests.embedded.scene import FULL, MIXED, SLICED, Scene, nodes, scene
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtually

from gpusharing.agent.library import AccessLost, LibraryError, Replaced
from gpusharing.api import names
from gpusharing.kube.client import GPUNODES, JSON

LIMIT = 1200.0
"""Seconds after which a mig-manager that works is looked at."""


def gpus(stage: Scene, name: str = "gpu-1") -> SimulatedGPUs:
    return stage.e.software.nodes[name].gpus


def observed(stage: Scene, name: str = "gpu-1") -> JSON:
    found: JSON = stage.e.cluster.get(GPUNODES, name)["status"]["observed"]
    return found


def label(stage: Scene, **labels: str | None) -> None:
    """What people and NVIDIA's software write on gpu-1."""
    stage.person("gpu-1", {"metadata": {"labels": labels}})


async def readings_in(stage: Scene, seconds: float) -> int:
    """How often the agent opens NVML in the next seconds."""
    before = gpus(stage).readings
    await asyncio.sleep(seconds)
    return gpus(stage).readings - before


# --- NVML stays closed -------------------------------------------------------------------------------------


@virtually
async def test_nvml_stays_closed_while_mig_manager_works_on_an_admins_own_label() -> None:
    async with scene(*nodes(1)) as stage:
        await asyncio.sleep(60)
        stage.e.software.inject("gpu-1", "wedge-pending")
        label(stage, **{names.LABEL_MIG_CONFIG: "all-1g.10gb"})
        await stage.e.until(lambda: stage.labels("gpu-1").get(names.LABEL_MIG_STATE) == "pending", "work", 60)
        await asyncio.sleep(60)
        assert observed(stage)["quiet"]
        assert await readings_in(stage, LIMIT - 180) == 0
        await asyncio.sleep(120)
        assert await readings_in(stage, 600) > 10  # whether that mig-manager is stuck, only a reading tells
        assert not observed(stage)["quiet"]


@virtually
async def test_nvml_stays_closed_while_a_driver_is_replaced_and_not_while_an_upgrade_waits() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(SLICED)
        await stage.ready()
        for state, closed in (
            ("upgrade-required", False),
            ("cordon-required", False),
            ("pod-deletion-required", True),
            ("drain-required", True),
            ("pod-restart-required", True),
            ("validation-required", False),
            ("upgrade-failed", False),
        ):
            label(stage, **{names.LABEL_UPGRADE_STATE: state})
            await asyncio.sleep(60)
            assert (await readings_in(stage, 3600) == 0) is closed, state
            assert stage.transition("gpu-1")["reason"] in ("ForeignMaintenance", "Synced"), state
        label(stage, **{names.LABEL_UPGRADE_STATE: "upgrade-done"})
        await stage.ready()
        assert not stage.events()["NodeFailed"]


@virtually
async def test_a_short_run_of_mig_manager_is_told_once_and_nothing_is_put_right() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED)
        await stage.ready()
        mark = stage.mark()
        label(stage, **{names.LABEL_MIG_STATE: "pending"})
        await stage.reason("gpu-1", "ActuatorBusy")
        await asyncio.sleep(600)
        label(stage, **{names.LABEL_MIG_STATE: "success"})
        await stage.phase("gpu-1", "Synced", seconds=60)
        await asyncio.sleep(300)
        shown = [w for w in stage.writes(plural="gpunodes", since=mark) if "transition" in str(w.call.body)]
        assert len(shown) <= 3
        assert not stage.node_writes(mark)
        assert_as_wanted(stage, MIXED, "gpu-1")


# --- what a container may not see --------------------------------------------------------------------------


@virtually
async def test_a_change_to_mig_that_the_agent_could_not_prove_does_not_begin() -> None:
    async with scene(*nodes(1)) as stage:
        await asyncio.sleep(10)
        gpus(stage).contain(mig=False)
        stage.apply(MIXED)
        transition = await stage.reason("gpu-1", "AgentLacksRights")
        assert transition["phase"] == "Blocked"
        await asyncio.sleep(3600)
        assert not stage.cordoned("gpu-1")
        gpus(stage).contain()
        await stage.ready(seconds=3600)
        assert_as_wanted(stage, MIXED, "gpu-1")


@virtually
async def test_a_divided_gpu_that_the_agent_cannot_look_into_is_not_taken_apart() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED)
        await stage.ready()
        gpus(stage).contain(mig=False)
        await asyncio.sleep(60)
        assert [model["memoryMiB"] for model in observed(stage)["models"]] == [None]
        stage.apply(FULL)
        transition = await stage.reason("gpu-1", "AgentLacksRights")
        assert transition["phase"] == "Blocked"
        await asyncio.sleep(3600)
        assert not stage.cordoned("gpu-1")
        gpus(stage).contain()
        await stage.ready(seconds=3600)
        assert_as_wanted(stage, FULL, "gpu-1")


@virtually
async def test_without_the_hosts_processes_no_gpu_is_ever_called_idle() -> None:
    async with scene(*nodes(1)) as stage:
        await asyncio.sleep(10)
        gpus(stage).contain(host_pid=False)
        await asyncio.sleep(60)
        stage.apply(MIXED, drain={"timeout": "5m"})
        await stage.reason("gpu-1", "GPUStillBusy")
        await stage.reason("gpu-1", "Deferred", seconds=600)
        assert not stage.cordoned("gpu-1")
        gpus(stage).contain()
        await stage.ready(seconds=3600)


# --- what cannot be read -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [Replaced("another driver"), AccessLost("Unknown Error")], ids=["a new driver", "systemd"]
)
@virtually
async def test_an_agent_that_needs_a_new_container_says_why_and_gets_it(error: LibraryError) -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(FULL)
        await stage.ready()
        gpus(stage).fail(error)
        await stage.reason("gpu-1", "AgentError")
        assert observed(stage)["error"] == f"{error.reason}: {error}"
        await asyncio.sleep(600)
        assert observed(stage)["error"] == f"{error.reason}: {error}"
        gpus(stage).fail(None)
        await stage.phase("gpu-1", "Synced")
        assert observed(stage)["error"] == ""


@virtually
async def test_a_sick_gpu_is_named_and_the_others_are_read() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(FULL)
        await stage.ready()
        gpus(stage).lose(1, "Failed", "Insufficient External Power")
        transition = await stage.reason("gpu-1", "GPUUnhealthy")
        (condition,) = stage.e.cluster.get(GPUNODES, "gpu-1")["status"]["conditions"]
        assert condition["reason"] == "GPUUnreadable"
        assert condition["message"].startswith("GPU 1: NVML answers Insufficient External Power")
        gpus(stage).add_process(0, "python3", 4711)
        await stage.e.until(lambda: bool(observed(stage)["gpus"][0]["processes"]), "the other GPU", 120)
        assert transition["phase"] != "Failed"
        gpus(stage).lose(1, "Ok")
        gpus(stage).remove_process(4711)
        await stage.phase("gpu-1", "Synced")
