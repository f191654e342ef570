"""Can a policy be carried out in this cluster at all? Every objection (stack/wrongfields.py), its order, and the command in its message."""

import itertools
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from tests.build import NO_MIG_MANAGER, SETTINGS, make_cluster_policy, make_policy, make_stack

from gpusharing.api.validation import Problem
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, PlainStackView, StackView, find_active
from gpusharing.planning.snapshot.views import PlanSettings, PolicyView
from gpusharing.planning.stack.acceptance import find_objection, find_spec
from gpusharing.planning.stack.pointers import plan_pointers
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import MAX_TEXT
from gpusharing.planning.vocabulary.reasons import Mark, Reason

NAMED = make_policy(mig={"config": "all-balanced"})
LAYOUTS = make_policy()
FULL, SLICED = make_policy(mode="Full"), make_policy(mode="TimeSlicing")
UNREADABLE = replace(FULL, spec=None, problems=(Problem("spec.mode", "is missing"), Problem("spec.mig", "is wrong")))
NOT_OURS = make_cluster_policy("theirs")

PLAIN_STACK = PlainStackView("nvdp-nvidia-device-plugin", "nvdp")
PLAIN = replace(make_cluster_policy(switches=NO_MIG_MANAGER, mig_config_name=""), plain=PLAIN_STACK)
BESIDE = replace(PLAIN_STACK, mig_manager="nvidia-mig-manager", pausable=True)
PLAIN_MIG = replace(make_cluster_policy(), plain=BESIDE, mig_manager_version="v0.15.1")

