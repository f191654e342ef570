"""Our two ConfigMaps: when each entry was written, whose they are, and what they held before."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from gpusharing.api.names import ANNOTATION_WRITTEN
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.sources import ConfigMapView
from gpusharing.planning.wanted import migfile, pluginconfig
from gpusharing.planning.wanted.configured import known_times

MIG_KEY = "config.yaml"
"""The one key that mig-manager mounts (docs/design/nvidia.md#a10)."""
KEPT = 500
"""The most entries remembered of each ConfigMap, the newest ones."""
_ABSENT = ConfigMapView({}, {})


def parse_written(text: str) -> dict[str, datetime]:
    """Read the annotation; an entry that cannot be read counts as never stamped."""
    try:
        stamps = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(stamps, dict):
        return {}
    times = {key: from_rfc3339(stamp) for key, stamp in stamps.items()}
    return {key: moment for key, moment in times.items() if moment is not None}


@dataclass(slots=True)
class OurConfigMaps:
    """The device-plugin and the mig-parted ConfigMap, and changes that people made to them.

    An entry that is named after its content can mean nothing else. Such entries are remembered, so that one that
    somebody edits or deletes while a Node names it can be restored. A restart forgets them.
    """

    plugin: ConfigMapView = _ABSENT
    mig: ConfigMapView = _ABSENT
    seen_plugin_configs: Mapping[str, str] = field(default_factory=dict)
    seen_mig_entries: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    _times: Mapping[str, datetime] = field(default_factory=dict)
    """When the entries were written, as the annotations say."""

    def read(self, plugin: ConfigMapView | None, mig: ConfigMapView | None) -> None:
        """Take over the present ConfigMaps; None for one that does not exist."""
        if plugin is self.plugin and mig is self.mig:
            return
        if plugin is not self.plugin:
            self.plugin = plugin or _ABSENT
            named = {k: v for k, v in self.plugin.data.items() if pluginconfig.is_named_after(v, k)}
            self.seen_plugin_configs = _newest({**self.seen_plugin_configs, **named})
        if mig is not self.mig:
            self.mig = mig or _ABSENT
            own = migfile.lasting_entries(self.mig.data.get(MIG_KEY, ""))
            self.seen_mig_entries = _newest({**self.seen_mig_entries, **own})
        self._times = {
            key: moment
            for found in (self.plugin, self.mig)
            for key, moment in parse_written(found.annotations.get(ANNOTATION_WRITTEN, "")).items()
        }

    @property
    def marked(self) -> bool:
        """Our label is on both, as far as they exist."""
        return all(found.labelled for found in (self.plugin, self.mig) if found.uid)

    @staticmethod
    def is_foreign(found: ConfigMapView) -> bool:
        """Somebody else created it: it is not empty, and as far as known never had a mark of ours."""
        return bool(found.data) and not found.ours

    def written(self, now: datetime) -> dict[str, datetime]:
        """When the entries of both were written, as far as known (`known_times`)."""
        return known_times(self._times, now)


def _newest(found: dict[str, Any]) -> dict[str, Any]:
    return dict(list(found.items())[-KEPT:])
