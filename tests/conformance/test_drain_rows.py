"""drain_rows.yaml and rollout_rows.yaml name what proves each row, or the decision against it; held here."""

import ast
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tests.yamlfiles import read_yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TABLES = ("drain_rows.yaml", "rollout_rows.yaml")
DRAIN, ROLLOUT = (
    {
        row: entry if isinstance(entry, dict) else {"proof": entry}
        for row, entry in read_yaml(HERE / name)["rows"].items()
    }
    for name in TABLES
)
ROWS: dict[str, dict[str, Any]] = DRAIN | ROLLOUT
CASES = {row["id"] for row in read_yaml(HERE / "drain_cases.yaml")["cases"]}
NAMED = "P1–P21, G1–G12, E1–E21, T1–T17, C1–C13"
"""The rows that drain_rows.yaml must have: tables 1.1 to 1.5."""
TOPICS = {
    "2.1": "numbers and percentages, the whole, used is a set, never below zero, away already, lowering",
    "2.2": "who owns the limit, no limit said, atomic claim, stale claims, windows, blackouts, why and when next",
    "2.3": "order, stable batch, canary, batch success, halting, deferral, retry, roll back, pause, skip, two policies,"
    " edits, counting",
    "5.2": "Pending, Preflight, Admitted, Cordoned, WaitingForJobs, Draining, VerifyingIdle, Reconfiguring, Validating,"
    " Uncordoning, Succeeded, Aborting, Deferred, Failed, Skipped",
    "5.3": "the closed list, the one in the column",
    "5.4": "columns, phases, messages, events, metrics, when a clock runs out",
    "5.5": "before anything, after the claim, one of two budgets, after the cordon, a person cordons meanwhile,"
    " the answer to an eviction is lost, another pod of the name, after the last holder,"
    " the answer to the point of no return is lost, the point of no return against an uncordon,"
    " while the actuator works, success was seen, the answer to the release is lost, the release of a claim is lost,"
    " the record is deleted, the finalizer is stripped, the policy is deleted, everything of ours is gone,"
    " two operators, the node is made again, the server is away, the clock jumps",
}
"""The rows of each other table, which rollout_rows.yaml must have."""


def expand(text: str) -> list[str]:
    """`P1–P3, G6` as P1 P2 P3 G6."""
    rows = []
    for part in text.split(", "):
        first, _, last = part.partition("–")
        kind, begin = first[0], int(first[1:])
        rows += [f"{kind}{number}" for number in range(begin, int(last[1:] or begin) + 1 if last else begin + 1)]
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
    """Every text that a file, or a module of tests that it imports, spells out: the ids of its parameters are there."""
    tree = ast.parse((ROOT / path).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    modules = {
        f"{module.replace('.', '/')}.py"
        for node in imports
        for module in (f"{node.module}", *(f"{node.module}.{name.name}" for name in node.names))
        if module.startswith("tests.")
    }
    found = {other for other in modules if (ROOT / other).is_file()}
    return frozenset().union(*map(_texts_in, [tree, *(ast.parse((ROOT / one).read_text()) for one in found)]))


def _texts_in(tree: ast.Module) -> frozenset[str]:
    return frozenset(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
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
    assert len(expand(NAMED)) == 21 + 12 + 21 + 17 + 13
    assert sorted(DRAIN) == sorted(expand(NAMED))
    topics = [f"{table} {topic}" for table, listed in TOPICS.items() for topic in listed.split(", ")]
    assert sorted(ROLLOUT) == sorted(topics)


@pytest.mark.parametrize("name", TABLES)
def test_no_row_stands_there_twice(name: str) -> None:
    """YAML would take the last one without a word."""
    found = Counter(re.findall(r"^  (\S[^:]*):", (HERE / name).read_text(), re.MULTILINE))
    assert [row for row, times in found.items() if times > 1] == []


def wrong(row: str, entry: dict[str, Any]) -> list[str]:
    """What is wrong with a row: neither proven nor refused, or by something that is not there."""
    found = [f"unknown field {key}" for key in entry.keys() - FIELDS]
    proof, left_out, differs = entry.get("proof", []), entry.get("left_out", ""), entry.get("differs", "")
    refused = bool(REFUSED & {row, row.split()[0]})
    if row not in DRAIN and not entry.get("demands"):  # those of DRAIN are on the page, and said there
        found.append("demands nothing")
    if not (proof or left_out):  # the page names whole tables, so that a row must say it too
        found.append("neither proof nor refusal")
    if left_out and not refused:
        found.append("leaves something out without a decision")
    if differs and LEAVES_OUT.search(differs):
        found.append("what is left out belongs into left_out, with a decision")
    if len(set(proof)) != len(proof):
        found.append("a proof stands there twice")
    return found + [problem for one in proof if (problem := missing(one))]


def no_decision(page: str) -> str:
    """Return what is wrong with the page that a row names for its refusal, or an empty text if it is the right one."""
    return "" if page == DECISION else f"no decision {page}"


FIELDS = {"demands", "proof", "differs", "left_out"}
DECISION = "docs/explanation/not-built.md"
REFUSED = {
    name.strip()
    for line in (ROOT / DECISION).read_text().splitlines()
    if line.startswith("| ")
    for name in line.split("|")[1].split(",")
}
"""The rows of which, or of a part of which, that page says why nobody builds it."""
LEAVES_OUT = re.compile(r"\b(no|none|nobody|only|without)\b")
"""Words of a `differs` that tell of something that is not there, instead of what is there in its place."""


@pytest.mark.parametrize("row", ROWS)
def test_what_proves_a_row_is_there_or_why_nobody_builds_it(row: str) -> None:
    assert wrong(row, ROWS[row]) == []


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "nothing at all": ({"demands": "x"}, "neither proof nor refusal"),
    "an empty proof": ({"demands": "x", "proof": []}, "neither proof nor refusal"),
    "a plan": ({"demands": "x", "planned": "later"}, "unknown field planned"),
    "no demand": ({"proof": ["tA1"]}, "demands nothing"),
    "a field of its own": ({"demands": "x", "later": "x"}, "unknown field later"),
    "a part that nobody refused": (
        {"demands": "x", "proof": ["tA1"], "left_out": "y"}, "leaves something out without a decision"),
    "a part that passes for a difference": (
        {"demands": "x", "proof": ["tA1"], "differs": "no list of it"}, "belongs into left_out"),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "said"), BROKEN.values(), ids=BROKEN)
