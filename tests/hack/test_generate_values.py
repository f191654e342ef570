"""The table of the chart's values."""

import json

import pytest
import yaml
from hack.generate_values import CHART, COMMON, _rows, values

SCHEMA = {
    "properties": {
        "a": {"properties": {"b": {}, "c": {}}},
        "m": {"properties": {"x": {}}},
        "s": {"$ref": "#/definitions/section"},
    },
    "definitions": {"section": {"properties": {"y": {}}}},
}


def rows(text: str) -> list[str]:
    return list(_rows(text, SCHEMA))


def test_each_value_has_a_row_with_path_default_and_comment() -> None:
    text = "# Gone into.\na:\n  # One | two\n  # lines.\n  b: [1]\n  # Next.\n  c: ''\n"
    assert rows(text) == ["| `a.b` | `[1]` | One \\| two lines. |", '| `a.c` | `""` | Next. |']


def test_what_is_not_explained_key_by_key_is_one_row() -> None:
    assert rows("# All of it.\nm:\n  x: 1\n") == ['| `m` | `{"x": 1}` | All of it. |']


def test_a_definition_is_gone_into_like_what_stands_in_place() -> None:
    assert rows("s:\n  # Y.\n  y: 2\n") == ["| `s.y` | `2` | Y. |"]


@pytest.mark.parametrize("text", ["a: 1\n", "# Comment.\n\na: 1\n", "a:\n  # Only this.\n  b: 1\n  c: 2\n"])
def test_a_value_without_a_comment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="has no comment"):
        rows(text)


def test_a_list_is_no_values_file() -> None:
    with pytest.raises(ValueError, match="not a mapping"):
        rows("[1]")


def test_the_values_that_people_set_most_come_first_and_once() -> None:
    for page in values().values():
        first, rest = page.split("## All other values")
        found = [row.split("`")[1] for row in first.splitlines() if row.startswith("| `")]
        assert found == list(COMMON)
        assert all(f"| `{name}` |" not in rest for name in COMMON)


def test_every_default_in_the_tables_is_that_of_the_file() -> None:
    chart = yaml.safe_load((CHART / "values.yaml").read_text())
    for page in values().values():
        found = [row.split("`") for row in page.splitlines() if row.startswith("| `")]
        assert len(found) > 80
        for _, path, _, default, *_ in found:
            value = chart
            for key in path.split("."):
                value = value[key]
            assert json.loads(default) == value, path
