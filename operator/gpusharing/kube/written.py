"""How our two ConfigMaps tell when each of their entries was written."""

import json
from datetime import datetime

from gpusharing.api import names

ANNOTATION_WRITTEN = f"{names.PREFIX}written"
"""JSON map of entry to the time it was written: a label may point at it once the kubelet had time to bring it."""
MIG_KEY = "config.yaml"
"""The one key that mig-manager mounts (nvidia-actuators.md a.10)."""


def parse_written(text: str) -> dict[str, datetime]:
    """Read the annotation; what cannot be read counts as never stamped."""
    try:
        stamps = json.loads(text or "{}")
        times = {str(key): datetime.fromisoformat(str(stamp)) for key, stamp in stamps.items()}
    except (ValueError, AttributeError):
        return {}
    # A time without a zone cannot be compared with the clock.
    return {key: moment for key, moment in times.items() if moment.tzinfo is not None}
