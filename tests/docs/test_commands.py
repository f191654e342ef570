"""Every block of commands and every output on the pages says what holds it, and no marker lies about it."""

import re
from pathlib import Path

import pytest
from hack.cluster.process import pid_exists, text_of, wait_until
from hack.docs_lists import on_page_markdown
from hack.generate import ROOT
from tests.docs.commands import STAND_INS, Block, Fence, Shell, blocks, fences
from tests.docs.outputs import Output
from tests.docs.pages import MIGRATION, ON_CLUSTER, TUTORIAL
from tests.test_repo import PAGES

READ = {
    name: text for name, text in PAGES.items() if name.startswith("docs/") or name in ("README.md", "CONTRIBUTING.md")
}
BLOCKS = {name: blocks(name, text) for name, text in READ.items()}
ALL = [block for of_page in BLOCKS.values() for block in of_page]
OUTPUTS = [fence for name, text in READ.items() for fence in fences(name, text) if fence.is_output]


def test_there_are_commands() -> None:
    assert len(ALL) > 30


def test_every_block_runs_in_a_test_or_says_why_not() -> None:
    assert [block.id for block in ALL if not (block.where or block.why)] == []


def test_commands_stand_without_a_prompt() -> None:
    assert [block.id for block in ALL if block.language != "sh" or block.text.startswith("$ ")] == []


def test_what_is_said_to_run_is_run() -> None:
    ran = {"cluster": set(ON_CLUSTER), "tutorial": {TUTORIAL}, "migration": {MIGRATION}}
    assert set(ran) == set(STAND_INS)
    assert [block.id for block in ALL if block.where and block.page not in ran[block.where]] == []


def test_every_page_that_is_run_has_something_to_run() -> None:
    for name in (*ON_CLUSTER, TUTORIAL, MIGRATION):
        assert any(block.where for block in BLOCKS[name]), name


def test_nothing_is_called_undoable_without_a_reason() -> None:
    short = [block.id for block in ALL if block.why and len(block.why.split()) < 4]
    assert short == [], "the marker above each block gives a reason of at least four words"


def test_every_output_is_compared_or_says_why_not() -> None:
    assert [fence.id for fence in OUTPUTS if fence.held_by is None] == []
    reasons = {fence.id: held["why"] for fence in OUTPUTS if (held := fence.held_by)}
    assert [place for place, why in reasons.items() if why and len(why.split()) < 4] == []


def test_what_is_said_to_be_printed_is_seen_by_a_test() -> None:
    """The output of a command that goes on in a second shell is not: nothing says when it is complete."""
    printing = [block for block in ALL if block.output]
    assert len(printing) > 5
    assert [block.id for block in printing if not block.where or block.how == "beside"] == []


def test_the_test_that_is_said_to_compare_an_output_reads_its_page() -> None:
    named = [(fence, held["test"]) for fence in OUTPUTS if (held := fence.held_by) and held["test"]]
    assert [fence.id for fence, test in named if fence.page not in text_of(ROOT / test)] == []


QUOTED = [(fence, held["source"]) for fence in OUTPUTS if (held := fence.held_by) and held["source"]]
MASKS = {r"\bAGE\b": "1m", r"\bTIME\b": "2026-01-01T00:00:00Z"}
"""What stands for ages and times in the golden files."""


@pytest.mark.parametrize(("fence", "source"), QUOTED, ids=[fence.id for fence, _ in QUOTED])
def test_an_output_that_is_quoted_stands_in_its_source(fence: Fence, source: str) -> None:
    text = text_of(ROOT / source)
    for mask, example in MASKS.items():
        text = re.sub(mask, example, text)
    fence.output.as_part.assert_printed(text)


