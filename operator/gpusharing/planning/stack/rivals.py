"""DaemonSets that disturb each other on a node: device plugins that serve the same GPUs, NVIDIA's DRA driver beside a
device plugin, or mig-managers that partition the same GPUs.

A kubelet takes a resource from whichever plugin registered last (kubernetes v1.36.3
pkg/kubelet/cm/devicemanager/manager.go, PluginConnected), so of two device plugins on a node one does not follow our
labels. NVIDIA's DRA driver gives the same GPUs to ResourceClaims, and does not know to which pods the device plugin
gave them. All mig-managers on a node follow the same label.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import combinations

from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.installationviews import Symptom, Topic, error, warning
from gpusharing.planning.stack.nodesymptoms import has_gpu_label
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value


class Role(StrEnum):
    """What the pods of a DaemonSet do with GPUs."""

    PLUGIN = "a device plugin"
    """A device plugin that serves nvidia.com/gpu."""
    DRIVER = "NVIDIA's DRA driver"
    """NVIDIA's DRA driver with GPUs enabled."""
    MIG_MANAGER = "mig-manager"
    """The program mig-manager, which partitions GPUs."""


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
    """Namespace of the DaemonSet."""
    name: str
    """Name of the DaemonSet."""
    role: Role
    """What its pods do."""
    of_gpu_operator: bool
    """Whether ClusterPolicy owns it."""
    release: str
    """Name of its Helm release. Empty if it was not installed with Helm."""
    release_namespace: str
    """The namespace of that release. Empty if there is no release."""
    owned: bool
    """Whether another object owns it, whose controller would create it again after a deletion."""
    wanted: int
    """The number of nodes on which its pods should run, according to its status. 0 if it is being deleted."""
    selector: Mapping[str, str]
    """The labels that a node must have, from its node selector."""
    affinity: str
    """The affinity of its pods as JSON. Empty if they have none."""
    tolerations: frozenset[str]
    """The tolerations of its pods, each as JSON."""
    stale: bool = False
    """Whether its status is about an older version of its spec, so that `wanted` may be wrong."""

    @property
    def where(self) -> str:
        """The DaemonSet with its namespace, for messages."""
        return f"DaemonSet {self.namespace}/{self.name}"

    @property
    def removal(self) -> str:
        """The command that removes the DaemonSet: `helm uninstall` if a Helm release installed it, else `kubectl
        delete`. Without a release, the command only shows the DaemonSet in two cases: if it is that of the DRA
        driver, whose removal would remove other things too, and if its owner would create it again."""
        if self.release:
            return f"helm uninstall {self.release} -n {self.release_namespace}"
        if self.role is Role.DRIVER or self.owned:
            return f"kubectl -n {self.namespace} get daemonset {self.name} -o yaml"
        return f"kubectl -n {self.namespace} delete daemonset {self.name}"

    def covers(self, other: "Server") -> bool:
        """Whether every node on which the pods of `other` should run must have this DaemonSet's pods too: this one
        requires no label and no affinity that `other` does not require, and tolerates all that `other` tolerates. If
        False, the two may still share nodes."""
        return (
            self.selector.items() <= other.selector.items()
            and self.affinity in ("", other.affinity)
            and other.tolerations <= self.tolerations
        )


def _running(servers: Iterable[Server], namespace: str) -> list[Server]:
    """Return the DaemonSets whose pods should run on at least one node. The first of each role is the one that we
    configure: ClusterPolicy's, else one in `namespace`, else one that Helm installed, else the first by namespace and
    name."""
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
    """Whether the two DaemonSets have the same role, two of which disturb each other on a node, and certainly share
    nodes. False while the status of one of them is stale, because its pods may then be about to leave all nodes."""
    if one.stale or other.stale:
        return False
    return one.role is other.role and one.role in _DISTURBANCE and (one.covers(other) or other.covers(one))


def tell_twins(servers: Iterable[Server], namespace: str) -> str:
    """Return a message with the remedy if two of these DaemonSets run device plugins, or two run mig-manager, and they
    certainly share nodes. Only the first such pair is reported. Empty if there is none. DaemonSets whose pods should
    run on no node, and those whose status is stale, are ignored. `namespace` is that of NVIDIA's components."""
    pairs = combinations(_running(servers, namespace), 2)
    main, other = next((pair for pair in pairs if _are_twins(*pair)), (None, None))
    if main is None or other is None:
        return ""
    return f"{_tell(main, other, 'they share nodes')}; run: {_remedy(main, other)}"


