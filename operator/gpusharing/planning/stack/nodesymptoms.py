"""What `doctor` checks beyond `helm test`: wrong values of NVIDIA's Node labels, unsupported kubelets, and entries that
the device plugin refuses.

Terms: docs/design/glossary.md#fence.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from gpusharing.api import names
from gpusharing.planning.gpus.drivers import find_driver_flaw
from gpusharing.planning.snapshot.views import NodeView, PlanSettings
from gpusharing.planning.stack.installationviews import (
    InstallationView,
    Symptom,
    Symptoms,
    Topic,
    error,
    warning,
)
from gpusharing.planning.stack.migstart import SHOW_LABELS, after_labels, start_changes_of, tell_changes
from gpusharing.planning.stack.otherplugins import GKE, explain_plugin
from gpusharing.planning.stack.requirements import (
    DEPLOY_NEEDED,
    SANDBOX_DEFAULT,
    is_switched_off,
    workload_of,
)
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.assess import find_owners
from gpusharing.planning.wanted.ownership import selects_node
from gpusharing.planning.wanted.pluginconfig import find_flaws

LABEL_DRIVER = "nvidia.com/cuda.driver-version.full"
"""GPU Feature Discovery's label with the version of the driver (k8s-device-plugin v0.19.3, internal/lm/nvml.go)."""
_AT_WORK = ("pending", "rebooting")
"""States of mig-manager in which it is still working."""


@value
class MigEntries:
    """The ConfigMap with the mig-parted configurations that mig-manager uses on a node (docs/design/nvidia.md#a10)."""

    config_map: str
    """Name of the ConfigMap."""
    names: frozenset[str]
    """The names of the configurations in it."""


def has_gpu_label(node: NodeView) -> bool:
    """Whether the node has a GPU according to the GPU Operator or GPU Feature Discovery."""
    return node.labels.get(names.LABEL_GPU_PRESENT) == "true" or names.LABEL_GPU_PRODUCT in node.labels


def find_node_symptoms(view: InstallationView, mig_entries: Mapping[str, MigEntries]) -> tuple[Symptom, ...]:
    """Return what is wrong with the labels of Nodes. Each problem is reported once for all Nodes that have it. Nodes
    with our fence, even one that cannot be read, are left out, because such values are part of a change there. Some
    checks are only about nodes with GPUs that a policy selects, or about all nodes with GPUs if there are no policies.
    If policies could not be read, these checks are left out.

    `mig_entries` has the configurations that mig-manager knows, by node. Nodes for which they are unknown, or that have
    no mig-manager, are missing.
    """
    nodes = sorted(
        (node for node in view.nodes if node.fence is None and not node.fence_error),
        key=lambda node: node.name,
    )
    early = view.selectors is None
    selected = {
        node.name for node in nodes if any(selects_node(row, node.labels) for row in view.selectors or ())
    }
    # Nodes that the operator would change if nothing were wrong with them.
    concerned = [node for node in nodes if has_gpu_label(node) and (early or node.name in selected)]
    entryless = {
        node.name: node
        for node in nodes
        if node.name in mig_entries.keys() - selected
        and node.labels.get(names.LABEL_MIG_CONFIG, "") not in ("", *mig_entries[node.name].names)
    }
    return (
        *_unknown_configs(nodes, view),
        *_other_plugins(concerned, view),
        *_other_workloads(concerned, view),
        *_switched_off(concerned, view),
        *_owned_elsewhere(concerned),
        *_unknown_mig([*entryless.values()], mig_entries),
        *_failed([node for node in nodes if node.name not in entryless], view),
        *_paused(nodes, view),
        *_drivers(nodes, view.place),
    )


