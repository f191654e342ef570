"""Unnoticed trouble in NVIDIA's Node labels: values that mean nothing, failures, pauses that do not end, switches that
somebody turned off.

Nodes that the operator is changing are left out: such values are part of the change there.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import field

from gpusharing.api import names
from gpusharing.api.policy import LabelSelector
from gpusharing.planning.gpus.drivers import find_flaw
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView
from gpusharing.planning.stack.otherplugins import GKE, explain_plugin
from gpusharing.planning.stack.requirements import (
    DEPLOY_NEEDED,
    SANDBOX_DEFAULT,
    is_switched_off,
    workload_of,
)
from gpusharing.planning.stack.symptoms import Symptom, Symptoms, Topic, error, warning
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.ownership import selects_node

LABEL_DRIVER = "nvidia.com/cuda.driver-version.full"
"""Of GPU Feature Discovery (k8s-device-plugin v0.19.3, internal/lm/nvml.go)."""
_AT_WORK = ("pending", "rebooting")


@value
class NodeLabels:
    """One Node, as far as it matters here."""

    name: str
    """Name of the Node."""
    labels: Mapping[str, str]
    """All its labels."""
    fenced: bool = False
    """A change of ours is in flight."""
    kubelet: str = ""
    """Its kubelet's version, as `v1.36.3`; empty: unknown."""
    other_plugin: str = ""
    """See NodeView."""
    owners: Mapping[str, str] = field(default_factory=dict)
    """By label: who else keeps it, and what to do about it."""

    @property
    def has_gpu(self) -> bool:
        """According to the GPU Operator or GPU Feature Discovery."""
        return self.labels.get(names.LABEL_GPU_PRESENT) == "true" or names.LABEL_GPU_PRODUCT in self.labels


@value
class MigEntries:
    """The mig-parted configuration that mig-manager uses on a node (docs/design/nvidia.md#a10)."""

    config_map: str
    """Name of the ConfigMap."""
    names: frozenset[str]
    """The configurations that it holds."""


@value
class Given:
    """What the labels are compared with."""

    namespace: str
    """The namespace of the GPU Operator."""
    plugin_map: str
    """The ConfigMap that ClusterPolicy points the device plugin at; empty: none."""
    plugin_keys: Collection[str] | None
    """The keys of that ConfigMap; None: it could not be read, or does not exist."""
    unsafe_drivers: tuple[str, ...] = ()
    """Further driver versions on which MIG is not changed, as the setting lists them."""
    refuse_unsafe_drivers: bool = True
    """Whether drivers with CVE-2026-24197 are refused, as the setting says."""
    selectors: tuple[LabelSelector, ...] | None = None
    """Node selectors of the policies; None: there is no policy, or that is unknown."""
    mig_entries: Mapping[str, MigEntries] = field(default_factory=dict)
    """By node: what mig-manager uses there. The node is missing if that is unknown, or if there is no mig-manager."""
    cluster_policy: ClusterPolicyView | None = None
    """The ClusterPolicy that is followed, or what stands in its place; None: there is none, or it could not be read."""

    def takes(self, node: NodeLabels) -> bool:
        """Whether a policy selects the node."""
        return any(selects_node(one, node.labels) for one in self.selectors or ())

    def concerns(self, node: NodeLabels) -> bool:
        """Whether the operator would change the node if nothing were wrong with it: the node has GPUs, and a policy
        selects it or there are no policies yet."""
        return node.has_gpu and (self.selectors is None or self.takes(node))


def find_node_symptoms(nodes: Iterable[NodeLabels], given: Given) -> tuple[Symptom, ...]:
    """Report what is wrong with the labels of these Nodes: each fault once, with the names of all Nodes that have
    it."""
    known = sorted((one for one in nodes if not one.fenced), key=lambda one: one.name)
    return (
        *_unknown_configs(known, given),
        *_other_plugins(known, given),
        *_other_workloads(known, given),
        *_switched_off(known, given),
        *_owned_elsewhere(known, given),
        *_unknown_mig(known, given),
        *_failed(known, given),
        *_paused(known, given),
        *_drivers(known, given),
    )


