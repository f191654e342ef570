"""Labels that GPU Feature Discovery will write after a change (wanted/verify.py)."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
from tests.build import H100, make_stack
from tests.configs import target_for
from tests.planning.cases import FULL, MIG_SLICED, MIXED, MPS, SINGLE, SLICED, T4, copy_of, world_of

from gpusharing.api import names
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, PolicyView
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import future_labels

PRODUCT, P = names.LABEL_GPU_PRODUCT, "NVIDIA-H100-80GB-HBM3"
POLICIES = {
    "whole": FULL,
    "time-sliced": SLICED,
    "MPS": MPS,
    "MIG mixed": MIXED,
    "MIG single": SINGLE,
    "MIG and time-slicing": MIG_SLICED,
}
CHANGES = (
    *("whole", "time-sliced", "MIG mixed", "MIG single", "MPS", "whole", "MIG single", "MIG and time-slicing"),
    *("MIG mixed", "time-sliced", "MIG single", "MIG mixed", "whole"),
)
"""From each of these to the next."""
NOT_FORESEEN = (
    "nvidia.com/gfd.timestamp",
    "nvidia.com/gpu.memory",
    "nvidia.com/gpu.slices.",
    "nvidia.com/mig-",
    names.LABEL_DEPLOY_PREFIX,
    *names.NEIGHBOR_LABELS,
)
"""Beginnings of labels that differ from process to process, or that GFD reads from the instances."""


def foreseen(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if not key.startswith(NOT_FORESEEN)}


@pytest.mark.parametrize(("was", "becomes"), list(pairwise(CHANGES)))
def test_the_labels_that_are_foreseen_are_those_that_a_simulated_gfd_writes(was: str, becomes: str) -> None:
    world, policy = copy_of(POLICIES[was]), POLICIES[becomes]
    labels = futures_of(POLICIES[was], policy)
    world.set_policy(policy)
    world.settle()
    later = world.nodes["gpu-07"]
    assert foreseen(labels) == foreseen(later.labels)
    counts = {key: value for key, value in later.labels.items() if key.endswith((".count", ".replicas"))}
    assert counts.items() <= labels.items()
    assert {key for key in labels if key.startswith("nvidia.com/mig-")} <= later.labels.keys()


def futures(node: NodeView, report: GPUNodeView, policy: PolicyView) -> tuple[Mapping[str, str], ...]:
    assert report.observed is not None
    gpus = report.observed.gpus
    target = target_for(policy, gpus, make_stack(policy, models=gpus))
    assert isinstance(target, Target), target
    return future_labels(node, target, report.observed, policy.name)


def futures_of(was: PolicyView, policy: PolicyView) -> Mapping[str, str]:
    (labels,) = futures(world_of(was).nodes["gpu-07"], world_of(was).gpunodes["gpu-07"], policy)
    return labels


def test_the_memory_label_is_about_an_instance_under_strategy_single_and_else_about_the_card() -> None:
    whole, single = world_of(FULL), world_of(SINGLE)
    node, report = whole.nodes["gpu-07"], whole.gpunodes["gpu-07"]
    assert futures(node, report, SINGLE)[0]["nvidia.com/gpu.memory"] == str(10 * 1024)
    card = node.labels["nvidia.com/gpu.memory"]
    assert futures(node, report, MIXED)[0]["nvidia.com/gpu.memory"] == card
    back = futures(single.nodes["gpu-07"], single.gpunodes["gpu-07"], FULL)[0]
    assert back["nvidia.com/gpu.memory"] == card


def test_a_node_with_two_models_may_show_either_and_both_are_foreseen() -> None:
    world = world_of(FULL, (H100, T4))
    found = futures(world.nodes["gpu-07"], world.gpunodes["gpu-07"], SLICED)
    assert [labels[PRODUCT] for labels in found] == [f"{P}-SHARED", "Tesla-T4-SHARED"]
