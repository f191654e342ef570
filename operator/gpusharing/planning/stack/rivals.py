"""DaemonSets that disturb each other on a node: device plugins, NVIDIA's DRA driver beside one, or mig-managers.

A kubelet takes a resource from whichever plugin registered last (kubernetes v1.36.3
pkg/kubelet/cm/devicemanager/manager.go, PluginConnected), so of two device plugins on a node one does not follow our
labels. NVIDIA's DRA driver gives the same GPUs to ResourceClaims, and does not know to which pods the device plugin
gave them. All mig-managers on a node follow the same label.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import combinations

from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.installationviews import Symptom, Topic, error, warning
from gpusharing.planning.stack.otherplugins import has_gpu_label
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value


class Role(StrEnum):
    """What the pods of a DaemonSet do with GPUs."""

    PLUGIN = "a device plugin"
    """It serves nvidia.com/gpu."""
    DRIVER = "NVIDIA's DRA driver"
    """It has GPUs enabled."""
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
    """Its Helm release, or an empty string."""
    release_namespace: str
    owned: bool
    """Whether another object owns it, whose controller would create it again after a deletion."""
    wanted: int
    """The number of nodes on which its pods should run, according to its status. 0 if it is being deleted."""
    selector: Mapping[str, str]
    affinity: str
    """The affinity of its pods as JSON, or an empty string."""
    tolerations: frozenset[str]
    """The tolerations of its pods, each as JSON."""
    stale: bool = False
    """Whether its status is about an older version of its spec, so that `wanted` may be wrong."""

    @property
    def where(self) -> str:
        return f"DaemonSet {self.namespace}/{self.name}"

    @property
    def removal(self) -> str:
        """The command that removes the DaemonSet, or only shows it if other things would go too or it would come back."""
        if self.release:
            return f"helm uninstall {self.release} -n {self.release_namespace}"
        if self.role is Role.DRIVER or self.owned:
            return f"kubectl -n {self.namespace} get daemonset {self.name} -o yaml"
        return f"kubectl -n {self.namespace} delete daemonset {self.name}"

    def covers(self, other: "Server") -> bool:
        """Whether every node on which pods of `other` should run certainly must have this DaemonSet's pods, too."""
        return (
            self.selector.items() <= other.selector.items()
            and self.affinity in ("", other.affinity)
            and other.tolerations <= self.tolerations
        )

    def selects(self, node: NodeView) -> bool:
        return all(node.labels.get(key) == value for key, value in self.selector.items())


def _running(servers: Iterable[Server], namespace: str) -> list[Server]:
    """Return those whose pods should run anywhere; the first of each role is the one that we configure."""
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
    return f"{_tell(main, other, 'they share nodes')}; run: {_remedy(main, other)}"


def find_rival_symptoms(
    servers: Iterable[Server], nodes: Sequence[NodeView], namespace: str
) -> Iterator[Symptom]:
    """Yield a symptom for each DaemonSet on nodes that the main one of its role, or the main device plugin, serves too."""
    running = _running(servers, namespace)
    plugins, drivers, managers = ([one for one in running if one.role is role] for role in Role)
    for main, *others in (group for group in (plugins, managers) if group):
        for other in others:
            if not (both := _shared(main, other, nodes)):
                continue
            # The operator, which reads only `namespace`, refuses all policies for it.
            refused = _are_twins(main, other) and main.namespace == other.namespace == namespace
            yield (error if refused else warning)(
                Topic.NODES,
                "TwoMigManagers" if main.role is Role.MIG_MANAGER else "TwoDevicePlugins",
                _tell(main, other, f"both select {some(both)}"),
                _remedy(main, other),
            )
    for driver in drivers if plugins else ():
        if both := _shared(plugins[0], driver, nodes):
            release = f"{driver.release} CHART -n {driver.release_namespace}"
            less = "--reset-then-reuse-values --set resources.gpus.enabled=false"
            yield warning(
                Topic.NODES,
                "DRADriverServesGPUs",
                f"{driver.where} is NVIDIA's DRA driver with GPUs enabled, and it selects {some(both)} as the device"
                " plugin does: the same GPU may be allocated to a ResourceClaim and to a pod, and drains do not notice"
                " pods that use GPUs through ResourceClaims",
                f"helm upgrade {release} {less}" if driver.release else driver.removal,
            )


def _shared(main: Server, other: Server, nodes: Iterable[NodeView]) -> list[str]:
    """Return the sorted names of the nodes with GPUs that both select, unless they may run on different ones."""
    either = [node for node in nodes if has_gpu_label(node) and (main.selects(node) or other.selects(node))]
    sure = main.covers(other) or other.covers(main)
    if not sure and main.wanted + other.wanted <= len(either):
        return []  # few enough pods that taints or affinity may keep them apart
    return sorted(node.name for node in either if main.selects(node) and other.selects(node))


def _tell(main: Server, other: Server, both: str) -> str:
    return f"{other.where} runs {main.role} alongside {main.where}, and {both}: {_DISTURBANCE[main.role]}"


def _remedy(main: Server, other: Server) -> str:
    if main.role is Role.MIG_MANAGER or (other.owned and not other.release):
        return other.removal
    return f"{other.removal} && kubectl -n {main.namespace} rollout restart daemonset {main.name}"
