"""The agent's own GPUNode: the newest version seen, kept current by list and watch."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from gpusharing.agent.api import NodeAPI
from gpusharing.kube.client import GPUNODES, JSON
from gpusharing.kube.errors import Expired, KubeError

log = logging.getLogger(__name__)


class Backoff:
    """Seconds to wait after failures in a row: doubled each time up to a limit, jittered."""

    def __init__(self, first: float, last: float, jitter: Callable[[], float]) -> None:
        self.first = self._next = first
        self._last = last
        self._jitter = jitter

    def after_failure(self) -> float:
        """How long to wait now."""
        delay, self._next = self._next, min(self._next * 2, self._last)
        return delay * self._jitter()

    def success(self) -> None:
        """Start from the beginning at the next failure."""
        self._next = self.first


class OwnNode:
    """Follows one GPUNode by name. It may be absent: the operator creates it."""

    def __init__(self, name: str, api: NodeAPI, backoff: Backoff, on_change: Callable[[], None]) -> None:
        """`on_change` is called when the object comes, goes, is replaced or asks something new."""
        self.name = name
        self.node: JSON | None = None
        """The newest version seen, None while there is none."""
        self.error = "the API server was not reached yet"
        """Why the API server cannot be followed now, empty when it can."""
        self._api = api
        self._backoff = backoff
        self._on_change = on_change

    async def follow(self) -> None:
        """Keep `node` current for ever; a server that is away is asked again with back-off."""
        resource_version = ""
        while True:
            try:
                if not resource_version:
                    resource_version = await self._list()
                resource_version = await self._watch(resource_version)
                # A server that ends every watch at once is not hammered.
                await asyncio.sleep(self._backoff.first)
            except Expired:
                resource_version = ""
            except KubeError as error:
                if self.error != str(error):
                    log.warning("cannot follow GPUNode", extra={"error": str(error)})
                self.error = str(error)
                resource_version = ""
                await asyncio.sleep(self._backoff.after_failure())

    def take(self, node: JSON | None) -> None:
        """Take over a version, unless a newer one of the same object is known already."""
        if node is not None and self.node is not None and _is_older(node, self.node):
            return
        changed = _asks(node) != _asks(self.node)
        self.node = node
        if changed:
            self._on_change()

    @property
    def _selector(self) -> str:
        return f"metadata.name={self.name}"

    async def _list(self) -> str:
        found, resource_version = None, ""
        async for page in self._api.pages(GPUNODES, field_selector=self._selector):
            resource_version = page.resource_version
            found = page.items[0] if page.items else found
        self._reached()
        self.take(found)
        return resource_version

    async def _watch(self, resource_version: str) -> str:
        """Follow until the server closes; returns where to go on."""
        async for event in self._api.watch(GPUNODES, resource_version, field_selector=self._selector):
            self._reached()
            resource_version = event.object["metadata"]["resourceVersion"]
            if event.type == "DELETED":
                self.take(None)
            elif event.type != "BOOKMARK":
                self.take(event.object)
        return resource_version

    def _reached(self) -> None:
        if self.error:
            log.info("following GPUNode", extra={"gpunode": self.name})
        self.error = ""
        self._backoff.success()


def _uid(node: JSON) -> str:
    uid: str = node["metadata"]["uid"]
    return uid


def _is_older(node: JSON, known: JSON) -> bool:
    return _uid(node) == _uid(known) and _version(node) < _version(known)


def _version(node: JSON) -> int:
    return int(node["metadata"]["resourceVersion"])


def _asks(node: JSON | None) -> tuple[str, Any] | None:
    return None if node is None else (_uid(node), node.get("spec", {}).get("request"))
