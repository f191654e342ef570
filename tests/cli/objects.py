"""GPUSharingPolicies and GPUNodes as the operator publishes them, shortened to what the command reads."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from tests.build import NOW

from gpusharing.api.times import to_rfc3339
from kubectl_gpusharing.pools.fleet import NodeStatus, PoolStatus, read_node, read_pools

JSON = dict[str, Any]


def ago(minutes: float) -> str:
    """So many minutes before NOW, as the API writes it."""
    return to_rfc3339(NOW - timedelta(minutes=minutes))


def policy(name: str = "pool-b", *, generation: int = 1, observed: int = 1, **summary: Any) -> JSON:
    told = {
        "mode": "MIG",
        "layout": "2x3g.40gb",
        "nodes": "1/3",
        "gpus": 24,
        "used": "27/32",
        "pendingPods": 0,
        "product": "NVIDIA-H100-80GB-HBM3",
        "nextWindow": "",
        "status": "Draining",
        "message": "pool-b-1: waiting for 2 pods to leave",
        **summary,
    }
    return {
        "apiVersion": "gpusharing.dev/v1alpha1",
        "kind": "GPUSharingPolicy",
        "metadata": {"name": name, "generation": generation, "uid": f"uid-{name}", "resourceVersion": "1"},
        "spec": {"mode": "MIG", "rollout": {"maxUnavailable": 1, "paused": False}},
        "status": {"observedGeneration": observed, "summary": told},
    }


def until(minutes: float) -> JSON:
    """A wait that the clock ends so many minutes after NOW, as fields of a transition."""
    return {"waitingFor": "Clock", "deadline": ago(-minutes)}


def gpunode(name: str, phase: str = "Synced", reason: str = "Synced", **told: Any) -> JSON:
    """A GPUNode of pool-b with eight GPUs; `told` holds fields of its transition."""
    transition = {
        "policy": "pool-b",
        "wanted": "2x3g.40gb",
        "observed": "2x3g.40gb" if phase == "Synced" else "7x1g.10gb",
        "phase": phase,
        "reason": reason,
        "message": "",
        "since": ago(4),
        "disruption": "GPUPods",
        "culprit": "",
        "blockers": [],
        "history": [],
        **told,
    }
    return {
        "apiVersion": "gpusharing.dev/v1alpha1",
        "kind": "GPUNode",
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "1"},
        "status": {"transition": transition, "observed": {"gpus": [{"index": index} for index in range(8)], "pods": 2}},
    }


def history(*steps: tuple[str, float]) -> list[str]:
    """Entries of a history: phase, and how many minutes before NOW it was entered."""
    return [f"{ago(minutes)} {phase} {phase}" for phase, minutes in steps]


def pools_of(
    policies: Iterable[JSON], nodes: Iterable[JSON], events: Iterable[JSON] | None = None
) -> tuple[tuple[PoolStatus, ...], tuple[NodeStatus, ...]]:
    return read_pools(policies, map(read_node, nodes), events)


def fleet() -> tuple[list[JSON], list[JSON]]:
    """Pool b in a change: a node is done, one drains, one is somebody else's; pool c has nothing to do."""
    done = gpunode("pool-b-0", history=history(("Cordoned", 30), ("Reconfiguring", 25), ("Synced", 20)))
    draining = gpunode(
        "pool-b-1",
        "Draining",
        "PDB",
        culprit="team-b/ranker-7c4 +1",
        **until(11),
        cordonedBy="Operator",
        blockers=["PDB team-b/ranker: Pods team-b/ranker-7c4, team-b/ranker-9d2. Allows 0 disruptions."],
    )
    cordoned = gpunode("pool-b-2", "Blocked", "AlreadyCordoned", since=ago(65), cordonedBy="Person")
    quiet = gpunode("pool-c-0", policy="pool-c", wanted="1x full", observed="1x full")
    policies = [
        policy("pool-b", message="pool-b-1: PDB team-b/ranker: waiting for 2 pods to leave"),
        policy("pool-c", mode="Full", layout="1x full", nodes="1/1", gpus=8, used="8/8", status="Synced", message=""),
    ]
    return policies, [done, draining, cordoned, quiet]


DECLARED = {
    **dict.fromkeys(("20Gi", "20480Mi", "20971520Ki", "21474836480"), 20 * 2**30),
    "20G": 20 * 10**9,
    "20480M": 20480 * 10**6,
}
"""Valid values of the annotation gpusharing.dev/gpu-memory, with their bytes."""
UNDECLARED = ("15", "0", "much", "20GiB", "1.5Gi", "1048575")
