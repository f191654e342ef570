"""A KubeClient in front of another one: every call goes through one method, so a layer writes only its own part."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar, Unpack

from gpusharing.kube.answers import EVICTION, ApiRequest
from gpusharing.kube.client import (
    JSON,
    PODS,
    VERSION,
    Filters,
    KubeClient,
    Listing,
    Page,
    Resource,
    WatchEvent,
)
from gpusharing.kube.streams import closing

Answer = TypeVar("Answer")


class PassingClient:
    """Passes every call on. All methods: see KubeClient; they also raise what `passing` and `heard` raise."""

    def __init__(self, client: KubeClient) -> None:
        self.client = client

    async def passing(self, request: ApiRequest, name: str, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """One call; a layer overrides this. `send` makes it.

        `name`: `namespace/name`, the selectors of a list, or the plural of what discovery is asked for; empty
        for the server's version.
        """
        return await send()

    def heard(self, resource: Resource, event: WatchEvent) -> bool:
        """One event of a watch arrived; returns whether to pass it on."""
        return True

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> JSON:
        """See KubeClient."""
        return await self.passing(
            ApiRequest("get", resource),
            _full(namespace, name),
            lambda: self.client.get(resource, name, namespace=namespace),
        )

    async def pages(self, resource: Resource, **listing: Unpack[Listing]) -> AsyncIterator[Page]:
        """See KubeClient. Every page is a call of its own."""
        selectors = f"{listing.get('label_selector', '')} {listing.get('field_selector', '')}".strip()
        name = _full(listing.get("namespace"), selectors)
        pages = self.client.pages(resource, **listing)
        async with closing(pages):
            more = True
            while more:
                page = await self.passing(ApiRequest("list", resource), name, lambda: anext(pages))
                more = bool(page.more)
                yield page

    async def watch(
        self, resource: Resource, resource_version: str, **filters: Unpack[Filters]
    ) -> AsyncIterator[WatchEvent]:
        """See KubeClient. Its beginning does not go through `passing`."""
        events = self.client.watch(resource, resource_version, **filters)
        async with closing(events):
            async for event in events:
                if self.heard(resource, event):
                    yield event

    async def served(self, resource: Resource) -> bool:
        """See KubeClient."""
        kinds = ApiRequest("get", Resource(resource.group, resource.version, ""))
        return await self.passing(kinds, resource.plural, lambda: self.client.served(resource))

    async def version(self) -> str:
        """See KubeClient."""
        return await self.passing(ApiRequest("get", VERSION), "", self.client.version)

    async def create(self, resource: Resource, body: JSON, *, namespace: str | None = None) -> JSON:
        """See KubeClient."""
        name = str((body.get("metadata") or {}).get("name", ""))
        return await self.passing(
            ApiRequest("create", resource),
            _full(namespace, name),
            lambda: self.client.create(resource, body, namespace=namespace),
        )

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
        return await self.passing(
            ApiRequest("patch", resource, subresource),
            _full(namespace, name),
            lambda: self.client.patch(resource, name, body, namespace=namespace, subresource=subresource),
        )

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str,
        grace: int | None = None,
    ) -> None:
        """See KubeClient."""
        await self.passing(
            ApiRequest("delete", resource),
            _full(namespace, name),
            lambda: self.client.delete(resource, name, namespace=namespace, uid=uid, grace=grace),
        )

    async def log(self, namespace: str, name: str, lines: int) -> str:
        """See KubeClient."""
        return await self.passing(
            ApiRequest("get", PODS, "log"),
            _full(namespace, name),
            lambda: self.client.log(namespace, name, lines),
        )

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """See KubeClient."""
        await self.passing(
            ApiRequest("create", PODS, EVICTION),
            _full(namespace, name),
            lambda: self.client.evict(namespace, name, uid),
        )


def _full(namespace: str | None, name: str) -> str:
    return f"{namespace}/{name}" if namespace else name
