"""A pool goes through the modes while Deployments hold its GPUs: on real kubelets, with NVIDIA's programs in pods."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hack.cluster.api import Object
from hack.cluster.audit import read_requests
from hack.cluster.process import wait_until
from hack.nvidia.loop import OPERATOR
from hack.realnode.images import PAUSE_IMAGE
from hack.realnode.site import POOL, Site
from tests.e2e.conftest import NODES

from hack import stage

pytestmark = pytest.mark.e2e
POLICY = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies/real"
PODS = "/api/v1/namespaces/default/pods"
SECONDS = 240.0
"""Patience with one change of two nodes; 45 to 103 s were seen on two busy cores."""
REPLICAS = 2
PROPAGATION = "operator.configPropagation=10"
"""The kubelets here look at mounted ConfigMaps every 5 s."""


@dataclass(frozen=True)
class Stop:
    """One mode, and what a node of two H100 then offers."""

    text: str
    spec: Object
    offered: int
    layout: str


HALVES = {"strategy": "single", "layouts": [{"devices": "all", "profiles": {"3g.40gb": 2}}]}
FULL = Stop("Full", {"mode": "Full"}, 2, "1x full")
WALK = (
    Stop("MIG", {"mode": "MIG", "mig": HALVES}, 4, "2x3g.40gb"),
    Stop("TimeSlicing", {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}, 8, "4x shared"),
    Stop("Full again", {"mode": "Full"}, 2, "1x full"),
)


@dataclass
class Walk:
    """The pool, and what was seen of its pods on the way."""

    site: Site
    moved: set[tuple[str, str]] = field(default_factory=set)
    """A node that was cordoned, and one on which a pod of the Deployment ran meanwhile."""

    def bring(self, stop: Stop) -> None:
        """Apply the mode and wait until it is Ready and all pods run."""
        self.site.api.apply(POLICY, policy_of(stop))
        try:
            wait_until(lambda: self._look() and self._ready(), SECONDS, f"{stop.text} to be Ready")
            wait_until(lambda: len(self.running()) == REPLICAS, SECONDS, "the Deployment's pods to run")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.describe()}") from None

    def running(self) -> dict[str, str]:
        """Node by name of the Deployment's pods that run."""
        pods = self.site.api.list(PODS, labelSelector="app=holder")
        return {
            pod["metadata"]["name"]: pod["spec"]["nodeName"]
            for pod in pods
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        }

    def evicted(self) -> int:
        """How many pods the operator has evicted so far."""
        requests = read_requests(self.site.plane.audit_log, OPERATOR)
        return sum(one.is_write and one.resource == "pods/eviction" and one.status < 300 for one in requests)

    def computing(self, node: str) -> list[str]:
        """Pods whose process NVML shows on a GPU of the node."""
        gpus = self.site.nodes[node].gpus
        assert gpus is not None
        return sorted(one["name"].removeprefix("SIMULATED-") for one in gpus.simulator.show()["processes"])

    def describe(self) -> str:
        """Where everything stands."""
        return "\n".join(
            self.site.kubectl("get", kind, "-A", "-o", "wide") for kind in ("gsp", "gpun", "pods")
        )

    def _look(self) -> bool:
        nodes = self.site.api.list("/api/v1/nodes")
        cordoned = [node["metadata"]["name"] for node in nodes if node["spec"].get("unschedulable")]
        self.moved |= {(away, there) for away in cordoned for there in self.running().values()}
        return True

    def _ready(self) -> bool:
        try:
            stage.wait_ready(self.site.api, "real", 0.0)
        except TimeoutError:
            return False
        return True


@pytest.fixture(scope="module")
def walk(site: Site, notes: str) -> Iterator[Walk]:
    """The pool in mode Full, and a Deployment that holds a GPU in each of its pods."""
    site.helm_install("--set", PROPAGATION)
    made = Walk(site)
    site.install_operands()
    site.api.create("/apis/apps/v1/namespaces/default/deployments", holder())
    made.bring(FULL)
    yield made
    site.api.delete("/apis/apps/v1/namespaces/default/deployments/holder")


def policy_of(stop: Stop) -> Object:
    return {
        "apiVersion": "gpusharing.dev/v1alpha1",
        "kind": "GPUSharingPolicy",
        "metadata": {"name": "real"},
        "spec": {"nodeSelector": {"matchLabels": {"gpusharing.dev/pool": POOL}}, **stop.spec},
    }


def holder() -> Object:
    container = {"name": "main", "image": PAUSE_IMAGE, "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    pod = {"runtimeClassName": "nvidia", "terminationGracePeriodSeconds": 1, "containers": [container]}
    labels = {"app": "holder"}
    return {
        "metadata": {"name": "holder"},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def holds(walk: Walk, stop: Stop) -> None:
    """What must be true when the pool is in this mode."""
    placed = walk.running()
    for node in NODES:
        offered = walk.site.api.get(f"/api/v1/nodes/{node}")["status"]["allocatable"]
        gpus = {
            name: count for name, count in offered.items() if name.startswith("nvidia.com/") and count != "0"
        }
        assert gpus == {"nvidia.com/gpu": str(stop.offered)}, "as the real kubelet tells it"
        here = sorted(name for name, where in placed.items() if where == node)
        assert walk.computing(node) == here, "each pod computes where it runs, and nobody else"
    wait_until(lambda: used_row(walk, stop) is not None, SECONDS, "the agents to report what pods hold")
    for node in NODES:
        assert held(walk, node) == list(placed.values()).count(node), (
            "as podresources of the real kubelet tell it"
        )


def used_row(walk: Walk, stop: Stop) -> "re.Match[str] | None":
    """The line of `kubectl get gsp` as the README shows it; USED follows with the agents' next readings."""
    row = walk.site.kubectl("get", "gsp").splitlines()[1]
    used = rf"{REPLICAS}/{stop.offered * len(NODES)}"
    return re.match(rf"real +{stop.spec['mode']} +{stop.layout} +2/2 +4 +{used} +True +Synced", row)


def held(walk: Walk, node: str) -> int:
    """Devices that pods hold, as our agent reads it from the real kubelet's podresources."""
    status = walk.site.api.get(f"/apis/gpusharing.dev/v1alpha1/gpunodes/{node}")["status"]
    return sum((status["observed"].get("allocated") or {}).values())


def test_a_fresh_pool_is_adopted_in_mode_full_while_pods_hold_its_gpus(walk: Walk) -> None:
    holds(walk, FULL)
    assert walk.evicted() == 0


@pytest.mark.parametrize("stop", [pytest.param(stop, id=stop.text) for stop in WALK])
def test_a_change_evicts_and_the_pods_run_again_on_the_other_node(walk: Walk, stop: Stop) -> None:
    before, walk.moved = walk.evicted(), set()
    walk.bring(stop)
    assert walk.evicted() > before
    assert {(NODES[0], NODES[1]), (NODES[1], NODES[0])} <= walk.moved, (
        "one node served while the other changed"
    )
    holds(walk, stop)
