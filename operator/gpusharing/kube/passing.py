"""A KubeClient in front of another one. A layer overrides `call` or `stream`, and writes only its own part."""

from collections.abc import AsyncGenerator

from gpusharing.kube.client import JSON, ApiRequest, KubeClient, WatchEvent


class PassingClient(KubeClient):
    """Passes every request on to another client, unchanged."""

    def __init__(self, client: KubeClient) -> None:
        """Pass requests on to `client`."""
        self.client = client

    async def call(self, request: ApiRequest) -> JSON:
        """Pass the request on, and return the answer."""
        return await self.client.call(request)

    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """Pass the request of a watch on, and return its events."""
        return self.client.stream(request)
