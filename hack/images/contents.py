"""What an image says of itself and what it holds, part by part: the one reading from which sizes, the bill of materials
and the comparison with advisories are derived.

OCI labels and annotations come from the checkout alone. The bill of materials is SPDX 2.3 as JSON
(https://spdx.github.io/spdx-spec/v2.3/).
"""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_string
from email.message import Message
from pathlib import Path
from urllib.parse import quote

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

from hack.generate import ROOT
from hack.images.debian import DISTRO, Package
from hack.images.layers import JSON, Layer

PREFIX = "org.opencontainers.image"
"""https://specs.opencontainers.org/image-spec/annotations/"""


@dataclass(frozen=True)
class Origin:
    """The commit that an image is built of."""

    name: str
    version: str
    """The project's version, from pyproject.toml."""
    description: str
    licenses: str
    """An SPDX expression."""
    revision: str
    """The commit; ends with `-dirty` when the checkout has changes."""
    epoch: int
    """The commit's time, seconds since 1970: the image's time, so that two builds are alike."""
    source: str = ""
    """Where the sources are; empty when not given ($IMAGE_SOURCE)."""

    @property
    def created(self) -> str:
        """When the sources were committed, as RFC 3339."""
        return f"{datetime.fromtimestamp(self.epoch, UTC):%Y-%m-%dT%H:%M:%SZ}"


def read_origin(environ: Mapping[str, str] = os.environ) -> Origin:
    """The origin of this checkout; $SOURCE_DATE_EPOCH and $IMAGE_REVISION win where there is no git."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    revision = environ.get("IMAGE_REVISION") or _git("rev-parse", "HEAD")
    if (
        revision
        and not environ.get("IMAGE_REVISION")
        and _git("status", "--porcelain", "--untracked-files=no")
    ):
        revision += "-dirty"
    epoch = environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct") or "0"
    if not epoch.isdecimal():
        raise ValueError(f"SOURCE_DATE_EPOCH={epoch}: seconds since 1970 are needed, as 1763676000")
    return Origin(
        project["name"],
        project["version"],
        project["description"],
        project["license"],
        revision or "unknown",
        int(epoch),
        environ.get("IMAGE_SOURCE", ""),
    )


def labels(origin: Origin, base: str) -> dict[str, str]:
    """Labels of the configuration, which are the manifest's annotations too; `base`: name of what it stands on."""
    found = {
        "title": origin.name,
        "description": origin.description,
        "version": origin.version,
        "revision": origin.revision,
        "created": origin.created,
        "licenses": origin.licenses,
        "source": origin.source,
        "base.name": base,
    }
    return {f"{PREFIX}.{name}": value for name, value in found.items() if value}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


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


@dataclass(frozen=True)
class Image:
    """A finished image: ours, or one that Docker or buildah has built and saved."""

    archive: Path
    reference: str
    """The name it has once imported."""
    architecture: str
    digest: str
    """sha256:... of the manifest. A saved image has none: of its configuration, its id in `docker images`."""
    size: int
    """Bytes of all layers when compressed, as they are transferred."""
    compiled: int
    """Modules that are compiled."""
    parts: tuple[ImagePart, ...]
    config: JSON
    """User, Env, Cmd, Labels ... as OCI names them."""
    tree: tuple[Path, ...] = ()
    """Folders that make the root file system, the lowest first, owned by whoever built it; empty for a saved image."""
    layers: tuple[Layer, ...] = ()
    """Empty for a saved image."""

    @property
    def sbom(self) -> Path:
        """The bill of materials beside the archive, SPDX 2.3."""
        return self.archive.with_suffix(".spdx.json")

    def write_sbom(self, origin: Origin) -> None:
        """Write the bill of materials."""
        spdx = document(origin, self.architecture, self.digest, self.parts)
        self.sbom.write_text(json.dumps(spdx, indent=1) + "\n")


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


NAMESPACE = "https://gpusharing.dev/spdx"
"""Makes the document's name unique; nothing is served there."""


def document(origin: Origin, architecture: str, digest: str, parts: Sequence[ImagePart]) -> JSON:
    """The SPDX document of one image; `digest`: sha256:... of its manifest. Equal images give equal documents."""
    name = f"{origin.name}-{origin.version}-{architecture}"
    image = {
        "SPDXID": "SPDXRef-Image",
        "name": origin.name,
        "versionInfo": origin.version,
        "primaryPackagePurpose": "CONTAINER",
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": False,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": origin.licenses,
        "copyrightText": UNKNOWN,
        "checksums": [{"algorithm": "SHA256", "checksumValue": digest.removeprefix("sha256:")}],
        "externalRefs": [purl(f"pkg:oci/{origin.name}@{digest.replace(':', '%3A')}?arch={architecture}")],
    }
    listed = [(identifier(part), part) for part in sorted(parts)]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"{NAMESPACE}/{name}-{digest.removeprefix('sha256:')}",
        "creationInfo": {
            "created": origin.created,
            "creators": [f"Tool: {origin.name}-images-{origin.version}"],
        },
        "packages": [image, *(package(key, part) for key, part in listed)],
        "relationships": [
            relationship("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image"),
            *(relationship("SPDXRef-Image", "CONTAINS", key) for key, _ in listed),
        ],
    }


def package(key: str, part: ImagePart) -> JSON:
    """One part as SPDX has it."""
    told: JSON = {
        "SPDXID": key,
        "name": part.name,
        "versionInfo": part.version,
        "primaryPackagePurpose": "LIBRARY",
        "supplier": "Organization: Debian" if part.ecosystem == DEBIAN else UNKNOWN,
        "downloadLocation": UNKNOWN,
        "homepage": part.homepage,
        "filesAnalyzed": False,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": part.license,
        "copyrightText": UNKNOWN,
        "externalRefs": [purl(part.purl)],
    }
    if part.sha256:
        told["checksums"] = [{"algorithm": "SHA256", "checksumValue": part.sha256}]
    if part.ecosystem == DEBIAN:
        told["licenseComments"] = f"usr/share/doc/{part.name}/copyright in the image"
        told["sourceInfo"] = f"built package from: {part.source} {part.source_version}"
    return told


def identifier(part: ImagePart) -> str:
    """A name within the document: letters, digits, dots and dashes only."""
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.]+", "-", f"{part.ecosystem}-{part.name}-{part.version}")


def purl(locator: str) -> JSON:
    """The package URL by which scanners know a part."""
    return {
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": locator,
    }


def relationship(one: str, kind: str, other: str) -> JSON:
    """How two things of the document belong together."""
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
