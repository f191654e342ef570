"""Records say of every field what it holds: its unit, what an absent value means, when it changes meaning. STYLE.md.

A record is what nobody changes once it is made (`@value`, a frozen dataclass, a named tuple) or what crosses the wire
(`WireModel`): what is persisted, what was read of a cluster, and what one part of the program hands to another.
"""

import ast
from collections.abc import Iterator

import pytest
from tests.test_repo import PYTHON, SHIPPED

BASES = {"BaseModel", "NamedTuple", "WireModel"}
PERSISTED = {
    "api/gpunode.py": {"Observed", "Request", "Transition"},
    "api/policy.py": {"GPUSharingPolicySpec"},
    "api/policystatus.py": {"GPUSharingPolicyStatus"},
    "planning/snapshot/records.py": {"Claim", "Deferred", "FailedNode", "Fence", "Verified"},
}
"""Some that an operator of another version reads. The rule has to know each as a record."""


def is_record(node: ast.ClassDef) -> bool:
    """Whether a class holds values that nobody changes."""
    made = [ast.unparse(decorator) for decorator in node.decorator_list]
    frozen = any(one.startswith("dataclass(") and "frozen=True" in one for one in made)
    return frozen or any(one.split("(")[0] == "value" for one in made) or _extends_one(node)


def _extends_one(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).split(".")[-1] in BASES for base in node.bases)


def records(text: str) -> Iterator[ast.ClassDef]:
    """The public records of a module."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and is_record(node):
            yield node


def unexplained(text: str) -> list[str]:
    """The public fields of the records of a module that have no docstring below them."""
    return [
        f"{record.name}.{field.target.id}"
        for record in records(text)
        for field, below in zip(record.body, [*record.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if not field.target.id.startswith("_") and not _is_text(below)
    ]


def _is_text(node: ast.stmt | None) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str) and bool(value.value.strip())


def test_every_field_of_a_record_says_what_it_holds() -> None:
    found = {name: fields for name in SHIPPED if (fields := unexplained(PYTHON[name]))}
    assert found == {}


def test_the_rule_knows_what_is_persisted() -> None:
    for name, wanted in PERSISTED.items():
        known = {record.name for record in records(PYTHON[f"operator/gpusharing/{name}"])}
        assert wanted - known == set()


@pytest.mark.parametrize("head", [
    "@value\nclass A:",
    "@value(eq=False)\nclass A:",
    "@dataclass(frozen=True, slots=True)\nclass A:",
    "class A(NamedTuple):",
    "class A(WireModel):",
])  # fmt: skip
def test_a_field_without_a_docstring_is_found(head: str) -> None:
    assert unexplained(f'{head}\n    x: int\n    y: int = 0\n    """Seconds."""\n    z: int') == [
        "A.x",
        "A.z",
    ]
    assert unexplained(f'{head}\n    x: int\n    """Seconds."""\n    _y: int\n') == []


def test_what_changes_and_what_is_private_is_no_record() -> None:
    assert unexplained("@dataclass(slots=True)\nclass A:\n    x: int\n@value\nclass _B:\n    x: int") == []
