"""NVIDIA's DRA stack with static partitions: when it counts as such, and what each missing part is called."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import SETTINGS, make_cluster_policy, make_node, make_policy, make_stack
from tests.planning.test_acceptance import objection_to
from tests.seen import Seen

from gpusharing.planning.snapshot.nvidia import (
    MIG_MANAGER_SWITCH,
    PLUGIN_SWITCH,
    ClusterPolicyView,
    DaemonSetState,
    DraView,
    PlainStackView,
    StackView,
)
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.stack.acceptance import find_objection
from gpusharing.planning.stack.drastack import find_doubles, find_missing_parts, find_refusal, is_complete
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import MAX_TEXT
from gpusharing.planning.vocabulary.reasons import Reason

DRIVER = DaemonSetState("dra-driver-nvidia-gpu-kubelet-plugin", "dra")
DRA = DraView(DRIVER)
STANDALONE = DraView(DRIVER, "nvidia-mig-manager", "v0.15.1", SETTINGS.mig_config_map)
POLICY = make_cluster_policy(switches={PLUGIN_SWITCH: False}, mig_manager_version="v0.15.1")
PLAIN = replace(make_cluster_policy(), plain=PlainStackView("nvdp-nvidia-device-plugin", "nvdp"))
COMPLETE = make_stack(cluster_policy=POLICY, dra=DRA)
ALONE = make_stack(cluster_policy=None, gpu_cluster=True, dra=STANDALONE)
DOMAINS = replace(DRIVER, serves_gpus=False)


@pytest.mark.parametrize(
    ("stack", "serves"),
    [
        pytest.param(COMPLETE, True, id="ClusterPolicy without the device plugin, and a driver"),
        pytest.param(ALONE, True, id="a GPUCluster"),
        pytest.param(replace(ALONE, gpu_cluster=False), True, id="a driver without any GPU Operator"),
        pytest.param(replace(ALONE, dra=DraView()), True, id="a GPUCluster whose driver was not seen"),
        pytest.param(replace(COMPLETE, dra=DraView()), False, id="no driver"),
        pytest.param(replace(COMPLETE, dra=DraView(DOMAINS)), False, id="a driver for compute domains"),
        pytest.param(
            replace(COMPLETE, cluster_policy=None, dra=DraView(DOMAINS)),
            True,
            id="a driver for compute domains without any GPU Operator, which is refused",
        ),
        pytest.param(
            replace(COMPLETE, cluster_policy=make_cluster_policy()),
            False,
            id="a driver beside ClusterPolicy's device plugin",
        ),
        pytest.param(replace(COMPLETE, cluster_policy=PLAIN), False, id="a driver beside NVIDIA's device-plugin chart"),
    ],
)
def test_the_dra_stack_serves_the_gpus_if_no_device_plugin_does(stack: StackView, serves: bool) -> None:
    assert stack.by_dra is serves
    assert bool(find_refusal(spec(mode="MPS"), stack, SETTINGS)) is serves


def spec(**fields: Any) -> Any:
    return make_policy(**fields).spec


def test_a_complete_stack_is_accepted() -> None:
    for stack in (COMPLETE, ALONE, replace(ALONE, gpu_cluster=False)):
        assert [*find_missing_parts(stack, SETTINGS)] == []
        assert is_complete(stack, SETTINGS)
        assert find_refusal(spec(), stack, SETTINGS) is None
    assert not is_complete(replace(COMPLETE, dra=DraView()), SETTINGS), "it does not serve the GPUs"


def with_policy(**changes: Any) -> StackView:
    return replace(COMPLETE, cluster_policy=replace(POLICY, **changes))


def with_driver(stack: StackView = ALONE, **changes: Any) -> StackView:
    return replace(stack, dra=replace(stack.dra, driver=replace(DRIVER, **changes)))


def with_dra(stack: StackView = COMPLETE, **changes: Any) -> StackView:
    return replace(stack, dra=replace(stack.dra, **changes))


OFF = {PLUGIN_SWITCH: False, MIG_MANAGER_SWITCH: False}
LACKS: dict[str, tuple[StackView, str, str]] = {
    "the API group is not served": (
        with_dra(unread="the API server does not serve resource.k8s.io/v1"),
        "does not serve resource.k8s.io/v1",
        "kubectl get resourceslices",
    ),
    "there is no driver": (
        replace(ALONE, dra=replace(STANDALONE, driver=None)),
        "no DaemonSet in namespace gpu-operator runs NVIDIA's DRA driver",
        "helm install dra-driver-nvidia-gpu CHART -n gpu-operator",
    ),
    "the driver serves no GPUs": (
        with_driver(serves_gpus=False),
        "serves only compute domains",
        "helm upgrade dra CHART -n gpu-operator --reset-then-reuse-values --set resources.gpus.enabled=true",
    ),
    "the driver divides GPUs itself": (
        with_driver(COMPLETE, gates=frozenset({"DynamicMIG", "IMEXDaemonsWithDNSNames"})),
        "has the DynamicMIG feature gate enabled and keeps the GPUs in use",
        "kubectl get resourceclaims -A",
    ),
    "the driver gives one device to several claims": (
        with_driver(COMPLETE, gates=frozenset({"ConsumableShares"})),
        "has the ConsumableShares feature gate enabled and gives one device to several independent pods",
        "kubectl get resourceclaims -A",
    ),
    "ClusterPolicy runs a device plugin too": (
        replace(ALONE, cluster_policy=make_cluster_policy()),
        "runs a device plugin alongside NVIDIA's DRA stack",
        '{"devicePlugin":{"enabled":false}}',
    ),
    "NVIDIA's chart runs a device plugin too": (
        replace(ALONE, cluster_policy=PLAIN),
        "(DaemonSet nvdp-nvidia-device-plugin) is installed alongside NVIDIA's DRA stack",
        "helm uninstall nvdp -n gpu-operator",
    ),
    "NVIDIA's chart with Node Feature Discovery runs a device plugin too": (
        replace(ALONE, cluster_policy=PLAIN, finders=(DaemonSetState("nvdp-nfd-worker", "nvdp", True, "[]"),)),
        "(DaemonSet nvdp-nvidia-device-plugin) is installed alongside NVIDIA's DRA stack",
        "--reuse-values --set devicePlugin.enabled=false",
    ),
    "some other device plugin serves a node too": (
        with_dra(doubles=("gpu-1", "gpu-2")),
        "both manage the GPUs on gpu-1, gpu-2",
        "spec.nodeName=gpu-1",
    ),
    "ClusterPolicy runs no mig-manager": (
        with_policy(switches=OFF),
        "ClusterPolicy migManager.enabled is false",
        '{"migManager":{"enabled":true}}',
    ),
    "a GPUCluster has no mig-manager": (
        replace(ALONE, dra=DRA),
        "mig-manager does not run in namespace gpu-operator",
        "kubectl apply -k deploy/mig-manager",
    ),
    "ClusterPolicy's mig-manager is too old": (
        with_policy(mig_manager_version="v0.14.2"),
        "runs mig-manager v0.14.2, which is older than v0.15",
        '{"migManager":{"version":"v0.15.1"}}',
    ),
    "a GPUCluster beside a ClusterPolicy": (
        replace(ALONE, cluster_policy=POLICY),
        "ClusterPolicy cluster-policy and a GPUCluster both install NVIDIA's components",
        "kubectl get clusterpolicies,gpuclusters",
    ),
    "the standalone mig-manager reads another ConfigMap": (
        with_dra(ALONE, mig_config_map="default-mig-parted-config"),
        f"must mount ConfigMap {SETTINGS.mig_config_map} in the directory of its CONFIG_FILE; it mounts default-mig",
        "edit daemonset nvidia-mig-manager",
    ),
    "the standalone mig-manager is too old": (
        with_dra(ALONE, mig_manager_version="v0.13.1"),
        "DaemonSet nvidia-mig-manager runs mig-manager v0.13.1",
        "k8s-mig-manager:v0.15.1",
    ),
}


@pytest.mark.parametrize(("stack", "says", "command"), LACKS.values(), ids=LACKS)
def test_what_is_missing_is_named_with_what_corrects_it(stack: StackView, says: str, command: str) -> None:
    ((message, remedy),) = find_missing_parts(stack, SETTINGS)
    assert says in message
    assert command in str(remedy)
    assert not is_complete(stack, SETTINGS)
    refusal = f"NVIDIA's DRA stack manages the GPUs in this cluster, but {message}; run: {remedy}"
    assert remedy is not None
    assert find_refusal(spec(), stack, SETTINGS) == Finding(Reason.UNSUPPORTED_STACK, refusal, commands=(remedy,))


def test_everything_that_is_missing_is_named_at_once_and_no_command_is_cut() -> None:
    stack = replace(ALONE, dra=DraView(), cluster_policy=make_cluster_policy())
    missing = [*find_missing_parts(stack, SETTINGS)]
    refusal = find_refusal(spec(), stack, SETTINGS)
    assert refusal is not None
    assert len(missing) == 3
    assert all(f"{what}; run: {command}" in refusal.message for what, command in missing)
    long = replace(SETTINGS, gpu_operator_namespace="n" * 180)
    cut = find_refusal(spec(), stack, long)
    assert cut is not None
    assert len(cut.message) <= MAX_TEXT
    assert [*find_missing_parts(stack, long)][1][1] in cut.commands
    assert all(str(command) in cut.message for command in cut.commands)


def test_a_stack_whose_first_missing_part_is_too_long_to_say_is_refused_all_the_same() -> None:
    names = tuple(f"{letter * 60}.{letter * 60}.{letter * 60}.{letter * 60}" for letter in "abcd")
    stack = replace(ALONE, dra=replace(STANDALONE, doubles=names))
    ((what, _),) = find_missing_parts(stack, SETTINGS)
    message = f"NVIDIA's DRA stack manages the GPUs in this cluster, but {what}"
    assert find_refusal(spec(), stack, SETTINGS) == Finding(Reason.UNSUPPORTED_STACK, message)


SHARED = {
    "TimeSlicing": make_policy(mode="TimeSlicing", timeSlicing={"replicas": 4}),
    "MPS": make_policy(mode="MPS", mps={"replicas": 4}),
    "MIG with spec.timeSlicing": make_policy(
        mode="MIG", mig={"strategy": "mixed", "config": "all-1g.10gb"}, timeSlicing={"replicas": 2}
    ),
}


@pytest.mark.parametrize(("mode", "policy"), SHARED.items(), ids=SHARED)
def test_sharing_among_independent_pods_is_refused_with_its_reason(mode: str, policy: PolicyView) -> None:
    stack = make_stack(cluster_policy=POLICY, dra=replace(DRA, unread="the API group is not served"))
    objection = objection_to(policy, stack)
    assert objection.reason is Reason.UNSUPPORTED_STACK
    assert f"(mode {mode}) would require consumable capacity" in objection.message
    assert "an alpha feature" in objection.message


@pytest.mark.parametrize(
    "cluster_policy",
    [POLICY, replace(POLICY, plugin_config_name="theirs", mig_strategy="single"), None],
    ids=["a ClusterPolicy", "fields of the device plugin that nobody reads", "no ClusterPolicy"],
)
@pytest.mark.parametrize("policy", [make_policy(), make_policy(mode="Full")], ids=["MIG", "Full"])
def test_a_complete_stack_carries_out_full_and_mig(
    cluster_policy: ClusterPolicyView | None, policy: PolicyView
) -> None:
    stack = make_stack(cluster_policy=cluster_policy, dra=STANDALONE, serves_our_mig_file=True)
    assert find_objection(policy, stack, SETTINGS) is None
    lacking = replace(stack, dra=replace(STANDALONE, unread="the API group is not served"))
    objection = objection_to(policy, lacking)
    assert objection.reason is Reason.UNSUPPORTED_STACK


def test_layouts_of_our_own_need_our_config_map_there_too_and_single_is_refused() -> None:
    theirs = replace(POLICY, mig_config_name="default-mig-parted-config")
    stack = make_stack(cluster_policy=theirs, dra=DRA, serves_our_mig_file=False)
    objection = objection_to(make_policy(), stack)
    assert objection.reason is Reason.LAYOUTS_NEED_CONFIG_MAP
    single = spec(mig={"strategy": "single", "config": "all-1g.10gb"})
    refusal = find_refusal(single, COMPLETE, SETTINGS)
    assert refusal is not None
    assert "use mixed" in refusal.message


def test_a_node_is_served_twice_if_a_device_plugin_advertises_gpus_that_the_driver_publishes() -> None:
    nodes = {
        name: make_node(name, resources=resources)
        for name, resources in {
            "both": {"nvidia.com/gpu": 8},
            "plugin-gone": {"nvidia.com/gpu": 0, "nvidia.com/mig-1g.10gb": 0},
            "driver-only": {},
            "plugin-only": {"nvidia.com/gpu": 8},
        }.items()
    }
    assert find_doubles(nodes, {"both": 0, "plugin-gone": 0, "driver-only": 0, "no-such-node": 0}) == ("both",)


def test_doctor_reports_the_stack_and_all_that_it_lacks_and_does_not_ask_for_a_device_plugin() -> None:
    view = Seen(operator_replicas=1, cluster_policies=(with_policy(switches=OFF).cluster_policy or POLICY,), dra=DRA)
    found = [one for one in view.symptoms if one.topic == "ClusterPolicy"]
    assert [one.reason for one in found] == ["UnsupportedStack"]
    assert "migManager.enabled is false" in found[0].message
