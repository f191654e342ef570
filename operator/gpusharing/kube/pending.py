"""Pods that wait for a GPU: one LIST of the pods without a node."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpusharing.kube.client import PODS, KubeClient
from gpusharing.kube.paging import pages_of
from gpusharing.kube.podrequests import pod_requests
from gpusharing.kube.raw import part


@dataclass(slots=True)
class PendingPods:
    """The last count of the Pending pods without a node, by the GPU resource that they ask for."""

    client: KubeClient
    pods: Mapping[str, int] = field(default_factory=dict)
    """How many pods ask for it."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """How many devices they ask for together."""

    async def count(self) -> None:
        """Count again. Pods that are being deleted are left out. Raises a KubeError."""
        pods, devices = Counter[str](), Counter[str]()
        selector = "spec.nodeName=,status.phase=Pending"
        async for page in pages_of(self.client, PODS, field_selector=selector):
            for raw in page.items:
                asked = {} if part(raw, "metadata", "deletionTimestamp") else pod_requests(raw)
                pods.update(asked.keys())
                devices.update(asked)
        self.pods, self.devices = dict(pods), dict(devices)
