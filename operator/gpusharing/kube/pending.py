"""Pods that are waiting for a GPU, counted by one LIST of the pods without a node."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpusharing.kube.client import PODS, KubeClient
from gpusharing.kube.paging import pages_of
from gpusharing.kube.podrequests import pod_requests
from gpusharing.kube.raw import part


@dataclass(slots=True)
class PendingPods:
    """The last count of the Pending pods without a node, by the GPU resource that they request."""

    client: KubeClient
    pods: Mapping[str, int] = field(default_factory=dict)
    """How many pods request each resource, by resource name."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """How many devices these pods request in total, by resource name."""

    async def count(self) -> None:
        """List the Pending pods without a node, and replace `pods` and `devices`. Pods that are being deleted are not
        counted. If the LIST fails, a KubeError is raised and both stay as they were."""
        pods, devices = Counter[str](), Counter[str]()
        selector = "spec.nodeName=,status.phase=Pending"
        async for page in pages_of(self.client, PODS, field_selector=selector):
            for raw in page.items:
                requests = {} if part(raw, "metadata", "deletionTimestamp") else pod_requests(raw)
                pods.update(requests.keys())
                devices.update(requests)
        self.pods, self.devices = dict(pods), dict(devices)