def test_a_row_that_says_too_little_is_found_out(entry: dict[str, Any], said: str) -> None:
    assert any(said in what for what in wrong("x99", entry))


PAGE = (ROOT / "docs" / "design" / "drain.md").read_text()
MAPPED: dict[str, list[str]] = read_yaml(HERE / "rollout_rows.yaml")["page"]


def unmapped(page: str, mapped: Mapping[str, list[str]]) -> list[str]:
    """What is wrong with how ids of the page stand beside rows; empty when each stands in one place."""
    ids = Counter(re.findall(r'<a id="([^"]+)"></a>', page))
    found = [f"{name} is there twice" for name, times in ids.items() if times > 1]
    rows = {row.lower() for row in DRAIN}
    found += [f"{row} is no row of the page" for row in sorted(rows - ids.keys())]
    found += [f"nothing proves {name}" for name in sorted(ids.keys() - rows - mapped.keys())]
    found += [f"{name} is no id of the page" for name in sorted(mapped.keys() - ids.keys())]
    found += [f"{name} stands in both files" for name in sorted(mapped.keys() & rows)]
    found += [f"{name}: nothing proves it" for name, proofs in mapped.items() if not proofs]
    named = Counter(chain.from_iterable(mapped.values()))
    found += [f"{row} is no row" for row in sorted(named.keys() - ROWS.keys())]
    return found + [f"{row} proves nothing of the page" for row in ROLLOUT if row not in named]


def test_every_id_of_the_page_stands_beside_the_rows_that_prove_it_in_one_place() -> None:
    assert unmapped(PAGE, MAPPED) == []


UNMAPPED: dict[str, tuple[str, Mapping[str, list[str]], str]] = {
    "an id that nobody mapped": (f'{PAGE}<a id="x99"></a>', MAPPED, "nothing proves x99"),
    "an id that stands there twice": (f'{PAGE}<a id="x1"></a>', MAPPED, "x1 is there twice"),
    "an id that is gone": (PAGE, {**MAPPED, "x99": ["T7"]}, "x99 is no id of the page"),
    "a row that is gone": (PAGE, {**MAPPED, "x7": ["T99"]}, "T99 is no row"),
    "a row of the other file": (PAGE, {**MAPPED, "t7": ["T7"]}, "t7 stands in both files"),
    "nothing that proves it": (PAGE, {**MAPPED, "x7": []}, "x7: nothing proves it"),
    "a row that no id names": (
        PAGE,
        {**MAPPED, "x7": ["T7"]},
        "5.5 the clock jumps proves nothing of the page",
    ),
    "a row that the page lost": (PAGE.replace('<a id="t7"></a>', ""), MAPPED, "t7 is no row of the page"),
}


@pytest.mark.parametrize(("page", "mapped", "said"), UNMAPPED.values(), ids=UNMAPPED)
def test_an_id_that_stands_in_no_place_or_in_two_is_found_out(
    page: str, mapped: Mapping[str, list[str]], said: str
) -> None:
    assert said in unmapped(page, mapped)


@pytest.mark.parametrize("row", DRAIN)
def test_the_specification_calls_no_row_planned(row: str) -> None:
    told = next((line for line in PAGE.splitlines() if f'id="{row.lower()}"' in line), "")
    assert "planned" not in told.lower(), told


def test_every_row_of_its_own_that_the_cases_know_is_one_that_proves_something() -> None:
    proofs = set(chain.from_iterable(entry.get("proof", []) for entry in ROWS.values()))
    own = {case for case in CASES if re.match(r"own [PGETC]\d+", case)}
    named = {case for case in own if case.split()[1] in ROWS}
    assert named <= proofs


@pytest.mark.parametrize("proof", [
    "tZ1",
    "tests/nowhere.py::test_x",
    "tests/conformance/test_drain_rows.py::test_nobody_wrote",
    "tests/planning/test_before.py::test_the_change_is_given_up[never heard of]",
    "tests/api/test_policy_table.py::test_the_types_refuse_and_name_the_field[never heard of]",
])  # fmt: skip
def test_a_proof_that_is_not_there_is_found_out(proof: str) -> None:
    assert missing(proof)
