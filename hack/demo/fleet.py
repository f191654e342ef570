"""The fleet of the demo: eleven nodes with 80 GPUs, four pools, the pods of five teams, and one PodDisruptionBudget.

Pools A to D are those of the article to which this operator is an answer. Its arithmetic is corrected: an instance of
1g.20gb uses two of the eight memory slices, so an 80 GB H100 holds four of them and not seven.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

from gpusharing.kube.client import JSON
from hack.cluster.nodes import node_manifest
from hack.sim.workloads import SimWorkload

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
H100, L40S = "NVIDIA H100 80GB HBM3", "NVIDIA L40S"
POOLS = (("a", H100, 8, 4), ("b", H100, 8, 3), ("c", H100, 8, 2), ("d", L40S, 4, 2))
"""Each pool with its card, its GPUs per node, and its number of nodes."""
GPUS = sum(gpus * nodes for _, _, gpus, nodes in POOLS)
ZONE = "topology.kubernetes.io/zone"
RANKER_NODE = "gpu-b-1"
"""The only node in zone-1, where the ranker's disk is."""
RANKER = SimWorkload(
    "ranker",
    3,
    "nvidia.com/mig-3g.40gb",
    namespace="team-b",
    node_selector={"gpusharing.dev/pool": "b", ZONE: "zone-1"},
)
WORKLOADS = (
    SimWorkload("llm-7b", 97, "nvidia.com/mig-1g.20gb", namespace="team-a"),
    SimWorkload("llm-13b", 12, "nvidia.com/mig-3g.40gb", namespace="team-b"),
    SimWorkload("training", 2, count=8, namespace="team-c", node_selector={"gpusharing.dev/pool": "c"}),
    SimWorkload("notebook", 21, namespace="dev", node_selector={"gpusharing.dev/pool": "d"}),
)
BUDGET: JSON = {
    "apiVersion": "policy/v1",
    "kind": "PodDisruptionBudget",
    "metadata": {"name": "ranker", "namespace": "team-b"},
    "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "ranker"}}},
}
NAMESPACES = sorted({workload.namespace for workload in (*WORKLOADS, RANKER)})
TARGET = {"3g.40gb": 1, "1g.10gb": 4}
"""The new layout of pool B's cards: one half stays as it is, the other becomes four small instances."""


def nodes() -> list[JSON]:
    manifests = []
    for pool, card, gpus, count in POOLS:
        for name in (f"gpu-{pool}-{number}" for number in range(1, count + 1)):
            zone = {ZONE: "zone-1" if name == RANKER_NODE else "zone-2"}
            manifests.append(node_manifest(name, product=card, gpus=gpus, pool=pool, labels=zone))
    return manifests


def example(pool: str) -> JSON:
    """Return the manifest of the policy in examples/pool-<pool>.yaml."""
    manifest: JSON = yaml.safe_load((EXAMPLES / f"pool-{pool}.yaml").read_text())
    return manifest


def with_layout(pool: str, profiles: dict[str, int], **rollout: Any) -> JSON:
    """Return a copy of the example policy of a pool in mode MIG, in which every card gets the layout `profiles`."""
    manifest = copy.deepcopy(example(pool))
    manifest["spec"]["mig"]["layouts"] = [{"profiles": profiles}]
    manifest["spec"].setdefault("rollout", {}).update(rollout)
    return manifest
