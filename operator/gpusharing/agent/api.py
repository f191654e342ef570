"""What the agent needs of the Kubernetes API: a part of KubeClient, so that any KubeClient serves."""

from typing import Protocol

from gpusharing.kube.client import JSON, Followable, Resource


class NodeAPI(Followable, Protocol):
    """The part of `kube.client.KubeClient` that the agent uses; same meaning, same errors."""

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: JSON,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> JSON:
        """JSON merge patch; returns the object as it is now."""
        ...
