"""Commands in messages can be pasted into a shell, and none is built that takes something from nodes unsaid."""

import shlex

import pytest

from gpusharing.planning.snapshot.nvidia import PlainStackView
from gpusharing.planning.stack.installationviews import helm_install, kubectl_patch, plain_upgrade, upgrade
from gpusharing.planning.vocabulary.commands import Command, Effect, Loss, label_command

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
