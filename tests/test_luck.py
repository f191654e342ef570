"""Tests that go well by luck on most days: what was mended once in one of them is written in none. STYLE.md, Tests."""

import ast
import re
from collections.abc import Iterator

from tests.test_repo import PYTHON

HERE = "tests/test_luck.py"
TESTS = {name: text for name, text in PYTHON.items() if name.startswith("tests/") and name != HERE}
ASKS, READS = {"exists", "is_file", "is_dir", "is_socket"}, {"read_text", "read_bytes", "open", "iterdir"}


def called_on(node: ast.AST, methods: set[str]) -> Iterator[str]:
    """The expressions on which one of these methods is called in a part of a program."""
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.func.attr in methods:
            yield ast.unparse(one.func.value)


def asked_then_read(text: str) -> list[int]:
    """Lines of expressions that ask whether a file is there and read it, as if nobody could take it away in between."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.BoolOp | ast.IfExp)
        if set(called_on(node, ASKS)) & set(called_on(node, READS))
    ]


def test_no_file_is_asked_for_and_then_read() -> None:
    """hack.cluster.process.text_of: empty where there is none."""
    assert {name: lines for name, text in TESTS.items() if (lines := asked_then_read(text))} == {}


def test_the_rule_sees_what_it_is_for() -> None:
    assert asked_then_read('labels.exists() and "x" in labels.read_text()') == [1]
    assert asked_then_read("lines = log.read_text() if log.exists() else ''") == [1]
    assert asked_then_read("one.exists() and other.read_text()") == []


def test_no_server_of_a_test_prints_who_hung_up() -> None:
    """tests.fakes.web.WebServer: what the program under test says on standard error is compared."""
    assert [
        name for name, text in TESTS.items() if re.search(r"\bHTTPServer\(\(|ThreadingHTTPServer\(\(", text)
    ] == []


def test_ports_of_programs_are_found_in_one_place() -> None:
    """hack.cluster.process.free_ports: none that the system gives to somebody else a moment later."""
    assert [name for name, text in TESTS.items() if re.search(r"def free_port|\.bind\(\(", text)] == []
