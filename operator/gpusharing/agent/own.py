"""The agent's own GPUNode, from the cache that both shells share (kube/reflector.py)."""

import logging
from collections.abc import Callable
from typing import Any

from gpusharing.kube.client import GPUNODES, JSON, KubeClient
from gpusharing.kube.raw import newer
from gpusharing.kube.reflector import CacheSettings, Reflector

log = logging.getLogger(__name__)

LIST_AGAIN = 3600.0
"""Seconds; the watch reports everything, and 5,000 agents list."""
REMEMBERED = 8
"""Deleted objects of our name whose late events are ignored."""


class OwnNode:
    """Follows one GPUNode by name. It may be absent: the operator creates it."""

    def __init__(self, name: str, api: KubeClient, on_change: Callable[[], None]) -> None:
        """`on_change` is called when the object appears, disappears, is replaced or has a new request."""
        self.name = name
        self._on_change = on_change
        self._asked: tuple[str, Any] | None = None
        self._restores = 0
        """How often a write of ours got a version below the one that we knew: only a restored store answers so."""
        self._cache: Reflector[JSON] = Reflector(
            api,
            GPUNODES,
            lambda raw: raw,
            on_change=self._changed,
            on_error=self._tell,
            settings=CacheSettings(
                relist_after=LIST_AGAIN, remembered=REMEMBERED, restores=lambda: self._restores
            ),
            field_selector=f"metadata.name={name}",
        )
        self.follow = self._cache.run
        """Keep `node` current for ever; a server that is away is asked again with back-off."""

    @property
    def node(self) -> JSON | None:
        """The newest version seen, None while there is none."""
        return self._cache.items.get(self.name)

    @property
    def error(self) -> str:
        """Why the API server cannot be followed now, empty when it can."""
        if self._cache.error is not None:
            return str(self._cache.error)
        return "" if self._cache.synced.is_set() else "the API server has not been reached yet"

    @property
    def doubted(self) -> bool:
        """The server has listed an older state than it had shown. A write shows whether it lags or went back."""
        return self._cache.doubted

    def take(self, node: JSON | None, before: JSON) -> None:
        """Update the cache with the server's answer to our write on `before`; None drops the object.

        A version lower than that of `before` means that the store was restored from a backup, which is counted.
        """
        if node is None:
            self._cache.drop(self.name)
            return
        if newer(before["metadata"]["resourceVersion"], node["metadata"]["resourceVersion"]):
            self._restores += 1
        self._cache.accept(node)

    def _changed(self, _: str) -> None:
        before, self._asked = self._asked, _asks(self.node)
        if self._asked != before:
            self._on_change()

    def _tell(self, error: str) -> None:
        if error:
            log.warning("cannot follow GPUNode", extra={"error": error})
        else:
            log.info("following GPUNode", extra={"gpunode": self.name})


def _asks(node: JSON | None) -> tuple[str, Any] | None:
    return None if node is None else (node["metadata"]["uid"], node.get("spec", {}).get("request"))
