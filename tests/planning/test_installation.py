"""Can this installation work? One broken thing at a time, and what is said about it."""

import inspect
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from tests.build import (
    NO_MIG_MANAGER,
    SETTINGS,
    make_cluster_policy,
    make_gpu,
    make_gpunode,
    make_node,
    make_policy,
    make_snapshot,
)
from tests.chart.charts import CHART
from tests.seen import Seen, make_agent_pod, make_map
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.planning.snapshot.nvidia import DaemonSetState, DraView, PlainStackView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack import installation
from gpusharing.planning.stack.installation import render
from gpusharing.planning.stack.installationviews import (
    AGENT,
    ASKED_BY_PEOPLE,
    OPERATOR,
    AgentsState,
    Place,
    Right,
    Severity,
    Topic,
)
from gpusharing.planning.stack.plugins import GKE
from gpusharing.planning.stack.requirements import OPERANDS, explain_workloads
from gpusharing.planning.wanted.migfile import MIG_KEY
from gpusharing.planning.wanted.target import RELEASED_DAEMON

PLUGIN, MIG = Place().plugin_config_map, Place().mig_config_map
POINTED = make_cluster_policy()
OURS = make_map({"default": "version: v1", MIG_KEY: "version: v1"}, ours=True)
AGENTS = AgentsState(
    selector={"nvidia.com/gpu.present": "true"},
    runtime_class="nvidia",
    runtime_class_exists=True,
    enforced="privileged",
)
PATCH_NODES = Right("patch", "", "nodes")
GOOD = Seen(
    rights={OPERATOR: {PATCH_NODES: True}, AGENT: {PATCH_NODES: True}},
    operator_replicas=1,
    operator_pods={"o": ""},
    cluster_policies=(POINTED,),
    config_maps={PLUGIN: OURS, MIG: OURS},
    agents=AGENTS,
    agent_pods=(make_agent_pod("gpu-01"), make_agent_pod("gpu-02")),
    nodes=(*(make_node(name, labels=AGENTS.selector, resources={}) for name in ("gpu-01", "gpu-02")),),
)

DRA = DraView(
    DaemonSetState("dra-driver-nvidia-gpu-kubelet-plugin"),
    "nvidia-mig-manager",
    "v0.15.1",
    SETTINGS.mig_config_map,
)


def agents(**change: Any) -> Seen:
    return replace(GOOD, agents=replace(AGENTS, **change), agent_pods=())


def reporting(**errors: str) -> Seen:
    found = {name.replace("_", "-"): error for name, error in errors.items()}
    return replace(GOOD, gpunodes={name: make_gpunode(name, error=error) for name, error in found.items()})


def pointers(policies: tuple[Any, ...] = (), **change: Any) -> Seen:
    view = replace(POINTED, **change)
    return replace(GOOD, cluster_policies=(replace(view, name="gpus"),), policies=tuple(policies))


MIG_POLICY = make_policy(mode="MIG", mig={"strategy": "mixed", "config": "all-balanced"})
LAYOUTS = make_policy(mode="MIG", mig={"layouts": [{"profiles": {"3g.40gb": 2}}]})


def plain(config: str = PLUGIN, *, discovers: bool = True, policies: tuple[Any, ...] = ()) -> Seen:
    stack = replace(
        make_cluster_policy(
            config,
            switches={**NO_MIG_MANAGER, **({} if discovers else {"gfd.enabled": False})},
            mig_config_name="",
        ),
        plain=PlainStackView("nvdp-nvidia-device-plugin", "nvdp"),
    )
    return replace(GOOD, cluster_policies=(), plain=stack, policies=policies)


UNREADY = (make_agent_pod("gpu-01"), make_agent_pod("gpu-02", ready=False, waiting="ImagePullBackOff"))
FAILING = {"b": "ImagePullBackOff: no such image"}
PARTLY_READY = {
    leader: replace(
        GOOD,
        operator_replicas=3,
        operator_pods={"0": "not Ready", "a": "no rights", "b": ""},
        leader=leader,
    )
    for leader in ("a", "b", "")
}
"""Two pods of three are not Ready, by which pod leads."""
TWO = (replace(POINTED, name="a"), replace(POINTED, name="b", ignored=True))