def _unknown_configs(nodes: list[NodeLabels], given: Given) -> Symptoms:
    """Report nodes whose device-plugin label names no entry of the ConfigMap: config-manager silently keeps the former
    configuration then (docs/design/nvidia.md#b4). Yields nothing if the entries are unknown."""
    if given.plugin_keys is None:
        return
    label = names.LABEL_PLUGIN_CONFIG
    odd = [one for one in nodes if one.labels.get(label) and one.labels[label] not in given.plugin_keys]
    if odd:
        first = odd[0]
        alike = [one for one in odd if one.labels[label] == first.labels[label]]
        yield error(
            Topic.NODES,
            "PluginConfigUnknown",
            f"{label} of {some(sorted(one.name for one in odd))} names no key of ConfigMap {given.plugin_map}"
            f" ({first.name}: {first.labels[label]}), so the device plugin silently serves what it served before."
            " Name the entry that it serves now: without the label it serves the default, which may be fewer devices",
            _mend(given, label, f"kubectl label node {_all(alike)} --overwrite {label}=NAME"),
        )


def _other_plugins(nodes: list[NodeLabels], given: Given) -> Symptoms:
    """Report nodes that a device plugin of somebody else serves. GKE's is left out: it is reported with the agents, so
    that `helm test` shows it too."""
    served = [one for one in nodes if one.other_plugin not in ("", GKE) and given.concerns(one)]
    for plugin in sorted({one.other_plugin for one in served}):
        there = [one.name for one in served if one.other_plugin == plugin]
        show = f"kubectl describe node {there[0]}"
        yield _blocking(given)(Topic.NODES, "ForeignDevicePlugin", explain_plugin(plugin, there), show)


def _other_workloads(nodes: list[NodeLabels], given: Given) -> Symptoms:
    """Report nodes whose GPUs are for virtual machines: they have neither device plugin nor mig-manager
    (docs/design/nvidia.md#d2)."""
    label = names.LABEL_WORKLOAD_CONFIG
    policy = given.cluster_policy
    odd = [
        one
        for one in nodes
        if workload_of(one.labels, policy) != names.WORKLOAD_CONTAINER and given.concerns(one)
    ]
    if odd:
        yield _blocking(given)(
            Topic.NODES,
            "WorkloadConfig",
            f"the GPUs of {some([one.name for one in odd])} are not for containers ({odd[0].name} has"
            f" {workload_of(odd[0].labels, policy)} by {label}, or by ClusterPolicy {SANDBOX_DEFAULT} where it has no"
            " such label), so no policy changes anything there. Stop virtual machines that have them and set the label"
            " to container, or keep the node out of the policy's nodeSelector",
            # Removing the label may not help: ClusterPolicy's sandboxWorkloads.defaultWorkload may say the same.
            _mend(
                given, label, f"kubectl label node {_all(odd)} --overwrite {label}={names.WORKLOAD_CONTAINER}"
            ),
        )


def _switched_off(nodes: list[NodeLabels], given: Given) -> Symptoms:
    """Report nodes with a label that keeps a needed program of NVIDIA's off them (docs/design/nvidia.md#d2, d.4).

    Pauses of mig-manager and of a driver upgrade are left out, because they end by themselves. So are nodes that
    another device plugin serves, because their admin may have switched NVIDIA's off on purpose.
    """
    for operand, label in DEPLOY_NEEDED.items():
        odd = [
            one
            for one in nodes
            if not one.other_plugin
            and is_switched_off(operand, one.labels.get(label, ""))
            and given.concerns(one)
        ]
        if odd:
            yield _blocking(given)(
                Topic.NODES,
                "OperandsDisabled",
                f"{label} of {some([one.name for one in odd])} is {odd[0].labels[label]}, so the components of the GPU"
                " Operator that would serve and report a change do not run there, and no policy changes anything"
                " there. Remove the label, or keep the node out of the policy's nodeSelector",
                _mend(given, label, f"kubectl label node {_all(odd)} {label}-"),
            )


def _owned_elsewhere(nodes: list[NodeLabels], given: Given) -> Symptoms:
    """Report labels that the operator would write and that somebody else would set back: one warning for each label and
    owner."""
    concerned = [one for one in nodes if given.concerns(one)]
    for label, owner in dict.fromkeys(told for one in concerned for told in one.owners.items()):
        alike = [one.name for one in concerned if one.owners.get(label) == owner]
        yield warning(
            Topic.NODES,
            "LabelOwnedElsewhere",
            f"no policy changes {label} of {some(alike)}: {owner}",
            f"kubectl get node {alike[0]} -o yaml --show-managed-fields",
        )


def _mend(given: Given, label: str, command: str) -> str:
    """Return `command`, or one that only shows the nodes if there is no policy: it is unknown then whether such nodes
    will get one."""
    return f"kubectl get nodes -L {label}" if given.selectors is None else command


