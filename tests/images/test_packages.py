"""The lock of Debian packages: what is in it, what is refused, and what of a package reaches the image."""

import io
import lzma
import tarfile
from pathlib import Path

import pytest
from hack.images.debian import (
    ARCHITECTURES,
    LOCK,
    PACKAGES,
    LockError,
    Package,
    as_of,
    control,
    is_dropped,
    members,
    parse_lock,
    render_lock,
    unpack,
)


def test_the_lock_has_every_package_for_every_architecture() -> None:
    packages = parse_lock(LOCK.read_text())
    assert {(one.architecture, one.name) for one in packages} == {
        (architecture, name) for architecture in ARCHITECTURES for name in PACKAGES
    }
    assert render_lock(packages, as_of(LOCK.read_text())) == LOCK.read_text()
    assert "://" not in LOCK.read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("amd64 zlib1g", "amd64  zlib1g"), "is not a package"),
        (("sha256:", "md5:"), "is not a package"),
        (
            ("amd64 zlib1g", "amd64 zlib2g"),
            "amd64: the lock and PACKAGES of hack/images/debian.py differ in zlib1g, zlib2g",
        ),
    ],
)
def test_a_lock_that_does_not_fit_says_what_and_how_to_write_it_anew(change: tuple[str, str], said: str) -> None:
    with pytest.raises(LockError) as refused:
        parse_lock(LOCK.read_text().replace(*change))
    assert said in str(refused.value)
    assert "python -m hack.images.debian" in str(refused.value)


def test_a_lock_without_its_time_is_refused() -> None:
    with pytest.raises(LockError, match="as of 20261120T220000Z"):
        as_of("amd64 x")


LEFT_OUT = (
    "usr/bin/perl",
    "usr/bin/pdb3.13",
    "usr/sbin/ldconfig",
    "usr/share/doc/libc6/changelog.Debian.gz",
    "usr/share/man/man1/python3.13.1.gz",
    "usr/lib/x86_64-linux-gnu/gconv/GBK.so",
    "usr/lib/python3.13/lib-dynload/_sqlite3.cpython-313-x86_64-linux-gnu.so",
)
STAYS = (
    "usr/bin/python3.13",
    "usr/share/doc/libc6/copyright",
    "usr/lib/x86_64-linux-gnu/libc.so.6",
    "usr/lib/python3.13/asyncio/tasks.py",
    "etc/ld.so.conf",
    "usr/share/zoneinfo/Europe/Berlin",
)


def test_what_nobody_needs_is_left_out_and_what_runs_and_what_licences_ask_for_stays() -> None:
    assert [path for path in (*LEFT_OUT, *STAYS) if is_dropped(path)] == [*LEFT_OUT]


# --- a package --------------------------------------------------------------------------------------------


def tar(files: dict[str, str], links: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size, entry.mode = len(text), 0o4755 if "bin/" in name else 0o600
            packed.addfile(entry, io.BytesIO(text.encode()))
        for name, goal in links.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, goal
            packed.addfile(entry)
    return lzma.compress(out.getvalue())


def deb(files: dict[str, str], links: dict[str, str]) -> bytes:
    """A package called `x`."""
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar({"control": "Package: x\nVersion: 1\n"}, {}),
        "data.tar.xz": tar(files, links),
    }
    packed = b"!<arch>\n"
    for name, data in parts.items():
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data
        packed += b"\n" * (len(data) % 2)
    return packed


def test_a_package_is_laid_out_without_what_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "x.deb"
    files = {"usr/bin/python3.13": "elf", "usr/bin/perl": "elf", "usr/share/doc/x/copyright": "mine"}
    file.write_bytes(deb(files, {"usr/lib/a.so": "a.so.1"}))
    tree = tmp_path / "tree"
    unpack([file], tree)
    assert (tree / "usr/bin/python3.13").stat().st_mode & 0o7777 == 0o755
    assert (tree / "usr/share/doc/x/copyright").stat().st_mode & 0o7777 == 0o644
    assert not (tree / "usr/bin/perl").exists()
    assert str((tree / "usr/lib/a.so").readlink()) == "a.so.1"
    assert (tree / "bin/python3.13").read_text() == "elf", "/bin is a link into /usr"
    assert (tree / "var/lib/dpkg/status.d/x").read_text() == control(file.read_bytes()), "scanners read it"


def test_the_user_of_the_image_has_no_entry_so_that_nothing_can_need_one(tmp_path: Path) -> None:
    unpack([], tmp_path)
    assert "65532" not in (tmp_path / "etc/passwd").read_text()


def test_what_is_no_package_is_refused() -> None:
    with pytest.raises(ValueError, match="not an ar archive"):
        members(b"PK")


def test_a_line_of_the_lock_is_read_as_it_was_written() -> None:
    one = Package("arm64", "tzdata", "2026c-0+deb13u1", "debian", "pool/main/t/x.deb", "0" * 64)
    assert one.line() == f"arm64 tzdata 2026c-0+deb13u1 debian pool/main/t/x.deb sha256:{'0' * 64}"