REFUSED: dict[str, tuple[PolicyView, ClusterPolicyView | None, bool, Reason, str]] = {
    "a spec that cannot be read, field by field": (
        UNREADABLE, None, True, Reason.INVALID_SPEC, "spec.mode: is missing; spec.mig: is wrong"),
    "NVIDIA's DRA stack serves the GPUs": (FULL, NOT_OURS, True, Reason.UNSUPPORTED_STACK, "ClusterPolicy"),
    "no ClusterPolicy": (FULL, None, False, Reason.CLUSTER_POLICY_MISSING, "rbac.create"),
    "the plugin reads another ConfigMap": (
        FULL, NOT_OURS, False, Reason.PLUGIN_CONFIG_NOT_OURS,
        '{"spec":{"devicePlugin":{"config":{"name":"gpusharing-device-plugin"}}}}'),
    "NVIDIA's pods run in another namespace than our ConfigMaps are in": (
        FULL, make_cluster_policy(namespace="nvidia"), False, Reason.GPU_OPERATOR_ELSEWHERE,
        "set chart value gpuOperator.namespace=nvidia"),
    "the plugin reads no ConfigMap": (
        FULL, make_cluster_policy(""), False, Reason.PLUGIN_CONFIG_NOT_OURS, "is not set"),
    "the device plugin is off": (
        SLICED, make_cluster_policy(switches={"devicePlugin.enabled": False}), False, Reason.PLUGIN_DISABLED,
        '{"spec":{"devicePlugin":{"enabled":true}}}'),
    "GPU Feature Discovery is off": (
        SLICED, make_cluster_policy(switches={"gfd.enabled": False}), False, Reason.FEATURE_DISCOVERY_DISABLED,
        '{"spec":{"gfd":{"enabled":true}}}'),
    "MIG is wanted and mig-manager is off": (
        NAMED, make_cluster_policy(switches=NO_MIG_MANAGER), False, Reason.MIG_MANAGER_DISABLED,
        '{"spec":{"migManager":{"enabled":true}}}'),
    "ClusterPolicy fixes another strategy": (
        NAMED, make_cluster_policy(mig_strategy="single"), False, Reason.MIG_STRATEGY_SET,
        '{"spec":{"mig":{"strategy":null}}}'),
    "own layouts and mig-manager reads another ConfigMap": (
        LAYOUTS, make_cluster_policy(mig_config_name="default-mig-parted-config"), False,
        Reason.LAYOUTS_NEED_CONFIG_MAP, '{"spec":{"migManager":{"config":{"name":"gpusharing-mig-parted"}}}}'),
    "the plain chart's plugin reads another ConfigMap": (
        FULL, replace(PLAIN, plugin_config_name="theirs"), False, Reason.PLUGIN_CONFIG_NOT_OURS,
        "helm upgrade nvdp nvdp/nvidia-device-plugin -n gpu-operator --version VERSION --reuse-values"
        " --set config.name=gpusharing-device-plugin"),
    "the plain chart runs without GPU Feature Discovery": (
        FULL, replace(PLAIN, switches={**NO_MIG_MANAGER, "gfd.enabled": False}), False,
        Reason.FEATURE_DISCOVERY_MISSING,
        "--set gfd.enabled=true"),
    "MIG is wanted on the plain chart": (
        NAMED, PLAIN, False, Reason.MIG_MANAGER_MISSING, "kubectl apply -k deploy/mig-manager"),
    "mig-manager beside the plain chart is too old to pause it": (
        NAMED, replace(PLAIN_MIG, mig_manager_version="v0.14.1"), False, Reason.MIG_MANAGER_TOO_OLD,
        "kubectl -n gpu-operator set image daemonset/nvidia-mig-manager"),
    "the plain chart does not stop for mig-manager": (
        NAMED, replace(PLAIN_MIG, plain=replace(BESIDE, pausable=False)), False, Reason.PLUGIN_NOT_PAUSED,
        r"--set-string 'nodeSelector.nvidia\.com/gpu\.deploy\.client=true'"),
    "the plain chart fixes another strategy": (
        NAMED, replace(PLAIN_MIG, mig_strategy="single"), False, Reason.MIG_STRATEGY_SET, "--set migStrategy=null"),
    "mig-manager beside the plain chart mounts another ConfigMap": (
        NAMED, replace(PLAIN_MIG, mig_config_name="mig-parted-config"), False, Reason.LAYOUTS_NEED_CONFIG_MAP,
        "kubectl -n gpu-operator edit daemonset nvidia-mig-manager"),
    # Of several objections, the one to resolve first:
    "the device plugin is off, and GPU Feature Discovery as well": (
        SLICED, make_cluster_policy("theirs", switches={"devicePlugin.enabled": False, "gfd.enabled": False}), False,
        Reason.PLUGIN_DISABLED, '"devicePlugin":{"enabled":true'),
    "GPU Feature Discovery is off, and the plugin reads another ConfigMap": (
        SLICED, make_cluster_policy("theirs", switches={"gfd.enabled": False}), False,
        Reason.FEATURE_DISCOVERY_DISABLED, '"gfd":{"enabled":true}'),
    "the plugin reads another ConfigMap, and mig-manager is off": (
        NAMED, make_cluster_policy("theirs", switches=NO_MIG_MANAGER), False, Reason.PLUGIN_CONFIG_NOT_OURS, "theirs"),
    "mig-manager is off, and ClusterPolicy fixes another strategy": (
        NAMED, make_cluster_policy(switches=NO_MIG_MANAGER, mig_strategy="single"), False, Reason.MIG_MANAGER_DISABLED,
        '"migManager":{"enabled":true}'),
    "ClusterPolicy fixes another strategy, and mig-manager reads another ConfigMap": (
        LAYOUTS, make_cluster_policy(mig_strategy="single", mig_config_name="default-mig-parted-config"), False,
        Reason.MIG_STRATEGY_SET, '"mig":{"strategy":null}'),
}  # fmt: skip


def objection_to(policy: PolicyView, stack: StackView, settings: PlanSettings = SETTINGS) -> Finding:
    found = find_objection(policy, stack, settings)
    assert found is not None
    return found