def test_the_site_has_every_page() -> None:
    """mkdocs checks it too; here it costs nothing, and `make docs` needs a package index."""
    site = (ROOT / "mkdocs.yml").read_text()
    pages = [name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")]
    assert [name for name in pages if name not in site and not name.startswith("adr/0")] == []


def test_the_front_page_leads_to_every_page_for_users() -> None:
    links = (ROOT / "docs" / "index.md").read_text()
    folders = ("docs/tutorial/", "docs/how-to/", "docs/explanation/", "docs/reference/")
    pages = [name.removeprefix("docs/") for name in PAGES if name.startswith(folders)]
    assert [name for name in pages if f"({name})" not in links] == []


SECURITY = "docs/explanation/security.md"


def test_each_claim_about_security_names_a_test_that_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGES[SECURITY])
    assert len(named) > 15
    lost = [
        (file, test)
        for file, test in named
        if not (text := text_of(ROOT / file)) or (test and f"def {test}(" not in text)
    ]
    assert lost == []


ATTACK = re.compile(r"^\| ([^|]+) \| ([^|]+) \| (RBAC|`[\w-]+`) \| `(tests/[\w/]+\.py)::\w+` \|$", re.MULTILINE)


def test_each_attack_with_a_token_names_what_refuses_it_and_a_test_on_a_real_api_server() -> None:
    table = PAGES[SECURITY].partition("## What a stolen token cannot do\n")[2].partition("\n## ")[0]
    table = table.partition("\nAn effect has several verbs.")[0]  # tests/chart/test_effects.py reads the rest
    rows = ATTACK.findall(table)
    assert len(rows) == sum(line.startswith("| ") for line in table.splitlines()) - 1
    templates = (ROOT / "deploy/helm/gpu-sharing-operator/templates").glob("*.yaml")
    chart = "\n".join(template.read_text() for template in templates)
    for _, attack, refusal, file in rows:
        assert "pytestmark = pytest.mark.cluster" in text_of(ROOT / file) or "integration" in file, attack
        assert refusal == "RBAC" or f"\n  name: {refusal.strip('`')}\n" in chart, refusal
    holders = {token.split(" ")[0] for token, *_ in rows}
    assert holders == {"agent", "operator", "a", "the"}, "agent, operator, hooks and plugin"


LISTS = """\
1. One
   goes on:

   <!-- runs: cluster -->
   ```sh
   a
     b
   ```

2. Two
- no

  ```sh
  c
  ```

Not a list.

```sh
1. no list
   either
```
"""


def test_what_belongs_to_an_item_stays_with_it_on_the_site() -> None:
    """Python-Markdown ends a list where less than 4 spaces stand, and every step would be number 1."""
    lines = on_page_markdown(LISTS).splitlines()
    assert lines[1:8] == ["    goes on:", "", "    <!-- runs: cluster -->", "    ```sh", "    a", "      b", "    ```"]
    assert lines[9:14] == ["2. Two", "- no", "", "    ```sh", "    c"]
    assert lines[16:] == ["Not a list.", "", "```sh", "1. no list", "   either", "```"]


PAGE = """
<!-- runs: cluster -->
```sh
a
```

   <!-- not run: it needs a GPU -->
   ```sh
   b
     c
   ```

   It says:

   <!-- prints -->
   ```
   b
     5
   ```

<!-- runs: tutorial, until Failed -->
```sh
d
```

```yaml
no: command
```

```sh
bare
```

<!-- not compared: it is a drawing -->
```
─►
```
"""


def test_a_page_is_read_as_its_author_means_it() -> None:
    first, second, third, bare = blocks("page.md", PAGE)
    assert (first.where, first.line, first.text) == ("cluster", 3, "a")
    assert (second.why, second.text) == ("it needs a GPU", "b\n  c")
    assert (third.where, third.how) == ("tutorial", "until Failed")
    assert (bare.where, bare.why) == ("", "")
    assert second.output == Output("page.md", 16, "b\n  5")
    assert (first.output, third.output, bare.output) == (None, None, None)


def test_an_output_is_found_by_its_fence() -> None:
    printed, drawing = (fence for fence in fences("page.md", PAGE) if fence.is_output)
    assert (printed.marker, drawing.marker) == ("prints", "not compared: it is a drawing")


