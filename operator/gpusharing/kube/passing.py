"""A KubeClient in front of another one: a layer overrides the one call, or the stream, and writes only its own part."""

from collections.abc import AsyncGenerator

from gpusharing.kube.client import JSON, ApiRequest, KubeClient, WatchEvent


class PassingClient(KubeClient):
    """Passes every request on to another client."""

    def __init__(self, client: KubeClient) -> None:
        self.client = client

    async def call(self, request: ApiRequest) -> JSON:
        """See KubeClient."""
        return await self.client.call(request)

    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """See KubeClient."""
        return self.client.stream(request)
