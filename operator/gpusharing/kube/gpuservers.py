"""DaemonSets that serve GPUs to kubelets, by the names or images of their containers.

- the GPU Operator's device plugin: container `nvidia-device-plugin`, owner ClusterPolicy (gpu-operator
  assets/state-device-plugin/0500_daemonset.yaml);
- NVIDIA's chart and static manifest: `nvidia-device-plugin-ctr` (k8s-device-plugin v0.19.3);
- HAMi's device plugin, which serves nvidia.com/gpu too, by its image (charts/hami of Project-HAMi/HAMi v2.10.0);
- NVIDIA's DRA driver: container `gpus`, which starts `gpu-kubelet-plugin`, and is left out of the chart with
  `resources.gpus.enabled=false` (k8s-dra-driver-gpu, templates/kubeletplugin.yaml at 12d2af7).
"""

from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, JSON, KubeClient
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.paging import list_of
from gpusharing.kube.plainstack import PLUGIN
from gpusharing.kube.raw import entries, part, section, strings, text, texts, whole
from gpusharing.planning.stack.rivals import Server

PLUGINS = frozenset({PLUGIN, "nvidia-device-plugin"})
HAMI = "projecthami/hami:"
DRIVER, DRIVER_PROGRAM = "gpus", "gpu-kubelet-plugin"


def gpu_server(raw: JSON) -> Server | None:
    """Project a DaemonSet that serves GPUs; None if it is not known to serve any."""
    template = section(raw, "spec", "template", "spec")
    containers = entries(template, "containers")
    dra = any(text(one, "name") == DRIVER and _starts(one, DRIVER_PROGRAM) for one in containers)
    if not dra and not any(text(one, "name") in PLUGINS or HAMI in text(one, "image") for one in containers):
        return None
    metadata = section(raw, "metadata")
    annotations, owners = texts(metadata.get("annotations")), entries(metadata, "ownerReferences")
    managed = texts(metadata.get("labels")).get("app.kubernetes.io/managed-by") == "Helm"
    namespace = text(metadata, "namespace")
    return Server(
        namespace=namespace,
        name=text(metadata, "name"),
        dra=dra,
        of_gpu_operator=any(owner.get("kind") == "ClusterPolicy" for owner in owners),
        release=annotations.get("meta.helm.sh/release-name", "") if managed else "",
        release_namespace=annotations.get("meta.helm.sh/release-namespace", namespace),
        owned=bool(owners),
        wanted=whole(raw, "status", "desiredNumberScheduled"),
        selector=texts(part(template, "nodeSelector")),
    )


def _starts(container: JSON, program: str) -> bool:
    return any(
        program in word for word in (*strings(container.get("command")), *strings(container.get("args")))
    )


async def find_gpu_operator(client: KubeClient, default: str) -> str:
    """Find the namespace of the GPU Operator's pods: the one in ClusterPolicy's status, else that of the device plugin
    which ClusterPolicy owns. Returns `default` if neither is found, or if they may not be read."""
    try:
        states = [section(raw, "status") for raw in await list_of(client, CLUSTER_POLICIES)]
        told = [text(one, "namespace") for one in states if text(one, "state") != "ignored"]
        sets = [] if any(told) else await list_of(client, DAEMON_SETS)
    except (Forbidden, NotFound):
        return default
    owned = (one.namespace for raw in sets if (one := gpu_server(raw)) is not None and one.of_gpu_operator)
    return next(filter(None, told), "") or next(owned, default)
