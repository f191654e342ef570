"""The notes of a release: the section of CHANGELOG.md about its version."""

import re

from gpusharing.planning.vocabulary.lengths import counted
from hack.release.package import ROOT

CHANGELOG = ROOT / "CHANGELOG.md"
MOST_LINES = 80


def read_notes(text: str, version: str) -> str:
    """Return the body of a version's section, such as `## 0.1.0` or `## [0.1.0] - 2026-12-01`."""
    section = re.search(
        rf"^## \[?{re.escape(version)}\]?(?: [^\n]*)?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    return section[1].strip() if section else ""


def find_flaw(text: str, version: str) -> str:
    """Return why a version's section cannot serve as its notes, or an empty string."""
    notes = read_notes(text, version)
    if not changes(notes):
        return f"CHANGELOG.md has no changes for {version}: add a section ## {version} with a heading and entries"
    if (lines := notes.count("\n") + 1) > MOST_LINES:
        return (
            f"the section {version} of CHANGELOG.md has {lines} lines, and at most {MOST_LINES} are read:"
            " say what a user can do"
        )
    return ""


def find_unreleased(text: str, version: str) -> str:
    """Return which entries would be missing in the notes of this version, or an empty string."""
    if not (left := len(re.findall("^- ", read_notes(text, "Unreleased"), re.MULTILINE))):
        return ""
    return (
        f"CHANGELOG.md has {counted(left, 'entry', 'entries')} under Unreleased, which the commit contains:"
        f" say in the section {version} what a user can do, and remove them"
    )


def changes(notes: str) -> list[dict[str, str]]:
    """Return each entry of a section with its heading and first sentence, as Artifact Hub lists them."""
    entries: list[dict[str, str]] = []
    for kind, body in re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", notes, re.MULTILINE | re.DOTALL):
        # An entry ends at an empty line, since the heading of the next group may follow.
        texts = [entry.split("\n\n")[0] for entry in re.split(r"^- ", body, flags=re.MULTILINE)[1:]]
        sentences = (re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0] for text in texts)
        entries += [{"kind": kind.lower(), "description": sentence} for sentence in sentences]
    return entries
