"""ConfigMaps as SIMULATED pods see them: a new pod sees the newest version, and a running one sees it after a delay."""

import zlib
from collections.abc import Mapping

from gpusharing.kube.client import JSON

_KEPT = 50
"""Number of versions that are kept. No pod sees a version that was replaced longer ago than the delay."""


class MountedConfigMaps:
    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._versions: dict[str, list[tuple[float, Mapping[str, str]]]] = {}

    def put(self, name: str, raw: JSON | None, now: float) -> bool:
        data: Mapping[str, str] = (raw or {}).get("data") or {}
        versions = self._versions.setdefault(name, [])
        if versions and versions[-1][1] == data:
            return False
        versions.append((now, data))
        del versions[:-_KEPT]
        return True

    def content(self, name: str, *, node: str, pod_started: float, now: float) -> Mapping[str, str]:
        """Return a ConfigMap as a pod sees it: changes since its start come after 40 to 100 % of the delay."""
        delay = self._delay * (0.4 + 0.6 * (zlib.crc32(node.encode()) % 1000) / 1000)
        content: Mapping[str, str] = {}
        for since, data in self._versions.get(name, ()):
            if since <= pod_started or since + delay <= now:
                content = data
        return content
