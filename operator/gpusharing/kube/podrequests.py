"""GPU resources that pods request: one pod from its node, as the scheduler adds them up, one container, and all pods that wait for a node."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import intern

from gpusharing.api.names import is_gpu_resource
from gpusharing.kube.client import JSON, PODS, KubeClient
from gpusharing.kube.paging import pages_of
from gpusharing.kube.quantity import count
from gpusharing.kube.raw import entries, part, section, text
from gpusharing.kube.unreadable import converted

BY_CLASS = "deviceclass.resource.kubernetes.io/"
"""How the extended resource begins that every DeviceClass has since Kubernetes 1.36; the name of the class follows
(k8s.io/api v0.36.3, resource/v1/types.go, ResourceDeviceClassPrefix). The scheduler makes a ResourceClaim of it."""


def pod_requests(pod: JSON) -> Counter[str]:
    """Return how much of each GPU resource a node must have for the pod.

    Containers, ephemeral containers and sidecars (init containers with the restart policy Always) run together. Each
    init container runs before them, alongside the sidecars listed above it (PodRequests of Kubernetes'
    component-helpers v0.36.3, resource/helpers.go). The pod's overhead is added.
    """
    sidecars: Counter[str] = Counter()
    start: Counter[str] = Counter()
    for container in entries(pod, "spec", "initContainers"):
        alongside = sidecars + container_requests(container)
        start |= alongside
        if text(container, "restartPolicy") == "Always":
            sidecars = alongside
    # The API server rejects ephemeral containers with requests. One that exists anyway counts like any container.
    containers = (*entries(pod, "spec", "containers"), *entries(pod, "spec", "ephemeralContainers"))
    together = sum(map(container_requests, containers), sidecars)
    overhead = {"resources": {"limits": section(pod, "spec", "overhead")}}
    return (together | start) + container_requests(overhead)


def largest_requests(pod: JSON) -> Counter[str]:
    largest: Counter[str] = Counter()
    for container in (*entries(pod, "spec", "containers"), *entries(pod, "spec", "initContainers")):
        largest |= container_requests(container)
    return largest


def container_requests(container: JSON) -> Counter[str]:
    """Return how much of each GPU resource one container requests. A quantity that cannot be read counts as 1."""
    # Requests of an extended resource equal its limits, so one of them is enough (docs/design/drain.md#g1).
    requests = {**section(container, "resources", "requests"), **section(container, "resources", "limits")}
    counts = {intern(key): count(quantity) for key, quantity in requests.items() if is_gpu_resource(key)}
    return Counter({key: 1 if number is None else number for key, number in counts.items() if number != 0})


def requests_by_class(pod: JSON) -> bool:
    """Whether a container requests devices by the resource of a DeviceClass (BY_CLASS), which need not be GPUs."""
    containers = (*entries(pod, "spec", "containers"), *entries(pod, "spec", "initContainers"))
    return any(
        name.startswith(BY_CLASS) for one in containers for name in section(one, "resources", "limits")
    )


@dataclass(slots=True)
class PendingPods:
    """The last count of the Pending pods without a node, by the GPU resource that they request."""

    client: KubeClient
    pods: Mapping[str, int] = field(default_factory=dict)
    """How many pods request each resource."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """How many devices these pods request in total."""

    async def count(self) -> None:
        """List the Pending pods without a node that are not being deleted. If that fails, the last count stays."""
        pods, devices = Counter[str](), Counter[str]()
        selector = "spec.nodeName=,status.phase=Pending"
        async for page in pages_of(self.client, PODS, field_selector=selector):
            for raw in page.items:
                deleting = part(raw, "metadata", "deletionTimestamp")
                requests = {} if deleting else converted(PODS, raw, pod_requests)
                pods.update(requests.keys())
                devices.update(requests)
        self.pods, self.devices = dict(pods), dict(devices)
