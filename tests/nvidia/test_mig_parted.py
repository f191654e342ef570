"""mig-parted applies what we render, reads it back as the same, and judges other layouts as we do."""

from typing import Any

import pytest
from hack.nvmlsim.models import find_model, simulated_cards
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import MigParted, entry_for

from gpusharing.planning.geometry import (
    Layout,
    Legal,
    UnknownProfile,
    describe,
    generated_layouts,
    judge,
    maximal_layouts,
)

pytestmark = pytest.mark.nvidia

# All own layouts where the card's table is its own; on the other 7-slice cards only the names differ.
WITH_ALL_LAYOUTS = ("a30", "a100-40gb", "h100-80gb", "rtx-pro-6000-blackwell")
NAMED_ONLY = ("a100-80gb", "h200-141gb", "b200-180gb")
JUDGES = ("a30", "a100-40gb", "h100-80gb", "rtx-pro-6000-blackwell")
# A few that are wrong in other ways than by an unknown profile.
NOT_FITTING: dict[str, tuple[Layout, ...]] = {
    "a30": ((("2g.12gb", 1), ("1g.6gb", 3)), (("1g.6gb", 5),)),
    "a100-40gb": ((("3g.20gb", 2), ("1g.5gb", 1)), (("1g.5gb+me", 2),)),
    "h100-80gb": ((("3g.40gb", 2), ("1g.10gb", 1)), (("1g.20gb", 7),), (("1g.10gb", 1), ("1g.5gb", 1))),
    "rtx-pro-6000-blackwell": ((("1g.24gb+me.all", 1), ("1g.24gb", 1)), (("4g.96gb", 2),)),
}


def layouts_of(model: str) -> list[Layout | None]:
    profiles = find_model(model).profiles
    named = list(generated_layouts(profiles).values())
    own = [layout for layout in maximal_layouts(profiles) if layout not in named]
    return [*named, *(own if model in WITH_ALL_LAYOUTS else [])]


@pytest.mark.parametrize("model", [*WITH_ALL_LAYOUTS, *NAMED_ONLY])
def test_each_layout_we_render_is_applied_asserted_and_exported_as_the_same(
    model: str, make_sandbox: MakeSandbox
) -> None:
    layouts = layouts_of(model)
    parted = MigParted(make_sandbox(model), {str(n): entry_for(layout) for n, layout in enumerate(layouts)})
    assert len(layouts) > (8 if model == "a30" else 9)
    for number, layout in enumerate(layouts):
        applied = parted.apply(str(number))
        assert applied.status == 0, (describe(layout or ()), applied.last_line)
        assert parted.check(str(number)).status == 0
        exported = dict(parted.export()[0].get("mig-devices") or {})
        assert exported == dict(layout or ()), describe(layout or ())


def foreign_layouts(model: str) -> list[Layout]:
    """One layout per name on the other cards, without those that are the same here, and some that do not fit."""
    mine = set(generated_layouts(find_model(model).profiles).values())
    found: dict[Layout, None] = {}
    for card in simulated_cards():
        for layout in generated_layouts(card.profiles).values():
            if layout and layout not in mine:
                found[layout] = None
    return [*found, *NOT_FITTING[model]]


@pytest.mark.parametrize("model", JUDGES)
def test_on_layouts_of_other_cards_our_verdict_is_the_hardwares(
    model: str, make_sandbox: MakeSandbox
) -> None:
    layouts, profiles = foreign_layouts(model), find_model(model).profiles
    parted = MigParted(make_sandbox(model), {str(n): entry_for(layout) for n, layout in enumerate(layouts)})
    verdicts = {"legal": 0, "unknown": 0, "misfit": 0}
    for number, layout in enumerate(layouts):
        verdict, applied = judge(layout, profiles), parted.apply(str(number))
        proven = parted.check(str(number)).status == 0
        left = parted.export()[0].get("mig-devices") or {}
        if isinstance(verdict, Legal):
            verdicts["legal"] += 1
            assert (applied.status, proven, left) == (0, True, dict(layout)), describe(layout)
        elif isinstance(verdict, UnknownProfile):
            verdicts["unknown"] += 1  # the trap: success, and an empty GPU
            assert (applied.status, proven, left) == (0, False, {}), describe(layout)
            assert applied.last_line == "MIG configuration applied successfully"
        else:
            verdicts["misfit"] += 1
            assert (applied.status, proven, left) == (1, False, {}), describe(layout)
            assert "all orderings failed" in applied.last_line
    assert verdicts["unknown"] > 20
    assert verdicts["misfit"] >= 2


