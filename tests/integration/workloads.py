"""Pods that hold GPUs, with the real ReplicaSet controller, scheduler and disruption controller; kwok runs them."""

from hack.cluster.api import Object
from tests.integration.product import RESOURCES, Pool

PODS = "/api/v1/namespaces/default/pods"
REPLICA_SETS = "/apis/apps/v1/namespaces/default/replicasets"
CLAIM_TEMPLATES = f"{RESOURCES}/namespaces/default/resourceclaimtemplates"
PDBS = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"


def pod_spec(node: str, resource: str = "nvidia.com/gpu") -> Object:
    """One container on that node that asks for one of the resource; for nothing when that is empty."""
    limits = {"limits": {resource: "1"}} if resource else {}
    container = {"name": "main", "image": "simulated", "resources": limits}
    return {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
    }


def claiming(pool: Pool) -> Object:
    """What a pod says besides to get a whole GPU by a ResourceClaim of its own: further fields of a Workload's pods."""
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}
    manifest = {"metadata": {"name": f"{pool.name}-gpu"}, "spec": {"spec": {"devices": {"requests": [request]}}}}
    made = pool.create(CLAIM_TEMPLATES, manifest)
    claim = {"name": "gpu", "resourceClaimTemplateName": made["metadata"]["name"]}
    return {"spec": {"resourceClaims": [claim]}}


class Workload:
    """A ReplicaSet whose pods run on one node, and all pods with its `app` label."""

    def __init__(
        self,
        pool: Pool,
        node: str,
        replicas: int,
        *,
        app: str = "",
        resource: str = "nvidia.com/gpu",
        more: Object | None = None,
    ):
        """Pods of several workloads may share an `app`, and so a PodDisruptionBudget.

        `more`: further fields of the pods' metadata and spec.
        """
        wanted = more or {}
        metadata = wanted.get("metadata", {})
        self.pool = pool
        self.app = app or pool.name
        labels = {"app": self.app, "node": node}
        manifest = {
            "metadata": {"name": f"{self.app}-on-{node}"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {**metadata, "labels": {**metadata.get("labels", {}), **labels}},
                    "spec": {**pod_spec(node, resource), **wanted.get("spec", {})},
                },
            },
        }
        self.name = str(pool.create(REPLICA_SETS, manifest)["metadata"]["name"])
        self._labels = labels

    def pods(self) -> list[Object]:
        selector = ",".join(f"{key}={value}" for key, value in self._labels.items())
        found = self.pool.api.list(PODS, labelSelector=selector)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def running(self) -> list[str]:
        return sorted(pod["metadata"]["name"] for pod in self.pods() if pod["status"]["phase"] == "Running")

    def wait_running(self, count: int) -> list[str]:
        """Until that many run, and the controller's status says so too: budgets count by it."""

        def run() -> bool:
            status = self.pool.api.get(f"{REPLICA_SETS}/{self.name}").get("status", {})
            return len(self.running()) == count and status.get("readyReplicas", 0) == count

        self.pool.wait(run, f"{count} pods of {self.name} to run", self.pods)
        return self.running()

    def scale(self, replicas: int) -> None:
        self.pool.api.merge_patch(f"{REPLICA_SETS}/{self.name}", {"spec": {"replicas": replicas}})


def guard(pool: Pool, app: str, allowed: int, **spec: object) -> str:
    """A PodDisruptionBudget over an app; returns when its controller has worked it out."""
    manifest = {"metadata": {"name": f"{app}-guard"}, "spec": {"selector": {"matchLabels": {"app": app}}, **spec}}
    name = str(pool.create(PDBS, manifest)["metadata"]["name"])

    def known() -> bool:
        status = pool.api.get(f"{PDBS}/{name}").get("status", {})
        return bool(status.get("expectedPods")) and status.get("disruptionsAllowed") == allowed

    pool.wait(known, f"budget {name} to allow {allowed}", lambda: pool.api.get(f"{PDBS}/{name}").get("status"))
    return f"default/{name}"
