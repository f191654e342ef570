"""What one watch of all pods tells: who holds GPU devices, and which pods of a DaemonSet run where."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from gpusharing.agent.podresources import Holdings
from gpusharing.kube.client import JSON
from gpusharing.kube.convert_pods import pod_view

ANNOTATION_MEMORY = "sim.gpusharing.dev/memory-gib"
"""On a Pod: how much GPU memory its one process takes, in GiB; without it, it takes nothing."""


@dataclass(frozen=True, slots=True)
class DeviceHolder:
    """A pod that holds GPU devices."""

    namespace: str
    name: str
    resources: Mapping[str, int]
    memory_gib: int = 0


class PodBook:
    """Pods that hold GPU devices, by node, as one watch of all pods tells."""

    def __init__(self) -> None:
        self._by_node: dict[str, dict[str, DeviceHolder]] = {}

    def take(self, pod: JSON, gone: bool) -> None:
        """A version of a pod, or its end."""
        node, uid = (pod.get("spec") or {}).get("nodeName"), pod["metadata"]["uid"]
        if not node:
            return
        held = Counter() if gone else _held(pod)
        if held:
            self._by_node.setdefault(node, {})[uid] = _holder(pod["metadata"], held)
        elif node in self._by_node:
            self._by_node[node].pop(uid, None)

    def holdings(self, node: str) -> Holdings:
        """What the kubelet of that node would answer."""
        pods = self._by_node.get(node, {})
        total: Counter[str] = Counter()
        for pod in pods.values():
            total.update(pod.resources)
        return Holdings(dict(sorted(total.items())), len(pods))

    def pods(self, node: str) -> Mapping[str, DeviceHolder]:
        """By uid, in the order in which they began to run."""
        return self._by_node.get(node, {})


class PodBookResources:
    """`agent.podresources.PodResources` of one node, from the book."""

    def __init__(self, book: PodBook, node: str) -> None:
        self._book = book
        self._node = node

    async def read(self) -> Holdings:
        """Never unavailable."""
        return self._book.holdings(self._node)


def _held(pod: JSON) -> Counter[str]:
    """Devices that the kubelet has given to a pod: a running one's, terminating or not."""
    if (pod.get("status") or {}).get("phase") != "Running":
        return Counter()
    return Counter(dict(pod_view(pod, {}).resources))


def _holder(metadata: JSON, held: Mapping[str, int]) -> DeviceHolder:
    memory = (metadata.get("annotations") or {}).get(ANNOTATION_MEMORY, "0")
    return DeviceHolder(metadata.get("namespace", ""), metadata["name"], held, int(memory))


class DaemonPods:
    """The pods of one DaemonSet, by node."""

    def __init__(self, namespace: str, label: str, value: str) -> None:
        """Told apart by namespace and one label."""
        self.namespace = namespace
        self.label = label
        self.value = value
        self._by_node: dict[str, dict[str, JSON]] = {}

    def take(self, pod: JSON, gone: bool) -> str | None:
        """A version of any pod; the node that it is about, None when it is another DaemonSet's."""
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
        """Whether there is a pod object on that node, in whatever state."""
        return bool(self._by_node.get(node))

    def running(self, node: str) -> JSON | None:
        """The pod whose processes run there; one that is being deleted has got its SIGTERM."""
        for pod in self._by_node.get(node, {}).values():
            if "deletionTimestamp" not in pod["metadata"] and pod.get("status", {}).get("phase") == "Running":
                return pod
        return None
