"""The bill of materials: it holds what SPDX 2.3 asks for, names every part once, and is the same for the same image."""

import re
from itertools import pairwise
from typing import Any

from hack.images.contents import DEBIAN, PYPI, UNKNOWN, Origin, debian_parts, document, wheel_parts
from hack.images.debian import Package
from spdx_tools.spdx.parser.error import SPDXParsingError
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

ORIGIN = Origin("gpu-sharing-operator", "0.1.0", "Shares.", "Apache-2.0", "a" * 40, 1_763_676_000)
DIGEST = f"sha256:{'1' * 64}"
STATUS = [
    "Package: libexpat1\nSource: expat\nVersion: 2.9.0-1~deb13u1\nArchitecture: amd64\n"
    "Homepage: https://libexpat.github.io/\nDescription: XML\n parsing\n",
    "Package: libc6\nSource: glibc (2.41-12)\nVersion: 2.41-12+b1\nArchitecture: amd64\n",
]
METADATA = [
    "Name: Structlog\nVersion: 26.1.0\nLicense-Expression: MIT OR Apache-2.0\nProject-URL: GitHub, https://example.test/y\n",
    "Name: iso8601\nVersion: 2.1.0\nLicense: The MIT License\n",
    "Name: h2\nVersion: 4.4.1\nLicense: mit\n",
]
LOCKED = [Package("amd64", "libc6", "2.41-12+b1", "debian", "pool/x.deb", "c" * 64)]
PARTS = [*debian_parts(STATUS, LOCKED), *wheel_parts(METADATA, {"structlog-26.1.0-py3-none-any.whl": "d" * 64})]


def problems(document: dict[str, Any]) -> list[str]:
    """What SPDX 2.3 refuses in a document; empty when it is valid."""
    try:
        parsed = JsonLikeDictParser().parse(document)  # type: ignore[no-untyped-call]  # theirs
    except SPDXParsingError as error:
        return list(error.get_messages())  # type: ignore[no-untyped-call]  # theirs
    return [message.validation_message for message in validate_full_spdx_document(parsed)]


def told() -> dict[str, Any]:
    return document(ORIGIN, "amd64", DIGEST, PARTS)


def by_name(name: str) -> dict[str, Any]:
    (found,) = (one for one in told()["packages"] if one["name"] == name)
    return dict(found)


def test_the_document_is_what_spdx_asks_for() -> None:
    assert problems(told()) == []


def test_a_wrong_document_would_be_seen() -> None:
    for field, value in (
        ("SPDXID", "SPDXRef-a_b"),
        ("downloadLocation", "somewhere"),
        ("supplier", "Debian"),
        ("licenseDeclared", "MIT-ish"),
        ("checksums", [{"algorithm": "SHA256", "checksumValue": "c"}]),
    ):
        broken = told()
        broken["packages"][1][field] = value
        assert problems(broken) != [], field


def test_the_image_holds_every_part_once_in_a_stated_order() -> None:
    spdx = told()
    assert {one["name"] for one in spdx["packages"][1:]} == {"libexpat1", "libc6", "structlog", "iso8601", "h2"}
    assert all(one["SPDXID"] < other["SPDXID"] for one, other in pairwise(spdx["packages"][1:]))
    assert document(ORIGIN, "amd64", DIGEST, PARTS[::-1]) == spdx
    contained = [row["relatedSpdxElement"] for row in spdx["relationships"] if row["relationshipType"] == "CONTAINS"]
    assert contained == [one["SPDXID"] for one in spdx["packages"][1:]]


def test_debian_packages_come_with_source_package_and_the_locks_hash() -> None:
    libc = by_name("libc6")
    assert libc["sourceInfo"] == "built package from: glibc 2.41-12"
    assert libc["checksums"][0]["checksumValue"] == "c" * 64
    assert libc["externalRefs"][0]["referenceLocator"] == (
        "pkg:deb/debian/libc6@2.41-12%2Bb1?arch=amd64&distro=debian-13"
    )
    assert by_name("libexpat1")["homepage"] == "https://libexpat.github.io/"


def test_every_part_has_a_package_url_that_scanners_know() -> None:
    purl = re.compile(r"pkg:(deb/debian|pypi|oci)/[^@\s]+@[^\s?]+(\?\S+)?")
    for one in told()["packages"]:
        (row,) = one["externalRefs"]
        assert (row["referenceCategory"], row["referenceType"]) == ("PACKAGE-MANAGER", "purl")
        assert purl.fullmatch(row["referenceLocator"])


def test_wheels_come_with_licence_and_hash_and_nothing_is_guessed() -> None:
    structlog = by_name("structlog")
    assert (structlog["licenseDeclared"], structlog["homepage"]) == ("MIT OR Apache-2.0", "https://example.test/y")
    assert structlog["checksums"][0]["checksumValue"] == "d" * 64
    assert by_name("h2")["licenseDeclared"] == "MIT"
    assert by_name("iso8601")["licenseDeclared"] == UNKNOWN
    assert {part.ecosystem for part in PARTS} == {DEBIAN, PYPI}
