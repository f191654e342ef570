"""Do other device plugins, or several installations, serve the same nodes as ours?

A plugin that does not follow the label `nvidia.com/device-plugin.config` could neither serve nor prove a change, so
none begins on its nodes. DaemonSets also disturb each other: two device plugins, NVIDIA's DRA driver beside one, or two
mig-managers.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import combinations

from gpusharing.api.names import LABEL_GPU_PRESENT, LABEL_GPU_PRODUCT, LABEL_PLUGIN_CONFIG
from gpusharing.planning.snapshot.podviews import Toleration
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.effects import tell_effects
from gpusharing.planning.stack.installationviews import Symptom, Topic, error, warning
from gpusharing.planning.vocabulary.commands import Command, Effects
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

GKE = "GKE's own device plugin"
GKE_GPU, GKE_WITHOUT_PLUGIN = "cloud.google.com/gke-accelerator", "gke-no-default-nvidia-gpu-device-plugin"
"""Labels of GKE. The first is on nodes with a GPU. With the value `true`, the second keeps GKE's own device plugin off
a node."""
HAMI, HAMI_STATE = "hami.io/node-nvidia-register", "hami.io/node-handshake"
DAS = "instaslice.redhat.com/managed"
AKS, AUTO_MODE = "kubernetes.azure.com/dcgm-exporter", "eks.amazonaws.com/compute-type"


def has_gpu_label(node: NodeView) -> bool:
    return node.labels.get(LABEL_GPU_PRESENT) == "true" or LABEL_GPU_PRODUCT in node.labels


def has_cloud_plugin(labels: Mapping[str, str]) -> bool:
    return GKE_GPU in labels and labels.get(GKE_WITHOUT_PLUGIN) != "true"


def has_system_plugin(os_image: str) -> bool:
    """Whether a Node's operating system may run a device plugin itself. Bottlerocket's NVIDIA variants do.

    Those, such as `Bottlerocket OS 1.14.0 (aws-k8s-1.24-nvidia)` (bottlerocket#3132), start nvidia-k8s-device-plugin at
    boot. Beside NVIDIA's DaemonSet it left pods without GPUs (bottlerocket#4309). From 1.63.0 on, a setting can disable
    it (bottlerocket-core-kit#914), which the API does not show.
    """
    return os_image.startswith("Bottlerocket OS ") and "-nvidia" in os_image


def _has_hami(labels: Mapping[str, str], annotations: Mapping[str, str]) -> bool:
    listed = annotations.get(HAMI, "").strip() not in ("", "[]")
    return listed and not annotations.get(HAMI_STATE, "").startswith("Deleted")


@value
class OtherPlugin:
    """A device plugin that is not NVIDIA's, and how to recognize it.

    A plugin counts if its own mark is on the Node: an annotation that it writes, a label by which it selects nodes, or
    one of its resources in allocatable, which the kubelet sets to 0 when the plugin is gone. The mere possibility that
    a host runs a plugin is not enough: Bottlerocket's can be switched off, and the API does not show that.
    """

    sign: str
    """What on a Node shows it, for messages."""
    handover: str
    """What hands a node over to NVIDIA's plugin. Its last words lead to `command` if there is one."""
    resources: tuple[str, ...] = ()
    """Prefixes of resource names that only this plugin serves."""
    marked: Callable[[Mapping[str, str], Mapping[str, str]], bool] = lambda labels, annotations: False
    """The test of whether a Node's labels and annotations show the plugin."""
    command: tuple[str, str] | None = None
    """The command of the handover, before and after the nodes."""


OTHERS: Mapping[str, OtherPlugin] = {
    # GoogleCloudPlatform/container-engine-accelerators at 992db812, cmd/nvidia_gpu/device-plugin.yaml (affinity).
    GKE: OtherPlugin(f"label {GKE_GPU} without {GKE_WITHOUT_PLUGIN}=true",
        "label the node pool: ", marked=lambda labels, annotations: has_cloud_plugin(labels),
        command=("kubectl label node", f"{GKE_WITHOUT_PLUGIN}=true")),
    # Project-HAMi/HAMi v2.10.0, pkg/device/nvidia/device.go (RegisterAnnos) and nvinternal/plugin/register.go.
    "HAMi's device plugin": OtherPlugin(f"annotation {HAMI}",
        "remove HAMi from these nodes, then run: ", ("nvidia.com/gpumem", "nvidia.com/gpucores"), _has_hami,
        ("kubectl annotate node", f"{HAMI}-")),
    # Project-HAMi/volcano-vgpu-device-plugin at 4fb76ba, deployments/static; before it volcano-sh/devices.
    "Volcano's vGPU device plugin": OtherPlugin("resources volcano.sh/vgpu-*",
        "keep the DaemonSet volcano-device-plugin off these nodes", ("volcano.sh/vgpu-", "volcano.sh/gpu-")),
    # Azure/AgentBaker, configureManagedGPUExperience: a service of the host, with flags and without a configuration.
    "the device plugin of AKS's managed GPU pools": OtherPlugin(f"label {AKS}=enabled",
        "use a node pool without managed GPUs", marked=lambda labels, annotations: labels.get(AKS) == "enabled"),
    # Amazon EKS user guide, "Deploy an accelerated workload": it runs automatically and is not a DaemonSet.
    "the device plugin of EKS Auto Mode": OtherPlugin(f"label {AUTO_MODE}=auto",
        "use a node group without Auto Mode", marked=lambda labels, annotations: labels.get(AUTO_MODE) == "auto"),
    # openshift/instaslice-operator: its webhook turns nvidia.com/mig-* of a pod into mig.das.com/mig-*, and its daemon
    # makes the instances when the pod starts, on the nodes with this label. Deprecated in OpenShift 4.22.
    "OpenShift's Dynamic Accelerator Slicer": OtherPlugin(f"label {DAS}=true or resources mig.das.com/*",
        "remove the slicer from these nodes, then run: ", ("mig.das.com/",),
        lambda labels, annotations: labels.get(DAS) == "true", ("kubectl label node", f"{DAS}-")),
}  # fmt: skip
"""The known plugins, by their names in messages."""
RESOURCES = tuple(prefix for one in OTHERS.values() for prefix in one.resources)
"""Prefixes of the resource names that plugins in OTHERS serve and NVIDIA's does not."""


def find_other_plugin(labels: Mapping[str, str], annotations: Mapping[str, str], resources: Sequence[str]) -> str:
    for plugin, known in OTHERS.items():
        if known.marked(labels, annotations) or any(name.startswith(known.resources) for name in resources):
            return plugin
    return ""


def explain_plugin(name: str, nodes: Sequence[NodeView]) -> Finding:
    """Return why no change begins on nodes that this plugin serves, and how to hand them over to NVIDIA's."""
    plugin, listed, commands = OTHERS[name], [node.name for node in nodes], tuple[Command, ...]()
    where, handover = some(listed), plugin.handover
    if kept := [node.name for node in nodes if node.keeps_off("operands") or node.keeps_off("device-plugin")]:
        handover = f"first let NVIDIA's device plugin run on {some(kept)}, from which a deploy label keeps it"
    elif plugin.command is not None:
        line, last = plugin.command
        # The reader decides whose plugin serves the nodes, which is what the message is about.
        commands = (Command.of(line, *listed, last, effects=()),)
    return Finding(
        Reason.FOREIGN_DEVICE_PLUGIN,
        f"{name} serves the GPUs on {where} ({plugin.sign}) and does not follow {LABEL_PLUGIN_CONFIG}, so a change"
        f" could neither take effect nor be proven. Exclude {where} from the policy, or {handover}"
        f"{''.join(map(str, commands))}",
        commands=commands,
    )


def name_resources(requested: Collection[str], serving: Mapping[str, str]) -> Iterator[str]:
    """Yield a clause for each other plugin that alone serves some of these resources.

    `serving` is the plugin by node.
    """
    for plugin, known in OTHERS.items():
        if names := sorted(name for name in requested if name.startswith(known.resources)):
            nodes = sorted(node for node, server in serving.items() if server == plugin)
            yield f"{', '.join(names)}: only {plugin} serves this, and it serves {some(nodes) or 'no node'} here"


class Role(StrEnum):
    """What the pods of a DaemonSet do with GPUs."""

    PLUGIN = "a device plugin"
    """Its pods serve nvidia.com/gpu."""
    DRIVER = "NVIDIA's DRA driver"
    """Its pods serve GPUs to ResourceClaims, because the driver has GPUs enabled."""
    MIG_MANAGER = "mig-manager"


_DISTURBANCE = {
    Role.PLUGIN: "the kubelet uses whichever of the two registered a resource last, and only one of them reads our"
    " configuration. Remove the redundant one and restart the other, so that it registers again",
    Role.MIG_MANAGER: "both partition the same GPUs. Remove the redundant one",
}
"""What goes wrong if two DaemonSets of the same role run on a node, and what to do."""


@value
class Server:
    """A DaemonSet whose pods serve or partition GPUs."""

    namespace: str
    name: str
    role: Role
    of_gpu_operator: bool
    """Whether ClusterPolicy owns it."""
    release: str
    release_namespace: str
    owned: bool
    """Whether another object owns it, whose controller would create it again after a deletion."""
    wanted: int
    """The number of nodes on which its pods should run, according to its status. 0 if it is being deleted."""
    selector: Mapping[str, str]
    affinity: str
    """The affinity of its pods as JSON, or an empty string."""
    tolerations: frozenset[str]
    stale: bool = False
    """Whether its status is about an older version of its spec, so that `wanted` may be wrong."""

    @property
    def where(self) -> str:
        return f"DaemonSet {self.namespace}/{self.name}"

    @property
    def show(self) -> Command:
        return Command.of(f"kubectl -n {self.namespace} get daemonset {self.name} -o yaml")

    def covers(self, other: "Server") -> bool:
        """Whether every node that should run pods of `other` certainly must have this DaemonSet's too."""
        return (
            self.selector.items() <= other.selector.items()
            and self.affinity in ("", other.affinity)
            and other.tolerations <= self.tolerations
        )

    def selects(self, node: NodeView) -> bool:
        return all(node.labels.get(key) == value for key, value in self.selector.items())


def _running(servers: Iterable[Server], namespace: str) -> list[Server]:
    """Return the servers whose pods should run anywhere. The first of each role is the one that we configure."""
    return sorted(
        (server for server in servers if server.wanted),
        key=lambda server: (
            not server.of_gpu_operator,
            server.namespace != namespace,
            not server.release,
            server.where,
        ),
    )


def _are_twins(one: Server, other: Server) -> bool:
    if one.stale or other.stale:  # its pods may be about to leave all nodes
        return False
    return one.role is other.role and one.role in _DISTURBANCE and (one.covers(other) or other.covers(one))


def tell_twins(servers: Iterable[Server], namespace: str) -> str:
    pairs = combinations(_running(servers, namespace), 2)
    main, other = next((pair for pair in pairs if _are_twins(*pair)), (None, None))
    if main is None or other is None:
        return ""
    return f"{_tell(main, other, 'they share nodes')}; kubectl gpusharing doctor prints the command"


def find_rival_symptoms(
    servers: Iterable[Server], nodes: Sequence[NodeView], namespace: str, restart: Effects, finders: Iterable[str] = ()
) -> Iterator[Symptom]:
    """Yield a symptom for each DaemonSet on nodes that the main one of its role serves too.

    The main device plugin counts for every role. A kubelet takes a resource from whichever plugin registered last
    (kubernetes v1.36.3 pkg/kubelet/cm/devicemanager/manager.go, PluginConnected), so of two device plugins on a node
    one does not follow our labels. NVIDIA's DRA driver gives the same GPUs to ResourceClaims, and does not know to
    which pods the device plugin gave them. All mig-managers on a node follow the same label. `restart` are the effects
    of a restart of the device plugin, `finders` the Helm releases of Node Feature Discovery in `namespace`.
    """
    running = _running(servers, namespace)
    found = {(release, namespace) for release in finders if release}
    plugins, drivers, managers = ([one for one in running if one.role is role] for role in Role)
    for main, *others in (group for group in (plugins, managers) if group):
        for other in others:
            if not (both := _shared(main, other, nodes)):
                continue
            # The operator, which reads only `namespace`, refuses all policies for it.
            refused = _are_twins(main, other) and main.namespace == other.namespace == namespace
            needed = found | {_release(one) for one in running if one is not other}
            lost, command = _find_removal(main, other, nodes, restart, needed)
            yield (error if refused else warning)(
                Topic.NODES,
                "TwoMigManagers" if main.role is Role.MIG_MANAGER else "TwoDevicePlugins",
                _tell(main, other, f"both select {some(both)}") + lost,
                command,
            )
    for driver in drivers if plugins else ():
        if both := _shared(plugins[0], driver, nodes):
            # No list of pods tells which hold claims, and these would lose their devices.
            yield warning(
                Topic.NODES,
                "DRADriverServesGPUs",
                f"{driver.where} is NVIDIA's DRA driver with GPUs enabled, and it selects {', '.join(both)} as the device"
                " plugin does: the same GPU may be allocated to a ResourceClaim and to a pod, and drains do not notice"
                " pods that use GPUs through ResourceClaims. Without the driver's GPUs, such pods could not start again"
                " on any of its nodes. Once none is left, set resources.gpus.enabled to false in the driver's chart. To"
                " see the claims",
                Command.of("kubectl get resourceclaims -A"),
            )


def _shared(main: Server, other: Server, nodes: Iterable[NodeView]) -> list[str]:
    """Return the sorted names of the nodes with GPUs that both select, or none if they may be apart."""
    either = [node for node in nodes if has_gpu_label(node) and (main.selects(node) or other.selects(node))]
    sure = main.covers(other) or other.covers(main)
    if not sure and main.wanted + other.wanted <= len(either):
        return []  # few enough pods that taints or affinity may keep them apart
    return sorted(node.name for node in either if main.selects(node) and other.selects(node))


def _tell(main: Server, other: Server, both: str) -> str:
    return f"{other.where} runs {main.role} alongside {main.where}, and {both}: {_DISTURBANCE[main.role]}"


def _release(server: Server) -> tuple[str, str]:
    return server.release, server.release_namespace


def _find_lone(main: Server, other: Server, nodes: Iterable[NodeView]) -> list[str]:
    """Return the nodes that may have no program of this role without `other`."""
    tolerations = [
        Toleration(row.get("key", ""), row.get("operator", "Equal"), row.get("value", ""), row.get("effect", ""))
        for row in map(json.loads, main.tolerations)
    ]

    def reaches(node: NodeView) -> bool:
        tolerated = all(any(one.covers(taint) for one in tolerations) for taint in node.taints)
        return tolerated and main.selects(node) and main.affinity in ("", other.affinity)

    served = (one for one in nodes if (one.resources if main.role is Role.PLUGIN else has_gpu_label(one)))
    return sorted(node.name for node in served if other.selects(node) and not reaches(node))


def _find_removal(
    main: Server, other: Server, nodes: Iterable[NodeView], restart: Effects, needed: Collection[tuple[str, str]]
) -> tuple[str, Command]:
    """Return what goes with `other`, and the command that removes it, or shows it if it would return or nodes lose by it.

    `needed` are the Helm releases, with their namespaces, that install something else that has to stay.
    """
    mig = main.role is Role.MIG_MANAGER
    lost = "" if mig else tell_effects(restart)
    if lone := _find_lone(main, other, nodes):
        then = "and nothing would restore their MIG instances" if mig else "and their GPUs would be gone"
        return f". Only {other.where} may serve {some(lone, 40)}: without it {then}{lost}", other.show
    remove = f"kubectl -n {other.namespace} delete daemonset {other.name}"
    if other.release:
        lost = f". Everything goes that Helm release {other.release} installs, so look at that first{lost}"
        if _release(other) in needed:  # Node Feature Discovery takes its labels with it, for example
            return lost, Command.of(f"helm get manifest {other.release} -n {other.release_namespace}", effects=())
        remove = f"helm uninstall {other.release} -n {other.release_namespace}"
    elif other.owned:
        return lost, other.show
    removal = Command.of(remove, effects=())  # `main` does the same on each of its nodes
    if mig:
        return lost, removal
    again = Command.if_safe(f"kubectl -n {main.namespace} rollout restart daemonset {main.name}", effects=restart)
    return lost, other.show if again is None else again.after(removal)