def _unknown_configs(nodes: list[NodeView], view: InstallationView) -> Symptoms:
    """Yield one error about the nodes whose device-plugin label names an entry that is missing from the ConfigMap that
    ClusterPolicy, or NVIDIA's chart in its place, names. config-manager then silently keeps the previous configuration
    (docs/design/nvidia.md#b4). The command relabels only the nodes that name the same entry as the first one; if there
    are no policies, it only shows nodes. Yields nothing if that ConfigMap was not read or has no entries."""
    label, policy = names.LABEL_PLUGIN_CONFIG, view.followed_policy
    plugin_map = policy.plugin_config_name if policy else ""
    config_map = view.config_maps.get(plugin_map)
    if config_map is None or not config_map.keys:
        return
    odd = [node for node in nodes if node.labels.get(label) and node.labels[label] not in config_map.keys]
    if odd:
        first = odd[0]
        alike = [node for node in odd if node.labels[label] == first.labels[label]]
        yield error(
            Topic.NODES,
            "PluginConfigUnknown",
            f"label {label} on {some(sorted(node.name for node in odd))} names an entry that ConfigMap {plugin_map}"
            f" does not have ({first.name}: {first.labels[label]}), so the device plugin silently keeps its previous"
            " configuration. Set the label to the entry that the device plugin is using now. Do not just remove the"
            " label: the plugin would then use its default entry, which may advertise fewer devices",
            _mend(view, label, f"kubectl label node {_all(alike)} --overwrite {label}=NAME"),
        )


def _other_plugins(nodes: list[NodeView], view: InstallationView) -> Symptoms:
    """Yield a symptom for each device plugin, other than NVIDIA's, that serves some of these nodes: a warning if there
    are no policies, else an error. GKE's plugin is left out, because it is reported with the agents, so that `helm
    test` shows it too."""
    for plugin in sorted({node.other_plugin for node in nodes} - {"", GKE}):
        there = [node.name for node in nodes if node.other_plugin == plugin]
        show = f"kubectl describe node {there[0]}"
        yield _blocking(view)(Topic.NODES, "ForeignDevicePlugin", explain_plugin(plugin, there), show)


def _other_workloads(nodes: list[NodeView], view: InstallationView) -> Symptoms:
    """Yield one symptom about the nodes whose GPUs are not for containers (`workload_of`) but, for example, for virtual
    machines: a warning if there are no policies, else an error. Such nodes have neither device plugin nor mig-manager
    (docs/design/nvidia.md#d2)."""
    label, policy = names.LABEL_WORKLOAD_CONFIG, view.followed_policy
    odd = [node for node in nodes if workload_of(node.labels, policy) != names.WORKLOAD_CONTAINER]
    if odd:
        yield _blocking(view)(
            Topic.NODES,
            "WorkloadConfig",
            f"the GPUs on {some([node.name for node in odd])} are not available to containers ({odd[0].name} is set to"
            f" {workload_of(odd[0].labels, policy)} by label {label}, or by ClusterPolicy {SANDBOX_DEFAULT} if it has"
            " no such label), so policies have no effect there. Stop the virtual machines that use the GPUs and set"
            " the label to container, or exclude the node with the policy's nodeSelector",
            # Removing the label may not help: ClusterPolicy's sandboxWorkloads.defaultWorkload may say the same.
            _mend(
                view, label, f"kubectl label node {_all(odd)} --overwrite {label}={names.WORKLOAD_CONTAINER}"
            ),
        )


def _switched_off(nodes: list[NodeView], view: InstallationView) -> Symptoms:
    """Yield a symptom for each deploy label of DEPLOY_NEEDED, in that order, that keeps a needed program of NVIDIA's
    off some nodes (`is_switched_off`; docs/design/nvidia.md#d2, d.4): a warning if there are no policies, else an
    error. One symptom covers all nodes with that label, and quotes the value of the first.

    Pauses by mig-manager and by a driver upgrade are left out, because they end without anybody acting. Nodes that
    another device plugin serves are left out too, because their admin may have switched NVIDIA's off on purpose.
    """
    for operand, label in DEPLOY_NEEDED.items():
        odd = [
            node
            for node in nodes
            if not node.other_plugin and is_switched_off(operand, node.labels.get(label, ""))
        ]
        if odd:
            # Only the label of all operands also starts mig-manager.
            among = {node.name for node in odd if operand == "operands"}
            changes = [change for change in start_changes_of(view) if change.node in among] if among else []
            remove = after_labels(f"kubectl label node {_all(odd)} {label}-", changes)
            yield _blocking(view)(
                Topic.NODES,
                "OperandsDisabled",
                f"{label} of {some([node.name for node in odd])} is {odd[0].labels[label]}, so components of the"
                " GPU Operator that every change needs do not run there, and policies have no effect there."
                f" Remove the label, or exclude the node with the policy's nodeSelector{tell_changes(changes)}",
                _mend(view, label, remove or SHOW_LABELS),
            )


