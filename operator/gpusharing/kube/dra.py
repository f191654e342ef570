"""Reads for which nodes NVIDIA's DRA driver publishes devices, and recognizes the driver's DaemonSet.

The driver has one pool of devices for each node, named after it (dra-driver-nvidia-gpu v0.5.0, cmd/gpu-kubelet-plugin).
"""

from collections.abc import Mapping

from gpusharing.kube.client import JSON
from gpusharing.kube.errors import Forbidden, KubeError, NotFound
from gpusharing.kube.raw import entries, section, strings, text, texts
from gpusharing.planning.snapshot.draviews import DRA_DRIVER, DraDriverView

GPUS, GPU_PROGRAM = "gpus", "gpu-kubelet-plugin"
DOMAINS, DOMAIN_PROGRAM = "compute-domains", "compute-domain-kubelet-plugin"
"""The containers of the driver's pods, each with the program that it starts. The chart leaves out the first with
`resources.gpus.enabled=false` (templates/kubeletplugin.yaml)."""
FIELD_SELECTOR = f"spec.driver={DRA_DRIVER}"
"""Selects the ResourceSlices of NVIDIA's GPUs."""


def starts(container: JSON, program: str) -> bool:
    """Whether any word of a container's command or arguments contains `program`."""
    return any(
        program in word for word in (*strings(container.get("command")), *strings(container.get("args")))
    )


def dra_driver_view(raw: JSON, containers: Mapping[str, JSON]) -> DraDriverView | None:
    """Convert a raw DaemonSet that runs NVIDIA's DRA driver, or return None if it does not. Only the feature gates
    that the environment of its container `gpus` sets to true are listed. `containers` are the containers of its pod
    template, by name."""
    gpus = starts(containers.get(GPUS, {}), GPU_PROGRAM)
    if not gpus and not starts(containers.get(DOMAINS, {}), DOMAIN_PROGRAM):
        return None
    env = entries(containers.get(GPUS, {}), "env")
    gates = next((text(row, "value") for row in env if row.get("name") == "FEATURE_GATES"), "")
    pairs = (pair.strip().partition("=") for pair in gates.split(","))
    return DraDriverView(
        name=text(raw, "metadata", "name"),
        release=texts(section(raw, "metadata").get("labels")).get("app.kubernetes.io/instance", ""),
        serves_gpus=gpus,
        gates=frozenset(name for name, _, state in pairs if state.lower() == "true"),
    )


def find_published_node(raw: JSON) -> str:
    """Return the name of the node for which a raw ResourceSlice lists devices. Empty if it lists none."""
    return text(raw, "spec", "pool", "name") if entries(raw, "spec", "devices") else ""


def tell_unread(error: KubeError | None) -> str:
    """Return why ResourceSlices cannot be read, if the API server does not serve them or we lack the right to list
    them. Empty for None, and for any other error, because that may go away by itself."""
    match error:
        case NotFound():
            return "the API server does not serve resource.k8s.io/v1, which requires Kubernetes 1.34 or newer"
        case Forbidden():
            return "this operator is not allowed to list resourceslices (chart value rbac.create)"
    return ""
