"""What `doctor` finds beyond `helm test`: trouble in NVIDIA's Node labels that nobody noticed, unsupported kubelets,
programs that serve GPUs beside the device plugin, and entries that the plugin refuses."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

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
"""Of GPU Feature Discovery (k8s-device-plugin v0.19.3, internal/lm/nvml.go)."""
_AT_WORK = ("pending", "rebooting")


@value
class MigEntries:
    """The mig-parted configuration that mig-manager uses on a node (docs/design/nvidia.md#a10)."""

    config_map: str
    """Name of the ConfigMap."""
    names: frozenset[str]
    """The configurations that it holds."""


def has_gpu_label(node: NodeView) -> bool:
    """Whether the node has a GPU according to the GPU Operator or GPU Feature Discovery."""
    return node.labels.get(names.LABEL_GPU_PRESENT) == "true" or names.LABEL_GPU_PRODUCT in node.labels


def find_node_symptoms(view: InstallationView, mig_entries: Mapping[str, MigEntries]) -> tuple[Symptom, ...]:
    """Report what is wrong with the labels of Nodes: each fault once, with the names of all Nodes that have it. Nodes
    that the operator is changing are left out: such values are part of the change there.

    `mig_entries`: by node, what mig-manager uses there. A node is missing if that is unknown, or if there is no
    mig-manager.
    """
    nodes = sorted(
        (one for one in view.nodes if one.fence is None and not one.fence_error), key=lambda one: one.name
    )
    early = view.selectors is None
    selected = {
        one.name for one in nodes if any(selects_node(row, one.labels) for row in view.selectors or ())
    }
    # Nodes that the operator would change if nothing were wrong with them.
    concerned = [one for one in nodes if has_gpu_label(one) and (early or one.name in selected)]
    entryless = {
        one.name: one
        for one in nodes
        if one.name in mig_entries.keys() - selected
        and one.labels.get(names.LABEL_MIG_CONFIG, "") not in ("", *mig_entries[one.name].names)
    }
    return (
        *_unknown_configs(nodes, view),
        *_other_plugins(concerned, view),
        *_other_workloads(concerned, view),
        *_switched_off(concerned, view),
        *_owned_elsewhere(concerned),
        *_unknown_mig([*entryless.values()], mig_entries),
        *_failed([one for one in nodes if one.name not in entryless], view),
        *_paused(nodes, view),
        *_drivers(nodes, view.place),
    )


def _unknown_configs(nodes: list[NodeView], view: InstallationView) -> Symptoms:
    """Report nodes whose device-plugin label names no entry of the ConfigMap: config-manager silently keeps the former
    configuration then (docs/design/nvidia.md#b4). Yields nothing if the entries are unknown."""
    label, plugin_map = names.LABEL_PLUGIN_CONFIG, view.followed.plugin_config_name if view.followed else ""
    held = view.config_maps.get(plugin_map)
    if held is None or not held.keys:
        return
    odd = [one for one in nodes if one.labels.get(label) and one.labels[label] not in held.keys]
    if odd:
        first = odd[0]
        alike = [one for one in odd if one.labels[label] == first.labels[label]]
        yield error(
            Topic.NODES,
            "PluginConfigUnknown",
            f"{label} of {some(sorted(one.name for one in odd))} names no key of ConfigMap {plugin_map}"
            f" ({first.name}: {first.labels[label]}), so the device plugin silently serves what it served before."
            " Name the entry that it serves now: without the label it serves the default, which may be fewer devices",
            _mend(view, label, f"kubectl label node {_all(alike)} --overwrite {label}=NAME"),
        )


def _other_plugins(nodes: list[NodeView], view: InstallationView) -> Symptoms:
    """Report nodes that a device plugin of somebody else serves. GKE's is left out: it is reported with the agents, so
    that `helm test` shows it too."""
    for plugin in sorted({one.other_plugin for one in nodes} - {"", GKE}):
        there = [one.name for one in nodes if one.other_plugin == plugin]
        show = f"kubectl describe node {there[0]}"
        yield _blocking(view)(Topic.NODES, "ForeignDevicePlugin", explain_plugin(plugin, there), show)


def _other_workloads(nodes: list[NodeView], view: InstallationView) -> Symptoms:
    """Report nodes whose GPUs are for virtual machines: they have neither device plugin nor mig-manager
    (docs/design/nvidia.md#d2)."""
    label, policy = names.LABEL_WORKLOAD_CONFIG, view.followed
    odd = [one for one in nodes if workload_of(one.labels, policy) != names.WORKLOAD_CONTAINER]
    if odd:
        yield _blocking(view)(
            Topic.NODES,
            "WorkloadConfig",
            f"the GPUs of {some([one.name for one in odd])} are not for containers ({odd[0].name} has"
            f" {workload_of(odd[0].labels, policy)} by {label}, or by ClusterPolicy {SANDBOX_DEFAULT} where it has no"
            " such label), so no policy changes anything there. Stop virtual machines that have them and set the label"
            " to container, or keep the node out of the policy's nodeSelector",
            # Removing the label may not help: ClusterPolicy's sandboxWorkloads.defaultWorkload may say the same.
            _mend(
                view, label, f"kubectl label node {_all(odd)} --overwrite {label}={names.WORKLOAD_CONTAINER}"
            ),
        )


def _switched_off(nodes: list[NodeView], view: InstallationView) -> Symptoms:
    """Report nodes with a label that keeps a needed program of NVIDIA's off them (docs/design/nvidia.md#d2, d.4).

    Pauses of mig-manager and of a driver upgrade are left out, because they end by themselves. So are nodes that
    another device plugin serves, because their admin may have switched NVIDIA's off on purpose.
    """
    for operand, label in DEPLOY_NEEDED.items():
        odd = [
            one
            for one in nodes
            if not one.other_plugin and is_switched_off(operand, one.labels.get(label, ""))
        ]
        if odd:
            yield _blocking(view)(
                Topic.NODES,
                "OperandsDisabled",
                f"{label} of {some([one.name for one in odd])} is {odd[0].labels[label]}, so the components of the GPU"
                " Operator that would serve and report a change do not run there, and no policy changes anything"
                " there. Remove the label, or keep the node out of the policy's nodeSelector",
                _mend(view, label, f"kubectl label node {_all(odd)} {label}-"),
            )


def _owned_elsewhere(nodes: list[NodeView]) -> Symptoms:
    """Report labels that the operator would write and that somebody else would set back: one warning for each label and
    owner."""
    owners = {one.name: find_owners(one) for one in nodes}
    for label, owner in dict.fromkeys(pair for found in owners.values() for pair in found.items()):
        alike = [name for name, found in owners.items() if found.get(label) == owner]
        yield warning(
            Topic.NODES,
            "LabelOwnedElsewhere",
            f"no policy changes {label} of {some(alike)}: {owner}",
            f"kubectl get node {alike[0]} -o yaml --show-managed-fields",
        )


def _mend(view: InstallationView, label: str, command: str) -> str:
    """Return `command`, or one that only shows the nodes if there is no policy: it is unknown then whether such nodes
    will get one."""
    return f"kubectl get nodes -L {label}" if view.selectors is None else command


def _blocking(view: InstallationView) -> Callable[[Topic, str, str, str], Symptom]:
    return warning if view.selectors is None else error


def _all(nodes: list[NodeView]) -> str:
    return " ".join(one.name for one in nodes)


def _unknown_mig(nodes: list[NodeView], mig_entries: Mapping[str, MigEntries]) -> Symptoms:
    """Report these nodes, whose MIG label names no entry: mig-manager refuses the name and touches no GPU
    (docs/design/nvidia.md#a3). Nodes that a policy selects are not among them: the operator writes their label, and
    reports a wrong name in the policy itself."""
    label = names.LABEL_MIG_CONFIG
    if nodes:
        first = nodes[0]
        entries, wrong = mig_entries[first.name], first.labels[label]
        alike = [one for one in nodes if one.labels[label] == wrong]
        yield warning(
            Topic.NODES,
            "MigConfigUnknown",
            f"{label} of {some([one.name for one in nodes])} names no configuration that mig-manager has there"
            f" ({first.name}: {wrong}; ConfigMap {entries.config_map} has {some(sorted(entries.names), 4)}), so after a"
            " reboot it does not create the MIG instances again. Name the configuration that the GPUs have now: for"
            " any other, mig-manager repartitions them, and without the label the GPU Operator may set all-disabled",
            f"kubectl label node {_all(alike)} --overwrite {label}=NAME",
        )


def _failed(nodes: list[NodeView], view: InstallationView) -> Symptoms:
    """Report nodes on which mig-manager has failed. Those that `_unknown_mig` has reported are not among `nodes`."""
    failed = [one for one in nodes if one.labels.get(names.LABEL_MIG_STATE) == "failed"]
    if failed:
        told = f"{failed[0].name}: {failed[0].labels.get(names.LABEL_MIG_CONFIG, 'none')}"
        yield warning(
            Topic.NODES,
            "MigConfigFailed",
            f"mig-manager could not apply its configuration on {some(sorted(one.name for one in failed))} ({told})",
            f"kubectl -n {view.place.gpu_operator_namespace} logs -l app=nvidia-mig-manager --prefix --tail 50",
        )


def _paused(nodes: list[NodeView], view: InstallationView) -> Symptoms:
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
            f"kubectl -n {view.place.gpu_operator_namespace} delete pod -l app=nvidia-mig-manager"
            f" --field-selector spec.nodeName={paused[0].name}",
        )