def _owned_elsewhere(nodes: list[NodeView]) -> Symptoms:
    """Yield a warning for each pair of a label that the operator writes and another program that sets this label on
    some of these nodes (`find_owners`) and would overwrite it again. The warning covers all nodes with that pair."""
    owners = {node.name: find_owners(node) for node in nodes}
    for label, owner in dict.fromkeys(pair for labels in owners.values() for pair in labels.items()):
        alike = [name for name, labels in owners.items() if labels.get(label) == owner]
        yield warning(
            Topic.NODES,
            "LabelOwnedElsewhere",
            f"the operator does not change label {label} on {some(alike)}: {owner}",
            f"kubectl get node {alike[0]} -o yaml --show-managed-fields",
        )


def _mend(view: InstallationView, label: str, command: str) -> str:
    """Return `command`, which corrects the label, if there are policies or if policies could not be read. If there are
    none, return a command that only shows the nodes with the label, because it is unknown whether they will get a
    policy."""
    return f"kubectl get nodes -L {label}" if view.selectors is None else command


def _blocking(view: InstallationView) -> Callable[[Topic, str, str, str], Symptom]:
    """Return the function `warning` if there are no policies. If there are some, or if they could not be read, return
    `error`, because policies cannot be carried out on such nodes."""
    return warning if view.selectors is None else error


def _all(nodes: list[NodeView]) -> str:
    """Return the names of the nodes, separated by spaces, for a command."""
    return " ".join(node.name for node in nodes)


def _unknown_mig(nodes: list[NodeView], mig_entries: Mapping[str, MigEntries]) -> Symptoms:
    """Yield one warning that the MIG label of all these nodes names no configuration, or nothing if there are no
    `nodes`. mig-manager refuses such a name and touches no GPU (docs/design/nvidia.md#a3). The command relabels
    only the nodes with the same name as the first one.

    The caller must pass only nodes that have a wrong name, are in `mig_entries`, and are not known to be selected by a
    policy. On nodes that a policy selects, the operator writes the label, and reports a wrong name in the policy.
    """
    label = names.LABEL_MIG_CONFIG
    if nodes:
        first = nodes[0]
        entries, wrong = mig_entries[first.name], first.labels[label]
        alike = [node for node in nodes if node.labels[label] == wrong]
        yield warning(
            Topic.NODES,
            "MigConfigUnknown",
            f"label {label} on {some([node.name for node in nodes])} names a configuration that mig-manager does not"
            f" have there ({first.name}: {wrong}; ConfigMap {entries.config_map} has"
            f" {some(sorted(entries.names), 4)}), so mig-manager will not recreate the MIG instances after a reboot."
            " Set the label to the configuration that the GPUs have now. With any other configuration, mig-manager"
            " repartitions them; if the label is missing, the GPU Operator may set it to all-disabled",
            f"kubectl label node {_all(alike)} --overwrite {label}=NAME",
        )


def _failed(nodes: list[NodeView], view: InstallationView) -> Symptoms:
    """Yield one warning about the nodes in `nodes` on which mig-manager has failed, which is the value `failed` of its
    state label. The caller leaves out nodes that `_unknown_mig` reports. The command shows the logs of all mig-manager
    pods."""
    failed = [node for node in nodes if node.labels.get(names.LABEL_MIG_STATE) == "failed"]
    if failed:
        example = f"{failed[0].name}: {failed[0].labels.get(names.LABEL_MIG_CONFIG, 'none')}"
        yield warning(
            Topic.NODES,
            "MigConfigFailed",
            f"mig-manager could not apply its configuration on {some(sorted(node.name for node in failed))}"
            f" ({example})",
            f"kubectl -n {view.place.gpu_operator_namespace} logs -l app=nvidia-mig-manager --prefix --tail 50",
        )


