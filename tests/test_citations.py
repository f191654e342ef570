"""What is cited is there: every page by its path, every anchor in it, every row of docs/design that is named by its id. Every row and bullet of docs/design has an id.
A page is cited by its path below the root or from the file that cites it. `owner/repository path.md` is a page of somebody else's. Where a file names rows alone, such as (E18), `# E2, E3: gone` or b.4, it cites their page too, and all rows that it names are there."""

import ast
import os
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from tests.test_repo import FILES, PAGES, PYTHON, SHIPPED

CITATION = re.compile(r"(?<![\w./#-])((?:[\w.-]+/)*[\w-]+\.md)\b(?:#([\w-]+\w|\w))?")
LINK = re.compile(r"\]\(([^)#\s]*\.md)?(?:#([^)\s]+))?\)")
ELSEWHERE = re.compile(
    r"https?://\S+|\.\./blob/main/\S+|(?<![\w./-])(?!docs/|hack/|tests/)[\w.-]+/[\w.-]+ [\w./-]+\.md\b"
)
"""Pages of others: by address, or by repository and path; and links from a form for issues (test_workflows.py)."""
ROW = r"(?:[PGETCXRSFD]\d{1,2}|[abd]\.\d{1,2})"
ROWS = re.compile(rf'(?:\(|^"""|^# )({ROW}(?:(?:, | and | to | ?[-–] ?){ROW})*)(?=[),:; ])', re.MULTILINE)
"""In brackets, or where a docstring or a comment begins: rows, whether the file cites a page or not."""
DOTTED = re.compile(r"(?<![\w./#-])[abd]\.\d{1,2}(?![\w.-]*\w)")
ANYWHERE = re.compile(rf"(?<![\w./#-]){ROW}(?![\w.-]*\w)")
"""Rows in the prose of a module that cites their page; in another one, T4 may be a card."""
ROW_PAGES = {
    **dict.fromkeys("PGETCX", "docs/design/drain.md"),
    **dict.fromkeys("Rabd", "docs/design/nvidia.md"),
    **dict.fromkeys("SFD", "docs/design/faults.md"),
}
RULE = re.compile(r"^(?:\| (?!---|\[)|- |\d+\. )")
"""The beginning of a row, a bullet or a numbered item. A row that begins with a link leads to a page: it is no rule."""
FIELDS = ("| `spec.", "| `status.")
"""Rows of d.8, which are data; tests/integration/test_clusterpolicy_fields.py compares them."""
UPSTREAM = re.compile(r"(?<![\w./-])(?:[\w.-]+/)*([\w-]+\.(?:go|proto|h))\b")
"""A source file of somebody else's, by its name."""
VERSION = re.compile(r"\bv?\d+\.\d+|\bat\s+[0-9a-f]{7}\b")
LEFT_OUT = ("CHANGELOG.md", "mkdocs.yml", "tests/hack/test_generate.py", "tests/test_citations.py")
"""What tells of the past, what mkdocs checks itself, and modules whose pages are made up."""


@cache
def anchors(page: str) -> frozenset[str]:
    """The ids of a page: set by hand, and those that its headings get."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return frozenset({*re.findall(r'<a id="([\w-]+)"></a>', text), *slugs})


def rules_without_id(page: str, text: str) -> list[str]:
    """Rows, bullets and numbered items that nobody can cite. The row above a |---| is the head of a table."""
    lines = text.splitlines()
    return [
        f"{page}: {line[:60]}"
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if RULE.match(line) and not below.startswith("|---") and not line.startswith(FIELDS)
        if '<a id="' not in line
    ]


def comments(text: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def docstrings(text: str) -> Iterator[str]:
    """Every text that stands by itself: what is said of a module, a class, a function or a value."""
    for node in ast.walk(ast.parse(text)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield f'"""{value.value}'


@cache
def said(name: str) -> str:
    """What a file says to its readers, or nothing where a module cites neither a page nor a row."""
    if name in PYTHON and ".md" not in PYTHON[name] and not re.search(rf"\b{ROW}\b", PYTHON[name]):
        return ""
    if name in PYTHON:
        return "\n".join([*comments(PYTHON[name]), *docstrings(PYTHON[name])])
    return FILES[name].read_text()


def below_root(name: str, path: str) -> str:
    return Path(os.path.normpath(Path(name).parent / path)).as_posix()


def lost_citations(name: str, text: str) -> list[str]:
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


def rows_named(name: str, text: str) -> set[str]:
    cited = {page for page in ROW_PAGES.values() if page in text and name.endswith(".py")}
    found = {row for group in ROWS.findall(text) for row in re.findall(ROW, group)}
    prose = {row for row in ANYWHERE.findall(text) if ROW_PAGES[row[0]] in cited}
    return found | prose | set(DOTTED.findall(text))


