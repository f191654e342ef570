"""The commands of the pages, as they stand there, on a real API server with kubectl and helm; nodes are SIMULATED."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster import install, nodes
from hack.cluster.api import Api, ApiError
from hack.cluster.controlplane import ControlPlane
from tests.docs.commands import Shell, page
from tests.docs.pages import ON_CLUSTER, own_path

from gpusharing.api.names import ANNOTATION_FENCE, NEIGHBOR_ANNOTATIONS, NEIGHBOR_LABELS
from hack import launch

pytestmark = pytest.mark.cluster


CLUSTER_POLICY = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"
AS_INSTALLED = {
    "spec": {"devicePlugin": {"config": None}, "migManager": {"config": {"name": None}}, "mig": {"strategy": "single"}}
}
"""ClusterPolicy points at no ConfigMap of ours, and has the default strategy of the GPU Operator's chart."""


GPUNODES = "/apis/gpusharing.dev/v1alpha1/gpunodes"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A cluster as before the installation: GPU nodes, NVIDIA's GPU Operator (its stand-ins), nothing of ours."""
    with ControlPlane() as plane:
        install.install_gpu_operator(plane.api)
        plane.api.merge_patch(CLUSTER_POLICY, AS_INSTALLED)
        launch.runtime_class(plane.api)
        created = nodes.create_nodes(plane.api, nodes.fleet(8))
        nodes.wait_nodes_ready(plane.api, created)
        yield plane


@pytest.fixture(scope="module")
def environment(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = {"HOME": str(tmp_path_factory.mktemp("home")), "PATH": own_path()}
    return {**os.environ, **home, "KUBECONFIG": str(plane.kubeconfig)}


def make_gpunodes(api: Api) -> None:
    """Create the GPUNodes of the nodes, as the operator would, which does not run here. Where the CRD is not installed yet, there are none."""
    with contextlib.suppress(ApiError):
        known = {raw["metadata"]["name"] for raw in api.list(GPUNODES)}
        for raw in api.list("/api/v1/nodes"):
            if raw["metadata"]["name"] not in known:
                kind = {"apiVersion": "gpusharing.dev/v1alpha1", "kind": "GPUNode", "spec": {}}
                api.create(GPUNODES, {**kind, "metadata": {"name": raw["metadata"]["name"]}})


FENCED = "/api/v1/nodes/gpu-07"
GIVES_UP = "docs/how-to/retry-a-failed-node.md"
"""The page that takes a node, which is FENCED, out of the operator's hands."""


def fence_node(api: Api) -> None:
    """Give the node a fence and the marks for neighbors that the fence lists, as the operator would."""
    labels, annotations = NEIGHBOR_LABELS, dict.fromkeys(NEIGHBOR_ANNOTATIONS, "true")
    fence = json.dumps({"v": 1, "added": [*labels, *annotations]})
    metadata = {"labels": labels, "annotations": {ANNOTATION_FENCE: fence, **annotations}}
    api.merge_patch(FENCED, {"metadata": metadata})


def find_marks(api: Api) -> set[str]:
    """Return the keys of the fence and of all marks for neighbors that the node has."""
    metadata = api.get(FENCED)["metadata"]
    keys = {*metadata["labels"], *(metadata.get("annotations") or {})}
    return keys & {ANNOTATION_FENCE, *NEIGHBOR_LABELS, *NEIGHBOR_ANNOTATIONS}


@pytest.mark.parametrize("name", ON_CLUSTER)
def test_the_commands_of_the_page_work(
    plane: ControlPlane, environment: dict[str, str], name: str, tmp_path: Path
) -> None:
    make_gpunodes(plane.api)
    if name == GIVES_UP:
        fence_node(plane.api)
    shell = Shell(environment, tmp_path)
    for block in page(name):
        if block.where == "cluster":
            shell.run(block, 180)
    if name == GIVES_UP:
        assert not find_marks(plane.api)
