"""A pool of real nodes and a Deployment that holds its GPUs, for the tests that lead it from mode to mode."""

import contextlib
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from hack.cluster.api import Api, ApiError, Object
from hack.cluster.audit import AuditedRequest, read_requests, wait_logged
from hack.cluster.kubeconfig import service_account_token
from hack.cluster.process import wait_until
from hack.launch import AGENT_NAMESPACE
from hack.nvidia.loop import OPERATOR
from hack.nvmlsim.simulator import SimulatorError
from hack.realnode.images import PAUSE_IMAGE
from hack.realnode.runtime import MEMORY_MIB
from hack.realnode.site import POOL, Site
from prometheus_client.parser import text_string_to_metric_families

from hack import launch

NODES = ("gpu-1", "gpu-2")
POLICY = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies/real"
PODS = "/api/v1/namespaces/default/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
OPERANDS = "/apis/apps/v1/namespaces/gpu-operator/daemonsets"
SECONDS = 420.0
"""Patience with one change of two nodes; 45 to 103 s were seen on two busy cores."""
POLL = 0.3
"""Seconds between two looks: they cost the machine that they watch something."""
SELECTOR = "app.kubernetes.io/name=gpusharing-operator"
REPLICAS = 2
FASTER = (
    "operator.configPropagation=5s,agent.interval=10s,"
    "operator.extraEnv[0].name=GPUSHARING_POLL,operator.extraEnv[0].value=2s"
)
"""The kubelets here look at mounted ConfigMaps every 2 to 3 s, nobody waits for an agent's next reading, and evicted pods are gone after a second."""


@dataclass(frozen=True)
class PoolMode:
    """One mode, and what a node of two H100 then offers."""

    text: str
    spec: Object
    offered: Mapping[str, int]
    layout: str

    @property
    def mode(self) -> str:
        """As `kubectl get gsp` shows it."""
        both = self.spec["mode"] == "MIG" and "timeSlicing" in self.spec
        return "MIG+TS" if both else str(self.spec["mode"])


HALVES = {"strategy": "single", "layouts": [{"profiles": {"3g.40gb": 2}}]}
GPU = "nvidia.com/gpu"
FULL = PoolMode("Full", {"mode": "Full"}, {GPU: 2}, "1x full")
MIG = PoolMode("MIG", {"mode": "MIG", "mig": HALVES}, {GPU: 4}, "2x3g.40gb")
SLICE = "nvidia.com/mig-3g.40gb"
HALF_OF_ONE = [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}]
MIXED = PoolMode(
    "MIG with strategy mixed, one GPU whole, and time-slicing",
    {"mode": "MIG", "mig": {"strategy": "mixed", "layouts": HALF_OF_ONE}, "timeSlicing": {"replicas": 2}},
    {GPU: 2, SLICE: 4},
    "2x3g.40gb 2x shared (1 GPU), 2x shared (1 GPU)",
)
MPS = PoolMode("MPS with 4 clients", {"mode": "MPS", "mps": {"replicas": 4}}, {GPU: 8}, "4x shared")


def sliced(replicas: int) -> PoolMode:
    """TimeSlicing: between two numbers of replicas pods must go, and no GPU is reset."""
    spec = {"mode": "TimeSlicing", "timeSlicing": {"replicas": replicas}}
    return PoolMode(f"TimeSlicing with {replicas} replicas", spec, {GPU: 2 * replicas}, f"{replicas}x shared")