# What is broken, which finding, how bad, what its command contains.
WAITING_NODE = replace(pointers(tolerates_gate=False), nodes=(*GOOD.nodes, make_node("x", gated=True)))
KEPT_OFF: tuple[str, Severity, str] = ("TaintNotTolerated", "ERROR", '"daemonsets":{"tolerations":[')
WANTS_MPS = (make_policy("pool-e", mode="MPS", mps={"replicas": 4}),)
BROKEN: dict[str, tuple[Seen, str, Severity, str]] = {
    "the MPS daemon follows no label": (
        pointers(WANTS_MPS, mps_daemon=RELEASED_DAEMON),
        "MPSNotSwitchable",
        "ERROR",
        '{"devicePlugin":{"version":"v0.20.0"}}',
    ),
    "the CRDs are not installed": (
        replace(GOOD, not_served=frozenset({"gpunodes.gpusharing.dev"})),
        "KindNotServed",
        "ERROR",
        "crds.enabled=true",
    ),
    "a kind may not be read": (
        replace(GOOD, unread={"nodes": "forbidden"}),
        "NotReadable",
        "WARNING",
        "kubectl auth can-i list nodes",
    ),
    "the operator lacks a right": (
        replace(GOOD, rights={OPERATOR: {PATCH_NODES: False}}),
        "RightsMissing",
        "ERROR",
        "rbac.create=true",
    ),
    "the agent lacks a right": (
        replace(GOOD, rights={AGENT: {PATCH_NODES: False}}),
        "RightsMissing",
        "ERROR",
        "rbac.create=true",
    ),
    "nobody may ask for rights": (
        replace(GOOD, rights={OPERATOR: {PATCH_NODES: "forbidden"}}),
        "RightsUnknown",
        "WARNING",
        "subjectaccessreviews",
    ),
    "there is no operator": (
        replace(GOOD, operator_replicas=None),
        "OperatorMissing",
        "ERROR",
        "helm install gpusharing CHART -n gpusharing",
    ),
    "the operator is scaled to 0": (
        replace(GOOD, operator_replicas=0, operator_pods={}),
        "OperatorStopped",
        "ERROR",
        "operator.replicaCount=2",
    ),
    "the operator's image cannot be pulled": (
        replace(GOOD, operator_pods=FAILING),
        "OperatorNotReady",
        "ERROR",
        "describe pods",
    ),
    "the standby's image cannot be pulled": (
        replace(GOOD, operator_replicas=2, operator_pods={**GOOD.operator_pods, **FAILING}),
        "OperatorNotReady",
        "WARNING",
        "describe pods",
    ),
    "a standby is not Ready": (PARTLY_READY["b"], "OperatorNotReady", "WARNING", "describe pods"),
    "the leader is not Ready": (PARTLY_READY["a"], "OperatorNotReady", "ERROR", "describe pods"),
    "of two pods none leads": (PARTLY_READY[""], "OperatorNotReady", "ERROR", "describe pods"),
    "the DRA stack serves the GPUs, and nothing divides them": (
        replace(GOOD, gpu_cluster=True, cluster_policies=(), dra=replace(DRA, mig_manager="")),
        "UnsupportedStack",
        "ERROR",
        "deploy/mig-manager",
    ),
    "the GPU Operator is not installed": (
        replace(GOOD, cluster_policies=()),
        "ClusterPolicyMissing",
        "ERROR",
        "helm install gpu-operator",
    ),
    "there are two ClusterPolicies": (
        replace(GOOD, cluster_policies=TWO),
        "SeveralClusterPolicies",
        "WARNING",
        "kubectl delete clusterpolicy b",
    ),
    "of two ClusterPolicies none is called ignored": (
        replace(GOOD, cluster_policies=(TWO[0], replace(TWO[1], ignored=False))),
        "SeveralClusterPolicies",
        "ERROR",
        "kubectl get clusterpolicies",
    ),
    "NVIDIA elsewhere": (pointers(namespace="nvidia"), "GPUOperatorElsewhere", "ERROR", "=nvidia"),
    "the device plugin is not pointed at us": (
        pointers(plugin_config_name=""),
        "PluginConfigNotOurs",
        "ERROR",
        "kubectl patch clusterpolicy gpus",
    ),
    "the default of the device plugin is unknown": (
        pointers(plugin_default="nowhere"),
        "PluginDefaultUnknown",
        "ERROR",
        '"default":null',
    ),
    "operands keep off joining nodes": (WAITING_NODE, *KEPT_OFF),
    "the device plugin is off": (
        pointers(switches={"devicePlugin.enabled": False}),
        "PluginDisabled",
        "ERROR",
        '{"spec":{"devicePlugin":{"enabled":true}}}',
    ),
    "the device plugin is off for that of somebody else": (
        replace(
            pointers(switches={"devicePlugin.enabled": False}),
            nodes=(replace(GOOD.nodes[0], other_plugin="HAMi's device plugin"), GOOD.nodes[1]),
        ),
        "PluginDisabled",
        "ERROR",
        "kubectl get clusterpolicy gpus -o yaml",
    ),
    "GPU Feature Discovery is off": (
        pointers(switches={"gfd.enabled": False}),
        "FeatureDiscoveryDisabled",
        "ERROR",
        '{"spec":{"gfd":{"enabled":true}}}',
    ),
    "mig-manager is off, nobody wants MIG": (
        pointers(switches=NO_MIG_MANAGER),
        "MigManagerDisabled",
        "WARNING",
        "kubectl get clusterpolicy gpus -o yaml",
    ),
    "mig-manager is off, a policy wants MIG": (
        pointers((MIG_POLICY,), switches=NO_MIG_MANAGER),
        "MigManagerDisabled",
        "ERROR",
        '"enabled":true',
    ),
    "mig-manager is not pointed at us, nobody wants layouts": (
        pointers((MIG_POLICY,), mig_config_name="default-mig-parted-config"),
        "LayoutsNeedConfigMap",
        "WARNING",
        MIG,
    ),
    "mig-manager is not pointed at us, a policy wants layouts": (
        pointers((LAYOUTS,), mig_config_name="theirs"),
        "LayoutsNeedConfigMap",
        "ERROR",
        "--set gpuOperator.adminMigConfigMap=theirs",
    ),
    "a strategy of the cluster says what the policy says": (
        pointers((MIG_POLICY,), mig_strategy="mixed"),
        "MigStrategySet",
        "WARNING",
        "kubectl get clusterpolicy gpus -o yaml",
    ),
    "a strategy of the cluster overrides a policy": (
        pointers((MIG_POLICY,), mig_strategy="single"),
        "MigStrategySet",
        "ERROR",
        '"strategy":null',
    ),
    "a ConfigMap that is pointed at is not there": (
        replace(GOOD, config_maps={MIG: OURS}),
        "ConfigMapEmpty",
        "ERROR",
        "rollout restart deployment/gpusharing-operator",
    ),
    "a ConfigMap that nobody is pointed at is empty": (
        replace(
            pointers(mig_config_name="", switches=NO_MIG_MANAGER),
            config_maps={PLUGIN: OURS, MIG: make_map({}, ours=True)},
        ),
        "ConfigMapEmpty",
        "WARNING",
        "rollout restart deployment/gpusharing-operator",
    ),
    "a ConfigMap is somebody else's": (
        replace(GOOD, config_maps={PLUGIN: replace(OURS, ours=False), MIG: OURS}),
        "ConfigMapTaken",
        "ERROR",
        "kubectl label configmap gpusharing-device-plugin",
    ),
    "the plain chart's plugin reads nothing of ours": (
        plain(config=""),
        "PluginConfigNotOurs",
        "ERROR",
        "helm upgrade nvdp nvdp/nvidia-device-plugin -n gpu-operator --version VERSION --reuse-values --set config.name=",
    ),
    "the plain chart runs without GFD": (
        plain(discovers=False),
        "FeatureDiscoveryMissing",
        "ERROR",
        "--set gfd.enabled=true",
    ),
    "MIG is wanted on the plain chart": (
        plain(policies=(MIG_POLICY,)),
        "MigManagerMissing",
        "ERROR",
        "kubectl apply -k deploy/mig-manager",
    ),
    "mig-manager's image has only a digest": (
        replace(plain(), dra=DraView(mig_manager="mm")),
        "MigManagerVersionUnknown",
        "WARNING",
        "kubectl -n gpu-operator get daemonset mm -o 'jsonpath=",
    ),
    "there is no DaemonSet": (replace(GOOD, agents=None), "AgentMissing", "ERROR", "createNamespace"),
    "no node has the agents' label": (
        replace(GOOD, agent_pods=(), nodes=()),
        "NoGPUNodes",
        "WARNING",
        "kubectl label node NODE nvidia.com/gpu.present=true",
    ),
    "one agent is not Ready": (replace(GOOD, agent_pods=UNREADY), "AgentNotReady", "WARNING", "describe pods"),
    "no agent is Ready": (replace(GOOD, agent_pods=UNREADY[1:]), "AgentNotReady", "ERROR", "describe pods"),
    "the runtime class does not exist": (
        agents(runtime_class_exists=False),
        "RuntimeClassMissing",
        "ERROR",
        "agent.runtimeClassName=",
    ),
    "PodSecurity refuses the agent": (
        agents(enforced="restricted"),
        "PodSecurityForbids",
        "ERROR",
        "pod-security.kubernetes.io/enforce=privileged",
    ),
    "a cloud runs a device plugin of its own": (
        replace(GOOD, nodes=(replace(GOOD.nodes[0], other_plugin=GKE), GOOD.nodes[1])),
        "TwoDevicePlugins",
        "ERROR",
        "gke-no-default-nvidia-gpu-device-plugin=true",
    ),
    "an operating system starts a device plugin of its own": (
        replace(GOOD, system_plugins=frozenset({"gpu-01"})),
        "TwoDevicePlugins",
        "WARNING",
        "settings.kubelet-device-plugins.nvidia.enabled=false",
    ),
    "an agent finds no driver": (
        reporting(gpu_01="NVMLNotLoaded", gpu_02=""),
        "AgentCannotRead",
        "ERROR",
        "kubectl describe gpunode gpu-01",
    ),
}


