"""What must be true of a pool in a mode: what the kubelets offer, who computes, and what the agents tell of it."""

import re
from functools import partial

from hack.cluster.api import Api, ApiError
from hack.cluster.kubeconfig import service_account_token
from hack.launch import AGENT_NAMESPACE
from hack.realnode.runtime import MEMORY_MIB
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.conftest import NODES
from tests.e2e.pool import REPLICAS, PoolMode, Walk


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
