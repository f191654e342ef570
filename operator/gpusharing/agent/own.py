"""The agent's own GPUNode, from the cache that operator and agent share (kube/reflector.py)."""

import logging
from collections.abc import Callable
from typing import Any

from gpusharing.kube.client import GPUNODES, JSON, KubeClient
from gpusharing.kube.raw import newer, part, text
from gpusharing.kube.reflector import Reflector

log = logging.getLogger(__name__)

LIST_AGAIN = 3600.0
"""Seconds between two lists. They are rare, because the watch reports everything and there may be 5,000 agents."""
REMEMBERED = 8
"""How many deleted objects with our name are remembered, so that late events about them are ignored."""


class OwnNode:
    """Follows one GPUNode by name. It may not exist yet, because the operator creates it."""

    def __init__(self, name: str, api: KubeClient, on_change: Callable[[], None]) -> None:
        self.name = name
        self._on_change = on_change
        self._request: tuple[str, Any] | None = None
        self._restores = 0
        self._cache: Reflector[JSON] = Reflector(
            api,
            GPUNODES,
            lambda raw: raw,
            on_change=self._changed,
            on_error=self._log_state,
            relist_after=LIST_AGAIN,
            remembered=REMEMBERED,
            restores=lambda: self._restores,
            field_selector=f"metadata.name={name}",
        )
        self.follow = self._cache.run
        """Keeps `node` current until canceled; retries with a back-off while the server is away."""

    @property
    def node(self) -> JSON | None:
        """The newest known version of the GPUNode, or None while there is none."""
        return self._cache.items.get(self.name)

    @property
    def error(self) -> str:
        """Why the API server cannot be followed now, or has not been reached yet; empty if it is followed."""
        if self._cache.error is not None:
            return str(self._cache.error)
        return "" if self._cache.synced.is_set() else "the agent has not reached the API server yet"

    @property
    def doubted(self) -> bool:
        """Whether the server's last list was older than a state that it had shown before.

        Only a write shows whether the server lags or was restored from a backup. The next accepted list clears this.
        """
        return self._cache.doubted

    def take(self, node: JSON | None, before: JSON) -> None:
        """Store `node`, the server's answer to our write to `before`, in the cache, or drop the cached object if it is None.

        An answer with a lower version than `before` shows that the store was restored from a backup.
        """
        if node is None:
            self._cache.drop(self.name)
            return
        if newer(*(text(one, "metadata", "resourceVersion") for one in (before, node))):
            self._restores += 1
        self._cache.accept(node)

    def _changed(self, _: str) -> None:
        before, node = self._request, self.node
        self._request = (
            None if node is None else (text(node, "metadata", "uid"), part(node, "spec", "request"))
        )
        if self._request != before:
            self._on_change()

    def _log_state(self, error: str) -> None:
        if error:
            log.warning("cannot watch the GPUNode", extra={"error": error})
        else:
            log.info("following GPUNode", extra={"gpunode": self.name})
