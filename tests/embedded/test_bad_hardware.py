"""Bad hardware and drivers get a named reason with what to do, and nothing is touched.
docs/reference/bad-input.md tells people of each of them."""

from dataclasses import dataclass

import pytest
from tests.embedded.scene import FULL, HOUR, MIXED, SLICED, Scene, node, open_scene
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
