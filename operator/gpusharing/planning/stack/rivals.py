"""Programs that serve GPUs to a kubelet beside the device plugin whose configuration we choose.

A kubelet takes a resource from whichever plugin registered last (kubernetes v1.36.3
pkg/kubelet/cm/devicemanager/manager.go, PluginConnected), so of two device plugins on a node one does not follow our
labels. NVIDIA's DRA driver gives the same GPUs to ResourceClaims, and does not know which pods the device plugin gave
them to.
"""

from collections.abc import Iterable, Mapping, Sequence

from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.nodesymptoms import has_gpu_label
from gpusharing.planning.stack.symptoms import Symptom, Symptoms, Topic, warning
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value


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
    """What else serves GPUs on nodes that the device plugin serves. `namespace`: where NVIDIA's components are."""
    running = sorted(
        (one for one in servers if one.wanted),
        # First the one whose configuration we choose: ClusterPolicy's, else that of the chart where we look for it.
        key=lambda one: (not one.of_gpu_operator, one.namespace != namespace, not one.release, one.where),
    )
    plugins = [one for one in running if not one.dra]
    if not plugins:
        return ()
    main, *others = plugins
    found: list[Symptom] = []
    for other in others:
        found += _second(main, other, _shared(main, other, nodes))
    for other in (one for one in running if one.dra):
        found += _driver(other, _shared(main, other, nodes))
    return tuple(found)


def _shared(main: Server, other: Server, nodes: Iterable[NodeView]) -> list[str]:
    def takes(server: Server, node: NodeView) -> bool:
        return all(node.labels.get(key) == value for key, value in server.selector.items())

    either = [one for one in nodes if has_gpu_label(one) and (takes(main, one) or takes(other, one))]
    if main.wanted + other.wanted <= len(either):
        return []  # so few pods that taints or affinity may well keep them apart
    return sorted(one.name for one in either if takes(main, one) and takes(other, one))


def _second(main: Server, other: Server, nodes: list[str]) -> Symptoms:
    again = f"kubectl -n {main.namespace} rollout restart daemonset {main.name}"
    if nodes:
        yield warning(
            Topic.NODES,
            "TwoDevicePlugins",
            f"{other.where} runs a device plugin beside {main.where}, and both select {some(nodes)}: the kubelet takes"
            " a resource from whichever of the two registered last, and only one of them reads our configuration."
            " Remove the superfluous one and restart the other, so that it registers again",
            other.removal if other.owned and not other.release else f"{other.removal} && {again}",
        )


def _driver(driver: Server, nodes: list[str]) -> Symptoms:
    if nodes:
        less = "--reset-then-reuse-values --set resources.gpus.enabled=false"
        release = f"{driver.release} CHART -n {driver.release_namespace}"
        how = f"helm upgrade {release} {less}" if driver.release else driver.removal
        yield warning(
            Topic.NODES,
            "DRADriverServesGPUs",
            f"{driver.where} is NVIDIA's DRA driver with GPUs enabled, and it selects {some(nodes)} as the device"
            " plugin does: a GPU may be given to a ResourceClaim and to a pod at once, and drains do not see GPUs that"
            " are held through ResourceClaims",
            how,
        )
