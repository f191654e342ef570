"""The product beside NVIDIA's device-plugin chart and mig-manager, without the GPU Operator (deploy/mig-manager)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hack.cluster import install
from hack.cluster.api import Object
from hack.cluster.controlplane import ControlPlane, Options
from hack.nvidia.installations import MIG_MANAGER_FOLDER, PCI, PLAIN_NAMESPACE, PLATFORM
from tests import plainchart
from tests.integration.product import FACTOR, Product

from gpusharing.api.names import LABEL_DEPLOY_CLIENT, LABEL_GPU_PRESENT
from hack import launch

LABELS = {PCI: "true", LABEL_DEPLOY_CLIENT: "true", LABEL_GPU_PRESENT: None}
"""What the how-to sets, Node Feature Discovery's, and none of the GPU Operator's that our chart goes by."""
PLAYED = (
    *("--gpu-operator-namespace", PLAIN_NAMESPACE),
    *("--plain-config", "gpusharing-device-plugin"),
    *("--plain-mig", "gpusharing-mig-parted"),
)


def deployable(raw: Object) -> Object:
    """A DaemonSet of tests/plainchart.py with what an API server wants besides."""
    labels = {"name": raw["metadata"]["name"]}
    template = raw["spec"]["template"]
    for container in template["spec"]["initContainers"]:
        container["image"] = "k8s-device-plugin:v0.19.3"
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, **template}}
    return {**raw, "metadata": {**raw["metadata"], "namespace": PLAIN_NAMESPACE}, "spec": spec}


@contextmanager
def plain_product(directory: Path) -> Iterator[Product]:
    """NVIDIA's chart with the selector, mig-manager, and our chart with the platform's values; no operator runs yet. In the end nothing was refused to operator or agents."""
    with ControlPlane(options=Options(audit=True)) as plane:
        plane.api.ensure("/api/v1/namespaces", {"metadata": {"name": PLAIN_NAMESPACE}})
        launch.install_chart(plane.kubeconfig, "-f", str(PLATFORM), "--set", "operator.replicaCount=0")
        sets = (plainchart.plugin(client="true"), plainchart.discovery(client="true"))
        install.apply_documents(plane.api, map(deployable, sets))
        plane.kubectl("apply", "-k", str(MIG_MANAGER_FOLDER))
        with launch.node_software(plane.kubeconfig, directory, FACTOR, "--agent-interval", "1", *PLAYED):
            product = Product(plane, directory, namespace=PLAIN_NAMESPACE, labels=LABELS)
            yield product
            assert product.refused() == []
