"""Which shared libraries the programs of a tree need, read from their ELF headers: also for a foreign machine."""

import struct
from collections.abc import Iterator
from pathlib import Path

DYNAMIC, LOAD = 2, 1
NEEDED, STRTAB = 1, 5


def needed(data: bytes) -> list[str]:
    """The libraries that an ELF file names (DT_NEEDED); none when it is static or no ELF file.

    Only 64 bits and little-endian, which amd64 and arm64 are (gABI, chapters 4 and 5).
    """
    if data[:6] != b"\x7fELF\x02\x01":
        return []
    (at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, at + index * size) for index in range(count)]
    loads = [
        (address, offset, length) for kind, _, offset, address, _, length, _, _ in segments if kind == LOAD
    ]
    entries = [
        entry
        for kind, _, offset, _, _, length, _, _ in segments
        if kind == DYNAMIC
        for entry in struct.iter_unpack("<qQ", data[offset : offset + length - length % 16])
    ]
    tables = [value for tag, value in entries if tag == STRTAB]
    if not tables:
        return []
    strings = next(
        offset + tables[0] - address
        for address, offset, length in loads
        if address <= tables[0] < address + length
    )
    return [_string(data, strings + value) for tag, value in entries if tag == NEEDED]


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def missing(trees: list[Path]) -> list[str]:
    """Each `file needs library` where no file of that name lies anywhere in the trees, sorted."""
    files = [path for tree in trees for path in tree.rglob("*") if path.is_file() or path.is_symlink()]
    there = {path.name for path in files}
    return sorted(f"{path.name} needs {name}" for path, name in _wants(files) if name not in there)


def _wants(files: list[Path]) -> Iterator[tuple[Path, str]]:
    for path in files:
        if path.is_symlink() or not (".so" in path.name or path.stat().st_mode & 0o100):
            continue
        for name in needed(path.read_bytes()):
            yield path, name
