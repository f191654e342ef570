"""The bill of materials of an image: SPDX 2.3 as JSON (https://spdx.github.io/spdx-spec/v2.3/)."""

import re
from collections.abc import Sequence

from hack.images.contents import DEBIAN, UNKNOWN, ImagePart
from hack.images.labels import Origin
from hack.images.layers import JSON

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
