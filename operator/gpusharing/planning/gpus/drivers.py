"""Drivers under which no GPU is repartitioned: those affected by CVE-2026-24197, and those that an admin names.

CVE-2026-24197: memory routing of MIG partitions starts from an insecure default, so that repartitioning may corrupt
data or hang, beyond the tenant that caused it. The fixed versions are those of NVIDIA's own record (bulletin 5821,
https://github.com/NVIDIA/product-security/blob/5f2f483bdb97b934730c448e6f6c54e04212dd0f/2026/5821/CVE-2026-24197.json).
It lists three branches of the Linux driver. Of other old branches NVIDIA says only that they "might also be affected":
they are not guessed at here, an admin can name them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated

from gpusharing.api.settingtypes import listed

CVE = "CVE-2026-24197"
FIXED: Mapping[int, str] = {535: "535.309.01", 580: "580.159.03", 595: "595.71.05"}
"""Branch of the Linux driver to the first version in which it is fixed."""
_VERSION = re.compile(r"\d+(\.\d+)*")


def _find_no_version(entry: str) -> str:
    return "" if _VERSION.fullmatch(entry) else f"{entry!r} is not a driver version or the start of one"


DriverVersions = Annotated[tuple[str, ...], listed(_find_no_version)]
"""Versions of the driver, or their beginnings: `570`, `570.86`."""


def find_flaw(version: str, named: Iterable[str], *, refuse_affected: bool) -> str:
    """Why no GPU may be repartitioned under this driver; empty when nothing is known against it.

    `version` as NVML reports it. `named`: versions or their beginnings (`570`, `570.86`) that an admin refuses.
    """
    numbers = _numbers(version)
    if not numbers:
        return ""
    for name in named:
        beginning = _numbers(name)
        if beginning and numbers[: len(beginning)] == beginning:
            return f"driver {version} is in operator.unsafeDrivers ({name}); update it"
    fixed = FIXED.get(numbers[0])
    if refuse_affected and fixed is not None and numbers < _numbers(fixed):
        return (
            f"driver {version} has {CVE}: repartitioning GPUs can corrupt data or hang; update it to {fixed}"
        )
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    """The parts of a version; empty for text that is not a version."""
    # Nine digits are more than any version has, and few enough for int() whatever a label says.
    if not _VERSION.fullmatch(version) or any(len(part) > 9 for part in version.split(".")):
        return ()
    return tuple(int(part) for part in version.split("."))
