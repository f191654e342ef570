"""drain_rows.yaml names what proves the first rows of docs/design/drain.md; this test holds it to its word."""

import ast
import re
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROWS: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "drain_rows.yaml").read_text())["rows"]
CASES = {row["id"] for row in yaml.safe_load((HERE / "drain_cases.yaml").read_text())["cases"]}
NAMED = "P1–P5, P7–P9, P11, P12, P14, P17–P19, G1–G6, E1–E9, T1–T3, T9–T13, C1, C4–C7, C13"
"""The rows that the table must have."""


def expand(text: str) -> list[str]:
    """`P1–P3, G6` as P1 P2 P3 G6."""
    rows = []
    for part in text.split(", "):
        first, _, last = part.partition("–")
        kind, begin = first[0], int(first[1:])
        rows += [
            f"{kind}{number}" for number in range(begin, int(last[1:] or begin) + 1 if last else begin + 1)
        ]
    return rows


@cache
def functions_of(path: str) -> frozenset[str]:
    """The tests of a file as `name` or `Class.name`."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for item in inside:
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name.startswith("test_"):
                found.add(prefix + item.name)
    return frozenset(found)


@cache
def texts_of(path: str) -> frozenset[str]:
    """Every text that a file spells out: the ids of its parameters are among them."""
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    return frozenset(
        node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def missing(proof: str) -> str:
    """What is not there of a proof; empty when all is."""
    match = re.fullmatch(r"(tests/[\w/]+\.py)::([\w.]+)(?:\[(.+)\])?", proof)
    if match is None:
        return "" if proof in CASES else f"no case {proof!r} in drain_cases.yaml"
    path, name, parameter = match.groups()
    if not (ROOT / path).is_file():
        return f"no file {path}"
    if name not in functions_of(path):
        return f"no test {name} in {path}"
    if parameter is not None and parameter not in texts_of(path):
        return f"no parameter {parameter!r} in {path}"
    return ""


def test_the_table_has_every_row_that_the_issue_names_and_no_other() -> None:
    assert len(expand(NAMED)) == 14 + 6 + 9 + 8 + 6
    assert sorted(ROWS) == sorted(expand(NAMED))


@pytest.mark.parametrize("row", ROWS)
def test_what_proves_a_row_is_there(row: str) -> None:
    entry = ROWS[row]
    assert entry.keys() <= {"demands", "proof", "differs"}
    assert entry["demands"]
    assert entry["proof"]
    assert len(set(entry["proof"])) == len(entry["proof"])
    assert [problem for proof in entry["proof"] if (problem := missing(proof))] == []


def test_every_row_of_its_own_that_the_cases_know_is_one_that_proves_something() -> None:
    proofs = set(chain.from_iterable(entry["proof"] for entry in ROWS.values()))
    own = {case for case in CASES if re.match(r"own [PGETC]\d+", case)}
    named = {case for case in own if case.split()[1] in ROWS}
    assert named <= proofs


@pytest.mark.parametrize("proof", [
    "tZ1",
    "tests/nowhere.py::test_x",
    "tests/conformance/test_drain_rows.py::test_nobody_wrote",
    "tests/planning/test_before.py::test_the_node_is_not_proven_idle[never heard of]",
])  # fmt: skip
def test_a_proof_that_is_not_there_is_found_out(proof: str) -> None:
    assert missing(proof)
