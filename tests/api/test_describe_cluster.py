"""What kubectl describes of the largest GPUNodes: a process and a pod on each part of each GPU, in a change."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import pytest
from hack.cluster.api import Api
from hack.cluster.controlplane import ControlPlane
from hack.sim.gpu import SimulatedGPUs

from gpusharing.agent.gpunode import Observation
from gpusharing.agent.podresources import Holdings
from gpusharing.api.gpunode import MAX_PROGRAMS, Request
from gpusharing.api.names import API_VERSION, Phase
from gpusharing.planning.gpus.texts import write_holders
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
    told = {"status": {"transition": TRANSITION, "conditions": [CONDITION]}}
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
