"""GPU resources that pods request: one pod from its node, as the scheduler adds them up, and in one container, and all
pods that wait for a node."""

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
"""How the extended resource begins that every DeviceClass has since Kubernetes 1.36; the name of the class follows (k8s.io/api v0.36.3, resource/v1/types.go, ResourceDeviceClassPrefix)."""


def pod_requests(pod: JSON) -> Counter[str]:
    """Return how much of each GPU resource a node must have for the pod; resources of which the pod needs none are left out."""
    sidecars: Counter[str] = Counter()
    start: Counter[str] = Counter()
    for container in entries(pod, "spec", "initContainers"):
        beside = sidecars + container_requests(container)
        start |= beside
        if text(container, "restartPolicy") == "Always":
            sidecars = beside
    # The API server rejects ephemeral containers with requests. One that exists anyway counts like any container.
    containers = (*entries(pod, "spec", "containers"), *entries(pod, "spec", "ephemeralContainers"))
    together = sum(map(container_requests, containers), sidecars)
    return (together | start) + container_requests(
        {"resources": {"limits": section(pod, "spec", "overhead")}}
    )


def largest_requests(pod: JSON) -> Counter[str]:
    """Return, by GPU resource, the largest request of any single container of the pod, including init containers but not ephemeral ones."""
    largest: Counter[str] = Counter()
    for container in (*entries(pod, "spec", "containers"), *entries(pod, "spec", "initContainers")):
        largest |= container_requests(container)
    return largest


def container_requests(container: JSON) -> Counter[str]:
    """Return how much of each GPU resource one container requests."""
    # Requests of an extended resource equal its limits, so one of them is enough (docs/design/drain.md#g1).
    requests = {**section(container, "resources", "requests"), **section(container, "resources", "limits")}
    counts = {intern(key): count(quantity) for key, quantity in requests.items() if is_gpu_resource(key)}
    return Counter({key: 1 if number is None else number for key, number in counts.items() if number != 0})


def requests_by_class(pod: JSON) -> bool:
    """Whether a container of the pod, or an init container, requests devices by the extended resource that Kubernetes gives to every DeviceClass (BY_CLASS)."""
    containers = (*entries(pod, "spec", "containers"), *entries(pod, "spec", "initContainers"))
    return any(
        name.startswith(BY_CLASS) for one in containers for name in section(one, "resources", "limits")
    )


@dataclass(slots=True)
class PendingPods:
    """The last count of the Pending pods without a node, by the GPU resource that they request."""

    client: KubeClient
    pods: Mapping[str, int] = field(default_factory=dict)
    devices: Mapping[str, int] = field(default_factory=dict)

    async def count(self) -> None:
        """List the Pending pods without a node, and replace `pods` and `devices`."""
        pods, devices = Counter[str](), Counter[str]()
        selector = "spec.nodeName=,status.phase=Pending"
        async for page in pages_of(self.client, PODS, field_selector=selector):
            for raw in page.items:
                deleting = part(raw, "metadata", "deletionTimestamp")
                requests = {} if deleting else converted(PODS, raw, pod_requests)
                pods.update(requests.keys())
                devices.update(requests)
        self.pods, self.devices = dict(pods), dict(devices)
