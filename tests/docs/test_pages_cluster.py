"""The commands of the pages, as they stand there, on a real API server with kubectl and helm; nodes are SIMULATED."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster import install, nodes
from hack.cluster.controlplane import ControlPlane
from tests.docs.commands import Shell, page
from tests.docs.pages import ON_CLUSTER, own_path

from hack import launch

pytestmark = pytest.mark.cluster


CLUSTER_POLICY = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"
AS_INSTALLED = {
    "spec": {
        "devicePlugin": {"config": None},
        "migManager": {"config": {"name": None}},
        "mig": {"strategy": "single"},
    }
}
"""ClusterPolicy points at no ConfigMap of ours, and has the default strategy of the GPU Operator's chart."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster as before the installation: GPU nodes, NVIDIA's GPU Operator (its stand-ins), nothing of ours."""
    path = own_path()
    home = tmp_path_factory.mktemp("home")
    with ControlPlane() as plane:
        install.install_gpu_operator(plane.api)
        plane.api.merge_patch(CLUSTER_POLICY, AS_INSTALLED)
        launch.runtime_class(plane.api)
        created = nodes.create_nodes(plane.api, nodes.fleet(8))
        nodes.wait_nodes_ready(plane.api, created)
        yield {**os.environ, "PATH": path, "HOME": str(home), "KUBECONFIG": str(plane.kubeconfig)}


@pytest.mark.parametrize("name", ON_CLUSTER)
def test_the_commands_of_the_page_work(environment: dict[str, str], name: str, tmp_path: Path) -> None:
    """In this order: the last page uninstalls what the first installed."""
    shell = Shell(environment, tmp_path)
    for block in page(name):
        if block.where == "cluster":
            shell.run(block, 180)
