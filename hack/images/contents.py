"""What an image holds, part by part: the one reading from which sizes, SBOM and advisories are derived."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path
from urllib.parse import quote

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

from hack.images.packages import DISTRO, Package

DEBIAN, PYPI = "Debian", "PyPI"
"""Ecosystems, as OSV names them."""
PYTHON_ITSELF = "Python"
"""Of a Python that was built from source; OSV has no ecosystem for it, so no advisory is compared with it."""
UNKNOWN = "NOASSERTION"
"""SPDX's value for what is not given."""


@dataclass(frozen=True, order=True)
class ImagePart:
    """One package of the image."""

    ecosystem: str
    name: str
    version: str
    purl: str
    """https://github.com/package-url/purl-spec"""
    source: str = ""
    """Debian's advisories name the source package; that of a wheel is itself."""
    source_version: str = ""
    license: str = UNKNOWN
    """An SPDX expression."""
    homepage: str = UNKNOWN
    sha256: str = ""
    """Of the file that was installed; empty for our own wheel."""


def debian_parts(status: Sequence[str], locked: Sequence[Package]) -> Iterator[ImagePart]:
    """The packages of these control files (dpkg's status); a sha256 is the lock's.

    Their licences stand as texts in usr/share/doc/NAME/copyright, not as expressions.
    """
    hashes = {package.name: package.sha256 for package in locked}
    for text in status:
        control = message_from_string(text)
        name, version = str(control["Package"]), str(control["Version"])
        found = re.fullmatch(r"(\S+)(?: \((\S+)\))?", str(control.get("Source", name)))
        assert found is not None, f"{name}: Source: {control['Source']}"
        yield ImagePart(
            DEBIAN,
            name,
            version,
            f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={control['Architecture']}&distro={DISTRO}",
            found[1],
            found[2] or version,
            homepage=str(control.get("Homepage", UNKNOWN)),
            sha256=hashes.get(name, ""),
        )


def wheel_parts(metadata: Sequence[str], files: Mapping[str, str]) -> Iterator[ImagePart]:
    """The distributions of these METADATA files; `files`: name of each wheel file and its sha256."""
    hashes = {canonicalize_name(name.split("-")[0]): digest for name, digest in files.items()}
    for text in metadata:
        told = message_from_string(text)
        name, version = canonicalize_name(str(told["Name"])), str(told["Version"])
        purl = f"pkg:pypi/{name}@{quote(version, safe='')}"
        yield ImagePart(
            PYPI,
            name,
            version,
            purl,
            name,
            version,
            license_of(told),
            homepage_of(told),
            hashes.get(name, ""),
        )


def license_of(told: Message) -> str:
    """The SPDX expression of a distribution: its own, or its old field where that is one."""
    for field in ("License-Expression", "License"):
        try:
            return str(canonicalize_license_expression(str(told[field] or "")))
        except InvalidLicenseExpression:
            continue
    return UNKNOWN


def homepage_of(told: Message) -> str:
    """Its home page or repository, if it names one."""
    rows = [str(row).partition(",") for row in told.get_all("Project-URL", [])]
    urls = {name.strip().lower(): url.strip() for name, _, url in rows}
    for name in ("homepage", "repository", "source", "source code", "github"):
        if name in urls:
            return urls[name]
    return UNKNOWN


def read_status(tree: Path) -> list[str]:
    """The control files of the packages in a tree."""
    return [path.read_text() for path in sorted((tree / "var/lib/dpkg/status.d").iterdir())]


def read_metadata(site: Path) -> list[str]:
    """The METADATA files of the distributions in a folder of packages."""
    return [path.read_text() for path in sorted(site.glob("*.dist-info/METADATA"))]
