"""What does `doctor` check beyond `helm test`? Labels of Nodes, kubelets, and plugin entries."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.api.policy import LabelSelector
from gpusharing.planning.gpus.drivers import find_driver_flaw
from gpusharing.planning.snapshot.nvidia import Program
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PlanSettings
from gpusharing.planning.stack.effects import MIG_MANAGER, SHOW_LABELS, find_effects, label_nodes, tell_effects
from gpusharing.planning.stack.installationviews import Installation, Symptom, Topic, error, kubectl_patch, warning
from gpusharing.planning.stack.offers import Misfit, find_misfits
from gpusharing.planning.stack.plugins import GKE, explain_plugin, has_gpu_label
from gpusharing.planning.stack.requirements import (
    DEPLOY_NEEDED,
    explain_disabled,
    explain_failed_upgrades,
    explain_workloads,
)
from gpusharing.planning.vocabulary.commands import Change, Command, Effects, label_command
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.assess import find_owners
from gpusharing.planning.wanted.ownership import Owners, find_contenders, selects_node
from gpusharing.planning.wanted.pluginconfig import find_flaws

LABEL_DRIVER = "nvidia.com/cuda.driver-version.full"
"""GPU Feature Discovery's label with the version of the driver. As of k8s-device-plugin v0.19.3,
internal/lm/nvml.go."""


def find_node_symptoms(
    snapshot: ClusterSnapshot,
    mig_entries: Mapping[str, tuple[str, frozenset[str]]],
    misfits: Mapping[str, Sequence[Misfit]] = MappingProxyType({}),
) -> tuple[Symptom, ...]:
    """Return what is wrong with the labels of Nodes, each problem once for all Nodes that have it.

    Nodes with our fence are left out, because such values are part of a change there. `mig_entries` has the ConfigMap
    that mig-manager reads and its configurations, by node, as far as they are known (docs/design/nvidia.md#a10).
    `misfits` has what `find_misfits` says, by node.
    """
    every = [node for _, node in sorted(snapshot.nodes.items())]
    nodes = [node for node in every if node.fence is None and not node.fence_error]
    selectors, unfenced = find_selectors(snapshot), {node.name for node in nodes}
    selected = {node.name for node in every if any(selects_node(row, node.labels) for row in selectors or ())}
    # Nodes that the operator would change if nothing were wrong with them.
    concerned = [one for one in every if has_gpu_label(one) and (selectors is None or one.name in selected)]
    # Where a policy selects the node, the operator writes the label, and reports a wrong name in the policy. Where the
    # agent has read the GPUs, it is known which name would be right.
    differing = {
        name for name, rows in misfits.items() if any(one.reason is Reason.MIG_CONFIG_DIFFERS for one, _ in rows)
    }
    entryless = [
        node
        for node in nodes
        if node.name in mig_entries.keys() - selected - differing
        and node.labels.get(names.LABEL_MIG_CONFIG, "") not in ("", *mig_entries[node.name][1])
    ]
    return (
        *_find_unknown_configs(nodes, snapshot),
        *_find_blocking([node for node in concerned if node.name in unfenced], snapshot),
        *_find_failed_upgrades(concerned, snapshot),
        *_find_mig_symptoms(nodes, entryless, mig_entries, snapshot),
        *_find_unsafe_drivers(nodes, snapshot.settings),
        *_tell_misfits(misfits, snapshot),
    )


def find_selectors(snapshot: ClusterSnapshot) -> tuple[LabelSelector, ...] | None:
    """Return the node selectors of the readable policies; None if there are no policies."""
    if snapshot.policies_error:
        return ()
    specs = (one.spec for one in snapshot.policies if not one.deleting)
    return tuple(spec.node_selector for spec in specs if spec is not None) if snapshot.policies else None


def _find_unknown_configs(nodes: Sequence[NodeView], snapshot: ClusterSnapshot) -> Iterator[Symptom]:
    label, stack, policy = names.LABEL_PLUGIN_CONFIG, snapshot.stack, snapshot.stack.cluster_policy
    plugin_map = policy.plugin_config_name if policy else ""
    entries = stack.plugin_configs.keys() if plugin_map == snapshot.settings.plugin_config_map else stack.named_keys
    # config-manager keeps the previous configuration then (docs/design/nvidia.md#b4).
    if odd := [node for node in nodes if entries and node.labels.get(label, "") not in ("", *entries)]:
        wrong = odd[0].labels[label]
        alike = [node for node in odd if node.labels[label] == wrong]
        yield error(
            Topic.NODES,
            "PluginConfigUnknown",
            f"label {label} on {some([node.name for node in odd])} names an entry that ConfigMap {plugin_map}"
            f" does not have ({odd[0].name}: {wrong}), so the device plugin silently keeps its previous"
            " configuration. Set the label to the entry that the device plugin is using now. Do not just remove the"
            " label: the plugin would then use its default entry, which may advertise fewer devices",
            _mend(snapshot, label, label_command([node.name for node in alike], f"{label}=NAME")),
        )


def _find_blocking(nodes: Sequence[NodeView], snapshot: ClusterSnapshot) -> Iterator[Symptom]:
    report = warning if find_selectors(snapshot) is None else error
    # GKE's plugin is reported with the agents, so that `helm test` shows it, too.
    for plugin in sorted({node.other_plugin for node in nodes} - {"", GKE}):
        there = [node for node in nodes if node.other_plugin == plugin]
        show = Command.of("kubectl describe node", there[0].name)
        yield report(Topic.NODES, "ForeignDevicePlugin", explain_plugin(plugin, there).message, show)
    label, exclude = names.LABEL_WORKLOAD_CONFIG, "or exclude the node with the policy's nodeSelector"
    for text, command in explain_workloads(nodes, snapshot):
        message = f"{text}. Set the label to {names.WORKLOAD_CONTAINER}, {exclude}"
        yield report(Topic.NODES, "WorkloadConfig", message, _mend(snapshot, label, command or SHOW_LABELS))
    # Where another device plugin serves a node, an admin may have switched NVIDIA's programs off on purpose.
    ours = [node for node in nodes if not node.other_plugin]
    for operand, label in DEPLOY_NEEDED.items():
        odd = [node for node in ours if node.keeps_off(operand)]
        if operand == "mig-manager":
            odd = _find_waiting_for_mig(odd, snapshot)
        if odd:
            text, command = explain_disabled(operand, odd, snapshot)
            message = f"{text}. Correct the label, {exclude}"
            yield report(Topic.NODES, "OperandsDisabled", message, _mend(snapshot, label, command or SHOW_LABELS))
    owners = {node.name: find_owners(node) for node in nodes}
    for label, owner in dict.fromkeys(pair for labels in owners.values() for pair in labels.items()):
        alike = [name for name, labels in owners.items() if labels.get(label) == owner]
        message = f"the operator does not change label {label} on {some(alike)}: {owner}"
        command = Command.of(f"kubectl get node {alike[0]} -o yaml --show-managed-fields")
        yield warning(Topic.NODES, "LabelOwnedElsewhere", message, command)


def _find_failed_upgrades(nodes: Iterable[NodeView], snapshot: ClusterSnapshot) -> Iterator[Symptom]:
    report = warning if find_selectors(snapshot) is None else error
    failed = [node for node in nodes if node.upgrade_failed]
    for message, command in explain_failed_upgrades(failed, snapshot.stack.cluster_policy):
        yield report(Topic.NODES, str(Reason.DRIVER_UPGRADE_FAILED), message, command)


def _find_waiting_for_mig(nodes: Iterable[NodeView], snapshot: ClusterSnapshot) -> list[NodeView]:
    if snapshot.stack.by_dra and snapshot.stack.cluster_policy is None:  # no deploy label chooses its nodes (d.3)
        return []
    owners = Owners(find_contenders(snapshot.policies))
    specs = {policy.name: policy.spec for policy in snapshot.policies}

    def waits(node: NodeView) -> bool:
        spec, observed = specs.get(owners.owner(node)), snapshot.observed(node.name)
        gpus = observed.hardware.kinds if observed is not None else ()
        return spec is not None and (spec.mode is Mode.MIG or any(gpu.mig_enabled for gpu in gpus))

    return [node for node in nodes if waits(node)]


def _mend(snapshot: ClusterSnapshot, label: str, command: Command) -> Command:
    """Return the command, or one that shows the nodes while it is unknown which of them will get a policy."""
    return Command.of("kubectl get nodes -L", label) if find_selectors(snapshot) is None else command


def _find_mig_symptoms(
    nodes: Sequence[NodeView],
    entryless: Sequence[NodeView],
    mig_entries: Mapping[str, tuple[str, frozenset[str]]],
    snapshot: ClusterSnapshot,
) -> Iterator[Symptom]:
    label, namespace = names.LABEL_MIG_CONFIG, snapshot.settings.gpu_operator_namespace
    if entryless:  # mig-manager touches no GPU then (docs/design/nvidia.md#a3)
        first = entryless[0]
        (config_map, entries), wrong = mig_entries[first.name], first.labels[label]
        alike = [node for node in entryless if node.labels[label] == wrong]
        yield warning(
            Topic.NODES,
            "MigConfigUnknown",
            f"label {label} on {some([node.name for node in entryless])} names a configuration that mig-manager does"
            f" not have there ({first.name}: {wrong}; ConfigMap {config_map} has {some(sorted(entries), 4)}), so"
            " mig-manager will not recreate the MIG instances after a reboot. Set the label to the configuration that"
            " the GPUs have now. With any other configuration, mig-manager repartitions them; if the label is missing,"
            " the GPU Operator may set it to all-disabled",
            label_command([node.name for node in alike], f"{label}=NAME"),
        )
    states = {node.name: node.labels.get(names.LABEL_MIG_STATE) for node in nodes}
    if failed := [node for node in nodes if states[node.name] == "failed" and node not in entryless]:
        yield warning(
            Topic.NODES,
            "MigConfigFailed",
            f"mig-manager could not apply its configuration on {some([node.name for node in failed])}"
            f" ({failed[0].name}: {failed[0].labels.get(label, 'none')})",
            Command.of(f"kubectl -n {namespace} logs -l app=nvidia-mig-manager --prefix --tail 50"),
        )
    # If mig-manager's pod died in between, nothing starts the programs that it paused, whatever state it left.
    managers = snapshot.operands.get(Program.MIG_MANAGER, {})
    alive = {name for name, pod in managers.items() if pod.ready}
    gone = {node.name for node in nodes if managers and node.ready and node.name not in alive}
    switches = [names.LABEL_DEPLOY_PREFIX + operand for operand in names.DEPLOY_PAUSABLE]
    paused = [
        node.name
        for node in nodes
        if (states[node.name] not in ("pending", "rebooting") or node.name in gone)
        and any(node.labels.get(switch) == names.PAUSED_FOR_MIG for switch in switches)
    ]
    if paused:
        effects = find_effects(Change(restarts=(MIG_MANAGER,), nodes=(paused[0],)), snapshot)
        restart = (
            f"kubectl -n {namespace} delete pod -l app=nvidia-mig-manager --field-selector spec.nodeName={paused[0]}"
        )
        ended = "whose mig-manager has no Ready pod" if gone.issuperset(paused) else "that has ended"
        message = f"operands on {some(paused)} are still paused for a MIG change {ended}{tell_effects(effects)}"
        yield error(Topic.NODES, "OperandsPaused", message, Command.if_safe(restart, effects=effects) or SHOW_LABELS)


def find_all_misfits(snapshot: ClusterSnapshot) -> dict[str, list[Misfit]]:
    return {name: found for name, node in snapshot.nodes.items() if (found := [*find_misfits(node, snapshot)])}


def _tell_misfits(misfits: Mapping[str, Sequence[Misfit]], snapshot: ClusterSnapshot) -> Iterator[Symptom]:
    policy = snapshot.stack.cluster_policy
    alike = defaultdict[tuple[Reason, Change | None], dict[str, str]](dict)
    for name, rows in sorted(misfits.items()):
        for found, change in rows:
            alike[found.reason, change][name] = found.message
    for (reason, change), texts in alike.items():
        nodes, text, effects, command = tuple(texts), next(iter(texts.values())), Effects(), None
        if change is not None and change.labels:
            effects, command = label_nodes(nodes, *change.labels[0], snapshot)
        elif change is not None and policy is not None:
            effects = find_effects(change, snapshot)
            command = kubectl_patch(policy.name, change.fields, effects=effects)
        first = f" (for example {nodes[0]})" if len({*texts.values()}) > 1 else ""
        report = error if reason in (Reason.MIG_INVALID, Reason.COMPUTE_INSTANCES) else warning
        yield report(
            Topic.NODES,
            str(reason),
            f"{some(nodes)}{first}: {text}{tell_effects(effects)}",
            command or Command.of("kubectl describe node", nodes[0]),
        )


def _find_unsafe_drivers(nodes: Sequence[NodeView], settings: PlanSettings) -> Iterator[Symptom]:
    allowed, refuse = settings.unsafe_drivers, settings.refuse_unsafe_drivers
    flaws = {}
    for node in nodes:
        flaw = find_driver_flaw(node.labels.get(LABEL_DRIVER, ""), allowed, refuse_affected=refuse)
        if flaw and node.labels.get(names.LABEL_MIG_CAPABLE) == "true":
            flaws[node.name] = flaw
    if flaws:
        first = min(flaws)
        yield warning(
            Topic.NODES,
            "UnsafeDriver",
            f"the operator does not repartition the GPUs on {some(sorted(flaws))} ({first}: {flaws[first]})",
            Command.of(
                f"kubectl get node {first} -o", r"jsonpath={.metadata.labels.nvidia\.com/cuda\.driver-version\.full}"
            ),
        )


# --- kubelets ------------------------------------------------------------------------------------------


OLDEST = (1, 30)
"""The oldest version of Kubernetes that the operator supports. The chart's kubeVersion says the same for the API
server."""
MOST_BEHIND = 3
"""How many minor versions a kubelet may be older than the API server; it must not be newer. See
kubernetes.io/releases/version-skew-policy, "kubelet"."""
_VERSION = re.compile(r"v?(\d+)\.(\d+)")


def find_minor(version: str) -> tuple[int, int] | None:
    """Return the major and minor number of a version such as `v1.33.1-eks-1-33-5`, or None.

    A build without a version has `v0.0.0-master+$Format:%H$` (component-base v0.36.3 version/base.go).
    """
    match = _VERSION.match(version)
    return (int(match[1]), int(match[2])) if match and match[1] != "0" else None


def find_kubelet_symptoms(view: Installation, api_server: str) -> Iterator[Symptom]:
    """Yield a warning for each problem with the kubelets of nodes with GPUs.

    `api_server` is the API server's version, if known.
    """
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
    for name in sorted(node.name for node in view.snapshot.nodes.values() if has_gpu_label(node)):
        minor = find_minor(view.kubelets.get(name, ""))
        if minor is None:
            continue
        if server is not None and minor > server:
            faulty["KubeletNewer"].append(name)
        elif server is not None and minor[0] == server[0] and server[1] - minor[1] > MOST_BEHIND:
            faulty["KubeletBehind"].append(name)
        elif minor < OLDEST:
            faulty["KubeletOld"].append(name)
    for reason, nodes in faulty.items():
        if nodes:
            yield warning(
                Topic.KUBELETS,
                reason,
                f"the kubelet on {some(nodes)} ({view.kubelets[nodes[0]]}) {faults[reason]}",
                Command.of(
                    f"kubectl get node {' '.join(nodes)} -o"
                    " custom-columns=NODE:.metadata.name,KUBELET:.status.nodeInfo.kubeletVersion"
                ),
            )


# --- the device plugin's ConfigMap ---------------------------------------------------------------------


@value
class PluginEntries:
    """The ConfigMap with the device plugin's configurations, which may not exist."""

    config_map: str
    namespace: str
    """The namespace of the device plugin, where the ConfigMap must be."""
    texts: Mapping[str, str] | None
    """The configurations as YAML, by key, or None if the ConfigMap does not exist there."""
    elsewhere: Sequence[str] = ()
    """Other namespaces with a ConfigMap of that name, if it does not exist there."""

    @property
    def absence(self) -> str:
        if self.texts is not None:
            return ""
        others = f"; there is a ConfigMap with that name in {some(self.elsewhere)}" if self.elsewhere else ""
        return (
            f"ConfigMap {self.config_map} does not exist in namespace {self.namespace}{others}; device plugins cannot"
            " start"
        )


def find_entry_symptoms(entries: PluginEntries, used: Collection[str], install: Command | None) -> Iterator[Symptom]:
    """Yield a symptom if the ConfigMap does not exist, and for entries with bad fields.

    The device plugin refuses such an entry, or ignores a part of it. `used` are the entries that nodes use. `install`
    is the command that installs the operator, if it is not installed.
    """
    if entries.absence:
        show = Command.of(f"kubectl get configmaps -A --field-selector metadata.name={entries.config_map}")
        yield error(Topic.CONFIG_MAPS, "PluginConfigMapMissing", entries.absence, install or show)
    # The plugin cannot start with an entry that it refuses, so a correction takes nothing that it serves. What it ignores
    # would count from its next start on, and nodes might offer other devices then.
    edit = Command.of(f"kubectl -n {entries.namespace} edit configmap {entries.config_map}", effects=())
    look = Command.of(f"kubectl -n {entries.namespace} get configmap {entries.config_map} -o yaml")
    for key, text in sorted((entries.texts or {}).items()):
        flaws = find_flaws(text)
        refused = [flaw.text for flaw in flaws if flaw.refused]
        message = f"ConfigMap {entries.config_map}, entry {key}, "
        message += "; ".join((refused or [flaw.text for flaw in flaws])[:3])
        if refused:
            yield (error if key in used else warning)(Topic.CONFIG_MAPS, "PluginConfigRefused", message, edit)
        elif flaws:
            yield warning(Topic.CONFIG_MAPS, "PluginConfigIgnored", message, look)
