"""Bad hardware and drivers, unhealthy GPUs and virtual machines get a named reason with what to do, and nothing is touched.
docs/reference/bad-input.md tells people of each of them."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
from hack.sim.gpu import SimulatedGPUs
from tests.cli.asking import ask, install, written
from tests.embedded.scene import (
    A100,
    FULL,
    H100,
    HOUR,
    MIXED,
    SLICED,
    WITH_REBOOT,
    Scene,
    node,
    nodes,
    open_scene,
    policy,
)
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import GPUNODES, JSON

NODE = "gpu-1"


@dataclass(frozen=True)
class Refusal:
    """What is wrong with a node that was Full and whole, and what people read when they ask for something else."""

    fault: str
    wanted: JSON
    phase: str
    reason: str
    words: tuple[str, ...]


REFUSED: dict[str, Refusal] = {
    "an unknown model whose driver lists no profiles": Refusal(
        "unknown-card",
        MIXED,
        "Skipped",
        "HardwareUnknown",
        ("NVIDIA X9000 96GB", "neither the driver nor the operator's table"),
    ),
    "a layout that the card cannot take though our table says so": Refusal(
        "other-profiles", MIXED, "Skipped", "LayoutDoesNotFit", ("3g.40gb", "does not fit")
    ),
    "NVML is missing": Refusal("no-nvml", MIXED, "Blocked", "AgentError", ("libnvidia-ml.so.1", "runtime class")),
    "two models in a node, one of them without MIG": Refusal(
        "second-model", MIXED, "Skipped", "NotMigCapable", ("NVIDIA L40S does not support MIG", "TimeSlicing or Full")
    ),
    "a GPU that did not come back after a reboot": Refusal(
        "gpu-gone", SLICED, "Blocked", "GPUMissing", ("lists 1 of the 2 GPUs", "dmesg", "kubectl annotate node")
    ),
}


def observed(scene: Scene) -> JSON:
    """What the agent of the node reported last; empty before it did."""
    rows = [raw for raw in scene.e.cluster.objects(GPUNODES) if raw["metadata"]["name"] == NODE]
    found: JSON = (rows[0].get("status") or {}).get("observed") or {} if rows else {}
    return found


async def report(scene: Scene, oddity: str) -> None:
    """Let NVML tell the agent something else from now on, and wait until the agent has reported it."""
    await scene.e.until(lambda: bool(observed(scene)), "the first report", HOUR)
    before = observed(scene)
    scene.e.software.inject(NODE, oddity)
    await scene.e.until(lambda: observed(scene) != before, f"the report of {oddity}", HOUR)


@pytest.mark.parametrize("case", REFUSED)
@virtually
async def test_it_is_refused_by_name_and_the_node_is_not_touched(case: str) -> None:
    refusal = REFUSED[case]
    async with open_scene(node(NODE), serving=FULL) as scene:
        await report(scene, refusal.fault)
        since, labels = scene.mark(), dict(scene.labels(NODE))
        scene.apply(refusal.wanted)
        transition = await scene.reason(NODE, refusal.reason)
        assert transition["phase"] == refusal.phase
        assert all(word in transition["message"] for word in refusal.words), transition["message"]
        await scene.e.until(lambda: scene.condition("Ready")["status"] == "False", "Ready to be False", 60)
        assert not scene.node_writes(since)
        assert labels == scene.labels(NODE)
        scene.e.software.inject(NODE, "as-it-is")
        await scene.serve(SLICED)


@virtually
async def test_the_cards_own_word_counts_and_the_difference_is_shown() -> None:
    once: JSON = {"mode": "MIG", "mig": {"layouts": [{"profiles": {"3g.40gb": 1, "1g.10gb": 2}}]}}
    async with open_scene(node(NODE)) as scene:
        await report(scene, "other-profiles")
        await scene.serve(once)
        row = await scene.until_condition("Accepted", "True", "CardDiffers")
        assert "3g.40gb at 0 (size 4), but the operator's table has 0, 4 (size 4)" in row["message"]
        assert "please open an issue" in row["message"]


@virtually
async def test_a_driver_too_old_for_a_field_leaves_it_to_the_table_and_says_so() -> None:
    async with open_scene(node(NODE)) as scene:
        await report(scene, "old-driver")
        await scene.serve(MIXED)
        row = await scene.until_condition("Accepted", "True", "ProfilesFromTable")
        assert "update the driver" in row["message"]
        assert observed(scene)["models"][0]["profiles"] == ""


@virtually
async def test_a_model_that_only_its_driver_knows_is_divided_by_what_it_offers() -> None:
    async with open_scene(node(NODE)) as scene:
        await report(scene, "new-card")
        scene.apply({"mode": "MIG", "mig": {"layouts": [{"profiles": {"7g.80gb": 2}}]}})
        transition = await scene.reason(NODE, "LayoutDoesNotFit")
        assert "NVIDIA X9000 96GB" in transition["message"]
        assert "7g.80gb" in transition["message"]


@virtually
async def test_a_partly_failed_node_after_a_reboot_is_shown_tried_once_and_then_left_to_a_person() -> None:
    async with open_scene(node(NODE), serving=MIXED) as scene:
        for fault in ("failed", "reboot-now"):
            scene.e.software.inject(NODE, fault)
        await scene.e.until(lambda: scene.events()["Drifted"] == 1, "the drift to be told", HOUR)
        await scene.e.until(lambda: scene.fence(NODE) is not None, "the one correction", HOUR)
        await scene.ready(seconds=HOUR)
        assert not scene.cordoned(NODE)
        since = scene.mark()
        for fault in ("failed", "reboot-now"):
            scene.e.software.inject(NODE, fault)
        assert NODE in (await scene.reason(NODE, "DriftReturned"))["message"]
        await scene.until_condition("Stalled", "True", "DriftReturned")
        assert not scene.node_writes(since)


def healthy(scene: Scene) -> JSON:
    (row,) = scene.e.cluster.get(GPUNODES, NODE)["status"]["conditions"]
    found: JSON = row
    return found


@virtually
async def test_no_change_starts_on_a_node_with_an_unhealthy_gpu_and_it_goes_on_when_it_is_healthy() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        assert healthy(scene)["reason"] == "NoTrouble"
        scene.e.software.inject("gpu-1", "sick-gpu")
        await scene.e.until(lambda: healthy(scene)["status"] == "False", "its condition", 120)
        mark = scene.mark()
        transition = await scene.reach(SLICED, phase="Blocked")
        assert transition["reason"] == "GPUUnhealthy"
        assert "the driver recommends Reset; drain the node, then reset the GPU" in transition["message"]
        await asyncio.sleep(1800)
        assert not scene.node_writes(mark)
        assert scene.condition("Stalled")["status"] == "True"
        scene.e.software.inject("gpu-1", "heal-gpu")
        await scene.ready()
        assert_as_wanted(scene, SLICED, "gpu-1")
        assert healthy(scene)["status"] == "True"
        assert (scene.events()["GPUUnhealthy"], scene.events()["GPUHealthy"]) == (1, 1)


@virtually
async def test_a_synced_node_shows_its_unhealthy_gpu_in_one_write_and_one_event() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        mark = scene.mark()
        scene.e.software.inject("gpu-1", "sick-gpu")
        transition = await scene.reason("gpu-1", "GPUUnhealthy")
        assert transition["phase"] == "Synced"
        assert healthy(scene)["reason"] == "RecoveryNeeded"
        await asyncio.sleep(3600)
        shown = [w for w in scene.writes(plural="gpunodes", since=mark) if "transition" in str(w.call.body)]
        assert len(shown) == 1
        assert scene.events()["GPUUnhealthy"] == 1
        assert scene.condition("Ready")["status"] == "True", "its pods are left alone"


@virtually
async def test_a_change_before_the_point_of_no_return_is_given_up_and_the_node_restored() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        scene.e.software.inject("gpu-1", "stray-process")
        await scene.reach(MIXED, reason="GPUStillBusy")
        scene.e.software.inject("gpu-1", "sick-gpu")
        await scene.phase("gpu-1", "Blocked")
        assert scene.fence("gpu-1") is None
        assert not scene.cordoned("gpu-1")
        scene.e.software.inject("gpu-1", "heal-gpu")
        scene.e.software.inject("gpu-1", "no-stray-process")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")


@virtually
async def test_a_change_past_the_point_of_no_return_goes_on_to_its_proof() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        await scene.begin(MIXED, stage="actuating")
        scene.e.software.inject("gpu-1", "sick-gpu")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert scene.transition("gpu-1")["reason"] in ("Synced", "GPUUnhealthy")


@virtually
async def test_a_lost_gpu_blocks_a_node_that_last_was_as_wanted_and_it_heals() -> None:
    async with open_scene(*nodes(1), serving=MIXED) as scene:
        mark, before = scene.mark(), observed(scene)["gpus"]
        scene.e.software.inject("gpu-1", "lose-gpu")
        transition = await scene.reason("gpu-1", "GPUUnhealthy")
        assert transition["phase"] == "Blocked"
        assert "drain and reboot the node" in transition["message"]
        assert healthy(scene)["reason"] == "GPULost"
        assert observed(scene)["gpus"] == [{**before[0], "access": "Lost"}, *before[1:]], "what was known is kept"
        await asyncio.sleep(1800)
        assert not scene.node_writes(mark)
        scene.e.software.inject("gpu-1", "find-gpu")
        await scene.ready()
        assert not scene.node_writes(mark)
        assert_as_wanted(scene, MIXED, "gpu-1")


SETTING = 'WITH_REBOOT "true" in ClusterPolicy migManager.env'


def guest(product: str) -> dict[str, SimulatedGPUs]:
    """The hardware of a virtual machine gpu-1 with two GPUs passed through."""
    gpus = SimulatedGPUs("gpu-1", [product, product])
    gpus.is_guest = True
    return {"gpu-1": gpus}


async def planned(scene: Scene, folder: Path) -> str:
    """What `plan` says of a change from whole GPUs to MIG."""
    install(scene.e.cluster)
    await scene.serve(FULL)
    return (await ask(scene.e.cluster, "plan", "-f", written(folder, policy(MIXED)), width=2000)).out


@virtually
async def test_a_mode_that_a_virtual_machine_may_not_switch_is_told_before_and_named_after_the_failure(
    tmp_path: Path,
) -> None:
    async with open_scene(node("gpu-1", A100), hardware=guest(A100)) as scene:
        told = await planned(scene, tmp_path)
        await scene.reach(MIXED, phase="Failed")
        await asyncio.sleep(300)
        failed = scene.transition("gpu-1")
    assert "a MIG mode change on gpu-1 may stay pending" in told
    assert SETTING in told
    assert "disruption class Reset" in told
    assert SETTING in failed["message"]


@virtually
async def test_where_mig_manager_may_reboot_the_node_the_class_says_so_and_the_mode_is_switched(tmp_path: Path) -> None:
    async with open_scene(node("gpu-1", A100), hardware=guest(A100), cluster_policy=WITH_REBOOT) as scene:
        told = await planned(scene, tmp_path)
        await scene.serve(MIXED, seconds=HOUR)
        assert_as_wanted(scene, MIXED, "gpu-1")
    assert "class Reboot" in told
    assert "may stay pending" not in told


@virtually
async def test_pass_through_alone_forbids_nothing(tmp_path: Path) -> None:
    async with open_scene(node("gpu-1", H100), hardware=guest(H100)) as scene:
        told = await planned(scene, tmp_path)
        await scene.serve(MIXED)
        assert_as_wanted(scene, MIXED, "gpu-1")
    assert "may stay pending" not in told