def find_rival_symptoms(
    servers: Iterable[Server], nodes: Sequence[NodeView], namespace: str
) -> tuple[Symptom, ...]:
    """Return a symptom for each device plugin or DRA driver on nodes that the main device plugin serves too, and for
    each mig-manager on nodes that the main mig-manager serves too, as far as can be seen (`_shared`). The main one is
    the first of its role in the order of `_running`. DaemonSets whose pods should run on no node are ignored.
    `namespace` is that of NVIDIA's components."""
    running = _running(servers, namespace)
    plugins, drivers, managers = ([one for one in running if one.role is role] for role in Role)
    return (
        *(
            _second(main, other, both, namespace)
            for main, *others in (group for group in (plugins, managers) if group)
            for other in others
            if (both := _shared(main, other, nodes))
        ),
        *(
            _driver(driver, both)
            for driver in drivers
            if plugins and (both := _shared(plugins[0], driver, nodes))
        ),
    )


def _shared(main: Server, other: Server, nodes: Iterable[NodeView]) -> list[str]:
    """Return the sorted names of the nodes with GPUs that both DaemonSets select. Also empty if the two together want
    no more pods than there are nodes with GPUs that either of them selects, because taints or affinity may then keep
    them apart, unless they certainly share nodes (`Server.covers`)."""

    def selects(server: Server, node: NodeView) -> bool:
        """Whether the node has all labels in the node selector of the DaemonSet."""
        return all(node.labels.get(key) == value for key, value in server.selector.items())

    either = [node for node in nodes if has_gpu_label(node) and (selects(main, node) or selects(other, node))]
    sure = main.covers(other) or other.covers(main)
    if not sure and main.wanted + other.wanted <= len(either):
        return []  # few enough pods that taints or affinity may keep them apart
    return sorted(node.name for node in either if selects(main, node) and selects(other, node))


def _tell(main: Server, other: Server, both: str) -> str:
    """Return the sentence that `other` has the role of `main`, on the nodes that the clause `both` names, what goes
    wrong, and what to do. It ends without a period."""
    return f"{other.where} runs {main.role} alongside {main.where}, and {both}: {_DISTURBANCE[main.role]}"


def _remedy(main: Server, other: Server) -> str:
    """Return the command that removes `other` and, if it is a device plugin, restarts `main`. If no Helm release
    installed `other` and its owner would create it again, the command only shows `other`."""
    if main.role is Role.MIG_MANAGER or (other.owned and not other.release):
        return other.removal
    return f"{other.removal} && kubectl -n {main.namespace} rollout restart daemonset {main.name}"


def _second(main: Server, other: Server, nodes: list[str], namespace: str) -> Symptom:
    """Return the symptom that `other` has the role of `main` on these nodes: an error if the operator refuses all
    policies for it (`tell_twins`), which reads only `namespace`, else a warning."""
    refused = _are_twins(main, other) and main.namespace == other.namespace == namespace
    return (error if refused else warning)(
        Topic.NODES,
        "TwoMigManagers" if main.role is Role.MIG_MANAGER else "TwoDevicePlugins",
        _tell(main, other, f"both select {some(nodes)}"),
        _remedy(main, other),
    )


def _driver(driver: Server, nodes: list[str]) -> Symptom:
    """Return the warning that this DRA driver serves the GPUs of these nodes, with the command that disables GPUs in
    its Helm release. If the driver has no Helm release, the command only shows its DaemonSet."""
    less = "--reset-then-reuse-values --set resources.gpus.enabled=false"
    release = f"{driver.release} CHART -n {driver.release_namespace}"
    return warning(
        Topic.NODES,
        "DRADriverServesGPUs",
        f"{driver.where} is NVIDIA's DRA driver with GPUs enabled, and it selects {some(nodes)} as the device"
        " plugin does: the same GPU may be allocated to a ResourceClaim and to a pod, and drains do not notice pods"
        " that use GPUs through ResourceClaims",
        f"helm upgrade {release} {less}" if driver.release else driver.removal,
    )
