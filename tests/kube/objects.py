"""Objects as the API server sends them, shortened to what matters; used by the tests of this folder."""

from typing import Any

from hack.sim.fakecluster import FakeCluster

from gpusharing.kube.client import DAEMON_SETS, PODS
from gpusharing.planning.gpus.texts import write_indexes

JSON = dict[str, Any]


def adopt(cluster: FakeCluster, daemon_set: str, name: str) -> None:
    """Make this DaemonSet of team-a, as the server stored it, the controller of a pod there."""
    uid = cluster.get(DAEMON_SETS, daemon_set, "team-a")["metadata"]["uid"]
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": daemon_set, "uid": uid, "controller": True}
    cluster.patch(PODS, name, {"metadata": {"ownerReferences": [owner]}}, "team-a")


def node(name: str = "gpu-07", **changes: Any) -> JSON:
    """A GPU node as kubelet, NFD, GFD and mig-manager leave it."""
    raw: JSON = {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "uid": "7d2c1c0e-0000-4000-8000-000000000007",
            "resourceVersion": "41",
            "labels": {
                "kubernetes.io/hostname": name,
                "gpusharing.dev/pool": "b",
                "nvidia.com/gpu.present": "true",
                "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
                "nvidia.com/mig.config": "all-disabled",
                "nvidia.com/mig.config.state": "success",
            },
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
        },
        "spec": {"podCIDR": "10.1.7.0/24"},
        "status": {
            "allocatable": {"cpu": "128", "memory": "2113491Mi", "nvidia.com/gpu": "8", "pods": "110"},
            "conditions": [
                {"type": "MemoryPressure", "status": "False"},
                {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-20T09:00:00Z"},
            ],
            "nodeInfo": {"kubeletVersion": "v1.36.3"},
        },
    }
    raw["metadata"].update(changes.pop("metadata", {}))
    raw.update(changes)
    return raw


def pod(name: str = "llm-0", node_name: str = "gpu-07", **changes: Any) -> JSON:
    """A running pod of a ReplicaSet that holds one GPU."""
    raw: JSON = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "namespace": "team-a",
            "name": name,
            "uid": f"uid-of-{name}",
            "labels": {"app": "llm"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "llm", "uid": "rs", "controller": True}
            ],
        },
        "spec": {
            "nodeName": node_name,
            "containers": [
                {"name": "main", "resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}}}
            ],
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    for key in ("metadata", "spec", "status"):
        raw[key].update(changes.pop(key, {}))
    raw.update(changes)
    return raw


def pdb(name: str = "llm", selector: JSON | None = None, **changes: Any) -> JSON:
    """A PodDisruptionBudget that never allows a disruption."""
    raw: JSON = {
        "kind": "PodDisruptionBudget",
        "apiVersion": "policy/v1",
        "metadata": {"namespace": "team-a", "name": name},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "llm"}} if selector is None else selector},
        "status": {"disruptionsAllowed": 0, "expectedPods": 2, "desiredHealthy": 2, "currentHealthy": 2},
    }
    raw.update(changes)
    return raw


def observed_gpu(index: int = 0, **changes: Any) -> JSON:
    raw: JSON = {"uuid": f"GPU-{index}", "mig": "Disabled"}
    return {**raw, **changes}


def observed(*gpus: JSON, profiles: list[str] | None = None, **changes: Any) -> JSON:
    raw: JSON = {
        "requestID": "r1",
        "quiet": False,
        "simulated": True,
        "error": "",
        "driverVersion": "580.95.05",
        "models": [
            {
                "product": "NVIDIA H100 80GB HBM3",
                "gpus": write_indexes(range(len(gpus) or 1)),
                "profiles": "; ".join(profiles or ()),
            }
        ],
        "gpus": list(gpus),
        "computeModes": "",
        "programs": "",
        "allocated": {"nvidia.com/gpu": 1, "nvidia.com/mig-1g.10gb": 0},
        "pods": 1,
    }
    return {**raw, **changes}
