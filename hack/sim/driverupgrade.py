"""NVIDIA's driver upgrade controller in its in-place mode, for a FakeCluster (k8s-operator-libs pkg/upgrade at 11e747a).

The driver pods are not objects: `outdated`, `broken` and `held` say how they and the pods that use GPUs behave. Drain,
jobs to wait for and the limits on parallel upgrades are left out.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from gpusharing.api.names import (
    ANNOTATION_UPGRADE_CORDONED,
    LABEL_UPGRADE_SKIP,
    LABEL_UPGRADE_STATE,
    UPGRADE_FAILED,
    UPGRADE_REQUIRED,
)
from gpusharing.kube.client import NODES, PODS
from gpusharing.kube.pods import pod_requests
from gpusharing.kube.raw import section
from hack.sim.fakecluster import FakeCluster

DONE = "upgrade-done"
_NEXT = {UPGRADE_REQUIRED: "cordon-required", "wait-for-jobs-required": "pod-deletion-required"}


@dataclass
class DriverUpgrades:
    cluster: FakeCluster
    outdated: set[str]
    """The nodes whose driver pod is not up to date yet."""
    broken: set[str] = field(default_factory=set)
    """The nodes whose driver pod does not become Ready."""
    held: set[str] = field(default_factory=set)
    """The nodes whose GPU pods cannot be deleted."""

    async def run(self, every: float = 10) -> None:
        """Move every node with a driver pod one state on, until canceled."""
        while True:
            for node in self.cluster.objects(NODES):
                self._step(node["metadata"]["name"], node)
            await asyncio.sleep(every)

    def _step(self, name: str, node: dict[str, Any]) -> None:
        labels, annotations = (node["metadata"].get(key) or {} for key in ("labels", "annotations"))
        cordoned, kept = bool(section(node, "spec").get("unschedulable")), ANNOTATION_UPGRADE_CORDONED in annotations
        synced = name not in self.outdated | self.broken
        match labels.get(LABEL_UPGRADE_STATE, ""):
            case "" | "upgrade-done" if name in self.outdated:
                self._move(name, UPGRADE_REQUIRED, {ANNOTATION_UPGRADE_CORDONED: "true"} if cordoned else {})
            case "upgrade-required" if labels.get(LABEL_UPGRADE_SKIP) == "true":
                return
            case "upgrade-required" | "wait-for-jobs-required" as state:
                self._move(name, _NEXT[state])
            case "cordon-required":
                self._move(name, "wait-for-jobs-required", unschedulable=True)
            case "pod-deletion-required" if name in self.held:
                self._move(name, UPGRADE_FAILED)
            case "pod-deletion-required":
                for pod in self.cluster.objects(PODS):
                    uses_gpu = any(key.startswith("nvidia.com/") for key in pod_requests(pod))
                    if pod["spec"].get("nodeName") == name and uses_gpu:
                        self.cluster.delete(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"])
                self._move(name, "pod-restart-required")
            case "pod-restart-required":
                self.outdated.discard(name)
                self._move(name, UPGRADE_FAILED if name in self.broken else "validation-required")
            case "upgrade-failed" | "validation-required" if synced and kept:
                self._move(name, DONE, {ANNOTATION_UPGRADE_CORDONED: None})
            case "upgrade-failed" | "validation-required" if synced:
                self._move(name, "uncordon-required")
            case "uncordon-required":
                self._move(name, DONE, unschedulable=None)

    def _move(
        self, name: str, state: str, annotations: dict[str, str | None] | None = None, **spec: bool | None
    ) -> None:
        metadata = {"labels": {LABEL_UPGRADE_STATE: state}, "annotations": annotations or {}}
        self.cluster.patch(NODES, name, {"metadata": metadata, **({"spec": spec} if spec else {})})