def test_a_good_installation_has_no_symptoms() -> None:
    assert GOOD.symptoms == ()
    assert render((), {}) == [
        *(f"ok       {topic}" for topic in Topic if topic not in ASKED_BY_PEOPLE),
        "",
        "This installation can work: errors 0, warnings 0.",
    ]


DIVIDED = make_gpu(layout=(("1g.10gb", 7),))
BY_HAND = make_node("gpu-01", labels={**AGENTS.selector, "nvidia.com/gpu.deploy.mig-manager": "true"}, resources={})
LABEL = "kubectl label node gpu-01 --overwrite nvidia.com/mig.config=all-1g.10gb && kubectl patch"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"switches": NO_MIG_MANAGER}, "MigManagerDisabled"),
        ({"mig_config_name": ""}, "LayoutsNeedConfigMap"),
    ],
    ids=["switched on", "pointed at ours"],
)
def test_before_mig_manager_is(change: dict[str, Any], reason: str) -> None:
    view = pointers((MIG_POLICY,), **change)
    nodes = (BY_HAND, GOOD.nodes[1])
    for gpu, start in ((DIVIDED, LABEL), (make_gpu(), "kubectl patch"), (None, "kubectl get nodes -L")):
        gpunodes = {"gpu-01": make_gpunode("gpu-01", gpus=[gpu])} if gpu is not None else {}
        found = replace(view, nodes=nodes, gpunodes=gpunodes).symptoms
        (one,) = (one for one in found if one.reason == reason)
        assert str(one.command).startswith(start)
        assert ("gpu-01" in one.message) is (start != "kubectl patch")


