"""A KubeClient that dies with its process, and whose calls can be disturbed one by one.

After its death, as by kill -9, nothing it sends reaches the server and nothing in the process is cleaned up: every
call raises `Crash`, which no `except Exception` catches.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Literal

from gpusharing.kube.client import JSON, LEASES, ApiRequest, KubeClient, Resource, WatchEvent
from gpusharing.kube.errors import KubeError
from gpusharing.kube.passing import PassingClient
from hack.sim.fakefaults import Crash

When = Literal["before", "after"]
Disturbance = Callable[[Resource, str], object]
"""Told what is written and its name; may raise what the caller is to see."""


class MortalClient(PassingClient):
    """Passes every call on to another client for as long as its process lives."""

    def __init__(self, client: KubeClient) -> None:
        super().__init__(client)
        self.dead = False
        self.died = asyncio.Event()
        self.writes = 0
        """Writes so far, those of the Lease apart."""
        self.lose_events = 0
        """So many events of watches are still to be kept from the process."""
        self._disturbances: dict[tuple[int, When], Disturbance] = {}
        self._interference: tuple[Callable[[JSON], bool], Callable[[], object]] | None = None
        self._cut: tuple[Resource, KubeError] | None = None

    def disturb(self, write: int, when: When, disturbance: Disturbance) -> None:
        """Do something before this write reaches the server, or after it did and before the answer arrives.

        Writes are counted from 1, those of the Lease apart.
        """
        self._disturbances[write, when] = disturbance

    def die_at(self, write: int, when: When) -> None:
        """Die `before` (it is lost) or `after` (its answer is lost) this write."""

        def end(resource: Resource, name: str) -> None:
            self.die()
            raise Crash(f"{when} write {write} to {resource.plural} {name}")

        self.disturb(write, when, end)

    def interfere(self, sent: Callable[[JSON], bool], act: Callable[[], object]) -> None:
        """Somebody else acts once, after the first patch with such a body was sent and before it arrives."""
        self._interference = sent, act

    def cut(self, resource: Resource, error: KubeError) -> None:
        """From now on no write to this kind gets through."""
        self._cut = resource, error

    def die(self) -> None:
        """Die now."""
        self.dead = True
        self.died.set()

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """See KubeClient."""
        async with aclosing(self.client.stream(request)) as events:
            async for event in events:
                self._live()
                if self.lose_events > 0:
                    self.lose_events -= 1
                else:
                    yield event

    async def call(self, request: ApiRequest) -> JSON:
        """See KubeClient."""
        if (
            request.verb == "patch"
            and self._interference is not None
            and self._interference[0](request.body or {})
        ):
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
