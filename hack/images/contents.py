"""What an image consists of, part by part, its labels, and its bill of materials.

The bill is SPDX 2.3 as JSON (https://spdx.github.io/spdx-spec/v2.3/). Labels come from the checkout alone.
"""

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
"""The prefix of labels and annotations (https://specs.opencontainers.org/image-spec/annotations/)."""


DIRTY = "-dirty"
"""The end of a revision if tracked files were changed since."""


class OriginError(ValueError):
    """$SOURCE_DATE_EPOCH is not a number; the message shows a valid one."""


@dataclass(frozen=True)
class Origin:
    """The commit from which an image is built, and the project's metadata."""

    name: str
    version: str
    description: str
    licenses: str
    """The project's license as an SPDX expression."""
    revision: str
    """The commit, with `-dirty` at its end if the checkout has changes, or `unknown`."""
    epoch: int
    """The commit's time in seconds since 1970."""
    source: str = ""
    """The URL of the sources ($IMAGE_SOURCE), or empty if it is unset."""

    @property
    def created(self) -> str:
        return f"{datetime.fromtimestamp(self.epoch, UTC):%Y-%m-%dT%H:%M:%SZ}"


def read_origin(environ: Mapping[str, str] = os.environ) -> Origin:
    """Return revision and time of the checkout, from $IMAGE_REVISION and $SOURCE_DATE_EPOCH or else from git."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    revision = environ.get("IMAGE_REVISION") or _git("rev-parse", "HEAD")
    if revision and not environ.get("IMAGE_REVISION") and _git("status", "--porcelain", "--untracked-files=no"):
        revision += DIRTY
    epoch = environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct") or "0"
    if not epoch.isdecimal():
        raise OriginError(f"SOURCE_DATE_EPOCH={epoch} is not a number of seconds since 1970, such as 1763676000")
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
    """Return the labels of the image's configuration, which are also the manifest's annotations."""
    values = {
        "title": origin.name,
        "description": origin.description,
        "version": origin.version,
        "revision": origin.revision,
        "created": origin.created,
        "licenses": origin.licenses,
        "source": origin.source,
        "base.name": base,
    }
    return {f"{PREFIX}.{name}": value for name, value in values.items() if value}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


DEBIAN, PYPI = "Debian", "PyPI"
UNKNOWN = "NOASSERTION"
"""SPDX's value for what is not known."""


@dataclass(frozen=True, order=True)
class ImagePart:
    """One package of the image: a Debian package or a Python distribution."""

    ecosystem: str
    name: str
    version: str
    purl: str
    """The package URL (https://github.com/package-url/purl-spec)."""
    source: str = ""
    """The source package, which Debian's advisories name."""
    source_version: str = ""
    license: str = UNKNOWN
    """The license as an SPDX expression, or UNKNOWN."""
    homepage: str = UNKNOWN
    sha256: str = ""
    """The sha256 of the installed file in hexadecimal, or empty if it is not known, as for our own wheel."""


@dataclass(frozen=True)
class Image:
    archive: Path
    reference: str
    architecture: str
    digest: str
    """The sha256:... of the manifest."""
    size: int
    """The size of all compressed layers in bytes, as they are transferred."""
    compiled: int
    parts: tuple[ImagePart, ...]
    config: JSON
    """The configuration of containers: User, Env, Cmd, Labels and so on, as OCI names them."""
    tree: tuple[Path, ...]
    """The folders that form the root file system, the lowest first."""
    layers: tuple[Layer, ...]

    @property
    def sbom(self) -> Path:
        return self.archive.with_suffix(".spdx.json")


def debian_parts(status: Sequence[str], locked: Sequence[Package]) -> Iterator[ImagePart]:
    """Yield the packages of a dpkg database. Licenses are not set: Debian has them as prose and not as expressions."""
    hashes = {package.name: package.sha256 for package in locked}
    for text in status:
        control = message_from_string(text)
        name, version = str(control["Package"]), str(control["Version"])
        source = re.fullmatch(r"(\S+)(?: \((\S+)\))?", str(control.get("Source", name)))
        assert source is not None, f"{name}: Source: {control['Source']}"
        yield ImagePart(
            DEBIAN,
            name,
            version,
            f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={control['Architecture']}&distro={DISTRO}",
            source[1],
            source[2] or version,
            homepage=str(control.get("Homepage", UNKNOWN)),
            sha256=hashes.get(name, ""),
        )


