"""Compare what an image holds with a file of advisories (OSV's format, https://ossf.github.io/osv-schema/).

The file is a JSON list of advisories, one advisory, or an object with `vulns`: what osv.dev, pip-audit's cache and
Debian's export give. Nothing is fetched.
"""

import itertools
import json
import re
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
"""A key by which versions of an ecosystem are compared."""
EXAMPLE = (
    '[{"id": "PYSEC-1", "affected": [{"package": {"ecosystem": "PyPI", "name": "hpack"},'
    ' "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "4.1.0"}]}]}]}]'
)


class AdvisoryError(ValueError):
    """The file is no file of advisories; the text names the field and a valid example."""


@dataclass(frozen=True, order=True)
class AdvisoryHit:
    """A part of the image that an advisory names."""

    name: str
    version: str
    advisory: str
    fixed: str
    """The first version without it; empty when none is named."""
    summary: str


def read(path: Path) -> list[Advisory]:
    """The advisories of a file.

    Raises:
        AdvisoryError: it cannot be read or holds something else.
    """
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AdvisoryError(f"{path}: {error}; a valid file: {EXAMPLE}") from error
    if isinstance(told, dict):
        told = told.get("vulns", [told])
    for number, entry in enumerate(told if isinstance(told, list) else [told]):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            raise AdvisoryError(f"{path}: entry {number} has no field id; a valid file: {EXAMPLE}")
        if not isinstance(entry.get("affected", []), list):
            raise AdvisoryError(f"{path}: affected of {entry['id']} is no list; a valid file: {EXAMPLE}")
    return list(told)


def find(parts: Sequence[ImagePart], advisories: Sequence[Advisory]) -> list[AdvisoryHit]:
    """What is affected, sorted; advisories that were withdrawn do not count."""
    found = set()
    for advisory in advisories:
        if advisory.get("withdrawn"):
            continue
        for affected, part in itertools.product(advisory.get("affected", []), parts):
            if concerns(affected.get("package", {}), part) and is_affected(part, affected):
                summary = str(advisory.get("summary") or advisory.get("details") or "").split("\n")[0]
                found.add(
                    AdvisoryHit(
                        part.name, part.version, advisory["id"], first_fixed(part, affected), summary[:80]
                    )
                )
    return sorted(found)


def concerns(package: dict[str, Any], part: ImagePart) -> bool:
    """Whether an advisory's package is this part; Debian's name source packages, of one release or of all."""
    ecosystem, _, release = str(package.get("ecosystem", "")).partition(":")
    if ecosystem != part.ecosystem or (release and release != DISTRO.removeprefix("debian-")):
        return False
    name = str(package.get("name", ""))
    if part.ecosystem == PYPI:
        name = re.sub(r"[-_.]+", "-", name).lower()
    return name == part.source


def is_affected(part: ImagePart, affected: dict[str, Any]) -> bool:
    """Whether the part's version is listed or lies in a range."""
    if part.source_version in affected.get("versions", []):
        return True
    ranges = [one for one in affected.get("ranges", []) if one.get("type") in ("ECOSYSTEM", "SEMVER")]
    return any(in_range(part, one.get("events", [])) for one in ranges)


def in_range(part: ImagePart, events: Sequence[dict[str, str]]) -> bool:
    """OSV's evaluation: the last event at or before the version decides (`limit` means nothing here)."""
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
    """The lowest version above the part's that an advisory calls fixed."""
    order = ORDERS[part.ecosystem]
    versions = [
        version
        for one in affected.get("ranges", [])
        for kind, version in _events(one.get("events", []))
        if kind == "fixed" and one.get("type") in ("ECOSYSTEM", "SEMVER")
    ]
    return min((one for one in versions if order(one) > order(part.source_version)), key=order, default="")


# --- versions ---------------------------------------------------------------------------------------------


def python_order(version: str) -> Version:
    """PEP 440; what is no version is older than all."""
    try:
        return Version(version)
    except InvalidVersion:
        return Version("0.dev0")


def compare_debian(one: str, other: str) -> int:
    """As dpkg compares: epoch, upstream version, revision (deb-version(7)). Below, at or above 0."""
    (epoch, upstream, revision), (epoch2, upstream2, revision2) = _split(one), _split(other)
    return (
        (epoch > epoch2) - (epoch < epoch2) or _compare(upstream, upstream2) or _compare(revision, revision2)
    )


def _split(version: str) -> tuple[int, str, str]:
    epoch, _, rest = version.rpartition(":")
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch) if epoch.isdecimal() else 0, upstream, revision


def _compare(one: str, other: str) -> int:
    """Turn by turn what is no number, then what is one."""
    while one or other:
        for pattern, key in ((r"\D*", _letters), (r"\d*", _number)):
            head, head2 = (re.match(pattern, text) for text in (one, other))
            assert head is not None
            assert head2 is not None
            first, second = key(head[0]), key(head2[0])
            if first != second:
                return 1 if first > second else -1
            one, other = one[head.end() :], other[head2.end() :]
    return 0


def _letters(text: str) -> tuple[int, ...]:
    """Tilde sorts before the end, the end before letters, letters before the rest."""
    ranks = (-1 if char == "~" else ord(char) if char.isalpha() else ord(char) + 256 for char in text)
    return (*ranks, 0)


def _number(text: str) -> tuple[int, ...]:
    return (int(text or "0"),)


ORDERS: dict[str, Order] = {PYPI: python_order, DEBIAN: cmp_to_key(compare_debian)}
