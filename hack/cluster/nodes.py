"""SIMULATED GPU nodes: Node objects as NVIDIA's software leaves them on a fresh machine, run by kwok.

The labels are those of docs/design/nvidia.md#c for a full GPU and docs/design/nvidia.md#d2. After a node is created,
only the simulators of NVIDIA's software write to it.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from gpusharing.api import names
from gpusharing.planning.gpus.cards import Card, find_card
from gpusharing.planning.vocabulary.lengths import counted
from hack.cluster.api import Api, Object, in_parallel, is_true
from hack.cluster.commands import MANAGED_BY_KWOK
from hack.cluster.process import wait_until
from hack.cluster.toolchain import CONTROLPLANE_SOURCE, KWOK_VERSION, kubernetes_version
from hack.sim import gfd
from hack.sim.gpu import SimulatedGPUs
from hack.sim.plugin import SimPluginConfig

LABEL_POOL = f"{names.PREFIX}pool"
"""The label by which the README, the demo and the tests name a node pool; policies may select by any label."""
OPERANDS = (
    "container-toolkit",
    "dcgm",
    "dcgm-exporter",
    "device-plugin",
    "driver",
    "gpu-feature-discovery",
    "node-status-exporter",
    "nvsm",
    "operator-validator",
)
FLEET = (
    ("a", "NVIDIA H100 80GB HBM3", 8),
    ("b", "NVIDIA H100 80GB HBM3", 8),
    ("c", "NVIDIA H100 80GB HBM3", 8),
    ("d", "NVIDIA L40S", 4),
)
"""Pool, card and GPUs per node of the default fleet: three pools with cards that support MIG, one without."""
CPU, MEMORY, PODS = "128", "1Ti", "250"


def node_manifest(
    name: str,
    *,
    product: str = "NVIDIA H100 80GB HBM3",
    gpus: int = 8,
    pool: str | None = None,
    labels: Mapping[str, str] | None = None,
    plugin: bool = True,
) -> Object:
    """Return a Node with GPUs; without `plugin` nothing advertises them, as under NVIDIA's DRA driver."""
    card = find_card(product)
    if card is None:
        raise ValueError(f"unknown card {product!r}: use a product name from gpusharing.planning.gpus.cards")
    own = {LABEL_POOL: pool} if pool else {}
    system = {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", "kubernetes.io/hostname": name}
    resources = {"cpu": CPU, "memory": MEMORY, "pods": PODS}
    if plugin:
        resources[names.RESOURCE_GPU] = str(gpus)
    key, value = MANAGED_BY_KWOK
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {**system, **gpu_labels(card, product, gpus), **own, **(labels or {})},
            "annotations": {key: value},
        },
        # The API server stores the status of a new Node as it is sent, as it does when a kubelet registers.
        "status": {
            "capacity": resources,
            "allocatable": dict(resources),
            "nodeInfo": {
                "architecture": "amd64",
                "operatingSystem": "linux",
                "osImage": "SIMULATED",
                "kernelVersion": "SIMULATED",
                "kubeletVersion": kubernetes_version((CONTROLPLANE_SOURCE / "go.mod").read_text()),
                "kubeProxyVersion": "",
                "containerRuntimeVersion": f"kwok://{KWOK_VERSION.removeprefix('v')}",
                "machineID": name,
                "systemUUID": name,
                "bootID": name,
            },
        },
    }


def gpu_labels(card: Card, product: str, gpus: int) -> dict[str, str]:
    """Return NVIDIA's labels of a node with whole cards, with MIG as after mig-manager's first run."""
    operands = (*OPERANDS, "mig-manager") if card.profiles else OPERANDS
    deploy = {f"{names.LABEL_DEPLOY_PREFIX}{operand}": "true" for operand in operands}
    # The GPU Operator has labeled a fresh MIG-capable node, and mig-manager has applied the label once (d.1, a.2).
    mig = {names.LABEL_MIG_CONFIG: "all-disabled", names.LABEL_MIG_STATE: "success"} if card.profiles else {}
    return {names.LABEL_GPU_PRESENT: "true", **_gfd_labels(product, gpus), **deploy, **mig}


@cache
def _gfd_labels(product: str, gpus: int) -> Mapping[str, str]:
    labels = gfd.labels(SimulatedGPUs("", [product] * gpus).read(), SimPluginConfig(), started=0)
    return {key: value for key, value in labels.items() if key != names.LABEL_GFD_TIMESTAMP}


def fleet(count: int) -> list[Object]:
    """Return `count` nodes, gpu-01 and so on, of FLEET's pools in turn."""
    width = max(2, len(str(count)))
    return [
        node_manifest(f"gpu-{index + 1:0{width}}", pool=pool, product=product, gpus=gpus)
        for index, (pool, product, gpus) in ((i, FLEET[i % len(FLEET)]) for i in range(count))
    ]


def create_nodes(api: Api, manifests: Iterable[Object]) -> list[str]:
    """Create the nodes, eight at a time, and return all their names in the given order."""

    def create(manifest: Object) -> str:
        api.ensure("/api/v1/nodes", manifest)
        return str(manifest["metadata"]["name"])

    return in_parallel(create, manifests)


def wait_nodes_ready(api: Api, node_names: Sequence[str], seconds: float = 120.0) -> None:
    """Wait until each of these nodes has once been Ready and without the taint of new nodes."""
    missing = set(node_names)

    def all_ready() -> bool:
        missing.intersection_update(
            item["metadata"]["name"] for item in api.list("/api/v1/nodes") if not is_ready(item)
        )
        return not missing

    with contextlib.suppress(TimeoutError):
        wait_until(all_ready, seconds, "")
        return
    shown = ", ".join(sorted(missing)[:5])
    raise TimeoutError(
        f"{len(missing)} of {counted(len(node_names), 'node')} did not become Ready within {seconds:.0f} s: {shown}"
    )


def is_ready(node: Object) -> bool:
    """Whether the node's Ready condition is True and it does not have the taint `node.kubernetes.io/not-ready`."""
    taints = {taint["key"] for taint in node["spec"].get("taints", [])}
    return is_true(node, "Ready") and "node.kubernetes.io/not-ready" not in taints
