"""Read Kubernetes quantities of countable resources.

The API server writes them in canonical form, so 2000 time-slicing shares arrive as `2k` (apimachinery v0.36.3 pkg/api/resource/suffix.go, decimal SI and binary SI suffixes).
"""

import re
from collections.abc import Mapping
from sys import intern

from gpusharing.api.names import is_gpu_resource

_SUFFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_COUNT = re.compile(r"\+?(\d{1,18})(k|M|G|Ki|Mi|Gi|m)?")


def count(quantity: object) -> int | None:
    """Return a Kubernetes quantity as a whole number; thousandths (`m`) are rounded up as the scheduler does.

    None if it is negative or is in no form that the API server writes for counts: with a decimal point, for example.
    """
    if isinstance(quantity, int) and not isinstance(quantity, bool):
        return quantity if quantity >= 0 else None
    if not isinstance(quantity, str) or not (match := _COUNT.fullmatch(quantity)):
        return None
    number, suffix = int(match[1]), match[2] or ""
    return -(-number // 1000) if suffix == "m" else number * _SUFFIX[suffix]


def gpu_counts(quantities: object) -> Mapping[str, int]:
    """Return the number of each GPU resource in a Node's allocatable, sorted by name, without those that count 0 (docs/design/nvidia.md#r12)."""
    if not isinstance(quantities, dict):
        return {}
    counts = {intern(key): count(value) for key, value in quantities.items() if is_gpu_resource(key)}
    return {key: value for key, value in sorted(counts.items()) if value}
