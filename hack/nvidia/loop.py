"""The whole loop on real parts: control plane, chart, operator, agents, and two nodes with NVIDIA's programs.

Rung 3 and `make demo DRIVER=nvidia` take the same walk through all modes (WALK).
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpusharing.api import names
from hack import launch
from hack.cluster import install
from hack.cluster.api import Api, Object
from hack.cluster.audit import read_requests, wait_logged
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.process import wait_until
from hack.nvidia.node import RealNode, real_nodes

POLICY = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies/real"
GPUNODES = "/apis/gpusharing.dev/v1alpha1/gpunodes"
NODES, PODS = "/api/v1/nodes", "/api/v1/namespaces/default/pods"
OPERATOR = f"system:serviceaccount:{launch.NAMESPACE}:{launch.SERVICE_ACCOUNT}"
MODEL = "h100-80gb"
SECONDS = 240.0
"""Patience of every wait: a change of mode takes about 12 s on an idle machine, and CI does other things beside it."""
WAITS = {
    "settle": "0.5",
    "idle": "0.5",
    "poll": "0.5",
    "config_propagation": "3",
    "wedge_pending": "90",  # nobody plays this wedge here, and two runs of mig-manager side by side may take long
    "wedge_paused": "4",
    "restart_grace": "6",
    "drift_grace": "20",
    "abort_backoff": "5",
    "publish_period": "0.3",
    "pending_period": "2",
    "debounce": "0.1",
}
"""The operator's waits. NVIDIA's programs run as fast as they are; a mounted ConfigMap takes 1 s here."""


@dataclass
class NvidiaLoop:
    """What is running, and how one looks at it."""

    plane: ControlPlane
    nodes: dict[str, RealNode]
    operator: launch.LaunchedProcess

    @property
    def api(self) -> Api:
        """As admin."""
        return self.plane.api

    def apply(self, **spec: Any) -> None:
        """Replace the policy's spec."""
        self.api.apply(POLICY, policy(**spec))

    def wait_ready(self) -> None:
        """Until the present generation is Ready."""
        try:
            launch.wait_ready(self.api, "real", SECONDS)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.describe()}") from None

    def bring(self, **spec: Any) -> None:
        """Apply a spec and wait until it is Ready."""
        self.apply(**spec)
        self.wait_ready()

    def wait(self, condition: Any, what: str) -> None:
        """Wait until it is true; the error says what is there instead."""
        try:
            wait_until(condition, SECONDS, what, self._check)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.describe()}") from None

    def describe(self) -> str:
        """Where everything stands."""
        return "\n".join(self.plane.kubectl("get", kind, "-o", "wide") for kind in ("gsp", "gpun", "pods"))

    def labels(self, node: str) -> dict[str, str]:
        """Labels of a Node."""
        found: dict[str, str] = self.api.get(f"{NODES}/{node}")["metadata"]["labels"]
        return found

    def served(self, node: str) -> dict[str, int]:
        """Allocatable GPU resources, without those at 0."""
        offered = self.api.get(f"{NODES}/{node}")["status"]["allocatable"]
        return {
            name: int(count)
            for name, count in offered.items()
            if name.startswith("nvidia.com/") and count != "0"
        }

    def transition(self, node: str) -> Object:
        """`status.transition` of a GPUNode."""
        found: Object = self.api.get(f"{GPUNODES}/{node}").get("status", {}).get("transition") or {}
        return found

    def profiles(self, node: str) -> list[list[str]]:
        """The instances per GPU, as the simulated driver has them."""
        return [[i["profile"] for i in gpu["instances"]] for gpu in self.nodes[node].simulator.show()["gpus"]]

    def events(self, reason: str) -> list[str]:
        """Notes of the policy's events with this reason."""
        path = "/apis/events.k8s.io/v1/namespaces/default/events"
        found = self.api.list(path, fieldSelector="regarding.name=real")
        return [event["note"] for event in found if event["reason"] == reason]

    def evicted(self) -> list[str]:
        """Pods that the operator has evicted, in order."""
        wait_logged(self.plane.audit_log, self.api)
        return [
            request.name
            for request in read_requests(self.plane.audit_log, OPERATOR)
            if request.is_write and request.resource == "pods/eviction" and request.status < 300
        ]

    def run_pod(self, node: str, resource: str) -> str:
        """A pod of a ReplicaSet-like owner that computes on one device of a node; returns when NVML shows it."""
        container = {"name": "main", "image": "simulated", "resources": {"limits": {resource: "1"}}}
        spec = {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "containers": [container],
            "restartPolicy": "Never",
        }
        manifest = {"metadata": {"generateName": f"{node}-work-"}, "spec": spec}
        name = str(self.api.create(PODS, manifest)["metadata"]["name"])
        process = f"SIMULATED-{name}"
        self.wait(
            lambda: process in [one["name"] for one in self.nodes[node].simulator.show()["processes"]],
            f"{name} to compute on {resource}",
        )
        return name

    def _check(self) -> None:
        assert self.operator.exit_status is None, self.operator.log.read_text()[-3000:]


def policy(**spec: Any) -> Object:
    """The policy of the pool; pods without a controller may be evicted, also where nothing could run them again."""
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
    log: Path | None = None,
    chart: Sequence[str] = (),
    models: Mapping[str, str] | None = None,
) -> Iterator[NvidiaLoop]:
    """Everything of it, with these nodes of two GPUs; it ends with the context. `log`: of the operator.

    `chart`: more arguments of helm, `("--set", "agent.privileged=false")`; `models`: of machines that have no H100.

    Raises:
        UnavailableError, SandboxError, LaunchError, ComponentError: it cannot run here.
    """
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(ControlPlane(options=Options(audit=True)))
        install.install_gpu_operator(plane.api)
        launch.install_chart(plane.kubeconfig, "--set", "operator.replicas=0", *chart)
        wanted = {name: [(models or {}).get(name, MODEL)] * 2 for name in machines}
        nodes = stack.enter_context(real_nodes(plane.kubeconfig, wanted, folder))
        operator = launch.operator(plane.kubeconfig, folder, 1.0, **WAITS)
        operator.log = log or operator.log
        stack.enter_context(operator)
        yield NvidiaLoop(plane, nodes, operator)


def is_cordoned(loop: NvidiaLoop, node: str) -> bool:
    """Whether the node is fenced off from the scheduler."""
    return bool(loop.api.get(f"{NODES}/{node}")["spec"].get("unschedulable"))


def mig_state(loop: NvidiaLoop, node: str) -> str:
    """What mig-manager says."""
    return loop.labels(node).get(names.LABEL_MIG_STATE, "")


FULL: Object = {"mode": "Full"}
HALVES: Object = {
    "mode": "MIG",
    "mig": {"strategy": "mixed", "layouts": [{"devices": "all", "profiles": {"3g.40gb": 2}}]},
}
MIXED: Object = {
    "mode": "MIG",
    "mig": {
        "strategy": "mixed",
        "layouts": [{"devices": "all", "profiles": {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}}],
    },
}
SINGLE: Object = {"mode": "MIG", "mig": {"strategy": "single", "config": "all-1g.10gb"}}


@dataclass(frozen=True)
class Stop:
    """One mode."""

    text: str
    spec: Object
    served: dict[str, int]
    """Allocatable per node."""


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
