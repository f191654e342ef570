"""What kubectl describes of the largest usual GPUNode: eight GPUs in 56 instances, a process on each, in a change."""

from collections.abc import Mapping
from typing import Any

import pytest
from hack.cluster.api import Api
from hack.cluster.controlplane import ControlPlane
from hack.sim.gpu import SimulatedGPUs

from gpusharing.agent.gpunode import Observation
from gpusharing.agent.podresources import Holdings
from gpusharing.api.gpunode import Request
from gpusharing.api.names import API_VERSION, Phase
from gpusharing.planning.report.transition import MAX_HISTORY

pytestmark = pytest.mark.cluster

NODES = "/api/v1/nodes"
GPUNODES = "/apis/gpusharing.dev/v1alpha1/gpunodes"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
AT = "2026-11-20T09:{:02}:00Z"
TRANSITION = {
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


def divided_node() -> Observation:
    """What an agent reports of eight H200, each in seven instances with a process of one of three programs."""
    gpus = SimulatedGPUs("gpu-07", ["NVIDIA H200"] * 8)
    for index in range(8):
        gpus.set_mig_mode(index, on=True)
        for number in range(7):
            device = gpus.create(index, "1g.18gb").uuid
            gpus.add_process(index, ("python3", "tritonserver", "vllm")[number % 3], 100 * index + number + 1, device)
    report = Observation.after(Request("op-1:quiet:after-1", quiet=True), gpus.read(), simulated=False)
    return report.held_by(Holdings({"nvidia.com/mig-1g.18gb": 56}, 56))


def event(reason: str, gpunode: Mapping[str, Any]) -> dict[str, Any]:
    about = {"apiVersion": API_VERSION, "kind": "GPUNode", "name": "gpu-07", "uid": gpunode["metadata"]["uid"]}
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"gpu-07.{reason.lower()}", "namespace": "default"},
        "eventTime": "2026-11-20T09:20:00.000000Z",
        "reportingController": "gpusharing.dev/operator",
        "reportingInstance": "operator-0",
        "action": reason,
        "reason": reason,
        "type": "Normal",
        "note": f"gpu-07: {reason}",
        "regarding": about,
    }


def test_a_node_with_56_instances_in_a_change_is_described_in_120_lines_with_its_events(
    server: Api, control_plane: ControlPlane
) -> None:
    node = server.create(NODES, {"metadata": {"name": "gpu-07"}})  # without it, the object would soon be collected
    owner = {"apiVersion": "v1", "kind": "Node", "name": "gpu-07", "uid": node["metadata"]["uid"]}
    manifest: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "GPUNode",
        "metadata": {"name": "gpu-07", "ownerReferences": [owner]},
        "spec": {"request": {"id": "op-1:quiet:after-1", "quiet": True}},
    }
    server.create(GPUNODES, manifest)
    patch = divided_node().patch({})
    assert patch is not None
    server.merge_patch(f"{GPUNODES}/gpu-07/status", patch)
    told = {"status": {"transition": TRANSITION, "conditions": [CONDITION]}}
    stored = server.merge_patch(f"{GPUNODES}/gpu-07/status", told)
    for reason in REASONS:
        server.create(EVENTS, event(reason, stored))
    described = control_plane.kubectl("describe", "gpun", "gpu-07")
    assert divided_node().patch(server.get(f"{GPUNODES}/gpu-07")) is None, "the server keeps all that was reported"
    lines = described.splitlines()
    assert len(lines) <= 120, f"{len(lines)} lines:\n{described}"
    shown = lines[lines.index("Events:") :]
    assert [reason for reason in REASONS if not any(reason in line for line in shown)] == []
    server.delete(f"{GPUNODES}/gpu-07")
    server.delete(f"{NODES}/gpu-07")
