"""What a real API server and kubectl make of the CRDs."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.cluster.api import Api
from hack.cluster.controlplane import ControlPlane
from hack.generate import ROOT
from pydantic import TypeAdapter

from gpusharing.api.gpunode import GPUNodeStatus

pytestmark = pytest.mark.cluster

GPUNODES = "/apis/gpusharing.dev/v1alpha1/gpunodes"
POLICIES = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies"
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
WORKLOADS = sorted((ROOT / "examples" / "workloads").glob("*.yaml"))
OBSERVED: dict[str, Any] = {
    "requestID": "r1",
    "quiet": False,
    "simulated": True,
    "error": "",
    "driverVersion": "580.65.06",
    "models": [{"product": "NVIDIA H100 80GB HBM3", "gpus": "0", "profiles": "7g.80gb id=0 max=1 placements={0}:8"}],
    "computeModes": "",
    "programs": "",
    "gpus": [{"uuid": "GPU-0", "mig": "Disabled"}],
    "allocated": {},
    "pods": 2,
}
TRANSITION = {
    "policy": "pool-b",
    "wanted": "2x3g.40gb",
    "phase": "Draining",
    "reason": "PDB",
    "since": "2026-11-20T09:00:00Z",
    "waitingFor": "Clock",
    "deadline": "2099-11-20T09:15:00Z",
    "step": "1/1",
    "observed": "1x full",
}


@pytest.fixture
def gpu_node(server: Api) -> Iterator[str]:
    name = f"gpu-{uuid.uuid4().hex[:8]}"
    spec = {"request": {"id": "r1"}}
    manifest = {"apiVersion": "gpusharing.dev/v1alpha1", "kind": "GPUNode", "metadata": {"name": name}, "spec": spec}
    server.create(GPUNODES, manifest)
    yield f"{GPUNODES}/{name}"
    server.delete(f"{GPUNODES}/{name}")


def test_two_writers_merge_patch_one_status(server: Api, gpu_node: str) -> None:
    server.merge_patch(f"{gpu_node}/status", {"status": {"observed": OBSERVED}})
    server.merge_patch(f"{gpu_node}/status", {"status": {"transition": TRANSITION}})
    # The second observation replaces an array that exists, the first one made it: both must read the same.
    server.merge_patch(f"{gpu_node}/status", {"status": {"observed": OBSERVED}})
    status = TypeAdapter(GPUNodeStatus).validate_python(server.get(gpu_node)["status"])
    assert status.observed is not None
    assert status.transition is not None
    assert status.observed.gpus[0].mig == "Disabled"
    assert (status.observed.pods, status.transition.phase) == (2, "Draining")


def test_a_merge_patch_takes_values_away_again(server: Api, gpu_node: str) -> None:
    server.merge_patch(f"{gpu_node}/status", {"status": {"observed": OBSERVED, "transition": TRANSITION}})
    server.merge_patch(f"{gpu_node}/status", {"status": {"observed": None, "transition": {"since": None}}})
    status = TypeAdapter(GPUNodeStatus).validate_python(server.get(gpu_node)["status"])
    assert status.observed is None
    assert status.transition is not None
    assert status.transition.since is None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_accepted(path: Path, server: Api) -> None:
    manifest = yaml.safe_load(path.read_text())
    stored = server.request("POST", POLICIES, manifest, dryRun="All", fieldValidation="Strict")
    assert stored["spec"]["mode"] == manifest["spec"]["mode"]


@pytest.mark.parametrize("path", WORKLOADS, ids=lambda path: path.stem)
def test_an_example_workload_is_accepted(path: Path, server: Api) -> None:
    manifest = yaml.safe_load(path.read_text())
    group = {"Deployment": "apis/apps/v1", "Pod": "api/v1"}[manifest["kind"]]
    place = f"/{group}/namespaces/default/{manifest['kind'].lower()}s"
    assert server.request("POST", place, manifest, dryRun="All", fieldValidation="Strict")


@pytest.mark.usefixtures("server")
def test_explain_tells_everything_about_mig(control_plane: ControlPlane) -> None:
    text = " ".join(control_plane.kubectl("explain", "gsp.spec.mig").split())
    for words in (
        "MIG instances, which hardware isolates",
        "config <string> Name of a mig-parted configuration",
        "layouts <[]Object> MIG instances of the GPUs, entry by entry",
        "strategy <string> enum: single, mixed `mixed` advertises nvidia.com/mig-<profile>",
    ):
        assert words in text
    entries = " ".join(control_plane.kubectl("explain", "gsp.spec.mig.layouts").split())
    for words in ("for example [0, 1]", "profiles <map[string]integer> How many instances of each"):
        assert words in entries