def _paused(nodes: list[NodeView], view: InstallationView) -> Symptoms:
    """Yield one error about the nodes on which mig-manager has paused other programs but, according to its state, is
    no longer working. If mig-manager's pod died in between, nothing starts these programs again. The command
    deletes the pod of mig-manager on the first of these nodes."""
    paused = [
        node for node in nodes if node.labels.get(names.LABEL_MIG_STATE) not in _AT_WORK and _is_paused(node)
    ]
    if paused:
        changes = [change for change in start_changes_of(view) if change.node == paused[0].name]
        restart = (
            f"kubectl -n {view.place.gpu_operator_namespace} delete pod -l app=nvidia-mig-manager"
            f" --field-selector spec.nodeName={paused[0].name}"
        )
        yield error(
            Topic.NODES,
            "OperandsPaused",
            f"operands on {some(sorted(node.name for node in paused))} are still paused for a MIG change that has"
            f" ended{tell_changes(changes)}",
            after_labels(restart, changes) or SHOW_LABELS,
        )


def _is_paused(node: NodeView) -> bool:
    """Whether the deploy label of any program that mig-manager pauses (`names.DEPLOY_PAUSABLE`) has the value with
    which mig-manager does that."""
    switches = (names.LABEL_DEPLOY_PREFIX + operand for operand in names.DEPLOY_PAUSABLE)
    return any(node.labels.get(switch) == names.PAUSED_FOR_MIG for switch in switches)


def _drivers(nodes: list[NodeView], settings: PlanSettings) -> Symptoms:
    """Yield one warning about the nodes whose GPUs support MIG and whose driver is one under which the operator does
    not repartition GPUs (`find_driver_flaw`), both according to labels of GPU Feature Discovery. Nodes whose driver
    version is unknown are left out. The cause and the command are about the first such node by name."""
    flaws = {
        node.name: flaw
        for node in nodes
        if node.labels.get(names.LABEL_MIG_CAPABLE) == "true"
        and (
            flaw := find_driver_flaw(
                node.labels.get(LABEL_DRIVER, ""),
                settings.unsafe_drivers,
                refuse_affected=settings.refuse_unsafe_drivers,
            )
        )
    }
    if flaws:
        first = min(flaws)
        yield warning(
            Topic.NODES,
            "UnsafeDriver",
            f"the operator does not repartition the GPUs on {some(sorted(flaws))} ({first}: {flaws[first]})",
            f"kubectl get node {first} -o jsonpath='{{.metadata.labels.nvidia\\.com/cuda\\.driver-version\\.full}}'",
        )


# --- kubelets ------------------------------------------------------------------------------------------


OLDEST = (1, 30)
"""The oldest version of Kubernetes that the operator supports; the chart's kubeVersion says the same for the API
server."""
MOST_BEHIND = 3
"""How many minor versions a kubelet may be older than the API server: "kubelet must not be newer than kube-apiserver",
and "may be up to three minor versions older" (kubernetes.io/releases/version-skew-policy, "kubelet"). Patch
versions do not count."""
_VERSION = re.compile(r"v?(\d+)\.(\d+)")

Minor = tuple[int, int]
"""The major and minor number of a version."""


def find_minor(version: str) -> Minor | None:
    """Return the major and minor number of a version such as `v1.33.1-eks-1-33-5`. None if it cannot be parsed, or if
    its major number is 0, as in a build without a version (`v0.0.0-master+$Format:%H$`, component-base v0.36.3
    version/base.go)."""
    match = _VERSION.match(version)
    return (int(match[1]), int(match[2])) if match and match[1] != "0" else None


