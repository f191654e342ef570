"""Device plugins that do not follow the label `nvidia.com/device-plugin.config`, and how a Node shows them.

No change begins on such a node, because it could be neither served nor proven. A plugin counts if its own mark is on
the Node: an annotation that it writes, a label by which it selects nodes, or one of its resources in allocatable, which
the kubelet sets to 0 when the plugin is gone.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from gpusharing.api.names import LABEL_GPU_PRESENT, LABEL_GPU_PRODUCT, LABEL_PLUGIN_CONFIG
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value

GKE = "GKE's own device plugin"
GKE_GPU, GKE_WITHOUT_PLUGIN = "cloud.google.com/gke-accelerator", "gke-no-default-nvidia-gpu-device-plugin"
"""Labels of GKE. The first is on nodes with a GPU. With the value `true`, the second keeps GKE's own device plugin off a node."""
HAMI, HAMI_STATE = "hami.io/node-nvidia-register", "hami.io/node-handshake"
AKS, AUTO_MODE = "kubernetes.azure.com/dcgm-exporter", "eks.amazonaws.com/compute-type"


def has_gpu_label(node: NodeView) -> bool:
    return node.labels.get(LABEL_GPU_PRESENT) == "true" or LABEL_GPU_PRODUCT in node.labels


def has_cloud_plugin(labels: Mapping[str, str]) -> bool:
    return GKE_GPU in labels and labels.get(GKE_WITHOUT_PLUGIN) != "true"


def has_system_plugin(os_image: str) -> bool:
    """Whether a Node's operating system may run a device plugin itself, as Bottlerocket's NVIDIA variants do."""
    return os_image.startswith("Bottlerocket OS ") and "-nvidia" in os_image


def _has_hami(labels: Mapping[str, str], annotations: Mapping[str, str]) -> bool:
    listed = annotations.get(HAMI, "").strip() not in ("", "[]")
    return listed and not annotations.get(HAMI_STATE, "").startswith("Deleted")


@value
class OtherPlugin:
    """A device plugin that is not NVIDIA's, and how to recognize it."""

    sign: str
    """What on a Node shows it, for messages."""
    handover: str
    """What hands a node over to NVIDIA's plugin; NODE stands for the nodes."""
    resources: tuple[str, ...] = ()
    """Prefixes of resource names that only this plugin serves."""
    marked: Callable[[Mapping[str, str], Mapping[str, str]], bool] = lambda labels, annotations: False
    """Whether a Node's labels and annotations show the plugin."""


OTHERS: Mapping[str, OtherPlugin] = {
    # GoogleCloudPlatform/container-engine-accelerators at 992db812, cmd/nvidia_gpu/device-plugin.yaml (affinity).
    GKE: OtherPlugin(f"label {GKE_GPU} without {GKE_WITHOUT_PLUGIN}=true",
        f"label the node pool: kubectl label node NODE {GKE_WITHOUT_PLUGIN}=true",
        marked=lambda labels, annotations: has_cloud_plugin(labels)),
    # Project-HAMi/HAMi v2.10.0, pkg/device/nvidia/device.go (RegisterAnnos) and nvinternal/plugin/register.go.
    "HAMi's device plugin": OtherPlugin(f"annotation {HAMI}",
        f"remove HAMi from these nodes, then run: kubectl annotate node NODE {HAMI}-",
        ("nvidia.com/gpumem", "nvidia.com/gpucores"), _has_hami),
    # Project-HAMi/volcano-vgpu-device-plugin at 4fb76ba, deployments/static; before it volcano-sh/devices.
    "Volcano's vGPU device plugin": OtherPlugin("resources volcano.sh/vgpu-*",
        "keep the DaemonSet volcano-device-plugin off these nodes", ("volcano.sh/vgpu-", "volcano.sh/gpu-")),
    # Azure/AgentBaker, configureManagedGPUExperience: a service of the host, with flags and without a configuration.
    "the device plugin of AKS's managed GPU pools": OtherPlugin(f"label {AKS}=enabled",
        "use a node pool without managed GPUs", marked=lambda labels, annotations: labels.get(AKS) == "enabled"),
    # Amazon EKS user guide, "Deploy an accelerated workload": it runs automatically and is not a DaemonSet.
    "the device plugin of EKS Auto Mode": OtherPlugin(f"label {AUTO_MODE}=auto",
        "use a node group without Auto Mode", marked=lambda labels, annotations: labels.get(AUTO_MODE) == "auto"),
}  # fmt: skip
"""The known plugins, by their names in messages."""
RESOURCES = tuple(prefix for one in OTHERS.values() for prefix in one.resources)
"""Prefixes of the resource names that plugins in OTHERS serve and NVIDIA's does not."""


def find_other_plugin(
    labels: Mapping[str, str], annotations: Mapping[str, str], resources: Sequence[str]
) -> str:
    for plugin, known in OTHERS.items():
        if known.marked(labels, annotations) or any(name.startswith(known.resources) for name in resources):
            return plugin
    return ""


def explain_plugin(name: str, nodes: Sequence[str]) -> str:
    """Return why no change begins on nodes that this plugin serves, and how to hand them over to NVIDIA's."""
    plugin = OTHERS[name]
    where, handover = some(nodes), plugin.handover.replace("NODE", " ".join(nodes))
    return (
        f"{name} serves the GPUs on {where} ({plugin.sign}) and does not follow {LABEL_PLUGIN_CONFIG}, so a change"
        f" could neither take effect nor be proven. Exclude {where} from the policy, or {handover}"
    )


def name_resources(requested: Collection[str], serving: Mapping[str, str]) -> Iterator[str]:
    """Yield a clause for each other plugin that alone serves some of these resources; `serving` is the plugin by node."""
    for plugin, known in OTHERS.items():
        if names := sorted(name for name in requested if name.startswith(known.resources)):
            nodes = sorted(node for node, server in serving.items() if server == plugin)
            yield f"{', '.join(names)}: only {plugin} serves this, and it serves {some(nodes) or 'no node'} here"
