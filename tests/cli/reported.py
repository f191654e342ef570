"""Clusters that people reported in public, as objects for a FakeCluster.
Each file in tests/cli/cases is a multi-document YAML file with Nodes, Pods, a ClusterPolicy, ConfigMaps and so on. Names are invented; the shape of each cluster is that of the report."""

from pathlib import Path

import yaml
from hack.sim.fakecluster import FakeCluster
from tests.fakes.virtualtime import virtual_now

from gpusharing.kube import client as kinds

CASES = Path(__file__).parent / "cases"

KINDS = {
    "Node": kinds.NODES,
    "Pod": kinds.PODS,
    "ConfigMap": kinds.CONFIG_MAPS,
    "DaemonSet": kinds.DAEMON_SETS,
    "ClusterPolicy": kinds.CLUSTER_POLICIES,
}
"""The resource of each kind that a case may hold."""


def reported(name: str) -> FakeCluster:
    """Return a cluster without our operator and CRDs that holds the objects of tests/cli/cases/NAME.yaml."""
    cluster = FakeCluster(now=virtual_now)
    for manifest in yaml.safe_load_all((CASES / f"{name}.yaml").read_text(encoding="utf-8")):
        cluster.add(KINDS[manifest["kind"]], manifest)
    cluster.uninstalled |= {kinds.POLICIES, kinds.GPUNODES}
    return cluster
