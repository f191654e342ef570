"""Is a node's driver safe for a change? NVIDIA names some that are not, and an admin may list more."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from gpusharing.api.settingtypes import listed
from gpusharing.planning.gpus.geometry import Layout

CVE = "CVE-2026-24197"
FIXED: Mapping[int, str] = {535: "535.309.01", 580: "580.159.03", 595: "595.71.05"}
"""The first fixed version of each affected branch of the Linux driver, by the number of the branch.

CVE-2026-24197: memory routing of MIG partitions starts from an insecure default, so that repartitioning may corrupt
data or hang, beyond the tenant that caused it. The versions are those of NVIDIA's record (bulletin 5821,
https://github.com/NVIDIA/product-security/blob/5f2f483bdb97b934730c448e6f6c54e04212dd0f/2026/5821/CVE-2026-24197.json).
Of other old branches NVIDIA says only that they "might also be affected", so only an admin can list them.
"""
HANGING = frozenset({"570.124.06", "570.133.20", "570.148.08", "570.158.01"})
"""Drivers under which pods hang on a node that has MIG instances beside whole GPUs. NVIDIA/gpu-operator#1361, and the
known issues of GPU Operator 25.3 in NVIDIA's release notes."""
NOT_HANGING = "570.172.08"
"""The first version of branch 570 in which pods no longer hang, according to NVIDIA/gpu-operator#1361."""
_VERSION = re.compile(r"\d+(\.\d+)*")


def _find_no_version(entry: str) -> str:
    return "" if _VERSION.fullmatch(entry) else f"{entry!r} is neither a driver version nor the beginning of one"


DriverVersions = Annotated[tuple[str, ...], listed(_find_no_version)]
"""Driver versions or their leading parts, such as `570` or `570.86`."""


def find_driver_flaw(version: str, named: Iterable[str], *, refuse_affected: bool) -> str:
    """Return why no GPU may be repartitioned under this driver; empty if nothing, or not even its version, is known.

    `named` has the versions, or leading parts of versions (`570`, `570.86`), that an admin refuses.
    """
    numbers = _numbers(version)
    if not numbers:
        return ""
    for name in named:
        beginning = _numbers(name)
        if beginning and numbers[: len(beginning)] == beginning:
            return f"driver {version} is listed in operator.unsafeDrivers ({name}); update the driver"
    fixed = FIXED.get(numbers[0])
    if refuse_affected and fixed is not None and numbers < _numbers(fixed):
        return (
            f"driver {version} is affected by {CVE}: repartitioning GPUs can corrupt data or hang a GPU;"
            f" update it to {fixed}"
        )
    return ""


def find_hanging(version: str, layouts: Sequence[Layout | None]) -> str:
    """Return why a node must not have these layouts, one for each GPU, under this driver."""
    if version not in HANGING or None not in layouts or not any(layouts):
        return ""
    return (
        f"under driver {version}, pods hang on a node that has both MIG instances and whole GPUs"
        f" (NVIDIA/gpu-operator#1361); update the driver to {NOT_HANGING}, or partition either all GPUs on the"
        " node or none"
    )


def _numbers(version: str) -> tuple[int, ...]:
    # No version has a part of more than nine digits. The limit keeps int() fast for any value of a label.
    if not _VERSION.fullmatch(version) or any(len(part) > 9 for part in version.split(".")):
        return ()
    return tuple(int(part) for part in version.split("."))
