"""An API server that takes its time, behind a client that has slots as HttpClient has. In virtual time."""

import asyncio
from dataclasses import replace

from gpusharing.api.names import STOP
from gpusharing.kube.client import JSON, ApiRequest, KubeClient, PassingClient, Resource
from gpusharing.kube.errors import KubeError
from gpusharing.kube.http import Limits, OnCall


class SlowClient(PassingClient):
    """Passes each call on after `seconds`, at most so many at once as HttpClient makes; watches do not count."""

    def __init__(
        self,
        client: KubeClient,
        seconds: float,
        *,
        apart: Resource | None = None,
        apart_seconds: float | None = None,
        on_call: OnCall = lambda _request, _status: None,
    ) -> None:
        """Calls for `apart` have slots of their own, as the Lease's and its stop's have in the shipped process (see test_main.py)."""
        self.seconds = seconds
        self.waited: dict[Resource, float] = {}
        """The longest that a call of each kind waited for its slot, in seconds."""
        super().__init__(client)
        self._apart = apart
        self._apart_seconds = seconds if apart_seconds is None else apart_seconds
        self._on_call = on_call
        self._slots = asyncio.Semaphore(Limits().parallel)
        self._own = asyncio.Semaphore(Limits().parallel)

    async def call(self, request: ApiRequest) -> JSON:
        resource, clock = request.resource, asyncio.get_running_loop().time
        begun, status = clock(), 200
        own = self._apart is not None and (resource == self._apart or request.name == STOP)
        async with self._own if own else self._slots:
            self.waited[resource] = max(self.waited.get(resource, 0.0), clock() - begun)
            if request.verb not in ("get", "list"):
                request.before_send()
            sent = replace(request, before_send=lambda: None)  # it has left; the rest is the server's slowness
            await asyncio.sleep(self._apart_seconds if own else self.seconds)
            try:
                return await self.client.call(sent)
            except KubeError:
                status = 400
                raise
            finally:
                self._on_call(request, status)
