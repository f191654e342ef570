"""A KubeClient that dies with its process, and whose calls a test can disturb one by one.

Once dead, as after kill -9, it sends nothing to the server and cleans up nothing: every call raises `Crash`, which no
`except Exception` catches.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Literal

from gpusharing.kube.client import JSON, LEASES, ApiRequest, KubeClient, PassingClient, Resource, WatchEvent
from gpusharing.kube.errors import KubeError
from hack.sim.fakefaults import Crash

When = Literal["before", "after"]
Disturbance = Callable[[Resource, str], object]
"""Called with the kind and the name of the written object. It may raise the error that the caller gets."""


class MortalClient(PassingClient):
    """Passes every call on to another client until its simulated process dies."""

    def __init__(self, client: KubeClient) -> None:
        super().__init__(client)
        self.dead = False
        self.died = asyncio.Event()
        self.writes = 0
        """Number of writes so far; writes to the Lease do not count."""
        self.lose_events = 0
        """Number of the next watch events that are withheld from the process."""
        self._disturbances: dict[tuple[int, When], Disturbance] = {}
        self._interference: tuple[Callable[[JSON], bool], Callable[[], object]] | None = None
        self._cut: tuple[Resource, KubeError] | None = None

    def disturb(self, write: int, when: When, disturbance: Disturbance) -> None:
        """Call `disturbance` before or after a write, counted from 1 without those to the Lease."""
        self._disturbances[write, when] = disturbance

    def die_at(self, write: int, when: When) -> None:
        """Let the process die before write number `write` reaches the server, or after it, so that its answer is lost."""

        def end(resource: Resource, name: str) -> None:
            self.die()
            raise Crash(f"{when} write {write} to {resource.plural} {name}")

        self.disturb(write, when, end)

    def interfere(self, sent: Callable[[JSON], bool], act: Callable[[], object]) -> None:
        """Call `act` once, just before the first patch whose body satisfies `sent` reaches the server."""
        self._interference = sent, act

    def cut(self, resource: Resource, error: KubeError) -> None:
        """Make every write to this kind raise `error` from now on."""
        self._cut = resource, error

    def die(self) -> None:
        self.dead = True
        self.died.set()

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        async with aclosing(self.client.stream(request)) as events:
            async for event in events:
                self._live()
                if self.lose_events > 0:
                    self.lose_events -= 1
                else:
                    yield event

    async def call(self, request: ApiRequest) -> JSON:
        if request.verb == "patch" and self._interference is not None and self._interference[0](request.body or {}):
            act, self._interference = self._interference[1], None
            act()
        self._live()
        if request.verb in ("get", "list"):
            return await self.client.call(request)
        resource = request.resource
        if self._cut is not None and resource == self._cut[0]:
            raise self._cut[1]
        if resource == LEASES:
            return await self.client.call(request)
        self.writes += 1
        number, name = self.writes, request.full_name.rpartition("/")[2]
        self._disturb(number, "before", resource, name)
        try:
            return await self.client.call(request)
        finally:
            self._disturb(number, "after", resource, name)

    def _live(self) -> None:
        if self.dead:
            raise Crash("this process is dead")

    def _disturb(self, number: int, when: When, resource: Resource, name: str) -> None:
        if disturbance := self._disturbances.get((number, when)):
            disturbance(resource, name)