@dataclass
class Walk:
    """The pool, and what was seen of its pods on the way."""

    site: Site
    moved: set[tuple[str, str]] = field(default_factory=set)
    """A node that was cordoned, and one that a pod of the Deployment was bound to meanwhile. Whether it ran there in time goes by how fast its container starts, which is nothing of ours."""

    def bring(self, stop: PoolMode) -> None:
        self.site.api.apply(POLICY, policy_of(stop))
        self.wait(lambda: self._look() and self.is_ready(), f"{stop.text} to be Ready")
        self.wait(lambda: len(self.running()) == REPLICAS, "the Deployment's pods to run")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until it comes true.

        Raises: TimeoutError: in vain; the text says where everything stands.
        """
        try:
            wait_until(condition, SECONDS, what, poll=POLL)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.describe()}") from None

    def running(self, app: str = "holder") -> dict[str, str]:
        """Node by name of the Deployment's pods that run."""
        return {
            pod["metadata"]["name"]: pod["spec"]["nodeName"]
            for pod in self._staying(app)
            if pod["status"].get("phase") == "Running"
        }

    def _staying(self, app: str = "holder") -> list[Object]:
        pods = self.site.api.list(PODS, labelSelector=f"app={app}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def evicted(self, since: int = 0) -> list[str]:
        """The pods that the operator has evicted since then, one after the other."""
        return [one.name for one in self.evictions(since) if one.status < 300]

    def mark(self) -> int:
        """Of this moment, for `evictions`."""
        return self.site.plane.audit_log.stat().st_size

    def evictions(self, since: int = 0) -> list[AuditedRequest]:
        wait_logged(self.site.plane.audit_log, self.site.api)
        requests = read_requests(self.site.plane.audit_log, OPERATOR, start=since)
        return [one for one in requests if one.is_write and one.resource == "pods/eviction"]

    def computing(self, node: str) -> list[str]:
        """Pods whose process NVML shows on a GPU of the node."""
        return sorted(one["name"].removeprefix("SIMULATED-") for one in self.shown(node)["processes"])

    def shown(self, node: str) -> Object:
        """The simulated machine of the node, as `Simulator.show` returns it."""
        gpus = self.site.nodes[node].gpus
        assert gpus is not None
        return gpus.simulator.show()

    def is_reset(self, node: str) -> bool:
        """Reset all GPUs of the node; not if a pod computes there, or a program reads them right now."""
        gpus = self.site.nodes[node].gpus
        assert gpus is not None
        try:
            gpus.simulator.reset()
        except SimulatorError:
            return False
        return True

    def describe(self) -> str:
        kinds = ("gsp", "gpun", "nodes", "pods")
        tables = [self.site.kubectl("get", kind, "-A", "-o", "wide") for kind in kinds]
        log = subprocess.run(
            [str(self.site.plane.kubectl_program), "logs", "-n", launch.NAMESPACE, "-l", SELECTOR, "--tail=30"],
            env=self.site.plane.environment(),
            capture_output=True,
            text=True,
            check=False,  # it may be just what does not run
        )
        return "\n".join((*tables, log.stdout, log.stderr))

    def is_ready(self) -> bool:
        try:
            launch.wait_ready(self.site.api, "real", 0.0)
        except TimeoutError:
            return False
        return True

    def _look(self) -> bool:
        nodes = self.site.api.list("/api/v1/nodes")
        cordoned = [node["metadata"]["name"] for node in nodes if node["spec"].get("unschedulable")]
        bound = {pod["spec"]["nodeName"] for pod in self._staying() if "nodeName" in pod["spec"]}
        self.moved |= {(away, there) for away in cordoned for there in bound}
        return True


def clear(walk: Walk) -> None:
    """The policy and the pods on its GPUs end, the GPU Operator's pods go, and the GPUs are whole again as by `nvidia-smi -r`."""
    for path in (POLICY, f"{DEPLOYMENTS}/holder"):
        with contextlib.suppress(ApiError):  # where the file that asks for it runs alone
            walk.site.api.delete(path, {"propagationPolicy": "Foreground"})
    walk.wait(lambda: not walk.site.api.list(POLICY.rpartition("/")[0]), "the policy to be gone")
    walk.site.api.delete(OPERANDS, {"propagationPolicy": "Foreground"})
    walk.wait(lambda: not walk.site.api.list(OPERANDS), "the GPU Operator's DaemonSets to be gone")
    for name in walk.site.nodes:
        walk.wait(partial(walk.is_reset, name), f"pods and agent to leave the GPUs of {name}")


def helm_test(site: Site) -> tuple[int, str]:
    return site.try_helm("test", "gpusharing", "--logs", "--timeout", "300s")


def can_work(site: Site) -> None:
    status, said = helm_test(site)
    assert status == 0, said
    assert "This installation can work: errors 0" in said


def policy_of(stop: PoolMode, at_once: int = 1) -> Object:
    """The pool's policy in this mode. `at_once`: nodes that may be unavailable together."""
    selector = {"matchLabels": {"gpusharing.dev/pool": POOL}}
    return {
        "apiVersion": "gpusharing.dev/v1alpha1",
        "kind": "GPUSharingPolicy",
        "metadata": {"name": "real"},
        "spec": {"nodeSelector": selector, "rollout": {"maxUnavailable": at_once}, **stop.spec},
    }


def holding(resource: str) -> Object:
    container = {"name": "main", "image": PAUSE_IMAGE, "resources": {"limits": {resource: "1"}}}
    return {"runtimeClassName": "nvidia", "terminationGracePeriodSeconds": 1, "containers": [container]}


def deployment(name: str, replicas: int, pod: Object) -> Object:
    """Of pods with the label `app`, which is its name."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod}
    return {
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def holds(walk: Walk, stop: PoolMode) -> None:
    placed = walk.running()
    for node in NODES:
        offered = walk.site.api.get(f"/api/v1/nodes/{node}")["status"]["allocatable"]
        gpus = {name: count for name, count in offered.items() if name.startswith("nvidia.com/") and count != "0"}
        expected = {name: str(count) for name, count in stop.offered.items()}
        assert gpus == expected, "as the real kubelet tells it"
        here = sorted(name for name, where in placed.items() if where == node)
        assert walk.computing(node) == here, "each pod computes where it runs, and nobody else"
    walk.wait(lambda: used_row(walk, stop) is not None, "the agents to report what pods hold")
    for node in NODES:
        there = list(placed.values()).count(node)
        told = f"podresources of the real kubelet of {node} to tell of {there}"
        walk.wait(partial(holds_so_many, walk, node, there), told)
        here = sorted(name for name, where in placed.items() if where == node)
        walk.wait(partial(tells_who_uses_what, walk, stop, node, here), "the agent to tell who uses what")


METRICS = """
import ssl, sys, urllib.request as r
asked = r.Request("https://127.0.0.1:8080/metrics", headers={"Authorization": "Bearer " + sys.argv[1]})
print(r.urlopen(asked, context=ssl._create_unverified_context()).read().decode())
"""
READER = "reads-metrics"


def reader_token(api: Api) -> str:
    """A token of an account that may read the agents' metrics, which is made when it is absent."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": READER}}
    rbac = "rbac.authorization.k8s.io"
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": READER},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "gpusharing-metrics-reader"},
        "subjects": [{"kind": "ServiceAccount", "name": READER, "namespace": "default"}],
    }
    for path, made in (
        ("/api/v1/namespaces/default/serviceaccounts", account),
        (f"/apis/{rbac}/v1/clusterrolebindings", binding),
    ):
        try:
            api.create(path, made)
        except ApiError as error:
            if error.status != 409:
                raise
    return service_account_token(api, "default", READER)


