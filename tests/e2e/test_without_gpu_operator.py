"""MIG without the GPU Operator, as the how-to installs it, on a real kubelet with NVIDIA's programs in pods.
The last file of the run: it takes the GPU Operator away. SIMULATED as in the other files: GPUs, driver and container runtime, Node Feature Discovery."""

from dataclasses import replace

import pytest
from hack.nvidia.installations import CLUSTER_POLICY, PLAIN_NAMESPACE, PLATFORM
from hack.realnode.plain import install_plain, label_node
from hack.realnode.site import Site
from tests.e2e.pool import (
    FASTER,
    FULL,
    GPU,
    HALVES,
    MIG,
    NODES,
    PODS,
    POLICY,
    SLICE,
    PoolMode,
    Walk,
    can_work,
    clear,
    holding,
    policy_of,
)

from gpusharing.api import names

pytestmark = pytest.mark.e2e
NODE = NODES[0]
HALVED = replace(MIG, spec={"mode": "MIG", "mig": {**HALVES, "strategy": "mixed"}}, offered={SLICE: 4})


@pytest.fixture(scope="module")
def plain(site: Site, notes: str) -> Walk:
    """One node in the pool, and NVIDIA's programs as the how-to installs them."""
    clear(Walk(site))
    site.api.delete(CLUSTER_POLICY)
    site.api.ensure("/api/v1/namespaces", {"metadata": {"name": PLAIN_NAMESPACE}})
    site.helm_install("--set", FASTER, "-f", str(PLATFORM))
    install_plain(list(site.nodes.values()))
    for node in NODES:
        label_node(site.api, node)
    return Walk(site)


def bring(walk: Walk, stop: PoolMode) -> None:
    """The mode, on the one node; its pods can run nowhere else."""
    policy = policy_of(stop)
    selector = {"matchLabels": {"kubernetes.io/hostname": NODE}}
    policy["spec"] |= {"nodeSelector": selector, "drain": {"strandedPods": "Allow", "unmanagedPods": "Evict"}}
    walk.site.api.apply(POLICY, policy)
    walk.wait(walk.is_ready, f"{stop.text} to be Ready")
    assert offered(walk) == stop.offered


def offered(walk: Walk) -> dict[str, int]:
    allocatable = walk.site.api.get(f"/api/v1/nodes/{NODE}")["status"]["allocatable"]
    gpus = {name: int(count) for name, count in allocatable.items() if name.startswith("nvidia.com/")}
    return {name: count for name, count in gpus.items() if count}


def run_pod(walk: Walk, name: str, resource: str) -> None:
    pod = {**holding(resource), "nodeSelector": {"kubernetes.io/hostname": NODE}}
    walk.site.api.create(PODS, {"metadata": {"name": name}, "spec": pod})
    walk.wait(lambda: walk.site.api.get(f"{PODS}/{name}")["status"].get("phase") == "Running", f"pod {name}")
    assert walk.computing(NODE) == [name]


def test_a_node_goes_from_whole_gpus_to_mig_and_a_pod_gets_a_partition(plain: Walk) -> None:
    """Without a policy NVIDIA's chart serves whole GPUs, by the neutral entry of our ConfigMap."""
    plain.wait(lambda: offered(plain) == FULL.offered, "the chart to serve whole GPUs")
    run_pod(plain, "whole", GPU)
    since = plain.mark()
    bring(plain, HALVED)
    assert plain.evicted(since) == ["whole"]
    run_pod(plain, "part", SLICE)
    node = plain.site.api.get(f"/api/v1/nodes/{NODE}")
    assert node["metadata"]["labels"][names.LABEL_DEPLOY_CLIENT] == "true"
    assert not node["spec"].get("unschedulable")


def test_helm_test_says_that_this_installation_can_work(plain: Walk) -> None:
    can_work(plain.site)
