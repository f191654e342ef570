"""Read raw JSON: a part that is missing or malformed counts as None, empty, 0 or False."""

import json
import re
from collections.abc import Mapping
from sys import intern
from typing import Any

from gpusharing.api.names import is_gpu_resource


def part(value: object, *path: str) -> Any:
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def section(value: object, *path: str) -> dict[str, Any]:
    found = part(value, *path)
    return found if isinstance(found, dict) else {}


def entries(value: object, *path: str) -> list[dict[str, Any]]:
    """Return the items of the list at `path` that are objects."""
    found = part(value, *path)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def text(value: object, *path: str) -> str:
    found = part(value, *path)
    return found if isinstance(found, str) else ""


def whole(value: object, *path: str) -> int:
    """Return the integer at `path`, or 0; a boolean is none."""
    found = part(value, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def from_json(written: str) -> object:
    """Return the value that a JSON text holds, or None if it is not JSON."""
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return None


def texts(value: object) -> Mapping[str, str]:
    """Return the entries of labels or annotations whose values are strings."""
    if not isinstance(value, dict):
        return {}
    return {key: item for key, item in value.items() if isinstance(item, str)}


def strings(value: object) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def interned(value: object) -> Mapping[str, str]:
    """Return labels as `texts` does, with shared strings: thousands of nodes repeat the same ones."""
    if not isinstance(value, dict):
        return {}
    return {intern(key): intern(item) for key, item in value.items() if isinstance(item, str)}


def variable(container: object, name: str) -> str:
    """Return an environment variable of a container; the last entry counts, as for the kubelet, but no `valueFrom`."""
    rows = [row for row in entries(container, "env") if row.get("name") == name]
    return text(rows[-1], "value") if rows else ""


def is_true(value: str) -> bool:
    """Whether Go's strconv.ParseBool, which NVIDIA's programs use, reads `value` as true."""
    return value in ("1", "t", "T", "true", "TRUE", "True")


def has_condition(raw: object, kind: str) -> bool:
    return any(
        condition.get("type") == kind and condition.get("status") == "True"
        for condition in entries(raw, "status", "conditions")
    )


def newer(a: str, b: str) -> bool:
    """Whether the resourceVersion `a` is a higher number than `b`; False if either is not a number."""
    try:
        return int(a) > int(b)
    except ValueError:
        return False


_SUFFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_COUNT = re.compile(r"\+?(\d{1,18})(k|M|G|Ki|Mi|Gi|m)?")


def count(quantity: object) -> int | None:
    """Return a Kubernetes quantity as a whole number, `m` rounded up; None for what no API server writes for counts.

    It writes the canonical form, so 2000 time-slicing shares arrive as `2k` (apimachinery v0.36.3
    pkg/api/resource/suffix.go).
    """
    if isinstance(quantity, int) and not isinstance(quantity, bool):
        return quantity if quantity >= 0 else None
    if not isinstance(quantity, str) or not (match := _COUNT.fullmatch(quantity)):
        return None
    number, suffix = int(match[1]), match[2] or ""
    return -(-number // 1000) if suffix == "m" else number * _SUFFIX[suffix]


def gpu_counts(quantities: object) -> Mapping[str, int]:
    """Return the number of each GPU resource that is not 0 in a Node's allocatable (docs/design/nvidia.md#r12)."""
    if not isinstance(quantities, dict):
        return {}
    counts = {intern(key): count(value) for key, value in quantities.items() if is_gpu_resource(key)}
    return {key: value for key, value in sorted(counts.items()) if value}
