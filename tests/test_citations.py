"""What is cited is there: every page by its path, every anchor in it, every row of docs/design that is named by its id.

A page is cited by its path below the root or from the file that cites it. `owner/repository path.md` is a page of
somebody else's. Rows in brackets alone, such as (E18) or (b.4), need a citation of their page in the same module.
"""

import ast
import os
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from tests.test_repo import FILES, PAGES, PYTHON

CITATION = re.compile(r"(?<![\w./#-])((?:[\w.-]+/)*[\w-]+\.md)\b(?:#([\w-]+\w|\w))?")
LINK = re.compile(r"\]\(([^)#\s]*\.md)?(?:#([^)\s]+))?\)")
ELSEWHERE = re.compile(r"https?://\S+|(?<![\w./-])(?!docs/|hack/|tests/)[\w.-]+/[\w.-]+ [\w./-]+\.md\b")
"""Pages of others: by address, or by repository and path."""
ROW = r"(?:[PGETCXRSFD]\d{1,2}|[abd]\.\d{1,2})"
ROWS = re.compile(rf'(?:\(|^""")({ROW}(?:(?:, | and | to | ?[-–] ?){ROW})*)(?=[),:; ])', re.MULTILINE)
ROW_PAGES = {
    **dict.fromkeys("PGETCX", "docs/design/drain.md"),
    **dict.fromkeys("Rabd", "docs/design/nvidia.md"),
    **dict.fromkeys("SFD", "docs/design/faults.md"),
}
LEFT_OUT = ("CHANGELOG.md", "mkdocs.yml", "tests/hack/test_generate.py", "tests/test_citations.py")
"""What tells of the past, what mkdocs checks itself, and modules whose pages are made up."""


@cache
def anchors(page: str) -> frozenset[str]:
    """The ids of a page: set by hand, and those that its headings get."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return frozenset({*re.findall(r'<a id="([\w-]+)"></a>', text), *slugs})


def comments(text: str) -> Iterator[str]:
    """The comments of a module."""
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def docstrings(text: str) -> Iterator[str]:
    """Every text that stands by itself: what is said of a module, a class, a function or a value."""
    for node in ast.walk(ast.parse(text)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield f'"""{value.value}'


def said(name: str) -> str:
    """What a file says to its readers."""
    if name in PYTHON:
        return "\n".join([*comments(PYTHON[name]), *docstrings(PYTHON[name])])
    return FILES[name].read_text()


def below_root(name: str, path: str) -> str:
    """A path that a file gives relative to itself."""
    return Path(os.path.normpath(Path(name).parent / path)).as_posix()


def lost_citations(name: str, text: str) -> list[str]:
    """Pages and anchors that a file names and that are not there."""
    lost = []
    for path, anchor in CITATION.findall(ELSEWHERE.sub("", text)):
        page = path if path in PAGES else below_root(name, path)
        if page not in PAGES:
            lost.append(f"{name}: {path}")
        elif anchor and anchor not in anchors(page):
            lost.append(f"{name}: {page}#{anchor}")
    return lost


def lost_links(name: str, text: str) -> list[str]:
    """Anchors of a page's links that are not there; tests/test_repo.py has the files."""
    lost = []
    for path, anchor in LINK.findall(text):
        page = below_root(name, path) if path else name
        if anchor and page in PAGES and anchor not in anchors(page):
            lost.append(f"{name}: {path}#{anchor}")
    return lost


def lost_rows(name: str, text: str) -> list[str]:
    """Rows named by their ids alone that no page which the file cites has."""
    lost = []
    for group in ROWS.findall(text):
        for row in re.findall(ROW, group):
            page = ROW_PAGES[row[0]]
            if page not in text or row.lower().replace(".", "") not in anchors(page):
                lost.append(f"{name}: {row}")
    return lost


CITING = [
    name
    for name in FILES
    if name not in LEFT_OUT
    and name.endswith((".py", ".md", ".yaml", ".toml", ".c", ".h", ".tpl", ".sh", "Makefile"))
]


def test_every_page_and_anchor_that_is_cited_is_there() -> None:
    lost = []
    for name in CITING:
        text = said(name)
        if name in PAGES:
            lost += lost_links(name, text)
            text = LINK.sub("", text)
        lost += lost_citations(name, text)
    assert lost == []


def test_every_row_that_code_names_by_its_id_is_on_the_page_that_it_cites() -> None:
    assert [row for name in CITING if name in PYTHON for row in lost_rows(name, said(name))] == []


@pytest.mark.parametrize("text", [
    "see no-such-page.md",
    "see docs/design/nowhere.md",
    "see docs/design/drain.md#e99",
])  # fmt: skip
def test_a_citation_of_what_is_not_there_is_found(text: str) -> None:
    assert lost_citations("here.py", text)


def test_a_row_without_its_page_is_found() -> None:
    assert lost_rows("here.py", "never twice (E1)") == ["here.py: E1"]
    assert lost_rows("here.py", "docs/design/drain.md; never twice (E1, E99)") == ["here.py: E99"]
    assert lost_rows("here.py", "docs/design/drain.md; never twice (E1, E2)") == []


def test_a_page_of_somebody_elses_is_named_with_its_repository() -> None:
    assert lost_citations("here.py", "HTTP/2 (grpc/grpc doc/PROTOCOL-HTTP2.md)") == []
    assert lost_citations("here.py", "HTTP/2 (doc/PROTOCOL-HTTP2.md)")
