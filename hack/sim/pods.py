"""Records of the pods of one watch: which of them hold GPU devices, and where those of a DaemonSet run."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from gpusharing.agent.podresources import Holdings
from gpusharing.kube.client import JSON
from gpusharing.kube.pods import pod_view

ANNOTATION_MEMORY = "sim.gpusharing.dev/memory-gib"
"""On a Pod: the GPU memory that its one process uses, in GiB. Without it the pod uses none."""


@dataclass(frozen=True, slots=True)
class DeviceHolder:
    namespace: str
    name: str
    resources: Mapping[str, int]
    memory_gib: int = 0
    """GPU memory that its process uses, in GiB."""


class PodBook:
    """A record of the pods that hold GPU devices, by node, from one watch of all pods."""

    def __init__(self) -> None:
        self._by_node: dict[str, dict[str, DeviceHolder]] = {}

    def take(self, pod: JSON, gone: bool) -> None:
        """Record a version of a pod. Only a Running pod that requests GPU resources holds any."""
        node, uid = (pod.get("spec") or {}).get("nodeName"), pod["metadata"]["uid"]
        if not node:
            return
        counts = Counter() if gone else _device_counts(pod)
        if counts:
            self._by_node.setdefault(node, {})[uid] = _holder(pod["metadata"], counts)
        elif node in self._by_node:
            self._by_node[node].pop(uid, None)

    def holdings(self, node: str) -> Holdings:
        """Return what the kubelet of this node reports, without device ids."""
        pods = self._by_node.get(node, {})
        total: Counter[str] = Counter()
        for pod in pods.values():
            total.update(pod.resources)
        return Holdings(dict(sorted(total.items())), len(pods))

    def pods(self, node: str) -> Mapping[str, DeviceHolder]:
        return self._by_node.get(node, {})

    def uids(self, node: str) -> dict[tuple[str, str], str]:
        return {(pod.namespace, pod.name): uid for uid, pod in self.pods(node).items()}


def _device_counts(pod: JSON) -> Counter[str]:
    """Return the devices of a pod by resource name. A terminating pod still holds its devices."""
    if (pod.get("status") or {}).get("phase") != "Running":
        return Counter()
    return Counter(dict(pod_view(pod, {}).resources))


def _holder(metadata: JSON, counts: Mapping[str, int]) -> DeviceHolder:
    memory = (metadata.get("annotations") or {}).get(ANNOTATION_MEMORY, "0")
    return DeviceHolder(metadata.get("namespace", ""), metadata["name"], counts, int(memory))


class DaemonPods:
    def __init__(self, namespace: str, label: str, value: str) -> None:
        self.namespace = namespace
        self.label = label
        self.value = value
        self._by_node: dict[str, dict[str, JSON]] = {}

    def take(self, pod: JSON, gone: bool) -> str | None:
        """Record a version of a pod. Return the name of its node, or None if it is not one of these pods."""
        metadata, node = pod["metadata"], (pod.get("spec") or {}).get("nodeName")
        if metadata.get("namespace") != self.namespace or not node:
            return None
        if (metadata.get("labels") or {}).get(self.label) != self.value:
            return None
        if gone:
            self._by_node.get(node, {}).pop(metadata["uid"], None)
        else:
            self._by_node.setdefault(node, {})[metadata["uid"]] = pod
        return str(node)

    def exists(self, node: str) -> bool:
        return bool(self._by_node.get(node))

    def running(self, node: str) -> JSON | None:
        """Return the pod whose processes run on the node. A terminating one has received its SIGTERM already."""
        for pod in self._by_node.get(node, {}).values():
            if "deletionTimestamp" not in pod["metadata"] and pod.get("status", {}).get("phase") == "Running":
                return pod
        return None
