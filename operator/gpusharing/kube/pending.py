"""Pods that wait for a GPU: one LIST of the pods without a node."""

from collections import Counter

from gpusharing.api.names import is_gpu_resource
from gpusharing.kube.client import PODS, KubeClient
from gpusharing.kube.convert_pods import pod_view
from gpusharing.kube.paging import pages_of


async def count_pending(client: KubeClient) -> dict[str, int]:
    """GPU resource name to Pending pods without a node that ask for it. Raises a KubeError."""
    counts: Counter[str] = Counter()
    selector = "spec.nodeName=,status.phase=Pending"
    async for page in pages_of(client, PODS, field_selector=selector):
        for raw in page.items:
            counts.update(filter(is_gpu_resource, pod_view(raw, {}).resources))
    return dict(counts)