def usage(walk: Walk, node: str, metric: str) -> dict[str, float]:
    """What the agent of a node tells Prometheus under this name, by pod; of devices under the empty name."""
    agents = walk.site.api.list(f"/api/v1/namespaces/{AGENT_NAMESPACE}/pods")
    (agent,) = [pod["metadata"]["name"] for pod in agents if pod["spec"]["nodeName"] == node]
    token = reader_token(walk.site.api)
    page = walk.site.kubectl("-n", AGENT_NAMESPACE, "exec", agent, "--", "python3", "-c", METRICS, token)
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == f"gpusharing_{metric}":
                pod = sample.labels.get("pod", "")
                found[pod] = found.get(pod, 0.0) + sample.value
    return found


def tells_who_uses_what(walk: Walk, stop: PoolMode, node: str, here: list[str]) -> bool:
    """Memory by pod, by the cgroups and log folders of the real kubelet, and slices by its podresources."""
    used = usage(walk, node, "pod_memory_used_bytes")
    slices = usage(walk, node, "device_slices").get("", 0.0)
    held = usage(walk, node, "device_slices_allocated").get("", 0.0)
    others = usage(walk, node, "device_unattributed_processes").get("", 0.0)
    expected = dict.fromkeys(here, float(MEMORY_MIB * 2**20))
    return used == expected and (slices, held, others) == (sum(stop.offered.values()), len(here), 0)


def used_row(walk: Walk, stop: PoolMode) -> "re.Match[str] | None":
    """The line of `kubectl get gsp` as the README shows it; USED follows with the agents' next readings."""
    row = walk.site.kubectl("get", "gsp").splitlines()[1]
    used = rf"{REPLICAS}/{sum(stop.offered.values()) * len(NODES)}"
    shown = rf"{re.escape(stop.mode)} +{re.escape(stop.layout)}"
    return re.match(rf"real +{shown} +2/2 +4 +{used} +True +Synced", row)


def holds_so_many(walk: Walk, node: str, devices: int) -> bool:
    return held(walk, node) == devices


def held(walk: Walk, node: str) -> int:
    """Devices that pods hold, as our agent reads it from the real kubelet's podresources."""
    status = walk.site.api.get(f"/apis/gpusharing.dev/v1alpha1/gpunodes/{node}")["status"]
    return sum((status["observed"].get("allocated") or {}).values())