@pytest.mark.parametrize("what", BROKEN)
def test_it_says_what_is_wrong_and_what_mends_it(what: str) -> None:
    view, reason, severity, command = BROKEN[what]
    found = [one for one in view.symptoms if one.reason == reason]
    assert [(one.severity, command in str(one.command)) for one in found] == [(severity, True)]
    assert "\n" not in found[0].message + str(found[0].command)


def test_one_broken_thing_is_one_finding() -> None:
    """But where one follows from the other: without a right class or PodSecurity there is no Ready agent either."""
    follows = {"RuntimeClassMissing", "PodSecurityForbids"}
    for what, (view, reason, _, _) in BROKEN.items():
        expected = {reason, "AgentNotReady"} if reason in follows else {reason}
        if what == "a ConfigMap that nobody is pointed at is empty":
            expected.add("MigManagerDisabled")
        assert {one.reason for one in view.symptoms} == expected, what


@pytest.mark.parametrize(("leader", "message"), [
    ("a", "the operator pod that leads is not Ready, so policies may have no effect: a: no rights; 0: not Ready"),
    ("b", "not every operator pod is Ready: 0: not Ready; a: no rights"),
    ("desk", "not every operator pod is Ready: 0: not Ready; a: no rights"),
    ("", "by this machine's clock no operator pod leads, so policies have no effect: 0: not Ready; a: no rights"),
])  # fmt: skip
def test_the_pod_that_leads_is_named_first(leader: str, message: str) -> None:
    (found,) = replace(PARTLY_READY["a"], leader=leader).symptoms
    assert found.message == message


