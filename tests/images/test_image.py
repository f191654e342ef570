"""What the image says of itself, how big it may be, how it starts, and what it links."""

import struct
from pathlib import Path

import pytest
from hack.images import local
from hack.images.__main__ import FOUND, TOO_BIG, overall
from hack.images.contents import Origin, labels, read_origin
from hack.images.local import LIMIT, missing, needed, too_big
from hack.images.wheels import scripts

ORIGIN = Origin("gpu-sharing-operator", "0.1.0", "Shares.", "Apache-2.0", "a" * 40, 1_763_676_000)


def test_labels_name_version_revision_time_and_licence() -> None:
    assert labels(ORIGIN, "debian-13") == {
        "org.opencontainers.image.title": "gpu-sharing-operator",
        "org.opencontainers.image.description": "Shares.",
        "org.opencontainers.image.version": "0.1.0",
        "org.opencontainers.image.revision": "a" * 40,
        "org.opencontainers.image.created": "2025-11-20T22:00:00Z",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.base.name": "debian-13",
    }


def test_time_revision_and_source_can_be_given_where_there_is_no_git() -> None:
    given = {"SOURCE_DATE_EPOCH": "1763676000", "IMAGE_REVISION": "v1", "IMAGE_SOURCE": "https://example.org/x"}
    origin = read_origin(given)
    assert (origin.created, origin.revision) == ("2025-11-20T22:00:00Z", "v1")
    assert labels(origin, "x")["org.opencontainers.image.source"] == "https://example.org/x"


def test_a_time_that_is_none_is_named_with_a_valid_one() -> None:
    with pytest.raises(
        ValueError, match="SOURCE_DATE_EPOCH=today is not a number of seconds since 1970, such as 1763676000"
    ):
        read_origin({"SOURCE_DATE_EPOCH": "today"})


def test_a_container_starts_one_of_our_programs_as_a_user_without_rights() -> None:
    assert local.RUN["Cmd"][0] in scripts()
    assert local.RUN["User"] == "65532:65532"


# --- size -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "status"), [((0, 0), 0), ((0, FOUND), FOUND), ((TOO_BIG, FOUND), TOO_BIG), ((FOUND, TOO_BIG), 1)]
)
def test_an_advisory_about_one_image_does_not_hide_that_another_is_too_big(
    statuses: tuple[int, ...], status: int
) -> None:
    assert overall(statuses) == status


def test_an_image_that_is_too_big_is_refused() -> None:
    assert too_big(LIMIT) == ""
    assert (
        too_big(LIMIT + 100_000)
        == "70.1 MB compressed are more than the limit of 70 MB: the list shows which layer grew"
    )


# --- what is linked ---------------------------------------------------------------------------------------


def elf(*libraries: str) -> bytes:
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in libraries)
    at, entries = 1, []
    for name in libraries:
        entries.append((1, at))
        at += len(name) + 1
    dynamic_at = 64 + 2 * 56
    dynamic_size = 16 * (len(entries) + 2)
    strings_at = dynamic_at + dynamic_size
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in [*entries, (5, 0x1000 + strings_at), (0, 0)])
    end = strings_at + len(strings)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x1000, 0x1000, end, end, 0x1000)
    table = struct.pack("<IIQQQQQQ", 2, 6, dynamic_at, 0x1000 + dynamic_at, 0, dynamic_size, dynamic_size, 8)
    return header + load + table + dynamic + strings


def test_the_libraries_that_a_program_names_are_read() -> None:
    assert needed(elf("libc.so.6", "libm.so.6")) == ["libc.so.6", "libm.so.6"]
    assert needed(elf()) == []
    assert needed(b"#!/usr/bin/python3\n") == []


def test_a_library_that_nobody_brought_is_named_with_who_needs_it(tmp_path: Path) -> None:
    (tmp_path / "libc.so.6").write_bytes(elf())
    (tmp_path / "x.so").write_bytes(elf("libc.so.6", "libstdc++.so.6"))
    assert missing([tmp_path]) == ["x.so needs libstdc++.so.6"]
