"""Advisories in OSV's format against what an image holds: which name a part, and what a wrong file is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from hack.images.advisories import AdvisoryError, compare_debian, find, read
from hack.images.contents import DEBIAN, PYPI, ImagePart

H2 = ImagePart(PYPI, "h2", "4.4.1", "pkg:pypi/h2@4.4.1", "h2", "4.4.1")
HPACK = ImagePart(PYPI, "hpack", "4.2.0", "pkg:pypi/hpack@4.2.0", "hpack", "4.2.0")
SSL = ImagePart(DEBIAN, "libssl3t64", "3.5.7-1~deb13u3", "pkg:deb/debian/libssl3t64", "openssl", "3.5.7-1~deb13u3")
PARTS = [H2, SSL]


def advisory(ecosystem: str, name: str, *events: dict[str, str], **more: Any) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}]
    return {"id": "A-1", "affected": [{"package": {"ecosystem": ecosystem, "name": name}, "ranges": ranges}], **more}


@pytest.mark.parametrize(
    ("entry", "fixed"),
    [
        (advisory("PyPI", "H2", {"introduced": "0"}, {"fixed": "4.4.2"}), "4.4.2"),
        (advisory("PyPI", "h2", {"introduced": "4.4.1"}), ""),
        ({"id": "A-1", "affected": [{"package": {"ecosystem": "PyPI", "name": "h2"}, "versions": ["4.4.1"]}]}, ""),
        (advisory("PyPI", "h2", {"introduced": "0"}, {"last_affected": "4.4.1"}), ""),
        (advisory("PyPI", "h2", {"introduced": "0"}, {"fixed": "4.1"}, {"introduced": "4.4"}, {"fixed": "5"}), "5"),
    ],
)
def test_a_version_within_a_range_or_listed_is_found_with_the_version_that_mends_it(
    entry: dict[str, Any], fixed: str
) -> None:
    (one,) = find(PARTS, [entry])
    assert (one.name, one.version, one.advisory, one.fixed) == ("h2", "4.4.1", "A-1", fixed)


@pytest.mark.parametrize(
    "entry",
    [
        advisory("PyPI", "h2", {"introduced": "0"}, {"fixed": "4.4.1"}),
        advisory("PyPI", "h2", {"introduced": "0"}, {"last_affected": "4.4.0"}),
        advisory("PyPI", "h2", {"introduced": "4.4.2"}),
        advisory("npm", "h2", {"introduced": "0"}),
        advisory("PyPI", "h3", {"introduced": "0"}),
        advisory("PyPI", "h2", {"introduced": "0"}, withdrawn="2026-01-01T00:00:00Z"),
        advisory("Debian:12", "openssl", {"introduced": "0"}),
        advisory("Debian:13", "libssl3t64", {"introduced": "0"}),
    ],
)
def test_a_version_outside_another_package_or_a_withdrawn_advisory_is_not(entry: dict[str, Any]) -> None:
    assert find(PARTS, [entry]) == []


@pytest.mark.parametrize("ecosystem", ["Debian", "Debian:13"])
def test_debian_advisories_name_the_source_package_of_the_release(ecosystem: str) -> None:
    (one,) = find(PARTS, [advisory(ecosystem, "openssl", {"introduced": "0"}, {"fixed": "3.5.7-1~deb13u4"})])
    assert (one.name, one.fixed) == ("libssl3t64", "3.5.7-1~deb13u4")


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("1.0~rc1-1", "1.0-1"),
        ("1.0-1", "1.0-1+b1"),
        ("1.9", "1.10"),
        ("9", "1:1"),
        ("3.5.7-1~deb13u3", "3.5.7-1"),
        ("2.41-12+deb13u4", "2.41-12+deb13u10"),
        ("1.0", "1.0a"),
        ("1.0a", "1.0+"),
        ("1.2.3-4", "1.2.3-4.1"),
    ],
)
def test_versions_are_ordered_as_dpkg_orders_them(lower: str, higher: str) -> None:
    assert compare_debian(lower, higher) < 0 < compare_debian(higher, lower)
    assert compare_debian(lower, lower) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ('{"vulns": [{}]}', "entry 0 has no field id"),
        ("3", "entry 0 has no field id"),
        ('[{"id": "A", "affected": {}}]', "affected of A is not a list"),
    ],
)
def test_a_wrong_file_is_told_the_field_and_a_valid_example(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "osv.json"
    path.write_text(text)
    with pytest.raises(AdvisoryError) as refused:
        read(path)
    assert said in str(refused.value)
    example = str(refused.value).partition("a valid file: ")[2]
    path.write_text(example)
    assert find([HPACK], read(path)) == [], "the example itself is valid, and 4.2.0 is not affected"


def test_one_advisory_a_list_and_an_export_are_read_alike(tmp_path: Path) -> None:
    one = advisory("PyPI", "h2", {"introduced": "0"})
    path = tmp_path / "osv.json"
    for told in (one, [one], {"vulns": [one]}, {"vulns": one}):
        path.write_text(json.dumps(told))
        assert read(path) == [one]
