"""A page is held to the output that it shows, line by line, and a failure says where the two part."""

from pathlib import Path

import pytest
from tests.docs.commands import Block, Shell
from tests.docs.outputs import Output

TABLE = """\
NAME     STATUS   AGE
gpu-01   Ready    12s
gpu-02   Ready    12s"""
PRINTED = "NAME      STATUS   AGE\ngpu-01    Ready    3m20s\n\ngpu-02    Ready    4m\n"


def shows(text: str, printed: str) -> str:
    """What is said of a page that shows `text` where `printed` was printed; empty when they agree."""
    try:
        Output("page.md", 10, text).assert_printed(printed)
    except AssertionError as error:
        return str(error)
    return ""


def test_widths_of_columns_empty_lines_and_ages_may_differ() -> None:
    assert shows(TABLE, PRINTED) == ""


@pytest.mark.parametrize(
    ("text", "printed", "line", "promised", "instead"),
    [
        pytest.param(TABLE, PRINTED[:-22], 13, "gpu-02", "(nothing more)", id="lost line"),
        pytest.param(TABLE, PRINTED.replace("Ready    4m", "Lost 4m"), 13, "gpu-02", "gpu-02 Lost 4m", id="a word"),
        pytest.param("b\na", "a\nb\n", 11, "b", "a", id="wrong order"),
        pytest.param(TABLE, PRINTED + "gpu-03 Ready 4m\n", 14, "(the end)", "gpu-03 Ready 4m", id="one more line"),
        pytest.param("a\n...\nb\nc", "a\nx\nb\nd\n", 14, "c", "d", id="after lines that are left out"),
        pytest.param("a\n...\nb", "a\nb\nx\n", 14, "(the end)", "x", id="after the last line"),
        pytest.param("...\nb\nc\n...\na", "a\nb\nc\n", 15, "a", "(nothing more)", id="order after lines left out"),
        pytest.param("since 4m", "since dawn", 11, "since 4m", "since dawn", id="no age"),
        pytest.param("until 14:31:07Z", "until 14:31", 11, "until 14:31:07Z", "until 14:31", id="no time"),
        pytest.param("chat-… runs", "chat-5p2bq waits", 11, "chat-… runs", "chat-5p2bq waits", id="beside a wildcard"),
        pytest.param("chat-… runs", "chat-0 never runs", 11, "chat-… runs", "chat-0 never runs", id="another word"),
        pytest.param("on 2026-10-05T00:00:00Z", "on Monday", 11, "on 2026", "on Monday", id="no date"),
        pytest.param("Ready", "Ready?", 11, "Ready", "Ready?", id="longer line"),
        pytest.param("a.b for 4m", "acb for 4m", 11, "a.b for 4m", "acb for 4m", id="sign of a pattern"),
        pytest.param("2g.20gb (all)", "2g.20gb all", 11, "2g.20gb (all)", "2g.20gb all", id="signs of a pattern"),
        pytest.param("a", "", 11, "a", "(nothing more)", id="nothing was printed"),
    ],
)  # fmt: skip
def test_a_difference_is_named_with_its_line(text: str, printed: str, line: int, promised: str, instead: str) -> None:
    first, shown, middle, really = shows(text, printed).splitlines()
    assert first == f"page.md:{line} shows"
    assert shown.strip().startswith(promised)
    assert (middle, really.strip()) == ("but the command printed", instead)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        pytest.param("...\nb\n...", "a\nb\nc\n", id="lines before and after"),
        pytest.param("a\n...\nb", "a\nb\n", id="no line at all"),
        pytest.param("a\n...\nb", "a\nb\nx\nb\n", id="up to the last of its kind"),
        pytest.param("...", "a\n", id="everything"),
        pytest.param("...\na\n...\nb\n...", "a\nb\na\n", id="the first of its kind"),
        pytest.param("a\n\nb", "a\nb\n", id="an empty line on the page"),
        pytest.param("chat-… and … more", "chat-5p2bq and one or two more\n", id="text within a line"),
        pytest.param("since 2m5s", "since 4m", id="an age of two parts"),
        pytest.param("since 4m, until 09:17:07Z", "since 2h5m, until 23:00:00Z", id="an age and a time of day"),
        pytest.param("on 2026-10-05T00:00:00Z", "on 2027-01-01T12:30:59Z", id="a date and time"),
    ],
)
def test_what_differs_from_run_to_run_can_be_left_open(text: str, printed: str) -> None:
    assert shows(text, printed) == ""


def test_a_part_of_an_output_may_stand_anywhere_in_it() -> None:
    part = Output("page.md", 10, "b\nc").as_part
    part.assert_printed("a\nb\nc\nd\n")
    with pytest.raises(AssertionError, match=r"page\.md:12 shows\n  c\nbut the command printed\n  d$"):
        part.assert_printed("a\nb\nd\n")


def test_a_block_is_held_to_what_the_page_shows(tmp_path: Path) -> None:
    shell = Shell({"PATH": "/usr/bin:/bin"}, tmp_path)
    shell.run(Block("page.md", 1, "sh", "echo yes >&2", "cluster", output=Output("page.md", 5, "yes")))
    with pytest.raises(AssertionError, match=r"page\.md:6 shows\n  yes\nbut the command printed\n  no$"):
        shell.run(Block("page.md", 1, "sh", "echo no", "cluster", output=Output("page.md", 5, "yes")))
