"""How big an image is, and of what: one table."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hack.images.layers import compress, pack_tar, walk

LIMIT = 70_000_000
"""Bytes, compressed, above which no image may be."""
KINDS = (
    ("operator and agent", r"usr/local/(bin|lib/[^/]+/dist-packages/(gpusharing|gpu_sharing_operator))(/|$)"),
    ("libraries: bytecode", r"usr/local/.*\.pyc$"),
    ("libraries: compiled", r"usr/local/.*\.so(\.|$)"),
    ("libraries: source", r"usr/local/"),
    ("Python: bytecode", r"usr/lib/python3.*\.pyc$"),
    ("Python: interpreter", r"usr/bin/python|usr/lib/python3.*\.so$"),
    ("Python: source", r"usr/lib/python3"),
    ("libraries of the system", r"usr/lib(64)?/"),
    ("time zones", r"usr/share/zoneinfo"),
    ("copyright, users, lists", r""),
)
"""The first pattern that matches a path says what it is."""


def kind(path: str) -> str:
    """What a path of the image is, for the table."""
    return next(name for name, pattern in KINDS if re.match(pattern, path))


def by_kind(trees: Sequence[Path]) -> dict[str, tuple[int, int, int]]:
    """Files, bytes, and bytes when compressed alone, of each kind."""
    found: dict[str, tuple[int, int, int]] = {}
    for name, _ in KINDS:
        count = size = packed = 0
        for tree in trees:
            paths = [
                path for path in walk(tree) if _is_file(path) and kind(str(path.relative_to(tree))) == name
            ]
            if paths:
                count, size = count + len(paths), size + sum(path.stat().st_size for path in paths)
                packed += len(compress(pack_tar(tree, paths, 0)))
        found[name] = (count, size, packed)
    return found


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def table(found: Mapping[str, tuple[int, int, int]], whole: int) -> str:
    """The table; `whole`: bytes of all layers as they are transferred."""
    rows = [f"  {'':26} {'files':>6} {'MB':>7} {'compressed':>11}"]
    rows += [
        f"  {name:26} {count:6} {size / 1e6:7.1f} {packed / 1e6:11.1f}"
        for name, (count, size, packed) in found.items()
    ]
    count, size = (sum(row[index] for row in found.values()) for index in (0, 1))
    rows.append(f"  {'all, as transferred':26} {count:6} {size / 1e6:7.1f} {whole / 1e6:11.1f}")
    return "\n".join(rows)


def too_big(whole: int) -> str:
    """What is wrong with this size; empty when nothing is."""
    if whole <= LIMIT:
        return ""
    return f"{whole / 1e6:.1f} MB compressed are more than {LIMIT / 1e6:.0f}: see the table for what grew"