def _is_paused(node: NodeView) -> bool:
    switches = (names.LABEL_DEPLOY_PREFIX + operand for operand in names.DEPLOY_PAUSABLE)
    return any(node.labels.get(switch) == names.PAUSED_FOR_MIG for switch in switches)


def _drivers(nodes: list[NodeView], settings: PlanSettings) -> Symptoms:
    """Report nodes with a driver under which the operator repartitions no GPU."""
    flaws = {
        one.name: flaw
        for one in nodes
        if one.labels.get(names.LABEL_MIG_CAPABLE) == "true"
        and (
            flaw := find_driver_flaw(
                one.labels.get(LABEL_DRIVER, ""),
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
            f"no GPU of {some(sorted(flaws))} is repartitioned ({first}: {flaws[first]})",
            f"kubectl get node {first} -o jsonpath='{{.metadata.labels.nvidia\\.com/cuda\\.driver-version\\.full}}'",
        )


# --- kubelets ------------------------------------------------------------------------------------------


OLDEST = (1, 30)
"""The oldest Kubernetes that the operator is made for; the chart's kubeVersion says the same of the API server."""
MOST_BEHIND = 3
"""Minor versions: "kubelet must not be newer than kube-apiserver", and "may be up to three minor versions older"
(kubernetes.io/releases/version-skew-policy, "kubelet"). Patch versions do not count."""
_VERSION = re.compile(r"v?(\d+)\.(\d+)")

Minor = tuple[int, int]


def find_minor(version: str) -> Minor | None:
    """Major and minor of `v1.33.1-eks-1-33-5`; None if it is unknown, or that of a build without a version
    (`v0.0.0-master+$Format:%H$`, component-base v0.36.3 version/base.go)."""
    found = _VERSION.match(version)
    return (int(found[1]), int(found[2])) if found and found[1] != "0" else None


def find_kubelet_symptoms(view: InstallationView, api_server: str) -> tuple[Symptom, ...]:
    """Report what is wrong with the versions of kubelets on nodes with GPUs, each kubelet once, for its worst fault.
    `api_server`: its version, empty if unknown."""
    server = find_minor(api_server)
    unsupported = f"the API server ({api_server}), which Kubernetes does not support"
    upgrade_it = "upgrade the kubelet, one node after the other"
    faults = {
        "KubeletNewer": f"is newer than {unsupported}: upgrade the control plane",
        "KubeletBehind": f"is more than {MOST_BEHIND} minor versions behind {unsupported}: {upgrade_it}",
        "KubeletOld": f"is older than {OLDEST[0]}.{OLDEST[1]}, the oldest that the operator is made for: {upgrade_it}",
    }
    found: dict[str, list[str]] = {reason: [] for reason in faults}
    for node in sorted((one for one in view.nodes if has_gpu_label(one)), key=lambda one: one.name):
        minor = find_minor(view.kubelets.get(node.name, ""))
        if minor is None:
            continue
        if server is not None and minor > server:
            found["KubeletNewer"].append(node.name)
        elif server is not None and minor[0] == server[0] and server[1] - minor[1] > MOST_BEHIND:
            found["KubeletBehind"].append(node.name)
        elif minor < OLDEST:
            found["KubeletOld"].append(node.name)
    return tuple(
        warning(
            Topic.KUBELETS,
            reason,
            f"the kubelet of {some(nodes)} ({view.kubelets[nodes[0]]}) {faults[reason]}",
            f"kubectl get node {' '.join(nodes)} -o"
            " custom-columns=NODE:.metadata.name,KUBELET:.status.nodeInfo.kubeletVersion",
        )
        for reason, nodes in found.items()
        if nodes
    )


# --- programs that serve GPUs beside the device plugin -------------------------------------------------


@value
class Server:
    """A DaemonSet whose pods serve GPUs."""

    namespace: str
    """Namespace of the DaemonSet."""
    name: str
    """Name of the DaemonSet."""
    dra: bool
    """NVIDIA's DRA driver, with GPUs switched on; else a device plugin that serves nvidia.com/gpu."""
    of_gpu_operator: bool
    """ClusterPolicy owns it."""
    release: str
    """Its Helm release; empty: it was not installed with Helm."""
    release_namespace: str
    """The namespace of that release; empty without one."""
    owned: bool
    """Something else made it, and would make it again."""
    wanted: int
    """The number of nodes that it should run on, as its controller counts them."""
    selector: Mapping[str, str]
    """Labels that a node must have; affinity is not looked at."""

    @property
    def where(self) -> str:
        """For people."""
        return f"DaemonSet {self.namespace}/{self.name}"

    @property
    def removal(self) -> str:
        """The command that removes it; or one that shows it, if it would come back or removing it would remove other
        things too."""
        if self.release:
            return f"helm uninstall {self.release} -n {self.release_namespace}"
        if self.dra or self.owned:
            return f"kubectl -n {self.namespace} get daemonset {self.name} -o yaml"
        return f"kubectl -n {self.namespace} delete daemonset {self.name}"


def find_rival_symptoms(
    servers: Iterable[Server], nodes: Sequence[NodeView], namespace: str
) -> tuple[Symptom, ...]:
    """Report what else serves GPUs on nodes that the device plugin serves. `namespace`: where NVIDIA's components are.

    A kubelet takes a resource from whichever plugin registered last (kubernetes v1.36.3
    pkg/kubelet/cm/devicemanager/manager.go, PluginConnected), so of two device plugins on a node one does not follow
    our labels. NVIDIA's DRA driver gives the same GPUs to ResourceClaims, and does not know which pods the device
    plugin gave them to.
    """
    running = sorted(
        (one for one in servers if one.wanted),
        # First the one whose configuration we choose: ClusterPolicy's, else that of the chart where we look for it.
        key=lambda one: (not one.of_gpu_operator, one.namespace != namespace, not one.release, one.where),
    )
    plugins = [one for one in running if not one.dra]
    if not plugins:
        return ()
    main, *others = plugins
    seconds = (_second(main, other, found) for other in others if (found := _shared(main, other, nodes)))
    drivers = (one for one in running if one.dra)
    return (*seconds, *(_driver(one, found) for one in drivers if (found := _shared(main, one, nodes))))


def _shared(main: Server, other: Server, nodes: Iterable[NodeView]) -> list[str]:
    def takes(server: Server, node: NodeView) -> bool:
        return all(node.labels.get(key) == value for key, value in server.selector.items())

    either = [one for one in nodes if has_gpu_label(one) and (takes(main, one) or takes(other, one))]
    if main.wanted + other.wanted <= len(either):
        return []  # so few pods that taints or affinity may well keep them apart
    return sorted(one.name for one in either if takes(main, one) and takes(other, one))


def _second(main: Server, other: Server, nodes: list[str]) -> Symptom:
    again = f"kubectl -n {main.namespace} rollout restart daemonset {main.name}"
    return warning(
        Topic.NODES,
        "TwoDevicePlugins",
        f"{other.where} runs a device plugin beside {main.where}, and both select {some(nodes)}: the kubelet takes"
        " a resource from whichever of the two registered last, and only one of them reads our configuration."
        " Remove the superfluous one and restart the other, so that it registers again",
        other.removal if other.owned and not other.release else f"{other.removal} && {again}",
    )


def _driver(driver: Server, nodes: list[str]) -> Symptom:
    less = "--reset-then-reuse-values --set resources.gpus.enabled=false"
    release = f"{driver.release} CHART -n {driver.release_namespace}"
    return warning(
        Topic.NODES,
        "DRADriverServesGPUs",
        f"{driver.where} is NVIDIA's DRA driver with GPUs enabled, and it selects {some(nodes)} as the device"
        " plugin does: a GPU may be given to a ResourceClaim and to a pod at once, and drains do not see GPUs that"
        " are held through ResourceClaims",
        f"helm upgrade {release} {less}" if driver.release else driver.removal,
    )


# --- the device plugin's ConfigMap ---------------------------------------------------------------------


MOST = 3
"""Fields that a message names."""


@value
class PluginEntries:
    """The ConfigMap of the device plugin's configurations."""

    config_map: str
    """Its name."""
    namespace: str
    """The namespace of the device plugin, in which it has to be."""
    texts: Mapping[str, str] | None
    """The configurations by key; None: there is no such ConfigMap there."""
    elsewhere: Sequence[str] = ()
    """Other namespaces with a ConfigMap of that name, if it is absent."""

    @property
    def absence(self) -> str:
        """The message that the ConfigMap is absent; empty if it exists."""
        if self.texts is not None:
            return ""
        found = f"; one of that name is in {some(self.elsewhere)}" if self.elsewhere else ""
        return (
            f"ConfigMap {self.config_map} does not exist in namespace {self.namespace}{found}; device plugins cannot"
            " start"
        )

    def describe(self, key: str, *, refused: bool) -> str:
        """Return what the device plugin refuses in an entry (`refused`), or what it ignores (not `refused`), by field;
        empty if there is no such field. Only the first few fields are named."""
        flaws = [one.text for one in find_flaws((self.texts or {})[key]) if one.refused == refused]
        return f"ConfigMap {self.config_map}, entry {key}, {'; '.join(flaws[:MOST])}" if flaws else ""


def find_entry_symptoms(entries: PluginEntries, used: Collection[str], install: str) -> Symptoms:
    """Report an absent ConfigMap and every entry that the device plugin refuses or reads only in part. An absent
    ConfigMap and a refused entry in use are errors, all else are warnings.

    `used`: the entries that Nodes or ClusterPolicy's default name. `install`: the command that installs the operator;
    empty once it is installed.
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
