"""Every command block of the pages says whether a test runs it, and no marker lies about it."""

import re
from pathlib import Path

import pytest
from hack.cluster.process import text_of
from hack.docs_lists import on_page_markdown
from hack.generate import ROOT
from tests.docs.commands import STAND_INS, Block, Shell, blocks
from tests.docs.pages import MIGRATION, ON_CLUSTER, TUTORIAL
from tests.test_repo import PAGES

BLOCKS = {
    name: blocks(name, text)
    for name, text in PAGES.items()
    if name.startswith("docs/") or name in ("README.md", "CONTRIBUTING.md")
}
ALL = [block for of_page in BLOCKS.values() for block in of_page]


def test_there_are_commands() -> None:
    assert len(ALL) > 30


def test_every_block_runs_in_a_test_or_says_why_not() -> None:
    assert [block.id for block in ALL if not (block.where or block.why)] == []


def test_commands_stand_without_a_prompt() -> None:
    """So that they can be copied and run as they are."""
    assert [block.id for block in ALL if block.language != "sh" or block.text.startswith("$ ")] == []


def test_what_is_said_to_run_is_run() -> None:
    ran = {"cluster": set(ON_CLUSTER), "tutorial": {TUTORIAL}, "migration": {MIGRATION}}
    assert set(ran) == set(STAND_INS)
    assert [block.id for block in ALL if block.where and block.page not in ran[block.where]] == []


def test_a_block_that_is_ended_after_a_time_is_one_command() -> None:
    """On a slow machine it would cut off what has to be done before: once a policy was never applied."""
    assert [block.id for block in ALL if block.how.endswith(" s") and len(block.text.splitlines()) > 1] == []


def test_every_page_that_is_run_has_something_to_run() -> None:
    for name in (*ON_CLUSTER, TUTORIAL, MIGRATION):
        assert any(block.where for block in BLOCKS[name]), name


def test_nothing_is_called_undoable_without_a_reason() -> None:
    assert [block.id for block in ALL if block.why and len(block.why.split()) < 4] == []


def test_the_site_has_every_page() -> None:
    """mkdocs checks it too; here it costs nothing, and `make docs` needs a package index."""
    site = (ROOT / "mkdocs.yml").read_text()
    pages = [name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")]
    assert [name for name in pages if name not in site and not name.startswith("adr/0")] == []


def test_each_claim_about_security_names_a_test_that_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGES["docs/explanation/security.md"])
    assert len(named) > 15
    lost = [
        (file, test)
        for file, test in named
        if not (text := text_of(ROOT / file)) or (test and f"def {test}(" not in text)
    ]
    assert lost == []


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
    assert lines[1:8] == [
        "    goes on:",
        "",
        "    <!-- runs: cluster -->",
        "    ```sh",
        "    a",
        "      b",
        "    ```",
    ]
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

<!-- runs: tutorial, 5 s -->
```sh
d
```

```yaml
no: command
```

```sh
bare
```
"""


def test_a_page_is_read_as_its_author_means_it() -> None:
    first, second, third, bare = blocks("page.md", PAGE)
    assert (first.where, first.line, first.text) == ("cluster", 3, "a")
    assert (second.why, second.text) == ("it needs a GPU", "b\n  c")
    assert (third.where, third.how) == ("tutorial", "5 s")
    assert (bare.where, bare.why) == ("", "")


def test_a_block_that_fails_fails_the_test(tmp_path: Path) -> None:
    shell = Shell({"PATH": "/usr/bin:/bin"}, tmp_path)
    with pytest.raises(AssertionError, match=r"page\.md:1 ended with 3"):
        shell.run(Block("page.md", 1, "sh", "echo no; exit 3", "cluster"))


def test_what_one_block_exports_the_next_one_has(tmp_path: Path) -> None:
    shell = Shell({"PATH": "/usr/bin:/bin"}, tmp_path)
    shell.run(Block("page.md", 1, "sh", "export WORD=kept", "cluster"))
    shell.run(Block("page.md", 2, "sh", 'test "$WORD" = kept', "cluster"))
    shell.run(Block("page.md", 3, "sh", "cat </dev/zero >/dev/null", "cluster", how="1 s"))


def test_what_goes_on_for_ever_is_ended_when_it_has_said_the_word(tmp_path: Path) -> None:
    shell = Shell({"PATH": "/usr/bin:/bin"}, tmp_path)
    shell.run(Block("page.md", 1, "sh", "echo Failed; sleep 1000", "cluster", how="until Failed"))
    with pytest.raises(AssertionError, match=r"page\.md:2 ended with -1"):
        shell.run(Block("page.md", 2, "sh", "echo no; sleep 1000", "cluster", how="until Failed"), 0.3)
