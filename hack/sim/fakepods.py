"""Pods of FakeCluster: graceful deletion, the status of PodDisruptionBudgets, the Eviction subresource.

After Kubernetes v1.36.3 (pkg/registry/core/pod/storage/eviction.go, disruption controller) as far as
docs/design/drain.md needs it. `expectedPods` is the number of matching pods, not the scale of their controller.
"""

import math
from collections.abc import Callable, Iterator

from gpusharing.kube import client as kinds
from gpusharing.kube.client import JSON, Resource
from gpusharing.kube.errors import EvictionBlocked, EvictionFailed
from hack.sim.fakestore import Store, StoredChange
from hack.sim.selectors import selects

FINISHED = ("Succeeded", "Failed")
Later = Callable[[float, Callable[[], object]], object]
"""A function that calls another one after a number of seconds, such as `loop.call_later`."""


class Pods:
    """What the API server, the kubelets and the disruption controller do with pods."""

    def __init__(self, store: Store, grace: float, later: Later | None) -> None:
        self.store = store
        self.grace = grace
        self.later = later
        store.on_commit.append(self._follow)

    def evict(self, namespace: str, name: str, uid: str | None) -> None:
        pod = self.store.get(kinds.PODS, (namespace, name))
        self.store.check_uid(pod, uid)
        ignored = _phase(pod) in (*FINISHED, "Pending") or pod["metadata"].get("deletionTimestamp")  # KK canIgnorePDB
        if not ignored:
            self._ask_budgets(pod)
        self.delete(pod)

    def delete(self, pod: JSON, *, at_once: bool = False) -> None:
        """Delete a pod: at once if no kubelet runs it, otherwise after its grace period and without finalizers."""
        metadata = pod["metadata"]
        key = (metadata["namespace"], metadata["name"])
        nobody = at_once or not (pod.get("spec") or {}).get("nodeName") or _phase(pod) in FINISHED
        if nobody and not metadata.get("finalizers"):
            self.store.remove(kinds.PODS, key)
            return
        self.store.mark_deleted(kinds.PODS, key, self.grace)
        if self.later:
            self.later(self.grace, lambda: self.finish(uid=metadata["uid"]))

    def finish(self, *, node: str | None = None, uid: str | None = None) -> list[str]:
        gone = []
        for pod in list(self.store.all(kinds.PODS)):
            metadata = pod["metadata"]
            if not metadata.get("deletionTimestamp") or metadata.get("finalizers"):
                continue
            if node not in (None, pod["spec"].get("nodeName")) or uid not in (None, metadata["uid"]):
                continue
            self.store.remove(kinds.PODS, (metadata["namespace"], metadata["name"]))
            gone.append(f"{metadata['namespace']}/{metadata['name']}")
        return gone

    def _ask_budgets(self, pod: JSON) -> None:
        budgets = [budget for budget in self._budgets(pod["metadata"]["namespace"]) if _covers(budget, pod)]
        if len(budgets) > 1:
            raise EvictionFailed(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            )
        if not budgets:
            return
        status, spec = budgets[0].get("status") or {}, budgets[0]["spec"]
        enough = status["currentHealthy"] >= status["desiredHealthy"] > 0
        if not _is_ready(pod) and (spec.get("unhealthyPodEvictionPolicy") == "AlwaysAllow" or enough):
            return
        if status["disruptionsAllowed"] < 1:
            name, needed, has = (budgets[0]["metadata"]["name"], status["desiredHealthy"], status["currentHealthy"])
            raise EvictionBlocked(f"The disruption budget {name} needs {needed} healthy pods and has {has} currently")

    def _budgets(self, namespace: str) -> Iterator[JSON]:
        return self.store.all(kinds.PDBS, namespace)

    def _follow(self, resource: Resource, change: StoredChange) -> None:
        if resource not in (kinds.PODS, kinds.PDBS):
            return
        namespace = change.last["metadata"]["namespace"]
        for budget in list(self._budgets(namespace)):
            status = self._numbers(budget)
            if budget.get("status") != status:
                key = (namespace, budget["metadata"]["name"])
                self.store.patch(kinds.PDBS, key, {"status": status}, "status")

    def _numbers(self, budget: JSON) -> JSON:
        pods = self.store.all(kinds.PODS, budget["metadata"]["namespace"])
        covered = [pod for pod in pods if _covers(budget, pod) and _phase(pod) not in FINISHED]
        healthy = sum(_is_ready(pod) and not pod["metadata"].get("deletionTimestamp") for pod in covered)
        spec, expected = budget["spec"], len(covered)
        if "maxUnavailable" in spec:
            desired = max(0, expected - _scaled(spec["maxUnavailable"], expected))
        else:
            desired = _scaled(spec.get("minAvailable", 1), expected)
        return {
            "observedGeneration": budget["metadata"].get("generation", 1),
            "expectedPods": expected,
            "desiredHealthy": desired,
            "currentHealthy": healthy,
            "disruptionsAllowed": max(0, healthy - desired) if expected else 0,
        }


def _covers(budget: JSON, pod: JSON) -> bool:
    return selects(budget["spec"].get("selector"), pod["metadata"].get("labels") or {})


def _phase(pod: JSON) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def _is_ready(pod: JSON) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(row.get("type") == "Ready" and row.get("status") == "True" for row in conditions)


def _scaled(value: int | str, total: int) -> int:
    """Return a number, or a percentage of `total`, rounded up as for both fields of a PodDisruptionBudget."""
    return math.ceil(total * int(value.removesuffix("%")) / 100) if isinstance(value, str) else value