def test_different_layouts_per_gpu_and_a_whole_gpu_beside(make_sandbox: MakeSandbox) -> None:
    entry: Any = [
        {"devices": [0], "mig-enabled": True, "mig-devices": {"3g.40gb": 2}},
        {"devices": [1], "mig-enabled": True, "mig-devices": {"1g.10gb": 7}},
        {"devices": [2], "mig-enabled": False},
    ]
    parted = MigParted(make_sandbox(*["h100-80gb"] * 3), {"own": entry})
    assert parted.apply("own").status == 0
    assert parted.check("own").status == 0
    assert [(row["devices"], row.get("mig-devices") or {}) for row in parted.export()] == [
        ([0], {"3g.40gb": 2}),
        ([1], {"1g.10gb": 7}),
        ([2], {}),
    ]


def test_an_instance_in_use_stops_the_change_after_its_neighbour_is_gone(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    parted = MigParted(
        sandbox, {"halves": entry_for((("3g.40gb", 2),)), "seven": entry_for((("1g.10gb", 7),))}
    )
    parted.apply("halves")
    created_last = 1  # the id of the lower half: the driver takes the upper one first
    sandbox.simulator.add_process(0, 4711, "python3", gpu_instance=created_last, compute_instance=0)
    refused = parted.apply("seven")
    assert refused.status == 1
    assert "all orderings failed" in refused.last_line, "the sum, not the cause"
    assert "ERROR_IN_USE" in refused.output
    assert [instance["id"] for instance in sandbox.simulator.show()["gpus"][0]["instances"]] == [created_last]
    sandbox.simulator.remove_process(4711)
    assert parted.apply("seven").status == 0


def test_amperes_pending_mode_is_applied_by_resetting_all_gpus(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("a100-40gb", "a100-40gb")
    sandbox.simulator.set_gpu(None, explicit_reset=1)
    parted = MigParted(sandbox, {"all-balanced": entry_for((("3g.20gb", 1), ("2g.10gb", 1), ("1g.5gb", 2)))})
    assert parted.apply("all-balanced").status == 0
    assert parted.check("all-balanced").status == 0
    sandbox.simulator.set_gpu(None, explicit_reset=0, mig_current=0, mig_pending=0)
    for gpu in (0, 1):
        sandbox.simulator.set_gpu(gpu, passthrough=1)
    failed = parted.apply("all-balanced")
    assert failed.status == 1
    assert "error resetting all GPUs" in failed.last_line


def test_a_held_hopper_is_not_changed_and_the_failure_is_told(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    sandbox.simulator.set_gpu(0, busy=1)
    parted = MigParted(sandbox, {"seven": entry_for((("1g.10gb", 7),))})
    failed = parted.apply("seven")
    assert failed.status == 1
    assert "unable to apply MIG config with MIG mode disabled" in failed.last_line
    assert sandbox.simulator.show()["gpus"][0]["mig"] == {"current": False, "pending": False}


def test_a_create_that_fails_midway_leaves_the_gpu_on_and_empty(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox("h100-80gb")
    sandbox.simulator.inject("nvmlDeviceCreateGpuInstance", "UNKNOWN", skip=3)
    parted = MigParted(sandbox, {"seven": entry_for((("1g.10gb", 7),))})
    assert parted.apply("seven").status == 1
    gpu = sandbox.simulator.show()["gpus"][0]
    assert (gpu["mig"]["current"], gpu["instances"]) == (True, [])