def wheel_parts(metadata: Sequence[str], files: Mapping[str, str]) -> Iterator[ImagePart]:
    """Yield a part for each of these METADATA files of Python distributions, in their order."""
    hashes = {canonicalize_name(name.split("-")[0]): digest for name, digest in files.items()}
    for text in metadata:
        headers = message_from_string(text)
        name, version = canonicalize_name(str(headers["Name"])), str(headers["Version"])
        purl = f"pkg:pypi/{name}@{quote(version, safe='')}"
        yield ImagePart(
            PYPI, name, version, purl, name, version, license_of(headers), homepage_of(headers), hashes.get(name, "")
        )


def license_of(headers: Message) -> str:
    """Return the license as an SPDX expression, or UNKNOWN."""
    for field in ("License-Expression", "License"):
        try:
            return str(canonicalize_license_expression(str(headers[field] or "")))
        except InvalidLicenseExpression:
            continue
    return UNKNOWN


def homepage_of(headers: Message) -> str:
    """Return the first URL of the fields Project-URL that says where the project is, or UNKNOWN."""
    rows = [str(row).partition(",") for row in headers.get_all("Project-URL", [])]
    urls = {name.strip().lower(): url.strip() for name, _, url in rows}
    for name in ("homepage", "repository", "source", "source code", "github"):
        if name in urls:
            return urls[name]
    return UNKNOWN


def read_status(tree: Path) -> list[str]:
    """Return the content of the control file of each package in a tree, sorted by package name."""
    return [path.read_text() for path in sorted((tree / "var/lib/dpkg/status.d").iterdir())]


def read_metadata(site: Path) -> list[str]:
    """Return the content of the METADATA file of each distribution in a folder of packages, sorted by name."""
    return [path.read_text() for path in sorted(site.glob("*.dist-info/METADATA"))]


NAMESPACE = "https://gpusharing.dev/spdx"
"""The prefix that makes a document's namespace unique; nothing is served at this URL."""


def document(origin: Origin, architecture: str, digest: str, parts: Sequence[ImagePart]) -> JSON:
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
        "creationInfo": {"created": origin.created, "creators": [f"Tool: {origin.name}-images-{origin.version}"]},
        "packages": [image, *(package(key, part) for key, part in listed)],
        "relationships": [
            relationship("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image"),
            *(relationship("SPDXRef-Image", "CONTAINS", key) for key, _ in listed),
        ],
    }


BUILT_FROM = "built package from: "
"""The start of the SPDX field sourceInfo of a Debian package, as other tools write it; the source package follows."""


def package(key: str, part: ImagePart) -> JSON:
    """Return one part as an SPDX package, with `key` as its identifier in the document."""
    row: JSON = {
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
        row["checksums"] = [{"algorithm": "SHA256", "checksumValue": part.sha256}]
    if part.ecosystem == DEBIAN:
        row["licenseComments"] = f"usr/share/doc/{part.name}/copyright in the image"
        row["sourceInfo"] = f"{BUILT_FROM}{part.source} {part.source_version}"
    return row


def read_parts(document: JSON) -> tuple[ImagePart, ...]:
    parts = []
    for row in document["packages"]:
        locator = str(row["externalRefs"][0]["referenceLocator"])
        name, version = str(row["name"]), str(row["versionInfo"])
        if locator.startswith("pkg:pypi/"):
            parts.append(ImagePart(PYPI, name, version, locator, name, version))
        elif locator.startswith("pkg:deb/"):
            source, source_version = str(row["sourceInfo"]).removeprefix(BUILT_FROM).split(" ")
            parts.append(ImagePart(DEBIAN, name, version, locator, source, source_version))
    return tuple(parts)


def identifier(part: ImagePart) -> str:
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.]+", "-", f"{part.ecosystem}-{part.name}-{part.version}")


def purl(locator: str) -> JSON:
    return {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator}


def relationship(element: str, kind: str, other: str) -> JSON:
    return {"spdxElementId": element, "relationshipType": kind, "relatedSpdxElement": other}
