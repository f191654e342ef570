"""What an AgentLoop needs around it in tests: an API server with one GPUNode, and pods that hold devices."""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from typing import Any

from gpusharing.agent.podresources import Holdings, PodResourcesUnavailable
from gpusharing.api.gpunode import Observed
from gpusharing.kube.client import GPUNODES, JSON, Page, Resource, WatchEvent
from gpusharing.kube.errors import Expired, KubeError, NotFound

DEADLINE = 10.0
"""Seconds after which a condition that was waited for counts as never coming true."""


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for something that other threads or tasks make true."""
    async with asyncio.timeout(DEADLINE):
        while not holds():  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0.001)


class OneNodeAPI:
    """An `agent.api.NodeAPI` that holds at most one GPUNode; merge patch as in RFC 7396."""

    def __init__(self, name: str = "gpu-01") -> None:
        self.name = name
        self.node: JSON | None = None
        self.patches: list[JSON] = []
        """Bodies of the patches that were taken, in order."""
        self.away: KubeError | None = None
        """What every call raises while set."""
        self.lists = 0
        """Lists asked for."""
        self._events: list[WatchEvent] = []
        self._version = 100
        self._changed = asyncio.Condition()

    # --- the operator's side ------------------------------------------------------------------------------

    async def ask(self, request_id: str, *, quiet: bool = False) -> None:
        """Write spec.request, creating the GPUNode when it is absent."""
        node = copy.deepcopy(self.node) or {"metadata": {"name": self.name, "uid": f"uid-{self._version}"}}
        node["spec"] = {"request": {"id": request_id, "quiet": quiet}}
        await self._store("MODIFIED" if self.node else "ADDED", node)

    async def delete(self) -> None:
        """Delete the GPUNode."""
        assert self.node is not None
        await self._store("DELETED", self.node)

    async def expire(self) -> None:
        """End every watch with 410."""
        self._events.append(WatchEvent("BOOKMARK", {"expired": True}))
        async with self._changed:
            self._changed.notify_all()

    @property
    def observed(self) -> Observed | None:
        """What the agent reported."""
        found = (self.node or {}).get("status", {}).get("observed")
        return None if found is None else Observed.model_validate(found)

    async def until(self, holds: Callable[[Observed], bool]) -> Observed:
        """Wait until a report makes the condition true."""

        def reported() -> bool:
            return self.observed is not None and holds(self.observed)

        await self.until_true(reported)
        assert self.observed is not None
        return self.observed

    async def until_true(self, holds: Callable[[], bool]) -> None:
        """Wait until a call or a change makes the condition true."""
        async with asyncio.timeout(DEADLINE), self._changed:
            await self._changed.wait_for(holds)

    # --- the agent's side ---------------------------------------------------------------------------------

    async def pages(self, resource: Resource, **options: Any) -> AsyncIterator[Page]:
        """List."""
        self._check(resource, options.get("field_selector"))
        self.lists += 1
        await self._notify()
        yield Page([copy.deepcopy(self.node)] if self.node else [], str(self._version))

    async def watch(
        self, resource: Resource, resource_version: str, **options: Any
    ) -> AsyncIterator[WatchEvent]:
        """Every change after that resourceVersion."""
        self._check(resource, options.get("field_selector"))
        at = len(self._events)
        for number, event in enumerate(self._events):
            if int(event.object.get("metadata", {}).get("resourceVersion", 0)) > int(resource_version):
                at = number
                break
        while True:
            while len(self._events) <= at:
                async with self._changed:
                    await self._changed.wait()
            event = self._events[at]
            at += 1
            if event.object.get("expired"):
                raise Expired("too old resource version")
            yield WatchEvent(event.type, copy.deepcopy(event.object))

    async def patch(self, resource: Resource, name: str, body: JSON, **options: Any) -> JSON:
        """Merge patch of the status subresource."""
        assert options == {"subresource": "status"}
        self._check(resource, f"metadata.name={name}")
        if self.node is None:
            raise NotFound(f"gpunodes {name}")
        self.patches.append(body)
        await self._store("MODIFIED", _merged(self.node, body))
        return copy.deepcopy(self.node)

    def _check(self, resource: Resource, selector: object) -> None:
        if self.away is not None:
            raise self.away
        assert (resource, selector) == (GPUNODES, f"metadata.name={self.name}")

    async def _store(self, change: Any, node: JSON) -> None:
        self._version += 1
        node = copy.deepcopy(node)
        node["metadata"]["resourceVersion"] = str(self._version)
        self.node = None if change == "DELETED" else node
        self._events.append(WatchEvent(change, node))
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class FixedPods:
    """An `agent.podresources.PodResources` that says what it was told."""

    def __init__(self) -> None:
        self.holdings = Holdings()
        self.unavailable = ""

    async def read(self) -> Holdings:
        """What was set; raises while `unavailable` gives a reason."""
        if self.unavailable:
            raise PodResourcesUnavailable(self.unavailable)
        return self.holdings


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
