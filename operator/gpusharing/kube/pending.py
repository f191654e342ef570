"""Pods that wait for a GPU: one LIST of the pods without a node."""

from collections import Counter

from gpusharing.kube.client import PODS, KubeClient
from gpusharing.kube.paging import pages_of
from gpusharing.kube.podrequests import pod_requests
from gpusharing.kube.raw import part


async def count_pending(client: KubeClient) -> tuple[dict[str, int], dict[str, int]]:
    """Return two counts by GPU resource name: the Pending pods without a node that ask for it, and the devices that
    they ask for. Pods that are being deleted are left out. Raises a KubeError."""
    pods, devices = Counter[str](), Counter[str]()
    selector = "spec.nodeName=,status.phase=Pending"
    async for page in pages_of(client, PODS, field_selector=selector):
        for raw in page.items:
            asked = {} if part(raw, "metadata", "deletionTimestamp") else pod_requests(raw)
            pods.update(asked.keys())
            devices.update(asked)
    return dict(pods), dict(devices)
