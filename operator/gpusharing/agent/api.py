"""What the agent needs of the Kubernetes API: three verbs of KubeClient, so that any KubeClient serves."""

from collections.abc import AsyncIterator
from typing import Protocol

from gpusharing.kube.client import JSON, Page, Resource, WatchEvent


class NodeAPI(Protocol):
    """The part of `kube.client.KubeClient` that the agent uses; same meaning, same errors."""

    def pages(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 500,
    ) -> AsyncIterator[Page]:
        """List page by page."""
        ...

    def watch(
        self,
        resource: Resource,
        resource_version: str,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncIterator[WatchEvent]:
        """Follow changes; ends quietly when the server closes, raises Expired on 410."""
        ...

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
