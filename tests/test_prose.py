"""Docstrings that a machine can tell to be unreadable: missing, too short, in shorthand, or without a subject.

Most of what makes prose good cannot be checked; `REVIEWING.md` has the test that people do.
"""

import ast
import re
from collections.abc import Iterator

import pytest
from tests.test_repo import PYTHON

LINES = 6
"""A function of so many lines has a docstring, from its `def` to its end."""
WORDS = 4
"""The least words of a docstring that says more than the name."""
SHORTHAND = re.compile(r"\b(?:None|[Ee]mpty): ")
REFUSED = re.compile(r"(?:Of|Those|It|They|Its|Whatever|Somebody)\b")
"""A docstring that opens so leaves out what it is about."""
DOUBTFUL = re.compile(r"(?:That|As|By|For|The same|Nothing|What|Where|How|Who)\b")
"""Openings that are often riddles and sometimes good sentences: `python -m tests.test_prose` lists them."""
SOURCES = {name: text for name, text in PYTHON.items() if name.startswith(("operator/", "hack/"))}

TERMS = {
    "fence": r"\bfence[sd]?\b",
    "gang": r"\bgangs?\b",
    "wave": r"\bwaves?\b",
    "newcomer": r"\bnewcomers?\b",
    "class": r"\bclass(?:es)? of disruption\b",
    "point-of-no-return": r"\bpoint of no return\b",
}
"""Words of docs/design/glossary.md, by their anchor, that mean nothing else in the operator's docstrings."""
GLOSSARY = "docs/design/glossary.md#"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def documented(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield line, name and text of each docstring: of modules, classes, functions, fields, constants, descriptions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function):
            if doc := ast.get_docstring(node):
                yield getattr(node, "lineno", 1), getattr(node, "name", "module"), doc
            for before, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(before, ast.Assign | ast.AnnAssign) and (text := literal(after)):
                    target = before.target if isinstance(before, ast.AnnAssign) else before.targets[0]
                    yield after.lineno, ast.unparse(target), text
        if (
            isinstance(node, ast.keyword)
            and node.arg == "description"
            and isinstance(node.value, ast.Constant)
        ):
            yield node.value.lineno, "description", str(node.value.value)


def literal(node: ast.stmt) -> str:
    """Return the text of a statement that is nothing but a string, else an empty text."""
    if (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return node.value.value.strip()
    return ""


def complaint(text: str, *, words: int = WORDS) -> str:
    """Return what is wrong with a docstring, or an empty text."""
    if len(text.split()) < words:
        return f"fewer than {words} words: {text}"
    if REFUSED.match(text):
        return f"no subject: {text.splitlines()[0]}"
    if match := SHORTHAND.search(text):
        return f"shorthand, write `or None if` or `empty if`: {text[max(0, match.start() - 30) : match.end() + 30]!r}"
    return ""


def complaints(text: str) -> list[str]:
    """Return what is wrong with the docstrings of a module's source, each with its line."""
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    missing = [
        f"{node.lineno} {node.name}: no docstring"
        for node in functions
        if not ast.get_docstring(node)
        and not is_dunder(node.name)
        and (node.end_lineno or 0) - node.lineno >= LINES - 1
    ]
    names = {node.name for node in functions}
    wrong = [
        f"{line} {name}: {said}"
        for line, name, doc in documented(tree)
        if (said := complaint(doc, words=WORDS if name in names else 1))
    ]
    return [*missing, *wrong]


def is_dunder(name: str) -> bool:
    """Whether Python gives the method its meaning, such as `__init__`."""
    return name.startswith("__") and name.endswith("__")


def test_docstrings_are_sentences_about_their_function() -> None:
    assert {name: found for name, text in SOURCES.items() if (found := complaints(text))} == {}


def unlinked(text: str) -> list[str]:
    """Return the words of our own that a module's docstrings use and do not link to the glossary."""
    said = "\n".join(doc for _, name, doc in documented(ast.parse(text)) if name != "description")
    return [word for word, form in TERMS.items() if re.search(form, said) and f"{GLOSSARY}{word}" not in said]


def test_words_of_our_own_are_linked_where_a_module_uses_them() -> None:
    modules = {name: text for name, text in SOURCES.items() if name.startswith("operator/")}
    assert {name: words for name, text in modules.items() if (words := unlinked(text))} == {}
    assert unlinked('"""Read the fence of a node."""\n') == ["fence"]


BODY = "\n    a = 1\n    b = 2\n    c = 3\n    d = 4\n    return a + b + c + d\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f():" + BODY, "no docstring"),
        ('def f():\n    """As JSON."""\n', "fewer than 4 words"),
        ('def f():\n    """Those that the plugin leaves alone."""\n', "no subject"),
        ('def f():\n    """Return the node. None: there is no node."""\n', "shorthand"),
        ('class A:\n    x: int | None\n    """The GPUNode; None: there is none yet."""\n', "shorthand"),
        ('X = 1\n"""Whatever the server sends."""\n', "no subject"),
        ('x: str = Field(description="Its name in the pool.")\n', "no subject"),
    ],
)
def test_a_docstring_that_only_its_author_can_expand_is_found(source: str, said: str) -> None:
    found = complaints(source)
    assert len(found) == 1
    assert said in found[0]


def test_a_short_function_and_a_plain_sentence_are_left_alone() -> None:
    assert complaints("def f():\n    return 1\n") == []
    assert complaints('def f():\n    """Return the name, or None if the node has none."""\n') == []


if __name__ == "__main__":
    for path, source_text in SOURCES.items():
        for at, what, doc in documented(ast.parse(source_text)):
            if DOUBTFUL.match(doc):
                print(f"{path}:{at}: {what}: {doc.splitlines()[0]}")
