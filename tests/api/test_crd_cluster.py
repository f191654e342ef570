"""What a real API server and kubectl make of the CRDs, and of the largest GPUNodes."""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from hack.cluster.api import Api
from hack.cluster.controlplane import ControlPlane
from hack.generate import ROOT
from hack.sim.gpu import SimulatedGPUs
from pydantic import TypeAdapter

from gpusharing.agent.gpunode import Observation
from gpusharing.agent.podresources import Holdings
from gpusharing.api.gpunode import MAX_PROGRAMS, GPUNodeStatus, Request
from gpusharing.api.names import API_VERSION, Phase
from gpusharing.planning.gpus.texts import write_holders
from gpusharing.planning.report.transition import MAX_HISTORY

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


NODES = "/api/v1/nodes"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
AT = "2026-11-20T09:{:02}:00Z"
LARGE_TRANSITION = {
    "policy": "pool-b",
    "wanted": "2x3g.71gb",
    "phase": "Draining",
    "reason": "PDB",
    "message": "waiting for 2 pods to leave: PDB team-b/ranker",
    "since": AT.format(19),
    "waitingFor": "Clock",
    "deadline": AT.format(40),
    "attempt": 1,
    "step": "1/1",
    "observed": "7x1g.18gb",
    "disruption": "GPUPods",
    "culprit": "team-b/ranker-0 +1",
    "cordonedBy": "Operator",
    "blockers": [f"PDB team-{team}/ranker: Pods ranker-0, ranker-1. 0 of 2 may go." for team in "bcdef"],
    "history": [f"{AT.format(step)} {list(Phase)[step % 5]} Reason" for step in range(MAX_HISTORY)],
}
CONDITION = {
    "type": "Healthy",
    "status": "True",
    "reason": "NoTrouble",
    "message": "every GPU is healthy",
    "lastTransitionTime": AT.format(0),
}
REASONS = ("DrainStarted", "PodEvictionBlocked", "NodeFailed", "ChangeGivenUp", "Reconfiguring")


H200, RTX_PRO, A100 = "NVIDIA H200", "NVIDIA RTX PRO 6000 Blackwell Server Edition", "NVIDIA A100-SXM4-40GB"
DIVIDED = {H200: ("1g.18gb", 7), RTX_PRO: ("1g.24gb", 4), A100: ("3g.20gb", 2)}
MACHINES = {
    "56 instances": [H200] * 8,
    "eleven profiles": [RTX_PRO] * 8,
    "two models": [H200, RTX_PRO] * 4,
    "sixteen GPUs": [A100] * 16,
}


def divided_node(models: Sequence[str], *, mps: bool) -> Observation:
    """What an agent reports if each GPU is divided, with a pod and a process on each part, of more programs than it names."""
    gpus, allocated = SimulatedGPUs("gpu-07", models), Counter[str]()
    pods: list[tuple[str, str, list[int], str]] = []
    for index, model in enumerate(models):
        gpus.set_compute_mode(index, "ExclusiveProcess" if mps else "Default")
        gpus.set_mig_mode(index, on=not mps)
        profile, count = DIVIDED[model]
        for number in range(count):
            device = "" if mps else gpus.create(index, profile).uuid
            program = f"program-{len(pods) % (MAX_PROGRAMS + 1)}"
            gpus.add_process(index, program, 100 * index + number + 1, device)
            pod = (
                f"team-{number}/ranker-{index}-7c9f8d6b5-{number:05}",
                f"5f0c2a4e-0b0c-4b8e-9c1d-2f6d1a7b{len(pods):04}",
            )
            pods.append((*pod, [index], f"{len(pods):012x}"))
            allocated["nvidia.com/gpu.shared" if mps else f"nvidia.com/mig-{profile}"] += 1
    request = Request("op-1:quiet:after-1", quiet=True, holders=True)
    report = Observation.after(request, gpus.read(), simulated=False)
    return report.held_by(Holdings(allocated, len(pods)), write_holders(pods))


def event(reason: str, gpunode: Mapping[str, Any]) -> dict[str, Any]:
    name = gpunode["metadata"]["name"]
    about = {"apiVersion": API_VERSION, "kind": "GPUNode", "name": name, "uid": gpunode["metadata"]["uid"]}
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.{reason.lower()}", "namespace": "default"},
        "eventTime": "2026-11-20T09:20:00.000000Z",
        "reportingController": "gpusharing.dev/operator",
        "reportingInstance": "operator-0",
        "action": reason,
        "reason": reason,
        "type": "Normal",
        "note": f"{name}: {reason}",
        "regarding": about,
    }


@pytest.mark.parametrize("mps", [False, True], ids=["MIG", "MPS"])
@pytest.mark.parametrize("models", MACHINES.values(), ids=MACHINES.keys())
def test_a_divided_node_in_a_change_is_described_in_120_lines_with_its_events(
    server: Api, control_plane: ControlPlane, models: Sequence[str], mps: bool
) -> None:
    name, reported = f"gpu-{uuid4().hex[:8]}", divided_node(models, mps=mps)
    node = server.create(NODES, {"metadata": {"name": name}})  # without it, the object would soon be collected
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
    manifest: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "GPUNode",
        "metadata": {"name": name, "ownerReferences": [owner]},
        "spec": {"request": {"id": "op-1:quiet:after-1", "quiet": True, "holders": True}},
    }
    server.create(GPUNODES, manifest)
    patch = reported.patch({})
    assert patch is not None
    server.merge_patch(f"{GPUNODES}/{name}/status", patch)
    told = {"status": {"transition": LARGE_TRANSITION, "conditions": [CONDITION]}}
    stored = server.merge_patch(f"{GPUNODES}/{name}/status", told)
    for reason in REASONS:
        server.create(EVENTS, event(reason, stored))
    described = control_plane.kubectl("describe", "gpun", name)
    assert reported.patch(server.get(f"{GPUNODES}/{name}")) is None, "the server keeps all that was reported"
    lines = described.splitlines()
    assert len(lines) <= 120, f"{len(lines)} lines:\n{described}"
    shown = lines[lines.index("Events:") :]
    assert [reason for reason in REASONS if not any(reason in line for line in shown)] == []
    server.delete(f"{GPUNODES}/{name}")
    server.delete(f"{NODES}/{name}")
