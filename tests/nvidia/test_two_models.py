"""Nodes with two card models: the real GFD writes the labels of one of them, and any of its answers is proof to us."""

from collections.abc import Mapping
from typing import Any

import pytest
from hack.nvidia.sandbox import Sandbox
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import gfd_labels, served, set_layouts
from tests.nvidia.standins import check_gfd_of
from tests.nvidia.targets import labels_as_predicted, mig, plan_for, slicing

from gpusharing.api.names import LABEL_GPU_COUNT, LABEL_GPU_PRODUCT

pytestmark = pytest.mark.nvidia

MODELS = ("h100-80gb", "a30", "h100-80gb")
RUNS = 300
"""Go walks a small map from any of its eight slots on (1.24, internal/runtime/maps/table.go, Iter.Init), so the second of two models comes first once in eight times: both have come up after so many, but for once in 10^17."""


def all_answers(sandbox: Sandbox, config: str, kinds: int) -> list[Mapping[str, str]]:
    found: dict[str, Mapping[str, str]] = {}
    for _ in range(RUNS):
        labels = gfd_labels(sandbox, config)
        found[labels[LABEL_GPU_PRODUCT]] = labels
        if len(found) == kinds:
            break
    return list(found.values())


MODES: dict[str, tuple[dict[str, Any], dict[str, int], set[tuple[str, str]]]] = {
    "whole": ({"mode": "Full"}, {"nvidia.com/gpu": 3}, {("NVIDIA-H100-80GB-HBM3", "2"), ("NVIDIA-A30", "1")}),
    "time-slicing": (
        slicing(2),
        {"nvidia.com/gpu": 6},
        {("NVIDIA-H100-80GB-HBM3-SHARED", "2"), ("NVIDIA-A30-SHARED", "1")},
    ),
    "mixed, one model divided": (
        mig("mixed", {"3g.40gb": 2}, {}, {"3g.40gb": 2}),
        {"nvidia.com/gpu": 1, "nvidia.com/mig-3g.40gb": 4},
        {("NVIDIA-A30", "1")},
    ),
}


@pytest.mark.parametrize(("spec", "resources", "shown"), MODES.values(), ids=MODES)
def test_gfd_counts_per_model_and_whichever_it_shows_is_accepted(
    spec: dict[str, Any], resources: dict[str, int], shown: set[tuple[str, str]], make_sandbox: MakeSandbox
) -> None:
    target, config, case = plan_for(MODELS, spec)
    sandbox = make_sandbox(*MODELS)
    set_layouts(sandbox, *target.layouts)
    assert served(sandbox, config, len(resources)) == resources == target.resources
    answers = all_answers(sandbox, config, len(shown))
    assert {(labels[LABEL_GPU_PRODUCT], labels[LABEL_GPU_COUNT]) for labels in answers} == shown
    for labels in answers:
        labels_as_predicted(labels, case)
    check_gfd_of(MODELS, target.layouts, config, answers)
