"""What the source of the product may not grow into: limits that no linter knows (docs/adr/0029)."""

import ast
import re
from pathlib import Path

from hack.generate import ROOT

PLANNING = ROOT / "operator" / "gpusharing" / "planning"
MOST_NARROWINGS = 8
"""Places where the planner says by an assert what its types do not."""
MOST_LOOP_LINES = 200
CACHED = {
    "gpus/doubts.py", "gpus/geometry.py", "gpus/packing.py", "gpus/recommendation.py", "gpus/templates.py",
    "pools/candidates.py", "pools/hours.py", "pools/zones.py", "proof/gfdlabels.py", "snapshot/views.py",
    "wanted/migfile.py", "wanted/pluginconfig.py", "wanted/target.py", "way/verdict.py",
}  # fmt: skip
"""Modules that keep the answer of a pure function of a few values, such as a layout, a version or a text. None holds a
snapshot, and none outlasts a change of its arguments: what is decided is remembered by `memo.py` alone."""


def sources() -> dict[str, ast.Module]:
    """Every module of the planner, by its path in it."""
    return {
        str(path.relative_to(PLANNING)): ast.parse(path.read_text())
        for path in sorted(PLANNING.rglob("*.py"))
    }


def is_narrowing(node: ast.AST) -> bool:
    """Whether an assert says that something is there, or is of a type."""
    if not isinstance(node, ast.Assert):
        return False
    text = ast.unparse(node.test)
    return "is not None" in text or text.startswith("isinstance(")


def test_the_planners_types_carry_their_proof() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, module in sources().items()
        for node in ast.walk(module)
        if isinstance(node, ast.Assert) and is_narrowing(node)
    ]
    assert len(found) <= MOST_NARROWINGS, found


def test_a_narrowing_is_known_by_what_it_says() -> None:
    texts = {
        "assert x is not None": True,
        "assert isinstance(x, int)": True,
        "assert x, y": False,
        "x = 1": False,
    }
    assert {text: is_narrowing(ast.parse(text).body[0]) for text in texts} == texts


def test_what_is_decided_is_remembered_in_one_module() -> None:
    found = {
        name
        for name, module in sources().items()
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom)
        and node.module == "functools"
        and any(re.search("cache", alias.name) for alias in node.names)
    }
    assert found == CACHED, "a cache outside of memo.py: see CACHED for what it may hold"


def test_the_operators_loop_stays_one_that_a_person_reads() -> None:
    loop = Path(ROOT / "operator" / "gpusharing" / "controller" / "loop.py")
    assert len(loop.read_text().splitlines()) < MOST_LOOP_LINES