def test_every_finding_is_tried() -> None:
    source = inspect.getsource(installation)
    known = set(re.findall(r'^\s+"([A-Z]\w+)",$', source, re.MULTILINE))
    known |= set(re.findall(r'\(Topic\.\w+, "(\w+)"', source))
    assert len(known) > 15
    known |= {*(str(row.disabled) for row in OPERANDS), "FeatureDiscoveryMissing", "MigManagerMissing"}
    assert known - {reason for _, reason, _, _ in BROKEN.values()} == set()


def test_the_values_that_commands_set_are_values_of_the_chart() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    commands = [str(one.command) for view, *_ in BROKEN.values() for one in view.symptoms]
    ours = [command for command in commands if command.startswith("helm upgrade gpusharing ")]
    paths = {command.rpartition(" --set ")[2].partition("=")[0] for command in ours}
    assert len(paths) > 3
    for path in paths:
        found = values
        for key in path.split("."):
            assert key in found, path
            found = found[key]


def test_the_worst_case_is_one_screen() -> None:
    policy = replace(POINTED, plugin_config_name="", mig_config_name="x", mig_strategy="single", plugin_default="gone")
    worst = replace(
        GOOD,
        not_served=frozenset({"gpunodes.gpusharing.dev"}),
        rights={OPERATOR: {PATCH_NODES: False}, AGENT: {PATCH_NODES: False}},
        operator_pods={},
        cluster_policies=(replace(policy, name="gpus"),),
        config_maps={},
        agent_pods=(),
        agents=replace(AGENTS, runtime_class_exists=False, enforced="restricted"),
    )
    lines = render(worst.symptoms, {})
    assert len(lines) <= 30
    assert not lacks(lines[-1], "cannot work", "errors 8", "warnings 4")


def test_many_nodes_are_counted_and_not_listed() -> None:
    nodes = tuple(replace(GOOD.nodes[0], name=f"gpu-{number:04}") for number in range(1000))
    (found,) = replace(GOOD, agent_pods=(), nodes=nodes).symptoms
    assert "1000 of 1000" in found.message
    assert "gpu-0002 and 997 more" in found.message