def find_kubelet_symptoms(view: InstallationView, api_server: str) -> tuple[Symptom, ...]:
    """Return a warning for each problem with the versions of kubelets on nodes with GPUs, in this order: KubeletNewer
    and KubeletBehind compare with the API server, KubeletOld with OLDEST. Each node is listed only for the first of
    these that it has, and not at all if the version of its kubelet is unknown. `api_server` is the version of the API
    server. If that is empty or cannot be parsed, only KubeletOld is checked."""
    server = find_minor(api_server)
    unsupported = f"the API server ({api_server}), which Kubernetes does not support"
    upgrade_it = "upgrade the kubelets, one node at a time"
    faults = {
        "KubeletNewer": f"is newer than {unsupported}: upgrade the control plane",
        "KubeletBehind": f"is more than {MOST_BEHIND} minor versions behind {unsupported}: {upgrade_it}",
        "KubeletOld": f"is older than {OLDEST[0]}.{OLDEST[1]}, the oldest version that the operator supports:"
        f" {upgrade_it}",
    }
    faulty: dict[str, list[str]] = {reason: [] for reason in faults}
    for node in sorted((node for node in view.nodes if has_gpu_label(node)), key=lambda node: node.name):
        minor = find_minor(view.kubelets.get(node.name, ""))
        if minor is None:
            continue
        if server is not None and minor > server:
            faulty["KubeletNewer"].append(node.name)
        elif server is not None and minor[0] == server[0] and server[1] - minor[1] > MOST_BEHIND:
            faulty["KubeletBehind"].append(node.name)
        elif minor < OLDEST:
            faulty["KubeletOld"].append(node.name)
    return tuple(
        warning(
            Topic.KUBELETS,
            reason,
            f"the kubelet on {some(nodes)} ({view.kubelets[nodes[0]]}) {faults[reason]}",
            f"kubectl get node {' '.join(nodes)} -o"
            " custom-columns=NODE:.metadata.name,KUBELET:.status.nodeInfo.kubeletVersion",
        )
        for reason, nodes in faulty.items()
        if nodes
    )


# --- the device plugin's ConfigMap ---------------------------------------------------------------------


MOST = 3
"""The largest number of fields that a message names."""


@value
class PluginEntries:
    """The ConfigMap with the device plugin's configurations, which may not exist."""

    config_map: str
    """Name of the ConfigMap."""
    namespace: str
    """The namespace of the device plugin, where the ConfigMap must be."""
    texts: Mapping[str, str] | None
    """The configurations as YAML, by key, or None if the ConfigMap does not exist there."""
    elsewhere: Sequence[str] = ()
    """Other namespaces with a ConfigMap of that name. Only filled in if it does not exist in `namespace`."""

    @property
    def absence(self) -> str:
        """A message that the ConfigMap does not exist in `namespace`, with the other namespaces that have one of that
        name. Empty if it does exist."""
        if self.texts is not None:
            return ""
        others = f"; there is a ConfigMap with that name in {some(self.elsewhere)}" if self.elsewhere else ""
        return (
            f"ConfigMap {self.config_map} does not exist in namespace {self.namespace}{others}; device plugins cannot"
            " start"
        )

    def describe(self, key: str, *, refused: bool) -> str:
        """Return a message with the fields of the entry `key` that the device plugin refuses (if `refused`) or ignores
        (if not), and why. At most MOST fields are named. Empty if there are no such fields. Raises KeyError if
        there is no such entry."""
        flaws = [one.text for one in find_flaws((self.texts or {})[key]) if one.refused == refused]
        return f"ConfigMap {self.config_map}, entry {key}, {'; '.join(flaws[:MOST])}" if flaws else ""


def find_entry_symptoms(entries: PluginEntries, used: Collection[str], install: str) -> Symptoms:
    """Yield a symptom if the ConfigMap does not exist, and one for every entry that the device plugin refuses or
    ignores in part, sorted by key. A missing ConfigMap and a refused entry in use are errors, and everything else is a
    warning. If an entry has fields of both kinds, only those that are refused are reported.

    `used` are the entries that Nodes or ClusterPolicy's default name. `install` is the command that installs the
    operator, or an empty string if the operator is installed.
    """
    if entries.absence:
        command = install or f"kubectl get configmaps -A --field-selector metadata.name={entries.config_map}"
        yield error(Topic.CONFIG_MAPS, "PluginConfigMapMissing", entries.absence, command)
    edit = f"kubectl -n {entries.namespace} edit configmap {entries.config_map}"
    for key in sorted(entries.texts or ()):
        if refused := entries.describe(key, refused=True):
            yield (error if key in used else warning)(Topic.CONFIG_MAPS, "PluginConfigRefused", refused, edit)
        elif ignored := entries.describe(key, refused=False):
            yield warning(Topic.CONFIG_MAPS, "PluginConfigIgnored", ignored, edit)
