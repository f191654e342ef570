"""An API server that refuses calls with a 429 as it likes, in front of a SIMULATED one."""

from collections.abc import AsyncGenerator, Callable

from gpusharing.kube.client import JSON, LEASES, ApiRequest, KubeClient, PassingClient, WatchEvent
from gpusharing.kube.errors import Throttled


class BusyClient(PassingClient):
    """Raises Throttled instead of passing a request on where `refuses` says so. Those about a Lease always pass."""

    def __init__(self, client: KubeClient, refuses: Callable[[ApiRequest], bool], retry_after: float = 30.0) -> None:
        super().__init__(client)
        self._refuses, self._retry_after = refuses, retry_after

    def _ask(self, request: ApiRequest) -> None:
        if request.resource != LEASES and self._refuses(request):
            raise Throttled("too many requests", self._retry_after)

    async def call(self, request: ApiRequest) -> JSON:
        self._ask(request)
        return await self.client.call(request)

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        self._ask(request)
        async for event in self.client.stream(request):
            yield event
