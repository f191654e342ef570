"""One word, one meaning, in names that readers meet in every file, and words for users where users read. STYLE.md."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from tests.test_repo import PAGES, PYTHON, SHIPPED

HEADS = {"Added", "Changed", "Fixed", "Removed"}
"""Of the sections of CHANGELOG.md. What is said of security stands where it belongs."""


def public_classes(text: str) -> Iterator[str]:
    """Names of the classes of a module that other modules may use."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def shared_names(modules: Mapping[str, str]) -> dict[str, list[str]]:
    """By name of a class the modules that define one, where there are several."""
    found = defaultdict(list)
    for module, text in modules.items():
        for name in public_classes(text):
            found[name].append(module)
    return {name: where for name, where in sorted(found.items()) if len(where) > 1}


def test_no_two_classes_that_ship_have_one_name() -> None:
    """`Pool` was once four things, `Request` and `Source` three each: whoever read one file had to know the others."""
    assert shared_names({name: PYTHON[name] for name in SHIPPED}) == {}


def test_no_class_of_the_tools_has_the_name_of_another_one_or_of_one_that_ships() -> None:
    """`State` was a folder of a control plane and a mapped file; `Workload` what the product recommends for, and the
    pods that the simulator starts."""
    tools = {name: text for name, text in PYTHON.items() if name.startswith("hack/")}
    assert shared_names({**tools, **{name: PYTHON[name] for name in SHIPPED}}) == {}


def test_no_two_helpers_of_the_tests_and_tools_have_one_name() -> None:
    """`Outcome` was what a run of faults came to, and what a run of kills did; a test file is free to name its own."""
    helpers = {
        name: text for name, text in PYTHON.items() if not name.startswith("operator/") and is_shared(name)
    }
    assert shared_names(helpers) == {}


def is_shared(name: str) -> bool:
    """Whether other modules import from it: pytest collects the others."""
    return not name.rpartition("/")[2].startswith("test_")


def test_the_rule_sees_what_it_is_for() -> None:
    modules = {"a.py": "class Pool: ...\nclass _Row: ...", "b.py": "class Pool(int): ...\nclass _Row: ..."}
    assert shared_names(modules) == {"Pool": ["a.py", "b.py"]}


def changelog_flaws(text: str) -> list[str]:
    """Heads that are none of ours, and lines about what only those who build the product use."""
    heads = [head for head in re.findall(r"^### (.+)$", text, re.MULTILINE) if head not in HEADS]
    return heads + re.findall(r"^.*`make\b.*$", text, re.MULTILINE)


def test_the_changelog_speaks_to_users() -> None:
    assert changelog_flaws(PAGES["CHANGELOG.md"]) == []


def test_a_line_that_is_not_for_users_is_found() -> None:
    text = "### Added\n\n- `make demo` plays\n\n### Security\n\n- a mode, without making anything\n"
    assert changelog_flaws(text) == ["Security", "- `make demo` plays"]


def repeated_entries(text: str) -> list[str]:
    """Entries that stand in a changelog more than once, without their line breaks."""
    entries = re.findall(r"^- .+(?:\n +.+)*", text, re.MULTILINE)
    counts = Counter(" ".join(entry.split()) for entry in entries)
    return sorted(entry for entry, count in counts.items() if count > 1)


def test_the_changelog_says_everything_once() -> None:
    assert repeated_entries(PAGES["CHANGELOG.md"]) == []


def test_an_entry_that_stands_twice_is_found_however_it_is_wrapped() -> None:
    text = "### Fixed\n\n- one thing\n  of two lines\n- another\n- one thing of\n  two lines\n"
    assert repeated_entries(text) == ["- one thing of two lines"]
