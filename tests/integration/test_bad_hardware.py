"""Bad hardware and drivers get a named reason with what to do, and nothing is touched: the list of issue 4.

docs/reference/bad-input.md tells people of each of them.
"""

from dataclasses import dataclass

import pytest
from hack.cluster.api import Object
from tests.integration.nodelog import corrected
from tests.integration.product import FULL, GPUNODES, H100, MIXED, SLICED, Pool, Product

pytestmark = pytest.mark.usefixtures("operator")

EIGHT: Object = {
    "mode": "MIG",
    "mig": {"layouts": [{"devices": list(range(8)), "profiles": {"3g.40gb": 2}}]},
}


@dataclass(frozen=True)
class Refusal:
    """What is wrong with a node that was Full and whole, and what people read when they ask for something else."""

    fault: str
    wanted: Object
    phase: str
    reason: str
    words: tuple[str, ...]
    gpus: int = 2


REFUSED: dict[str, Refusal] = {
    "an unknown model whose driver lists no profiles": Refusal(
        "unknown-card",
        MIXED,
        "Skipped",
        "HardwareUnknown",
        ("NVIDIA X9000 96GB", "neither the driver nor our table"),
    ),
    "a layout that the card cannot take though our table says so": Refusal(
        "other-profiles", MIXED, "Skipped", "LayoutDoesNotFit", ("3g.40gb", "does not fit")
    ),
    "NVML is missing": Refusal(
        "no-nvml", MIXED, "Blocked", "AgentError", ("libnvidia-ml.so.1", "runtime class")
    ),
    "two models in a node, one of them without MIG": Refusal(
        "second-model", MIXED, "Skipped", "NotMigCapable", ("NVIDIA L40S has no MIG", "TimeSlicing or Full")
    ),
    "a layout for 8 GPUs on a node with 4": Refusal(
        "as-it-is", EIGHT, "Skipped", "LayoutTooManyGPUs", ("has 4 GPUs", "GPU 4, 5, 6, 7"), gpus=4
    ),
    "a GPU that did not come back after a reboot": Refusal(
        "gpu-gone",
        SLICED,
        "Blocked",
        "GPUMissing",
        ("lists 1 of the 2 GPUs", "dmesg", "kubectl annotate node"),
    ),
}


def observed(pool: Pool, name: str = "") -> Object:
    """What the agent of a node, by default of the first one, reported last; empty before it did."""
    path = f"{GPUNODES}/{name or pool.nodes[0]}"
    if not pool.product.exists(path):
        return {}
    found: Object = pool.api.get(path).get("status", {}).get("observed") or {}
    return found


def tell(pool: Pool, oddity: str) -> None:
    """NVML tells the agent something else from now on, and the agent has reported it."""
    pool.wait(lambda: bool(observed(pool)), "the first report", dict)
    before = observed(pool)
    pool.inject(oddity)
    if oddity != "as-it-is":
        pool.wait(lambda: observed(pool) != before, f"the report of {oddity}", dict)


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_name_and_the_node_is_not_touched(product: Product, case: str) -> None:
    refusal = REFUSED[case]
    with product.pool(H100, gpus=refusal.gpus) as pool:
        pool.apply(FULL)
        pool.wait_synced()
        tell(pool, refusal.fault)
        since, labels = product.mark(), pool.labels()
        pool.apply(refusal.wanted)
        message = pool.wait_phase(refusal.phase, refusal.reason)
        assert all(word in message for word in refusal.words), message
        pool.wait(lambda: pool.condition("Ready").get("status") == "False", "Ready to be False")
        assert product.writes("nodes", pool.nodes[0], since) == []
        ours = {key: value for key, value in labels.items() if not key.startswith("nvidia.com/gfd")}
        assert ours.items() <= pool.labels().items()
        pool.inject("as-it-is")
        pool.apply({**SLICED, "drain": {"strandedPods": "Allow"}})
        pool.wait_synced()


def test_the_cards_own_word_counts_and_the_difference_is_shown(product: Product) -> None:
    once: Object = {"mode": "MIG", "mig": {"layouts": [{"profiles": {"3g.40gb": 1, "1g.10gb": 2}}]}}
    with product.pool(H100) as pool:
        tell(pool, "other-profiles")
        pool.apply(once)
        pool.wait_synced()
        message = pool.wait_condition("Accepted", "True", "CardDiffers")
        assert "3g.40gb at 0 (size 4), our table says 0, 4 (size 4)" in message
        assert "please open an issue" in message


def test_a_driver_too_old_for_a_field_leaves_it_to_the_table_and_says_so(product: Product) -> None:
    with product.pool(H100) as pool:
        tell(pool, "old-driver")
        pool.apply(MIXED)
        pool.wait_synced()
        assert "update the driver" in pool.wait_condition("Accepted", "True", "ProfilesFromTable")
        assert observed(pool)["models"][0]["profiles"] == []
        assert {gpu.get("eccUncorrected") for gpu in observed(pool)["gpus"]} == {None}


def test_a_model_that_only_its_driver_knows_is_divided_by_what_it_offers(product: Product) -> None:
    with product.pool(H100) as pool:
        tell(pool, "new-card")
        pool.apply({"mode": "MIG", "mig": {"layouts": [{"profiles": {"7g.80gb": 2}}]}})
        message = pool.wait_phase("Skipped", "LayoutDoesNotFit")
        assert "NVIDIA X9000 96GB" in message
        assert "1x7g.80gb" in message or "7g.80gb" in message


def test_a_partly_failed_node_after_a_reboot_is_shown_tried_once_and_then_left_to_a_person(
    product: Product,
) -> None:
    with product.pool(H100) as pool:
        node = pool.nodes[0]
        pool.apply(MIXED)
        pool.wait_synced()
        since = product.mark()
        pool.inject("failed")
        pool.inject("reboot-now")
        pool.wait(lambda: "Drifted" in dict(pool.events()), "the drift to be told", pool.transition)
        pool.wait(lambda: corrected(pool, since), "the one correction", pool.transition)
        pool.wait_synced()
        assert "unschedulable" not in pool.node()["spec"]
        since = product.mark()
        pool.inject("failed")
        pool.inject("reboot-now")
        message = pool.wait_phase("Blocked", "DriftReturned")
        assert node in message
        pool.wait_condition("Stalled", "True", "DriftReturned")
        assert product.writes("nodes", node, since) == []


def test_two_models_in_a_node_take_what_fits_them_both(product: Product) -> None:
    with product.pool(H100) as pool:
        both = pool.add_node(f"{pool.name}-both", H100, "NVIDIA L40S")
        pool.apply(SLICED)
        pool.wait_synced()
        assert pool.offered(both) == {"nvidia.com/gpu": 8}
        assert {gpu["product"] for gpu in observed(pool, both)["gpus"]} == {H100, "NVIDIA L40S"}