def _blocking(given: Given) -> Callable[[Topic, str, str, str], Symptom]:
    return warning if given.selectors is None else error


def _all(nodes: list[NodeLabels]) -> str:
    return " ".join(one.name for one in nodes)


def _unknown_mig(nodes: list[NodeLabels], given: Given) -> Symptoms:
    """Report nodes whose MIG label names no entry: mig-manager refuses the name and touches no GPU
    (docs/design/nvidia.md#a3). Nodes that a policy selects are left out: the operator writes their label, and reports
    a wrong name in the policy itself."""
    label = names.LABEL_MIG_CONFIG
    odd = [one for one in nodes if _names_no_entry(one, given) and not given.takes(one)]
    if odd:
        first = odd[0]
        entries, wrong = given.mig_entries[first.name], first.labels[label]
        alike = [one for one in odd if one.labels[label] == wrong]
        yield warning(
            Topic.NODES,
            "MigConfigUnknown",
            f"{label} of {some([one.name for one in odd])} names no configuration that mig-manager has there"
            f" ({first.name}: {wrong}; ConfigMap {entries.config_map} has {some(sorted(entries.names), 4)}), so after a"
            " reboot it does not create the MIG instances again. Name the configuration that the GPUs have now: for"
            " any other, mig-manager repartitions them, and without the label the GPU Operator may set all-disabled",
            f"kubectl label node {_all(alike)} --overwrite {label}=NAME",
        )


def _names_no_entry(node: NodeLabels, given: Given) -> bool:
    name, entries = node.labels.get(names.LABEL_MIG_CONFIG), given.mig_entries.get(node.name)
    return bool(name) and entries is not None and name not in entries.names


def _failed(nodes: list[NodeLabels], given: Given) -> Symptoms:
    """Report nodes on which mig-manager has failed. Those whose label names no entry are left out: that is the cause,
    and `_unknown_mig` has reported it."""
    failed = [
        one
        for one in nodes
        if one.labels.get(names.LABEL_MIG_STATE) == "failed"
        and (given.takes(one) or not _names_no_entry(one, given))
    ]
    if failed:
        told = f"{failed[0].name}: {failed[0].labels.get(names.LABEL_MIG_CONFIG, 'none')}"
        yield warning(
            Topic.NODES,
            "MigConfigFailed",
            f"mig-manager could not apply its configuration on {some(sorted(one.name for one in failed))} ({told})",
            f"kubectl -n {given.namespace} logs -l app=nvidia-mig-manager --prefix --tail 50",
        )


def _paused(nodes: list[NodeLabels], given: Given) -> Symptoms:
    """Report nodes on which mig-manager has paused other programs and is not at work any more. If it died in between,
    they stay off."""
    paused = [
        one for one in nodes if one.labels.get(names.LABEL_MIG_STATE) not in _AT_WORK and _is_paused(one)
    ]
    if paused:
        yield error(
            Topic.NODES,
            "OperandsPaused",
            f"operands of {some(sorted(one.name for one in paused))} are still paused for a MIG change that is over",
            f"kubectl -n {given.namespace} delete pod -l app=nvidia-mig-manager"
            f" --field-selector spec.nodeName={paused[0].name}",
        )


def _is_paused(node: NodeLabels) -> bool:
    switches = (names.LABEL_DEPLOY_PREFIX + operand for operand in names.DEPLOY_PAUSABLE)
    return any(node.labels.get(switch) == names.PAUSED_FOR_MIG for switch in switches)


def _drivers(nodes: list[NodeLabels], given: Given) -> Symptoms:
    """Report nodes with a driver under which the operator repartitions no GPU."""
    flaws = {
        one.name: flaw
        for one in nodes
        if one.labels.get(names.LABEL_MIG_CAPABLE) == "true"
        and (
            flaw := find_flaw(
                one.labels.get(LABEL_DRIVER, ""),
                given.unsafe_drivers,
                refuse_affected=given.refuse_unsafe_drivers,
            )
        )
    }
    if flaws:
        first = min(flaws)
        yield warning(
            Topic.NODES,
            "UnsafeDriver",
            f"no GPU of {some(sorted(flaws))} is repartitioned ({first}: {flaws[first]})",
            f"kubectl get node {first} -o jsonpath='{{.metadata.labels.nvidia\\.com/cuda\\.driver-version\\.full}}'",
        )
