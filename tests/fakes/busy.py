"""An API server that refuses calls with a 429 as it likes, in front of a SIMULATED one."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from gpusharing.kube.answers import ApiRequest
from gpusharing.kube.client import LEASES, KubeClient, Page, Resource, WatchEvent
from gpusharing.kube.errors import Throttled
from gpusharing.kube.passing import PassingClient

Answer = TypeVar("Answer")


class BusyClient(PassingClient):
    """Raises Throttled instead of passing a call on where `refuses` says so. The calls of a Lease always pass."""

    def __init__(
        self, client: KubeClient, refuses: Callable[[ApiRequest], bool], retry_after: float = 30.0
    ) -> None:
        super().__init__(client)
        self._refuses, self._retry_after = refuses, retry_after

    def _ask(self, request: ApiRequest) -> None:
        if request.resource != LEASES and self._refuses(request):
            raise Throttled("too many requests", self._retry_after)

    async def passing(self, request: ApiRequest, name: str, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """See PassingClient."""
        self._ask(request)
        return await send()

    async def pages(self, resource: Resource, **more: Any) -> AsyncIterator[Page]:
        """See KubeClient. A real server is not asked again after the last page."""
        async for page in self.client.pages(resource, **more):
            self._ask(ApiRequest("list", resource))
            yield page

    async def watch(
        self, resource: Resource, resource_version: str, **more: Any
    ) -> AsyncIterator[WatchEvent]:
        """See KubeClient."""
        self._ask(ApiRequest("watch", resource))
        async for event in self.client.watch(resource, resource_version, **more):
            yield event
