"""What may leave a cluster in a support bundle: objects without what may be a secret. Pure.

Nothing is searched for secrets by its value: whatever people put them into is left out as a whole.
"""

import re
from typing import Any

from gpusharing.kube.client import JSON

REMOVED = "REMOVED"
LEFT_OUT = frozenset(
    {
        "env",
        "envFrom",
        "args",
        "command",
        "httpHeaders",
        "managedFields",
        "imagePullSecrets",
        "volumes",
        "addresses",
    }
)
"""Keys whose whole value goes: environments and command lines of containers above all."""
KEPT_ANNOTATIONS = ("gpusharing.dev/", "nvidia.com/", "deployment.kubernetes.io/", "meta.helm.sh/")
_TELLING = re.compile("passw|token|secret|credential|api.?key|private", re.IGNORECASE)


def cleaned(value: object) -> Any:
    """The same without what LEFT_OUT names, with annotations of ours and NVIDIA's only, and with REMOVED in the place
    of every text whose key speaks of a secret."""
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _cleaned(key, one) for key, one in value.items() if key not in LEFT_OUT}


def _cleaned(key: str, value: object) -> Any:
    if key == "annotations" and isinstance(value, dict):
        return {name: text for name, text in value.items() if name.startswith(KEPT_ANNOTATIONS)}
    if isinstance(value, str) and _TELLING.search(key):
        return REMOVED
    return cleaned(value)


def node_facts(raw: JSON) -> JSON:
    """Of a Node: names, labels, marks of ours, taints, what it offers and how it is."""
    status, spec = raw.get("status") or {}, raw.get("spec") or {}
    return {
        "metadata": cleaned(raw.get("metadata") or {}),
        "spec": {key: spec[key] for key in ("taints", "unschedulable") if key in spec},
        "status": {
            key: cleaned(status[key]) for key in ("allocatable", "conditions", "nodeInfo") if key in status
        },
    }
