"""One word, one meaning in the names of classes, and a changelog that speaks to users. STYLE.md."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

import pytest
from tests.test_repo import PAGES, PYTHON, SHIPPED
from tests.wording import lacks

HEADS = {"Added", "Changed", "Fixed", "Removed"}
"""Of the sections of CHANGELOG.md. What is said of security stands where it belongs."""


def public_classes(text: str) -> Iterator[str]:
    yield from re.findall(r"^class ([A-Za-z]\w*)", text, re.MULTILINE)


def package_of(module: str) -> str:
    """The package that a module's classes share: a room of the operator such as `gpusharing/planning`, the plugin, its `usage`, or a folder of the tools or tests such as `hack/sim`."""
    folders = module.removeprefix("operator/").split("/")[:-1]
    if folders[0] == "kubectl_gpusharing":
        return "/".join(folders[: 1 + (folders[1:2] == ["usage"])])
    return "/".join(folders[:2])


def shared_names(modules: Mapping[str, str]) -> dict[tuple[str, str], list[str]]:
    """By package and name of a class the modules that define one, where there are several."""
    found = defaultdict(list)
    for module, text in modules.items():
        for name in public_classes(text):
            found[package_of(module), name].append(module)
    return {name: where for name, where in sorted(found.items()) if len(where) > 1}


def test_no_two_classes_of_a_package_have_one_name() -> None:
    shared = {name: text for name, text in PYTHON.items() if is_shared(name)}
    assert set(SHIPPED) <= set(shared)
    assert shared_names(shared) == {}


def is_shared(name: str) -> bool:
    """Whether other modules import from it: pytest collects the others."""
    return not name.rpartition("/")[2].startswith("test_")


def test_the_rule_sees_what_it_is_for() -> None:
    modules = {
        "hack/sim/a.py": "class Pool: ...\nclass _Row: ...",
        "hack/sim/b.py": "class Pool(int): ...\nclass _Row: ...",
        "hack/bench/c.py": "class Pool: ...",
        "operator/kubectl_gpusharing/pools/d.py": "class Pool: ...",
        "operator/kubectl_gpusharing/setup/e.py": "class Pool: ...",
        "operator/gpusharing/api/f.py": "class Pool: ...",
    }
    assert shared_names(modules) == {
        ("kubectl_gpusharing", "Pool"): [
            "operator/kubectl_gpusharing/pools/d.py",
            "operator/kubectl_gpusharing/setup/e.py",
        ],
        ("hack/sim", "Pool"): ["hack/sim/a.py", "hack/sim/b.py"],
    }


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


@pytest.mark.parametrize(
    ("parts", "missing"),
    [
        (("gpu-1", "gpu-10", "2 of 3", "a.b/c"), []),
        (("gpu-1", "gpu-1"), ["gpu-1"]),
        (("gpu", "10", "1.5", "b/c", "of\n 3"), ["gpu", "10", "1.5", "b/c"]),
    ],
)
def test_a_part_is_in_a_text_as_whole_words_and_counts_once(parts: tuple[str, ...], missing: list[str]) -> None:
    assert lacks("gpu-10, gpu-1: 2 of\n3 for 1.50 (a.b/c).", *parts) == missing
