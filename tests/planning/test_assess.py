"""What is true of one node, whatever the time: every question that assess.py asks, each clause by itself."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from tests.build import (
    H100,
    NO_MIG_MANAGER,
    make_cluster_policy,
    make_gpu,
    make_gpunode,
    make_node,
    make_policy,
    make_stack,
)
from tests.configs import target_for
from tests.planning.cases import (
    FULL,
    MIG_SLICED,
    MIXED,
    MPS,
    SINGLE,
    SLICED,
    T4,
    assessed_of,
    copy_of,
    make_case,
    world_of,
)
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, PlainStackView, StackView
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, NodeView, ObservedView, PolicyView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators import LABELS
from gpusharing.planning.wanted.assess import Assessed, Assessment, Untargeted, assess, find_disruption, has_gpu
from gpusharing.planning.wanted.pluginconfig import render
from gpusharing.planning.wanted.target import PolicyTargets, Target, find_request
from gpusharing.planning.wanted.verify import (
    EXCLUSIVE,
    SETTING,
    Comparison,
    Source,
    find_disagreements,
    future_labels,
    label_checks,
    needs_two_steps,
    tell_guest_reset,
    uses_mps,
)

EIGHT = make_policy(mode="MPS", mps={"replicas": 8})
HALVES = (("3g.40gb", 2),)
PLAIN = replace(
    make_cluster_policy(switches=NO_MIG_MANAGER, mig_config_name=""),
    plain=PlainStackView("nvdp-nvidia-device-plugin", "nvdp"),
)
STACK = make_stack(FULL, SLICED, MPS, EIGHT, MIXED)


def target_of(policy: PolicyView, *gpus: GpuView, stack: StackView = STACK) -> Target:
    found = target_for(policy, gpus or (make_gpu(),), stack)
    assert isinstance(found, Target), found
    return found


def told(policy: PolicyView, **labels: str) -> NodeView:
    """gpu-07, whose device plugin is told what the policy means for a whole GPU."""
    return make_node(labels={names.LABEL_PLUGIN_CONFIG: target_of(policy).plugin_key, **labels})


def seen(*gpus: GpuView) -> ObservedView:
    observed = make_gpunode(gpus=gpus).observed
    assert observed is not None, "make_gpunode reports unless told otherwise"
    return observed


THEIRS = render(replace(target_of(MPS).plugin, mig_strategy="mixed"))
PLAINLY = replace(STACK, cluster_policy=PLAIN, plugin_configs={**STACK.plugin_configs, "theirs": THEIRS})
"""Without the GPU Operator; "theirs" is MPS as ours, but for the MIG strategy."""
WHOLE, SERVED, DIVIDED = make_gpu(), make_gpu(compute_mode=EXCLUSIVE), make_gpu(layout=HALVES)
SECOND_DIVIDED = (make_gpu(0), make_gpu(1, layout=HALVES))

# --- MPS, and the stop on the way ---------------------------------------------------------------------------------

USES_MPS: dict[str, tuple[NodeView, tuple[GpuView, ...], bool]] = {
    "it is configured, and its daemon serves the GPU": (told(MPS), (SERVED,), True),
    "it is configured, and its daemon is yet to come": (told(MPS), (WHOLE,), True),
    "it is configured no more, and its daemon is still there": (told(FULL), (SERVED,), True),
    "its daemon serves one GPU of two": (told(FULL), (make_gpu(0), make_gpu(1, compute_mode=EXCLUSIVE)), True),
    "time-slicing is configured": (told(SLICED), (WHOLE,), False),
    "nothing is shared": (told(FULL), (WHOLE,), False),
    "the label names no configuration": (make_node(labels={names.LABEL_PLUGIN_CONFIG: "gone"}), (WHOLE,), False),
}


@pytest.mark.parametrize(("node", "gpus", "used"), USES_MPS.values(), ids=USES_MPS)
def test_mps_is_in_use_where(node: NodeView, gpus: tuple[GpuView, ...], used: bool) -> None:
    assert uses_mps(node, seen(*gpus), STACK) is used


STOPS: dict[str, tuple[NodeView, tuple[GpuView, ...], PolicyView, StackView, bool]] = {
    "from MPS to MIG": (told(MPS), (SERVED,), MIXED, STACK, True),
    "from whole GPUs to MIG": (told(FULL), (WHOLE,), MIXED, STACK, False),
    "from MIG to MPS": (told(FULL), (DIVIDED,), MPS, STACK, True),
    "to MPS where one GPU of two is divided": (told(FULL), SECOND_DIVIDED, MPS, STACK, True),
    "from MIG to whole GPUs": (told(FULL), (DIVIDED,), FULL, STACK, False),
    "from MPS to whole GPUs": (told(MPS), (SERVED,), FULL, PLAINLY, False),
    "from whole GPUs to MPS": (told(FULL), (WHOLE,), MPS, PLAINLY, False),
    "to MPS over a daemon that somebody left behind": (told(FULL), (SERVED,), MPS, PLAINLY, True),
    "to more clients, where the daemon's pod may be deleted": (told(MPS), (SERVED,), EIGHT, STACK, False),
    "to more clients, where it may not": (told(MPS), (SERVED,), EIGHT, PLAINLY, True),
    "to the clients that the daemon has": (told(MPS), (SERVED,), MPS, PLAINLY, False),
    "to the clients that the daemon has, under another MIG strategy": (
        make_node(labels={names.LABEL_PLUGIN_CONFIG: "theirs"}), (SERVED,), MPS, PLAINLY, False,
    ),
    "to MPS, and nothing is known of the stack": (
        told(MPS), (SERVED,), EIGHT, replace(STACK, cluster_policy=None), False,
    ),
    "to MPS on a card without MIG, with a label that nobody acts on": (
        make_node(labels={names.LABEL_MIG_CONFIG: "all-1g.10gb"}), (make_gpu(product=T4),), MPS, PLAINLY, False,
    ),
    "to MPS from a configuration that nobody can read": (
        make_node(labels={names.LABEL_PLUGIN_CONFIG: "gone"}), (SERVED,), MPS, PLAINLY, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("node", "gpus", "policy", "stack", "stops"), STOPS.values(), ids=STOPS)
def test_the_way_stops_at_whole_gpus(
    node: NodeView, gpus: tuple[GpuView, ...], policy: PolicyView, stack: StackView, stops: bool
) -> None:
    assert needs_two_steps(Comparison(node, seen(*gpus), target_of(policy, *gpus), stack)) is stops


# --- a GPU at all, and one that somebody reads -----------------------------------------------------------------------

GPU_SIGNS: dict[str, tuple[NodeView, bool]] = {
    "GPU Feature Discovery says so": (
        make_node(resources={}, labels={names.LABEL_GPU_PRESENT: "true"}), True,
    ),
    "it says that there is none": (make_node(resources={}, labels={names.LABEL_GPU_PRESENT: "false"}), False),
    "a product is named": (make_node(resources={}, labels={names.LABEL_GPU_PRODUCT: "Tesla-T4"}), True),
    "the device plugin serves one": (make_node(resources={"nvidia.com/gpu": 1}), True),
    "the device plugin serves none any more": (make_node(resources={"nvidia.com/gpu": 0}), False),
    "nobody says anything": (make_node(resources={"cpu": 4}), False),
}  # fmt: skip


@pytest.mark.parametrize(("node", "found"), GPU_SIGNS.values(), ids=GPU_SIGNS)
def test_a_node_has_a_gpu_when(node: NodeView, found: bool) -> None:
    assert has_gpu(node) is found


def assessed(node: NodeView, report: GPUNodeView | None, policy: PolicyView = FULL) -> Assessment:
    assert policy.spec is not None, "make_policy gives every policy a spec"
    targets = PolicyTargets(policy, find_request(policy.name, policy.spec), STACK)
    return assess(node, report, targets, actuator=LABELS)


def test_a_gpu_that_only_the_agent_sees_is_one() -> None:
    bare = make_node(resources={})
    assert isinstance(assessed(bare, make_gpunode()), Assessed)
    for report in (None, make_gpunode(gpus=())):
        found = assessed(bare, report)
        assert isinstance(found, Untargeted), "nobody sees any"
        assert found.objection.reason is Reason.NO_GPU


def test_a_card_that_cannot_be_what_is_wanted_has_no_target() -> None:
    found = assessed(make_node(), make_gpunode(gpus=(make_gpu(product=T4),)), MIXED)
    assert isinstance(found, Untargeted)
    assert found.accepted, "only this node cannot"
    assert found.objection.reason is Reason.NOT_MIG_CAPABLE


def test_a_gpu_that_never_told_its_name_is_named_by_its_number() -> None:
    found = assessed(make_node(), make_gpunode(gpus=(make_gpu(0), replace(make_gpu(1), product=""))))
    assert isinstance(found, Untargeted)
    assert found.unobserved
    assert found.objection.reason is Reason.GPU_UNHEALTHY
    assert "GPU 1 is not responding" in found.objection.message


UNREAD: dict[str, tuple[GPUNodeView | None, Reason, str]] = {
    "there is no report": (None, Reason.OBSERVATION_PENDING, "not reported yet"),
    "the agent never reported": (make_gpunode(observed=False), Reason.OBSERVATION_PENDING, "not reported yet"),
    "NVML failed": (
        make_gpunode(gpus=(), error="NVML: Driver Not Loaded"), Reason.AGENT_ERROR, "NVML: Driver Not Loaded",
    ),
    "NVML lists nothing": (make_gpunode(gpus=()), Reason.AGENT_ERROR, "check the driver on the node"),
}  # fmt: skip


@pytest.mark.parametrize(("report", "reason", "says"), UNREAD.values(), ids=UNREAD)
def test_a_node_whose_gpus_nobody_reads_has_no_target_and_says_why(
    report: GPUNodeView | None, reason: Reason, says: str
) -> None:
    found = assessed(make_node(), report)
    assert isinstance(found, Untargeted)
    assert found.unobserved, "nothing is as wanted while nobody knows"
    assert found.objection.reason is reason
    assert says in found.objection.message


# --- what a change disturbs ------------------------------------------------------------------------------------------

OTHER_PLUGIN = Finding(Reason.LABEL_MISMATCH, "the plugin is told something else")
ONE_HALVED, OTHER_HALVED = ((make_gpu(0, layout=HALVES), make_gpu(1)), (make_gpu(0), make_gpu(1, layout=HALVES)))
FIRST_IN_HALVES = make_policy(
    mig={"layouts": [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}]}
)
DONE = {names.LABEL_MIG_CONFIG: "all-disabled", names.LABEL_MIG_STATE: "success"}


def disturbed(
    node: NodeView, *gpus: GpuView, policy: PolicyView = FULL, stack: StackView = STACK, why: Finding = OTHER_PLUGIN
) -> DisruptionClass:
    return find_disruption(Comparison(node, seen(*gpus), target_of(policy, *gpus, stack=stack), stack), why)


def test_a_plugin_that_only_has_to_tell_more_disturbs_nobody() -> None:
    assert disturbed(told(SLICED, **DONE), WHOLE) is DisruptionClass.PLUGIN_RESTART
    assert disturbed(told(SLICED), WHOLE, stack=PLAINLY) is DisruptionClass.PLUGIN_RESTART, "no mig-manager to ask"
    assert disturbed(told(SLICED), make_gpu(product=T4)) is DisruptionClass.PLUGIN_RESTART, "no MIG to ask about"


def test_a_plugin_that_is_away_while_it_restarts_makes_it_no_change_that_drains() -> None:
    away = replace(told(FULL, **DONE), resources={})
    assert disturbed(away, WHOLE) is DisruptionClass.PLUGIN_RESTART
    assert disturbed(away, WHOLE, policy=SLICED) is DisruptionClass.GPU_PODS, "it offered other devices"
    unknown = replace(away, labels={**away.labels, names.LABEL_PLUGIN_CONFIG: "gone"})
    assert disturbed(unknown, WHOLE) is DisruptionClass.GPU_PODS, "nobody knows what it offered"


MIG_MANAGER_IS_NOT_DONE: dict[str, dict[str, str]] = {
    "it was never told anything": {names.LABEL_MIG_CONFIG: "", names.LABEL_MIG_STATE: ""},
    "it was told something else": {names.LABEL_MIG_CONFIG: "all-balanced"},
    "it is at work": {names.LABEL_MIG_STATE: "pending"},
    "it failed": {names.LABEL_MIG_STATE: "failed"},
    "it left an operand paused": {names.LABEL_DEPLOY_PREFIX + names.DEPLOY_PAUSABLE[0]: "paused-for-mig-change"},
}


@pytest.mark.parametrize("labels", MIG_MANAGER_IS_NOT_DONE.values(), ids=MIG_MANAGER_IS_NOT_DONE)
def test_the_pods_of_a_node_go_first_where_mig_manager_is_not_done(labels: dict[str, str]) -> None:
    assert disturbed(told(FULL, **{**DONE, **labels}), WHOLE) is DisruptionClass.GPU_PODS


def test_the_pods_go_first_where_the_same_resources_are_to_come_from_other_gpus() -> None:
    target = target_of(FIRST_IN_HALVES, *ONE_HALVED)
    labels = {names.LABEL_MIG_CONFIG: target.mig_config, names.LABEL_MIG_STATE: "success"}
    node = replace(told(FULL, **labels), resources=target.resources)
    assert disturbed(node, *ONE_HALVED, policy=FIRST_IN_HALVES) is DisruptionClass.PLUGIN_RESTART
    moved = (make_gpu(0, layout=(("1g.10gb", 7),)), make_gpu(1))
    assert disturbed(node, *moved, policy=FIRST_IN_HALVES) is DisruptionClass.GPU_PODS
    assert disturbed(node, *OTHER_HALVED, policy=FIRST_IN_HALVES) is DisruptionClass.RESET


def test_clients_of_mps_go_first_only_where_its_daemon_starts_anew() -> None:
    served = replace(told(MPS, **DONE), resources=target_of(MPS).resources)
    assert disturbed(served, SERVED, policy=MPS) is DisruptionClass.GPU_PODS
    unhealthy = Finding(Reason.GPU_UNHEALTHY, "GPU 0 does not answer")
    assert disturbed(served, SERVED, policy=MPS, why=unhealthy) is DisruptionClass.PLUGIN_RESTART
    last_of_mps = replace(told(MPS, **DONE), resources={"nvidia.com/gpu": 1})
    assert disturbed(last_of_mps, SERVED) is DisruptionClass.GPU_PODS, "it ends"


def test_a_mig_mode_that_changes_or_waits_needs_a_reset_and_with_reboot_a_reboot() -> None:
    reboots = replace(STACK, cluster_policy=make_cluster_policy(with_reboot=True))
    for gpu in (DIVIDED, make_gpu(mig_pending=True)):
        assert disturbed(told(FULL, **DONE), gpu) is DisruptionClass.RESET
        assert disturbed(told(FULL, **DONE), gpu, stack=reboots) is DisruptionClass.REBOOT
        unknown = replace(STACK, cluster_policy=None)
        assert disturbed(told(FULL, **DONE), gpu, stack=unknown) is DisruptionClass.RESET


# --- drift ---------------------------------------------------------------------------------------------------------

NOT_PROVEN_BEFORE: dict[str, dict[str, Any]] = {
    "another policy proved it": {"policy": "pool-a"},
    "another MIG configuration was proven": {"mig_config": "all-1g.10gb"},
    "another plugin configuration was proven": {"plugin_config": "pool-b-0000000"},
    "another layout was proven under these names": {"layout": "2x3g.40gb"},
}


def drifting(**proof: Any) -> bool:
    """Whether gpu-07, proven under FULL and now divided behind our back, counts as drifted."""
    was = make_case(FULL).node.verified
    assert was is not None, "a world at rest is proven"
    case = make_case(
        FULL, node={"verified": replace(was, **proof)}, gpunode={"observed": seen(make_gpu(layout=HALVES))}
    )
    found = assessed_of(case)
    assert found.mismatch is not None
    return found.drift is not None


def test_a_node_that_differs_from_what_was_proven_on_it_has_drifted() -> None:
    assert drifting()


@pytest.mark.parametrize("proof", NOT_PROVEN_BEFORE.values(), ids=NOT_PROVEN_BEFORE)
def test_a_node_that_differs_has_not_drifted_where(proof: dict[str, Any]) -> None:
    assert not drifting(**proof)


def test_a_node_that_is_as_wanted_has_not_drifted() -> None:
    found = assessed_of(make_case(FULL))
    assert (found.mismatch, found.drift) == (None, None)


# --- MIG modes that a virtual machine may be unable to switch ---------------------------------------------------------


def report(*, guest: bool, pending: bool = False) -> ObservedView:
    return seen(replace(make_gpu(), reset_in_guest=guest, mig_pending=pending))


CHART = replace(make_cluster_policy(), plain=PlainStackView("nvdp", "nvdp"))
SILENT: dict[str, tuple[bool, ClusterPolicyView | None]] = {
    "no GPU needs a reset in a guest": (False, make_cluster_policy()),
    "mig-manager may reboot the node": (True, make_cluster_policy(with_reboot=True)),
    "there is no mig-manager to reboot it": (True, CHART),
    "there is no ClusterPolicy": (True, None),
}


@pytest.mark.parametrize(("guest", "cluster_policy"), SILENT.values(), ids=SILENT.keys())
def test_nothing_is_said_where_the_setting_would_not_help(
    guest: bool, cluster_policy: ClusterPolicyView | None
) -> None:
    assert tell_guest_reset(report(guest=guest), make_stack(FULL, cluster_policy=cluster_policy)) == ""


def test_the_setting_is_named_where_it_helps_and_beside_nvidias_chart_it_is_that_of_mig_managers_daemonset() -> None:
    policy = replace(CHART, plain=PlainStackView("nvdp", "nvdp", "nvidia-mig-manager", pausable=True))
    advice = tell_guest_reset(report(guest=True), make_stack(FULL, cluster_policy=policy))
    assert not lacks(advice, 'WITH_REBOOT "true"', "DaemonSet nvidia-mig-manager")
    assert SETTING in tell_guest_reset(report(guest=True), make_stack(FULL))
    assert tell_guest_reset(None, make_stack(FULL)) == ""


@pytest.mark.parametrize("guest", [True, False])
def test_a_pending_mode_of_a_virtual_machine_is_told_with_the_setting(guest: bool) -> None:
    observed, stack = report(guest=guest, pending=True), make_stack(FULL)
    compared = Comparison(make_case(MIXED).node, observed, target_of(FULL, *observed.gpus, stack=stack), stack)
    told = find_disagreements(compared, label_checks)[Source.NVML]
    assert not lacks(told.message, "GPU 0", "MIG mode change", "reset", "reboots")
    assert (SETTING in told.message) is guest


# --- labels that GPU Feature Discovery will write after a change ------------------------------------------------------

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
    return future_labels(
        node, target_of(policy, *gpus, stack=make_stack(policy, models=gpus)), report.observed, policy.name
    )


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