COMMAND = "<!-- runs: cluster -->\n```sh\na\n```\n\n"
PRINTED = "<!-- prints -->\n```\n5\n```\n\n"


@pytest.mark.parametrize("text", [PRINTED + COMMAND, COMMAND + PRINTED + PRINTED], ids=["before it", "twice"])
def test_an_output_belongs_to_the_block_of_commands_above_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md:\d+: no block of commands prints this"):
        blocks("page.md", text)


def test_a_block_that_fails_fails_the_test(tmp_path: Path) -> None:
    shell = Shell({"PATH": "/usr/bin:/bin"}, tmp_path)
    with pytest.raises(AssertionError, match=r"page\.md:1 ended with 3"):
        shell.run(Block("page.md", 1, "sh", "echo no; exit 3", "cluster"))


def test_what_one_block_exports_the_next_one_has(tmp_path: Path) -> None:
    shell = Shell({"PATH": "/usr/bin:/bin"}, tmp_path)
    shell.run(Block("page.md", 1, "sh", "export WORD=kept", "cluster"))
    shell.run(Block("page.md", 2, "sh", 'test "$WORD" = kept', "cluster"))


def test_what_goes_on_for_ever_is_ended_when_it_has_said_the_word(tmp_path: Path) -> None:
    shell = Shell({"PATH": "/usr/bin:/bin"}, tmp_path)
    shell.run(Block("page.md", 1, "sh", "echo Failed; sleep 1000", "cluster", how="until Failed"))
    with pytest.raises(AssertionError, match=r"page\.md:2 ended with -1"):
        shell.run(Block("page.md", 2, "sh", "echo no; sleep 1000", "cluster", how="until Failed"), 0.3)


def test_what_ends_by_itself_without_the_word_fails_and_with_it_does_not(tmp_path: Path) -> None:
    shell = Shell({"PATH": "/usr/bin:/bin"}, tmp_path)
    shell.run(Block("page.md", 1, "sh", "echo Failed", "cluster", how="until Failed"))
    with pytest.raises(AssertionError, match=r"page\.md:2 ended with -1"):
        shell.run(Block("page.md", 2, "sh", "echo done", "cluster", how="until Failed"))


def test_what_a_block_has_started_in_the_background_ends_with_it(tmp_path: Path) -> None:
    """A shell lets its background children ignore Ctrl-C."""
    shell = Shell({"PATH": "/usr/bin:/bin"}, tmp_path)
    text = f"sleep 1000 &\necho $! >{tmp_path}/pid; echo Failed; wait"
    shell.run(Block("page.md", 1, "sh", text, "cluster", how="until Failed"))
    wait_until(lambda: not pid_exists(int((tmp_path / "pid").read_text())), 30, "the child")


TABLE = """\
NAME     STATUS   AGE
gpu-01   Ready    12s
gpu-02   Ready    12s"""
NODES_PRINTED = "NAME      STATUS   AGE\ngpu-01    Ready    3m20s\n\ngpu-02    Ready    4m\n"


def shows(text: str, printed: str) -> str:
    """What is said of a page that shows `text` where `printed` was printed; empty when they agree."""
    try:
        Output("page.md", 10, text).assert_printed(printed)
    except AssertionError as error:
        return str(error)
    return ""


def test_widths_of_columns_empty_lines_and_ages_may_differ() -> None:
    assert shows(TABLE, NODES_PRINTED) == ""


@pytest.mark.parametrize(
    ("text", "printed", "line", "promised", "instead"),
    [
        pytest.param(TABLE, NODES_PRINTED[:-22], 13, "gpu-02", "(nothing more)", id="lost line"),
        pytest.param(TABLE, NODES_PRINTED.replace("Ready    4m", "Lost 4m"), 13, "gpu-02", "gpu-02 Lost 4m", id="a word"),
        pytest.param("b\na", "a\nb\n", 11, "b", "a", id="wrong order"),
        pytest.param(TABLE, NODES_PRINTED + "gpu-03 Ready 4m\n", 14, "(the end)", "gpu-03 Ready 4m", id="one more line"),
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
