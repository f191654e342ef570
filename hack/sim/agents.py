"""What the shipped agent loop needs when a thousand of them run in one process: one watch shared by all of them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from gpusharing.agent.loop import AgentLoop, RestartNeeded
from gpusharing.kube.client import JSON, ApiRequest, KubeClient, WatchEvent
from gpusharing.kube.errors import Expired
from gpusharing.kube.passing import PassingClient


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

    async def changes(self, name: str, since: str) -> AsyncGenerator[WatchEvent, None]:
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


class AgentAPI(PassingClient):
    """The client of one agent: reads come from the shared watch, everything else goes to the API server."""

    def __init__(self, client: KubeClient, shared: SharedGPUNodes, name: str) -> None:
        super().__init__(client)
        self._shared = shared
        self._name = name

    async def call(self, request: ApiRequest) -> JSON:
        """See KubeClient. Every list is of the one GPUNode."""
        if request.verb != "list":
            return await self.client.call(request)
        node = self._shared.get(self._name)
        version = NOTHING_LISTED if node is None else node["metadata"]["resourceVersion"]
        return {"metadata": {"resourceVersion": version}, "items": [node] if node else []}

    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """See KubeClient. Every watch is of the one GPUNode."""
        return self._shared.changes(self._name, request.query["resourceVersion"])


async def run_again(agent: Callable[[], AgentLoop], pause: Callable[[], Awaitable[object]]) -> None:
    """The container of an agent, which the kubelet starts anew, after a pause, whenever it ends."""
    while True:
        try:
            await agent().run()
        except RestartNeeded:
            await pause()
