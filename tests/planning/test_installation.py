"""Can this installation work? One broken thing at a time, and what is said about it."""

import inspect
import re
from dataclasses import replace
from typing import Any, NamedTuple

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
from gpusharing.planning.stack.plugins import GKE, has_cloud_plugin
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
    DaemonSetState("dra-driver-nvidia-gpu-kubelet-plugin"), "nvidia-mig-manager", "v0.15.1", SETTINGS.mig_config_map
)


def seen(**change: Any) -> Seen:
    return replace(GOOD, **change)


def agents(**change: Any) -> Seen:
    return seen(agents=replace(AGENTS, **change), agent_pods=())


def reporting(**errors: str) -> Seen:
    found = {name.replace("_", "-"): error for name, error in errors.items()}
    return seen(gpunodes={name: make_gpunode(name, error=error) for name, error in found.items()})


def pointers(policies: tuple[Any, ...] = (), **change: Any) -> Seen:
    view = replace(POINTED, **change)
    return seen(cluster_policies=(replace(view, name="gpus"),), policies=tuple(policies))


WANTS_MIG = (make_policy(mode="MIG", mig={"strategy": "mixed", "config": "all-balanced"}),)
LAYOUTS = make_policy(mode="MIG", mig={"layouts": [{"profiles": {"3g.40gb": 2}}]})


def off(program: str) -> Seen:
    return pointers(switches={f"{program}.enabled": False})


def plain(config: str = PLUGIN, *, discovers: bool = True, policies: tuple[Any, ...] = ()) -> Seen:
    stack = replace(
        make_cluster_policy(
            config, switches={**NO_MIG_MANAGER, **({} if discovers else {"gfd.enabled": False})}, mig_config_name=""
        ),
        plain=PlainStackView("nvdp-nvidia-device-plugin", "nvdp"),
    )
    return seen(cluster_policies=(), plain=stack, policies=policies)


UNREADY = (make_agent_pod("gpu-01"), make_agent_pod("gpu-02", ready=False, waiting="ImagePullBackOff"))
FAILING = {"b": "ImagePullBackOff: no such image"}
UNREADY_PODS = {"0": "not Ready", "a": "no rights", "b": ""}
PARTLY_READY = {one: seen(operator_replicas=3, operator_pods=UNREADY_PODS, leader=one) for one in ("a", "b", "")}
"""Two pods of three are not Ready, by which pod leads."""
TWO = (replace(POINTED, name="a"), replace(POINTED, name="b", ignored=True))


class Flaw(NamedTuple):
    """What is broken, which finding says so, what its command contains, and how bad it is."""

    view: Seen
    reason: str
    command: str
    severity: Severity = "ERROR"


