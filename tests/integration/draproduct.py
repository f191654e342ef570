"""The product where NVIDIA's DRA driver serves the GPUs: ClusterPolicy without a device plugin, with mig-manager."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hack.cluster import install
from hack.cluster.api import Object
from hack.cluster.controlplane import ControlPlane, Options
from tests.integration.product import CLUSTER_POLICY, FACTOR, Product

from hack import launch


@contextmanager
def dra_product(directory: Path) -> Iterator[Product]:
    """The GPU Operator without its device plugin, NVIDIA's DRA driver (SIMULATED) and our chart; no operator runs yet. In the end nothing was refused to operator or agents."""
    with ControlPlane(options=Options(audit=True)) as plane:
        install.install_gpu_operator(plane.api)
        spec: Object = {"devicePlugin": {"enabled": False}, "migManager": {"version": "v0.15.1"}}
        plane.api.merge_patch(CLUSTER_POLICY, {"spec": spec})
        launch.install_chart(plane.kubeconfig, "--set", "operator.replicaCount=0")
        with launch.node_software(plane.kubeconfig, directory, FACTOR, "--agent-interval", "1", "--dra"):
            product = Product(plane, directory, plugin=False)
            yield product
            assert product.refused() == []
