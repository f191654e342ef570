"""docs/design/chart.md: every expectation of a chart's users names what holds it."""

import re

from tests.chart.charts import ROOT

PAGE = ROOT / "docs" / "design" / "chart.md"
ROWS = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]


def test_every_expectation_has_its_row() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 20))


def test_every_row_says_what_is_here_and_names_a_test_that_is_there() -> None:
    for number, expected, here, held in ROWS:
        assert expected
        assert here
        files = re.findall(r"`(tests/[\w/]+\.py)`", held)
        assert files, number
        for file in files:
            text = (ROOT / file).read_text()
            assert re.search(r"^(async )?def test_", text, re.MULTILINE), file
