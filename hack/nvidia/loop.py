"""The whole system with real components: control plane, chart, operator, agents, and nodes with NVIDIA's programs."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpusharing.api import names
from hack import launch
from hack.cluster.api import Api, Object
from hack.cluster.audit import read_requests, wait_logged
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.process import wait_until
from hack.nvidia.installations import GPU_OPERATOR, Installation
from hack.nvidia.node import RealNode, real_nodes

POLICY = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies/real"
GPUNODES = "/apis/gpusharing.dev/v1alpha1/gpunodes"
NODES, PODS = "/api/v1/nodes", "/api/v1/namespaces/default/pods"
OPERATOR = f"system:serviceaccount:{launch.NAMESPACE}:{launch.SERVICE_ACCOUNT}"
MODEL = "h100-80gb"
SECONDS = 240.0
"""The limit of every wait. A change of mode takes about 12 s on an idle machine."""
WAITS = {
    "settle": "0.5s",
    "idle": "0.5s",
    "poll": "0.5s",
    "config_propagation": "3s",
    "wedge_pending": "90s",  # this wedge does not occur here, but two simultaneous runs of mig-manager may take long
    "wedge_paused": "4s",
    "restart_grace": "6s",
    "drift_grace": "20s",
    "abort_backoff": "5s",
    "publish_period": "0.3s",
    "pending_period": "2s",
    "debounce": "0.1s",
}
"""The operator's waits. NVIDIA's programs run at their own speed; a mounted ConfigMap takes 1 s here."""


@dataclass
class NvidiaLoop:
    """The running system, and functions to change and inspect it."""

    plane: ControlPlane
    nodes: dict[str, RealNode]
    operator: launch.LaunchedProcess

    @property
    def api(self) -> Api:
        return self.plane.api

    def apply(self, **spec: Any) -> None:
        self.api.apply(POLICY, policy(**spec))

    def wait_ready(self) -> None:
        try:
            launch.wait_ready(self.api, "real", SECONDS)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.describe()}") from None

    def bring(self, **spec: Any) -> None:
        self.apply(**spec)
        self.wait_ready()

    def wait(self, condition: Any, what: str) -> None:
        try:
            wait_until(condition, SECONDS, what, self._check)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.describe()}") from None

    def describe(self) -> str:
        return "\n".join(self.plane.kubectl("get", kind, "-o", "wide") for kind in ("gsp", "gpun", "pods"))

    def labels(self, node: str) -> dict[str, str]:
        labels: dict[str, str] = self.api.get(f"{NODES}/{node}")["metadata"]["labels"]
        return labels

    def served(self, node: str) -> dict[str, int]:
        """Return the allocatable number of each of NVIDIA's resources of a Node, without those that are 0."""
        allocatable = self.api.get(f"{NODES}/{node}")["status"]["allocatable"]
        return {
            name: int(count) for name, count in allocatable.items() if name.startswith("nvidia.com/") and count != "0"
        }

    def transition(self, node: str) -> Object:
        transition: Object = self.api.get(f"{GPUNODES}/{node}").get("status", {}).get("transition") or {}
        return transition

    def profiles(self, node: str) -> list[list[str]]:
        """Return the profiles of the MIG instances on each GPU of a node, in the order of their starts."""
        return [[i["profile"] for i in gpu["instances"]] for gpu in self.nodes[node].simulator.show()["gpus"]]

    def events(self, reason: str) -> list[str]:
        """Return the note of each Event about the policy with this reason."""
        path = "/apis/events.k8s.io/v1/namespaces/default/events"
        events = self.api.list(path, fieldSelector="regarding.name=real")
        return [event["note"] for event in events if event["reason"] == reason]

    def evicted(self) -> list[str]:
        """Return the names of the pods that the operator has evicted, from the audit log."""
        wait_logged(self.plane.audit_log, self.api)
        return [
            request.name
            for request in read_requests(self.plane.audit_log, OPERATOR)
            if request.is_write and request.resource == "pods/eviction" and request.status < 300
        ]

    def run_pod(self, node: str, resource: str) -> str:
        """Create a pod that requests one device on a node, wait until it computes, and return its name."""
        container = {"name": "main", "image": "simulated", "resources": {"limits": {resource: "1"}}}
        spec = {"nodeSelector": {"kubernetes.io/hostname": node}, "containers": [container], "restartPolicy": "Never"}
        manifest = {"metadata": {"generateName": f"{node}-work-"}, "spec": spec}
        name = str(self.api.create(PODS, manifest)["metadata"]["name"])
        process = f"SIMULATED-{name}"
        self.wait(
            lambda: process in [row["name"] for row in self.nodes[node].simulator.show()["processes"]],
            f"{name} to compute on {resource}",
        )
        return name

    def _check(self) -> None:
        assert self.operator.exit_status is None, self.operator.log.read_text()[-3000:]


