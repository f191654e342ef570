"""Is a node what it should be? Each source can disagree; the first one in the order of `label_checks` is the answer."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from tests.build import (
    H100,
    make_cluster_policy,
    make_gpu,
    make_gpunode,
    make_node,
    make_partial,
    make_policy,
    make_stack,
)
from tests.configs import make_shared, target_for
from tests.planning.cases import FULL, MIG_SLICED, MIXED, MPS, SINGLE, SLICED, T4, world_of
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.gpunode import PartialInstance
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.gpus.texts import key_of
from gpusharing.planning.snapshot.nvidia import NodeDevices, PlainStackView
from gpusharing.planning.snapshot.views import GpuView, Hardware, ObservedView, PolicyView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted import verify
from gpusharing.planning.wanted.pluginconfig import render
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import (
    Comparison,
    find_exclusive,
    find_mismatch,
    find_slice_mismatch,
    label_checks,
)

SINGLE_SLICED = make_policy(mig={"strategy": "single", "config": "all-1g.10gb"}, timeSlicing={"replicas": 2})
BALANCED_SLICED = make_policy(mig={"config": "all-balanced"}, timeSlicing={"replicas": 2})
HALF_SLICED = make_policy(
    mig={"layouts": [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}]},
    timeSlicing={"replicas": 2},
)
WITH_MEDIA = make_policy(mig={"layouts": [{"profiles": {"1g.10gb": 6, "1g.10gb+me": 1}}]})
PAUSED = {f"{names.LABEL_DEPLOY_PREFIX}dcgm": names.PAUSED_FOR_MIG}


def case_of(policy: PolicyView, products: tuple[str, ...] = (H100,)) -> Comparison:
    """gpu-07, which planner and simulated software brought to this policy."""
    world = world_of(policy, products)
    observed = world.gpunodes["gpu-07"].observed
    assert observed is not None
    target = target_for(policy, observed.gpus, world.stack)
    assert isinstance(target, Target)
    return Comparison(world.nodes["gpu-07"], observed, target, world.stack)


def with_labels(case: Comparison, **labels: str | None) -> Comparison:
    kept = {**case.node.labels, **labels}
    node = replace(case.node, labels={key: value for key, value in kept.items() if value is not None})
    return replace(case, node=node)


def observing(case: Comparison, **fields: Any) -> Comparison:
    return replace(case, observed=replace(case.observed, **fields))


NODES: dict[str, tuple[PolicyView, tuple[str, ...]]] = {
    "whole GPUs": (FULL, (H100, H100)),
    "whole GPUs without MIG": (FULL, (T4,)),
    "whole GPUs of two models": (FULL, (H100, "NVIDIA A30")),
    "whole GPUs of two models, one of them twice": (FULL, (H100, "NVIDIA A30", H100)),
    "shares": (SLICED, (H100, H100)),
    "shares without MIG": (SLICED, (T4, T4)),
    "shares of two models": (SLICED, ("NVIDIA A30", T4)),
    "MIG mixed": (MIXED, (H100, H100)),
    "MIG single": (SINGLE, (H100, H100)),
    "MPS": (MPS, (H100, H100)),
    "MPS without MIG": (MPS, (T4,)),
    "MPS under its own name": (
        make_policy(mode="MPS", mps={"replicas": 2, "renameByDefault": True}),
        (H100,),
    ),
    "MIG mixed and time-slicing": (MIG_SLICED, (H100, H100)),
    "MIG single and time-slicing": (SINGLE_SLICED, (H100, H100)),
    "MIG and time-slicing with a whole GPU": (HALF_SLICED, (H100, H100)),
    "MIG and time-slicing of a named configuration, on two models": (BALANCED_SLICED, (H100, "NVIDIA A30")),
}


@pytest.mark.parametrize(("policy", "products"), NODES.values(), ids=NODES.keys())
def test_what_the_simulated_software_makes_of_a_policy_is_found_right(
    policy: PolicyView, products: tuple[str, ...]
) -> None:
    assert find_mismatch(case_of(policy, products), label_checks) is None


EXCLUSIVE = make_gpu(compute_mode="ExclusiveProcess")
SERVED = make_gpu(compute_mode="ExclusiveProcess", processes=("nvidia-cuda-mps-server",))
CAPABLE = names.LABEL_MPS_CAPABLE
GONE = ObservedView("", False, "", ())
HALF_BARE = make_partial(PartialInstance(2, "3g.40gb"), layout={"3g.40gb": 1})
DIVIDED = make_partial(PartialInstance(2, "3g.40gb", ("1c.3g.40gb", "2c.3g.40gb")), layout={"3g.40gb": 1})
MISMATCHES: dict[str, tuple[PolicyView, Any, Reason, str]] = {
    "the agent cannot read": (
        FULL, lambda c: observing(c, error="NVMLNotLoaded"), Reason.AGENT_ERROR, "NVMLNotLoaded"),
    "the agent is quiet": (FULL, lambda c: observing(c, quiet=True), Reason.OBSERVATION_PENDING, "closed NVML"),
    "the agent may not list the MIG instances": (
        MIXED, lambda c: observing(c, gpus=(replace(c.observed.gpus[0], instances_withheld=True),)),
        Reason.AGENT_LACKS_RIGHTS, "of GPU 0"),
    "an instance is missing": (
        MIXED, lambda c: observing(c, gpus=(make_gpu(layout=(("3g.40gb", 1),)),)), Reason.LAYOUT_MISMATCH,
        "NVML shows 1x3g.40gb instead of 2x3g.40gb"),
    "an instance has no compute instance": (
        MIXED, lambda c: observing(c, gpus=(HALF_BARE,)), Reason.LAYOUT_MISMATCH,
        "instead of 2x3g.40gb: GPU instance 2 (3g.40gb) of GPU 0 has no compute instance. A change clears this GPU; to "
        "repair it without one, run on the node: nvidia-smi mig -i 0 -gi 2 -cci"),
    "an instance is divided": (
        MIXED, lambda c: observing(c, gpus=(DIVIDED,)), Reason.LAYOUT_MISMATCH,
        "NVML shows 1x1c.3g.40gb+1x2c.3g.40gb+1x3g.40gb instead of 2x3g.40gb: GPU instance 2 (3g.40gb) of GPU 0 is"),
    "MIG is still off": (MIXED, lambda c: observing(c, gpus=(make_gpu(),)), Reason.LAYOUT_MISMATCH, "1x full"),
    "MIG is still on": (FULL, lambda c: observing(c, gpus=(make_gpu(layout=()),)), Reason.LAYOUT_MISMATCH, "MIG empty"),
    "a GPU vanished": (FULL, lambda c: observing(c, gpus=()), Reason.GPU_MISSING, "lists 0 of the 1 GPU from the last"
    " proof"),
    "a MIG mode change waits for a reset": (
        FULL, lambda c: observing(c, gpus=(make_gpu(mig_pending=True),)), Reason.MIG_MODE_PENDING, "GPU 0"),
    "MPS left its compute mode behind": (
        FULL, lambda c: observing(c, gpus=(make_gpu(compute_mode="ExclusiveProcess"),)), Reason.COMPUTE_MODE,
        "GPU 0 is in compute mode ExclusiveProcess, left behind by MPS; run on the node: nvidia-smi -c 0"),
    "mig.config is gone, so a reboot would lose the layout": (
        MIXED, lambda c: with_labels(c, **{names.LABEL_MIG_CONFIG: None}), Reason.LABEL_MISMATCH, "not set"),
    "mig.config names another layout": (
        MIXED, lambda c: with_labels(c, **{names.LABEL_MIG_CONFIG: "all-1g.10gb"}), Reason.LABEL_MISMATCH,
        "is all-1g.10gb, but should be pool-b-"),
    "mig.config names nothing that is known": (
        MIXED, lambda c: with_labels(c, **{names.LABEL_MIG_CONFIG: "nonsense"}), Reason.LABEL_MISMATCH, "nonsense"),
    "mig-manager failed": (
        MIXED, lambda c: with_labels(c, **{names.LABEL_MIG_STATE: "failed"}), Reason.ACTUATOR_FAILED, "failed"),
    "mig-manager is at work": (
        MIXED, lambda c: with_labels(c, **{names.LABEL_MIG_STATE: "pending"}), Reason.ACTUATOR_BUSY, "pending"),
    "mig-manager has said nothing": (
        MIXED, lambda c: with_labels(c, **{names.LABEL_MIG_STATE: None}), Reason.ACTUATOR_BUSY, "not reported yet"),
    "an operand is paused": (FULL, lambda c: with_labels(c, **PAUSED), Reason.OPERANDS_PAUSED, "dcgm"),
    "the plugin is told of another mode": (
        SLICED, lambda c: with_labels(c, **{names.LABEL_PLUGIN_CONFIG: None}), Reason.LABEL_MISMATCH,
        "device-plugin.config is not set, but should be pool-b-"),
    "the plugin's key names no configuration": (
        FULL, lambda c: with_labels(c, **{names.LABEL_PLUGIN_CONFIG: "lost"}), Reason.LABEL_MISMATCH,
        "names no known configuration"),
    "GFD has not started anew": (
        SLICED, lambda c: replace(c, gfd_timestamp=c.node.labels[names.LABEL_GFD_TIMESTAMP]),
        Reason.LABEL_MISMATCH, "has not restarted on gpu-07, or Node Feature Discovery has not published"),
    "a GFD label is gone": (
        SLICED, lambda c: with_labels(c, **{names.LABEL_GPU_REPLICAS: None}), Reason.LABEL_MISMATCH,
        "gpu.replicas is absent, but should be 4"),
    "the count of a profile is wrong": (
        MIXED, lambda c: with_labels(c, **{"nvidia.com/mig-3g.40gb.count": "1"}), Reason.LABEL_MISMATCH, "should be 2"),
    "the product does not say shared": (
        SLICED, lambda c: with_labels(c, **{names.LABEL_GPU_PRODUCT: "NVIDIA-H100-80GB-HBM3"}), Reason.LABEL_MISMATCH,
        "should be NVIDIA-H100-80GB-HBM3-SHARED"),
    "the product says MIG-INVALID": (
        SINGLE, lambda c: with_labels(c, **{names.LABEL_GPU_PRODUCT: "NVIDIA-H100-80GB-HBM3-MIG-INVALID"}),
        Reason.LABEL_MISMATCH, "should be NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"),
    "MPS still serves a GPU that is to be whole": (
        FULL, lambda c: observing(c, gpus=(SERVED,)), Reason.COMPUTE_MODE, "the MPS daemon still serves it"),
    "the MPS daemon does not serve": (
        MPS, lambda c: observing(c, gpus=(make_gpu(),)), Reason.MPS_NOT_RUNNING, "GPU 0 is in compute mode Default"),
    "GFD does not say MPS": (
        MPS, lambda c: with_labels(c, **{names.LABEL_SHARING_STRATEGY: "time-slicing"}), Reason.LABEL_MISMATCH,
        "sharing-strategy is time-slicing, but should be mps"),
    "GFD does not say that MPS is possible": (
        MPS, lambda c: with_labels(c, **{CAPABLE: "false"}), Reason.LABEL_MISMATCH, "should be true"),
    "the plugin is told of time-slicing instead of MPS": (
        MPS, lambda c: with_labels(c, **{names.LABEL_PLUGIN_CONFIG: None}), Reason.LABEL_MISMATCH, "should be pool-b-"),
    "a profile is not shared": (
        MIG_SLICED, lambda c: with_labels(c, **{"nvidia.com/mig-3g.40gb.replicas": "1"}), Reason.LABEL_MISMATCH,
        "mig-3g.40gb.replicas is 1, but should be 2"),
    "single instances are not shared": (
        SINGLE_SLICED, lambda c: with_labels(c, **{names.LABEL_GPU_REPLICAS: "1"}), Reason.LABEL_MISMATCH,
        "gpu.replicas is 1, but should be 2"),
    "the product of single instances does not say shared": (
        SINGLE_SLICED, lambda c: with_labels(c, **{names.LABEL_GPU_PRODUCT: "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"}),
        Reason.LABEL_MISMATCH, "should be NVIDIA-H100-80GB-HBM3-MIG-1g.10gb-SHARED"),
    "shares of instances are missing": (
        MIG_SLICED, lambda c: replace(c, node=replace(c.node, resources={"nvidia.com/mig-3g.40gb": 2})),
        Reason.ALLOCATABLE_MISMATCH, "2 nvidia.com/mig-3g.40gb instead of 4 nvidia.com/mig-3g.40gb"),
    "a resource is missing": (
        MIXED, lambda c: replace(c, node=replace(c.node, resources={})), Reason.ALLOCATABLE_MISMATCH,
        "advertises no GPU resource instead of 2 nvidia.com/mig-3g.40gb"),
    "the device plugin adds up the names of profiles": (
        WITH_MEDIA, lambda c: replace(c, node=replace(c.node, resources={"nvidia.com/mig-1g.10gb": 7})),
        Reason.PLUGIN_TOO_OLD, "before v0.20"),
    "a resource of the old mode is still there": (
        MIXED, lambda c: replace(c, node=replace(c.node, resources={**c.node.resources, "nvidia.com/gpu": 1})),
        Reason.ALLOCATABLE_MISMATCH, "1 nvidia.com/gpu"),
}  # fmt: skip


@pytest.mark.parametrize(("policy", "change", "reason", "says"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_a_source_disagrees(policy: PolicyView, change: Any, reason: Reason, says: str) -> None:
    mismatch = find_mismatch(change(case_of(policy)), label_checks)
    assert mismatch is not None
    assert (mismatch.reason, says in mismatch.message) == (reason, True), mismatch.message


IN_TURN = (
    "the agent cannot read",
    "the agent is quiet",
    "a GPU vanished",
    "mig.config is gone, so a reboot would lose the layout",
    "mig-manager failed",
    "an operand is paused",
    "the count of a profile is wrong",
    "a resource is missing",
)
"""Sources that disagree; of two, the earlier one is told."""


@pytest.mark.parametrize(("first", "second"), [*combinations(IN_TURN, 2)])
def test_of_two_sources_that_disagree_the_one_that_the_other_follows_from_is_told(first: str, second: str) -> None:
    earlier, later = MISMATCHES[first], MISMATCHES[second]
    alone, both = later[1](case_of(MIXED)), later[1](earlier[1](case_of(MIXED)))
    told = [find_mismatch(case, label_checks) for case in (alone, both)]
    assert [one and one.reason for one in told] == [later[2], earlier[2]]
    assert told[1] is not None
    assert earlier[3] in told[1].message


AGREES: dict[str, tuple[PolicyView, Any]] = {
    "a resource of the old mode stays at 0 until the kubelet restarts": (
        MIXED, lambda c: replace(c, node=replace(c.node, resources={**c.node.resources, "nvidia.com/gpu": 0}))),
    "resources that are no GPUs": (
        FULL, lambda c: replace(c, node=replace(c.node, resources={**c.node.resources, "nvidia.com/gpu_x": 1}))),
    "no mig.config on whole GPUs that nobody ever divided": (
        FULL, lambda c: with_labels(c, **{names.LABEL_MIG_CONFIG: None, names.LABEL_MIG_STATE: None})),
    "another name that means the same layout": (
        MIXED, lambda c: with_labels(c, **{names.LABEL_MIG_CONFIG: "all-3g.40gb"})),
    "no plugin label where the default means whole GPUs": (
        FULL, lambda c: with_labels(c, **{names.LABEL_PLUGIN_CONFIG: None})),
    "a compute mode that the card does not have": (
        FULL, lambda c: observing(c, gpus=(make_gpu(compute_mode="NotSupported"),))),
    "an exclusive compute mode under MIG, where it means nothing": (
        MIXED, lambda c: observing(c, gpus=(make_gpu(layout=(("3g.40gb", 2),), compute_mode="ExclusiveProcess"),))),
}  # fmt: skip


@pytest.mark.parametrize(("policy", "change"), AGREES.values(), ids=AGREES.keys())
def test_all_sources_agree(policy: PolicyView, change: Any) -> None:
    assert find_mismatch(change(case_of(policy)), label_checks) is None


ADMINS: dict[str, tuple[str, str, bool]] = {
    "an admin's key that means the same": ("theirs", "", True),
    "the cluster's default configuration that means the same": ("", "theirs", True),
    "an admin's key that means something else": ("other", "", False),
    "the cluster's default is unknown": ("", "lost", False),
}


@pytest.mark.parametrize(("key", "default", "agrees"), ADMINS.values(), ids=ADMINS.keys())
def test_a_plugin_configuration_with_another_name(key: str, default: str, agrees: bool) -> None:
    case = case_of(SLICED)
    same = render(make_shared(4))
    other = render(make_shared(5))
    stack = make_stack(
        SLICED,
        cluster_policy=make_cluster_policy(plugin_default=default),
        plugin_configs={"theirs": same, "other": other},
    )
    case = with_labels(replace(case, stack=stack), **{names.LABEL_PLUGIN_CONFIG: key or None})
    assert (find_mismatch(case, label_checks) is None) is agrees


PLAIN = PlainStackView("nvdp", "nvdp")


@pytest.mark.parametrize(("plain", "agrees"), [(PLAIN, True), (None, False)], ids=["NVIDIA's chart", "GPU Operator"])
def test_a_node_without_a_label_goes_by_the_entry_default_where_nvidias_chart_has_installed_the_plugin(
    plain: PlainStackView | None, agrees: bool
) -> None:
    policy = replace(make_cluster_policy(), plain=plain)
    stack = make_stack(SLICED, cluster_policy=policy, plugin_configs={"default": render(make_shared(4))})
    case = with_labels(replace(case_of(SLICED), stack=stack), **{names.LABEL_PLUGIN_CONFIG: None})
    assert (find_mismatch(case, label_checks) is None) is agrees


def test_the_strategy_that_cluster_policy_fixes_beats_an_admins_configuration() -> None:
    stack = make_stack(
        MIXED,
        cluster_policy=make_cluster_policy(mig_strategy="mixed"),
        plugin_configs={"theirs": "version: v1"},
    )
    case = with_labels(replace(case_of(MIXED), stack=stack), **{names.LABEL_PLUGIN_CONFIG: "theirs"})
    assert find_mismatch(case, label_checks) is None


TWO_MODELS = (H100, "NVIDIA A30", H100)


def of_model(product: str, count: int) -> dict[str, str]:
    return {names.LABEL_GPU_PRODUCT: product, names.LABEL_GPU_COUNT: str(count)}


@pytest.mark.parametrize(("policy", "suffix"), [(FULL, ""), (SLICED, "-SHARED")], ids=["whole", "shares"])
def test_on_a_node_with_two_card_models_the_labels_of_either_are_proof(policy: PolicyView, suffix: str) -> None:
    case = case_of(policy, TWO_MODELS)
    for labels in (of_model(f"NVIDIA-H100-80GB-HBM3{suffix}", 2), of_model(f"NVIDIA-A30{suffix}", 1)):
        assert find_mismatch(with_labels(case, **labels), label_checks) is None


def test_the_product_of_one_card_model_with_the_count_of_the_other_is_no_proof() -> None:
    case = case_of(FULL, TWO_MODELS)
    mismatch = find_mismatch(with_labels(case, **of_model("NVIDIA-H100-80GB-HBM3", 1)), label_checks)
    assert mismatch is not None
    assert not lacks(mismatch.message, "nvidia.com/gpu.count is 1", "2")
    other = find_mismatch(with_labels(case, **of_model("Tesla-T4", 1)), label_checks)
    assert other is not None
    assert not lacks(other.message, "is Tesla-T4", "NVIDIA-H100-80GB-HBM3", "NVIDIA-A30")


def test_where_one_of_two_models_is_divided_the_whole_one_gives_the_product() -> None:
    layouts = {"layouts": [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}]}
    case = case_of(make_policy(mig=layouts), (H100, "NVIDIA A30"))
    assert find_mismatch(with_labels(case, **{names.LABEL_GPU_PRODUCT: "NVIDIA-A30"}), label_checks) is None
    other = find_mismatch(with_labels(case, **{names.LABEL_GPU_PRODUCT: "NVIDIA-H100-80GB-HBM3"}), label_checks)
    assert other is not None
    assert other.message.endswith("is NVIDIA-H100-80GB-HBM3, but should be NVIDIA-A30")


def test_what_is_there_is_described_with_its_shares() -> None:
    case = case_of(SLICED)
    assert verify.describe_observed(case.node, case.observed) == "4x shared"
    sliced = case_of(MIG_SLICED)
    assert verify.describe_observed(sliced.node, sliced.observed) == "2x3g.40gb 2x shared"
    assert verify.describe_observed(case.node, None) == ""
    assert verify.describe_observed(case.node, GONE) == ""


LEFT = {
    "two of three GPUs": (
        (EXCLUSIVE, make_gpu(1), make_gpu(2, compute_mode="ExclusiveProcess")),
        "GPUs 0, 2 are in compute mode ExclusiveProcess, left behind by MPS; run on the node: for gpu in 0 2; do"
        " nvidia-smi -i $gpu -c 0; done",
    ),
    "all GPUs, in two modes": (
        (EXCLUSIVE, make_gpu(1, compute_mode="Prohibited")),
        "GPUs 0, 1 are in compute mode ExclusiveProcess and Prohibited, left behind by MPS; run on the node:"
        " nvidia-smi -c 0",
    ),
    "one GPU beside one that is served": (
        (SERVED, make_gpu(1, compute_mode="ExclusiveProcess")),
        "GPU 1 is in compute mode ExclusiveProcess, left behind by MPS; run on the node: nvidia-smi -i 1 -c 0",
    ),
    "none, all are served": (
        (SERVED, replace(SERVED, index=1)),
        "GPUs 0, 1 are in compute mode ExclusiveProcess: the MPS daemon still serves them",
    ),
    "none, one has MIG": (
        (make_gpu(0, layout=(("3g.40gb", 2),), compute_mode="ExclusiveProcess"), make_gpu(1)),
        "",
    ),
}


@pytest.mark.parametrize(("gpus", "told"), LEFT.values(), ids=LEFT.keys())
def test_one_message_names_all_gpus_that_mps_left_exclusive_and_one_command_resets_them(
    gpus: tuple[GpuView, ...], told: str
) -> None:
    assert find_exclusive(Hardware.of(gpus)) == told


# --- ResourceSlices ----------------------------------------------------------------------------------------------------

SMALL: Layout = (("1g.10gb", 7),)
MIXTURE: Layout = (("3g.40gb", 1), ("1g.10gb", 4))


ONE_FULL, ONE_SMALL, TWO_SMALL = "1x full (1 GPU)", "7x1g.10gb (1 GPU)", "7x1g.10gb (2 GPUs)"
SLICES: dict[str, tuple[NodeDevices | None, tuple[Layout | None, ...], str]] = {
    "whole GPUs": (NodeDevices((None, None)), (None, None), ""),
    "GPUs in another order": (NodeDevices((SMALL, MIXTURE, None)), (None, MIXTURE, SMALL), ""),
    "MIG on without instances": (NodeDevices((SMALL,)), ((), SMALL), ""),
    "no device at all": (NodeDevices(()), ((),), ""),
    "nothing is published": (None, (None,), "publishes no ResourceSlice for gpu-1"),
    "the pool is incomplete": (
        NodeDevices((None,), missing=1), (None,), "has not published 1 ResourceSlice of pool gpu-1 yet"),
    "a device of another kind": (NodeDevices((None,), others=("vfio-0",)), (None,), "vfio-0"),
    "a whole GPU in place of instances": (NodeDevices((None,)), (SMALL,), f"show {ONE_FULL} instead of {ONE_SMALL};"),
    "instances in place of a whole GPU": (NodeDevices((SMALL,)), (None,), f"show {ONE_SMALL} instead of {ONE_FULL};"),
    "one GPU too few": (NodeDevices((SMALL,)), (SMALL, SMALL), f"show {ONE_SMALL} instead of {TWO_SMALL};"),
    "an empty pool": (NodeDevices(()), (None, None), "show no device instead of 1x full (2 GPUs)"),
    "a whole GPU in place of none": (NodeDevices((None,)), ((),), f"show {ONE_FULL} instead of no device;"),
    "one GPU has another layout": (NodeDevices((SMALL, MIXTURE)), (SMALL, SMALL), f"(1 GPU) instead of {TWO_SMALL};"),
}  # fmt: skip


@pytest.mark.parametrize(("devices", "layouts", "says"), SLICES.values(), ids=SLICES)
def test_slices_agree_with_the_target_or_the_difference_is_named(
    devices: NodeDevices | None, layouts: tuple[Layout | None, ...], says: str
) -> None:
    said = find_slice_mismatch(replace(make_node("gpu-1"), devices=devices), layouts, None)
    assert says in said
    assert bool(said) is bool(says)


@pytest.mark.parametrize(
    ("published", "read", "agrees"),
    [("a", "a", True), ("a", "b", False), ("a", "", True), ("", "b", False)],
    ids=["the same devices", "made anew", "the agent's are unknown", "the driver's are unknown"],
)
def test_the_same_layout_made_anew_has_other_devices(published: str, read: str, agrees: bool) -> None:
    observed = make_gpunode(gpus=[make_gpu(layout=SMALL)]).observed
    assert observed is not None
    node = replace(make_node("gpu-1"), devices=NodeDevices((SMALL,), key=key_of((published,)) if published else ""))
    said = find_slice_mismatch(node, (SMALL,), replace(observed, devices=(read,) if read else ()))
    assert said == "" if agrees else not lacks(said, "ResourceSlices of gpu-1", "NVML")
