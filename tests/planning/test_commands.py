"""Commands in messages can be pasted into a shell, and none is built that takes something from nodes unsaid."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from tests.build import (
    NO_MIG_MANAGER,
    NOW,
    SETTINGS,
    make_cluster_policy,
    make_gpu,
    make_gpunode,
    make_node,
    make_policy,
    make_snapshot,
    make_stack,
)
from tests.planning.recovery import WAITS, wanted
from tests.planning.world import World
from tests.seen import Seen
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import LABEL_PLUGIN_CONFIG, Phase
from gpusharing.planning.gpus.health import Vitals
from gpusharing.planning.rollout import foresee, plan_rollout
from gpusharing.planning.snapshot.actions import SetPointers
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.nvidia import PLUGIN_SWITCH, DaemonSetState, DraView, NodeDevices, PlainStackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, NodeView
from gpusharing.planning.stack.acceptance import with_effects
from gpusharing.planning.stack.effects import (
    FREE_STRATEGY,
    MIG_MANAGER,
    OPERANDS,
    PLUGIN,
    PLUGIN_POINTER,
    REQUIRE_CLIENT,
    RESTART_ALL,
    RESTART_PLUGIN,
    START_MIG_MANAGER,
    UNPLUG,
    find_effects,
    tell_effects,
    tell_strategy_users,
)
from gpusharing.planning.stack.installationviews import helm_install, kubectl_patch, plain_upgrade, upgrade
from gpusharing.planning.stack.pointers import find_held, mig_pointer, plan_pointers, plugin_pointer
from gpusharing.planning.stack.requirements import REQUIREMENTS
from gpusharing.planning.vocabulary.commands import (
    Change,
    Command,
    Effect,
    Loss,
    is_safe,
    label_command,
    label_commands,
)
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.verify import EXCLUSIVE

LOST = Effect("gpu-7", Loss.DEVICES, "8 nvidia.com/gpu")
KEPT = Effect("gpu-8", Loss.GPUS, "why", "nvidia.com/mig.config=all-1g.10gb")
CLIENTS = Effect("gpu-9", Loss.CLIENTS, "its MPS daemon restarts")

TOUCHES = [
    "helm install gpu-operator nvidia/gpu-operator -n gpu-operator",
    "helm upgrade nvdp nvdp/nvidia-device-plugin -n gpu-operator --reuse-values --set migStrategy=null",
    "helm uninstall nvdp -n gpu-operator",
    "kubectl patch clusterpolicy gpus --type merge -p {}",
    "kubectl delete clusterpolicy gpus",
    "kubectl -n gpu-operator delete daemonset nvidia-device-plugin",
    "kubectl -n gpu-operator edit daemonset nvidia-mig-manager",
    "kubectl -n gpu-operator patch daemonset nvidia-device-plugin --type json -p []",
    "kubectl -n gpu-operator rollout restart daemonset nvidia-device-plugin",
    "kubectl -n gpu-operator set env daemonset/mps -c config-manager PROCESS_TO_SIGNAL=mps-control-daemon",
    "kubectl -n gpu-operator set image daemonset/manager nvidia-mig-manager=REPOSITORY/k8s-mig-manager:v0.15.1",
    "kubectl -n gpu-operator delete pod -l app=nvidia-mig-manager",
    "kubectl -n gpu-operator edit configmap theirs",
    "kubectl label configmap theirs -n gpu-operator app.kubernetes.io/managed-by=us",
    "kubectl label namespace gpusharing-agent pod-security.kubernetes.io/enforce=privileged",
    "kubectl apply -k deploy/mig-manager",
    "kubectl label node gpu-1 nvidia.com/mig.config=all-disabled",
    "kubectl label node gpu-1 --overwrite nvidia.com/device-plugin.config=mixed",
    "kubectl label node gpu-1 nvidia.com/gpu.deploy.operands-",
    "kubectl label node gpu-1 gke-no-default-nvidia-gpu-device-plugin=true",
    "kubectl drain gpu-1",
    "apiclient set settings.kubelet-device-plugins.nvidia.enabled=false",
]
RIGHTS = {
    "kubectl uncordon gpu-1": "patch Nodes",
    "kubectl annotate node gpu-1 gpusharing.dev/fence-": "patch Nodes",
    "kubectl label node gpu-1 node.kubernetes.io/exclude-from-external-load-balancers-": "patch Nodes",
    "kubectl annotate gpunode gpu-1 --overwrite gpusharing.dev/retry=again": "patch GPUNodes",
    "kubectl annotate gsp training --overwrite gpusharing.dev/approve=0a1b": "patch GPUSharingPolicies",
}
"""What changes something and can be printed without effects, and the right that it needs."""
READS = [
    "kubectl get nodes -L nvidia.com/mig.config",
    "kubectl -n gpu-operator describe pods -l app=nvidia-mig-manager",
    "kubectl -n gpu-operator logs -l app=nvidia-mig-manager --prefix --tail 50",
    "kubectl auth can-i list nodes",
]


@pytest.mark.parametrize("line", TOUCHES)
def test_no_command_is_built_without_an_effect_that(line: str) -> None:
    with pytest.raises(ValueError, match="it is not said what nodes lose"):
        Command.of(line)
    with pytest.raises(ValueError, match="nothing protects"):
        Command.of(line, effects=(KEPT, LOST))
    assert Command.if_safe(line, effects=(LOST,)) is None
    assert Command.if_safe(line, effects=()) == Command.of(line, effects=())


@pytest.mark.parametrize(("line", "right"), RIGHTS.items(), ids=RIGHTS)
def test_what_takes_nothing_from_any_node_needs_no_effect_and_one_right(line: str, right: str) -> None:
    command = Command.of(line)
    assert str(command) == line
    assert command.right == right
    assert not command.reads


@pytest.mark.parametrize("line", READS)
def test_what_only_shows_something_needs_no_effect(line: str) -> None:
    assert Command.of(line).reads


def test_the_labels_that_protect_nodes_go_first_and_each_part_stands_alone() -> None:
    command = Command.of("kubectl apply -k deploy/mig-manager", effects=(KEPT, CLIENTS))
    label = "kubectl label node gpu-8 --overwrite nvidia.com/mig.config=all-1g.10gb"
    assert str(command) == f"{label} && kubectl apply -k deploy/mig-manager"
    assert [*map(str, command.parts)] == [label, "kubectl apply -k deploy/mig-manager"]
    again = command.after(Command.of("kubectl uncordon gpu-8"))
    assert [*map(str, again.parts)] == [label, "kubectl uncordon gpu-8", "kubectl apply -k deploy/mig-manager"]


def test_a_command_tells_what_it_changes() -> None:
    command = label_command(["gpu-1", "gpu-2"], "nvidia.com/mig.config=all-1g.10gb")
    assert (command.verb, command.kind, command.names) == ("label", "node", ("gpu-1", "gpu-2"))
    assert command.pairs == {"nvidia.com/mig.config": "all-1g.10gb"}
    unfence = Command.of("kubectl annotate node gpu-1 gpusharing.dev/fence- example.com/mark-")
    assert unfence.pairs == {"gpusharing.dev/fence": None, "example.com/mark": None}
    env = Command.of("kubectl -n nvidia set env daemonset/mps -c config-manager A=b", effects=())
    assert (env.kind, env.options, env.pairs) == ("daemonset", {"-n": "nvidia", "-c": "config-manager"}, {"A": "b"})
    uncordon = Command.of("kubectl uncordon gpu-1")
    assert (uncordon.kind, uncordon.names) == ("node", ("gpu-1",))


def test_the_shell_hands_every_argument_over_unchanged() -> None:
    plain = PlainStackView("nvdp", "nvdp", version="0.19.3")
    selector, tolerations = r"nodeSelector.nvidia\.com/gpu\.deploy\.client=true", 'tolerations=[{"key":"a b"}]'
    commands = [
        kubectl_patch("gpus", [("devicePlugin.config.name", "it's ours")], effects=()),
        plain_upgrade(plain, "gpu-operator", selector, effects=(), option="--set-string"),
        plain_upgrade(plain, "gpu-operator", tolerations, effects=(), option="--set-json"),
        upgrade("gpusharing", "gpusharing", "agent.runtimeClassName="),
        helm_install("gpusharing", "gpusharing", "gpu-operator", ["a=b", "c=d"]),
        Command.of("kubectl get node gpu-1 -o", r"jsonpath={.metadata.labels.nvidia\.com/cuda\.driver-version\.full}"),
    ]
    for command in commands:
        assert command is not None
        assert tuple(shlex.split(str(command))) == command.args


def test_what_is_set_in_one_block_is_set_by_one_patch() -> None:
    fields = [("migManager.config.name", "ours"), ("mig.strategy", None), ("migManager.enabled", True)]
    command = kubectl_patch("gpus", fields, effects=())
    assert str(command).endswith(
        """ -p '{"spec":{"migManager":{"config":{"name":"ours"},"enabled":true},"mig":{"strategy":null}}}'"""
    )


# --- what a change of the installation takes from nodes --------------------------------------------------------------

GPU = {names.LABEL_GPU_PRESENT: "true", names.LABEL_GPU_PRODUCT: "NVIDIA-H100-80GB-HBM3"}
SEVENTHS = (("1g.10gb", 7),)
SHARED = "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}"
MPS = "version: v1\nsharing: {mps: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}"
MIXED, SILENT = "version: v1\nflags: {migStrategy: mixed}", "version: v1"
OURS = {"default": SILENT, "shared": SHARED, "clients": MPS, "mixed": MIXED}


def node(resources: dict[str, int], **labels: str) -> NodeView:
    spelled = {f"nvidia.com/{key.replace('_', '-').replace('--', '.')}": value for key, value in labels.items()}
    return make_node("gpu-9", labels=GPU | spelled, resources=resources)


def cluster(one: NodeView, *gpus: Any, **fields: Any) -> ClusterSnapshot:
    policy = fields.pop("policy", make_cluster_policy())
    stack = make_stack(cluster_policy=policy, plugin_configs=OURS, **fields)
    reports = [make_gpunode("gpu-9", gpus=gpus)] if gpus else []
    return make_snapshot([one], [], gpunodes=reports, stack=stack)


WHOLE, SMALL = make_gpu(), make_gpu(layout=SEVENTHS)
SERVING = replace(WHOLE, compute_mode=EXCLUSIVE)
BARE = make_cluster_policy("", mig_config_name="")
DRIVER = next(row.change for row in REQUIREMENTS if row.label == "driver")
PLUGIN_ON = next(row.change for row in REQUIREMENTS if row.label == "device-plugin")
POINT = plugin_pointer(BARE, SETTINGS, OURS).change
TO_SHARED = Change(labels=((names.LABEL_PLUGIN_CONFIG, "shared"),), nodes=("gpu-9",))
TO_NONE = Change(labels=((names.LABEL_PLUGIN_CONFIG, None),), nodes=("gpu-9",))
TO_WHOLE = Change(labels=((names.LABEL_MIG_CONFIG, "all-disabled"),), nodes=("gpu-9",))
TO_CONTAINERS = Change(labels=((names.LABEL_WORKLOAD_CONFIG, "container"),), nodes=("gpu-9",))
BY_HAND = node(
    {"nvidia.com/mig-1g.10gb": 7},
    mig__config="all-disabled",
    gpu__deploy__mig_manager="true",
    device_plugin__config="mixed",
)
BY_DRA = replace(node({"nvidia.com/gpu": 1}), devices=NodeDevices(layouts=(None,)))

LOSSES: dict[str, tuple[Change, ClusterSnapshot, Loss, str]] = {
    "new tolerations restart mig-manager over GPUs that were divided by hand": (
        RESTART_ALL, cluster(BY_HAND, SMALL), Loss.GPUS, "but its GPUs have 7x1g.10gb"),
    "new tolerations restart a device plugin whose entry is gone": (
        RESTART_ALL, cluster(node({"nvidia.com/gpu": 8}, device_plugin__config="gone"), WHOLE),
        Loss.DEVICES, "device-plugin.config is gone"),
    "any restart of the plugin ends MPS clients": (
        RESTART_PLUGIN, cluster(node({"nvidia.com/gpu": 4}, device_plugin__config="clients"), SERVING),
        Loss.CLIENTS, "ends all its clients"),
    "the pointer takes the shares of an entry that ours lacks": (
        POINT, cluster(node({"nvidia.com/gpu": 4}, device_plugin__config="theirs"), WHOLE, policy=BARE),
        Loss.DEVICES, "device-plugin.config is theirs"),
    "the default of the cluster goes with the pointer": (
        plugin_pointer(replace(BARE, plugin_config_name="theirs", plugin_default="four"), SETTINGS, OURS).change,
        cluster(node({"nvidia.com/gpu": 4}, gpu__replicas="4"), WHOLE,
            policy=replace(BARE, plugin_config_name="theirs", plugin_default="four")),
        Loss.DEVICES, "4 nvidia.com/gpu"),
    "fewer shares by a label": (
        TO_NONE, cluster(node({"nvidia.com/gpu": 4}, device_plugin__config="shared"), WHOLE),
        Loss.DEVICES, "4 nvidia.com/gpu"),
    "whole GPUs by a label": (TO_WHOLE, cluster(node({"nvidia.com/mig-1g.10gb": 7}, mig__config="all-1g.10gb"), SMALL),
        Loss.GPUS, "is all-disabled, but its GPUs have 7x1g.10gb"),
    "mig-manager comes to a node of virtual machines": (
        TO_CONTAINERS, cluster(node({}, gpu__workload__config="vm-passthrough", mig__capable="true")), Loss.GPUS, "no agent has read"),
    "a driver beside the host's own": (
        DRIVER, cluster(node({"nvidia.com/gpu": 8}), WHOLE, policy=make_cluster_policy(switches={"driver.enabled": False})),
        Loss.DEVICES, "its host brings its own driver"),
    "a second device plugin": (
        PLUGIN_ON,
        cluster(replace(node({"nvidia.com/gpu": 8}), other_plugin="HAMi's device plugin"), WHOLE,
            policy=make_cluster_policy(switches={PLUGIN_SWITCH: False})),
        Loss.DEVICES, "HAMi's device plugin serves its GPUs"),
    "no device plugin any more": (UNPLUG, cluster(node({"nvidia.com/gpu": 8}), WHOLE), Loss.DEVICES, "8 nvidia.com/gpu"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "before", "loss", "why"), LOSSES.values(), ids=LOSSES.keys())
def test_a_node_loses_by(change: Change, before: ClusterSnapshot, loss: Loss, why: str) -> None:
    (effect,) = find_effects(change, before)
    assert (effect.node, effect.loss) == ("gpu-9", loss)
    assert why in effect.why


HARMLESS: dict[str, tuple[Change, ClusterSnapshot]] = {
    "a restart of everything where labels say what is": (
        RESTART_ALL, cluster(node({"nvidia.com/mig-1g.10gb": 7}, mig__config="all-1g.10gb",
            device_plugin__config="mixed"), SMALL)),
    "more shares by a label": (TO_SHARED, cluster(node({"nvidia.com/gpu": 1}), WHOLE)),
    "a restart of the plugin with a device that is not healthy": (
        RESTART_PLUGIN, cluster(node({"nvidia.com/gpu": 1}), WHOLE, make_gpu(1))),
    "an MPS daemon that serves no GPU": (
        RESTART_PLUGIN, cluster(node({"nvidia.com/gpu": 4}, device_plugin__config="clients"), WHOLE)),
    "a pointer that moves where everything is merged": (
        POINT, cluster(node({"nvidia.com/gpu": 1}), WHOLE, policy=BARE)),
    "a driver where no host has one": (DRIVER, cluster(node({}), policy=make_cluster_policy(switches=NO_MIG_MANAGER))),
    "mig-manager's file where mig-manager is off": (
        mig_pointer(BARE, SETTINGS).change, cluster(node({"nvidia.com/mig-1g.10gb": 7}, mig__config="all-disabled"), SMALL,
            policy=make_cluster_policy(mig_config_name="", switches=NO_MIG_MANAGER))),
    "a deploy label of a node whose GPUs are whole": (
        Change(labels=(("nvidia.com/gpu.deploy.mig-manager", "true"),), nodes=("gpu-9",)),
        cluster(node({"nvidia.com/gpu": 1}, gpu__deploy__mig_manager="false"), WHOLE)),
}  # fmt: skip


@pytest.mark.parametrize(("change", "before"), HARMLESS.values(), ids=HARMLESS.keys())
def test_nobody_loses_by(change: Change, before: ClusterSnapshot) -> None:
    assert find_effects(change, before) == ()


def test_a_label_protects_a_node_that_lives_by_the_strategy_of_the_cluster() -> None:
    mixed = make_cluster_policy(mig_strategy="mixed")
    effects = find_effects(FREE_STRATEGY, cluster(node({"nvidia.com/mig-1g.10gb": 7}), SMALL, policy=mixed))
    assert is_safe(effects)
    (command,) = label_commands(effects)
    assert str(command) == "kubectl label node gpu-9 --overwrite nvidia.com/device-plugin.config=mixed"
    protected = node({"nvidia.com/mig-1g.10gb": 7}, device_plugin__config="mixed")
    assert find_effects(FREE_STRATEGY, cluster(protected, SMALL, policy=mixed)) == ()


@pytest.mark.parametrize(("held", "lost"), [({}, False), ({"nvidia.com/gpu": 1}, True), (None, True)])
def test_a_device_plugin_beside_the_dra_driver_may_go_once_no_pod_holds_its_devices(
    held: dict[str, int] | None, lost: bool
) -> None:
    before = cluster(BY_DRA, WHOLE, dra=DraView(DaemonSetState("driver")))
    report = before.gpunodes["gpu-9"]
    assert report.observed is not None
    report = GPUNodeView("gpu-9", "", "", False, replace(report.observed, allocated=held))
    assert bool(find_effects(UNPLUG, replace(before, gpunodes={"gpu-9": report}))) is lost


def test_nodes_that_cannot_be_read_may_lose_anything_that_the_change_touches() -> None:
    before = make_snapshot(stack=make_stack(cluster_policy=BARE))
    effects = find_effects(mig_pointer(BARE, SETTINGS).change, before, unread=True)
    assert [(one.node, one.loss, one.known) for one in effects] == [("every GPU node", Loss.GPUS, False)]


def test_the_operator_sets_no_pointer_that_ends_mps_clients() -> None:
    settings = replace(SETTINGS, configure_gpu_operator=True)
    serving = node({"nvidia.com/gpu": 4}, device_plugin__config="clients", mps__capable="true")
    for gpu, due in (
        (SERVING, ["migManager.config.name"]),
        (WHOLE, ["devicePlugin.config.name", "migManager.config.name"]),
    ):
        before = cluster(serving, gpu, policy=BARE)
        found = with_effects(replace(before, settings=settings), Memo(), {}, {})
        action = plan_pointers(found.stack, settings, quiet=True)
        assert action is not None
        assert sorted(action.wanted) == due
        assert [effect.loss for effect in find_held(found.stack, settings)] == (
            [Loss.CLIENTS] if gpu is SERVING else []
        )


def test_accepted_names_the_nodes_whose_mps_clients_end() -> None:
    serving = node({"nvidia.com/gpu": 4}, device_plugin__config="clients", mps__capable="true")
    plan = plan_rollout(replace(cluster(serving, SERVING, policy=BARE), policies=(make_policy(mode="Full"),)), NOW)
    found = plan.objections["pool-b"]
    assert found.reason is Reason.PLUGIN_CONFIG_NOT_OURS
    assert not lacks(found.message, "MPS clients on gpu-9", "drain")


def test_a_failed_node_does_not_keep_the_pointers_that_it_waits_for_from_being_set() -> None:
    """The GPU Operator was installed anew in the middle of a change, and mig-manager does not find our entry."""
    world = World(settings=replace(WAITS, configure_gpu_operator=True))
    for number in range(3):
        world.add_node(f"gpu-{number}")
    world.set_policy(wanted("pool-b", 0, 1))
    world.settle()
    world.set_policy(wanted("pool-b", 3, 1))

    def turn() -> Any:
        for name in world.nodes:
            world.act(name)
        plan = world.step()
        world.now += 2 * SECOND
        return plan

    while not (
        actuating := [name for name, one in world.nodes.items() if one.fence and one.fence.stage == "actuating"]
    ):
        turn()
    policy = world.stack.cluster_policy
    assert policy is not None
    empty = replace(policy, mig_config_name="", plugin_config_name="", configured=frozenset())
    world.stack = replace(world.stack, cluster_policy=empty, serves_our_mig_file=False)
    world.machines[actuating[0]].temper = "fails"
    plan = turn()
    while plan.verdicts[actuating[0]].phase is not Phase.FAILED:
        assert not [one for one in plan.shared if isinstance(one, SetPointers)], "the change is going on"
        plan = turn()
    assert [one for one in plan.shared if isinstance(one, SetPointers)]


SECOND = NOW.resolution * 1_000_000


def test_messages_ask_for_no_change_whose_effects_were_not_found() -> None:
    policies = [make_policy(mode="Full"), make_policy("small", mig={"strategy": "single", "config": "all-1g.10gb"})]
    for policy in (BARE, replace(BARE, mig_strategy="mixed"), replace(BARE, switches=NO_MIG_MANAGER)):
        found = with_effects(replace(cluster(BY_HAND, SMALL, policy=policy), policies=tuple(policies)), Memo(), {}, {})
        assert found.stack.effects is not None
        objections = plan_rollout(replace(found, policies=tuple(policies)), NOW).objections
        assert set(objections) == {"pool-b", "small"}
        assert not [one for one in objections.values() if "every GPU node" in one.message]


PLAIN = replace(
    make_cluster_policy(mig_config_name="", switches=NO_MIG_MANAGER),
    plain=PlainStackView("nvdp", "nvdp", "", version="0.19.3"),
)


def test_a_mig_manager_that_does_not_run_yet_changes_gpus_at_its_first_start() -> None:
    """`kubectl apply -k deploy/mig-manager` and a switch that is off are judged as the start that they are."""
    (effect,) = find_effects(START_MIG_MANAGER, cluster(BY_HAND, SMALL, policy=PLAIN))
    assert effect.label == "nvidia.com/mig.config=all-1g.10gb"


def test_the_node_selector_of_nvidias_chart_takes_the_plugin_off_nodes_without_the_label() -> None:
    chart = replace(PLAIN, plain=PlainStackView("nvdp", "nvdp", "manager"))
    offering = node({"nvidia.com/gpu": 1})
    (effect,) = find_effects(REQUIRE_CLIENT, cluster(offering, WHOLE, policy=chart))
    assert effect.label == "nvidia.com/gpu.deploy.client=true"
    busy = node({"nvidia.com/gpu": 1}, gpu__deploy__client="paused-for-mig-change")
    (effect,) = find_effects(REQUIRE_CLIENT, cluster(busy, WHOLE, policy=chart))
    assert effect.label == "", "mig-manager is at work"
    labeled = node({"nvidia.com/gpu": 1}, gpu__deploy__client="true")
    assert find_effects(REQUIRE_CLIENT, cluster(labeled, WHOLE, policy=chart)) == ()


Fields = Mapping[str, Any]
UNREAD = "which no agent has read lately"
HELD: dict[str, tuple[Fields, Fields, Fields, str]] = {
    "it may start": ({}, {}, {}, ""),
    "its slot comes later": ({"rollout": {"maxUnavailable": 1}}, {}, {}, ""),
    "it is paused": ({"rollout": {"paused": True}}, {}, {}, "its change would wait: Paused"),
    "it waits for an approval": ({"rollout": {"approval": "Manual"}}, {}, {}, "its change would wait: ApprovalNeeded"),
    "its policy has no slot": ({"rollout": {"maxUnavailable": 0}}, {}, {}, "its change would wait: Frozen"),
    "its window is closed": (
        {"rollout": {"windows": [{"schedule": "0 0 29 2 *", "duration": "6h"}]}}, {}, {}, "would wait: WindowClosed"),
    "a person skips the node": ({}, {"gpusharing.dev/skip": "true"}, {}, "its change would wait: SkipLabel"),
    "its GPUs are for virtual machines": (
        {}, {"nvidia.com/gpu.workload.config": "vm-vgpu"}, {}, "its change would wait: WorkloadConfig"),
    "somebody else maintains it": ({}, {}, {"foreign": "kured"}, "its change would wait: ForeignMaintenance"),
    "it is not Ready": ({}, {}, {"ready": False}, "its change would wait: NodeNotReady"),
    "a person cordoned it": ({}, {}, {"unschedulable": True}, "its change would wait: AlreadyCordoned"),
    "its GPU asks for a reset": ({}, {}, {"gpu": Vitals(recovery="Reset")}, "its change would wait: GPUUnhealthy"),
    "its agent cannot read": ({}, {}, {"error": "NVMLFailed"}, UNREAD),
}  # fmt: skip
"""By what holds a node: fields of its policy, labels, and what else is there; why it would not get other devices."""


@pytest.mark.parametrize(("policy", "labels", "there", "why"), HELD.values(), ids=HELD.keys())
def test_a_node_whose_policy_cannot_replace_its_devices_soon_is_a_victim(
    policy: Fields, labels: Fields, there: Fields, why: str
) -> None:
    wants = make_policy(mig={"strategy": "mixed", "config": "all-1g.10gb"}, **policy)
    offering = node({"nvidia.com/gpu": 7}, mig__config="all-1g.10gb")
    fields = {key: value for key, value in there.items() if key not in ("gpu", "error")}
    offering = replace(offering, labels={**offering.labels, "gpusharing.dev/pool": "b", **labels}, **fields)
    gpu = replace(SMALL, vitals=there["gpu"]) if "gpu" in there else SMALL
    before = cluster(offering, gpu, policy=make_cluster_policy(mig_strategy="single"))
    report = before.gpunodes["gpu-9"]
    assert report.observed is not None
    report = replace(report, observed=replace(report.observed, error=there.get("error", "")))
    snapshot = replace(before, policies=(wants,), gpunodes={"gpu-9": report})
    (effect,) = find_effects(FREE_STRATEGY, snapshot, partial(foresee, now=NOW))
    assert effect.loss is (Loss.DEVICES if why else Loss.REPLACED)
    assert why in effect.why
    said = plan_rollout(snapshot, NOW).objections["pool-b"]
    assert (said.reason, bool(said.commands)) == (Reason.MIG_STRATEGY_SET, not why)


def test_devices_count_as_replaced_only_if_the_planner_was_asked() -> None:
    offering = node({"nvidia.com/gpu": 7}, mig__config="all-1g.10gb")
    offering = replace(offering, labels={**offering.labels, "gpusharing.dev/pool": "b"})
    before = cluster(offering, SMALL, policy=make_cluster_policy(mig_strategy="single"))
    wants = make_policy(mig={"strategy": "mixed", "config": "all-1g.10gb"})
    (effect,) = find_effects(FREE_STRATEGY, replace(before, policies=(wants,)))
    assert effect.loss is Loss.DEVICES


def test_the_planner_is_asked_about_a_change_only_if_a_node_would_lose_by_it() -> None:
    asked: list[Change] = []

    def foreseen(change: Change, _: object) -> dict[str, str]:
        asked.append(change)
        return {}

    wants = make_policy(mig={"strategy": "mixed", "config": "all-1g.10gb"})
    for count, gpu, config in ((1, WHOLE, "all-disabled"), (7, SMALL, "all-1g.10gb")):
        assert asked == []
        offering = node({"nvidia.com/gpu": count}, mig__config=config)
        offering = replace(offering, labels={**offering.labels, "gpusharing.dev/pool": "b"})
        before = cluster(offering, gpu, policy=make_cluster_policy(mig_strategy="single"))
        find_effects(FREE_STRATEGY, replace(before, policies=(wants,)), foreseen)
    assert asked == [FREE_STRATEGY]


def test_one_command_for_all_is_not_told_if_its_parts_take_more_together() -> None:
    policy = make_cluster_policy("admin", mig_strategy="mixed", plugin_default="default")
    before = cluster(node({"nvidia.com/mig-1g.10gb": 7}), SMALL, policy=policy, admin_plugin_configs={"default": MIXED})
    elsewhere = {"matchLabels": {"gpusharing.dev/pool": "elsewhere"}}
    wants = make_policy(mig={"strategy": "single", "config": "all-1g.10gb"}, nodeSelector=elsewhere)
    message = plan_rollout(replace(before, policies=(wants,)), NOW).objections["pool-b"].message
    assert '"devicePlugin"' in message
    assert '"strategy":null' not in message


def test_a_name_that_only_our_file_has_protects_nobody_while_mig_manager_reads_another() -> None:
    odd = make_gpu(layout=(("1g.10gb", 3),))
    ours = "mig-configs: {pool-b-1: [{devices: all, mig-enabled: true, mig-devices: {1g.10gb: 3}}]}"
    for policy in (make_cluster_policy(mig_config_name=""), make_cluster_policy(mig_config_name="theirs")):
        (effect,) = find_effects(START_MIG_MANAGER, cluster(BY_HAND, odd, policy=policy, mig_file=ours))
        assert effect.label == ""
    (effect,) = find_effects(START_MIG_MANAGER, cluster(BY_HAND, odd, mig_file=ours))
    assert effect.label == "nvidia.com/mig.config=pool-b-1"


def test_without_a_fresh_report_a_label_that_asks_for_instances_counts_under_strategy_single() -> None:
    offering = node({"nvidia.com/gpu": 7}, mig__config="all-1g.10gb")
    (effect,) = find_effects(FREE_STRATEGY, cluster(offering, policy=make_cluster_policy(mig_strategy="single")))
    assert (effect.loss, effect.known) == (Loss.DEVICES, False)


def test_beside_a_command_every_node_is_named() -> None:
    lost = [Effect(f"gpu-{number}", Loss.CLIENTS, "why") for number in range(60)]
    assert "gpu-59 would end" in tell_effects(lost)


def test_without_our_operator_no_command_beside_nvidias_chart_takes_what_nobody_knows() -> None:
    wants = make_policy(mig={"strategy": "mixed", "config": "all-1g.10gb"})
    view = Seen(nodes=(BY_HAND,), plain=PLAIN, policies=(wants,))
    (found,) = (one for one in view.symptoms if one.reason == "MigManagerMissing")
    assert str(found.command) == "kubectl get nodes -L nvidia.com/mig.config"
    assert not lacks(found.message, "unknown", "mig-manager", "gpu-9")


# --- deploy labels and entries, as NVIDIA's programs do (tests/nvidia) ----------------------------------------------

GONE = {LABEL_PLUGIN_CONFIG: "gone"}
SLICED = "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}"
DIVIDED = {"nvidia.com/mig-1g.10gb": 7}


def effects(
    change: Change,
    labels: dict[str, str],
    *,
    resources: dict[str, int] | None = None,
    divided: bool = False,
    strategy: str = "",
) -> list[Effect]:
    node = make_node(labels={MIG_MANAGER: "true", PLUGIN: "true", **labels}, resources=resources)
    gpunode = make_gpunode(gpus=[make_gpu(layout=SEVENTHS if divided else None)])
    stack = make_stack(cluster_policy=make_cluster_policy(mig_strategy=strategy), plugin_configs={"own": "version: v1"})
    return [*find_effects(change, make_snapshot([node], gpunodes=[gpunode], stack=stack))]


def relabel(**labels: str) -> Change:
    return Change(labels=tuple(labels.items()), nodes=("gpu-07",))


@pytest.mark.parametrize("label", [MIG_MANAGER, OPERANDS])
def test_mig_manager_changes_nothing_where_a_label_keeps_it_off(label: str) -> None:
    assert effects(START_MIG_MANAGER, {label: "false"}, resources=DIVIDED, divided=True) == []
    found = effects(relabel(**{label: "false"}), {}, resources=DIVIDED, divided=True)
    assert Loss.GPUS not in {effect.loss for effect in found}
    assert effects(START_MIG_MANAGER, {}, resources=DIVIDED, divided=True) != []


@pytest.mark.parametrize("label", [PLUGIN, OPERANDS])
def test_a_node_loses_its_devices_with_the_label_of_its_device_plugin(label: str) -> None:
    (effect,) = effects(relabel(**{label: "false"}), {})
    assert (effect.loss, effect.why, effect.known) == (Loss.DEVICES, "1 nvidia.com/gpu", True)
    assert effects(relabel(**{label: "true"}), {label: "false"}, resources={}) == []
    assert effects(RESTART_PLUGIN, {label: "false", **GONE}, resources={}) == []


@pytest.mark.parametrize("label", [PLUGIN, OPERANDS])
def test_no_deploy_label_keeps_the_device_plugin_of_nvidias_chart_off(label: str) -> None:
    policy = replace(make_cluster_policy(), plain=PlainStackView("nvdp", "nvdp"))
    sliced = {"nvidia.com/gpu": 4}
    stack = make_stack(cluster_policy=policy, plugin_configs={})
    node = make_node(labels={label: "false", **GONE}, resources=sliced)
    (effect,) = find_effects(RESTART_PLUGIN, make_snapshot([node], stack=stack))
    assert (effect.missing, effect.known) == ("gone", True)


MISSING = {
    "whole GPUs stay": ({}, False, "", False),
    "shares go": ({"nvidia.com/gpu": 4}, False, "", True),
    "instances go": (DIVIDED, True, "", True),
    "ClusterPolicy names instances": (DIVIDED, True, "mixed", False),
}


@pytest.mark.parametrize(("resources", "divided", "strategy", "known"), MISSING.values(), ids=MISSING.keys())
def test_a_plugin_without_its_entry_takes_the_fallback(
    resources: dict[str, int], divided: bool, strategy: str, known: bool
) -> None:
    (effect,) = effects(RESTART_PLUGIN, GONE, resources=resources or None, divided=divided, strategy=strategy)
    assert (effect.loss, effect.missing, effect.known) == (Loss.DEVICES, "gone", known)


def test_a_running_plugin_takes_the_fallback_too_when_its_label_names_no_entry() -> None:
    own = {LABEL_PLUGIN_CONFIG: "own"}
    assert [one.known for one in effects(relabel(**GONE), own, resources={"nvidia.com/gpu": 4})] == [True]
    assert [one.known for one in effects(relabel(**GONE), own)] == [False]


def test_the_fallback_is_the_default_entry() -> None:
    policy = make_cluster_policy(plugin_default="sliced")
    stack = make_stack(cluster_policy=policy, plugin_configs={"sliced": SLICED})
    snapshot = make_snapshot([make_node(labels=GONE, resources={"nvidia.com/gpu": 4})], stack=stack)
    assert [one.known for one in find_effects(RESTART_PLUGIN, snapshot)] == [False]


def test_a_node_loses_all_devices_by_an_entry_that_its_device_plugin_refuses() -> None:
    stack = make_stack(plugin_configs={"refused": SLICED.replace("4", "1")})
    change = relabel(**{LABEL_PLUGIN_CONFIG: "refused"})
    assert [one.why for one in find_effects(change, make_snapshot([make_node()], stack=stack))] == ["1 nvidia.com/gpu"]


def test_it_is_unknown_what_a_node_loses_by_a_config_map_that_nobody_has_read() -> None:
    change = Change(fields=((PLUGIN_POINTER, "theirs"),))
    (effect,) = effects(change, {LABEL_PLUGIN_CONFIG: "own"})
    assert (effect.loss, effect.known) == (Loss.DEVICES, False)
    assert effects(change, {}) == []


def test_nobody_waits_for_an_agent_because_of_a_missing_entry() -> None:
    assert "wait until" not in tell_strategy_users(effects(RESTART_PLUGIN, GONE), "mixed")