def test_where_nodes_and_pods_may_not_be_read_nothing_is_said_about_them() -> None:
    seen = replace(GOOD, agent_pods=(), nodes=())
    blind = replace(seen, unread={"nodes": "no", "pods": "no"}, operator_pods={})
    assert {one.reason for one in blind.symptoms} == {"NotReadable"}


def test_the_plain_chart_alone_can_work() -> None:
    assert plain().symptoms == ()


def test_an_ignored_cluster_policy_is_not_judged() -> None:
    wrong = replace(TWO[1], plugin_config_name="")
    assert [one.reason for one in replace(GOOD, cluster_policies=(TWO[0], wrong)).symptoms] == [
        "SeveralClusterPolicies"
    ]


def test_before_the_installation_nobody_is_told_to_hand_over_a_configmap_with_a_command_that_does_not() -> None:
    taken = replace(GOOD, config_maps={PLUGIN: replace(OURS, ours=False), MIG: OURS}, operator_replicas=None)
    (told,) = [one for one in taken.symptoms if one.reason == "ConfigMapTaken"]
    assert "Hand it over" not in told.message
    assert str(told.command).startswith("helm install")


@pytest.mark.parametrize("resources", [{}, {"nvidia.com/gpu": 0}])
def test_whoever_gives_gpus_back_to_containers_is_told_to_stop_virtual_machines_first(
    resources: dict[str, int],
) -> None:
    node = make_node(labels={names.LABEL_WORKLOAD_CONFIG: "vm-passthrough"}, resources=resources)
    ((text, _),) = explain_workloads([node], make_snapshot([node]))
    assert not lacks(text, "virtual machines")


def test_the_gpu_operator_is_installed_only_after_labels_that_keep_instances_which_nobody_labeled() -> None:
    halves = (make_gpu(layout=(("3g.40gb", 2),)),)
    divided = replace(
        GOOD,
        cluster_policies=(),
        nodes=(make_node("gpu-01", labels={**AGENTS.selector, "nvidia.com/mig.capable": "true"}),),
        gpunodes={"gpu-01": make_gpunode("gpu-01", gpus=halves)},
    )
    (told,) = [one for one in divided.symptoms if one.reason == "ClusterPolicyMissing"]
    assert "gpu-01" in told.message
    assert str(told.command).startswith("kubectl label node gpu-01")


INSTALLED: dict[str, tuple[tuple[NodeView, ...], str, str]] = {
    "no host has a driver": ((make_node("gpu-01", labels=AGENTS.selector, resources={}),), "helm install", ""),
    "every host has its own": (
        (make_node("gpu-01", labels=AGENTS.selector, resources={"nvidia.com/gpu": 1}),),
        "helm install",
        "--set driver.enabled=false --set toolkit.enabled=false",
    ),
    "one host has its own": (
        (
            make_node("gpu-01", labels=AGENTS.selector, resources={"nvidia.com/gpu": 1}),
            make_node("gpu-02", labels=AGENTS.selector, resources={}),
        ),
        "kubectl get nodes",
        "",
    ),
    "another device plugin serves the GPUs": (
        (replace(make_node("gpu-01", labels=AGENTS.selector, resources={"nvidia.com/gpu": 1}), other_plugin="HAMi"),),
        "kubectl get nodes",
        "",
    ),
}


@pytest.mark.parametrize(("nodes", "command", "sets"), INSTALLED.values(), ids=INSTALLED.keys())
def test_the_gpu_operator_is_installed_beside_what_the_hosts_bring(
    nodes: tuple[NodeView, ...], command: str, sets: str
) -> None:
    whole = {node.name: make_gpunode(node.name, gpus=(make_gpu(),)) for node in nodes}
    bare = replace(GOOD, cluster_policies=(), nodes=nodes, gpunodes=whole)
    (told,) = [one for one in bare.symptoms if one.reason == "ClusterPolicyMissing"]
    assert str(told.command).startswith(command)
    assert str(told.command).endswith(sets)
    assert command == "helm install" or "gpu-01" in told.message
