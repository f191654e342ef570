"""Clients for the shipped agent loop, when up to a thousand agents run in one process and share one watch."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from gpusharing.agent.loop import AgentLoop, RestartNeeded
from gpusharing.kube.client import JSON, ApiRequest, KubeClient, PassingClient, WatchEvent
from gpusharing.kube.errors import Expired


class SharedGPUNodes:
    """The GPUNodes that one watch delivers, shared by all agents."""

    def __init__(self) -> None:
        self._nodes: dict[str, JSON] = {}
        self._listeners: dict[str, list[asyncio.Queue[WatchEvent]]] = {}

    def take(self, node: JSON, gone: bool) -> None:
        """Store a version of a GPUNode, or forget it if it is `gone`, and pass it on to the open watches of that name."""
        name = node["metadata"]["name"]
        if gone:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        for queue in self._listeners.get(name, ()):
            queue.put_nowait(WatchEvent("DELETED" if gone else "MODIFIED", node))

    def get(self, name: str) -> JSON | None:
        return self._nodes.get(name)

    async def changes(self, name: str, since: str) -> AsyncGenerator[WatchEvent, None]:
        """Yield one GPUNode unless it is `since`, then every event. Raises Expired after a deletion or a backup."""
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


class AgentAPI(PassingClient):
    def __init__(self, client: KubeClient, shared: SharedGPUNodes, name: str) -> None:
        super().__init__(client)
        self._shared = shared
        self._name = name

    async def call(self, request: ApiRequest) -> JSON:
        if request.verb != "list":
            return await self.client.call(request)
        node = self._shared.get(self._name)
        version = NOTHING_LISTED if node is None else node["metadata"]["resourceVersion"]
        return {"metadata": {"resourceVersion": version}, "items": [node] if node else []}

    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        return self._shared.changes(self._name, request.query["resourceVersion"])


async def run_again(agent: Callable[[], AgentLoop], pause: Callable[[], Awaitable[object]]) -> None:
    """Run one agent after another without end. After RestartNeeded wait for `pause`, as a kubelet restarts a container."""
    while True:
        try:
            await agent().run()
        except RestartNeeded:
            await pause()
