"""docs/design/cli.md: every expectation of the plugin's users, and every verb, names what holds it."""

import re

import pytest
from hack.generate import ROOT

from kubectl_gpusharing.shell.arguments import VERBS

PAGE = (ROOT / "docs" / "design" / "cli.md").read_text().splitlines()
REFUSED = (ROOT / "docs" / "explanation" / "not-built.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE if re.match(r"\| \d+ \|", line)]
BY_VERB = [line.strip("| ").split(" | ") for line in PAGE if re.match(r"\| `[a-z-]+` \|", line)]


def test_every_expectation_has_its_row() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(37, 53))


def test_every_verb_has_its_row() -> None:
    rows = [row[0].strip("`") for row in BY_VERB]
    assert rows == [*VERBS], "docs/design/cli.md, in the order of VERBS"


def test_of_every_verb_the_reference_says_which_rights_it_needs() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    rows = re.findall(r"^\| (`[^|]+) \|", page.split("\n## Rights\n")[1], re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`([a-z-]+)", row)}
    assert named == set(VERBS), "the table Rights of docs/reference/cli.md"


@pytest.mark.parametrize("row", [*ROWS, *BY_VERB], ids=lambda row: row[0].strip("`"))
def test_a_row_says_what_is_here_and_names_tests_that_are_there(row: list[str]) -> None:
    *said, held = row
    assert all(said)
    files = re.findall(r"`(tests/[\w/]+\.py)`", held)
    assert files
    for file in files:
        assert re.search(r"^(async )?def test_", (ROOT / file).read_text(), re.MULTILINE), file


@pytest.mark.parametrize(
    "word", ["full-screen", "k9s", "tree", "`rollback`", "--wait", "`--timeout`", "`layouts`", "`doctor`"]
)
def test_what_is_refused_has_its_reason(word: str) -> None:
    found = {row[1]: row[2] for row in re.findall(r"^(\| ([^|]+) \| ([^|]+) \|)$", REFUSED, re.MULTILINE)}
    reasons = [why for what, why in found.items() if word in what]
    assert reasons
    assert all(len(why) > 40 for why in reasons)