def lost_rows(name: str, text: str) -> list[str]:
    """Rows named by their ids alone that no page which the file cites has."""
    return [
        f"{name}: {row}"
        for row in sorted(rows_named(name, text))
        if ROW_PAGES[row[0]] not in text or row.lower().replace(".", "") not in anchors(ROW_PAGES[row[0]])
    ]


def blocks(text: str) -> Iterator[str]:
    """The docstrings of a module, and its comments, those of neighboring lines as one."""
    yield from docstrings(text)
    block, last = "", 0
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row = token.start[0]
            if row > last + 1:
                yield block
                block = ""
            block, last = f"{block}\n{token.string}", row
    yield block


def unversioned(text: str) -> set[str]:
    """Source files of others that a module cites, and never with a version or commit in the same paragraph."""
    cited: set[str] = set()
    versioned: set[str] = set()
    if not UPSTREAM.search(text):
        return cited
    for paragraph in (one for block in blocks(text) for one in block.split("\n\n")):
        found = set(UPSTREAM.findall(paragraph))
        cited |= found
        versioned |= found if VERSION.search(paragraph) else set()
    return cited - versioned


UNREAD = (".lock", ".sum", ".svg", "LICENSE")
"""Ends of names of files that a program writes whole, and of what is not ours."""
HISTORY = "docs/adr/history/"
CITING = [name for name in FILES if name not in LEFT_OUT and not name.endswith(UNREAD) and not name.startswith(HISTORY)]
ROW_CITING = [name for name in CITING if name not in PAGES]


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
    assert [row for name in ROW_CITING for row in lost_rows(name, said(name))] == []


def test_every_source_file_of_others_is_cited_with_its_version() -> None:
    found = {name: files for name in SHIPPED if (files := unversioned(PYTHON[name]))}
    assert found == {}


@pytest.mark.parametrize(("text", "files"), [
    ('"""As in pkg/a/b.go."""', {"b.go"}),
    ('"""As in kubernetes v1.36.3 pkg/a/b.go."""', set()),
    ("# As in kubernetes v1.36.3\n# pkg/a/b.go.", set()),
    ("# As in kubernetes v1.36.3\n\nx = 1\n# pkg/a/b.go.", {"b.go"}),
    ('"""As in mimir pkg/a/b.go at 0c388a4."""', set()),
    ('"""kubernetes v1.36.3 pkg/a/b.go.\n\nThe rest of b.go."""', set()),
    ('"""kubernetes v1.36.3.\n\npkg/a/b.go."""', {"b.go"}),
])  # fmt: skip
def test_a_source_file_without_a_version_is_found(text: str, files: set[str]) -> None:
    assert unversioned(text) == files


def test_every_rule_of_the_specification_has_an_id_of_its_own() -> None:
    pages = {name: text for name, text in PAGES.items() if name.startswith("docs/design/")}
    assert pages
    assert [rule for name, text in pages.items() for rule in rules_without_id(name, text)] == []
    for name, text in pages.items():
        ids = re.findall(r'<a id="([^"]*)"></a>', text)
        assert len(ids) == len(set(ids)), name


def test_a_rule_without_an_id_is_found() -> None:
    table = '| Row | Rule |\n|---|---|\n| <a id="e1"></a>E1 | never twice |\n'
    assert rules_without_id("drain.md", f'{table}\n- <a id="b"></a>one') == []
    for rule in ("| E2 | twice |", "- one", "1. first"):
        assert rules_without_id("drain.md", table + rule) == [f"drain.md: {rule}"]


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


@pytest.mark.parametrize(("text", "row"), [
    ("# E2, E99: gone", "E2"),
    ("docs/design/drain.md\n# E2, E99: gone", "E99"),
    ("capacity outlives the plugin (actuators b.7)", "b.7"),
    ("docs/design/nvidia.md and, in prose, b.99", "b.99"),
    ("docs/design/drain.md and, in prose, E99", "E99"),
])  # fmt: skip
def test_a_row_is_found_wherever_a_module_names_it(text: str, row: str) -> None:
    assert f"here.py: {row}" in lost_rows("here.py", text)


@pytest.mark.parametrize("text", ["on a T4 with 0.20.1", "docs/design/drain.md; a name such as d.2-job, pool-b.1.x"])
def test_a_card_and_a_name_are_no_rows(text: str) -> None:
    assert lost_rows("here.py", text) == []


def test_a_page_of_somebody_elses_is_named_with_its_repository() -> None:
    assert lost_citations("here.py", "HTTP/2 (grpc/grpc doc/PROTOCOL-HTTP2.md)") == []
    assert lost_citations("here.py", "HTTP/2 (doc/PROTOCOL-HTTP2.md)")