@pytest.mark.parametrize(("policy", "cluster_policy", "dra", "reason", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_it_is_refused(
    policy: PolicyView, cluster_policy: ClusterPolicyView | None, dra: bool, reason: Reason, says: str
) -> None:
    stack = make_stack(cluster_policy=cluster_policy, gpu_cluster=dra)
    objection = objection_to(policy, stack)
    assert objection.reason is reason
    assert says in objection.message


SELECTORS: dict[str, dict[str, Any]] = {
    "by its value": {"matchLabels": {"gpusharing.dev/pool": "b", "example.com/hands-off": "true"}},
    "by its absence": {"matchExpressions": [{"key": "example.com/hands-off", "operator": "DoesNotExist"}]},
    "beside another mark": {"matchLabels": {"example.com/off-limits": "true", "example.com/hands-off": "true"}},
}


@pytest.mark.parametrize("selector", SELECTORS.values(), ids=SELECTORS)
def test_a_selector_on_a_mark_that_comes_and_goes_with_a_change_is_refused(selector: dict[str, Any]) -> None:
    policy, stack = make_policy(nodeSelector=selector), make_stack(FULL)
    assert find_objection(policy, stack, SETTINGS) is None
    marked = replace(SETTINGS, neighbor_labels=("example.com/off-limits=true", "example.com/hands-off=true"))
    objection = objection_to(policy, stack, marked)
    assert objection.reason is Reason.INVALID_SPEC
    assert "spec.nodeSelector uses example.com/hands-off" in objection.message
    assert find_objection(make_policy(), stack, marked) is None


def test_a_policy_without_a_spec_is_refused_even_when_nobody_says_what_is_wrong_with_it() -> None:
    unknown = replace(FULL, spec=None)
    refused = Finding(Reason.INVALID_SPEC, "the spec cannot be read")
    assert find_objection(unknown, make_stack(FULL), SETTINGS) == find_spec(unknown) == refused


def test_a_config_map_of_somebody_else_is_named_with_the_commands_that_end_it() -> None:
    objection = objection_to(FULL, make_stack(foreign_maps=("gpusharing-mig-parted",)))
    assert objection.reason is Reason.CONFIG_MAP_TAKEN
    assert "kubectl label configmap gpusharing-mig-parted -n gpu-operator --overwrite" in objection.message
    assert "app.kubernetes.io/managed-by=gpusharing-operator" in objection.message


FINE: dict[str, tuple[PolicyView, ClusterPolicyView]] = {
    "a named configuration without our mig-parted ConfigMap": (NAMED, make_cluster_policy(mig_config_name="")),
    "the strategy that ClusterPolicy fixes is the wanted one": (NAMED, make_cluster_policy(mig_strategy="mixed")),
    "a fixed strategy where no MIG is wanted": (SLICED, make_cluster_policy(mig_strategy="single")),
    "time-slicing without mig-manager": (SLICED, make_cluster_policy(switches=NO_MIG_MANAGER)),
    "whole GPUs without mig-manager": (FULL, make_cluster_policy(switches=NO_MIG_MANAGER)),
    "the host brings driver and toolkit": (
        SLICED, make_cluster_policy(switches={"driver.enabled": False, "toolkit.enabled": False})),
    "virtual machines beside containers": (SLICED, make_cluster_policy(switches={"sandboxWorkloads.enabled": True})),
    "own layouts where mig-manager reads our ConfigMap": (LAYOUTS, make_cluster_policy()),
    "a named layout and mig-manager beside the plain chart": (NAMED, PLAIN_MIG),
    "own layouts and mig-manager beside the plain chart": (LAYOUTS, PLAIN_MIG),
    "whole GPUs and mig-manager beside the plain chart": (FULL, PLAIN_MIG),
}  # fmt: skip


@pytest.mark.parametrize(("policy", "cluster_policy"), FINE.values(), ids=FINE.keys())
def test_it_is_accepted(policy: PolicyView, cluster_policy: ClusterPolicyView) -> None:
    assert find_objection(policy, make_stack(cluster_policy=cluster_policy), SETTINGS) is None


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        (FULL, NOT_OURS),
        (NAMED, make_cluster_policy(switches=NO_MIG_MANAGER)),
        (NAMED, make_cluster_policy(mig_strategy="single")),
        (LAYOUTS, make_cluster_policy(mig_config_name="theirs")),
    ],
    ids=["plugin", "mig-manager", "strategy", "layouts"],
)
def test_the_command_names_the_cluster_policy_that_is_there(policy: PolicyView, wrong: ClusterPolicyView) -> None:
    """OpenShift's is called gpu-cluster-policy."""
    stack = make_stack(cluster_policy=replace(wrong, name="gpu-cluster-policy"), serves_our_mig_file=False)
    objection = objection_to(policy, stack)
    assert "kubectl patch clusterpolicy gpu-cluster-policy --type merge" in objection.message


def test_all_that_cluster_policy_overrides_is_told_at_once_with_one_command() -> None:
    wrong = make_cluster_policy(
        plugin_config_name="theirs", switches=NO_MIG_MANAGER, mig_strategy="single", mig_config_name="x"
    )
    objection = objection_to(LAYOUTS, make_stack(cluster_policy=wrong, serves_our_mig_file=False))
    assert objection.reason is Reason.PLUGIN_CONFIG_NOT_OURS
    for said in ("devicePlugin.config.name is theirs", "migManager.enabled is false", "mig.strategy is single",
                 "migManager.config.name is gpusharing-mig-parted; it is now x"):  # fmt: skip
        assert said in objection.message
    (command,) = re.findall(r"kubectl patch clusterpolicy \S+ --type merge -p '(\S+)'", objection.message)
    assert json.loads(command) == {
        "spec": {
            "devicePlugin": {"config": {"name": "gpusharing-device-plugin"}},
            "migManager": {"enabled": True, "config": {"name": "gpusharing-mig-parted"}},
            "mig": {"strategy": None},
        }
    }


