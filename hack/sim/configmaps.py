"""ConfigMaps as SIMULATED pods see them: a pod starts with the newest version, and later ones come with delay."""

import zlib
from collections.abc import Mapping

from gpusharing.kube.client import JSON

_KEPT = 50
"""Versions remembered; one that is older than the delay is never asked for."""


class MountedConfigMaps:
    """Every ConfigMap of one namespace, with the moments at which its content changed."""

    def __init__(self, delay: float) -> None:
        """`delay`: longest time, in simulated seconds, until a running pod sees a new version."""
        self._delay = delay
        self._versions: dict[str, list[tuple[float, Mapping[str, str]]]] = {}

    def put(self, name: str, raw: JSON | None, now: float) -> bool:
        """Take over a version, None for a deleted object; False when the content is the same."""
        data: Mapping[str, str] = (raw or {}).get("data") or {}
        versions = self._versions.setdefault(name, [])
        if versions and versions[-1][1] == data:
            return False
        versions.append((now, data))
        del versions[:-_KEPT]
        return True

    def seen(self, name: str, *, node: str, pod_started: float, now: float) -> Mapping[str, str]:
        """The content as a pod of that node sees it now; empty when there is none. Each node has its own delay."""
        delay = self._delay * (0.4 + 0.6 * (zlib.crc32(node.encode()) % 1000) / 1000)
        seen: Mapping[str, str] = {}
        for since, data in self._versions.get(name, ()):
            if since <= pod_started or since + delay <= now:
                seen = data
        return seen
