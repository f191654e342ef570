"""Clients for the shipped agent loop when many agents run in one process, a thousand in large tests: all share one
watch of GPUNodes."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from gpusharing.agent.loop import AgentLoop, RestartNeeded
from gpusharing.kube.client import JSON, ApiRequest, KubeClient, PassingClient, WatchEvent
from gpusharing.kube.errors import Expired


class SharedGPUNodes:
    """The GPUNodes that one watch delivers, shared by all agents. `feed.follow` calls `take`."""

    def __init__(self) -> None:
        """Create a record without GPUNodes and without watches."""
        self._nodes: dict[str, JSON] = {}
        self._listeners: dict[str, list[asyncio.Queue[WatchEvent]]] = {}

    def take(self, node: JSON, gone: bool) -> None:
        """Store a version of a GPUNode, or forget the GPUNode if it is `gone`; versions are not compared. Every open
        watch of that name gets the change: DELETED if the GPUNode is gone, otherwise MODIFIED, even if the GPUNode is
        new."""
        name = node["metadata"]["name"]
        if gone:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        for queue in self._listeners.get(name, ()):
            queue.put_nowait(WatchEvent("DELETED" if gone else "MODIFIED", node))

    def get(self, name: str) -> JSON | None:
        """Return the newest version of a GPUNode, or None if there is none. The stored object itself is returned, so
        the caller must not change it."""
        return self._nodes.get(name)

    async def changes(self, name: str, since: str) -> AsyncGenerator[WatchEvent, None]:
        """Yield the newest version of one GPUNode as a MODIFIED event, unless its resourceVersion is `since`. Then
        yield every later event, without end. Raises Expired at the start if there is no such object and `since` is not
        NOTHING_LISTED, and later when a change has a lower version than `since`, because the store was then restored
        from a backup."""
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
"""The resourceVersion of a list without items."""


class AgentAPI(PassingClient):
    """The client of one agent. Lists and watches are answered from the shared watch; every other call, even a get,
    goes to the API server."""

    def __init__(self, client: KubeClient, shared: SharedGPUNodes, name: str) -> None:
        """Wrap `client` for the agent of the node `name`, whose GPUNode is read from `shared`."""
        super().__init__(client)
        self._shared = shared
        self._name = name

    async def call(self, request: ApiRequest) -> JSON:
        """Make a call as KubeClient does. Every list is answered from the shared watch, without regard to its kind and
        filters: its only item is the agent's own GPUNode, if that exists."""
        if request.verb != "list":
            return await self.client.call(request)
        node = self._shared.get(self._name)
        version = NOTHING_LISTED if node is None else node["metadata"]["resourceVersion"]
        return {"metadata": {"resourceVersion": version}, "items": [node] if node else []}

    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """Watch the agent's own GPUNode in the shared watch, from the `resourceVersion` that the request must name; the
        filters of the request are ignored. Raises Expired if there is no such GPUNode, unless the version is
        NOTHING_LISTED, and if the store was restored from a backup."""
        return self._shared.changes(self._name, request.query["resourceVersion"])


async def run_again(agent: Callable[[], AgentLoop], pause: Callable[[], Awaitable[object]]) -> None:
    """Run the agents that `agent` creates, one after another, without end. When one raises RestartNeeded, wait for
    `pause` and run a new one, as a kubelet restarts a container. After an agent that returns, the next one starts
    without a pause. Other errors pass through."""
    while True:
        try:
            await agent().run()
        except RestartNeeded:
            await pause()
