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
    if not all(any(f".{method}(" in text for method in methods) for methods in (ASKS, READS)):
        return []
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.BoolOp | ast.IfExp)
        if set(called_on(node, ASKS)) & set(called_on(node, READS))
    ]


def test_no_file_is_asked_for_and_then_read() -> None:
    assert {name: lines for name, text in TESTS.items() if (lines := asked_then_read(text))} == {}


def test_the_rule_sees_what_it_is_for() -> None:
    assert asked_then_read('labels.exists() and "x" in labels.read_text()') == [1]
    assert asked_then_read("lines = log.read_text() if log.exists() else ''") == [1]
    assert asked_then_read("one.exists() and other.read_text()") == []


def test_no_server_of_a_test_prints_who_hung_up() -> None:
    assert [name for name, text in TESTS.items() if re.search(r"\bHTTPServer\(\(|ThreadingHTTPServer\(\(", text)] == []


def test_ports_of_programs_are_found_in_one_place() -> None:
    """hack.cluster.process.free_ports: none that the system gives to somebody else a moment later."""
    assert [name for name, text in TESTS.items() if re.search(r"def free_port|\.bind\(\(", text)] == []


# --- states that pass ----------------------------------------------------------------------------------------

LASTING = ("'yielded'", "'jobs'")
"""Words of what a fence says for as long as somebody else holds the node up."""


def fences_awaited(text: str) -> list[int]:
    """Lines of waits that look for a fence on a node now and then: it may come and go between two looks."""
    found = []
    for call in (one for one in ast.walk(ast.parse(text)) if isinstance(one, ast.Call) and one.args):
        waits = ast.unparse(call.func).rpartition(".")[2] in ("wait", "wait_until")
        looks = ast.unparse(call.args[0]) if waits and isinstance(call.args[0], ast.Lambda) else ""
        gone = re.sub(r"not \w+\.fence\(", "", looks)
        if ".fence(" in gone and not any(word in gone for word in LASTING):
            found.append(call.lineno)
    return found


def test_no_fence_is_waited_for_that_may_come_and_go_between_two_looks() -> None:
    """tests/integration/nodelog.py: `fences`, from the audit log. Or the change is held: product.py, `Pool.hold`."""
    rung2 = {name: text for name, text in TESTS.items() if name.startswith("tests/integration/test_")}
    assert {name: lines for name, text in rung2.items() if (lines := fences_awaited(text))} == {}


def test_a_passing_fence_is_seen() -> None:
    assert fences_awaited('pool.wait(lambda: pool.fence().get("stage") == "actuating", "the PNR")') == [1]
    assert fences_awaited('wait_until(lambda: all(pool.fence(one) for one in gang), 5, "both")') == [1]
    assert fences_awaited('pool.wait(lambda: not pool.fence(), "the fence to go")') == []
    assert fences_awaited('pool.wait(lambda: pool.fence().get("stage") == "yielded", "it to stand aside")') == []


def test_who_holds_a_change_has_an_operator_that_does_not_cure_it() -> None:
    """product.py, `Pool.hold`: with the WAITS of rung 2 it is cured after a minute, however long a test takes."""
    rung2 = {name: text for name, text in TESTS.items() if name.startswith("tests/integration/")}
    asking = [name for name, text in rung2.items() if re.search(r"\.hold\(", text)]
    assert asking
    assert [name for name in asking if "HELD" not in TESTS[name]] == []
    assert [name for name, text in TESTS.items() if re.search(r"pools?\S*\.inject\(.wedge-pending", text)] == []
