"""What NVIDIA's device plugin serves differently by version: data, from k8s-device-plugin's change log and rung 3.

Up to 0.19 its resource patterns are unanchored: instances of `1g.10gb+me`, `1g.24gb+gfx` or `1g.24gb-me` are served
under the plain name `nvidia.com/mig-1g.10gb` (k8s-device-plugin PR 1807; seen with 0.19.3).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from gpusharing.planning.geometry import Layout

SUFFIXES_SINCE = (0, 20)
"""First version that serves a profile with a suffix under a name of its own."""
ADVICE = "device plugins before v0.20 serve profiles with a suffix under the plain name"

_VERSION = re.compile(r"v?(\d+)\.(\d+)\b")
_PLAIN = re.compile(r"\d+g\.\d+gb")
_NAME = re.compile(r"(nvidia\.com/mig-\d+g\.\d+gb)[.-](?:me|gfx).*?(\.shared)?")


def merges_suffixes(version: str) -> bool:
    """Whether this version (as ClusterPolicy names it, `v0.19.3-ubi9`) is known to be too old."""
    found = _VERSION.match(version)
    return found is not None and (int(found[1]), int(found[2])) < SUFFIXES_SINCE


def suffixed(layouts: Sequence[Layout | None]) -> str:
    """The first profile with a suffix; empty when there is none."""
    names = (name for layout in layouts for name, _ in layout or ())
    return next((name for name in names if not _PLAIN.fullmatch(name)), "")


def merged(resources: Mapping[str, int]) -> dict[str, int]:
    """Predicted counts as such a version serves them."""
    counts: Counter[str] = Counter()
    for name, count in resources.items():
        found = _NAME.fullmatch(name)
        counts[found[1] + (found[2] or "") if found else name] += count
    return dict(counts)
