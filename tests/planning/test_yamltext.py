"""The door for YAML of others: a document of bounded depth and size, or Unreadable, and nothing else."""

import sys

import pytest
from tests.kube.damage import ODD_YAML

from gpusharing.planning.wanted.pluginconfig import MAX_DEPTH, Unreadable, dump_yaml, find_line, parse_yaml


def test_what_is_yaml_is_read() -> None:
    assert parse_yaml("") is None
    assert parse_yaml("a: [1, {b: c}]") == {"a": [1, {"b": "c"}]}


@pytest.mark.parametrize("text", ODD_YAML, ids=lambda text: text[:24].encode("unicode_escape").decode())
def test_whatever_the_text_is_no_other_error_is_raised(text: str) -> None:
    assert 1 <= find_line(text, "a.b[0]") <= max(1, len(text.splitlines()))
    try:
        parse_yaml(text)
    except Unreadable as error:
        assert str(error).startswith(("it is ", "it contains "))  # noqa: PT017 - what else it may be is the question


def test_depth_and_size_are_bounded_also_where_aliases_repeat() -> None:
    assert parse_yaml("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)) is not None
    with pytest.raises(Unreadable, match="nested more than 20 levels"):
        parse_yaml("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    with pytest.raises(Unreadable, match="more than 100000 values"):
        parse_yaml(ODD_YAML[-1])


def test_a_few_lines_that_merge_keys_into_millions_are_refused_before_they_fill_the_memory() -> None:
    lines = ["a0: &a0 {k: 1, l: 2}"]
    for level in range(1, 7):
        lines.append(f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}")
    assert parse_yaml("\n".join(lines[:4])) == {f"a{level}": {"k": 1, "l": 2} for level in range(4)}
    with pytest.raises(Unreadable, match="more than 100000 values"):
        parse_yaml("\n".join(lines))


@pytest.mark.parametrize("text", ["[" * 3000, "a: " + "[" * 100_000, "{a: " * 1500], ids=["[", "a: [", "{a: "])
def test_brackets_without_end_do_not_hold_the_process_up(text: str) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        with pytest.raises(Unreadable, match="nested more than 20 levels"):
            parse_yaml(text)
    finally:
        sys.setprofile(None)
    assert calls < 10_000, "of functions, and returns; PyYAML alone comes to more than ten times that, and takes 0.9 s"


LINES = """\
# a comment
data:
  config.yaml: {a: 1}
  config: b

rows:
- name: x
- name: y
  1g.10gb: 7
twice: 1
twice: 2
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("data", 2),
        ("data.config.yaml", 3),
        ("data.config.yaml.a", 3),
        ("data.config", 4),
        ("data.missing", 2),
        ("rows[1]", 8),
        ("rows[1].1g.10gb", 9),
        ("rows[2].name", 6),
        ("rows.name", 6),
        ("nowhere", 1),
        ("", 1),
    ],
)
def test_a_value_is_found_by_its_path_and_a_missing_one_by_what_should_hold_it(path: str, line: int) -> None:
    assert find_line(LINES, path) == line


def test_a_text_that_is_not_yaml_has_its_line_too() -> None:
    assert find_line("a: 1\nb: [\nc: 2\n", "a") == 3
    assert find_line("a: 1\nb: {", "a") == 2
    assert find_line("", "a") == 1


@pytest.mark.parametrize("text", ["a: .inf", "a: -.INF", "a: .NaN", "a: !!set {b}", "a: !!binary aGk="])
def test_what_json_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(Unreadable, match=r"it contains |could not determine a constructor for the tag"):
        parse_yaml(text)


def test_a_number_that_is_too_large_is_a_text_as_in_go() -> None:
    assert parse_yaml("a: 1e999") == {"a": "1e999"}
    assert parse_yaml("a: 2026-11-27") == {"a": "2026-11-27"}


def test_a_value_that_occurs_twice_is_written_twice_without_an_anchor() -> None:
    rows = [{"devices": "all"}]
    assert dump_yaml({"a": rows, "b": rows}) == "a:\n- devices: all\nb:\n- devices: all\n"
