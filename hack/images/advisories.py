"""A comparison of an image's contents with a file of advisories (OSV's format, https://ossf.github.io/osv-schema/).

The file is a JSON list of advisories, one advisory, or an object with `vulns`, as osv.dev, pip-audit's cache and
Debian's export have them, or a zip archive of advisories. Nothing is downloaded.
"""

import itertools
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from hack.images.contents import DEBIAN, PYPI, ImagePart
from hack.images.debian import DISTRO

Advisory = dict[str, Any]
Order = Callable[[str], Any]
"""A function from a version to the key by which versions of an ecosystem are compared."""
EXAMPLE = (
    '[{"id": "PYSEC-1", "affected": [{"package": {"ecosystem": "PyPI", "name": "hpack"},'
    ' "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "4.1.0"}]}]}]}]'
)


class AdvisoryError(ValueError):
    """A file of advisories, or of accepted ones, has a mistake; the message names it and shows a valid example."""


@dataclass(frozen=True, order=True)
class AdvisoryHit:
    name: str
    version: str
    advisory: str
    fixed: str
    """The first fixed version, or empty if the advisory names none."""
    summary: str


def read(path: Path) -> list[Advisory]:
    """Return the advisories of a file, as osv.dev, pip-audit and Debian write them."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as zipped:
                content: Any = [json.loads(zipped.read(name)) for name in zipped.namelist()]
        else:
            content = json.loads(path.read_text())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise AdvisoryError(f"{path}: {error}; a valid file: {EXAMPLE}") from error
    if isinstance(content, dict):
        content = content.get("vulns", content)
    entries = content if isinstance(content, list) else [content]
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            raise AdvisoryError(f"{path}: entry {number} has no field id; a valid file: {EXAMPLE}")
        if not isinstance(entry.get("affected", []), list):
            raise AdvisoryError(f"{path}: affected of {entry['id']} is not a list; a valid file: {EXAMPLE}")
    return entries


def find(parts: Sequence[ImagePart], advisories: Sequence[Advisory]) -> list[AdvisoryHit]:
    """Return one hit for each pair of an advisory and a part that it affects, sorted by the part's name and version."""
    hits = set()
    for advisory in advisories:
        if advisory.get("withdrawn"):
            continue
        for affected, part in itertools.product(advisory.get("affected", []), parts):
            if concerns(affected.get("package", {}), part) and is_affected(part, affected):
                summary = str(advisory.get("summary") or advisory.get("details") or "").split("\n")[0]
                hits.add(
                    AdvisoryHit(part.name, part.version, advisory["id"], first_fixed(part, affected), summary[:80])
                )
    return sorted(hits)


def concerns(package: dict[str, Any], part: ImagePart) -> bool:
    """Whether an advisory is about a part. Debian's name source packages, and perhaps a release."""
    ecosystem, _, release = str(package.get("ecosystem", "")).partition(":")
    if ecosystem != part.ecosystem or (release and release != DISTRO.removeprefix("debian-")):
        return False
    name = str(package.get("name", ""))
    if part.ecosystem == PYPI:
        name = re.sub(r"[-_.]+", "-", name).lower()
    return name == part.source


def is_affected(part: ImagePart, affected: dict[str, Any]) -> bool:
    """Whether `affected` lists the part's source version, or has a range that contains it."""
    if part.source_version in affected.get("versions", []):
        return True
    ranges = [row for row in affected.get("ranges", []) if row.get("type") in ("ECOSYSTEM", "SEMVER")]
    return any(in_range(part, row.get("events", [])) for row in ranges)


def in_range(part: ImagePart, events: Sequence[dict[str, str]]) -> bool:
    """Whether a version is affected. As OSV defines it, the last event at or before the version decides."""
    order = ORDERS[part.ecosystem]
    here = order(part.source_version)
    inside = False
    for kind, version in sorted(_events(events), key=lambda event: order(event[1])):
        at = order(version)
        if kind == "introduced" and at <= here:
            inside = True
        elif (kind == "fixed" and at <= here) or (kind == "last_affected" and at < here):
            inside = False
    return inside


def _events(events: Sequence[dict[str, str]]) -> Iterator[tuple[str, str]]:
    for event in events:
        for kind, version in event.items():
            if kind in ("introduced", "fixed", "last_affected"):
                yield kind, version


def first_fixed(part: ImagePart, affected: dict[str, Any]) -> str:
    """Return the lowest fixed version above the part's, or an empty string."""
    order = ORDERS[part.ecosystem]
    versions = [
        version
        for row in affected.get("ranges", [])
        for kind, version in _events(row.get("events", []))
        if kind == "fixed" and row.get("type") in ("ECOSYSTEM", "SEMVER")
    ]
    return min((item for item in versions if order(item) > order(part.source_version)), key=order, default="")


# --- versions ---------------------------------------------------------------------------------------------


def python_order(version: str) -> Version:
    """Return the sort key of a Python version (PEP 440)."""
    try:
        return Version(version)
    except InvalidVersion:
        return Version("0.dev0")


def compare_debian(left: str, right: str) -> int:
    """Compare two versions as dpkg does, by epoch, upstream version and revision (deb-version(7))."""
    (epoch, upstream, revision), (epoch2, upstream2, revision2) = _split(left), _split(right)
    return (epoch > epoch2) - (epoch < epoch2) or _compare(upstream, upstream2) or _compare(revision, revision2)


def _split(version: str) -> tuple[int, str, str]:
    epoch, _, rest = version.rpartition(":")
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch) if epoch.isdecimal() else 0, upstream, revision


def _compare(left: str, right: str) -> int:
    while left or right:
        (letters, number, left), (letters2, number2, right) = (
            re.fullmatch(r"(?s)(\D*)(\d*)(.*)", text).groups()  # type: ignore[union-attr]  # it matches any text
            for text in (left, right)
        )
        first, second = (_ranks(letters), int(number or "0")), (_ranks(letters2), int(number2 or "0"))
        if first != second:
            return 1 if first > second else -1
    return 0


def _ranks(text: str) -> tuple[int, ...]:
    """Return the sort key of non-digits in dpkg's order: a tilde, the end, letters, all else."""
    ranks = (-1 if char == "~" else ord(char) if char.isalpha() else ord(char) + 256 for char in text)
    return (*ranks, 0)


ORDERS: dict[str, Order] = {PYPI: python_order, DEBIAN: cmp_to_key(compare_debian)}
