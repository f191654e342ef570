"""What the shipped agent loop needs when a thousand of them run in one process: one watch shared by all of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Unpack

from gpusharing.agent.loop import AgentLoop, RestartNeeded
from gpusharing.kube.client import JSON, Filters, KubeClient, Listing, Page, Resource, WatchEvent
from gpusharing.kube.errors import Expired


class SharedGPUNodes:
    """All GPUNodes as one watch tells of them, handed out to the agents by name. `feed.follow` calls `take`."""

    def __init__(self) -> None:
        self._nodes: dict[str, JSON] = {}
        self._listeners: dict[str, list[asyncio.Queue[WatchEvent]]] = {}

    def take(self, node: JSON, gone: bool) -> None:
        """A version of a GPUNode, or its end."""
        name = node["metadata"]["name"]
        if gone:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        for queue in self._listeners.get(name, ()):
            queue.put_nowait(WatchEvent("DELETED" if gone else "MODIFIED", node))

    def get(self, name: str) -> JSON | None:
        """The newest version seen."""
        return self._nodes.get(name)

    async def changes(self, name: str, since: str) -> AsyncIterator[WatchEvent]:
        """Every version after the one with resourceVersion `since`; raises Expired when it ended unseen."""
        queue: asyncio.Queue[WatchEvent] = asyncio.Queue()
        self._listeners.setdefault(name, []).append(queue)
        try:
            node = self._nodes.get(name)
            if node is None and since != NOTHING_LISTED:
                raise Expired(f"GPUNode {name} is gone")
            if node is not None and node["metadata"]["resourceVersion"] != since:
                yield WatchEvent("MODIFIED", node)
            while True:
                event = await queue.get()
                if int(event.object["metadata"]["resourceVersion"]) < int(since):
                    raise Expired("the store was restored from a backup")
                yield event
        finally:
            self._listeners[name].remove(queue)


NOTHING_LISTED = "0"
"""resourceVersion of a list that found nothing."""


class AgentAPI:
    """`NodeAPI` of one agent: reads come from the shared watch, writes go to the API server."""

    def __init__(self, client: KubeClient, shared: SharedGPUNodes, name: str) -> None:
        self._client = client
        self._shared = shared
        self._name = name

    async def pages(self, resource: Resource, **listing: Unpack[Listing]) -> AsyncIterator[Page]:
        """The one GPUNode, whatever is asked."""
        node = self._shared.get(self._name)
        if node is None:
            yield Page([], NOTHING_LISTED)
        else:
            yield Page([node], node["metadata"]["resourceVersion"])

    def watch(
        self, resource: Resource, resource_version: str, **filters: Unpack[Filters]
    ) -> AsyncIterator[WatchEvent]:
        """The one GPUNode, whatever is asked."""
        return self._shared.changes(self._name, resource_version)

    async def served(self, resource: Resource) -> bool:
        """Asked of the API server."""
        return await self._client.served(resource)

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: JSON,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> JSON:
        """To the API server."""
        return await self._client.patch(resource, name, body, namespace=namespace, subresource=subresource)


async def run_again(agent: Callable[[], AgentLoop], pause: Callable[[], Awaitable[object]]) -> None:
    """The container of an agent, which the kubelet starts anew, after a pause, whenever it ends."""
    while True:
        try:
            await agent().run()
        except RestartNeeded:
            await pause()
