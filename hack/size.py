"""`make size` prints how big the code of each package is: lines, files, types and public names. No test checks these
numbers."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hack.generate import ROOT

TREES = ("operator/gpusharing", "operator/kubectl_gpusharing", "hack", "tests")


@dataclass(frozen=True, slots=True)
class PackageSize:
    """One row of the table."""

    name: str
    lines: int
    files: int
    types: int
    names: int


def measure(name: str, files: Iterable[Path]) -> PackageSize:
    """Count lines (also empty ones), files, types and public names of these modules, and return the sums as a row
    called `name`."""
    texts = [path.read_text() for path in files]
    modules = [ast.parse(text) for text in texts]
    types = sum(isinstance(node, ast.ClassDef) for module in modules for node in ast.walk(module))
    public = [item for module in modules for item in _defined(module) if not item.startswith("_")]
    return PackageSize(name, sum(map(len, map(str.splitlines, texts))), len(texts), types, len(public))


def _defined(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))


def rows(root: Path = ROOT) -> Iterator[PackageSize]:
    """Yield a row for each folder in TREES that has modules of its own, sorted by path, and after the folders of a tree
    a row for the whole tree."""
    for tree in TREES:
        files = sorted((root / tree).rglob("*.py"))
        for folder in sorted({file.parent for file in files}):
            yield measure(str(folder.relative_to(root)), sorted(folder.glob("*.py")))
        yield measure(f"all of {tree}", files)


if __name__ == "__main__":
    print(f"{'PACKAGE':44} {'LINES':>7} {'FILES':>6} {'TYPES':>6} {'NAMES':>6}")
    for row in rows():
        print(f"{row.name:44} {row.lines:7} {row.files:6} {row.types:6} {row.names:6}")