WAITING_NODE = replace(pointers(tolerates_gate=False), nodes=(*GOOD.nodes, make_node("x", gated=True)))
WANTS_MPS = (make_policy("pool-e", mode="MPS", mps={"replicas": 4}),)
PATCH, SHOW = "kubectl patch clusterpolicy gpus", "kubectl get clusterpolicy gpus -o yaml"
RESTART, PODS = "rollout restart deployment/gpusharing-operator", "describe pods"
BROKEN: dict[str, Flaw] = {
    "the MPS daemon follows no label": Flaw(
        pointers(WANTS_MPS, mps_daemon=RELEASED_DAEMON), "MPSNotSwitchable", '{"devicePlugin":{"version":"v0.20.0"}}'
    ),
    "the CRDs are not installed": Flaw(
        seen(not_served=frozenset({"gpunodes.gpusharing.dev"})), "KindNotServed", "crds.enabled=true"
    ),
    "the operator lacks a right": Flaw(
        seen(rights={OPERATOR: {PATCH_NODES: False}}), "RightsMissing", "rbac.create=true"
    ),
    "the agent lacks a right": Flaw(seen(rights={AGENT: {PATCH_NODES: False}}), "RightsMissing", "rbac.create=true"),
    "there is no operator": Flaw(
        seen(operator_replicas=None), "OperatorMissing", "helm install gpusharing CHART -n gpusharing"
    ),
    "the operator is scaled to 0": Flaw(
        seen(operator_replicas=0, operator_pods={}), "OperatorStopped", "operator.replicaCount=2"
    ),
    "the operator's image cannot be pulled": Flaw(seen(operator_pods=FAILING), "OperatorNotReady", PODS),
    "the leader is not Ready": Flaw(PARTLY_READY["a"], "OperatorNotReady", PODS),
    "of two pods none leads": Flaw(PARTLY_READY[""], "OperatorNotReady", PODS),
    "the DRA stack serves the GPUs, and nothing divides them": Flaw(
        seen(gpu_cluster=True, cluster_policies=(), dra=replace(DRA, mig_manager="")),
        "UnsupportedStack",
        "deploy/mig-manager",
    ),
    "the GPU Operator is not installed": Flaw(
        seen(cluster_policies=()), "ClusterPolicyMissing", "helm install gpu-operator"
    ),
    "of two ClusterPolicies none is called ignored": Flaw(
        seen(cluster_policies=(TWO[0], replace(TWO[1], ignored=False))),
        "SeveralClusterPolicies",
        "kubectl get clusterpolicies",
    ),
    "NVIDIA elsewhere": Flaw(pointers(namespace="nvidia"), "GPUOperatorElsewhere", "=nvidia"),
    "the device plugin is not pointed at us": Flaw(pointers(plugin_config_name=""), "PluginConfigNotOurs", PATCH),
    "the default of the device plugin is unknown": Flaw(
        pointers(plugin_default="nowhere"), "PluginDefaultUnknown", '"default":null'
    ),
    "operands keep off joining nodes": Flaw(WAITING_NODE, "TaintNotTolerated", '"daemonsets":{"tolerations":['),
    "the device plugin is off": Flaw(
        off("devicePlugin"), "PluginDisabled", '{"spec":{"devicePlugin":{"enabled":true}}}'
    ),
    "the device plugin is off for that of somebody else": Flaw(
        replace(
            off("devicePlugin"), nodes=(replace(GOOD.nodes[0], other_plugin="HAMi's device plugin"), GOOD.nodes[1])
        ),
        "PluginDisabled",
        SHOW,
    ),
    "GPU Feature Discovery is off": Flaw(off("gfd"), "FeatureDiscoveryDisabled", '{"spec":{"gfd":{"enabled":true}}}'),
    "mig-manager is off, a policy wants MIG": Flaw(
        pointers(WANTS_MIG, switches=NO_MIG_MANAGER), "MigManagerDisabled", '"enabled":true'
    ),
    "mig-manager is not pointed at us, a policy wants layouts": Flaw(
        pointers((LAYOUTS,), mig_config_name="theirs"),
        "LayoutsNeedConfigMap",
        "--set gpuOperator.adminMigConfigMap=theirs",
    ),
    "a strategy of the cluster overrides a policy": Flaw(
        pointers(WANTS_MIG, mig_strategy="single"), "MigStrategySet", '"strategy":null'
    ),
    "a ConfigMap that is pointed at is not there": Flaw(seen(config_maps={MIG: OURS}), "ConfigMapEmpty", RESTART),
    "a ConfigMap is somebody else's": Flaw(
        seen(config_maps={PLUGIN: replace(OURS, ours=False), MIG: OURS}),
        "ConfigMapTaken",
        "kubectl label configmap gpusharing-device-plugin",
    ),
    "the plain chart's plugin reads nothing of ours": Flaw(
        plain(config=""),
        "PluginConfigNotOurs",
        "helm upgrade nvdp nvdp/nvidia-device-plugin -n gpu-operator --version VERSION --reuse-values --set config.name=",
    ),
    "the plain chart runs without GFD": Flaw(
        plain(discovers=False), "FeatureDiscoveryMissing", "--set gfd.enabled=true"
    ),
    "MIG is wanted on the plain chart": Flaw(
        plain(policies=WANTS_MIG), "MigManagerMissing", "kubectl apply -k deploy/mig-manager"
    ),
    "there is no DaemonSet": Flaw(seen(agents=None), "AgentMissing", "createNamespace"),
    "no agent is Ready": Flaw(seen(agent_pods=UNREADY[1:]), "AgentNotReady", PODS),
    "the runtime class does not exist": Flaw(
        agents(runtime_class_exists=False), "RuntimeClassMissing", "agent.runtimeClassName="
    ),
    "PodSecurity refuses the agent": Flaw(
        agents(enforced="restricted"), "PodSecurityForbids", "pod-security.kubernetes.io/enforce=privileged"
    ),
    "a cloud runs a device plugin of its own": Flaw(
        seen(nodes=(replace(GOOD.nodes[0], other_plugin=GKE), GOOD.nodes[1])),
        "TwoDevicePlugins",
        "gke-no-default-nvidia-gpu-device-plugin=true",
    ),
    "an agent finds no driver": Flaw(
        reporting(gpu_01="NVMLNotLoaded", gpu_02=""), "AgentCannotRead", "kubectl describe gpunode gpu-01"
    ),
    "a kind may not be read": Flaw(
        seen(unread={"nodes": "forbidden"}), "NotReadable", "kubectl auth can-i list nodes", "WARNING"
    ),
    "nobody may ask for rights": Flaw(
        seen(rights={OPERATOR: {PATCH_NODES: "forbidden"}}), "RightsUnknown", "subjectaccessreviews", "WARNING"
    ),
    "the standby's image cannot be pulled": Flaw(
        seen(operator_replicas=2, operator_pods={**GOOD.operator_pods, **FAILING}), "OperatorNotReady", PODS, "WARNING"
    ),
    "a standby is not Ready": Flaw(PARTLY_READY["b"], "OperatorNotReady", PODS, "WARNING"),
    "there are two ClusterPolicies": Flaw(
        seen(cluster_policies=TWO), "SeveralClusterPolicies", "kubectl delete clusterpolicy b", "WARNING"
    ),
    "mig-manager is off, nobody wants MIG": Flaw(
        pointers(switches=NO_MIG_MANAGER), "MigManagerDisabled", SHOW, "WARNING"
    ),
    "mig-manager is not pointed at us, nobody wants layouts": Flaw(
        pointers(WANTS_MIG, mig_config_name="default-mig-parted-config"), "LayoutsNeedConfigMap", MIG, "WARNING"
    ),
    "a strategy of the cluster says what the policy says": Flaw(
        pointers(WANTS_MIG, mig_strategy="mixed"), "MigStrategySet", SHOW, "WARNING"
    ),
    "a ConfigMap that nobody is pointed at is empty": Flaw(
        replace(
            pointers(mig_config_name="", switches=NO_MIG_MANAGER),
            config_maps={PLUGIN: OURS, MIG: make_map({}, ours=True)},
        ),
        "ConfigMapEmpty",
        RESTART,
        "WARNING",
    ),
    "mig-manager's image has only a digest": Flaw(
        replace(plain(), dra=DraView(mig_manager="mm")),
        "MigManagerVersionUnknown",
        "kubectl -n gpu-operator get daemonset mm -o 'jsonpath=",
        "WARNING",
    ),
    "no node has the agents' label": Flaw(
        seen(agent_pods=(), nodes=()), "NoGPUNodes", "kubectl label node NODE nvidia.com/gpu.present=true", "WARNING"
    ),
    "one agent is not Ready": Flaw(seen(agent_pods=UNREADY), "AgentNotReady", PODS, "WARNING"),
    "an operating system starts a device plugin of its own": Flaw(
        seen(system_plugins=frozenset({"gpu-01"})),
        "TwoDevicePlugins",
        "settings.kubelet-device-plugins.nvidia.enabled=false",
        "WARNING",
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
    [({"switches": NO_MIG_MANAGER}, "MigManagerDisabled"), ({"mig_config_name": ""}, "LayoutsNeedConfigMap")],
    ids=["switched on", "pointed at ours"],
)
def test_before_mig_manager_is(change: dict[str, Any], reason: str) -> None:
    view = pointers(WANTS_MIG, **change)
    nodes = (BY_HAND, GOOD.nodes[1])
    for gpu, start in ((DIVIDED, LABEL), (make_gpu(), "kubectl patch"), (None, "kubectl get nodes -L")):
        gpunodes = {"gpu-01": make_gpunode("gpu-01", gpus=[gpu])} if gpu is not None else {}
        found = replace(view, nodes=nodes, gpunodes=gpunodes).symptoms
        (one,) = (one for one in found if one.reason == reason)
        assert str(one.command).startswith(start)
        assert ("gpu-01" in one.message) is (start != "kubectl patch")


@pytest.mark.parametrize("what", BROKEN)
def test_it_says_what_is_wrong_and_what_mends_it(what: str) -> None:
    flaw = BROKEN[what]
    found = [one for one in flaw.view.symptoms if one.reason == flaw.reason]
    assert [(one.severity, flaw.command in str(one.command)) for one in found] == [(flaw.severity, True)]
    assert "\n" not in found[0].message + str(found[0].command)


def test_one_broken_thing_is_one_finding() -> None:
    """But where one follows from the other: without a right class or PodSecurity there is no Ready agent either."""
    follows = {"RuntimeClassMissing", "PodSecurityForbids"}
    for what, (view, reason, *_) in BROKEN.items():
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
    assert known - {flaw.reason for flaw in BROKEN.values()} == set()


def test_the_values_that_commands_set_are_values_of_the_chart() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    commands = [str(one.command) for flaw in BROKEN.values() for one in flaw.view.symptoms]
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
    worst = seen(
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
    (found,) = seen(agent_pods=(), nodes=nodes).symptoms
    assert "1000 of 1000" in found.message
    assert "gpu-0002 and 997 more" in found.message


def test_where_nodes_and_pods_may_not_be_read_nothing_is_said_about_them() -> None:
    blind = seen(agent_pods=(), nodes=(), unread={"nodes": "no", "pods": "no"}, operator_pods={})
    assert {one.reason for one in blind.symptoms} == {"NotReadable"}


def test_the_plain_chart_alone_can_work() -> None:
    assert plain().symptoms == ()


def test_an_ignored_cluster_policy_is_not_judged() -> None:
    wrong = replace(TWO[1], plugin_config_name="")
    assert [one.reason for one in seen(cluster_policies=(TWO[0], wrong)).symptoms] == ["SeveralClusterPolicies"]


def test_before_the_installation_nobody_is_told_to_hand_over_a_configmap_with_a_command_that_does_not() -> None:
    taken = seen(config_maps={PLUGIN: replace(OURS, ours=False), MIG: OURS}, operator_replicas=None)
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
    divided = seen(
        cluster_policies=(),
        nodes=(make_node("gpu-01", labels={**AGENTS.selector, "nvidia.com/mig.capable": "true"}),),
        gpunodes={"gpu-01": make_gpunode("gpu-01", gpus=halves)},
    )
    (told,) = [one for one in divided.symptoms if one.reason == "ClusterPolicyMissing"]
    assert "gpu-01" in told.message
    assert str(told.command).startswith("kubectl label node gpu-01")


OFFERING = replace(GOOD.nodes[0], resources={"nvidia.com/gpu": 1})
INSTALLED: dict[str, tuple[tuple[NodeView, ...], str, str]] = {
    "no host has a driver": (GOOD.nodes[:1], "helm install", ""),
    "every host has its own": ((OFFERING,), "helm install", "--set driver.enabled=false --set toolkit.enabled=false"),
    "one host has its own": ((OFFERING, GOOD.nodes[1]), "kubectl get nodes", ""),
    "another device plugin serves the GPUs": ((replace(OFFERING, other_plugin="HAMi"),), "kubectl get nodes", ""),
}


@pytest.mark.parametrize(("nodes", "command", "sets"), INSTALLED.values(), ids=INSTALLED.keys())
def test_the_gpu_operator_is_installed_beside_what_the_hosts_bring(
    nodes: tuple[NodeView, ...], command: str, sets: str
) -> None:
    whole = {node.name: make_gpunode(node.name, gpus=(make_gpu(),)) for node in nodes}
    bare = seen(cluster_policies=(), nodes=nodes, gpunodes=whole)
    (told,) = [one for one in bare.symptoms if one.reason == "ClusterPolicyMissing"]
    assert str(told.command).startswith(command)
    assert str(told.command).endswith(sets)
    assert command == "helm install" or "gpu-01" in told.message


def test_every_topic_is_inspected_but_those_that_people_ask_about() -> None:
    topics = {symptom.topic for flaw in BROKEN.values() for symptom in flaw.view.symptoms}
    assert topics == set(Topic) - set(ASKED_BY_PEOPLE)


# --- agents, and what must not run beside NVIDIA's device plugin ----------------------------------------------------

NO_DRIVER = "NVMLNotLoaded: the NVIDIA driver is not loaded on this node"


@pytest.mark.parametrize(
    ("installs", "reason", "command"),
    [
        (True, "AgentCannotRead", "kubectl describe gpunode gpu-01"),
        (
            False,
            "DriverDisabled",
            """kubectl patch clusterpolicy cluster-policy --type merge -p '{"spec":{"driver":{"enabled":true}}}'""",
        ),
    ],
    ids=["the GPU Operator installs it", "the GPU Operator installs none"],
)
def test_a_missing_driver_is_told_with_what_is_to_be_done(installs: bool, reason: str, command: str) -> None:
    policy = replace(POINTED, switches={"driver.enabled": installs})
    view = replace(reporting(gpu_01=NO_DRIVER), cluster_policies=(policy,))
    (found,) = view.symptoms
    assert (found.reason, str(found.command)) == (reason, command)


@pytest.mark.parametrize(
    ("with_driver", "reason"),
    [("gpu-01", "AgentCannotRead"), ("gpu-02", "DriverDisabled")],
    ids=["the node itself offers GPUs", "another host brings its driver"],
)
def test_no_driver_is_installed_on_all_nodes_where_a_host_brings_its_own(with_driver: str, reason: str) -> None:
    policy = replace(POINTED, switches={"driver.enabled": False})
    view = reporting(gpu_01=NO_DRIVER, gpu_02="")
    gpus = {"nvidia.com/gpu": 8}
    nodes = tuple(replace(one, resources=gpus if one.name == with_driver else {}) for one in view.nodes)
    (found,) = replace(view, cluster_policies=(policy,), nodes=nodes).symptoms
    assert (found.reason, str(found.command)) == (reason, "kubectl describe gpunode gpu-01")


@pytest.mark.parametrize(
    ("labels", "two"),
    [
        ({"nvidia.com/gpu.present": "true"}, False),
        ({"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}, True),
        (
            {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb", "gke-no-default-nvidia-gpu-device-plugin": "true"},
            False,
        ),
    ],
    ids=["not on GKE", "GKE runs its own", "GKE is told not to"],
)
def test_gke_runs_a_device_plugin_of_its_own_unless_a_label_says_no(labels: dict[str, str], two: bool) -> None:
    assert has_cloud_plugin(labels) is two