def policy(**spec: Any) -> Object:
    """Return the manifest of the policy `real`, which selects the nodes of pool `real`."""
    drain = {"unmanagedPods": "Evict", "strandedPods": "Allow"}
    selector = {"matchLabels": {"gpusharing.dev/pool": "real"}}
    return {
        "apiVersion": "gpusharing.dev/v1alpha1",
        "kind": "GPUSharingPolicy",
        "metadata": {"name": "real"},
        "spec": {"nodeSelector": selector, "rollout": {"maxUnavailable": 2}, "drain": drain, **spec},
    }


@contextlib.contextmanager
def running_loop(
    folder: Path,
    *machines: str,
    chart: Sequence[str] = (),
    models: Mapping[str, str] | None = None,
    installation: Installation = GPU_OPERATOR,
) -> Iterator[NvidiaLoop]:
    """Yield the operator, which runs here, and nodes with NVIDIA's programs on SIMULATED machines."""
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(ControlPlane(options=Options(audit=True)))
        installation.prepare(plane)
        launch.install_chart(plane.kubeconfig, "--set", "operator.replicaCount=0", *installation.chart, *chart)
        installation.install(plane)
        wanted = {name: [(models or {}).get(name, MODEL)] * 2 for name in machines}
        nodes = stack.enter_context(real_nodes(plane.kubeconfig, wanted, folder, installation))
        settings = {**WAITS, "gpu_operator_namespace": installation.namespace}
        operator = stack.enter_context(launch.operator(plane.kubeconfig, folder, 1.0, **settings))
        yield NvidiaLoop(plane, nodes, operator)


def is_cordoned(loop: NvidiaLoop, node: str) -> bool:
    return bool(loop.api.get(f"{NODES}/{node}")["spec"].get("unschedulable"))


def mig_state(loop: NvidiaLoop, node: str) -> str:
    """Return the value of mig-manager's state label on a node; empty if the node does not have the label."""
    return loop.labels(node).get(names.LABEL_MIG_STATE, "")


FULL: Object = {"mode": "Full"}
HALVES: Object = {"mode": "MIG", "mig": {"strategy": "mixed", "layouts": [{"profiles": {"3g.40gb": 2}}]}}
MIXED: Object = {
    "mode": "MIG",
    "mig": {"strategy": "mixed", "layouts": [{"profiles": {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}}]},
}
SINGLE: Object = {"mode": "MIG", "mig": {"strategy": "single", "config": "all-1g.10gb"}}


@dataclass(frozen=True)
class Stop:
    text: str
    spec: Object
    """The fields of the policy's spec that set the mode."""
    served: dict[str, int]


WALK = (
    Stop("Full", FULL, {"nvidia.com/gpu": 2}),
    Stop("MIG mixed", HALVES, {"nvidia.com/mig-3g.40gb": 4}),
    Stop(
        "MIG mixed in another geometry",
        MIXED,
        {"nvidia.com/mig-1g.10gb": 4, "nvidia.com/mig-2g.20gb": 2, "nvidia.com/mig-3g.40gb": 2},
    ),
    Stop("MIG with time-slicing", {**HALVES, "timeSlicing": {"replicas": 3}}, {"nvidia.com/mig-3g.40gb": 12}),
    Stop("Full again", FULL, {"nvidia.com/gpu": 2}),
    Stop("TimeSlicing", {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}, {"nvidia.com/gpu": 8}),
    Stop("MPS", {"mode": "MPS", "mps": {"replicas": 4}}, {"nvidia.com/gpu": 8}),
    Stop("MIG single, through Full", SINGLE, {"nvidia.com/gpu": 14}),
)