def test_a_device_plugin_that_is_off_and_reads_another_config_map_takes_one_command() -> None:
    """Guides for NVIDIA's DRA driver and for HAMi set devicePlugin.enabled=false (Project-HAMi/website#874)."""
    wrong = make_cluster_policy("theirs", switches={"devicePlugin.enabled": False, "gfd.enabled": False})
    objection = objection_to(SLICED, make_stack(cluster_policy=wrong))
    assert objection.reason is Reason.PLUGIN_DISABLED
    (command,) = re.findall(r"kubectl patch clusterpolicy \S+ --type merge -p '(\S+)'", objection.message)
    assert json.loads(command) == {
        "spec": {
            "devicePlugin": {"enabled": True, "config": {"name": "gpusharing-device-plugin"}},
            "gfd": {"enabled": True},
        }
    }


def test_what_comes_before_is_not_told_with_what_comes_later() -> None:
    wrong = make_cluster_policy(mig_strategy="single", mig_config_name="x")
    objection = objection_to(LAYOUTS, make_stack(cluster_policy=wrong, serves_our_mig_file=False))
    assert objection.reason is Reason.MIG_STRATEGY_SET
    assert "devicePlugin" not in objection.message


def test_of_a_message_that_is_too_long_the_command_is_whole() -> None:
    wrong = make_cluster_policy(
        plugin_config_name="a" * 253, mig_strategy="single", mig_config_name="b" * 253, plugin_config_setter="c" * 128,
        mig_config_setter="d" * 128,
    )  # fmt: skip
    stack = make_stack(cluster_policy=wrong, serves_our_mig_file=False)
    objection = objection_to(LAYOUTS, stack, replace(SETTINGS, configure_gpu_operator=True))
    assert len(objection.message) == MAX_TEXT
    (command,) = re.findall(r"--type merge -p '(\S+)' \(helm: --set mig.strategy=\)$", objection.message)
    assert json.loads(command)["spec"].keys() == {"devicePlugin", "mig", "migManager"}


# --- of several ClusterPolicies the one counts that the GPU Operator follows ------------------------------------------


def named(name: str, *, ignored: bool = False) -> ClusterPolicyView:
    return make_cluster_policy(name=name, ignored=ignored)


FOUND: dict[str, tuple[tuple[ClusterPolicyView, ...], str, tuple[str, ...]]] = {
    "none": ((), "", ()),
    "the only one": ((named("a"),), "a", ()),
    "the only one, which was once ignored": ((named("a", ignored=True),), "a", ()),
    "the one that is not ignored, whatever its name": ((named("a", ignored=True), named("b")), "b", ()),
    "none of two before the GPU Operator has looked": ((named("a"), named("b")), "a", ("a", "b")),
    "none of two that are both ignored": ((named("a", ignored=True), named("b", ignored=True)), "a", ("a", "b")),
    "none of two beside a third that is ignored": ((named("a", ignored=True), named("b"), named("c")), "b", ("b", "c")),
}  # fmt: skip


@pytest.mark.parametrize(("found", "name", "rivals"), FOUND.values(), ids=FOUND.keys())
def test_it_takes(found: tuple[ClusterPolicyView, ...], name: str, rivals: tuple[str, ...]) -> None:
    for order in itertools.permutations(found):
        active, among = find_active(order)
        assert (active.name if active else "", among) == (name, rivals)


def test_where_nobody_can_tell_no_policy_is_accepted_and_no_pointer_is_set() -> None:
    bare = make_cluster_policy("", mig_config_name="")
    stack = make_stack(make_policy(), cluster_policy=bare, rival_policies=("a", "b"))
    objection = objection_to(make_policy(), stack)
    assert objection.reason is Reason.SEVERAL_CLUSTER_POLICIES
    assert "a, b" in objection.message
    asked = replace(SETTINGS, configure_gpu_operator=True)
    assert plan_pointers(stack, asked, quiet=True) is None
    assert plan_pointers(replace(stack, rival_policies=()), asked, quiet=True) is not None


def test_a_node_in_flight_holds_until_it_is_told() -> None:
    assert Mark.MOMENTARY in Reason.SEVERAL_CLUSTER_POLICIES.marks
