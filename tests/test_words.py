"""One word, one meaning, in names that readers meet in every file, and words for users where users read. STYLE.md."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise

from tests.test_repo import PAGES, PYTHON, SHIPPED

HEADS = {"Added", "Changed", "Fixed", "Removed"}
"""Of the sections of CHANGELOG.md. What is said of security stands where it belongs."""


def public_classes(text: str) -> Iterator[str]:
    """Names of the classes of a module that other modules may use."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def package_of(module: str) -> str:
    """The package that a module's classes share: a room of the product such as `gpusharing/planning`, or a folder of
    the tools or tests such as `hack/sim`."""
    folders = module.split("/")[:-1]
    return "/".join(folders[1:3] if folders[0] == "operator" else folders[:2])


def shared_names(modules: Mapping[str, str]) -> dict[tuple[str, str], list[str]]:
    """By package and name of a class the modules that define one, where there are several."""
    found = defaultdict(list)
    for module, text in modules.items():
        for name in public_classes(text):
            found[package_of(module), name].append(module)
    return {name: where for name, where in sorted(found.items()) if len(where) > 1}


def test_no_two_classes_of_a_package_have_one_name() -> None:
    """`Pool` was once four things, `Request` and `Source` three each: whoever read one file had to know the others."""
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


PLURAL = re.compile(
    r" (?:(?:more|other|GPU|whole) )?(?:GPUs|pods|nodes|shares|gangs|slots|disruptions|clients|devices|instances)\b"
)
NEVER_ONE = {
    "{size} nodes": "a wave is of several nodes",
    "{size} slots": "a wave is of several nodes",
    "{clients} clients": "where not even two fit, whole GPUs are advised",
    "{card.key} shares": "no number: shares is the verb",
    "{pool.card.key} shares": "no number: shares is the verb",
    "{'have' if len(mixed) > 1 else 'has'} GPUs": "no number",
    "{len(wanted)} nodes": "there are more than are listed",
    "{len(selected)} nodes": "others own some of them, but not all",
    "{holds.devices} GPUs": "one is called a full GPU",
    "{gpus} GPUs": "the need is larger than the card",
    "{shared.replicas} clients": "one client shares nothing",
    "{MOST_DEVICES} devices": "a limit, 128",
    "{pool.nodes or '0/0'} nodes": "a fraction, such as 1/3",
    "{pool.used} devices": "a fraction, such as 14/96",
}
"""Numbers before a plural that are never 1, and why."""


def unagreed(text: str) -> Iterator[str]:
    """Numbers in f-strings with the plural of a noun behind them: 1 would be followed by `pods`, too."""
    for node in ast.walk(ast.parse(text)):
        for number, after in pairwise(node.values if isinstance(node, ast.JoinedStr) else ()):
            found = PLURAL.match(str(after.value)) if isinstance(after, ast.Constant) else None
            if found and isinstance(number, ast.FormattedValue):
                yield f"{{{ast.unparse(number.value)}}}{found[0]}"


def test_numbers_agree_with_their_nouns_in_every_message() -> None:
    """`1 GPUs were proven before`: `counted` (planning/vocabulary/lengths.py) writes 1 GPU, and 2 GPUs."""
    found = {(name, slip) for name in SHIPPED for slip in unagreed(PYTHON[name]) if slip not in NEVER_ONE}
    assert found == set()
    used = {slip for name in SHIPPED for slip in unagreed(PYTHON[name])}
    assert used >= NEVER_ONE.keys(), "an exception that nothing needs"


def test_a_number_that_does_not_agree_is_found() -> None:
    assert list(
        unagreed("""f'{n} more nodes and {len(x):,} GPUs, {counted(n, "pod")}, {n} of {m} podsets'""")
    ) == [
        "{n} more nodes",
        "{len(x)} GPUs",
    ]
