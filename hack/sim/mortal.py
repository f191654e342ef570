"""A KubeClient that dies with its process, so that an operator can be killed at any moment, as by kill -9.

After its death nothing it sends reaches the server and nothing in the process is cleaned up: every call raises
`Crash`, which no `except Exception` catches.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, TypeVar

from gpusharing.kube.client import JSON, LEASES, KubeClient, Page, Resource, WatchEvent
from hack.sim.fakefaults import Crash

Answer = TypeVar("Answer")
When = Literal["before", "after"]


class MortalClient:
    """Passes every call on to another client for as long as its process lives."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self.dead = False
        self.died = asyncio.Event()
        self.writes = 0
        """Writes so far, those of the Lease apart."""
        self._last: tuple[int, When] | None = None
        self._interference: tuple[Callable[[JSON], bool], Callable[[], object]] | None = None

    def die_at(self, write: int, when: When) -> None:
        """Die `before` (it is lost) or `after` (its answer is lost) this write, counted from 1 without the Lease's."""
        self._last = write, when

    def interfere(self, sent: Callable[[JSON], bool], act: Callable[[], object]) -> None:
        """Somebody else acts once, after the first patch with such a body was sent and before it arrives."""
        self._interference = sent, act

    def die(self) -> None:
        """Die now."""
        self.dead = True
        self.died.set()

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> JSON:
        """See KubeClient."""
        self._live()
        return await self._client.get(resource, name, namespace=namespace)

    async def pages(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 500,
    ) -> AsyncIterator[Page]:
        """See KubeClient."""
        self._live()
        async for page in self._client.pages(
            resource,
            namespace=namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            limit=limit,
        ):
            yield page

    async def watch(
        self,
        resource: Resource,
        resource_version: str,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncIterator[WatchEvent]:
        """See KubeClient."""
        self._live()
        async for event in self._client.watch(
            resource,
            resource_version,
            namespace=namespace,
            label_selector=label_selector,
            field_selector=field_selector,
        ):
            yield event

    async def create(self, resource: Resource, body: JSON, *, namespace: str | None = None) -> JSON:
        """See KubeClient."""
        return await self._write(resource, lambda: self._client.create(resource, body, namespace=namespace))

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: JSON,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> JSON:
        """See KubeClient."""
        if self._interference is not None and self._interference[0](body):
            act, self._interference = self._interference[1], None
            act()
        return await self._write(
            resource,
            lambda: self._client.patch(resource, name, body, namespace=namespace, subresource=subresource),
        )

    async def delete(self, resource: Resource, name: str, *, namespace: str | None = None, uid: str) -> None:
        """See KubeClient."""
        await self._write(resource, lambda: self._client.delete(resource, name, namespace=namespace, uid=uid))

    async def log(self, namespace: str, name: str, lines: int) -> str:
        """See KubeClient."""
        self._live()
        return await self._client.log(namespace, name, lines)

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """See KubeClient."""
        await self._write(None, lambda: self._client.evict(namespace, name, uid))

    def _live(self) -> None:
        if self.dead:
            raise Crash("this process is dead")

    async def _write(self, resource: Resource | None, send: Callable[[], Awaitable[Answer]]) -> Answer:
        self._live()
        if resource == LEASES:
            return await send()
        self.writes += 1
        number = self.writes
        self._die_if((number, "before"))
        answer = await send()
        self._die_if((number, "after"))
        return answer

    def _die_if(self, moment: tuple[int, When]) -> None:
        if self._last == moment:
            self.die()
            raise Crash(f"{moment[1]} write {moment[0]}")
