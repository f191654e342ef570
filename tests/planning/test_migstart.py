"""On which nodes mig-manager would change GPUs at its start, which live by ClusterPolicy's mig.strategy, and the commands that respect both."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from tests.build import (
    NOW,
    SETTINGS,
    make_cluster_policy,
    make_effects,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_policy,
    make_snapshot,
    make_stack,
    make_start,
)
from tests.planning.test_acceptance import PLAIN_MIG
from tests.planning.test_installation import GOOD, PLUGIN
from tests.seen import make_map
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.planning.rollout import foresee, plan_rollout
from gpusharing.planning.snapshot.nvidia import (
    PLUGIN_SWITCH,
    ClusterPolicyView,
    DaemonSetState,
    DraView,
    PlainStackView,
    StackView,
)
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, NodeView, PolicyView
from gpusharing.planning.stack.acceptance import find_due_changes, find_objection
from gpusharing.planning.stack.drastack import find_missing_parts
from gpusharing.planning.stack.effects import FREE_STRATEGY, START_MIG_MANAGER, UNKNOWN, find_effects, tell_effects
from gpusharing.planning.vocabulary.commands import Command, Effect, Loss, label_commands
from gpusharing.planning.vocabulary.reasons import Reason

MANAGED = "nvidia.com/gpu.deploy.mig-manager"
WHOLE, SMALL = make_gpu(), make_gpu(layout=(("1g.10gb", 7),))
ODD = make_gpu(layout=(("1g.10gb", 3),))
ROWS = "mig-configs: {three: [{devices: all, mig-enabled: true, mig-devices: {1g.10gb: 3}}]}"
FIRST_ONLY = "mig-configs: {first: [{devices: [0], mig-enabled: true, mig-devices: {1g.10gb: 7}}]}"
TWO = [SMALL, replace(SMALL, index=1)]


def changes(config: str, gpus: list[GpuView] | None, stack: StackView | None = None, **more: Any) -> tuple[Effect, ...]:
    labels = {MANAGED: "true"} | ({names.LABEL_MIG_CONFIG: config} if config else {}) | more.pop("labels", {})
    node = make_node(labels=labels, **more)
    return started(node, None if gpus is None else make_gpunode(gpus=gpus), stack)


def started(
    node: NodeView, gpunode: GPUNodeView | None, stack: StackView | None = None, **fields: Any
) -> tuple[Effect, ...]:
    gpunodes = [] if gpunode is None else [gpunode]
    snapshot = make_snapshot([node], gpunodes=gpunodes, stack=stack or make_stack(), **fields)
    return find_effects(START_MIG_MANAGER, snapshot)


def admin(text: str) -> StackView:
    return make_stack(admin_mig_file=text)


UNCHANGED: dict[str, tuple[str, list[GpuView], StackView]] = {
    "whole GPUs under NVIDIA's default label": ("all-disabled", [WHOLE], make_stack()),
    "whole GPUs without a label": ("", [WHOLE], make_stack()),
    "GPUs that have what NVIDIA's name means": ("all-1g.10gb", TWO, make_stack()),
    "the same before our file has the name": ("all-1g.10gb", TWO, make_stack(models=[])),
    "GPUs that have what an entry of the admin's means": ("three", [ODD], admin(ROWS)),
    "a card without MIG beside one with it": (
        "all-1g.10gb", [SMALL, make_gpu(1, product="Tesla T4")], make_stack()),
    "GPUs for which the entry has no row": ("first", [SMALL, replace(ODD, index=1)], admin(FIRST_ONLY)),
    "GPUs whose label names no entry of our file": ("typo", TWO, make_stack()),
    "only cards without MIG": ("all-disabled", [make_gpu(product="Tesla T4")], make_stack()),
}  # fmt: skip


@pytest.mark.parametrize(("config", "gpus", "stack"), UNCHANGED.values(), ids=UNCHANGED.keys())
def test_mig_manager_leaves(config: str, gpus: list[GpuView], stack: StackView) -> None:
    assert changes(config, gpus, stack) == ()


CHANGED: dict[str, tuple[str, list[GpuView], StackView, str, str]] = {
    "GPUs divided by hand under NVIDIA's default label": (
        "all-disabled", TWO, make_stack(), "all-1g.10gb", "is all-disabled, but its GPUs have 7x1g.10gb"),
    "GPUs divided by hand without a label": (
        "", TWO, make_stack(), "all-1g.10gb", "is not set, which the GPU Operator takes for all-disabled, but"),
    "MIG without instances": (
        "all-disabled", [make_gpu(layout=())], make_stack(), "all-enabled", "its GPUs have MIG empty"),
    "whole GPUs whose label names instances": (
        "all-1g.10gb", [WHOLE], make_stack(), "all-disabled", "is all-1g.10gb, but its GPUs have 1x full"),
    "a layout that only the admin has an entry for": (
        "all-disabled", [ODD], admin(ROWS), "three", "but its GPUs have 3x1g.10gb"),
    "a layout that no entry has": (
        "all-disabled", [ODD], make_stack(), "", "but its GPUs have 3x1g.10gb"),
    "one GPU of two": (
        "all-disabled", [SMALL, replace(WHOLE, index=1)], make_stack(), "", "7x1g.10gb (1 GPU), 1x full (1 GPU)"),
    "an entry that covers only one GPU of two": (
        "first", [WHOLE, replace(WHOLE, index=1)], admin(FIRST_ONLY), "all-disabled", "is first"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "gpus", "stack", "name", "why"), CHANGED.values(), ids=CHANGED.keys())
def test_mig_manager_would_change(config: str, gpus: list[GpuView], stack: StackView, name: str, why: str) -> None:
    (change,) = changes(config, gpus, stack)
    label = name and f"nvidia.com/mig.config={name}"
    assert (change.node, change.loss, change.label, change.known) == ("gpu-07", Loss.GPUS, label, True)
    assert why in change.why


def test_a_label_of_which_nothing_is_known_counts_where_mig_manager_reads_another_file() -> None:
    stack = make_stack(cluster_policy=make_cluster_policy(mig_config_name="theirs"))
    (change,) = changes("typo", TWO, stack)
    assert (change.loss, change.label, change.known) == (Loss.GPUS, "", False)
    assert not lacks(tell_effects([change]), "unknown", "mig-manager", "gpu-07")


UNREAD: dict[str, tuple[GPUNodeView | None, str]] = {
    "no agent has reported": (None, "no agent has read its GPUs"),
    "the GPUNode is empty": (make_gpunode(observed=False), "no agent has read its GPUs"),
    "the agent cannot read NVML": (make_gpunode(error="driver not loaded"), "cannot read the GPUs: driver not"),
    "the agent keeps NVML closed": (make_gpunode(quiet=True), "is not reading the GPUs at the moment"),
    "NVML does not answer for a GPU": (
        make_gpunode(gpus=[replace(WHOLE, product="", mig_capable=False)]), "could not read all GPUs yet"),
    "the agent may not list instances": (
        make_gpunode(gpus=[replace(make_gpu(layout=()), instances_withheld=True)]), "is not allowed to list MIG"),
}  # fmt: skip


@pytest.mark.parametrize(("gpunode", "why"), UNREAD.values(), ids=UNREAD.keys())
def test_nobody_knows_what_mig_manager_would_change_where(gpunode: GPUNodeView | None, why: str) -> None:
    node = make_node(labels={MANAGED: "true", names.LABEL_MIG_CONFIG: "all-disabled"})
    (change,) = started(node, gpunode)
    assert (change.label, change.known) == ("", False)
    assert why in change.why


@pytest.mark.parametrize("config", ["all-disabled", "all-1g.10gb"])
def test_the_last_report_of_an_agent_that_is_not_ready_proves_nothing(config: str) -> None:
    node = make_node(labels={MANAGED: "true", names.LABEL_MIG_CONFIG: config})
    (change,) = started(node, make_gpunode(gpus=[WHOLE]), agents=())
    assert (change.label, change.known) == ("", False)
    assert "its agent is not Ready" in change.why
    assert "nvidia.com/gpu.deploy.mig-manager=false" in tell_effects([change])


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        pytest.param({}, True, id="a node for containers"),
        pytest.param({MANAGED: "true", names.LABEL_WORKLOAD_CONFIG: "vm-passthrough"}, True, id="the label is ignored"),
        pytest.param({names.LABEL_WORKLOAD_CONFIG: "vm-passthrough"}, False, id="reserved for VMs"),
        pytest.param({MANAGED: "false"}, False, id="a person keeps mig-manager off"),
    ],
)
@pytest.mark.parametrize("error", ["", "driver not loaded"])
def test_a_node_that_no_agent_can_read_holds_nobody_up_if_mig_manager_never_runs_there(
    labels: dict[str, str], error: str, counts: bool
) -> None:
    node = make_node(labels=labels)
    gpunode = make_gpunode(error=error) if error else make_gpunode(observed=False)
    assert bool(started(node, gpunode)) is counts
    assert started(node, gpunode, make_stack(cluster_policy=None)) != ()


def test_what_a_node_without_a_report_advertises_is_named() -> None:
    (change,) = changes("all-disabled", None, resources={"nvidia.com/mig-1g.10gb": 14})
    assert not lacks(change.why, "no agent", "nvidia.com/mig-1g.10gb")


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        ({MANAGED: ""}, False),
        ({MANAGED: "false", "nvidia.com/mig.capable": "true"}, False),
        ({"nvidia.com/mig.capable": "false"}, False),
        ({MANAGED: "paused-for-driver-upgrade"}, True),
    ],
    ids=["a node without GPUs", "switched off", "cards without MIG", "paused"],
)
def test_a_node_without_a_report_counts_only_if_mig_manager_may_change_it(labels: dict[str, str], counts: bool) -> None:
    assert bool(changes("all-disabled", None, labels=labels)) is counts


@pytest.mark.parametrize(("workload", "counts"), [("", True), ("container", True), ("vm-passthrough", False)])
def test_a_node_counts_before_mig_manager_is_switched_on(workload: str, counts: bool) -> None:
    node = make_node(labels={"nvidia.com/mig.capable": "true", "nvidia.com/gpu.workload.config": workload})
    assert bool(started(node, None)) is counts


@pytest.mark.parametrize(("stage", "counts"), [("fenced", True), ("actuating", False), ("yielded", True)])
def test_a_node_that_we_have_drained_and_are_changing_does_not_count(stage: Any, counts: bool) -> None:
    assert bool(changes("all-disabled", TWO, fence=make_fence(stage))) is counts


def test_nodes_with_the_same_layout_get_one_command_and_no_command_goes_without_all_labels() -> None:
    known = [make_start(f"gpu-{number}", "why", config) for number, config in enumerate(("a", "b", "a"))]
    label = "kubectl label node"
    assert [*map(str, label_commands(known))] == [
        f"{label} gpu-0 gpu-2 --overwrite nvidia.com/mig.config=a",
        f"{label} gpu-1 --overwrite nvidia.com/mig.config=b",
    ]
    restart = Command.of("kubectl rollout restart daemonset manager", effects=tuple(known))
    assert str(restart) == " && ".join([*map(str, label_commands(known)), "kubectl rollout restart daemonset manager"])
    assert Command.if_safe("kubectl rollout restart", effects=(*known, make_start("gpu-3", "why"))) is None


MISSING = replace(
    make_cluster_policy(mig_config_name="", switches={"migManager.enabled": False}),
    plain=PlainStackView("nvdp", "nvdp"),
)


def objected(**stack: Any) -> str:
    told = find_objection(make_policy(), make_stack(**stack), SETTINGS)
    assert told is not None
    return told.message


def test_the_command_that_adds_mig_manager_beside_nvidias_chart_comes_after_the_labels() -> None:
    change = make_start("gpu-1", "why", "all-1g.10gb")
    told = objected(cluster_policy=MISSING, effects=make_effects(starts=(change,)))
    assert "mig.config=all-1g.10gb && kubectl apply -k deploy/mig-manager" in told
    unnamed = make_effects(starts=(change, replace(change, label="")))
    assert "kubectl apply" not in objected(cluster_policy=MISSING, effects=unnamed)


OFF_BESIDE_DRA: dict[str, Any] = {
    "cluster_policy": make_cluster_policy(switches={PLUGIN_SWITCH: False, "migManager.enabled": False}),
    "dra": DraView(DaemonSetState("driver")),
}


def test_the_command_that_switches_mig_manager_on_with_dra_comes_after_the_labels() -> None:
    told = objected(**OFF_BESIDE_DRA, effects=make_effects(starts=(make_start("gpu-1", "why", "all-1g.10gb"),)))
    assert "; run: kubectl label node gpu-1 --overwrite nvidia.com/mig.config=all-1g.10gb && kubectl" in told
    told = objected(**OFF_BESIDE_DRA, effects=make_effects(starts=(make_start("gpu-1", "why"),)))
    assert "no configuration has the layout of gpu-1" in told
    assert "; run:" not in told


def test_mig_manager_that_is_off_beside_dra_counts_as_started_by_its_switch() -> None:
    stack = make_stack(**OFF_BESIDE_DRA)
    divided = make_gpunode("gpu-1", gpus=(make_gpu(layout=(("1g.10gb", 7),)),))
    node = make_node("gpu-1", labels={names.LABEL_MIG_CONFIG: "all-disabled", names.LABEL_MIG_CAPABLE: "true"})
    snapshot, change = make_snapshot([node], gpunodes=[divided], stack=stack), START_MIG_MANAGER
    assert change in find_due_changes((), snapshot)
    assert [effect.node for effect in find_effects(change, snapshot)] == ["gpu-1"]
    found = replace(stack, effects={change: find_effects(change, snapshot)})
    ((_, command),) = find_missing_parts(found, SETTINGS)
    assert str(command).startswith(
        "kubectl label node gpu-1 --overwrite nvidia.com/mig.config=all-1g.10gb && kubectl patch"
    )


def test_nodes_are_compared_only_while_something_may_start_mig_manager() -> None:
    """A view that changed with every layout would make the planner decide about every node anew."""
    plain = replace(make_cluster_policy(), plain=PlainStackView("nvdp", "nvdp", "manager", pausable=True))
    off: dict[str, bool | str] = {"migManager.enabled": False}
    found = {
        False: (make_stack(),),
        True: (
            make_stack(cluster_policy=make_cluster_policy(mig_config_name="")),
            make_stack(cluster_policy=make_cluster_policy(switches=off)),
            make_stack(cluster_policy=replace(plain, mig_manager_version="v0.14.0")),
            make_stack(gpu_cluster=True),
        ),
    }
    for expected, stacks in found.items():
        snapshots = (make_snapshot([make_node()], stack=stack) for stack in stacks)
        assert {bool([*find_due_changes((), snapshot)]) for snapshot in snapshots} == {expected}


# --- ClusterPolicy's mig.strategy --------------------------------------------------------------------------------------

WANTED = {"strategy": "single", "config": "all-1g.10gb"}
SINGLE = make_policy(mig=WANTED)
KEPT = make_policy(
    "kept",
    mig={"strategy": "mixed", "config": "all-1g.10gb"},
    nodeSelector={"matchLabels": {"gpusharing.dev/pool": "kept"}},
)
SEVENTHS = (("1g.10gb", 7),)
GPU = {names.LABEL_GPU_PRESENT: "true", "gpusharing.dev/pool": ""}
OFFERS = {"nvidia.com/mig-1g.10gb": 14}
ENTRIES = {
    "own": "version: v1\nflags: {migStrategy: mixed}\n",
    "other": "version: v1\nflags: {migStrategy: single}\n",
    "silent": "version: v1\n",
}


def other(
    name: str = "gpu-9", *, offers: Mapping[str, int] | None = None, labels: Mapping[str, str] | None = None
) -> NodeView:
    return make_node(name, labels={**GPU, **(labels or {})}, resources=offers or {})


def reporting(**gpu: Any) -> GPUNodeView:
    return make_gpunode("gpu-9", gpus=(make_gpu(0, **gpu), make_gpu(1, **gpu)))


DIVIDED, UNDIVIDED = reporting(layout=SEVENTHS), reporting()

USERS: dict[str, tuple[NodeView, GPUNodeView | None, str]] = {
    "nobody owns it": (other(offers=OFFERS), DIVIDED, "14 nvidia.com/mig-1g.10gb"),
    "its agent alone tells": (other(), DIVIDED, "14 nvidia.com/mig-1g.10gb"),
    "GFD alone tells": (other(labels={names.LABEL_GPU_PRODUCT: "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"}), None,
        "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"),
    "nothing is known of it": (other(), None, UNKNOWN),
    "its agent cannot read the GPUs": (other(), make_gpunode("gpu-9", gpus=(), error="no driver"), UNKNOWN),
    "its entry says nothing of MIG": (
        other(offers=OFFERS, labels={names.LABEL_PLUGIN_CONFIG: "silent"}), DIVIDED, "14 nvidia.com/mig-1g.10gb"),
    "its entry is not in our ConfigMap": (
        other(offers=OFFERS, labels={names.LABEL_PLUGIN_CONFIG: "gone"}), DIVIDED,
        "nvidia.com/device-plugin.config is gone, without which its device plugin shares and divides nothing, or does"
        " not start"),
    "its entry would give them other names": (
        other(offers=OFFERS, labels={names.LABEL_PLUGIN_CONFIG: "other"}), DIVIDED, "14 nvidia.com/mig-1g.10gb"),
    "a policy adopted it with this strategy": (
        other(offers=OFFERS, labels={"gpusharing.dev/pool": "kept", names.LABEL_POLICY: "kept"}), DIVIDED,
        "14 nvidia.com/mig-1g.10gb"),
    "its entry says the strategy itself": (
        other(offers=OFFERS, labels={names.LABEL_PLUGIN_CONFIG: "own"}), DIVIDED, ""),
    "its GPUs are whole": (other(offers={"nvidia.com/gpu": 2}), UNDIVIDED, ""),
    "GFD describes whole GPUs": (other(labels={names.LABEL_GPU_PRODUCT: "NVIDIA-H100-80GB-HBM3"}), None, ""),
    "its card has no MIG": (other(labels={names.LABEL_MIG_CAPABLE: "false"}), None, ""),
    "it has no GPU": (make_node("gpu-9", labels={"gpusharing.dev/pool": ""}, resources={}), None, ""),
    "its own policy waits for the removal": (make_node("gpu-9", resources=OFFERS), DIVIDED, ""),
}  # fmt: skip


def find(node: NodeView, report: GPUNodeView | None, **policy: Any) -> dict[str, str]:
    stack = make_stack(cluster_policy=make_cluster_policy(mig_strategy="mixed", **policy), plugin_configs=ENTRIES)
    reports = [] if report is None else [report]
    snapshot = make_snapshot([node], [SINGLE, KEPT], gpunodes=reports, stack=stack)
    effects = find_effects(FREE_STRATEGY, snapshot, partial(foresee, now=NOW))
    return {effect.node: effect.why for effect in effects if effect.loss is Loss.DEVICES}


@pytest.mark.parametrize(("node", "report", "devices"), USERS.values(), ids=USERS.keys())
def test_whether_a_node_lives_by_the_strategy_of_the_cluster(
    node: NodeView, report: GPUNodeView | None, devices: str
) -> None:
    assert find(node, report) == ({"gpu-9": devices} if devices else {})


def test_the_default_entry_counts_for_a_node_without_the_label() -> None:
    node = other(offers=OFFERS)
    assert find(node, DIVIDED, plugin_default="own") == {}
    assert find(node, DIVIDED, plugin_default="silent") != {}


def objection(cluster_policy: ClusterPolicyView, *nodes: NodeView, policy: PolicyView = SINGLE) -> str:
    served = {names.LABEL_DEPLOY_CLIENT: "true"} if cluster_policy.plain is not None else {}
    mine = make_node("gpu-1", labels=GPU | {"gpusharing.dev/pool": "b"} | served, resources=OFFERS)
    stack = make_stack(cluster_policy=cluster_policy)
    plan = plan_rollout(make_snapshot([mine, *nodes], [policy], gpunodes=(), stack=stack), NOW)
    assert plan.objections["pool-b"].reason is Reason.MIG_STRATEGY_SET
    return plan.objections["pool-b"].message


REFUSING = {
    "ClusterPolicy": (make_cluster_policy(mig_strategy="mixed"), '"strategy":null'),
    "NVIDIA's chart": (replace(PLAIN_MIG, mig_strategy="mixed"), "migStrategy=null"),
}


@pytest.mark.parametrize(("cluster_policy", "command"), REFUSING.values(), ids=REFUSING.keys())
def test_no_message_removes_the_strategy_that_another_node_lives_by(
    cluster_policy: ClusterPolicyView, command: str
) -> None:
    whole = other("gpu-8", offers={"nvidia.com/gpu": 2}, labels={names.LABEL_GPU_PRODUCT: "NVIDIA-H100-80GB-HBM3"})
    assert command in objection(cluster_policy, whole), "nobody is harmed"
    said = objection(cluster_policy, whole, other("gpu-7"), other(offers=OFFERS))
    assert command not in said
    assert "run:" not in said
    assert f"gpu-7 ({UNKNOWN}), gpu-9 (14 nvidia.com/mig-1g.10gb)" in said
    assert not lacks(said, "agent of gpu-7")
    assert "flags.migStrategy: mixed" in said


def test_no_message_removes_the_strategy_that_the_pool_of_a_paused_policy_lives_by() -> None:
    """Its nodes would lose their MIG devices without a change that follows."""
    cluster_policy, command = REFUSING["ClusterPolicy"]
    said = objection(cluster_policy, policy=make_policy(mig=WANTED, rollout={"paused": True}))
    assert command not in said
    assert not lacks(said, "gpu-1 (14 nvidia.com/mig-1g.10gb", "its change would wait: Paused")
    assert command in objection(cluster_policy)


BY_ITS_ENTRY = {
    "nodes": (other(offers=OFFERS, labels={names.LABEL_PLUGIN_CONFIG: "own"}),),
    "config_maps": {**GOOD.config_maps, PLUGIN: make_map(ENTRIES, ours=True)},
}
NAMED = "gpu-9 (14 nvidia.com/mig-1g.10gb)"
HARMED: dict[str, tuple[dict[str, Any], str]] = {
    "no other node": ({"nodes": ()}, ""),
    "another offers MIG devices": ({"nodes": (other(offers=OFFERS),)}, NAMED),
    "its agent reports them": ({"nodes": (other(),), "gpunodes": {"gpu-9": DIVIDED}}, NAMED),
    "nobody may look": ({"nodes": (), "unread": {"nodes": "forbidden"}}, f"every GPU node ({UNKNOWN})"),
    "its own entry": (BY_ITS_ENTRY, ""),
}


@pytest.mark.parametrize("plain", [False, True], ids=["ClusterPolicy", "NVIDIA's chart"])
@pytest.mark.parametrize(("change", "named"), HARMED.values(), ids=HARMED)
def test_doctor_prints_the_removal_only_where_no_other_node_is_harmed(
    plain: bool, change: dict[str, Any], named: str
) -> None:
    cluster_policy = REFUSING["NVIDIA's chart" if plain else "ClusterPolicy"][0]
    stacks: dict[str, Any] = {"cluster_policies": () if plain else (cluster_policy,)}
    view = replace(GOOD, **stacks, plain=cluster_policy if plain else None, policies=(SINGLE,), **change)
    (found,) = (one for one in view.symptoms if one.reason == "MigStrategySet")
    assert ("null" in str(found.command)) == (not named)
    assert named in found.message
