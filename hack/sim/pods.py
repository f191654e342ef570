"""Records of the pods that one watch delivers: which of them hold GPU devices, and where the pods of a DaemonSet
run."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from gpusharing.agent.kubelet import Holdings
from gpusharing.kube.client import JSON
from gpusharing.kube.pods import pod_view

ANNOTATION_MEMORY = "sim.gpusharing.dev/memory-gib"
"""On a Pod: the GPU memory that its one process uses, in GiB. Without it the pod uses none."""


@dataclass(frozen=True, slots=True)
class DeviceHolder:
    """A running pod that holds GPU devices."""

    namespace: str
    name: str
    resources: Mapping[str, int]
    """Number of devices by resource name."""
    memory_gib: int = 0
    """GPU memory that its process uses, in GiB."""


class PodBook:
    """A record of the pods that hold GPU devices, by node. One watch of all pods keeps it up to date."""

    def __init__(self) -> None:
        """Create an empty record."""
        self._by_node: dict[str, dict[str, DeviceHolder]] = {}

    def take(self, pod: JSON, gone: bool) -> None:
        """Record a version of a pod, or remove the pod if it is `gone` or holds no devices; only a pod in phase Running
        that requests GPU resources holds any. Pods without a node are ignored. Raises ValueError if the memory
        annotation of such a pod is not an integer."""
        node, uid = (pod.get("spec") or {}).get("nodeName"), pod["metadata"]["uid"]
        if not node:
            return
        counts = Counter() if gone else _device_counts(pod)
        if counts:
            self._by_node.setdefault(node, {})[uid] = _holder(pod["metadata"], counts)
        elif node in self._by_node:
            self._by_node[node].pop(uid, None)

    def holdings(self, node: str) -> Holdings:
        """Return what the kubelet of this node reports: the number of devices in use by resource name, and the number
        of pods that hold any, but no device ids."""
        pods = self._by_node.get(node, {})
        total: Counter[str] = Counter()
        for pod in pods.values():
            total.update(pod.resources)
        return Holdings(dict(sorted(total.items())), len(pods))

    def pods(self, node: str) -> Mapping[str, DeviceHolder]:
        """Return the pods of a node that hold devices, by uid, in the order in which they were first recorded as such.
        This is the record itself, which the caller must not change."""
        return self._by_node.get(node, {})


class PodBookResources:
    """The `agent.podresources.PodResources` of one node, which answers from the PodBook."""

    def __init__(self, book: PodBook, node: str) -> None:
        """Prepare to answer for `node` from `book`."""
        self._book = book
        self._node = node

    async def read(self) -> Holdings:
        """Return how many devices the pods of the node use and how many pods use any, as `PodBook.holdings` does. Never
        raises."""
        return self._book.holdings(self._node)


def _device_counts(pod: JSON) -> Counter[str]:
    """Return the number of devices that the kubelet has assigned to a pod, by resource name; empty unless the pod's
    phase is Running. A terminating pod still holds its devices."""
    if (pod.get("status") or {}).get("phase") != "Running":
        return Counter()
    return Counter(dict(pod_view(pod, {}).resources))


def _holder(metadata: JSON, counts: Mapping[str, int]) -> DeviceHolder:
    """Return the DeviceHolder of a pod with these numbers of devices, and with the memory that its annotation states.
    Raises ValueError if that is not an integer."""
    memory = (metadata.get("annotations") or {}).get(ANNOTATION_MEMORY, "0")
    return DeviceHolder(metadata.get("namespace", ""), metadata["name"], counts, int(memory))


class DaemonPods:
    """The pods of one DaemonSet, by node."""

    def __init__(self, namespace: str, label: str, value: str) -> None:
        """Create an empty record of the pods in this namespace whose label `label` has this value."""
        self.namespace = namespace
        self.label = label
        self.value = value
        self._by_node: dict[str, dict[str, JSON]] = {}

    def take(self, pod: JSON, gone: bool) -> str | None:
        """Record a version of a pod, or remove the pod if it is `gone`. Returns the name of its node. A pod of another
        DaemonSet, or without a node, is ignored, and None is returned."""
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
        """Whether the node has a pod object, in any state."""
        return bool(self._by_node.get(node))

    def running(self, node: str) -> JSON | None:
        """Return the pod whose processes run on the node, or None if there is none. Its phase must be Running. A
        terminating pod has received its SIGTERM and does not count. If several pods run, the one that was recorded
        first is returned."""
        for pod in self._by_node.get(node, {}).values():
            if "deletionTimestamp" not in pod["metadata"] and pod.get("status", {}).get("phase") == "Running":
                return pod
        return None
